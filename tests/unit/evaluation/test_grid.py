"""Variants, their evaluation on a trace, and pooled scores."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.evaluation.grid import (
    PARAMETERS,
    Histories,
    Pooled,
    Row,
    Variant,
    evaluate,
    labels,
    pooled,
    row_of,
    table_csv,
    variants,
)
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.scoring import History
from model.replay.trace import Trace, parse_trace
from tests.conftest import build_trace, lists


def restless_trace(slices: int) -> Trace:
    """A node that is half used, and full for a moment in every sixth slice; no slice is like another."""
    random = np.random.default_rng(5)
    trace = build_trace(slices)
    for k, node in enumerate(trace["node"]["raw_data"]):
        usage = random.uniform(0, random.uniform(4, 12), 7)
        if k % 6 == 5:
            usage[0] = 16
        node.update(lists(np.linspace(1800 * k, 1800 * k + 1500, 7), 16.0, 32768.0, usage))
        for vm in trace["vm"].values():
            vm["raw_data"][k] = lists(node["time"], 4.0, 4096.0, usage / 16)
    return parse_trace(json.dumps(trace, default=float).encode())


USUAL = {"percentile": 90.0, "aggregation": 1, "risk": 0.05, "stability": "mean"}
OTHERS = {"percentile": 60.0, "aggregation": 4, "risk": 0.2, "stability": "always"}


@pytest.fixture(scope="module")
def histories() -> Histories:
    """Every strategy with the usual values of all parameters, and with another value of each."""
    values: list[dict[str, Any]] = [USUAL, *({**USUAL, name: OTHERS[name]} for name in PARAMETERS)]
    return evaluate(restless_trace(60), [Variant(name, **one) for one in values for name in STRATEGIES])


@pytest.mark.parametrize("name", STRATEGIES)
def test_result_of_a_strategy_depends_on_its_parameters_only(name: str, histories: Histories) -> None:
    def published(**values: Any) -> np.ndarray[Any, Any]:
        return np.concatenate([histories[Variant(name, **values), resource].published for resource in ("cpu", "mem")])

    for parameter in PARAMETERS:
        other = published(**{**USUAL, parameter: OTHERS[parameter]})
        same = np.array_equal(published(**USUAL), other, equal_nan=True)
        assert same == (parameter not in STRATEGIES[name].parameters), parameter


def test_variants_in_a_shared_replay_equal_those_evaluated_alone() -> None:
    trace = restless_trace(25)
    values = {"percentile": [50.0, 95.0], "aggregation": [1, 2], "risk": [0.05, 0.2], "stability": ["mean", "never"]}
    chosen = variants(STRATEGIES, values)
    assert len(chosen) == len(set(chosen)) == 2 + 2 + 8 + 4 + 4 + 2 + 2
    assert len(set(labels(chosen).values())) == len(chosen)
    together = evaluate(trace, chosen)
    assert len(together) == 2 * len(chosen)
    for variant in chosen[::3]:
        for key, history in evaluate(trace, [variant]).items():
            np.testing.assert_array_equal(history.published, together[key].published)


def test_guarded_variants_in_a_shared_replay_equal_those_evaluated_alone() -> None:
    trace = restless_trace(25)
    values = {"percentile": [50.0], "aggregation": [1], "risk": [0.05, 0.2], "stability": ["mean"]}
    chosen = variants(["percentile", "nsigma", "conformal"], values, guards=True)
    assert [variant.risk for variant in chosen] == [0.05, 0.2] * 3
    # Those without guards are computed beside them, and are not the same.
    together = evaluate(trace, [*chosen, *variants(["percentile"], values)])
    for variant in chosen:
        for key, history in evaluate(trace, [variant]).items():
            np.testing.assert_array_equal(history.published, together[key].published)
    guarded, bare = (together[one, "cpu"] for one in (chosen[0], Variant("percentile", percentile=50.0)))
    assert (guarded.published <= bare.published).all()
    assert guarded.published.sum() < bare.published.sum()


# --- pooling ----------------------------------------------------------------------------------------

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for strategy, name, trace in itertools.product(("a", "b", "c", "d"), ("cpu", "mem"), ("x", "y")):
        slices = draw(st.integers(0, 20))
        figures = [draw(SHARES) if slices else math.nan for _ in range(3)]
        rows.append(Row(trace, Variant(strategy), name, slices, draw(st.integers(0, slices)), *figures, *[0.0] * 4))
    return rows


@settings(max_examples=200, deadline=None)
@given(some_rows())
def test_front_is_what_no_other_variant_dominates(rows: list[Row]) -> None:
    points = pooled(rows)
    assert {(p.variant, p.resource) for p in points} == {(r.variant, r.resource) for r in rows if r.slices}
    for point in points:
        rivals = [other for other in points if other.resource == point.resource]
        dominated = any(
            (o.violation_frequency < point.violation_frequency and o.usable_free >= point.usable_free)
            or (o.violation_frequency <= point.violation_frequency and o.usable_free > point.usable_free)
            for o in rivals
        )
        assert point.on_front is not dominated
        assert 0 <= point.violation_frequency <= point.worst <= 1
    assert {p.resource for p in points if p.on_front} == {p.resource for p in points}
    assert len(table_csv(points, Pooled).splitlines()) == len(points) + 1


def test_trace_without_scored_slices_has_empty_cells() -> None:
    k = np.full(12, np.nan)
    row = row_of("t", Variant("borg"), "cpu", History(np.full(12, 4.0), k, k, k, k, 1), after=10)
    assert (row.slices, row.violations) == (0, 0)
    assert pooled([row]) == []
    header, line = table_csv([row], Row).splitlines()
    assert header.startswith(f"trace,strategy,{','.join(PARAMETERS)},guards,resource,slices,violations,misprediction,")
    assert line == "t,borg,,,,,False,cpu,0,0,,,,,,,"
