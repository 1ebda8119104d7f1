"""The scan of the history of nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.estimator.bookings import LastConfigs
from model.estimator.slicing import FIELDS, Calendar, SliceReader, SliceRules
from model.estimator.waiting import NODE_WAIT_FIELDS, WAIT_FIELDS
from model.nodemodel import ModelSettings
from model.replay.replay import Replay
from model.replay.trace import read_trace
from model.scan.finding import LEAST_SLICES, POINTS, NodeFinding
from model.scan.scanner import thinned
from model.scan.tasks import ScanPlan, ScanTask, scan_work, slices_of
from model.slices import RESOURCES
from model.store.settings import StoreSettings
from model.store.sqlite import SqliteStore
from tests.support.replays import TINY
from tests.unit.estimator.support import (
    FIRST,
    NODES,
    SLICE_S,
    LiveRun,
    fill,
    scrapes,
    settings_for,
    waiting,
    write_slice,
)

STRATEGIES = ("clt", "nsigma")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(tmp_path / "store.sqlite", 86400)) as made:
        yield made


def plan_of(tmp_path: Path, slices: int = 40, **more: Any) -> ScanPlan:
    return ScanPlan(
        **{
            "model": ModelSettings(1, STRATEGIES, guarded=True),
            "stability": "mean",
            "store": StoreSettings(None, tmp_path / "store.sqlite", 86400),
            "calendar": Calendar(SLICE_S, 3),
            "rules": SliceRules(),
            "first": FIRST,
            "last": FIRST + slices - 1,
            **more,
        }
    )


def scan(plan: ScanPlan, *nodes: str, trace: str = "") -> list[NodeFinding]:
    work = scan_work(plan)
    return [finding for node in nodes for finding in work.run(ScanTask((node,), trace), plan)]


def test_finding_is_what_the_estimator_publishes_at_the_end(store: SqliteStore, tmp_path: Path) -> None:
    store.write([store.encode(sample) for sample in waiting(scrapes(NODES[0], range(FIRST, FIRST + 40)))])
    fill(store, NODES[1:], range(FIRST, FIRST + 40))
    # Each node alone: a scan has no fleet.
    for node, found in zip(NODES, scan(plan_of(tmp_path), *NODES), strict=True):
        folder = tmp_path / str(NODES.index(node))
        folder.mkdir()
        alone = LiveRun(settings_for(folder, nodes=(node,)), store, STRATEGIES, guarded=True)
        *_, (status,) = alone.play(range(FIRST, FIRST + 40))
        for resource in RESOURCES:
            one, published = found.of(resource), status.of(resource)
            assert one is not None
            assert published.last is not None
            assert (one.free, one.booked, one.config) == (
                *(published.free, published.last.booked_now, published.last.config),
            )
            assert one.ratio_safe == published.ratio
            assert one.limits == dict(published.last.limits)
            assert one.others == published.others
            assert one.reason == published.reason
        alone.stop()


def test_history_that_was_read_at_once_gives_the_slices_of_the_estimator(store: SqliteStore, tmp_path: Path) -> None:
    store.write([store.encode(sample) for sample in waiting(scrapes(NODES[0], range(FIRST, FIRST + 40)))])
    plan, known, read_known = plan_of(tmp_path), LastConfigs(), LastConfigs()
    bounds = plan.calendar.bounds_ms(plan.first)[0], plan.calendar.bounds_ms(plan.last)[1]
    period = store.read(NODES[0], *bounds, (*FIELDS, *WAIT_FIELDS, *NODE_WAIT_FIELDS))
    reader = SliceReader(store, plan.calendar, plan.rules, with_vm_samples=True)
    numbers = range(plan.first, plan.last + 1)
    for number, finished in zip(numbers, slices_of(period, numbers, plan, known), strict=True):
        expected = reader.read(NODES[0], number, read_known)
        assert (finished.end_s, finished.vms, finished.alive) == (expected.end_s, expected.vms, expected.alive)
        for one, other in ((finished.cpu, expected.cpu), (finished.mem, expected.mem)):
            np.testing.assert_array_equal(one.node, other.node)
            np.testing.assert_array_equal(one.vm_usage, other.vm_usage)
            assert (one.booked, one.booked_now, one.missing) == (other.booked, other.booked_now, other.missing)
        assert repr(finished.waits) == repr(expected.waits)


def test_trace_gives_what_its_replay_publishes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, store=None)
    (found,) = scan(plan, "tiny", trace=str(TINY))
    trace = read_trace(TINY)
    settings = ModelSettings(trace.config.historical, STRATEGIES, guarded=True)
    published: list[float] = []
    measured: list[bool] = []
    # A node's turn to offer more depends on its name, which is that of the file in a scan.
    (renamed,) = scan(plan, trace.config.node_name, trace=str(TINY))
    Replay(trace, settings).run(
        lambda _, estimate: published.append(estimate.cpu.by_strategy["clt"].published),
        lambda finished, _: measured.append(finished.cpu.measured),
    )
    assert renamed.cpu is not None
    assert renamed.cpu.free == published[-1]
    assert renamed.cpu.slices == sum(measured)
    assert found.node == "tiny"


def test_node_that_is_silent_in_the_end_has_nothing_free_and_a_reason(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES[:1], range(FIRST, FIRST + 20))
    (found,) = scan(plan_of(tmp_path, slices=22), NODES[0])
    assert found.cpu is not None
    assert (found.cpu.free, found.cpu.reason, found.severity) == (0.0, "no samples", "unsure")
    assert found.cpu.capacity == found.cpu.booked


def test_node_without_samples_is_an_error_that_harms_no_other(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES[:1], range(FIRST, FIRST + 10))
    found = scan(plan_of(tmp_path, slices=10), "http://nobody", NODES[0])
    assert [one.error for one in found] == ["no confirmed samples", ""]
    broken = plan_of(tmp_path, store=StoreSettings(None, tmp_path / "nowhere" / "none.sqlite", 86400))
    (unreadable,) = scan(broken, NODES[0])
    assert unreadable.error


def test_invalid_trace_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"config": {}}')
    (found,) = scan(plan_of(tmp_path, store=None), "bad", trace=str(path))
    assert found.error
    assert "\n" not in found.error
    assert found.severity == "unsure"


def test_vms_that_drive_the_peak_are_named(store: SqliteStore, tmp_path: Path) -> None:
    vm = {"cpu": 8.0, "mem": 1024.0, "cpu_usage": 0.5, "mem_usage": 100.0}
    node = {"cpu": 32.0, "mem": 65536.0, "cpu_usage": 5.0, "mem_usage": 9000.0}
    for number in range(FIRST, FIRST + 12):
        busy = number == FIRST + 7
        vms = {"calm": vm, "busy": {**vm, "cpu_usage": 7.5 if busy else 0.1}}
        write_slice(store, number, {**node, "cpu_usage": 12.0 if busy else 5.0}, vms)
    (found,) = scan(plan_of(tmp_path, slices=12), NODES[0])
    assert found.cpu is not None
    assert (found.cpu.peak, found.cpu.peak_s) == (12.0, (FIRST + 8) * SLICE_S)
    assert [(one.name, one.used, one.config) for one in found.cpu.top] == [("busy", 7.5, 8.0), ("calm", 0.5, 8.0)]


def test_severity_needs_enough_slices(store: SqliteStore, tmp_path: Path) -> None:
    vm = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": 0.5, "mem_usage": 100.0}
    node = {"cpu": 32.0, "mem": 65536.0, "cpu_usage": 2.0, "mem_usage": 9000.0}
    numbers = range(FIRST, FIRST + LEAST_SLICES + 2)
    for number in numbers:
        write_slice(store, number, node, {"a": vm, "b": vm}, at=range(0, 8))
    (short,) = scan(plan_of(tmp_path, slices=LEAST_SLICES - 1), NODES[0])
    (long,) = scan(plan_of(tmp_path, slices=len(numbers)), NODES[0])
    assert (short.severity, long.severity) == ("unsure", "room")


def test_series_keep_the_worst_of_what_they_join() -> None:
    points = [(float(i), float(i % 7), 2.0, 10.0 - i % 5) for i in range(3 * POINTS)]
    times, peaks, booked, capacity = thinned(points)
    assert len(times) == POINTS
    assert times[-1] == points[-1][0]
    assert (max(peaks), min(capacity), set(booked)) == (6.0, 6.0, {2.0})
    assert thinned(points[:3]) == tuple(zip(*points[:3], strict=True))
    assert thinned([]) == ((), (), (), ())
