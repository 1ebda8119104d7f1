"""The life cycle of a daemon: start, reload on SIGHUP, clean stop; and a pace that does not drift."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from .errors import SettingsError, UsageError
from .logs import EVENT
from .signals import StopRequest, handle_signals

LOG = logging.getLogger("scroogevm")

S = TypeVar("S")


def run_daemon(load: Callable[[], S], serve: Callable[[S, StopRequest], int]) -> int:
    """Run a daemon until it is stopped; the exit code.

    SIGHUP ends the run cleanly and starts the next one with the settings as they are then. Settings that are wrong by
    then, or that cannot be used (a port that is taken, a file that is refused), are logged, and the daemon continues
    with those it had.

    Parameters
    ----------
    load : callable
        Reads and validates the settings.
    serve : callable
        Runs with the settings until the request is set, and releases everything it opened.

    Raises
    ------
    SettingsError, UsageError
        When the settings are wrong, or cannot be used, at the start.
    """
    request = handle_signals()
    settings = load()
    previous: S | None = None
    while True:
        try:
            code = serve(settings, request)
        except UsageError as error:
            if previous is None:
                raise
            _log_refused_reload(str(error).splitlines())
            settings, previous = previous, None
            continue
        if request.terminated or not request.reload:
            return code
        request.clear()
        try:
            settings, previous = load(), settings
        except SettingsError as error:
            _log_refused_reload(error.faults)
        else:
            LOG.info("reload: settings read again", extra=EVENT)


def _log_refused_reload(faults: Iterable[str]) -> None:
    for fault in faults:
        LOG.error("reload: %s", fault)
    LOG.error("reload: the daemon continues with the previous settings")


def jitter(name: str) -> float:
    """A fraction of a period, 0 to 1, fixed for a name, that spreads the scrapes of many nodes."""
    return zlib.crc32(name.encode()) / 2**32


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

    async def wait(self, stop: asyncio.Event) -> bool:
        """Wait for the next moment; False when stopped."""
        if stop.is_set():
            return False
        pause = max(0.0, self._next - self._clock())
        try:
            await asyncio.wait_for(stop.wait(), pause)
        except asyncio.TimeoutError:
            return True
        return False

    def advance(self, period_s: float) -> int:
        """Step to the next moment; moments that have passed are skipped, and their number is returned."""
        self._next += period_s
        late = self._clock() - self._next
        missed = int(late // period_s) + 1 if late > 0 else 0
        self._next += missed * period_s
        return missed
