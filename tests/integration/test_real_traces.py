"""Real usage data, where the folder that holds it is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.trace import read_trace
from tests.conftest import SHARED, strict_json

TRACES = sorted((SHARED / "traces").glob("*.json"))


@pytest.mark.skipif(not TRACES, reason="the shared folder with real traces is not here")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_real_trace_is_replayed_with_every_strategy(path: Path) -> None:
    trace = read_trace(path)
    outcome = Replay(trace, ModelSettings(trace.config.historical, tuple(STRATEGIES))).run()
    scores = {(row.strategy, row.resource): row for row in outcome.scores()}
    for resource in ("cpu", "mem"):
        # By its formula: the larger of two is never less careful than either.
        most = scores["maxpeak", resource].published_free_share
        assert most <= scores["nsigma", resource].published_free_share
        assert most <= scores["rclike", resource].published_free_share
    # Nobody used more cores than nine tenths of what was sold, and everybody is sometimes in his busiest tenth.
    assert scores["borg", "cpu"].published_violation_frequency == 0
    assert scores["percentile", "cpu"].published_violation_frequency > 0
    for _, text in outcome.dumps("node", "mean"):
        strict_json(text)


@pytest.mark.skipif(not TRACES, reason="the shared folder with real traces is not here")
def test_departed_vms_of_a_real_trace_are_gone() -> None:
    """Twenty VMs leave bb09, each marked by a repetition of its last slice; the trace lists who really ran."""
    path = SHARED / "traces" / "bb09_departures_6d.json"
    listed = [set(raw["vm"]) for raw in json.loads(path.read_bytes())["node"]["raw_data"]]
    assert [set(s.vms) for s in read_trace(path).slices()] == listed
