"""Logs what is wrong with the providers of nodes: a line for each, or one line for many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from ...common.logs import ProblemLog

#: From so many subjects on, a topic has one line.
_MANY = 6


class _Problem(NamedTuple):
    topic: str
    text: str
    since_s: float
    quiet_s: float


class NodeProblems:
    """The problems of single nodes; those of one topic share a line where there are many.

    Parameters
    ----------
    log : logging.Logger
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = ProblemLog(log)
        self._clock = clock
        self._open: dict[str, _Problem] = {}
        self._ended: set[str] = set()
        self._topics: set[str] = set()

    def set(self, subject: str, topic: str, text: str, *, quiet_s: float = 0.0) -> None:
        """Note a problem.

        Parameters
        ----------
        subject : str
            The node, with the resource class where it concerns one.
        topic : str
            Names the line of many.
        text : str
        quiet_s : float
            It ends when it was not noted again for so long.
        """
        self._open[subject] = _Problem(topic, text, self._clock(), quiet_s)

    def clear(self, subject: str) -> None:
        """Note that a subject has no problem, or had it last some time ago."""
        problem = self._open.get(subject)
        if problem is None or self._clock() - problem.since_s >= problem.quiet_s:
            self._open.pop(subject, None)
            self._ended.add(subject)

    def drop(self, node: str) -> None:
        """Forget the problems of a node that is no longer kept."""
        for subject in [one for one in self._open if one == node or one.startswith(f"{node} ")]:
            del self._open[subject]

    def log(self, total: int) -> None:
        """Log what has changed.

        Parameters
        ----------
        total : int
            Number of nodes.
        """
        topics: dict[str, list[str]] = {}
        for subject, problem in self._open.items():
            topics.setdefault(problem.topic, []).append(subject)
        many = {topic for topic, subjects in topics.items() if len(subjects) >= _MANY}
        for topic in self._topics - many:
            self._log.resolve(f"Placement, {topic}")
        self._topics = many
        for subject in self._ended:
            self._log.resolve(subject)
        self._ended = set()
        for topic, subjects in topics.items():
            if topic in many:
                first = subjects[0]
                text = f"{len(subjects)} of {total} nodes, first {first}: {self._open[first].text}"
                self._log.report(f"Placement, {topic}", text)
                continue
            for subject in subjects:
                self._log.report(subject, self._open[subject].text)
