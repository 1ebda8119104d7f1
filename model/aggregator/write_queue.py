"""A bounded queue between the scrapes and the store."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..common.logs import ProblemLog
from ..common.threads import start_thread
from ..samples import ScrapeSample
from ..store.base import Encoded, Store, StoreUnavailable

LOG = logging.getLogger("scroogevm.queue")

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
#: Longest pause that a server can ask for.
_LONGEST_RETRY_AFTER_S = 600.0
#: A long backlog is written in batches of this size, bytes.
_LARGEST_BATCH = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WriteQueueCounts:
    """Points by outcome.

    Attributes
    ----------
    written, dropped, refused : int
        Stored; dropped because the queue was full; rejected by the store.
    queued, queued_bytes : int
        Waiting for the store.
    """

    written: int
    dropped: int
    refused: int
    queued: int
    queued_bytes: int


class WriteQueue:
    """A bounded queue with a thread that writes its samples in order and retries while the store is unavailable.

    Parameters
    ----------
    store : Store
    most_bytes : int
        Beyond this size, the oldest samples are dropped.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, store: Store, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._clock = clock
        self._queue: deque[Encoded] = deque()
        self._bytes = 0
        self._points = 0
        self._written = self._dropped = self._refused = 0
        self._changed = threading.Condition()
        self._closing = False
        self._deadline = float("inf")
        self._full = False
        self._single_writes = 0
        self._problems = ProblemLog(LOG)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = start_thread("write-queue", self._run)

    def put(self, sample: ScrapeSample) -> None:
        """Queue a sample; never blocks."""
        encoded = self._store.encode(sample)
        with self._changed:
            self._queue.append(encoded)
            self._bytes += encoded.size
            self._points += encoded.points
            dropped = 0
            while self._bytes > self._most_bytes and len(self._queue) > 1:
                dropped += self._pop_oldest().points
            if dropped and not self._full:
                LOG.error("the queue is full: the oldest points are dropped")
                self._full = True
            self._dropped += dropped
            self._changed.notify()

    def counts(self) -> WriteQueueCounts:
        """Points by outcome so far."""
        with self._changed:
            return WriteQueueCounts(self._written, self._dropped, self._refused, self._points, self._bytes)

    def close(self, timeout_s: float) -> bool:
        """Write the backlog for at most ``timeout_s`` seconds and end the thread; whether all was written."""
        with self._changed:
            self._closing = True
            self._deadline = self._clock() + timeout_s
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        left = self.counts().queued
        if left:
            LOG.error("stopped before the store was available: points_lost=%d", left)
        return left == 0

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while batch := self._next_batch():
            try:
                refused = self._store.write(batch)
            except StoreUnavailable as error:
                self._problems.report("store", f"write failed, points are queued: {error}", logging.ERROR)
                if not self._pause(_retry_pause(backoff_s, error.retry_after_s)):
                    return
                backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
                continue
            except Exception as error:
                if len(batch) > 1:
                    # One sample cannot be written: write the samples of this batch one by one.
                    self._single_writes = len(batch)
                    continue
                LOG.error("a sample cannot be written and is dropped: %s", type(error).__name__, exc_info=error)
                refused = batch[0].points
            backoff_s = _FIRST_BACKOFF_S
            self._remove(batch, refused)
            self._report_recovery()

    def _next_batch(self) -> list[Encoded]:
        """The oldest samples, once there are any; empty when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._single_writes and self._queue:
                self._single_writes -= 1
                return [self._queue[0]]
            size = 0
            batch: list[Encoded] = []
            for sample in self._queue:
                if batch and size + sample.size > _LARGEST_BATCH:
                    break
                batch.append(sample)
                size += sample.size
            return batch

    def _pause(self, pause_s: float) -> bool:
        """Wait before a retry, only briefly while closing; False once the time to close is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause_s)
        if self._closing:
            time.sleep(min(pause_s, _FIRST_BACKOFF_S))
        return self._clock() < self._deadline

    def _remove(self, batch: list[Encoded], refused: int) -> None:
        """Remove written samples from the queue; the oldest of them may have been dropped in the meantime."""
        written = {id(sample) for sample in batch}
        with self._changed:
            while self._queue and id(self._queue[0]) in written:
                self._pop_oldest()
            self._written += sum(sample.points for sample in batch) - refused
            self._refused += refused

    def _pop_oldest(self) -> Encoded:
        sample = self._queue.popleft()
        self._bytes -= sample.size
        self._points -= sample.points
        return sample

    def _report_recovery(self) -> None:
        self._problems.resolve("store")
        if self._full:
            LOG.error("the queue was full: points_dropped=%d", self.counts().dropped)
            self._full = False


def _retry_pause(backoff_s: float, retry_after_s: float | None) -> float:
    """Seconds until the next try; random, so that several aggregators do not retry at the same time."""
    pause_s = backoff_s * random.uniform(0.75, 1.25)  # noqa: S311  # not for cryptography
    return pause_s if retry_after_s is None else max(pause_s, min(retry_after_s, _LONGEST_RETRY_AFTER_S))
