"""The spool: samples on disk that wait for the store, in a folder of files that are written whole and never changed.

A file is named ``<number>-<points>.spool``; a lower number is older. It begins with a line that names the format;
frames follow: length and CRC-32 of a packed sample (little-endian, 32 bits each), and the sample. A file that was cut
off or damaged is read up to the first frame that is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..common.atomic_files import open_folder

_MAGIC = b"ScroogeVM spool 1\n"
_FRAME = struct.Struct("<II")
_NAME = re.compile(r"(\d{12})-(\d+)\.spool")
_SUFFIX = ".spool"


class SpoolCounts(NamedTuple):
    """What is in the spool."""

    points: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A file that was read.

    Attributes
    ----------
    name : str
    points : int
        That it had when it was written.
    samples : list of bytes
        Packed; without those behind a frame that is damaged.
    """

    name: str
    points: int
    samples: list[bytes]


class _Entry(NamedTuple):
    points: int
    size: int
    written_s: float


class Spool:
    """A folder of samples, oldest first, that one process at a time uses. Safe to use from any thread.

    Parameters
    ----------
    path : Path
        Created, for its owner alone, by the first :meth:`append`.
    most_bytes : int
        Beyond this size the oldest files are deleted.
    wall_clock : callable
        Unix seconds.
    """

    def __init__(self, path: Path, most_bytes: int, wall_clock: Callable[[], float] = time.time) -> None:
        self.path = path.expanduser().absolute()
        self.most_bytes = most_bytes
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._folder = -1
        self._entries: dict[str, _Entry] = {}

    def counts(self) -> SpoolCounts:
        """Points and bytes that are waiting."""
        with self._lock:
            return self._counts()

    def age_s(self) -> float:
        """Seconds since the oldest file that waits was written; 0 when none waits."""
        with self._lock:
            if not self._entries:
                return 0.0
            return max(0.0, self._wall_clock() - self._entries[min(self._entries)].written_s)

    @property
    def is_open(self) -> bool:
        """Whether the folder is locked."""
        return self._folder >= 0

    def open_if_present(self) -> bool:
        """Lock the folder, if there is one, and list its files; whether it is open.

        Raises
        ------
        OSError
            When another process uses it, or it belongs to another user.
        """
        with self._lock:
            if self._folder < 0 and os.path.lexists(self.path):
                self._open()
            return self._folder >= 0

    def append(self, samples: Sequence[bytes], points: int) -> int:
        """Write a file.

        Returns
        -------
        int
            Points of the oldest files, which were deleted to make room.

        Raises
        ------
        OSError
            When it cannot be written; nothing is changed then.
        """
        with self._lock:
            if self._folder < 0:
                self._create()
                self._open()
            pieces = [_MAGIC]
            for sample in samples:
                pieces += (_FRAME.pack(len(sample), zlib.crc32(sample)), sample)
            number = 1 + max((int(name.partition("-")[0]) for name in self._entries), default=0)
            name = f"{number:012d}-{points}{_SUFFIX}"
            size = sum(map(len, pieces))
            self._write(name, pieces)
            self._entries[name] = _Entry(points, size, self._wall_clock())
            return self._make_room(name)

    def oldest(self) -> SpoolFile | None:
        """Read the oldest file; None when there is none.

        A file that cannot be read counts as damaged; it is left for the next start.
        """
        with self._lock:
            if not self._entries:
                return None
            name = min(self._entries)
            points = self._entries[name].points
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
                with os.fdopen(descriptor, "rb") as file:
                    data = file.read()
            except OSError:
                del self._entries[name]
                return SpoolFile(name, points, [])
            return SpoolFile(name, points, _parse(data))

    def has(self, name: str) -> bool:
        """Whether a file waits."""
        with self._lock:
            return name in self._entries

    def remove(self, name: str) -> None:
        """Delete a file.

        Raises
        ------
        OSError
            It is not read again by this process.
        """
        with self._lock:
            if self._entries.pop(name, None) is not None and self._folder >= 0:
                os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Unlock the folder; an empty one is deleted. What it holds is still counted."""
        with self._lock:
            if self._folder < 0:
                return
            if not self._entries:
                with contextlib.suppress(OSError):  # something else is in it
                    self.path.rmdir()
            os.close(self._folder)
            self._folder = -1

    def _counts(self) -> SpoolCounts:
        entries = self._entries.values()
        return SpoolCounts(sum(entry.points for entry in entries), sum(entry.size for entry in entries))

    def _create(self) -> None:
        parent, name = open_folder(self.path, create=True)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)

    def _open(self) -> None:
        parent, name = open_folder(self.path)
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            found = os.fstat(folder)
            if found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "The folder belongs to another user", str(self.path))
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(folder, 0o700)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EAGAIN, "In use by another vmaggreg.py", str(self.path)) from None
            self._entries = _list(folder)
        except BaseException:
            os.close(folder)
            raise
        self._folder = folder

    def _write(self, name: str, pieces: Sequence[bytes]) -> None:
        temporary = f".{name}.tmp"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            # The entry of the folder is on disk only after this.
            os.fsync(self._folder)
        except OSError:
            _unlink(temporary, self._folder)
            raise

    def _make_room(self, kept: str) -> int:
        """Delete the oldest files, but not the new one; their points."""
        dropped, size = 0, self._counts().bytes
        for name in sorted(self._entries):
            if size <= self.most_bytes or name == kept:
                break
            entry = self._entries.pop(name)
            _unlink(name, self._folder)
            dropped += entry.points
            size -= entry.size
        return dropped


def _list(folder: int) -> dict[str, _Entry]:
    """The files of a spool; what a killed process left half-written is deleted."""
    entries = {}
    for name in os.listdir(folder):
        match = _NAME.fullmatch(name)
        if match:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            entries[name] = _Entry(int(match[2]), found.st_size, found.st_mtime)
        elif name.endswith(f"{_SUFFIX}.tmp"):
            _unlink(name, folder)
    return entries


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(OSError):  # it is gone, or the disk fails: it is not read again
        os.unlink(name, dir_fd=folder)


def _parse(data: bytes) -> list[bytes]:
    """The samples of a file up to the first frame that is damaged."""
    samples: list[bytes] = []
    at = len(_MAGIC) if data.startswith(_MAGIC) else len(data)
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        sample = data[at : at + length]
        if len(sample) < length or zlib.crc32(sample) != checksum:
            break
        samples.append(sample)
        at += length
    return samples
