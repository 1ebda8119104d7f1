"""Files that are written whole or not at all, and paths on which no symbolic link of another user is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Links on one path, as in Linux.
_MOST_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(path: Path, *, create: bool = False) -> tuple[int, str]:
    """Open the folder of a file without following a symbolic link that another user may have placed.

    A link is followed when it belongs to root or to the user of this process, or when nobody else can write to the
    folder that contains it. In a folder such as ``/tmp`` another user could otherwise choose the file that is read or
    replaced. The folder is opened step by step, so that no part of the path can be exchanged meanwhile.

    Parameters
    ----------
    path : Path
        Of the file, which need not exist. When it is itself a link that may be followed, its target counts.
    create : bool
        Whether to create missing folders.

    Returns
    -------
    (int, str)
        Descriptor of the folder, for the ``dir_fd`` of other calls, and the name of the file in it. The caller closes
        the descriptor.

    Raises
    ------
    OSError
        With ``errno.ELOOP`` for a link of another user.
    """
    folder = os.open("/", _FOLDER)
    links = 0
    try:
        # Backwards: the next part is the last one.
        waiting = list(reversed(path.absolute().parts[1:])) or ["."]
        while True:
            name = waiting.pop()
            found = _lstat(name, folder)
            if found is not None and stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MOST_LINKS or not _is_trusted(os.fstat(folder), found):
                    reason = os.strerror(errno.ELOOP) if links > _MOST_LINKS else "Symbolic link of another user"
                    raise OSError(errno.ELOOP, reason, str(path))
                target = Path(os.readlink(name, dir_fd=folder))
                waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                if target.is_absolute():
                    folder = _replace(folder, os.open("/", _FOLDER))
                if not waiting:
                    return folder, "."
                continue
            if not waiting:
                return folder, name
            if found is None and create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            folder = _replace(folder, os.open(name, _FOLDER, dir_fd=folder))
    except BaseException as error:
        os.close(folder)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as :func:`os.open` does; links are followed as :func:`open_folder` describes.

    Raises
    ------
    OSError
    """
    folder, name = open_folder(path)
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(folder)


def make_folder_of(path: Path) -> None:
    """Create the folder of a file, and those above it, where they are missing.

    Raises
    ------
    OSError
    """
    folder, _ = open_folder(path, create=True)
    os.close(folder)


def resolve_database(path: Path) -> Path:
    """The path of an SQLite file without symbolic links, for SQLite opens files by their path alone.

    Links of the file and of the files beside it are followed as :func:`open_folder` describes. In a folder that others
    may write to, they could still place a link between this call and the use of the path.

    Raises
    ------
    OSError
    """
    resolved = _resolve(path)
    for suffix in ("-journal", "-wal", "-shm"):
        _resolve(resolved.with_name(resolved.name + suffix))
    return resolved


def _resolve(path: Path) -> Path:
    folder, name = open_folder(path)
    try:
        return Path(f"/proc/self/fd/{folder}").readlink() / name
    finally:
        os.close(folder)


def _lstat(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_trusted(folder: os.stat_result, link: os.stat_result) -> bool:
    """Whether only root or the user of this process can have placed a link."""
    own = {0, os.geteuid()}
    return link.st_uid in own or (folder.st_uid in own and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


class Staged:
    """Temporary files beside their targets, which are renamed together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, str, str]] = []
        """Folder, name of the temporary file, name of the target."""

    def write(self, path: Path, data: bytes, *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
        """Write ``data`` to a temporary file in the folder of ``path``; see :func:`write_atomically`."""
        self.write_pieces(path, (data,), mode=mode, owner=owner)

    def write_pieces(
        self, path: Path, pieces: Iterable[bytes], *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)
    ) -> None:
        """Write data that comes in pieces; see :meth:`write`.

        Raises
        ------
        OSError
            Also when the target is not a regular file: a device or a pipe is not replaced.
        """
        # The target of a symbolic link is replaced, not the link.
        folder, name = open_folder(path)
        temporary = f".{name[:80]}.{secrets.token_hex(6)}.tmp"
        self._waiting.append((folder, temporary, name))
        found = _lstat(name, folder)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        try:
            # Not tempfile, whose files only the owner can read: the permissions are those of the umask.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            if owner != (-1, -1):
                os.fchown(file.fileno(), *owner)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())

    def commit(self) -> None:
        """Rename every file to its target."""
        for folder, temporary, name in self._waiting:
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        self._close()

    def discard(self) -> None:
        """Remove the files that are not renamed yet."""
        for folder, temporary, _ in self._waiting:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        self._close()

    def _close(self) -> None:
        for folder, _, _ in self._waiting:
            os.close(folder)
        self._waiting.clear()


@contextlib.contextmanager
def staged() -> Iterator[Staged]:
    """Write several files that appear together at the end of the block, or not at all when it fails.

    Raises
    ------
    OSError
        When a file cannot be written; no target is changed then.
    """
    files = Staged()
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_atomically(path: Path, data: bytes, *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
    """Replace a file; readers see the old content or the new one.

    Parameters
    ----------
    path : Path
    data : bytes
    mode : int, optional
        Permissions; by default those of the umask.
    owner : two ints
        IDs of user and group; -1 leaves one unchanged.

    Raises
    ------
    OSError
        When it cannot be written; an older file is unchanged.
    """
    with staged() as files:
        files.write(path, data, mode=mode, owner=owner)


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, which change when another file takes its path; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
