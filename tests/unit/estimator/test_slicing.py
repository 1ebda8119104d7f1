"""Slices from stored samples: what is not confirmed is missing, and the node is stale with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from model.estimator.bookings import LastConfigs
from model.estimator.slicing import Calendar, SliceReader, SliceRules
from model.estimator.trace_export import export
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.trace import parse_trace
from model.slices import CPU, MEMORY, RESOURCES, Slice
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import DETECTORS, FIRST, NODES, SLICE_S, LiveRun, settings_for, write_slice

NODE = {"cpu": 32.0, "mem": 65536.0, "cpu_usage": 4.0, "mem_usage": 8192.0}
VM = {"cpu": 2.0, "mem": 2048.0, "cpu_usage": 1.0, "mem_usage": 512.0}


def read(store: SqliteStore, number: int = FIRST, known: LastConfigs | None = None, **rules: float) -> Slice:
    calendar = Calendar(SLICE_S, 3)
    reader = SliceReader(store, calendar, SliceRules(**rules), with_vm_samples=True)  # type: ignore[arg-type]
    return reader.read(NODES[0], number, known or LastConfigs())


def missing(finished: Slice) -> tuple[str, str]:
    assert all(bool(finished.usage(one).missing) == (finished.usage(one).node.size == 0) for one in RESOURCES)
    return finished.cpu.missing, finished.mem.missing


# --- samples ----------------------------------------------------------------------------------------


def test_slice_that_is_covered_has_all_its_samples(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM})
    finished = read(store)
    assert missing(finished) == ("", "")
    assert finished.cpu.node.tolist() == [4.0] * 8
    assert (finished.cpu.booked, finished.mem.booked) == (2.0, 2048.0)


def test_rate_after_a_gap_counts_as_often_as_the_rates_that_are_missing(store: SqliteStore) -> None:
    """A node that does not respond while it is busy must not look idle."""
    write_slice(store, FIRST, NODE, {"a": VM}, at=[0, 1, 2, 3])
    busy = {"cpu_usage": 30.0, "elapsed_time": 4 * 7500.0}
    write_slice(store, FIRST, NODE | busy, {"a": VM | {"cpu_usage": 2.0}}, at=[7])
    finished = read(store)
    assert finished.cpu.node.tolist() == [4.0] * 4 + [30.0] * 4
    assert finished.cpu.vm_usage[0].tolist() == [1.0] * 4 + [2.0] * 4


def test_rate_does_not_cover_the_time_before_its_slice(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE | {"cpu_usage": 30.0, "elapsed_time": 600_000.0}, {}, at=[0])
    write_slice(store, FIRST, NODE, {}, at=range(1, 8))
    assert read(store).cpu.node.tolist() == [30.0] + [4.0] * 7


@pytest.mark.parametrize(
    ("at", "cpu", "mem"),
    [
        ([0, 1, 2], "3 valid samples, at least 4 are needed", "3 valid samples, at least 4 are needed"),
        ([4, 5, 6, 7], "valid samples cover 50 % of it", "valid samples cover 88 % of it"),
        ([0, 1, 2, 3], "valid samples cover 50 % of it", "valid samples cover 50 % of it"),
        ([0, 1, 2, 3, 4, 5, 6], "", ""),
    ],
)
def test_slice_with_few_samples_or_a_long_gap_has_no_figures(
    store: SqliteStore, at: list[int], cpu: str, mem: str
) -> None:
    write_slice(store, FIRST, NODE, {"a": VM}, at=at)
    assert read(store).cpu.missing == cpu
    if len(at) != 4 or at[0] == 0:
        assert read(store).mem.missing == mem


def test_number_of_needed_samples_is_a_setting(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {})
    assert missing(read(store, min_samples=8)) == ("", "")
    assert missing(read(store, min_samples=9)) == ("8 valid samples, at least 9 are needed",) * 2


@pytest.mark.parametrize(
    ("resource", "value"),
    [("cpu", -1.0), ("cpu", 50.0), ("cpu", 1e300), ("mem", -1.0), ("mem", 65538.0), ("mem", 1e300)],
)
def test_impossible_usage_does_not_count(store: SqliteStore, resource: str, value: float) -> None:
    for number, wrong in ((FIRST, [1]), (FIRST + 1, [1, 2, 3])):
        write_slice(store, number, NODE, {}, at=[i for i in range(8) if i not in wrong])
        write_slice(store, number, NODE | {f"{resource}_usage": value}, {}, at=wrong)
    finished = read(store)
    assert (finished.cpu.node.size, finished.mem.node.size) == ((7, 8) if resource == "cpu" else (8, 7))
    assert missing(finished) == ("", "")
    usage = read(store, FIRST + 1).usage(CPU if resource == "cpu" else MEMORY)
    assert usage.missing == "valid samples cover 62 % of it"


def test_repeated_samples_are_bounded(store: SqliteStore) -> None:
    """A node whose interval is one millisecond, and then a gap of nearly the whole slice."""
    write_slice(store, FIRST, NODE | {"elapsed_time": 1.0}, {}, at=range(7))
    write_slice(store, FIRST, NODE | {"elapsed_time": 59_000.0}, {}, at=[7])
    assert 1000 < read(store).cpu.node.size <= 2010


# --- sizes ------------------------------------------------------------------------------------------


def test_larger_size_counts_once_it_lasts_for_a_slice(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {}, at=[0])
    write_slice(store, FIRST, NODE | {"cpu": 64.0, "mem": 2.0**26}, {}, at=range(1, 8))
    write_slice(store, FIRST + 1, NODE | {"cpu": 64.0}, {})
    known = LastConfigs()
    first, second = read(store, FIRST, known), read(store, FIRST + 1, known)
    assert (first.cpu.config, first.mem.config) == (32.0, 65536.0)
    assert second.cpu.config == 64.0


def test_node_without_a_capacity_has_no_figures(store: SqliteStore) -> None:
    write_slice(store, FIRST, {"cpu_usage": 4.0, "mem": 65536.0, "mem_usage": 1.0, "oc_cpu": 0.0}, {})
    assert missing(read(store)) == ("the capacity of the node is unknown", "")


# --- VMs --------------------------------------------------------------------------------------------

UNKNOWN = {"oc_cpu": math.nan, "oc_mem": math.nan}


def test_last_known_vms_count_for_a_time_and_then_the_node_is_stale(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM})
    for k in (1, 2, 3):
        write_slice(store, FIRST + k, NODE | UNKNOWN, {})
    write_slice(store, FIRST + 4, NODE, {"a": VM})
    known = LastConfigs()
    slices = [read(store, FIRST + k, known, vm_hold_s=120.0) for k in range(5)]
    assert [one.vms for one in slices] == [("a", "b"), ("a", "b"), ("a", "b"), ("a", "b"), ("a",)]
    assert [one.cpu.booked for one in slices[:3]] == [4.0] * 3
    problem = "the allocations of its VMs are unknown for 180 s"
    assert [missing(one) for one in slices] == [("", "")] * 3 + [(problem, problem), ("", "")]
    # Their usage is not known: their allocations count.
    assert np.isnan(slices[1].cpu.vm_usage).all()


def test_vms_that_were_never_known_make_the_node_stale(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE | UNKNOWN, {})
    assert missing(read(store)) == ("the allocations of its VMs are unknown",) * 2


def test_allocation_of_one_vm_that_stays_unknown_makes_its_resource_stale(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM})
    odd = {"mem": 2048.0, "mem_usage": 512.0}
    write_slice(store, FIRST + 1, NODE | {"oc_cpu": math.nan}, {"a": VM, "odd": odd})
    write_slice(store, FIRST + 2, NODE | {"oc_cpu": math.nan}, {"a": VM, "odd": odd})
    known = LastConfigs()
    slices = [read(store, FIRST + k, known, vm_hold_s=60.0) for k in range(3)]
    assert [missing(one)[0] for one in slices] == ["", "", "the allocations of its VMs are unknown for 120 s"]
    assert [missing(one)[1] for one in slices] == [""] * 3


def test_missing_allocation_of_a_known_vm_is_the_one_before(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM})
    write_slice(store, FIRST + 1, NODE | {"oc_cpu": math.nan}, {"a": {"mem": 2048.0}})
    known = LastConfigs()
    assert [read(store, FIRST + k, known).cpu.booked for k in range(2)] == [2.0, 2.0]


def test_vms_that_the_store_lacks_are_noticed(store: SqliteStore) -> None:
    """InfluxDB rejects points, for example because of a name; the sum of the allocations is with the node."""
    write_slice(store, FIRST, NODE | {"oc_cpu": 10 / 32, "oc_mem": 2048 / 65536}, {"a": VM})
    assert missing(read(store)) == ("the store lacks the allocations of some of its VMs", "")


def test_vm_whose_allocation_becomes_unknown_counts_as_before(store: SqliteStore) -> None:
    """A new VM may get the name of an old one, as the probe deletes "-": then neither has an allocation."""
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM})
    write_slice(store, FIRST + 1, NODE | UNKNOWN, {"a": VM, "b": {"cpu_usage": 1.0}})
    write_slice(store, FIRST + 2, NODE | UNKNOWN, {"a": VM})
    known = LastConfigs()
    slices = [read(store, FIRST + k, known) for k in range(3)]
    assert [one.vms for one in slices] == [("a", "b")] * 3
    assert [one.cpu.booked for one in slices] == [4.0] * 3


def test_vms_that_the_store_lacks_for_a_while_count_as_before(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM})
    write_slice(store, FIRST + 1, NODE | {"oc_cpu": 4 / 32, "oc_mem": 4096 / 65536}, {"a": VM})
    write_slice(store, FIRST + 2, NODE, {"a": VM})
    known = LastConfigs()
    assert [read(store, FIRST + k, known).cpu.booked for k in range(3)] == [4.0, 4.0, 2.0]


def test_slice_with_less_than_half_of_the_usual_samples_has_no_figures(store: SqliteStore) -> None:
    """Rates over long gaps hide the peaks within."""
    write_slice(store, FIRST, NODE, {})
    for number in range(FIRST + 1, FIRST + 4):
        write_slice(store, number, NODE | {"elapsed_time": 20_000.0}, {}, at=[2, 5, 7])
    known = LastConfigs()
    slices = [read(store, FIRST + k, known, min_samples=1) for k in range(4)]
    assert slices[1].cpu.missing == "3 valid samples, at least 4 are needed"
    # An interval that stays longer becomes the usual one.
    assert [bool(one.cpu.node.size) for one in slices] == [True, False, True, True]


def test_vm_counts_with_its_allocation_when_its_samples_are_few(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM}, at=range(3))
    write_slice(store, FIRST, NODE, {"a": VM, "late": VM}, at=range(3, 8))
    finished = read(store)
    assert finished.vms == ("a", "late")
    assert np.isnan(finished.cpu.vm_usage[1]).all()
    assert not np.isnan(finished.cpu.vm_usage[0]).any()


def test_vm_that_left_counts_with_its_samples_until_then(store: SqliteStore) -> None:
    for number, later in ((FIRST, NODE), (FIRST + 1, NODE | UNKNOWN)):
        write_slice(store, number, NODE, {"a": VM}, at=range(5))
        write_slice(store, number, later, {}, at=range(5, 8))
    left, unknown = read(store), read(store, FIRST + 1)
    assert left.vms == unknown.vms == ("a",)
    assert np.count_nonzero(~np.isnan(left.cpu.vm_usage[0])) == 5
    # When its exporter fails, the end of its samples is not known to be its own.
    assert np.isnan(unknown.cpu.vm_usage).all()


# --- booked now -------------------------------------------------------------------------------------


def alive(store: SqliteStore, *numbers: int, **rules: float) -> list[tuple[str, ...]]:
    """The VMs that are alive at the end of each slice; the same whether the samples of VMs are read or not."""
    found = []
    for with_vm_samples in (True, False):
        reader = SliceReader(store, Calendar(SLICE_S, 3), SliceRules(**rules), with_vm_samples=with_vm_samples)  # type: ignore[arg-type]
        known = LastConfigs()
        slices = [reader.read(NODES[0], number, known) for number in numbers]
        for one in slices:
            allocated = dict(zip(one.vms, one.cpu.vm_config.tolist(), strict=True))
            assert one.cpu.booked_now == sum(allocated[name] for name in one.alive)
        found.append([one.alive for one in slices])
    assert found[0] == found[1]
    return found[0]


def test_vm_that_was_replaced_within_a_slice_is_booked_but_not_booked_now(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "old": VM}, at=range(4))
    write_slice(store, FIRST, NODE, {"a": VM, "new": VM}, at=range(4, 8))
    finished = read(store)
    assert finished.vms == ("a", "new", "old")
    assert (finished.cpu.booked, finished.cpu.booked_now) == (6.0, 4.0)
    assert (finished.mem.booked, finished.mem.booked_now) == (6144.0, 4096.0)
    assert alive(store, FIRST) == [("a", "new")]


def test_node_whose_last_vm_left_has_nothing_booked_now(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM}, at=range(7))
    write_slice(store, FIRST, NODE, {}, at=[7])
    assert (read(store).cpu.booked, read(store).cpu.booked_now) == (2.0, 0.0)


def test_vms_that_are_unknown_at_the_end_are_alive_as_when_they_were_known_last(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "left": VM}, at=range(3))
    write_slice(store, FIRST, NODE, {"a": VM}, at=range(3, 6))
    write_slice(store, FIRST, NODE | UNKNOWN, {}, at=range(6, 8))
    write_slice(store, FIRST + 1, NODE | UNKNOWN, {})
    write_slice(store, FIRST + 2, NODE, {"a": VM, "b": VM})
    assert alive(store, *range(FIRST, FIRST + 3)) == [("a",), ("a",), ("a", "b")]
    known = LastConfigs()
    booked = [read(store, FIRST + k, known).cpu for k in range(3)]
    assert [(one.booked, one.booked_now) for one in booked] == [(4.0, 2.0), (4.0, 2.0), (4.0, 4.0)]


def test_vm_that_appears_after_the_sum_was_known_last_does_not_raise_booked_now(store: SqliteStore) -> None:
    """It may have replaced one whose allocation is unknown at the end."""
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM}, at=range(4))
    write_slice(store, FIRST, NODE | UNKNOWN, {"a": VM, "b": VM, "new": VM}, at=range(4, 8))
    write_slice(store, FIRST + 1, NODE | UNKNOWN, {"a": VM, "new": VM, "other": VM})
    write_slice(store, FIRST + 2, NODE | UNKNOWN, {"a": VM | {"cpu": 8.0}})
    # The VMs that are held keep their state; "a" alone exceeds the last known sum.
    assert alive(store, *range(FIRST, FIRST + 3)) == [("a", "b"), ("a", "new"), ("new",)]


def test_vm_that_the_store_lacks_is_alive_while_the_sum_has_room_for_it(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM})
    write_slice(store, FIRST + 1, NODE | {"oc_cpu": 4 / 32, "oc_mem": 4096 / 65536}, {"a": VM})
    write_slice(store, FIRST + 2, NODE | {"oc_cpu": 4 / 32, "oc_mem": 4096 / 65536}, {"a": VM, "c": VM})
    assert alive(store, *range(FIRST, FIRST + 3)) == [("a", "b"), ("a", "b"), ("a", "c")]


def test_sum_of_one_resource_that_stays_unknown_does_not_bound_the_other_one_for_ever(store: SqliteStore) -> None:
    odd = {"mem": 2048.0, "mem_usage": 512.0}
    write_slice(store, FIRST, NODE, {"a": VM})
    for k in (1, 2):
        write_slice(store, FIRST + k, NODE | {"oc_cpu": math.nan}, {"a": VM, "b": VM, "odd": odd})
    known = LastConfigs()
    slices = [read(store, FIRST + k, known, vm_hold_s=60.0) for k in range(3)]
    assert [one.mem.booked_now for one in slices] == [2048.0, 4096.0, 6144.0]
    assert slices[1].cpu.booked_now == 2.0
    assert slices[2].cpu.missing


def test_replay_of_an_export_has_the_vms_alive_of_the_live_slices(store: SqliteStore, tmp_path: Path) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "old": VM}, at=range(4))
    write_slice(store, FIRST, NODE, {"a": VM, "new": VM}, at=range(4, 6))
    write_slice(store, FIRST, NODE | UNKNOWN, {}, at=range(6, 8))
    write_slice(store, FIRST + 1, NODE | UNKNOWN, {})
    write_slice(store, FIRST + 2, NODE, {"new": VM}, at=range(5))
    write_slice(store, FIRST + 2, NODE, {}, at=range(5, 8))
    numbers = range(FIRST, FIRST + 3)
    settings = settings_for(tmp_path, nodes=NODES[:1])
    trace = parse_trace(b"".join(export(store, settings, NODES[0], numbers[0], numbers[-1])))
    assert [one.alive for one in trace.slices()] == alive(store, *numbers) == [("a", "new"), ("a", "new"), ()]


# --- the published figure ---------------------------------------------------------------------------


def test_reason_is_published_and_logged_once(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, ["percentile"])
    write_slice(store, FIRST, NODE, {"a": VM})
    for k in (1, 2):
        write_slice(store, FIRST + k, NODE, {"a": VM}, at=[0, 1])
    write_slice(store, FIRST + 3, NODE, {"a": VM})
    statuses = [live.wake(FIRST + k)[0] for k in range(4)]
    live.stop()
    assert [status.state for status in statuses] == ["ok", "stale", "stale", "ok"]
    assert [status.cpu.free for status in statuses] == [28.0, 0.0, 0.0, 28.0]
    assert statuses[1].cpu.reason == "2 valid samples, at least 4 are needed"
    assert statuses[3].cpu.reason == ""
    first, second = [record.getMessage() for record in event_log.records]
    start = f"samples of {NODES[0]}: 2 valid samples, at least 4 are needed in the slice that ended at "
    assert first.startswith(start)
    assert second == f"samples of {NODES[0]}: recovered"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_published_free_is_never_more_than_the_node_has(strategy: str, store: SqliteStore, tmp_path: Path) -> None:
    """The threshold of doa falls below zero."""
    idle = NODE | {"cpu_usage": 0.0, "mem_usage": 0.0}
    for k in range(40):
        write_slice(store, FIRST + k, idle, {})
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, [strategy])
    statuses = [live.wake(FIRST + k)[0] for k in range(40)]
    live.stop()
    assert max(status.cpu.free for status in statuses) <= 32.0
    assert max(status.mem.free for status in statuses) <= 65536.0
    assert all((status.cpu.last.tier0 if status.cpu.last else 0) >= 0 for status in statuses)


def test_replay_of_slices_that_are_not_confirmed_gives_the_live_figures(store: SqliteStore, tmp_path: Path) -> None:
    write_slice(store, FIRST, NODE, {"a": VM, "b": VM})
    write_slice(store, FIRST + 1, NODE | UNKNOWN, {})
    write_slice(store, FIRST + 2, NODE, {"a": VM}, at=[0, 1, 2])
    write_slice(store, FIRST + 3, NODE, {"a": VM}, at=[0, 1, 2, 3])
    write_slice(store, FIRST + 3, NODE | {"cpu_usage": 30.0, "elapsed_time": 30_000.0}, {"a": VM}, at=[7])
    write_slice(store, FIRST + 4, NODE | {"cpu": 64.0}, {"a": VM, "late": VM}, at=range(1, 8))
    settings = settings_for(tmp_path, nodes=NODES[:1])
    live = LiveRun(settings, store).play(range(FIRST, FIRST + 5))
    trace = parse_trace(b"".join(export(store, settings, NODES[0], FIRST, FIRST + 4)))
    recorder = Replay(trace, ModelSettings(settings.historical, tuple(STRATEGIES)), DETECTORS).run().recorder
    for (name, resource), history in recorder.histories(3).items():
        published = [getattr(node, resource).others.get(name, 0.0) for (node,) in live]
        assert published == history.published.tolist(), (name, resource)
