"""Real usage data and all recordings of the original; skipped where the shared folder is missing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.results import replay_results
from model.replay.trace import read_trace
from tests.conftest import SHARED
from tests.support.recordings import differences, recordings, replay_recording

RECORDINGS = SHARED / "goldens"
TRACES = sorted((SHARED / "traces").glob("*.json"))


@pytest.mark.skipif(not TRACES, reason="the shared folder with real traces is not here")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_real_trace_is_replayed_with_every_strategy(path: Path) -> None:
    trace = read_trace(path)
    outcome = Replay(trace, ModelSettings(trace.config.historical, tuple(STRATEGIES))).run()
    results = replay_results(path.stem, "node", outcome)
    scores = {(row.strategy, row.resource): row for row in results.scores}
    for resource in ("cpu", "mem"):
        # The threshold of maxpeak is the larger of the two.
        most = scores["maxpeak", resource].published_free_share
        assert most <= scores["nsigma", resource].published_free_share
        assert most <= scores["rclike", resource].published_free_share
    # Usage stays below booked / 1.1, and exceeds its 90th percentile.
    assert scores["borg", "cpu"].published_violation_frequency == 0
    assert scores["percentile", "cpu"].published_violation_frequency > 0
    for _, text in outcome.dumps("node", "mean"):
        msgspec.json.decode(text)  # strict: it refuses NaN


@pytest.mark.skipif(not TRACES, reason="the shared folder with real traces is not here")
def test_departed_vms_of_a_real_trace_are_gone() -> None:
    """Twenty VMs leave bb09, each marked by a repetition of its last slice; the node lists the VMs that run."""
    path = SHARED / "traces" / "bb09_departures_6d.json"
    listed = [set(raw["vm"]) for raw in json.loads(path.read_bytes())["node"]["raw_data"]]
    assert [set(s.vms) for s in read_trace(path).slices()] == listed


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared folder with all recordings is not here")
@pytest.mark.parametrize("path", recordings(RECORDINGS))
def test_every_shared_recording_is_met(path: Path) -> None:
    """All recordings, the larger traces included."""
    assert differences(*replay_recording(path, RECORDINGS, []), path) == []
