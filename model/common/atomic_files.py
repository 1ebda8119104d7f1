"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


class Staged:
    """Temporary files beside their targets, which are renamed together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

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
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
        # Not tempfile, whose files only the owner can read: the permissions are those of the umask.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._waiting.append((temporary, path))
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
        for temporary, path in self._waiting:
            temporary.replace(path)
        self._waiting.clear()

    def discard(self) -> None:
        """Remove the files that are not renamed yet."""
        for temporary, _ in self._waiting:
            with contextlib.suppress(OSError):
                temporary.unlink()
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
