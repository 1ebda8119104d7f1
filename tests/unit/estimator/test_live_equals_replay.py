"""Whatever restarts, waits or fails, a live run publishes what a replay of the same samples computes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.estimator.trace_export import export
from model.feedback import FleetModel
from model.guards import turn_of
from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.publishers.status_file import StatusFile, read_status
from model.replay.replay import Replay
from model.replay.trace import Trace, parse_trace
from model.samples import ScrapeSample
from model.slices import RESOURCES
from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.conftest import strict_json
from tests.unit.estimator.support import (
    DETECTORS,
    FIRST,
    NODES,
    SLICE_S,
    STORED,
    LiveRun,
    fill,
    settings_for,
    write_slice,
)

REPLAYED = range(FIRST, FIRST + 25)


@pytest.fixture(scope="module")
def trace(stored: SqliteStore, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The trace of the first node."""
    settings = settings_for(tmp_path_factory.mktemp("trace"))
    return parse_trace(b"".join(export(stored, settings, NODES[0], REPLAYED[0], REPLAYED[-1])))


def test_restart_after_every_slice_changes_no_figure_of_any_strategy(
    stored: SqliteStore, steady: list[list[NodeStatus]], tmp_path: Path
) -> None:
    """All of the state is in the checkpoint file."""
    assert LiveRun(settings_for(tmp_path), stored).play(STORED, restart=True) == steady
    assert {name for statuses in steady for name in statuses[0].cpu.others} == set(STRATEGIES)
    assert len({statuses[0].cpu.free for statuses in steady}) > 5, "the figures change"


def test_risk_and_violation_rate_are_published_and_survive_restarts(stored: SqliteStore, tmp_path: Path) -> None:
    whole = LiveRun(settings_for(tmp_path / "a", nodes=NODES[:1]), stored, ["conformal"]).play(STORED)
    settings = settings_for(tmp_path / "b", nodes=NODES[:1])
    publisher = StatusFile(settings.status, 90)
    assert LiveRun(settings, stored, ["conformal"], file=publisher).play(STORED, restart=True) == whole
    last = [statuses[0].cpu.last for statuses in whole]
    assert {figures.risk for figures in last if figures} == {0.05}
    assert len({figures.violation_rate for figures in last if figures}) > 5, "the rate changes"
    published = read_status(settings.status.path)[NODES[0]].cpu
    assert (published.risk, published.violation_rate) == (0.05, last[-1].violation_rate if last[-1] else None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replay_of_the_exported_trace_gives_the_live_figures(
    strategy: str, stored: SqliteStore, trace: Trace, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, nodes=NODES[:1])
    live = LiveRun(settings, stored, [strategy]).play(REPLAYED)
    replayed = Replay(trace, ModelSettings(settings.historical, (strategy,)), DETECTORS).run()
    for resource in ("cpu", "mem"):
        history = replayed.recorder.histories(3)[strategy, resource]
        statuses = [getattr(node, resource) for (node,) in live]
        assert [status.free for status in statuses] == history.published.tolist()
        booked = [status.last.booked for status in statuses if status.state == "ok"]
        assert booked == history.booked[~np.isnan(history.free)].tolist()
        booked_now = [status.last.booked_now for status in statuses if status.state == "ok"]
        measured = [finished.usage(one) for finished in trace.slices() for one in RESOURCES if one.name == resource]
        assert booked_now == [usage.booked_now for usage in measured if usage.measured]
    assert trace.epoch == [(number + 1) * SLICE_S for number in REPLAYED]


@pytest.mark.parametrize("strategy", ["clt", "percentile"])
def test_guarded_figures_of_one_node_are_those_of_the_replay_of_its_trace(
    strategy: str, stored: SqliteStore, trace: Trace, tmp_path: Path
) -> None:
    """A fleet of one node learns what the replay learns; the node has its turn in the same slices."""
    settings = settings_for(tmp_path, nodes=NODES[:1])
    live = LiveRun(settings, stored, [strategy], guarded=True).play(REPLAYED, restart=True)
    model = ModelSettings(settings.historical, (strategy,), guarded=True)
    history = Replay(trace, model, DETECTORS).run().recorder.histories(3)
    bare = Replay(trace, replace(model, guarded=False), DETECTORS).run().recorder.histories(3)
    for resource in ("cpu", "mem"):
        published = [getattr(node, resource).free for (node,) in live]
        assert published == history[strategy, resource].published.tolist()
        assert published != bare[strategy, resource].published.tolist(), "the guards lower the figures"


def test_fleet_of_a_live_run_is_that_of_a_replay_of_all_nodes_in_step(stored: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    model = ModelSettings(settings.historical, ("clt",), positions=settings.calendar.positions, guarded=True)
    live = LiveRun(settings, stored, ["clt"], guarded=True).play(REPLAYED, restart=True)
    traces = [
        parse_trace(b"".join(export(stored, settings, node, REPLAYED[0], REPLAYED[-1]))).slices() for node in NODES
    ]
    models = [NodeModel(model, DETECTORS, turn_of(node)) for node in NODES]
    fleet = FleetModel(model.cpu.risk, model.mem.risk)
    expected = []
    for slices in zip(*traces, strict=True):
        feedback = fleet.feedback()
        estimates = [one.update(finished, feedback) for one, finished in zip(models, slices, strict=True)]
        fleet.update([estimate.counts for estimate in estimates])
        expected.append([estimate.cpu.by_strategy["clt"].published for estimate in estimates])
    assert [[status.cpu.free for status in statuses] for statuses in live] == expected
    # Each node alone learns something else.
    alone = LiveRun(settings_for(tmp_path / "alone", nodes=NODES[:1]), stored, ["clt"], guarded=True).play(REPLAYED)
    assert [statuses[0].cpu.free for statuses in alone] != [figures[0] for figures in expected]


def test_configuration_scraped_before_any_usage_is_used_live_as_in_a_replay(store: SqliteStore, tmp_path: Path) -> None:
    """After a restart of a node its first scrape has configurations only."""
    write_slice(store, FIRST, {"cpu": 8.0}, {"a": {"cpu": 2.0}})
    write_slice(store, FIRST + 1, {"cpu_usage": 1.0}, {"a": {"mem": 512.0}})
    settings = settings_for(tmp_path)
    live = LiveRun(settings, store, ["borg"]).play([FIRST, FIRST + 1], restart=True)
    trace = parse_trace(b"".join(export(store, settings, NODES[0], FIRST, FIRST + 1)))
    history = Replay(trace, ModelSettings(1, ("borg",)), DETECTORS).run().recorder.histories(3)["borg", "cpu"]
    assert [statuses[0].cpu.free for statuses in live] == history.published.tolist() == [0.0, 6.2]


def test_figures_are_the_same_whether_samples_of_vms_are_read_or_not(
    stored: SqliteStore, steady: list[list[NodeStatus]], tmp_path: Path
) -> None:
    """Without a strategy that uses the samples of VMs they are not read from the store."""
    strategies = ("scroogevm", "borg", "greedy")
    live = LiveRun(settings_for(tmp_path), stored, strategies).play(STORED[:9])
    assert [[status.cpu.others for status in statuses] for statuses in live] == [
        [{name: status.cpu.others[name] for name in strategies if status.cpu.others} for status in statuses]
        for statuses in steady[:9]
    ]


def test_exported_slices_without_samples_are_empty(stored: SqliteStore, tmp_path: Path) -> None:
    text = b"".join(export(stored, settings_for(tmp_path), NODES[0], FIRST - 1, FIRST + 5))
    assert strict_json(text)["node"]["raw_data"][0] == {}


def test_missed_slices_are_computed_in_order(
    stored: SqliteStore, steady: list[list[NodeStatus]], tmp_path: Path
) -> None:
    late = LiveRun(settings_for(tmp_path), stored)
    assert late.wake(FIRST) == steady[0]
    assert late.wake(FIRST + 11) == steady[11]
    late.stop()


def test_node_without_a_checkpoint_starts_with_the_configured_number_of_earlier_scopes(
    stored: SqliteStore, steady: list[list[NodeStatus]], tmp_path: Path
) -> None:
    assert LiveRun(settings_for(tmp_path / "a", previous_scopes=3), stored).play([FIRST + 11]) == [steady[11]]
    # With two scopes less greedy lacks a part of its state.
    assert LiveRun(settings_for(tmp_path / "b", previous_scopes=1), stored).play([FIRST + 11]) != [steady[11]]


def test_impossible_values_in_the_store_cost_no_node_its_figures(
    store: SqliteStore, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    start_ms = FIRST * SLICE_S * 1000
    huge = {"cpu": 1e300, "mem": -1e300, "cpu_usage": 1e300, "mem_usage": -1e300}
    fill(store, NODES, range(FIRST, FIRST + 2))
    samples = [
        ScrapeSample(NODES[0], start_ms + 7, huge, {"a": {"cpu": 1e300, "mem": -1.0}}),
        ScrapeSample(NODES[0], start_ms + 8, {"cpu": math.inf}, {}),
    ]
    store.write([store.encode(sample) for sample in samples])
    settings = settings_for(tmp_path)
    for statuses in LiveRun(settings, store).play(range(FIRST, FIRST + 2)):
        for status in statuses:
            assert math.isfinite(status.cpu.free)
            assert set(status.cpu.others) in (set(STRATEGIES), set())
    parse_trace(b"".join(export(store, settings, NODES[0], FIRST, FIRST + 1)))
    assert not recwarn.list
