"""Threads that may hang: the end of the process does not wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable


class DaemonThreads:
    """A few threads that the end of the process does not wait for: one of them may hang on a server that is mute."""

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], tuple[object, ...]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def run(self, job: Callable[..., None], *arguments: object) -> None:
        self._jobs.put((job, arguments))

    def close(self, seconds: float) -> bool:
        """Let the threads end; whether they did in time."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, arguments = work
            job(*arguments)
