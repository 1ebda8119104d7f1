"""Signal handlers: stop and reload requests of a daemon, interruption of a job that runs once."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .threads import start_thread

if TYPE_CHECKING:
    import asyncio

_STOPPING = (signal.SIGINT, signal.SIGTERM)

R = TypeVar("R", bound="StopRequest")


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
        import asyncio  # a tenth of a second, which -h should not cost

        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def set_event() -> None:
            with contextlib.suppress(RuntimeError):  # the loop of this run has closed
                loop.call_soon_threadsafe(event.set)

        self.on_stop(set_event)
        return event


def handle_signals(request: R) -> R:
    """Install the signal handlers of a daemon: SIGINT and SIGTERM stop, a second one ends at once, SIGHUP reloads.

    Parameters
    ----------
    request : StopRequest
        Set by the signals; returned.
    """
    # Event.set() in a handler deadlocks when it interrupts Event.wait() of the same event: a thread calls it instead.
    arrived: queue.SimpleQueue[None] = queue.SimpleQueue()

    def forward() -> None:
        while True:
            arrived.get()
            request.set()

    def stop(_number: int, _frame: FrameType | None) -> None:
        request.terminated = True
        for number in _STOPPING:
            # Not Python's own handler, which prints a traceback.
            signal.signal(number, signal.SIG_DFL)
        arrived.put(None)

    def reload(_number: int, _frame: FrameType | None) -> None:
        if not request.is_set():
            request.reload = True
            arrived.put(None)

    start_thread("signals", forward)
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
