"""The life cycle of a daemon: start, reload on SIGHUP, clean stop; and a pace that does not drift."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

from .errors import SettingsError
from .logs import EVENT

LOG = logging.getLogger("scroogevm")

S = TypeVar("S")

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set when the process is asked to stop or to reload; usable from threads and from asyncio."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reload = False
        self.terminated = False
        self._callbacks: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether the current run has to end."""
        return self.event.is_set()

    def set(self) -> None:
        """End the current run."""
        self.event.set()
        for callback in self._callbacks:
            callback()

    def clear(self) -> None:
        """Make it ready for another run, unless a stop has arrived."""
        self.reload = False
        self._callbacks.clear()
        self.event.clear()
        # A signal may arrive between any two of these lines.
        if self.terminated:
            self.event.set()

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call a function, which must not block, when this is set."""
        self._callbacks.append(callback)
        if self.is_set():
            callback()

    def as_asyncio_event(self) -> asyncio.Event:
        """An event of the running loop that is set together with this one."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def set_event() -> None:
            with contextlib.suppress(RuntimeError):  # the loop of this run has closed
                loop.call_soon_threadsafe(event.set)

        self.on_stop(set_event)
        return event


def handle_signals() -> StopRequest:
    """Install the signal handlers of a daemon: SIGINT and SIGTERM stop, a second one ends at once, SIGHUP reloads."""
    request = StopRequest()

    def stop(_number: int, _frame: FrameType | None) -> None:
        request.terminated = True
        for number in _STOPPING:
            # Not Python's own handler, which prints a traceback.
            signal.signal(number, signal.SIG_DFL)
        request.set()

    def reload(_number: int, _frame: FrameType | None) -> None:
        if not request.is_set():
            request.reload = True
            request.set()

    for number in _STOPPING:
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, reload)
    return request


def raise_on_signals() -> threading.Event:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, for jobs that run once.

    Returns
    -------
    threading.Event
        Set when a signal has arrived.
    """
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    def handle_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if interrupted.is_set() and isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It was raised in a destructor, where exceptions are dropped: repeat the signal a moment later.
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = handle_unraisable
    for number in _STOPPING:
        signal.signal(number, interrupt)
    return interrupted


def run_daemon(load: Callable[[], S], serve: Callable[[S, StopRequest], int]) -> int:
    """Run a daemon until it is stopped; the exit code.

    SIGHUP ends the run cleanly and starts the next one with the settings as they are then. Settings that are wrong
    by then are logged, and the daemon goes on with those it had.

    Parameters
    ----------
    load : callable
        Reads and validates the settings.
    serve : callable
        Runs with the settings until the request is set, and releases everything it opened.

    Raises
    ------
    SettingsError
        When the settings are wrong at the start.
    """
    request = handle_signals()
    settings = load()
    while True:
        code = serve(settings, request)
        if request.terminated or not request.reload:
            return code
        request.clear()
        try:
            settings = load()
        except SettingsError as error:
            for fault in error.faults:
                LOG.error("reload: %s", fault)
            LOG.error("reload: the settings are wrong, the daemon continues with the previous ones")
        else:
            LOG.info("reload: settings read again", extra=EVENT)


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
