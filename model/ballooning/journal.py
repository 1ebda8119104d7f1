"""The journal of ballooning: what is squeezed, from what to what, until when; on disk before it happens."""

from __future__ import annotations

import fcntl
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..common.atomic_files import write_atomically
from .plan import Session

_FORMAT = 1


class JournalRefused(Exception):
    """A journal that can't be used; the message is one line."""


class _Text(msgspec.Struct):
    format: int
    sessions: dict[str, Session]
    grace: dict[str, float]


class Journal:
    """Sessions and grace periods of all hosts, by the UUID of the VM.

    Parameters
    ----------
    path : Path
    locked : bool
        Whether it is ours alone; who only looks needs no lock, and must not write.

    Raises
    ------
    JournalRefused
        When it makes no sense, can't be opened, or is another daemon's.
    """

    def __init__(self, path: Path, *, locked: bool = True) -> None:
        self.path = path.expanduser().absolute()
        self._lock = threading.Lock()
        self._handle = -1
        try:
            if locked:
                self._take()
            text = self._read()
        except OSError as error:
            self.close()
            raise JournalRefused(f"{error.filename or self.path}: {error.strerror}") from None
        try:
            read = self._parse(text) if text else _Text(_FORMAT, {}, {})
        except JournalRefused:
            self.close()
            raise
        self._sessions, self._grace = read.sessions, read.grace

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the journal, which is replaced at each change.
        self._handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise JournalRefused(f"{self.path}: another vmballooning.py is at work with it") from None

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def _parse(self, text: bytes) -> _Text:
        try:
            read = msgspec.json.decode(text, type=_Text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            words = "look for squeezed VMs with 'virsh dommemstat', then move it away"
            raise JournalRefused(f"{self.path}: not a journal ({error}); {words}") from None
        if read.format != _FORMAT:
            raise JournalRefused(f"{self.path}: of another version")
        return read

    def sessions(self, host: str | None = None) -> dict[str, Session]:
        """The sessions of a host, or of all."""
        with self._lock:
            return {uuid: one for uuid, one in self._sessions.items() if host is None or one.host == host}

    def grace(self) -> Mapping[str, float]:
        """Until when each VM is left alone, Unix seconds."""
        with self._lock:
            return dict(self._grace)

    def put(self, session: Session) -> None:
        """Write a session down; it is on disk when this returns.

        Raises
        ------
        OSError
            When it is not; it is remembered all the same.
        """
        with self._lock:
            self._sessions[session.uuid] = session
            self._write()

    def note(self, session: Session) -> None:
        """Remember how a session goes on, without what a restart would need."""
        with self._lock:
            if session.uuid in self._sessions:
                self._sessions[session.uuid] = session

    def end(self, uuid: str, grace_until_s: float, now_s: float) -> None:
        """Take a session out, and begin the grace period of its VM.

        Raises
        ------
        OSError
            When that can't be written; a restart would restore what is restored already.
        """
        with self._lock:
            self._sessions.pop(uuid, None)
            self._grace = {vm: until_s for vm, until_s in self._grace.items() if until_s > now_s}
            self._grace[uuid] = grace_until_s
            self._write()

    def _write(self) -> None:
        sessions = {uuid: _finite(msgspec.to_builtins(one)) for uuid, one in self._sessions.items()}
        text = msgspec.json.encode({"format": _FORMAT, "sessions": sessions, "grace": self._grace})
        write_atomically(self.path, msgspec.json.format(text, indent=1), mode=0o600)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A name is on disk when its folder is.
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let another daemon have it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for a figure that is not known; without it the default counts."""
    return {name: value for name, value in fields.items() if not isinstance(value, float) or math.isfinite(value)}
