"""A libvirt connection that one call at a time uses, and libvirt's event loop."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import libvirt

from ..common.threads import start_thread

LOG = logging.getLogger("scroogevm.hypervisor")

#: Seconds between keep-alive requests of libvirt, and how many may remain unanswered.
_KEEPALIVE_S, _KEEPALIVES = 1, 3
#: ssh with time limits; plain ssh waits forever for a host that does not respond.
_SSH = Path(__file__).resolve().parent / "ssh.sh"
_EVENTS_LOCK = threading.Lock()


class Connection:
    """A connection for one call at a time.

    Two things crash libvirt's client: closing a connection during a call, and two calls that hang on one connection
    when its keep-alive ends it. A call that finds the connection in use therefore opens another one, and the first is
    closed when its call returns.

    Parameters
    ----------
    connection : libvirt.virConnect
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._busy = False
        self._abandoned = False

    def acquire(self) -> bool:
        """Reserve the connection for a call; False when it is in use or dead."""
        with self._lock:
            if self._busy or self._abandoned or not _is_alive(self._connection):
                return False
            self._busy = True
            return True

    @contextlib.contextmanager
    def acquired(self) -> Iterator[Any]:
        """The reserved connection; it is released at the end."""
        try:
            yield self._connection
        finally:
            with self._lock:
                self._busy = False
            self._close_if_done()

    def abandon(self) -> None:
        """Close the connection as soon as it is free; does not wait."""
        with self._lock:
            self._abandoned = True
        # Closing is a call that may hang too.
        start_thread("libvirt-close", self._close_if_done)

    def _close_if_done(self) -> None:
        with self._lock:
            if self._busy or not self._abandoned or self._connection is None:
                return
            connection, self._connection = self._connection, None
        try:
            connection.close()
        except libvirt.libvirtError as error:
            LOG.debug("closing: %s", error)


def open_connection(uri: str) -> Connection:
    """Open a connection and reserve it for the caller; may hang.

    Raises
    ------
    libvirt.libvirtError
    """
    with _EVENTS_LOCK:
        _start_events()
    opened = libvirt.open(uri_with_timeouts(uri))
    try:
        opened.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES)
    except libvirt.libvirtError:
        LOG.debug("%s: no keep-alive", uri)  # drivers within this process need none
    connection = Connection(opened)
    connection.acquire()
    return connection


@functools.cache
def _start_events() -> None:
    """Run libvirt's event loop, which detects silent hosts; once per process, before the first connection is opened."""
    # Errors are raised; libvirt would print them on stderr as well.
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    start_thread("libvirt-events", _run_events)


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def uri_with_timeouts(uri: str) -> str:
    """Add an ssh command with time limits to the URI, unless the URI has a command of its own.

    >>> uri_with_timeouts("qemu:///system"), "ssh.sh" in uri_with_timeouts("qemu+ssh://root@host/system")
    ('qemu:///system', True)
    """
    parts = urlsplit(uri)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if not parts.scheme.endswith("+ssh") or "command" in dict(query):
        return uri
    query += [("command", str(_SSH))] + ([] if "no_tty" in dict(query) else [("no_tty", "1")])
    # libvirt does not decode + as a blank.
    return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote, safe="/")))


def _is_alive(connection: Any) -> bool:
    try:
        return connection is not None and bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
