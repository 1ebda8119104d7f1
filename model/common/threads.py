"""Daemon threads: work that may hang does not delay the end of the process.

The pools of :mod:`concurrent.futures` join their threads at interpreter exit, so that one call that never returns
keeps the process alive. All threads of this project are started here.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from typing import Generic, TypeVar

from .logs import ProblemLog

LOG = logging.getLogger("scroogevm")

K = TypeVar("K")
T = TypeVar("T")


def start_thread(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a daemon thread.

    Parameters
    ----------
    name : str
        Shown by debuggers and in tracebacks.
    target : callable
        Must handle its own exceptions.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def call_with_timeout(job: Callable[[], T], timeout_s: float, name: str = "call") -> T:
    """Run a call in a thread of its own and wait for the result.

    A call that does not return in time keeps its thread; the caller goes on.

    Raises
    ------
    TimeoutError
        After ``timeout_s`` seconds.
    Exception
        Whatever the call raises.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(job())
        except BaseException as error:
            result.set_exception(error)

    start_thread(name, run)
    try:
        return result.result(timeout_s)
    except (TimeoutError, NotDone):  # one class since Python 3.11
        if result.done():
            raise  # the call itself raised it
        raise TimeoutError(f"no result within {timeout_s:g} s") from None


def run_periodically(job: Callable[[], object], every_s: float, stop: threading.Event) -> None:
    """Call a job at once and then every ``every_s`` seconds until stopped; an exception is logged once, not raised."""
    problems = ProblemLog(LOG)
    while True:
        try:
            job()
        except Exception as error:
            problems.report("periodic job", f"failed: {type(error).__name__}", logging.ERROR, error=error)
        else:
            problems.resolve("periodic job")
        if stop.wait(every_s):
            return


def map_until(
    keys: Iterable[K], work: Callable[[K], T], at_once: int, left_s: Callable[[], float], name: str = "worker"
) -> Iterator[tuple[K, T]]:
    """Apply a function to all keys, a few at a time, until the time is over.

    Parameters
    ----------
    keys : iterable
    work : callable
        Must not raise.
    at_once : int
        Number of threads.
    left_s : callable
        Seconds that are left; 0 ends the iteration, and no further key is started.

    Yields
    ------
    (key, result)
        As soon as each is there. Keys whose work has not returned in time are missing.
    """
    waiting: queue.SimpleQueue[K] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[K, T]] = queue.SimpleQueue()
    number = 0
    for key in keys:
        waiting.put(key)
        number += 1

    def run() -> None:
        while left_s():
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            results.put((key, work(key)))

    for i in range(min(at_once, number)):
        start_thread(f"{name}-{i}", run)
    while number and (left := left_s()):
        try:
            yield results.get(timeout=min(0.1, left))
        except queue.Empty:
            continue
        number -= 1


class DaemonThreads:
    """A pool of daemon threads.

    Parameters
    ----------
    threads : int
    name : str
    """

    def __init__(self, threads: int, name: str = "pool") -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], tuple[object, ...]] | None] = queue.SimpleQueue()
        self._number = threads
        self._name = name
        self._threads: list[threading.Thread] = []

    def run(self, job: Callable[..., None], *arguments: object) -> None:
        """Queue a job, which must not raise."""
        if not self._threads:
            self._threads = [start_thread(f"{self._name}-{i}", self._work) for i in range(self._number)]
        self._jobs.put((job, arguments))

    def close(self, timeout_s: float) -> bool:
        """Let the threads end; True when all did within ``timeout_s`` seconds."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, arguments = work
            job(*arguments)


class LatestValue(Generic[T]):
    """A thread that processes the latest value; older values that wait are dropped.

    Parameters
    ----------
    work : callable
        Called with a value; must not raise.
    name : str
    idle : callable, optional
        Called when no value has arrived for a pause; must not raise.
    pause_s : callable, optional
        The length of the next pause, in seconds; None waits for a value.
    """

    def __init__(
        self,
        work: Callable[[T], object],
        name: str,
        idle: Callable[[], object] = lambda: None,
        pause_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._work = work
        self._name = name
        self._idle = idle
        self._pause_s = pause_s
        self._latest: T | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, value: T) -> None:
        """Replace the waiting value; never blocks."""
        with self._changed:
            self._latest = value
            self._changed.notify()
            if self._thread is None:
                self._thread = start_thread(self._name, self._run)

    def close(self, timeout_s: float) -> None:
        """Process the waiting value, if that is possible within ``timeout_s`` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._closing, timeout=self._pause_s())
                latest, self._latest = self._latest, None
                closing = self._closing
            if latest is not None:
                self._work(latest)
            elif closing:
                return
            else:
                self._idle()
