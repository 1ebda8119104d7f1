"""Reads the spool back in batches, oldest first; a file is deleted once the store has all of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from ..common.logs import ProblemLog
from .spool import Spool, SpoolFile
from .waiting import Waiting


class SpoolReader:
    """The samples of a spool, in order; used by one thread.

    Parameters
    ----------
    spool : Spool
    problems : ProblemLog
    """

    def __init__(self, spool: Spool, problems: ProblemLog) -> None:
        self._spool = spool
        self._problems = problems
        self._file: SpoolFile | None = None
        self._left: deque[bytes] = deque()
        self._points = 0

    def batch(self, most_points: int) -> tuple[list[Waiting], int]:
        """The oldest samples, at least one unless the spool is empty; and the points that turned out to be lost."""
        lost = 0
        if self._file is not None and not self._spool.has(self._file.name):
            # It was deleted, and counted, to make room.
            self._file, self._left = None, deque()
        while not self._left:
            lost += self._finish_file()
            self._file = self._spool.oldest()
            if self._file is None:
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

    def _finish_file(self) -> int:
        """Delete the file that is read to its end; the points that it has lost."""
        file, self._file = self._file, None
        if file is None:
            return 0
        try:
            self._spool.remove(file.name)
        except OSError as error:
            self._problems.report(str(self._spool.path), f"a file cannot be deleted: {error.strerror}")
        lost = max(0, file.points - self._points)
        if lost:
            cause = f"{file.name} is damaged: points_lost={lost}"
            self._problems.report(str(self._spool.path), cause, logging.ERROR)
        return lost
