"""The journal of ballooning: sessions and grace periods, on disk before a guest is squeezed."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ..common.atomic_files import make_folder_of, open_file, write_atomically
from .sessions import Session

_FORMAT = 1


class JournalRefused(Exception):
    """The journal cannot be used; the message is one line."""


class _Content(msgspec.Struct):
    format: int
    sessions: dict[str, Session]
    grace: dict[str, float]


class Journal:
    """Sessions and grace periods of all hosts, by the UUID of the VM.

    Use it as a context manager, or call :meth:`open` and :meth:`close`. Its methods may be called by any thread.

    Parameters
    ----------
    path : Path
    locked : bool
        Whether to lock the journal for this process. Without a lock it must not be written.
    """

    def __init__(self, path: Path, *, locked: bool = True) -> None:
        self.path = path.expanduser().absolute()
        self._locked = locked
        self._lock = threading.Lock()
        self._handle = -1
        self._closed = True
        self._sessions: dict[str, Session] = {}
        self._grace: dict[str, float] = {}

    def open(self) -> Journal:
        """Lock and read the journal.

        Raises
        ------
        JournalRefused
            When it cannot be read or parsed, or another daemon has locked it.
        """
        try:
            if self._locked:
                self._lock_file()
            content = _parse(self.path, self._read())
        except OSError as error:
            self.close()
            raise JournalRefused(f"{error.filename or self.path}: {error.strerror}") from None
        except JournalRefused:
            self.close()
            raise
        self._sessions, self._grace = content.sessions, content.grace
        self._closed = False
        return self

    def close(self) -> None:
        """Unlock the journal; later changes are refused."""
        with self._lock:
            self._closed = True
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def __enter__(self) -> Journal:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _lock_file(self) -> None:
        make_folder_of(self.path)
        # A file of its own, because each change replaces the journal.
        self._handle = open_file(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalRefused(f"{self.path}: in use by another vmballooning.py") from None

    def _read(self) -> bytes:
        try:
            with os.fdopen(open_file(self.path, os.O_RDONLY), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def sessions(self, host: str | None = None) -> dict[str, Session]:
        """The sessions of a host, or of all hosts."""
        with self._lock:
            return {uuid: one for uuid, one in self._sessions.items() if host is None or one.host == host}

    def grace(self) -> Mapping[str, float]:
        """End of the grace period of each VM, Unix seconds."""
        with self._lock:
            return dict(self._grace)

    def put(self, session: Session) -> None:
        """Add or replace a session; it is on disk when this returns.

        Raises
        ------
        OSError
            When it could not be written; it is kept in RAM all the same.
        """
        with self._lock:
            self._sessions[session.uuid] = session
            self._write()

    def note(self, session: Session) -> None:
        """Update a session in RAM; it is written with the next change."""
        with self._lock:
            if session.uuid in self._sessions:
                self._sessions[session.uuid] = session

    def end(self, uuid: str, grace_until_s: float, now_s: float) -> None:
        """Remove a session and start the grace period of its VM.

        Raises
        ------
        OSError
            When this could not be written; after a restart the guest would be restored once more.
        """
        with self._lock:
            self._sessions.pop(uuid, None)
            self._grace = {vm: until_s for vm, until_s in self._grace.items() if until_s > now_s}
            self._grace[uuid] = grace_until_s
            self._write()

    def _write(self) -> None:
        if self._closed:
            # A thread that outlives its run must not overwrite the journal of the next one.
            raise OSError(errno.EBADF, "the journal is closed")
        sessions = {uuid: _without_unknown(msgspec.to_builtins(one)) for uuid, one in self._sessions.items()}
        text = msgspec.json.encode({"format": _FORMAT, "sessions": sessions, "grace": self._grace})
        write_atomically(self.path, msgspec.json.format(text, indent=1), mode=0o600)
        folder = open_file(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # The new directory entry is on disk only after this.
            os.fsync(folder)
        finally:
            os.close(folder)


def _parse(path: Path, text: bytes) -> _Content:
    if not text:
        return _Content(_FORMAT, {}, {})
    try:
        content = msgspec.json.decode(text, type=_Content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        remedy = "look for squeezed VMs with 'virsh dommemstat', then move the file away"
        raise JournalRefused(f"{path}: not a journal ({error}); {remedy}") from None
    if content.format != _FORMAT:
        raise JournalRefused(f"{path}: written by another version (format {content.format})")
    return content


def _without_unknown(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without NaN and infinity, which JSON lacks; a missing field is read as its default."""
    return {name: value for name, value in fields.items() if not isinstance(value, float) or math.isfinite(value)}
