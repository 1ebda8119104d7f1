"""The life cycle of a daemon: start, reload on SIGHUP, clean stop; and a pace that does not drift."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

from .errors import PassingFault, SettingsError, UsageError
from .logs import EVENT, ProblemLog
from .service_manager import ServiceManager
from .signals import StopRequest, handle_signals

LOG = logging.getLogger("scroogevm")

S = TypeVar("S")

#: Pauses between attempts to start while a fault lasts; they double.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
#: An attempt to start may take so long: the service manager waits for it.
_ATTEMPT_S = 60.0
#: A wait is interrupted so often to show the watchdog that it goes on.
_TICK_S = 1.0


class DaemonControl(StopRequest):
    """Stop and reload requests for a daemon, and its reports to the service manager.

    Parameters
    ----------
    service : ServiceManager
    """

    def __init__(self, service: ServiceManager) -> None:
        super().__init__()
        self.has_run = self.is_running = False
        self._service = service
        self._problems = ProblemLog(LOG)
        self._pause_s = _FIRST_PAUSE_S

    def set(self) -> None:
        """End the current run."""
        if self.terminated:
            self._service.report_stop()
        elif self.reload:
            self._service.report_reload()
        super().set()

    def report_ready(self) -> None:
        """The run has opened all that it needs; call it once in each run."""
        self.has_run = self.is_running = True
        self._pause_s = _FIRST_PAUSE_S
        self._problems.resolve("start")
        self._service.report_ready("running")

    def beat(self) -> None:
        """Show the watchdog of the service manager that the main loop runs."""
        self._service.beat()

    @contextlib.asynccontextmanager
    async def watched(self, status: Callable[[], str] = lambda: "running") -> AsyncIterator[None]:
        """Show the watchdog that the event loop runs, until the end of the block.

        Parameters
        ----------
        status : callable
            A line for ``systemctl status``; sent when it changes.
        """

        async def beat() -> None:
            shown = "running"
            while True:
                self.beat()
                if (line := status()) != shown:
                    shown = line
                    self._service.report_status(line)
                await asyncio.sleep(_TICK_S)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()

    def wait_after(self, error: Exception) -> None:
        """Log a fault that prevents the start, once per cause, and wait before the next attempt, or for a request."""
        message = _message(error)
        self._problems.report("start", f"{message}; trying again until it is possible", logging.ERROR)
        self._service.report_status(f"waiting: {message}", extend_s=self._pause_s + _ATTEMPT_S)
        deadline = time.monotonic() + self._pause_s
        while (left_s := deadline - time.monotonic()) > 0 and not self.event.wait(min(left_s, _TICK_S)):
            self.beat()
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def run_daemon(load: Callable[[], S], serve: Callable[[S, DaemonControl], int], *, retries: bool = True) -> int:
    """Run a daemon until it is stopped; the exit code.

    A fault that may pass (:class:`PassingFault`, or an error of the system) is logged once and the start is tried
    again until it succeeds or the daemon is stopped.

    SIGHUP ends the run cleanly and starts the next one with the settings as they are then. Settings that are wrong by
    then, or that cannot be used (a file that is refused), are logged, and the daemon continues with those it had. Once
    it has run, no error in what the settings name ends it: they were usable before and may be so again.

    Parameters
    ----------
    load : callable
        Reads and validates the settings.
    serve : callable
        Runs with the settings until the request is set, and releases everything it opened. Calls ``report_ready`` of
        the request once everything is open.
    retries : bool
        False for a mode that runs once.

    Raises
    ------
    SettingsError, UsageError
        When the settings are wrong, or cannot be used whatever time passes, at the start.
    PassingFault, OSError
        Without ``retries``.
    """
    control = handle_signals(DaemonControl(ServiceManager()))
    settings: S | None = None
    previous: S | None = None
    while True:
        control.is_running = False
        try:
            settings = load() if settings is None else settings
            code = serve(settings, control)
            previous = None
        except (PassingFault, UsageError, OSError) as error:
            if not retries or (isinstance(error, UsageError) and not control.has_run):
                raise
            if previous is not None and not control.is_running:
                _log_refused_reload(_message(error).splitlines())
                settings, previous = previous, None
                continue
            control.wait_after(error)
            if not control.is_set():
                continue
            code = 0
        if control.terminated or not control.reload:
            return code
        control.clear()
        try:
            settings, previous = load(), settings
        except (SettingsError, PassingFault, OSError) as error:
            _log_refused_reload(error.faults if isinstance(error, SettingsError) else [_message(error)])
        else:
            LOG.info("reload: settings read again", extra=EVENT)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _log_refused_reload(faults: Iterable[str]) -> None:
    for fault in faults:
        LOG.error("reload: %s", fault)
    LOG.error("reload: the daemon continues with the previous settings")


def jitter(name: str, groups: int) -> float:
    """A fraction of a period, at least 0 and below 1, that spreads the scrapes of many nodes.

    It is fixed for a name and a number of groups. The names of a group share it.
    """
    return zlib.crc32(name.encode()) * groups // 2**32 / groups


class Pace:
    """Equally spaced moments, whatever is done in between.

    Parameters
    ----------
    first_after_s : float
        Seconds from now to the first moment.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, first_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + first_after_s

    async def wait(self) -> None:
        """Wait for the next moment."""
        await asyncio.sleep(max(0.0, self._next - self._clock()))

    def advance(self, period_s: float) -> int:
        """Step to the next moment; moments that have passed are skipped, and their number is returned."""
        self._next += period_s
        late = self._clock() - self._next
        missed = int(late // period_s) + 1 if late > 0 else 0
        self._next += missed * period_s
        return missed
