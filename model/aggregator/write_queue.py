"""A bounded queue between the scrapes and the store, with a spool on disk for what waits long."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.logs import ProblemLog
from ..common.threads import start_thread
from ..samples import ScrapeSample
from ..store.base import Store, StoreUnavailable
from .sample_codec import pack_sample
from .spool import Spool, SpoolCounts
from .spool_backlog import RETRY_S, SpoolBacklog
from .waiting import Waiting, estimate_size

LOG = logging.getLogger("scroogevm.queue")

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
#: Longest pause that a server can ask for.
_LONGEST_RETRY_AFTER_S = 600.0
#: Points of a batch: half of what waits, within these limits, so that a store that responds slowly is not left behind.
_SMALL_BATCH = 5_000
_LARGE_BATCH = 20_000
#: More than this waits packed, bytes.
_MOST_UNPACKED = 4 * 2**20
#: What has waited for so long, or fills so much of the queue, is moved to the spool.
_SPOOL_AFTER_S = 30.0
_SPOOL_AT = 0.75
#: Size of a file of the spool, bytes of the queue: it is read as one batch, and many small ones would take longer.
_SPOOL_FILE = 16 * 2**20
#: A problem with single samples is over when it has not occurred for so long.
_QUIET_S = 600.0
_TICK_S = 1.0
#: After the first sample, further ones are waited for, seconds: a transaction costs as much as several samples.
_GATHER_S = 0.1
#: While a backlog is written, the thread rests as long as a batch took, and at most so long, seconds: the scrapes and a
#: store on the same machine need the CPU, too.
_LONGEST_REST_S = 0.5


@dataclass(frozen=True, slots=True)
class WriteQueueCounts:
    """Points by outcome.

    Attributes
    ----------
    written, dropped, refused : int
        Stored; dropped because queue and spool were full or a file of the spool was damaged; rejected by the store.
    queued, queued_bytes : int
        Waiting for the store in RAM.
    spooled, spooled_bytes : int
        Waiting for the store on disk.
    """

    written: int
    dropped: int
    refused: int
    queued: int
    queued_bytes: int
    spooled: int = 0
    spooled_bytes: int = 0


class WriteQueue:
    """A bounded queue with a thread that writes its samples in order and retries while the store is unavailable.

    What has waited for half a minute, or would exceed the memory of the queue, is moved to the spool. What is in the
    spool is older than what is in RAM, and is written first.

    Parameters
    ----------
    store : Store
    most_bytes : int
        Beyond this size in RAM, the oldest samples are dropped.
    spool : Spool, optional
        Opened by the thread, and closed by :meth:`close`.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        most_bytes: int,
        spool: Spool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self.most_bytes = most_bytes
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._bytes = 0
        self._points = 0
        self._written = self._dropped = self._refused = 0
        self._changed = threading.Condition()
        self._closing = False
        self._deadline = float("inf")
        self._full = False
        self._single_writes = 0
        self._problems = ProblemLog(LOG, clock)
        self._spooled = None if spool is None else SpoolBacklog(spool, self._problems, clock)
        self.store_problem = ""
        """Why the last write failed; empty after one that succeeded."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = start_thread("write-queue", self._run)

    def put(self, sample: ScrapeSample) -> None:
        """Queue a sample; never blocks, and may be called by any thread."""
        try:
            waiting = self._wrap(sample)
        except Exception as error:  # whatever one sample contains
            self._report_refused(error)
            with self._changed:
                self._refused += 1 + len(sample.domains)
            return
        with self._changed:
            self._queue.append(waiting)
            self._bytes += waiting.size
            self._points += waiting.points
            dropped = 0
            while self._bytes > self.most_bytes and len(self._queue) > 1:
                dropped += self._pop_oldest().points
            self._count_dropped(dropped, "queue")
            # The thread waits for the first one only.
            if len(self._queue) == 1:
                self._changed.notify()

    def _wrap(self, sample: ScrapeSample) -> Waiting:
        encoded = self._store.encode(sample)
        neutral: ScrapeSample | bytes | None = None
        size = encoded.size
        if self._spooled is not None:
            neutral = pack_sample(sample) if self._bytes > _MOST_UNPACKED else sample
            size += len(neutral) if isinstance(neutral, bytes) else estimate_size(sample)
        return Waiting(encoded, neutral, size, encoded.points, self._clock())

    def counts(self) -> WriteQueueCounts:
        """Points by outcome so far."""
        spooled = SpoolCounts(0, 0) if self._spooled is None else self._spooled.counts()
        with self._changed:
            return WriteQueueCounts(*(self._written, self._dropped, self._refused, self._points, self._bytes), *spooled)

    @property
    def most_spooled_bytes(self) -> int:
        """Limit of what waits on disk; 0 without a spool."""
        return 0 if self._spooled is None else self._spooled.most_bytes

    @property
    def backlog_age_s(self) -> float:
        """Seconds that the oldest sample has waited for the store, in RAM or on disk; 0 when none waits."""
        spooled_s = 0.0 if self._spooled is None else self._spooled.age_s()
        with self._changed:
            queued_s = self._clock() - self._queue[0].since_s if self._queue else 0.0
        return max(queued_s, spooled_s)

    def close(self, timeout_s: float) -> bool:
        """Write the backlog for at most ``timeout_s`` seconds, or to the spool; whether nothing is lost."""
        with self._changed:
            self._closing = True
            self._deadline = self._clock() + timeout_s
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._spooled is not None:
            self._spill(self._spooled)
            self._spooled.close()
        left = self.counts().queued
        if left:
            LOG.error("stopped before the store was available: points_lost=%d", left)
        return left == 0

    def _run(self) -> None:
        while True:
            try:
                self._write_until_closed()
                return
            except Exception as error:  # a defect must not end the only thread that writes
                self._problems.report("write queue", f"failed: {type(error).__name__}", logging.ERROR, error=error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, _TICK_S):
                        return

    def _write_until_closed(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while (work := self._next_batch()) is not None:
            batch, is_spooled = work
            start_s = self._clock()
            try:
                refused = self._write(batch)
            except StoreUnavailable as error:
                self.store_problem = str(error)
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
                self._report_refused(error)
                refused = batch[0].points
            backoff_s = _FIRST_BACKOFF_S
            self._remove(batch, refused, is_spooled=is_spooled)
            self._report_recovery()
            self._rest(self._clock() - start_s)

    def _write(self, batch: Sequence[Waiting]) -> int:
        """Write samples; the points that were rejected."""
        encoded, refused = [], 0
        for waiting in batch:
            try:
                encoded.append(waiting.encode(self._store))
            except Exception as error:  # whatever one sample contains, the others are written
                self._report_refused(error)
                refused += waiting.points
        return refused + (self._store.write(encoded) if encoded else 0)

    def _next_batch(self) -> tuple[list[Waiting], bool] | None:
        """The oldest samples, once there are any, and whether they are in the spool; None at the end."""
        while True:
            with self._changed:
                if self._closing and self._clock() >= self._deadline:
                    return None
            self._spill_if_due()
            waiting = self.counts()
            most = min(max(_SMALL_BATCH, (waiting.queued + waiting.spooled) // 2), _LARGE_BATCH)
            if self._single_writes:
                self._single_writes -= 1
                most = 1
            if batch := self._read_spool(most):
                return batch, True
            with self._changed:
                if batch := self._oldest(most_points=most):
                    return batch, False
                if self._closing:
                    return None
                # Another instance may end, and leave a spool.
                if self._changed.wait(None if self._spooled is None else RETRY_S):
                    self._changed.wait_for(lambda: self._closing, _GATHER_S)

    def _oldest(self, *, most_points: int = 2**31, most_bytes: int = 2**31) -> list[Waiting]:
        """The oldest samples in RAM, at least one if there is any; the caller holds the lock."""
        size, points = 0, 0
        batch: list[Waiting] = []
        for waiting in self._queue:
            size += waiting.size
            points += waiting.points
            if batch and (size > most_bytes or points > most_points):
                break
            batch.append(waiting)
        return batch

    def _rest(self, took_s: float) -> None:
        """Leave the CPU to others if more of a backlog waits."""
        waiting = self.counts()
        if waiting.queued + waiting.spooled > _SMALL_BATCH:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, min(took_s, _LONGEST_REST_S))

    def _read_spool(self, most_points: int) -> list[Waiting]:
        if self._spooled is None:
            return []
        batch, lost = self._spooled.batch(most_points)
        with self._changed:
            self._dropped += lost
        return batch

    def _spill_if_due(self) -> None:
        """Move what waits in RAM to the spool if it has waited long or fills the queue."""
        if self._spooled is None or not self._spooled.is_usable():
            return
        with self._changed:
            waited_s = self._clock() - self._queue[0].since_s if self._queue else 0.0
            is_due = waited_s > _SPOOL_AFTER_S or self._bytes > _SPOOL_AT * self.most_bytes
        if is_due:
            self._spill(self._spooled)

    def _spill(self, spooled: SpoolBacklog) -> None:
        """Move everything that waits in RAM to the spool, as far as that is possible."""
        while True:
            with self._changed:
                chunk = self._oldest(most_bytes=_SPOOL_FILE)
            if not chunk:
                return
            packed, points = self._pack(chunk)
            dropped = spooled.append(packed, points) if packed else 0
            if dropped is None:
                return
            with self._changed:
                self._forget(chunk)
                self._count_dropped(dropped, "spool")

    def _pack(self, chunk: Sequence[Waiting]) -> tuple[list[bytes], int]:
        """Packed samples and their points."""
        packed, points, refused = [], 0, 0
        for waiting in chunk:
            try:
                packed.append(waiting.pack())
                points += waiting.points
            except Exception as error:  # whatever one sample contains
                self._report_refused(error)
                refused += waiting.points
        with self._changed:
            self._refused += refused
        return packed, points

    def _pause(self, pause_s: float) -> bool:
        """Wait before a retry, only briefly while closing; False when the spool gets the rest, or the time is over."""
        end_s = self._clock() + pause_s
        while not self._closing and (left_s := end_s - self._clock()) > 0:
            self._spill_if_due()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, min(left_s, _TICK_S))
        if self._closing:
            if self._spooled is not None:
                return False
            time.sleep(min(pause_s, _FIRST_BACKOFF_S))
        return self._clock() < self._deadline

    def _remove(self, batch: Sequence[Waiting], refused: int, *, is_spooled: bool) -> None:
        """Remove written samples."""
        lost = self._spooled.remove(batch) if is_spooled and self._spooled is not None else 0
        with self._changed:
            if not is_spooled:
                self._forget(batch)
            self._written += sum(waiting.points for waiting in batch) - refused
            self._refused += refused
            self._dropped += lost

    def _forget(self, batch: Sequence[Waiting]) -> None:
        """Remove samples from the queue; the oldest of them may have been dropped. The caller holds the lock."""
        known = set(map(id, batch))
        while self._queue and id(self._queue[0]) in known:
            self._pop_oldest()

    def _pop_oldest(self) -> Waiting:
        waiting = self._queue.popleft()
        self._bytes -= waiting.size
        self._points -= waiting.points
        return waiting

    def _count_dropped(self, points: int, place: str) -> None:
        """Count points that were dropped because a place is full; the caller holds the lock."""
        self._dropped += points
        if points and not self._full:
            LOG.error("the %s is full: the oldest points are dropped", place)
            self._full = True

    def _report_refused(self, error: Exception) -> None:
        cause = f"a sample cannot be written and is dropped: {type(error).__name__}: {error}"
        self._problems.report("samples", cause, logging.ERROR, error=error)

    def _report_recovery(self) -> None:
        self.store_problem = ""
        self._problems.resolve("store")
        self._problems.resolve("samples", quiet_s=_QUIET_S)
        counts = self.counts()
        # A queue that is full again after each batch is one problem.
        if self._full and counts.queued + counts.spooled <= _SMALL_BATCH:
            LOG.error("the queue was full: points_dropped=%d", counts.dropped)
            self._full = False


def _retry_pause(backoff_s: float, retry_after_s: float | None) -> float:
    """Seconds until the next try; random, so that several aggregators do not retry at the same time."""
    pause_s = backoff_s * random.uniform(0.75, 1.25)  # noqa: S311  # not for cryptography
    return pause_s if retry_after_s is None else max(pause_s, min(retry_after_s, _LONGEST_RETRY_AFTER_S))
