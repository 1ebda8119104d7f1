"""The journal of ballooning: sessions and grace periods, on disk before a guest is squeezed.

A journal that cannot be used keeps no daemon from starting: the marks in the domains (:mod:`.marks`) show which guests
are squeezed. Its content is in RAM meanwhile, and each change tries to write it again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ..common.atomic_files import make_folder_of, open_file, write_atomically
from ..common.errors import PassingFault
from .marks import owner_of
from .sessions import Session

LOG = logging.getLogger("scroogevm.ballooning")

_FORMAT = 1
#: How a journal begins, also one that was cut off. Another file is never renamed.
_BEGINNING = b'{"format":'


class JournalBusy(PassingFault):
    """Another process has locked the journal; the message is one line."""


class _JournalDamaged(Exception):
    """The content is not a journal; the message is one line."""


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

    Attributes
    ----------
    owner : str
        Identifies the journal in marks.
    owned : bool
        Whether it is locked for this process.
    fault : str
        Why it cannot be used, in one line; empty when it can.
    """

    def __init__(self, path: Path, *, locked: bool = True) -> None:
        self.path = path.expanduser().absolute()
        self._locked = locked
        self._lock = threading.Lock()
        self._handle = -1
        self._closed = True
        self._loaded = False
        self.owner = ""
        self.fault = ""
        self._sessions: dict[str, Session] = {}
        self._grace: dict[str, float] = {}

    def open(self) -> Journal:
        """Lock and read the journal; see ``fault`` for whether it can be used.

        Raises
        ------
        JournalBusy
            When another daemon has locked it.
        """
        with self._lock:
            self._closed = False
            self.owner = owner_of(self.path)
            try:
                self._prepare()
            except JournalBusy:
                self._release()
                raise
        return self

    def retry(self) -> None:
        """Lock and read a journal that could not be used, if that is possible by now."""
        with self._lock:
            if self.fault and not self._closed:
                try:
                    self._prepare()
                except JournalBusy as error:
                    self.fault = str(error)

    def close(self) -> None:
        """Unlock the journal; later changes are refused."""
        with self._lock:
            self._release()

    @property
    def owned(self) -> bool:
        """Whether it is open and locked for this process."""
        return self._handle >= 0

    def _release(self) -> None:
        self._closed = True
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Journal:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _prepare(self) -> None:
        """Lock and read the journal, or set the fault."""
        try:
            if self._locked and self._handle < 0:
                self._handle = self._lock_file()
            if not self._loaded:
                self._load()
        except OSError as error:
            self.fault = f"{error.filename or self.path}: {error.strerror}"
        except _JournalDamaged as error:
            self.fault = str(error)
        else:
            self.fault = ""

    def _lock_file(self) -> int:
        """A handle that holds the lock."""
        handle = self._open_lock()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise JournalBusy(f"{self.path}: in use by another vmballooning.py") from None
        except OSError:
            os.close(handle)
            raise
        return handle

    def _open_lock(self) -> int:
        # A file of its own, because each change replaces the journal.
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            make_folder_of(self.path)
            return open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
        # Reading is enough for a lock. Where no file can be created, the folder itself is locked.
        try:
            return open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            return open_file(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)

    def _load(self) -> None:
        text = self._read()
        try:
            content = _parse(self.path, text)
        except _JournalDamaged as error:
            if not self._locked or b"".join(text[:40].split())[: len(_BEGINNING)] != _BEGINNING:
                raise
            aside = self.path.with_name(f"{self.path.name}.aside")
            self.path.replace(aside)
            LOG.error("journal: %s; it is renamed to %s, marked guests are restored without it", error, aside.name)
            content = _Content(_FORMAT, {}, {})
        # What happened since the start is newer.
        self._sessions = {**content.sessions, **self._sessions}
        self._grace = {**content.grace, **self._grace}
        self._loaded = True

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

    def adopt(self, session: Session) -> None:
        """Add a session in RAM; it is written with the next change."""
        with self._lock:
            self._sessions[session.uuid] = session

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
        if self.fault:
            # Not written before it was read: sessions of an earlier run may be in it.
            raise OSError(errno.EIO, self.fault)
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
        raise _JournalDamaged(f"{path}: not a journal ({error})") from None
    if content.format != _FORMAT:
        raise _JournalDamaged(f"{path}: written by another version (format {content.format})")
    return content


def _without_unknown(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without NaN and infinity, which JSON lacks; a missing field is read as its default."""
    return {name: value for name, value in fields.items() if not isinstance(value, float) or math.isfinite(value)}
