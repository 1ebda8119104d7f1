"""Which strategy a replay recommends, and the evidence for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..contention import WAIT_SHARES
from ..slices import Resource
from .binomial import binomial_interval
from .scoring import TOLERANCE, History, Score, published_terms, score, waiting_while_offered

#: A violation by less than this share of the node does not count in the verdict.
NEGLIGIBLE = 1e-3

#: What a violation is. Stands in the report and under the table.
DEFINITION = (
    "A slice is violated when the 99th percentile of the node's samples in it exceeds what was published as left."
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a replay shows of one strategy for one resource.

    Attributes
    ----------
    score : Score
    slices : int
        How many slices the published score covers.
    violations, negligible : int
        Violated slices, by more and by less than :data:`NEGLIGIBLE`.
    interval : tuple of float
        95 % interval of the violation rate.
    worst_violation : float
        Largest excess in any slice, negligible ones included, cores or MB; NaN when nothing is scored.
    published_free : float
        Mean over the slices with data, cores or MB.
    booked_ratio, offered_ratio : float
        Means of booked / config and of (booked + published) / config over the slices with data.
    exceeds_capacity : bool
        Whether more than the node has was free in any slice.
    waited, waited_while_offered : sequence of 3 floats, or None
        VM-minutes in which VMs waited for CPU for more than 5, 10 and 20 % of the time in which they could run: in all,
        and in the slices before which something was published. None where it was not measured.
    """

    score: Score
    slices: int
    violations: int
    negligible: int
    interval: tuple[float, float]
    worst_violation: float
    published_free: float
    booked_ratio: float
    offered_ratio: float
    exceeds_capacity: bool
    waited: Sequence[float] | None = None
    waited_while_offered: Sequence[float] | None = None

    @property
    def strategy(self) -> str:
        """The name of the strategy."""
        return self.score.strategy

    @property
    def violation_rate(self) -> float:
        """Counted violations over scored slices; NaN without any."""
        return self.violations / self.slices if self.slices else math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """The recommended strategy, or None, and a sentence of why."""

    strategy: str | None
    reason: str


def collect_evidence(strategy: str, resource: Resource, history: History) -> Evidence:
    """Score one strategy for one resource, and count its violations."""
    terms = published_terms(history)
    scored = ~np.isnan(terms.violation)
    violation = terms.violation[scored]
    excess = np.maximum(0.0, terms.prediction - terms.truth)[scored]
    violations = int((violation >= NEGLIGIBLE).sum())
    offered = waiting_while_offered(history)
    measured = ~np.isnan(history.unused)
    config, booked, published = (column[measured] for column in (history.config, history.booked, history.published))
    return Evidence(
        score=score(strategy, resource.name, history),
        slices=violation.size,
        violations=violations,
        negligible=int((violation > TOLERANCE).sum()) - violations,
        interval=binomial_interval(violations, violation.size),
        worst_violation=float(excess.max()) if excess.size else math.nan,
        published_free=_mean(published),
        booked_ratio=_mean(booked / config),
        offered_ratio=_mean((booked + published) / config),
        # NaN, a slice without data, compares as false.
        exceeds_capacity=bool((history.free > history.config * (1 + TOLERANCE)).any()),
        waited=None if history.waiting is None else history.waiting.sum(axis=0).tolist(),
        waited_while_offered=None if offered is None else offered.tolist(),
    )


def _mean(values: Any) -> float:
    return float(values.mean()) if values.size else math.nan


def rank(rows: Sequence[Evidence], risk: float) -> list[Evidence]:
    """The strategies for one resource, best first.

    First those within the target risk, by misprediction; then those beyond it, by violation rate; then those that
    exceeded the capacity of the node; last those without a scored slice.
    """

    def order(row: Evidence) -> tuple[bool, bool, bool, float]:
        if not row.slices:
            return True, True, True, 0.0
        violates = row.violation_rate > risk
        key = row.violation_rate if violates else row.score.published_misprediction
        return False, row.exceeds_capacity, violates, key

    return sorted(rows, key=order)


def choose(rows: Sequence[Evidence], risk: float) -> Verdict:
    """Recommend a strategy where the evidence suffices.

    Candidates are the strategies with scored slices that never exceeded the capacity of the node, in the order of
    :func:`rank`; the first is the best, the second the runner-up.

    *Too few slices to tell*: the 95 % interval of the best one's violation rate contains the target risk and overlaps
    the interval of the runner-up. Without a runner-up the first condition decides. Otherwise the best one is
    recommended if its violation rate is within the target risk, and none if it is not.

    Parameters
    ----------
    rows : sequence of Evidence
        Of one resource.
    risk : float
        The target risk: the share of slices that may be violated.
    """
    candidates = [row for row in rank(rows, risk) if row.slices and not row.exceeds_capacity]
    if not any(row.slices for row in rows):
        return Verdict(None, "No slice could be scored: a score needs two successive slices with data.")
    if not candidates:
        return Verdict(None, "No recommendation: every strategy computed more free than the node has.")
    best, *others = candidates
    low, high = best.interval
    runner_up = others[0] if others else None
    target = f"{100 * risk:g}%"
    evidence = f"{best.violations} of {best.slices} slices violated, {rate_text(best)}"
    if low <= risk <= high and (runner_up is None or _overlap(best.interval, runner_up.interval)):
        rival = "" if runner_up is None else f" and overlaps that of {runner_up.strategy}, {rate_text(runner_up)}"
        reason = f"The interval contains the target risk of {target}{rival}"
        return Verdict(None, f"Too few slices to tell. First is {best.strategy}: {evidence}. {reason}.")
    if best.violation_rate > risk:
        return Verdict(
            None, f"No strategy keeps the target risk of {target}. Fewest violations: {best.strategy}, {evidence}."
        )
    free = f"{best.score.published_free_share:.1%} of the node published as free on average"
    return Verdict(best.strategy, f"Best choice at a target risk of {target}: {best.strategy}. {evidence}; {free}.")


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def rate_text(row: Evidence) -> str:
    """The violation rate with its 95 % interval, such as ``10.7% (2.3-28.2%)``."""
    low, high = row.interval
    return f"{row.violation_rate:.1%} ({100 * low:.1f}-{100 * high:.1f}%)" if row.slices else "-"


def as_object(row: Evidence, resource: Resource) -> Mapping[str, Any]:
    """One row of ``--json``; amounts in the display unit of the resource, rates 0 to 1."""
    scale = resource.display_scale
    scores = asdict(row.score)
    return {
        "strategy": scores.pop("strategy"),
        "slices": row.slices,
        "violations": row.violations,
        "negligible_violations": row.negligible,
        "violation_rate": row.violation_rate,
        "violation_rate_interval": row.interval,
        "worst_violation": row.worst_violation / scale,
        "published_free": row.published_free / scale,
        "booked_ratio": row.booked_ratio,
        "offered_ratio": row.offered_ratio,
        "exceeds_capacity": row.exceeds_capacity,
        **_waiting_object(row),
        "scores": {name: value for name, value in scores.items() if name != "resource"},
    }


def _waiting_object(row: Evidence) -> Mapping[str, Any]:
    """VM-minutes of waiting by share, where they were measured."""
    if row.waited is None or row.waited_while_offered is None:
        return {}
    names = [f"{share:g}" for share in WAIT_SHARES]
    return {
        "wait_minutes": dict(zip(names, row.waited, strict=True)),
        "wait_minutes_while_offered": dict(zip(names, row.waited_while_offered, strict=True)),
    }
