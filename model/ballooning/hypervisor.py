"""Hosts of guests, through libvirt.

A call may hang for ever: on a host that is mute, on a guest whose process stands still. So each call has a thread of
its own and a time to answer in, and one that has not come back holds up neither another host nor another guest.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import libvirt

from .guests import Guest

LOG = logging.getLogger("scroogevm.hypervisor")

T = TypeVar("T")

#: Calls to one host that may hang before it counts as one that does not answer.
_HANGING = 4
#: How often libvirt asks whether the other side is still there, and how many answers may be missing.
_KEEPALIVE_S, _KEEPALIVES = 1, 3
#: ssh with a time limit; plain ssh waits for ever for a host that says nothing.
_SSH = Path(__file__).resolve().parent / "ssh.sh"
_STATISTICS = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON
_RUNNING = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
#: A guest whose process stands still tells less, and the others do not wait for it.
_NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
#: What is wrong with a guest, and not with its host.
_GONE = {libvirt.VIR_ERR_NO_DOMAIN}
_REFUSED = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
}


class HostUnavailable(Exception):
    """A host that does not answer, or not now; the message is one line."""


class GuestGone(Exception):
    """A guest that its host does not know, or that does not run."""


class GuestRefused(Exception):
    """A guest that does not do what it is asked to; the message is one line."""


@functools.cache
def start_events() -> None:
    """Let libvirt notice by itself that a host fell silent, once and for the whole process.

    To be called before any connection is opened, by one thread.
    """
    # What goes wrong is an exception; libvirt would write it to stderr as well.
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def uri_with_timeouts(uri: str) -> str:
    """The URI with an ssh that gives up on a host which says nothing, unless it names an ssh of its own.

    >>> uri_with_timeouts("qemu:///system"), "ssh.sh" in uri_with_timeouts("qemu+ssh://root@host/system")
    ('qemu:///system', True)
    """
    parts = urlsplit(uri)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if not parts.scheme.endswith("+ssh") or "command" in dict(query):
        return uri
    query += [("command", str(_SSH))] + ([] if "no_tty" in dict(query) else [("no_tty", "1")])
    # libvirt knows no + for a blank.
    return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote, safe="/")))


class _Link:
    """A connection, for one call at a time.

    libvirt's client dies of two things: of a connection that is closed under a call, and of two calls that hang on one
    when the keep-alive ends it. So a call that finds the connection taken opens another one, and this one is closed
    when its call has come back.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._busy = False
        self._given_up = False

    def take(self) -> bool:
        """Have it for a call; False when that can't be."""
        with self._lock:
            if self._busy or self._given_up or not _is_alive(self._connection):
                return False
            self._busy = True
            return True

    @contextlib.contextmanager
    def taken(self) -> Iterator[Any]:
        """The connection that was taken; it is free again at the end."""
        try:
            yield self._connection
        finally:
            with self._lock:
                self._busy = False
            self._close_if_done()

    def give_up(self) -> None:
        """Close it as soon as that can be done; never waits."""
        with self._lock:
            self._given_up = True
        # To close is a call too, and may hang like any other.
        threading.Thread(target=self._close_if_done, daemon=True).start()

    def _close_if_done(self) -> None:
        with self._lock:
            if self._busy or not self._given_up or self._connection is None:
                return
            connection, self._connection = self._connection, None
        try:
            connection.close()
        except libvirt.libvirtError as error:
            LOG.debug("closing: %s", error)


def _is_alive(connection: Any) -> bool:
    try:
        return connection is not None and bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


class Hypervisor:
    """One host.

    Parameters
    ----------
    uri : str
        Of libvirt.
    timeout_s : float
        For each call, opening the connection included.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        self.uri = uri
        self._timeout_s = timeout_s
        self._link: _Link | None = None
        self._opening = threading.Lock()
        self._hanging = 0
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        start_events()

    def guests(self) -> dict[str, Guest]:
        """The guests that run, by UUID.

        Raises
        ------
        HostUnavailable
        """
        return self._call(self._guests)

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        """Tell a guest how much memory it may have, now and until it is started anew.

        Raises
        ------
        HostUnavailable, GuestGone, GuestRefused
        """
        with self._lock:
            if uuid in self._busy:
                raise GuestRefused("an earlier call to it has not come back")
            self._busy.add(uuid)

        def job() -> None:
            try:
                with self._taken().taken() as connection:
                    domain = connection.lookupByUUIDString(uuid)
                    if not domain.isActive():
                        raise GuestGone("it does not run")
                    domain.setMemoryFlags(round(memory_mb * 1024), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            finally:
                with self._lock:
                    self._busy.discard(uuid)

        self._call(job)

    def close(self) -> None:
        """Let go of the connection; not waiting for a host that is mute."""
        link, self._link = self._link, None
        if link is not None:
            link.give_up()

    def _guests(self) -> dict[str, Guest]:
        with self._taken().taken() as connection:
            found = connection.getAllDomainStats(_STATISTICS, _RUNNING | _NOWAIT)
            guests = [_guest(domain, _told(domain, figures)) for domain, figures in found]
        return {guest.uuid: guest for guest in guests if guest is not None}

    # --- calls --------------------------------------------------------------------------------------

    def _call(self, job: Callable[[], T]) -> T:
        """Do it in a thread, and wait for the answer for so long."""
        with self._lock:
            if self._hanging >= _HANGING:
                raise HostUnavailable(f"does not answer: {self._hanging} calls have not come back")
            self._hanging += 1
        answer: Future[T] = Future()
        threading.Thread(target=self._work, args=(job, answer), daemon=True).start()
        try:
            return answer.result(self._timeout_s)
        except NotDone:
            raise HostUnavailable(f"no answer within {self._timeout_s:g} s") from None
        except libvirt.libvirtError as error:
            raise self._named(error) from None

    def _work(self, job: Callable[[], T], answer: Future[T]) -> None:
        try:
            answer.set_result(job())
        except BaseException as error:
            answer.set_exception(error)
        finally:
            with self._lock:
                self._hanging -= 1

    def _named(self, error: libvirt.libvirtError) -> Exception:
        words = " ".join(str(error).split())
        code = error.get_error_code()
        if code in _GONE:
            return GuestGone(words)
        return GuestRefused(words) if code in _REFUSED else HostUnavailable(words)

    def _taken(self) -> _Link:
        """A connection that is ours until its call has come back."""
        link = self._link
        if link is not None and link.take():
            return link
        # One at a time: an open that hangs is waited for, not repeated.
        if not self._opening.acquire(blocking=False):
            raise HostUnavailable("still trying to connect")
        try:
            self.close()
            connection = libvirt.open(uri_with_timeouts(self.uri))
            try:
                connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES)
            except libvirt.libvirtError:
                LOG.debug("%s: no keep-alive", self.uri)  # a driver within this process needs none
            self._link = link = _Link(connection)
            link.take()
            return link
        finally:
            self._opening.release()


def _told(domain: Any, figures: dict[str, Any]) -> dict[str, float]:
    """What a guest and its host say of its memory, KiB and counts; from the guest itself where that takes a call."""
    if "balloon.current" in figures:
        return {name.removeprefix("balloon."): value for name, value in figures.items() if name.startswith("balloon.")}
    _, maximum, current, *_ = domain.info()
    told: dict[str, float] = {"maximum": maximum, "current": current}
    names = {"last_update": "last-update", "actual": "current"}
    try:
        told |= {names.get(name, name): value for name, value in domain.memoryStats().items()}
    except libvirt.libvirtError as error:
        LOG.debug("%s: no statistics: %s", domain.name(), error)
    return told


def _guest(domain: Any, told: dict[str, float]) -> Guest | None:
    current, maximum = told.get("current"), told.get("maximum")
    if current is None or maximum is None:
        return None

    def mb(name: str) -> float:
        return told[name] / 1024 if name in told else math.nan

    swapped = [told[name] for name in ("swap_in", "swap_out") if name in told]
    return Guest(
        uuid=domain.UUIDString(),
        name=domain.name(),
        memory_mb=maximum / 1024,
        balloon_mb=current / 1024,
        rss_mb=mb("rss"),
        unused_mb=mb("unused"),
        available_mb=mb("available"),
        reported_s=float(told.get("last-update", math.nan)),
        swapped_kb=float(sum(swapped)) if swapped else math.nan,
        faults=float(told.get("major_fault", math.nan)),
    )
