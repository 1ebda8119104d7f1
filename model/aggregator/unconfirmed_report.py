"""Counts and logs the values of a node that are missing because they are not confirmed."""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    node: str
    metrics: AggregatorMetrics
    problems: ProblemLog
    _logged: set[str] = field(default_factory=set)

    def report(self, unconfirmed: Sequence[Unconfirmed]) -> None:
        """Report what the latest sample lacks."""
        for reason, message in unconfirmed:
            self.metrics.unconfirmed.labels(self.node, reason).inc()
            if message:
                self._logged.add(reason)
                self.problems.report(self._subject(reason), message)
        for reason in self._logged.difference(problem.reason for problem in unconfirmed):
            self.problems.resolve(self._subject(reason), quiet_s=_OVER_S)

    def _subject(self, reason: str) -> str:
        return f"{self.node}: {REASONS[reason]}"
