"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


class Staged:
    """Files that were written beside their targets and wait for their names."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

    def write(self, path: Path, data: bytes, *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
        """Write ``data`` to a temporary file in the folder of ``path``; see :func:`write_atomically`."""
        self.write_pieces(path, (data,), mode=mode, owner=owner)

    def write_pieces(
        self, path: Path, pieces: Iterable[bytes], *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)
    ) -> None:
        """The same for data that comes in pieces.

        Raises
        ------
        OSError
            Also when something else than a regular file is in the place: a device or a pipe is not replaced.
        """
        # Through a symbolic link, to what it points at.
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
        # Not tempfile: its files are for the owner alone, these are for whom the umask says.
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
        """Give every file its name."""
        for temporary, path in self._waiting:
            temporary.replace(path)
        self._waiting.clear()

    def discard(self) -> None:
        """Remove what has no name yet."""
        for temporary, _ in self._waiting:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._waiting.clear()


@contextlib.contextmanager
def staged() -> Iterator[Staged]:
    """Several files that appear together at the end of the block, or, when it fails, not at all.

    Raises
    ------
    OSError
        When a file can't be written; none has appeared then.
    """
    files = Staged()
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_atomically(path: Path, data: bytes, *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
    """Write a file that readers see whole: the old one or the new one.

    Parameters
    ----------
    path : Path
    data : bytes
    mode : int, optional
        Its permissions; by default what the umask leaves.
    owner : two ints
        Numbers of user and group; -1 leaves them as they come.

    Raises
    ------
    OSError
        When it can't be written; an older file is left as it was.
    """
    with staged() as files:
        files.write(path, data, mode=mode, owner=owner)


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that takes its name; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
