"""Reports the state of a daemon to systemd: datagrams to a socket, a line per variable, see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

#: A send waits at most for so long: a service manager that hangs must not stop the daemon.
_SEND_TIMEOUT_S = 1.0

#: Signs of life in a watchdog period.
_BEATS_PER_PERIOD = 4


class ServiceManager:
    """The service manager that started this process; every method does nothing when there is none.

    Parameters
    ----------
    environ : mapping, optional
        By default the environment of the process.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of the abstract namespace. Other families (vsock) are those of virtual machines.
        self._address = address.replace("@", "\0", 1) if address[:1] in {"@", "/"} else ""
        self._clock = clock
        self._beat_every_s = _watchdog_s(environ) / _BEATS_PER_PERIOD if self._address else 0.0
        self._next_beat = 0.0

    def report_ready(self, status: str) -> None:
        """The daemon has started, or has finished a reload."""
        self._send("READY=1", f"STATUS={status}")

    def report_reload(self) -> None:
        """The daemon reloads its settings; :meth:`report_ready` ends that."""
        # systemd compares it with its own clock, to tell this reload from an earlier one.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reloading")

    def report_stop(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1", "STATUS=stopping")

    def report_status(self, status: str, *, extend_s: float = 0.0) -> None:
        """Show a line in ``systemctl status``; with ``extend_s``, a start or stop may take that many seconds more."""
        extension = [f"EXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}"] if extend_s else []
        self._send(f"STATUS={status}", *extension)

    def beat(self) -> None:
        """Show the watchdog that the main loop runs; may be called as often as that loop likes."""
        now = self._clock()
        if self._beat_every_s and now >= self._next_beat:
            self._next_beat = now + self._beat_every_s
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A value ends at a line break.
        text = "\n".join(line.replace("\n", " ") for line in lines)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)
            sender.sendto(text.encode(errors="replace"), self._address)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Seconds after which the service manager takes this process for hung; 0 when it does not watch it."""
    period_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not period_us.isdecimal() or pid not in {"", str(os.getpid())}:
        return 0.0
    return int(period_us) / 1e6
