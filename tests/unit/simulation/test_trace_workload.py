"""Traces to usage series and workloads: means, gaps, arrivals and ends, worked out by hand.

Slices of six hours, steps of one: a day has four slices and 24 steps. 1704067200 is 2024-01-01T00:00:00Z, and
1704067200 / 3600 = 473352 = 19723 x 24.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model.replay.trace import Trace, parse_trace
from model.simulation.trace_workload import replayed_workload, sampled_vms
from model.simulation.workload_file import WorkloadError
from model.slices import CPU, MEMORY

MIDNIGHT = 1_704_067_200
SLICE, HOUR = 21_600, 3600

Samples = Sequence[float | None]


def period(
    k: int, cpu: Samples, mem: Samples | None = None, *, start: float = MIDNIGHT, vcpu: float = 4
) -> dict[str, Any]:
    """Slice k of a VM of 4 vCPUs and 8192 MB; its samples are at the middles of equal parts of the slice.

    Without ``mem`` a half of the memory is used.
    """
    times = [start + k * SLICE + (i + 0.5) * SLICE / len(cpu) for i in range(len(cpu))]
    raw = {"time": times, "cpu": [vcpu], "mem": [8192], "cpu_usage": list(cpu)}
    return raw | {"mem_usage": [4096] * len(cpu) if mem is None else list(mem)}


def make_trace(vms: dict[str, list[dict[str, Any]]], *, start: float = MIDNIGHT, **config: Any) -> Trace:
    """A trace of these VMs; a slice without any of them has no data of the node either."""
    slices = len(next(iter(vms.values())))
    node = [period(k, [1.0] * 6, start=start) if any(raw[k] for raw in vms.values()) else {} for k in range(slices)]
    raw = {
        "config": {"node_name": "n", "node_scope": SLICE, "slice_scope": SLICE, "historical_occurences": 1} | config,
        "epoch": [start + (k + 1) * SLICE for k in range(slices)],
        "node": {"raw_data": node},
        "vm": {name: {"raw_data": periods} for name, periods in vms.items()},
    }
    return parse_trace(json.dumps(raw).encode())


def days(count: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """A VM that uses h / 24 of its 4 vCPUs, and twice that share of 4096 of its 8192 MB, in hour h of each day."""
    hours = [h / 24 for h in range(24)]
    return [
        period(k, [4 * x for x in hours[k % 4 * 6 :][:6]], [8192 * x for x in hours[k % 4 * 6 :][:6]])
        for k in range(first, first + 4 * count)
    ]


def sample(trace: Trace, step_s: float = HOUR) -> tuple[list[list[float]], list[str]]:
    notes: list[str] = []
    return [vm.cpu.tolist() for vm in sampled_vms([trace], step_s, notes.append)], notes


def approx(values: Sequence[float]) -> Any:
    return pytest.approx(list(values), abs=1e-6)


# --- series -------------------------------------------------------------------------------------------


def test_series_are_shares_of_the_size_from_midnight_on() -> None:
    (vm,) = sampled_vms([make_trace({"a": days(2)})], HOUR)
    assert (vm.vcpu, vm.memory_mb) == (4.0, 8192.0)
    assert vm.cpu.dtype == vm.mem.dtype == np.float32
    assert vm.cpu.tolist() == approx([h / 24 for h in range(24)] * 2)
    assert vm.mem.tolist() == approx([h / 24 for h in range(24)] * 2)


def test_a_step_is_the_mean_of_its_samples() -> None:
    """Two samples an hour: 1 and 3 of 4 vCPUs are a half."""
    ((series,), notes) = sample(make_trace({"a": [period(k, [1.0, 3.0] * 6) for k in range(4)]}))
    assert series == [0.5] * 24
    assert notes == []


def test_a_sample_holds_for_the_steps_up_to_the_next_one() -> None:
    """Samples at 1:00, 3:00, 5:00 ... (three a slice) and steps of half an hour: four steps each.

    The first one also counts for the two steps before it.
    """
    trace = make_trace({"a": [period(k, [1.0, 2.0, 4.0]) for k in range(4)]})
    ((series,), notes) = sample(trace, 1800)
    day = ([0.25] * 4 + [0.5] * 4 + [1.0] * 4) * 4
    assert series == [0.25, 0.25, *day[:-2]]
    assert notes == []


def test_usage_above_the_size_counts_as_the_size() -> None:
    """The mean of 3 and 7 is above 4 vCPUs; that of 1 and 5 is 3 of 4."""
    ((series,), _) = sample(make_trace({"a": [period(k, [3.0, 7.0, 1.0, 5.0] * 3) for k in range(4)]}))
    assert series == [1.0, 0.75] * 12


def test_size_is_the_last_one() -> None:
    raw = [period(k, [2.0] * 6, vcpu=4 if k < 2 else 8) for k in range(4)]
    (vm,) = sampled_vms([make_trace({"a": raw})], HOUR)
    assert vm.vcpu == 8.0
    assert vm.cpu.tolist() == [0.25] * 24


def test_usage_in_shares_is_not_divided_again() -> None:
    trace = make_trace({"a": [period(k, [0.5] * 6) for k in range(4)]}, vm_cpu_unit="share")
    assert sample(trace)[0] == [[0.5] * 24]


def test_missing_samples_are_held() -> None:
    """One of 24 is missing: hour 7, between 2.0 and 3.0."""
    raw = [period(k, [2.0] * 6) for k in range(4)]
    raw[1] = period(1, [2.0, None, 3.0, 3.0, 3.0, 3.0])
    ((series,), notes) = sample(make_trace({"a": raw}))
    assert series == [0.5] * 8 + [0.75] * 4 + [0.5] * 12
    assert notes == []


def test_vm_with_many_gaps_is_left_out() -> None:
    """Two of 24 missing samples are 8 %, three are 12.5 %."""
    few, many = ([period(k, [1.0] * 6) for k in range(4)] for _ in range(2))
    few[1] = period(1, [1.0, None, None, 1.0, 1.0, 1.0])
    many[1] = period(1, [1.0, None, None, None, 1.0, 1.0])
    series, notes = sample(make_trace({"few": few, "many": many}))
    assert len(series) == 1
    assert notes == ["1 of 2 VMs left out: more than 10% of their samples are missing"]


def test_samples_without_times_are_spread_over_their_slice() -> None:
    raw = [period(k, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]) for k in range(4)]
    raw[1]["time"] = None
    raw[2]["time"] = raw[2]["time"][:3]
    raw[3]["time"][2] = None
    assert sample(make_trace({"a": raw}))[0] == [([0.25] * 3 + [0.5] * 3) * 4]


def test_slice_in_which_the_node_is_silent_is_a_gap() -> None:
    """Six of 72 hours are held: 8.3 %."""
    raw: list[dict[str, Any]] = [period(k, [1.0] * 5 + [2.0]) for k in range(12)]
    raw[5] = {}
    ((series,), notes) = sample(make_trace({"a": raw, "b": raw}))[0][:1], []
    assert series == ([0.25] * 5 + [0.5]) * 5 + [0.5] * 6 + ([0.25] * 5 + [0.5]) * 6
    assert notes == []


def test_vm_that_is_absent_for_a_slice_is_two_vms() -> None:
    """A day, a slice without it, and a day and a slice again: two series of a day."""
    gone: list[dict[str, Any]] = [period(k, [k / 4] * 6) for k in range(10)]
    gone[4] = {}
    series, notes = sample(make_trace({"a": gone, "stays": [period(k, [1.0] * 6) for k in range(10)]}))
    assert len(series) == 3
    assert series[0] == approx(np.repeat([0, 1, 2, 3], 6) / 16)
    # Slices 5 to 8 at 6:00, 12:00, 18:00 and 0:00 of the next day: the series starts at midnight all the same.
    assert series[1] == approx(np.repeat([8, 5, 6, 7], 6) / 16)
    assert len(series[2]) == 48
    assert notes == []


def test_vm_of_less_than_a_day_is_left_out() -> None:
    short = [{}, *[period(k, [1.0] * 6) for k in (1, 2, 3)]]
    series, notes = sample(make_trace({"short": short, "a": days()}))
    assert len(series) == 1
    assert notes == ["1 of 2 VMs left out: they ran for less than a day"]


def test_vm_without_a_size_or_without_cpu_usage_is_left_out() -> None:
    idle = [period(k, [], [1.0] * 6) for k in range(4)]
    no_size = [period(k, [1.0] * 6) for k in range(4)]
    for raw in no_size:
        del raw["mem"]
    series, notes = sample(make_trace({"idle": idle, "none": no_size, "a": days()}))
    assert len(series) == 1
    assert notes == ["2 of 3 VMs left out: their size or their CPU usage is missing"]


def test_memory_without_samples_counts_as_used() -> None:
    notes: list[str] = []
    (vm,) = sampled_vms([make_trace({"a": [period(k, [1.0] * 6, ()) for k in range(4)]})], HOUR, notes.append)
    assert vm.mem.tolist() == [1.0] * 24
    assert notes == ["1 of 1 VMs without samples of memory usage: all of it counts as used"]


def test_clock_of_the_samples_counts_where_epoch_counts_from_0() -> None:
    """Published traces: epoch 21600, 43200 ..., times of 2024-01-01T06:00Z and on."""
    raw = [period(k, [float(k)] * 6) for k in range(1, 5)]
    trace = make_trace({"a": raw}, start=MIDNIGHT + SLICE)
    trace.epoch[:] = [SLICE * (k + 1) for k in range(4)]
    # The slices at 6:00, 12:00, 18:00, 24:00 use 1, 2, 3, 4 of 4 vCPUs.
    assert sample(trace)[0] == [[1.0] * 6 + [0.25] * 6 + [0.5] * 6 + [0.75] * 6]


def test_series_of_several_traces_follow_one_another() -> None:
    early = make_trace({"a": days()})
    late = make_trace({"b": [period(k, [2.0] * 6) for k in range(4)]}, start=MIDNIGHT)
    assert [vm.cpu.tolist()[-1] for vm in sampled_vms([early, late], HOUR, lambda _: None)] == approx([23 / 24, 0.5])


def test_traces_without_a_usable_vm_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"^no VM of these traces can be used$"):
        sampled_vms([make_trace({"a": days()[:3]})], HOUR, lambda _: None)


@pytest.mark.parametrize("step_s", [0, -300, 7, 100_000, math.nan])
def test_step_is_a_part_of_a_day(step_s: float) -> None:
    with pytest.raises(WorkloadError, match="is not a part of a day"):
        sampled_vms([make_trace({"a": days()})], step_s)


def test_wrong_time_is_named() -> None:
    trace = make_trace({"a": days()})
    trace.epoch[-1] = 1e12
    with pytest.raises(WorkloadError, match=r"^n: more than 1000000 steps of 3600 s"):
        sampled_vms([trace], HOUR)


# --- replay -------------------------------------------------------------------------------------------


def replay(*traces: Trace) -> Any:
    workload = replayed_workload(traces, HOUR, lambda _: None)
    assert workload is not None
    return workload


def test_vms_come_and_go_as_in_the_trace() -> None:
    """b comes in slice 1 with its first sample at 8:00 and leaves after slice 2; a is there all the time."""
    b: list[dict[str, Any]] = [{} for _ in range(4)]
    b[1], b[2] = period(1, [None, None, 1.0, 2.0, 3.0, 4.0], ()), period(2, [1.0] * 6, [2048.0] * 6)
    workload = replay(make_trace({"a": days(), "b": b}))
    assert workload.names == ["a", "b"]
    assert (workload.step_s, workload.duration_s) == (3600.0, 86400.0)
    assert workload.create_s.tolist() == [0.0, 8 * 3600.0]
    assert workload.delete_s.tolist() == [math.inf, 18 * 3600.0]
    both = np.array([0, 1])
    used = workload.usage(CPU, both, 0, 24)
    assert used[0].tolist() == approx([h / 6 for h in range(24)])
    np.testing.assert_array_equal(used[1], [math.nan] * 8 + [1.0, 2.0, 3.0, 4.0] + [1.0] * 6 + [math.nan] * 6)
    # The first memory sample, of 12:00, also counts for the hours before it.
    assert workload.usage(MEMORY, both, 8, 10)[1].tolist() == [2048.0] * 10


def test_vm_that_returns_is_another_one() -> None:
    raw: list[dict[str, Any]] = [period(k, [1.0] * 6) for k in range(4)]
    raw[1] = {}
    workload = replay(make_trace({"a": days(), "b": raw}))
    assert workload.names == ["a", "b", "b#2"]
    assert workload.create_s.tolist() == [0.0, 0.0, 12 * 3600.0]
    assert workload.delete_s.tolist() == [math.inf, 6 * 3600.0, math.inf]


def test_trace_without_arrivals_and_ends_is_not_replayed() -> None:
    assert replayed_workload([make_trace({"a": days(2)})], HOUR, lambda _: None) is None


def test_traces_of_the_same_time_become_one_workload() -> None:
    """The second trace starts six hours later, and its VM of the same name is another one."""
    gone = [*days()[:3], {}]
    later = make_trace({"a": days(first=1)}, start=MIDNIGHT + SLICE)
    workload = replay(later, make_trace({"a": gone, "b": days()}))
    assert workload.names == ["a", "b", "a#2"]
    assert workload.duration_s == 30 * 3600.0
    assert workload.create_s.tolist() == [0.0, 0.0, 6 * 3600.0]
    assert workload.delete_s.tolist() == [18 * 3600.0, math.inf, math.inf]


def test_traces_of_other_times_are_refused() -> None:
    early = make_trace({"a": days()}, node_name="early")
    late = make_trace({"a": days(first=4)}, node_name="late", start=MIDNIGHT + 86400)
    with pytest.raises(WorkloadError, match=r"^the traces are not of the same time: early ends before late starts$"):
        replayed_workload([late, early], HOUR)
