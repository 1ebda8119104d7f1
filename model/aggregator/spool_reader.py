"""Reads the spool back in batches, oldest first; a file is deleted once the store has all of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from ..common.logs import ProblemLog
from .sample_codec import SampleCorrupt, unpack_sample
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

    def batch(self, most_bytes: int, most_samples: int) -> tuple[list[Waiting], int]:
        """The oldest samples, and the points that turned out to be lost; no samples when the spool is empty."""
        lost = 0
        while not self._left:
            lost += self._finish_file()
            self._file = self._spool.oldest()
            if self._file is None:
                return [], lost
            self._left, self._points = deque(self._file.samples), 0
        batch: list[Waiting] = []
        size = 0
        for packed in self._left:
            if batch and (size + len(packed) > most_bytes or len(batch) == most_samples):
                break
            try:
                batch.append(Waiting.of_packed(packed, unpack_sample(packed)))
            except SampleCorrupt:
                batch.append(Waiting.of_packed(packed, None))  # written by another version
            size += len(packed)
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
