"""Runs CPU-bound jobs of an event loop in a few threads, so that no page delays the requests of other nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from ..common.threads import DaemonThreads

T = TypeVar("T")

#: How long the end waits for jobs that run, seconds.
_CLOSE_S = 5.0


class WorkerPool:
    """A pool of threads; the first job starts them.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        self._threads = DaemonThreads(threads, "page")

    async def run(self, job: Callable[[], T]) -> T:
        """Run a job in one of the threads and wait for it.

        A job that is cancelled before a thread takes it does not run; one that runs goes on to its end.

        Raises
        ------
        Exception
            Whatever the job raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._threads.run(_run, loop, future, job)
        return await future

    def close(self) -> None:
        """Wait for the jobs that run, for some seconds, and end the threads."""
        self._threads.close(_CLOSE_S)


def _run(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], job: Callable[[], Any]) -> None:
    if future.cancelled():
        return
    result: Any = None
    error: BaseException | None = None
    try:
        result = job()
    except BaseException as raised:
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop may be closed: nothing waits for the result
        loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
