"""Between those who measure and the store: what waits is bounded, and nothing that fits is lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from dataclasses import dataclass

from ..samples import ScrapeSample
from ..store.base import Encoded, Store, StoreUnavailable

LOG = logging.getLogger("scroogevm.spool")

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
#: A server's own wish is followed up to this.
_LONGEST_RETRY_AFTER_S = 600.0
#: So much is written in one go, so that a long queue is worked off in steps.
_LARGEST_BATCH = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WriteQueueCounts:
    """What became of the points so far.

    Attributes
    ----------
    written, dropped, refused : int
        ResultCache by the store; given up because the queue was full; refused by the store for good.
    queued, queued_bytes : int
        Waiting.
    """

    written: int
    dropped: int
    refused: int
    queued: int
    queued_bytes: int


class WriteQueue:
    """A bounded queue with a thread that writes what is in it, in order, for as long as it takes.

    Parameters
    ----------
    store : Store
    most_bytes : int
        When more would wait, the oldest ticks are dropped.
    """

    def __init__(self, store: Store, most_bytes: int) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._queue: deque[Encoded] = deque()
        self._bytes = 0
        self._points = 0
        self._written = self._dropped = self._refused = 0
        self._changed = threading.Condition()
        self._closing = False
        self._give_up_at = float("inf")
        self._dropping = False
        self._one_by_one = 0
        self._away = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, sample: ScrapeSample) -> None:
        """Queue a tick; never waits."""
        encoded = self._store.encode(sample)
        with self._changed:
            self._queue.append(encoded)
            self._bytes += encoded.size
            self._points += encoded.points
            dropped = 0
            while self._bytes > self._most_bytes and len(self._queue) > 1:
                oldest = self._queue.popleft()
                self._bytes -= oldest.size
                self._points -= oldest.points
                dropped += oldest.points
            if dropped and not self._dropping:
                LOG.error("the queue is full: from now on the oldest points are dropped")
                self._dropping = True
            self._dropped += dropped
            self._changed.notify()

    def counts(self) -> WriteQueueCounts:
        """What became of the points so far."""
        with self._changed:
            return WriteQueueCounts(self._written, self._dropped, self._refused, self._points, self._bytes)

    def close(self, timeout_s: float) -> bool:
        """Write what waits, for as long as the time allows; whether nothing was left."""
        with self._changed:
            self._closing = True
            self._give_up_at = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)
        left = self.counts().queued
        if left:
            LOG.error("stopped while %d points waited for the store: they are lost", left)
        return left == 0

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = self._batch()
            try:
                refused = self._store.write(batch)
            except StoreUnavailable as error:
                self._tell_away(str(error))
                pause = backoff_s * random.uniform(0.75, 1.25)  # noqa: S311  # masters shall not come back all at once
                if error.retry_after_s is not None:
                    pause = max(pause, min(error.retry_after_s, _LONGEST_RETRY_AFTER_S))
                backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
                if not self._wait_to_try_again(pause):
                    return
                continue
            except Exception as error:
                if len(batch) > 1:
                    # One of them can't be written: those around it can, one by one.
                    self._one_by_one = len(batch)
                    continue
                LOG.error("a tick can't be written and is given up: %s", type(error).__name__, exc_info=error)
                refused = batch[0].points
            backoff_s = _FIRST_BACKOFF_S
            self._tell_back()
            self._done(batch, refused)

    def _wait_to_try_again(self, pause_s: float) -> bool:
        """Sit out a pause, a short one when we are to stop; False once the time for that is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause_s)
        if self._closing:
            time.sleep(min(pause_s, _FIRST_BACKOFF_S))
        return time.monotonic() < self._give_up_at

    def _batch(self) -> list[Encoded]:
        size = 0
        batch: list[Encoded] = []
        if self._one_by_one:
            self._one_by_one -= 1
            return [self._queue[0]]
        for sample in self._queue:
            if batch and size + sample.size > _LARGEST_BATCH:
                break
            batch.append(sample)
            size += sample.size
        return batch

    def _done(self, batch: list[Encoded], refused: int) -> None:
        """Take what was written off the queue; its oldest part may have been dropped meanwhile."""
        written = {id(sample) for sample in batch}
        with self._changed:
            while self._queue and id(self._queue[0]) in written:
                sample = self._queue.popleft()
                self._bytes -= sample.size
                self._points -= sample.points
            self._written += sum(sample.points for sample in batch) - refused
            self._refused += refused

    def _tell_away(self, words: str) -> None:
        if not self._away:
            LOG.error("the store can't be written, points wait: %s", words)
        self._away = True

    def _tell_back(self) -> None:
        if self._away:
            LOG.warning("the store is written again, %d points were dropped so far", self._dropped)
        self._away = self._dropping = False
