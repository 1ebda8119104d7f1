"""Verdicts: which evidence suffices to recommend a strategy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.replay.binomial import binomial_interval
from model.replay.evidence import DEFINITION, Evidence, choose, collect_evidence, rank
from model.replay.scoring import History, Score
from model.slices import CPU, MEMORY

NAN = math.nan


def history(peak: list[float], published: list[float], *, config: float = 100.0, booked: float = 50.0) -> History:
    size = len(peak)
    return History(
        config=np.full(size, config),
        booked=np.full(size, booked),
        peak=np.array(peak),
        free=np.array(published),
        published=np.array(published),
        lag=1,
    )


def row(
    name: str, violations: int, slices: int, misprediction: float = 1.0, *, exceeds_capacity: bool = False
) -> Evidence:
    if not slices:
        misprediction = NAN
    return Evidence(
        score=Score(name, "cpu", 0, 0, 0, 0, 0, misprediction, 0, violations / max(slices, 1), 0.25),
        slices=slices,
        violations=violations,
        negligible=0,
        interval=binomial_interval(violations, slices),
        worst_violation=0.0,
        published_free=25.0,
        booked_ratio=1.0,
        offered_ratio=1.25,
        exceeds_capacity=exceeds_capacity,
    )


# --- counting -----------------------------------------------------------------------------------------


def test_violations_are_counted_with_their_rate_interval_and_worst() -> None:
    # unused 60, 40, 45; left 70, 45, 45: violated by 5 in slice 2 of 3, by 10 in slice 1.
    evidence = collect_evidence("x", CPU, history(peak=[30, 40, 60, 55], published=[70, 45, 45, 45]))
    assert (evidence.slices, evidence.violations, evidence.negligible) == (3, 2, 0)
    assert evidence.violation_rate == pytest.approx(2 / 3)
    assert evidence.interval == binomial_interval(2, 3)
    assert evidence.worst_violation == pytest.approx(10)
    assert evidence.published_free == pytest.approx((70 + 45 + 45 + 45) / 4)
    assert evidence.booked_ratio == pytest.approx(0.5)
    assert evidence.offered_ratio == pytest.approx(0.5 + 2.05 / 4)


@pytest.mark.parametrize(("excess", "counted"), [(0.0, 0), (0.09, 0), (0.11, 1)])
def test_violation_below_a_thousandth_of_the_node_is_shown_but_not_counted(excess: float, counted: int) -> None:
    evidence = collect_evidence("x", CPU, history(peak=[50, 50 + excess], published=[50, 50]))
    assert evidence.violations == counted
    assert evidence.negligible == (excess > 0) - counted
    assert evidence.worst_violation == pytest.approx(excess)
    # summary.csv counts every violation.
    assert evidence.score.published_violation_frequency == (excess > 0)


def test_slice_without_data_is_no_evidence() -> None:
    evidence = collect_evidence("x", MEMORY, history(peak=[NAN, 50, NAN], published=[0, 50, 0]))
    assert (evidence.slices, evidence.violations) == (0, 0)
    assert math.isnan(evidence.violation_rate)
    assert math.isnan(evidence.worst_violation)
    assert evidence.published_free == 50


@pytest.mark.parametrize(("free", "exceeds"), [(100.0, False), (100.0001, True)])
def test_more_free_than_the_node_has_exceeds_its_capacity(free: float, exceeds: bool) -> None:
    evidence = collect_evidence("x", CPU, history(peak=[0, 0, 0], published=[10, free, NAN]))
    assert evidence.exceeds_capacity is exceeds


# --- ranking ------------------------------------------------------------------------------------------


def test_ranking_prefers_the_closest_within_the_risk_and_then_the_fewest_violations() -> None:
    rows = [
        row("far", 0, 100, 3),
        row("beyond", 50, 100, 0.1),
        row("near", 5, 100, 1),
        row("unscored", 0, 0),
        row("too much", 0, 100, 0, exceeds_capacity=True),
        row("further beyond", 60, 100, 0),
    ]
    order = [r.strategy for r in rank(rows, 0.05)]
    assert order == ["near", "far", "beyond", "further beyond", "too much", "unscored"]


# --- verdicts -----------------------------------------------------------------------------------------


def test_best_is_recommended_when_its_interval_lies_below_the_target() -> None:
    # 0 of 300: below 1.2 %.
    verdict = choose([row("far", 0, 300, 3), row("near", 0, 300, 1)], 0.05)
    assert verdict.strategy == "near"
    assert verdict.reason == (
        "Best choice at a target risk of 5%: near. 0 of 300 slices violated, 0.0% (0.0-1.2%); "
        "25.0% of the node published as free on average."
    )


def test_best_is_recommended_when_the_runner_up_differs() -> None:
    # 45 of 1000: 3.3 to 6.0 %, which contains 5 %; 2 of 1000: at most 0.7 %.
    assert choose([row("near", 45, 1000, 1), row("far", 2, 1000, 3)], 0.05).strategy == "near"


@pytest.mark.parametrize("violations_of_the_runner_up", [0, 1, 9])
def test_few_slices_give_no_verdict(violations_of_the_runner_up: int) -> None:
    # 1 of 28: 0.1 to 18.3 %.
    verdict = choose([row("near", 1, 28, 1), row("other", violations_of_the_runner_up, 28, 3)], 0.05)
    assert verdict.strategy is None
    assert verdict.reason.startswith(
        "Too few slices to tell. First is near: 1 of 28 slices violated, 3.6% (0.1-18.3%)."
    )
    assert "contains the target risk of 5% and overlaps that of other" in verdict.reason


def test_few_slices_of_a_single_strategy_give_no_verdict() -> None:
    verdict = choose([row("only", 0, 71)], 0.05)
    assert verdict.reason == (
        "Too few slices to tell. First is only: 0 of 71 slices violated, 0.0% (0.0-5.1%). "
        "The interval contains the target risk of 5%."
    )
    assert choose([row("only", 0, 72)], 0.05).strategy == "only"


def test_no_strategy_is_recommended_beyond_the_target() -> None:
    verdict = choose([row("a", 200, 1000), row("b", 300, 1000)], 0.05)
    assert verdict.strategy is None
    assert verdict.reason == (
        "No strategy keeps the target risk of 5%. Fewest violations: a, 200 of 1000 slices violated, 20.0% (17.6-22.6%)."
    )


def test_strategy_that_exceeded_the_capacity_is_never_recommended() -> None:
    rows = [row("doa", 0, 1000, 0.1, exceeds_capacity=True), row("borg", 0, 1000, 9)]
    assert choose(rows, 0.05).strategy == "borg"
    verdict = choose(rows[:1], 0.05)
    assert (verdict.strategy, "more free than the node has" in verdict.reason) == (None, True)


def test_nothing_scored_gives_no_verdict() -> None:
    verdict = choose([row("a", 0, 0), row("b", 0, 0, exceeds_capacity=True)], 0.05)
    assert verdict.strategy is None
    assert verdict.reason.startswith("No slice could be scored")


def test_definition_is_that_of_the_contract() -> None:
    assert DEFINITION == (
        "A slice is violated when the 99th percentile of the node's samples in it exceeds what was published as left."
    )
