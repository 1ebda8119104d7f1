"""A live run on samples with waits publishes what a replay of their export computes, level by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from model.contention import Contention, Level, measure
from model.estimates import NodeEstimate
from model.estimator.bookings import LastConfigs
from model.estimator.checkpoint_format import decode_node, encode
from model.estimator.slicing import SliceReader
from model.estimator.trace_export import export
from model.guards import turn_of
from model.nodemodel import ModelSettings, ModelState, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.trace import Trace, parse_trace
from model.slices import RESOURCES, Slice
from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.conftest import strict_json
from tests.unit.estimator.support import DETECTORS, FIRST, NODES, LiveRun, scrapes, settings_for, waiting, write_slice

NUMBERS = range(FIRST, FIRST + 40)
NAMES = ("clt", "conformal", "nsigma", "percentile")


@pytest.fixture(scope="module")
def contended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path_factory.mktemp("contended") / "store.sqlite", 10**8)
    made.write([made.encode(sample) for sample in waiting(scrapes(NODES[0], NUMBERS))])
    yield made
    made.close()


def exported(store: SqliteStore, folder: Path, numbers: Sequence[int] = NUMBERS) -> bytes:
    return b"".join(export(store, settings_for(folder, nodes=NODES[:1]), NODES[0], numbers[0], numbers[-1]))


@pytest.fixture(scope="module")
def trace(contended: SqliteStore, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return parse_trace(exported(contended, tmp_path_factory.mktemp("trace")))


def estimates_of(trace: Trace, *strategies: str) -> list[NodeEstimate]:
    model = NodeModel(ModelSettings(1, strategies, positions=3, guarded=True), DETECTORS, turn_of(NODES[0]))
    return [model.update(finished) for finished in trace.slices()]


def test_guarded_figures_and_levels_are_those_of_the_replay(
    contended: SqliteStore, trace: Trace, tmp_path: Path
) -> None:
    """Restarted after every slice, so that all of it is in the checkpoint."""
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), contended, NAMES, guarded=True).play(NUMBERS, restart=True)
    replayed = Replay(trace, ModelSettings(1, NAMES, guarded=True), DETECTORS).run().recorder.histories(3)
    levels = set()
    for statuses, estimate in zip(live, estimates_of(trace, *NAMES), strict=True):
        for resource in RESOURCES:
            status = statuses[0].of(resource)
            if status.state != "ok" or status.last is None:
                continue
            assert status.contention == estimate.of(resource).contention
            one = estimate.of(resource).by_strategy[NAMES[0]]
            assert (status.free, status.last.closed, dict(status.last.limits)) == (
                one.published,
                one.closed,
                one.limits,
            )
            levels.add((resource.name, status.contention.level))
    assert levels == {(resource.name, level) for resource in RESOURCES for level in Level}
    for name in NAMES:
        for resource in RESOURCES:
            published = [statuses[0].of(resource).others.get(name, 0.0) for statuses in live]
            assert published == replayed[name, resource.name].published.tolist(), (name, resource.name)
    assert sum(free > 0 for (one,) in live for free in one.cpu.others.values()) > 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bare_figures_are_those_of_the_replay(
    strategy: str, contended: SqliteStore, trace: Trace, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, nodes=NODES[:1])
    live = LiveRun(settings, contended, [strategy]).play(NUMBERS[:20])
    histories = Replay(trace, ModelSettings(1, (strategy,)), DETECTORS).run().recorder.histories(3)
    for resource in RESOURCES:
        published = [statuses[0].of(resource).free for statuses in live]
        assert published == histories[strategy, resource.name].published.tolist()[:20]


def test_slices_of_the_trace_are_those_of_the_store(contended: SqliteStore, trace: Trace, tmp_path: Path) -> None:
    settings, known = settings_for(tmp_path), LastConfigs()
    reader = SliceReader(contended, settings.calendar, settings.rules, with_vm_samples=True)
    rules = ModelSettings(1, NAMES).contention
    waited = 0
    for number, replayed in zip(NUMBERS, trace.slices(), strict=True):
        stored = reader.read(NODES[0], number, known)
        assert replayed.vms == stored.vms
        for resource in RESOURCES:
            assert measure(resource, replayed, rules) == measure(resource, stored, rules)
            assert_same(replayed, stored)
        waited += stored.waits is not None
    assert waited > 20


def assert_same(replayed: Slice, stored: Slice) -> None:
    one, other = replayed.cpu.demand, stored.cpu.demand
    np.testing.assert_array_equal(one.node, other.node)
    for i in range(len(stored.vms)):
        rows = [usage.vm_usage[i][~np.isnan(usage.vm_usage[i])] for usage in (one, other)]
        np.testing.assert_array_equal(*rows)


def test_unit_of_an_export_is_that_of_the_store(store: SqliteStore, tmp_path: Path) -> None:
    vm = {"cpu": 2.0, "mem": 2048.0, "cpu_usage": 1.0, "mem_usage": 512.0, "cpu_wait": 0.25, "cpu_wait_share": 0.2}
    other = {"cpu": 2.0, "mem": 2048.0, "cpu_usage": 0.5, "mem_usage": 512.0}
    node = {"cpu": 8.0, "mem": 16384.0, "cpu_usage": 2.0, "mem_usage": 1024.0, "psi_cpu": 0.125, "oom_kills": 0.0}
    write_slice(store, FIRST, node, {"a": vm, "b": other})
    # After a gap the last rate counts four times.
    write_slice(store, FIRST + 1, node, {"a": vm}, at=range(4))
    write_slice(store, FIRST + 1, node | {"elapsed_time": 30_000.0}, {"a": vm | {"cpu_wait": 0.5}}, at=[7])
    # Nothing is measured any more.
    write_slice(store, FIRST + 2, {name: node[name] for name in ("cpu", "mem", "cpu_usage")}, {"b": other})
    raw = strict_json(exported(store, tmp_path, range(FIRST, FIRST + 3)))
    first, second, third = raw["node"]["raw_data"]
    assert (first["cpu_demand"], first["psi_cpu"], first["oom_kills"]) == ([2.25] * 8, [0.125] * 8, [0.0] * 8)
    assert not {"psi_memory", "swap_in", "cpu_wait", "cpu_wait_share"} & {*first}
    assert second["cpu_demand"] == [2.25] * 4 + [2.5] * 4
    assert not {"cpu_demand", "psi_cpu"} & {*third}
    of_a, of_b = (raw["vm"][name]["raw_data"] for name in "ab")
    assert (of_a[0]["cpu_wait"], of_a[0]["cpu_wait_share"], of_a[0]["cpu_demand"]) == (
        [0.25] * 8,
        [0.2] * 8,
        [1.25] * 8,
    )
    assert (of_a[1]["cpu_demand"], of_a[1]["cpu_usage"]) == ([1.25] * 4 + [1.5] * 4, [1.0] * 8)
    assert of_a[1]["cpu_wait"] == [0.25] * 4 + [0.5], "at every sample"
    assert of_b[0]["cpu_demand"] == of_b[0]["cpu_usage"]
    assert not {"cpu_demand", "cpu_wait", "cpu_wait_share"} & {*of_b[2]}


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 1e15, -5.0])
@pytest.mark.parametrize("field", ["cpu_wait", "cpu_wait_share"])
def test_impossible_wait_of_a_vm_costs_no_slice(
    field: str, value: float, store: SqliteStore, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    assert published_with(store, tmp_path, {field: value}, {}) <= published_without(tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize("field", ["cpu_wait", "psi_cpu", "psi_memory", "swap_in", "oom_kills"])
@pytest.mark.parametrize("value", [math.inf, 1e300, -5.0])
def test_impossible_figure_of_a_node_costs_no_slice(
    field: str, value: float, store: SqliteStore, tmp_path: Path
) -> None:
    assert published_with(store, tmp_path, {}, {field: value}) == published_without(tmp_path)


def published_with(
    store: SqliteStore, folder: Path, odd_vm: dict[str, float], odd_node: dict[str, float]
) -> list[list[float]]:
    """What is published of three slices of which the second has odd figures."""
    node = {"cpu": 16.0, "mem": 65536.0, "cpu_usage": 2.0, "mem_usage": 1e4}
    vm = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": 1.0, "mem_usage": 500.0}
    if odd_vm:
        vm |= {"cpu_wait": 0.0, "cpu_wait_share": 0.0}
    for k in range(3):
        odd = k == 1
        write_slice(store, FIRST + k, node | (odd_node if odd else {}), {"a": vm | (odd_vm if odd else {})})
    live = LiveRun(settings_for(folder, nodes=NODES[:1]), store, NAMES, guarded=True)
    statuses = live.play(range(FIRST, FIRST + 3))
    assert live.scheduler.counts.failures == 0
    assert [status.cpu.state for (status,) in statuses] == ["ok"] * 3
    assert all(math.isfinite(free) for (status,) in statuses for free in status.cpu.others.values())
    return [list(status.cpu.others.values()) for (status,) in statuses]


def published_without(folder: Path) -> list[list[float]]:
    store = SqliteStore(folder / "plain.sqlite", 86400)
    try:
        return published_with(store, folder / "plain", {}, {})
    finally:
        store.close()


def test_checkpoint_of_a_version_without_contention_is_continued(contended: SqliteStore, tmp_path: Path) -> None:
    """Its statuses and states lack it."""
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), contended, NAMES, guarded=True)
    for number in NUMBERS[:3]:
        (status,) = live.wake(number)
    checkpoint = live.checkpoints.node(NODES[0])
    live.stop()
    older = msgspec.msgpack.decode(encode(checkpoint))
    for resource in ("cpu", "mem"):
        del older["common"][resource]["contention"]
        for one in older["common"][resource]["published"].values():
            del one["capacity"]
        last = older["status"][resource]["last"]
        del last["contention"], last["used"]
    restored = decode_node(msgspec.msgpack.encode(older))
    assert restored.status == without_contention(status)
    assert restored.status.cpu.contention.level is Level.NONE
    model = NodeModel(ModelSettings(1, NAMES, positions=3, guarded=True), DETECTORS)
    state = model.state(0)
    model.restore(ModelState(restored.model, state.position), 0, [])
    assert model.state(0).node["cpu"]["condition"] == restored.model["cpu"]["condition"]


def without_contention(status: NodeStatus) -> NodeStatus:
    cpu, mem = (
        replace(one, last=replace(one.last, contention=Contention(), used=None)) if one.last else one
        for one in (status.cpu, status.mem)
    )
    return replace(status, cpu=cpu, mem=mem)
