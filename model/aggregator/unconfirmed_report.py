"""Counts and logs the values of a node that are missing because they are not confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..common.logs import ProblemLog
from .metrics import AggregatorMetrics
from .unconfirmed import REASONS, Unconfirmed

#: A problem that comes and goes is one problem: it is over when it was absent for this time.
_OVER_S = 60.0


@dataclass(slots=True)
class UnconfirmedReport:
    """Reports the problems of one node: a metric by reason, and one line when a reason begins and ends.

    Parameters
    ----------
    node : str
    metrics : AggregatorMetrics
    problems : ProblemLog
    clock : callable
        Monotonic seconds.
    """

    node: str
    metrics: AggregatorMetrics
    problems: ProblemLog
    clock: Callable[[], float]
    _seen_s: dict[str, float] = field(default_factory=dict)

    def report(self, unconfirmed: Iterable[Unconfirmed]) -> None:
        """Report what the latest sample lacks."""
        now_s = self.clock()
        for reason, message in unconfirmed:
            self.metrics.unconfirmed.labels(self.node, reason).inc()
            if message:
                self._seen_s[reason] = now_s
                self.problems.report(self._subject(reason), message)
        for reason in [reason for reason, seen_s in self._seen_s.items() if now_s - seen_s >= _OVER_S]:
            del self._seen_s[reason]
            self.problems.resolve(self._subject(reason))

    def _subject(self, reason: str) -> str:
        return f"{self.node}: {REASONS[reason]}"
