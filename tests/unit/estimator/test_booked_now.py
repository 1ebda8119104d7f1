"""What a scheduler is offered while VMs are replaced: the VMs that are there and what is free, never those that left."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from model.estimator.checkpoint_format import CheckpointCorrupt, decode_node, encode, pack_slice, unpack_slice
from model.publishers.placement.ratio import capacities_of
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import StatusFile, read_status
from model.publishers.status_table import status_objects
from model.replay.dump import DumpRecorder, read_dumps
from model.slices import Slice, usage_of
from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import FIRST, NODES, LiveRun, settings_for, write_slice

CORES, MEMORY_MB = 64.0, 65536.0
#: A full node: all that it has is used, and nothing is free.
FULL = {"cpu": CORES, "mem": MEMORY_MB, "cpu_usage": CORES, "mem_usage": MEMORY_MB}
VM = {"cpu": 4.0, "mem": 4096.0, "cpu_usage": 4.0, "mem_usage": 4096.0}
UNKNOWN = {"oc_cpu": float("nan"), "oc_mem": float("nan")}


class Churn:
    """A full node on which one VM of 4 vCPUs is replaced per slice, and a scheduler that fills what it is offered."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._created = 0
        self.vms: list[str] = []
        self._fill(CORES)

    def _fill(self, capacity: float) -> None:
        while 4.0 * (len(self.vms) + 1) <= capacity:
            self.vms.append(f"vm-{self._created:03}")
            self._created += 1

    def run_slice(self, number: int, capacity: float, more: dict[str, float] | None = None) -> None:
        before = list(self.vms)
        del self.vms[0]
        self._fill(capacity)
        write_slice(self._store, number, FULL, dict.fromkeys(before, VM), at=range(4))
        write_slice(self._store, number, FULL, dict.fromkeys(self.vms, VM), at=range(4, 6))
        write_slice(self._store, number, FULL | (more or {}), dict.fromkeys([] if more else self.vms, VM), at=[6, 7])


def free_and_booked(status: NodeStatus) -> list[tuple[float, float]]:
    """What of CPU, and memory, is free, and what present VMs may keep, for Placement."""
    (capacity,) = capacities_of([status])
    return [(one.free, one.booked_now) for one in (capacity.cpu, capacity.mem) if one is not None]


def offered(status: NodeStatus) -> tuple[float, float]:
    """What Placement would offer of CPU, and memory, if it had allocated enough."""
    cpu, mem = (booked_now + free for free, booked_now in free_and_booked(status))
    assert (cpu, mem) == (status.cpu.ratio * CORES, status.mem.ratio * MEMORY_MB)
    return cpu, mem


@pytest.mark.parametrize("exporter_fails", [False, True])
@pytest.mark.parametrize("strategy", ["percentile", "nsigma", "rclike", "conformal"])
def test_full_node_whose_vms_are_replaced_is_not_offered_more_than_it_has(
    strategy: str, exporter_fails: bool, store: SqliteStore, tmp_path: Path
) -> None:
    """Also when its VMs are unknown at the end of each slice."""
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, [strategy])
    churn, capacity = Churn(store), CORES
    for number in range(FIRST, FIRST + 12):
        churn.run_slice(number, capacity, UNKNOWN if exporter_fails else None)
        (status,) = live.wake(number)
        live.restart()
        assert (status.cpu.free, status.mem.free) == (0.0, 0.0)
        assert status.cpu.last is not None
        assert (status.cpu.last.booked, status.cpu.last.booked_now) == (CORES + 4.0, CORES)
        assert offered(status) == (CORES, MEMORY_MB)
        capacity, _ = offered(status)
    live.stop()


def test_stale_node_offers_what_was_booked_now_in_its_last_slice_with_figures(
    store: SqliteStore, tmp_path: Path
) -> None:
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, ["percentile"])
    idle = FULL | {"cpu_usage": 8.0, "mem_usage": 4096.0}
    write_slice(store, FIRST, idle, {"a": VM, "old": VM}, at=range(4))
    write_slice(store, FIRST, idle, {"a": VM}, at=range(4, 8))
    (fresh,), (stale,) = live.play([FIRST, FIRST + 1])
    assert free_and_booked(fresh) == [(56.0, 4.0), (MEMORY_MB - 4096.0, 4096.0)]
    assert stale.state == "stale"
    assert free_and_booked(stale) == [(0.0, 4.0), (0.0, 4096.0)]
    assert stale.cpu.ratio == 4.0 / CORES


def test_metrics_and_status_file_have_booked_now_beside_booked(store: SqliteStore, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    settings = settings_for(tmp_path, nodes=NODES[:1])
    publishers = {"metrics": EstimatorMetrics(registry, EstimatorCounts()), "file": StatusFile(settings.status, 90)}
    Churn(store).run_slice(FIRST, CORES)
    LiveRun(settings, store, ["percentile"], **publishers).play([FIRST])  # type: ignore[arg-type]
    exported = {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}
    assert exported["scroogevm_node_booked_cpu_cores"] == CORES + 4.0
    assert exported["scroogevm_node_booked_now_cpu_cores"] == CORES
    assert exported["scroogevm_node_booked_now_memory_bytes"] == MEMORY_MB * 2**20
    assert exported["scroogevm_node_cpu_oversubscription_ratio"] == 1.0
    assert exported["scroogevm_node_memory_oversubscription_ratio"] == 1.0
    published = read_status(settings.status.path)[NODES[0]]
    assert (published.cpu.booked, published.cpu.booked_now) == (CORES + 4.0, CORES)
    assert (published.mem.booked, published.mem.booked_now) == (MEMORY_MB + 4096.0, MEMORY_MB)


def test_status_file_of_an_earlier_version_has_no_ratio(store: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, nodes=NODES[:1])
    Churn(store).run_slice(FIRST, CORES)
    LiveRun(settings, store, ["percentile"], file=StatusFile(settings.status, 90)).play([FIRST])
    fields = msgspec.json.decode(settings.status.path.read_bytes())
    assert status_objects(read_status(settings.status.path), 0.0)[0]["cpu"]["ratio"] == 1.0
    for resource in ("cpu", "mem"):
        del fields[NODES[0]][resource]["booked_now"]
    settings.status.path.write_bytes(msgspec.json.encode(fields))
    (node,) = status_objects(read_status(settings.status.path), 0.0)
    assert (node["cpu"]["booked_now"], node["cpu"]["ratio"]) == (None, None)


# --- what earlier versions wrote --------------------------------------------------------------------


def without_booked_now(data: bytes) -> bytes:
    """The checkpoint of a node as the version before wrote it."""
    fields = msgspec.msgpack.decode(data)
    for resource in ("cpu", "mem"):
        if fields["status"][resource]["last"] is not None:
            del fields["status"][resource]["last"]["booked_now"]
    del fields["known"]["alive"], fields["known"]["sums"]
    return msgspec.msgpack.encode(fields)


def test_checkpoint_of_an_earlier_version_goes_on_with_what_it_published(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, nodes=NODES[:1])
    live = LiveRun(settings, store, ["percentile"], recorded=True)
    churn = Churn(store)
    churn.run_slice(FIRST, CORES)
    live.wake(FIRST)
    live.stop()
    with closing(sqlite3.connect(settings.checkpoint_path)) as connection:
        ((data,),) = connection.execute("SELECT data FROM node").fetchall()
        connection.execute("UPDATE node SET data = ?", (without_booked_now(data),))
        for name, number, figures in connection.execute("SELECT name, number, data FROM figures").fetchall():
            fields = msgspec.msgpack.decode(figures)
            del fields["node"]["booked_now_cpu"], fields["node"]["booked_now_mem"]
            connection.execute("UPDATE figures SET data = ?", (msgspec.msgpack.encode(fields),))
            assert (name, number) == (NODES[0], FIRST)
        for position, slice_ in connection.execute("SELECT position, data FROM slice").fetchall():
            packed = msgspec.msgpack.decode(slice_)
            older = [*packed[:3], *(usage[:4] for usage in packed[3:])]
            connection.execute(
                "UPDATE slice SET data = ? WHERE position = ?", (msgspec.msgpack.encode(older), position)
            )
        connection.commit()
    live.start()
    checkpoint = live.checkpoints.node(NODES[0])
    assert checkpoint is not None
    before = checkpoint.status.cpu.last
    assert before is not None
    assert (before.booked, before.booked_now) == (CORES + 4.0, CORES + 4.0)
    # Its VMs are held, all of them.
    write_slice(store, FIRST + 1, FULL | UNKNOWN, {})
    (held,) = live.wake(FIRST + 1)
    assert offered(held) == (CORES + 4.0, MEMORY_MB + 4096.0)
    churn.run_slice(FIRST + 2, CORES)
    (after,) = live.wake(FIRST + 2)
    assert offered(after) == (CORES, MEMORY_MB)
    figures = live.checkpoints.figures(NODES[0])
    live.stop()
    assert not event_log.records
    assert [one.node.get("booked_now_cpu") for one in figures] == [None, CORES + 4.0, CORES]


def test_dump_has_no_booked_now_where_the_checkpoint_lacks_it(store: SqliteStore, tmp_path: Path) -> None:
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, ["percentile"], recorded=True)
    churn = Churn(store)
    for number in range(FIRST, FIRST + 3):
        churn.run_slice(number, CORES)
        live.wake(number)
    figures = live.checkpoints.figures(NODES[0])
    live.stop()
    for key in ("booked_now_cpu", "booked_now_mem"):
        del figures[0].node[key]
    recorder = DumpRecorder(["percentile"], [])
    for one in figures:
        recorder.add(one)
    config = {"node_name": "n", "node_scope": 60, "slice_scope": 60}
    path = tmp_path / "dump.json"
    path.write_bytes(recorder.encode_together(config))
    columns = msgspec.json.decode(path.read_bytes())["node"]
    assert columns["booked_now_cpu"] == [None, CORES, CORES]
    assert columns["booked_now_mem"] == [None, MEMORY_MB, MEMORY_MB]
    assert columns["booked_cpu"] == [CORES + 4.0] * 3
    assert len(read_dumps(path)) == 1


@pytest.mark.parametrize(
    "fields", [{}, {"status": None}, {"status": {"cpu": {"last": {}}}}, {"status": {"cpu": {"last": None}}}]
)
def test_checkpoint_that_no_version_wrote_is_corrupt(fields: Any) -> None:
    with pytest.raises(CheckpointCorrupt):
        decode_node(encode(fields))
    with pytest.raises(CheckpointCorrupt):
        decode_node(b"\xc1")


@pytest.mark.parametrize("alive", [None, [True, False, True]])
def test_vms_alive_survive_the_checkpoint(alive: list[bool] | None) -> None:
    flags = None if alive is None else np.array(alive)
    usage = usage_of(8.0, np.array([1.0]), [2.0, 1.0, np.nan], [np.empty(0)] * 3, flags)
    restored = unpack_slice(pack_slice(Slice(60.0, 0, ("a", "b", "c"), usage, usage)))
    assert restored.alive == (("a", "b", "c") if alive is None else ("a", "c"))
    assert restored.mem.booked_now == usage.booked_now == (3.0 if alive is None else 2.0)
