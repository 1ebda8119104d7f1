"""The conformal strategy on real traces: its violation rate and its misprediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from model.nodemodel import ModelSettings
from model.numerics import FloatArray
from model.oversubscriptioncomputation import StrategySettings
from model.replay.replay import Replay
from model.replay.scoring import published_terms
from model.replay.trace import read_trace
from tests.conftest import SHARED

TRACES = sorted((SHARED / "traces").glob("*.json"))


@dataclass(frozen=True)
class ScoredSlices:
    """The scored slices of a strategy on a node."""

    misprediction: FloatArray
    violated: FloatArray


#: By strategy, resource and risk; then a node each.
Scores = dict[tuple[str, str, float], list[ScoredSlices]]


@pytest.fixture(scope="module")
def scores() -> Scores:
    if not TRACES:
        pytest.skip("the shared folder with real traces is not here")
    result: Scores = {}
    for path in TRACES:
        trace = read_trace(path)
        for strategies, risk in ((("conformal", "scroogevm"), 0.05), (("conformal",), 0.01)):
            parameters = StrategySettings(risk=risk)
            settings = ModelSettings(trace.config.historical, strategies, parameters, parameters)
            histories = Replay(trace, settings).run().recorder.histories(trace.config.positions)
            for (strategy, resource), history in histories.items():
                terms = published_terms(history)
                scored = ~np.isnan(terms.misprediction)
                violated = (terms.violation > 1e-9)[scored].astype(float)
                slices = ScoredSlices(terms.misprediction[scored], violated)
                result.setdefault((strategy, resource, risk), []).append(slices)
    return result


@pytest.mark.parametrize("resource", ["cpu", "mem"])
@pytest.mark.parametrize(("risk", "least", "most"), [(0.05, 0.03, 0.06), (0.01, 0.0, 0.02)])
def test_violation_rate_of_real_nodes_is_near_the_target_risk(
    scores: Scores, resource: str, risk: float, least: float, most: float
) -> None:
    """From the eleventh scored slice on, over all nodes; and on each node at most twice the target plus two slices."""
    violated = [node.violated[10:] for node in scores["conformal", resource, risk]]
    assert least <= np.concatenate(violated).mean() <= most
    assert all(node.sum() <= 2 * risk * node.size + 2 for node in violated)


@pytest.mark.parametrize("resource", ["cpu", "mem"])
def test_misprediction_of_real_nodes_is_about_half_of_scroogevm(scores: Scores, resource: str) -> None:
    conformal, scroogevm = (
        np.mean([node.misprediction.mean() for node in scores[strategy, resource, 0.05]])
        for strategy in ("conformal", "scroogevm")
    )
    assert conformal <= 0.55 * scroogevm
