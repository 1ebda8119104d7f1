"""The part of the backlog that is in the spool: opened when it is there, read in batches, oldest first, and logged."""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..common.logs import EVENT, ProblemLog
from .spool import Spool, SpoolCounts, SpoolFile
from .waiting import Waiting

LOG = logging.getLogger("scroogevm.queue")

#: Pause between two attempts to use a spool that failed, or that another instance still has, seconds.
RETRY_S = 5.0


class SpoolBacklog:
    """The samples of a spool, in order. A file is deleted once the store has all of it.

    Parameters
    ----------
    spool : Spool
    problems : ProblemLog
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, spool: Spool, problems: ProblemLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._problems = problems
        self._clock = clock
        self._retry_at = 0.0
        self._is_used = False
        self._file: SpoolFile | None = None
        self._left: deque[bytes] = deque()
        self._points = 0

    @property
    def path(self) -> str:
        """The folder, for messages."""
        return str(self._spool.path)

    def counts(self) -> SpoolCounts:
        """Points and bytes that are waiting."""
        return self._spool.counts()

    @property
    def most_bytes(self) -> int:
        """Size beyond which the oldest files are deleted."""
        return self._spool.most_bytes

    def age_s(self) -> float:
        """Seconds since the oldest of what waits was written to the spool; 0 when nothing waits."""
        return self._spool.age_s()

    def is_usable(self) -> bool:
        """Whether the spool has not just failed."""
        return self._clock() >= self._retry_at

    def append(self, samples: Sequence[bytes], points: int) -> int | None:
        """Write packed samples; the points that were dropped to make room, or None when it cannot be written."""
        try:
            dropped = self._spool.append(samples, points)
        except OSError as error:
            self._report(error)
            return None
        if not self._is_used:
            self._is_used = True
            LOG.warning("%s: the backlog is written here until the store takes it", self.path)
        self._problems.resolve(self.path)
        return dropped

    def batch(self, most_points: int) -> tuple[list[Waiting], int]:
        """The oldest samples, at least one unless the spool is empty; and the points that turned out to be lost."""
        if not self._open():
            return [], 0
        lost = 0
        if self._file is not None and not self._spool.has(self._file.name):
            # It was deleted, and counted, to make room.
            self._file, self._left = None, deque()
        while not self._left:
            lost += self._finish_file()
            self._file = self._spool.oldest()
            if self._file is None:
                self._log_end()
                return [], lost
            self._left, self._points = deque(self._file.samples), 0
        batch: list[Waiting] = []
        points = 0
        for packed in self._left:
            waiting = Waiting.of_spool(packed)
            points += waiting.points
            if batch and points > most_points:
                break
            batch.append(waiting)
        return batch, lost

    def remove(self, batch: Sequence[Waiting]) -> int:
        """Forget the samples of the last batch; the points that turned out to be lost."""
        for waiting in batch:
            self._left.popleft()
            self._points += waiting.points
        return 0 if self._left else self._finish_file()

    def close(self) -> None:
        """Log what is left for the next start, and release the spool."""
        points = self.counts().points
        if points:
            message = "stopped before the store was available: points_spooled=%d spool=%s, the next start writes them"
            LOG.info(message, points, self.path, extra=EVENT)
        self._spool.close()

    def _open(self) -> bool:
        """Whether there is a spool that can be used."""
        if not self.is_usable() and not self._spool.is_open:
            return False
        try:
            is_open = self._spool.open_if_present()
        except OSError as error:
            self._retry_at = self._clock() + RETRY_S
            if error.errno != errno.EAGAIN:
                self._report(error)
            return False
        points = self.counts().points
        if is_open and points and not self._is_used:
            self._is_used = True
            LOG.info("%s: the backlog of an earlier run is written: points=%d", self.path, points, extra=EVENT)
        return is_open

    def _finish_file(self) -> int:
        """Delete the file that is read to its end; the points that it has lost."""
        file, self._file = self._file, None
        if file is None:
            return 0
        try:
            self._spool.remove(file.name)
        except OSError as error:
            self._problems.report(self.path, f"a file cannot be deleted: {error.strerror}")
        lost = max(0, file.points - self._points)
        if lost:
            self._problems.report(self.path, f"{file.name} is damaged: points_lost={lost}", logging.ERROR)
        return lost

    def _log_end(self) -> None:
        if self._is_used:
            self._is_used = False
            LOG.info("%s: the backlog is stored", self.path, extra=EVENT)

    def _report(self, error: OSError) -> None:
        """Log why the spool cannot be used, and use it again a moment later."""
        self._retry_at = self._clock() + RETRY_S
        self._problems.report(self.path, f"the spool cannot be used: {error.strerror}", logging.ERROR)
