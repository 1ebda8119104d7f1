"""Hosts of guests through libvirt.

A libvirt call may hang forever: on a silent host, or on a guest whose process is stopped. Each call therefore runs in
a thread of its own with a time limit, and a hung call delays neither other hosts nor other guests.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import libvirt

from ..common.threads import call_with_timeout
from .guests import Guest
from .host import GuestGone, GuestRefused, HostUnavailable
from .libvirt_connection import Connection, open_connection
from .marks import NAMESPACE, PREFIX, Mark, mark_xml, parse_mark

LOG = logging.getLogger("scroogevm.hypervisor")

T = TypeVar("T")

#: Maximum number of hung calls to a host; more calls are refused.
_MAX_HUNG = 4
_STATISTICS = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON
_RUNNING = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
#: A stopped guest process yields fewer figures instead of delaying the others.
_NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
#: Errors of a guest; all others are errors of its host.
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
    libvirt.VIR_ERR_ACCESS_DENIED,
}
_UNMARKED = _GONE | _REFUSED | {libvirt.VIR_ERR_NO_DOMAIN_METADATA}


class Hypervisor:
    """A host.

    Parameters
    ----------
    uri : str
        libvirt URI.
    timeout_s : float
        Time limit of each call, including the time to connect.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        self.uri = uri
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._hung = 0
        self._busy: set[str] = set()

    def guests(self) -> dict[str, Guest]:
        """The running guests by UUID.

        Raises
        ------
        HostUnavailable
        """
        return self._call(self._guests, lambda: None)

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        """Request a balloon size, given as the memory that the guest keeps; effective until the guest is restarted.

        Raises
        ------
        HostUnavailable, GuestGone, GuestRefused
        """
        self._change(uuid, lambda: self._set_memory(uuid, memory_mb))

    def marks(self, uuids: Sequence[str]) -> dict[str, Mark | None]:
        """The marks of guests, None for a guest without one; as many as can be read in half of the time limit.

        Raises
        ------
        HostUnavailable
        """
        return self._call(lambda: self._marks(uuids), lambda: None)

    def set_mark(self, uuid: str, mark: Mark | None) -> None:
        """Write a mark into the running domain of a guest, or remove it.

        Raises
        ------
        HostUnavailable, GuestGone, GuestRefused
        """
        self._change(uuid, lambda: self._set_mark(uuid, mark))

    def close(self) -> None:
        """Release the connection without waiting for a hung host."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    def _guests(self) -> dict[str, Guest]:
        with self._acquire().acquired() as connection:
            statistics = connection.getAllDomainStats(_STATISTICS, _RUNNING | _NOWAIT)
            guests = [_parse_guest(domain, _balloon_figures(domain, figures)) for domain, figures in statistics]
        return {guest.uuid: guest for guest in guests if guest is not None}

    def _set_memory(self, uuid: str, memory_mb: float) -> None:
        with self._acquire().acquired() as connection:
            domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                raise GuestGone("it is shut off")
            domain.setMemoryFlags(round(memory_mb * 1024), libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _marks(self, uuids: Sequence[str]) -> dict[str, Mark | None]:
        deadline = time.monotonic() + self._timeout_s / 2
        marks: dict[str, Mark | None] = {}
        with self._acquire().acquired() as connection:
            for uuid in uuids:
                if marks and time.monotonic() > deadline:
                    break
                marks[uuid] = _read_mark(connection, uuid)
        return marks

    def _set_mark(self, uuid: str, mark: Mark | None) -> None:
        with self._acquire().acquired() as connection:
            connection.lookupByUUIDString(uuid).setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                mark_xml(mark) if mark is not None else None,
                *(PREFIX, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE),
            )

    # --- calls --------------------------------------------------------------------------------------

    def _change(self, uuid: str, job: Callable[[], None]) -> None:
        """Run a job that changes a guest, unless an earlier one still hangs."""
        with self._lock:
            if uuid in self._busy:
                raise GuestRefused("an earlier call to it has not returned")
            self._busy.add(uuid)
        self._call(job, lambda: self._busy.discard(uuid))

    def _call(self, job: Callable[[], T], release: Callable[[], object]) -> T:
        """Run a job in a thread with the time limit.

        ``release`` is called once: when the job returns, or when it cannot be started.
        """
        started = threading.Event()

        def finish() -> None:
            with self._lock:
                self._hung -= 1
                release()

        def run() -> T:
            started.set()
            try:
                return job()
            finally:
                finish()

        with self._lock:
            if self._hung >= _MAX_HUNG:
                release()
                raise self._no_response()
            self._hung += 1
        try:
            return call_with_timeout(run, self._timeout_s, f"libvirt {self.uri}")
        except TimeoutError:
            raise self._no_response() from None
        except libvirt.libvirtError as error:
            raise _named(error) from None
        except RuntimeError:
            if not started.is_set():  # the system has no thread left
                finish()
            raise

    def _no_response(self) -> HostUnavailable:
        """One message for all effects of a hung call, so that it is logged once."""
        return HostUnavailable(f"no response within {self._timeout_s:g} s")

    def _acquire(self) -> Connection:
        """A connection that is reserved for the calling thread."""
        connection = self._connection
        if connection is not None and connection.acquire():
            return connection
        # One attempt at a time: an attempt that hangs is not repeated.
        if not self._connecting.acquire(blocking=False):
            raise self._no_response()
        try:
            self.close()
            self._connection = connection = open_connection(self.uri)
            return connection
        finally:
            self._connecting.release()


def _named(error: libvirt.libvirtError) -> Exception:
    message = " ".join(str(error).split())
    code = error.get_error_code()
    if code in _GONE:
        return GuestGone(message)
    return GuestRefused(message) if code in _REFUSED else HostUnavailable(message)


def _read_mark(connection: Any, uuid: str) -> Mark | None:
    try:
        domain = connection.lookupByUUIDString(uuid)
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _UNMARKED:
            return None
        raise
    return parse_mark(text)


def _balloon_figures(domain: Any, figures: dict[str, Any]) -> dict[str, float]:
    """Memory figures of a guest in KiB and counts; queried from the guest itself where the host omits them."""
    if "balloon.current" in figures:
        return {name.removeprefix("balloon."): value for name, value in figures.items() if name.startswith("balloon.")}
    _, maximum, current, *_ = domain.info()
    queried: dict[str, float] = {"maximum": maximum, "current": current}
    names = {"last_update": "last-update", "actual": "current"}
    try:
        queried |= {names.get(name, name): value for name, value in domain.memoryStats().items()}
    except libvirt.libvirtError as error:
        LOG.debug("%s: no statistics: %s", domain.name(), error)
    return queried


def _parse_guest(domain: Any, figures: dict[str, float]) -> Guest | None:
    current, maximum = figures.get("current"), figures.get("maximum")
    if current is None or maximum is None:
        return None

    def mb(name: str) -> float:
        return figures[name] / 1024 if name in figures else math.nan

    swapped = [figures[name] for name in ("swap_in", "swap_out") if name in figures]
    return Guest(
        uuid=domain.UUIDString(),
        name=domain.name(),
        memory_mb=maximum / 1024,
        balloon_mb=current / 1024,
        rss_mb=mb("rss"),
        unused_mb=mb("unused"),
        available_mb=mb("available"),
        reported_s=float(figures.get("last-update", math.nan)),
        swapped_kb=float(sum(swapped)) if swapped else math.nan,
        faults=float(figures.get("major_fault", math.nan)),
        cached_mb=mb("disk_caches"),
        touched_pages=float(figures.get("minor_fault", math.nan)),
    )
