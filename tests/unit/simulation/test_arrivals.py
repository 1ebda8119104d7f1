"""Arrivals without usage, joined with the usage of sampled VMs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from model.simulation.arrivals import ArrivalList, arrivals_between, join_usage, steps_of_day, unique_names
from model.simulation.draw import SampledVm
from model.simulation.workload import Shares
from model.simulation.workload_file import WorkloadError
from model.slices import CPU, MEMORY

#: Four steps a day.
STEP = 21_600.0


def arrivals(
    create_s: Sequence[float],
    delete_s: Sequence[float],
    vcpu: Sequence[float] | None = None,
    usage: Sequence[Shares | None] | None = None,
) -> ArrivalList:
    n = len(create_s)
    return ArrivalList(
        names=[f"vm{i}" for i in range(n)],
        create_s=np.array(create_s, np.float64),
        delete_s=np.array(delete_s, np.float64),
        vcpu=np.array(vcpu or [1.0] * n),
        memory_mb=np.full(n, 1000.0),
        usage=usage,
        usage_step_s=2 * STEP,
        origin_s=86_400.0,
    )


def sampled(vcpu: float, share: float, days: int = 1) -> SampledVm:
    """Uses ``share`` of its vCPUs on day 0, twice that on day 1 ..., and half of its memory."""
    cpu = np.repeat(share * np.arange(1, days + 1), 4).astype(np.float32)
    return SampledVm(vcpu, 512.0, cpu, np.full(cpu.size, 0.5, np.float32))


# --- usage --------------------------------------------------------------------------------------------


def test_vms_of_the_same_size_are_preferred() -> None:
    vms = [sampled(1, 0.1), sampled(2, 0.2), sampled(2, 0.4), sampled(8, 0.8)]
    workload = join_usage(arrivals([0.0] * 300, [math.inf] * 300, [1, 2, 8] * 100), vms, STEP, seed=1)
    drawn = [set(workload.series[i::3].tolist()) for i in range(3)]
    assert drawn == [{0}, {1, 2}, {3}]
    # 2 vCPUs: 100 draws of two alike; 30 to 70 is four standard deviations of 5.
    assert 30 < (workload.series[1::3] == 1).sum() < 70


def test_otherwise_the_nearest_ratio_of_sizes() -> None:
    """3 is nearer to 4 (1.33 times) than to 2 (1.5 times); 32 is nearest to 8; 2.83 is just as far from 2 as from 4."""
    vms = [sampled(2, 0.1), sampled(4, 0.2), sampled(8, 0.4)]
    sizes = [3.0, 32.0, *[8**0.5] * 50]
    workload = join_usage(arrivals([0.0] * 52, [math.inf] * 52, sizes), vms, STEP, seed=1)
    assert workload.series[:2].tolist() == [1, 2]
    assert set(workload.series[2:].tolist()) == {0, 1}


def test_sizes_are_those_of_the_arrival() -> None:
    workload = join_usage(arrivals([0.0], [math.inf], [4.0]), [sampled(2, 0.25)], STEP, seed=1, duration_s=4 * STEP)
    vm = np.array([0])
    assert workload.usage(CPU, vm, 0, 4).tolist() == [[1.0] * 4]
    assert workload.usage(MEMORY, vm, 0, 4).tolist() == [[500.0] * 4]


def test_each_vm_replays_a_random_whole_day() -> None:
    workload = join_usage(arrivals([0.0] * 200, [math.inf] * 200), [sampled(1, 0.1, days=3)], STEP, seed=1)
    days, count = np.unique(workload.offset, return_counts=True)
    assert days.tolist() == [0, 4, 8]
    # 200 / 3 = 67, standard deviation 6.7.
    assert ((count > 40) & (count < 94)).all()


def test_the_seed_decides_everything() -> None:
    vms = [sampled(1, 0.1, days=3), sampled(1, 0.2, days=2)]
    some = arrivals([0.0] * 50, [math.inf] * 50)
    one, same, other = (join_usage(some, vms, STEP, seed) for seed in (1, 1, 2))
    assert one.series.tolist() == same.series.tolist()
    assert one.offset.tolist() == same.offset.tolist()
    assert (one.series.tolist(), one.offset.tolist()) != (other.series.tolist(), other.offset.tolist())


def test_own_usage_starts_with_the_arrival() -> None:
    """Elements of two steps: 0.1 0.1 0.3 0.3, and again. All of the memory counts as used."""
    own = np.array([0.1, 0.3], np.float32)
    some = arrivals([0.0, 3 * STEP, 3 * STEP], [math.inf] * 3, usage=[None, own, own])
    workload = join_usage(some, [sampled(1, 0.5)], STEP, seed=1, duration_s=9 * STEP)
    used = workload.usage(CPU, np.arange(3), 0, 9)
    assert used[0].tolist() == [0.5] * 9
    expected = [math.nan] * 3 + [0.1, 0.1, 0.3, 0.3, 0.1, 0.1]
    np.testing.assert_allclose(used[1:], [expected, expected], rtol=1e-6)
    assert workload.usage(MEMORY, np.array([1]), 3, 2).tolist() == [[1000.0, 1000.0]]


def test_own_usage_needs_no_other_vms() -> None:
    some = arrivals([0.0], [STEP], usage=[np.array([0.5], np.float32)])
    assert join_usage(some, [], STEP, seed=1).usage(CPU, np.array([0]), 0, 1).tolist() == [[0.5]]
    with pytest.raises(WorkloadError, match=r"^vm0: its usage is unknown"):
        join_usage(arrivals([0.0], [STEP]), [], STEP, seed=1)


def test_workload_lasts_until_the_last_event() -> None:
    """VM 1 ends at 5.5 steps; VM 2 arrives in step 7 and stays: eight steps."""
    vms = [sampled(1, 0.1)]
    assert join_usage(arrivals([0.0, STEP], [math.inf, 5.5 * STEP]), vms, STEP, seed=1).steps == 6
    assert join_usage(arrivals([0.0, STEP, 7 * STEP], [math.inf, 5.5 * STEP, math.inf]), vms, STEP, seed=1).steps == 8
    assert join_usage(arrivals([0.0], [math.inf]), vms, STEP, seed=1, duration_s=2.5 * STEP).steps == 3


# --- periods ------------------------------------------------------------------------------------------


def test_a_period_keeps_the_vms_that_exist_in_it() -> None:
    own = np.array([0.1, 0.2, 0.3], np.float32)
    some = arrivals(
        [0.0, 0.0, 4 * STEP, 9 * STEP, 10 * STEP],
        [2 * STEP, 5 * STEP, math.inf, 12 * STEP, math.inf],
        [1, 2, 4, 8, 16],
        usage=[None, own, None, None, None],
    )
    part = arrivals_between(some, 3 * STEP, 10 * STEP)
    assert part.names == ["vm1", "vm2", "vm3"]
    assert part.create_s.tolist() == [0.0, STEP, 6 * STEP]
    assert part.delete_s.tolist() == [2 * STEP, math.inf, 9 * STEP]
    assert part.vcpu.tolist() == [2.0, 4.0, 8.0]
    assert part.origin_s == 86_400.0 + 3 * STEP
    # Three steps after its arrival VM 1 is in the second element of its usage, each of which lasts two steps.
    assert part.usage is not None
    assert part.usage[0] is not None
    assert part.usage[0].tolist() == np.array([0.2, 0.3, 0.1], np.float32).tolist()


def test_period_without_vms_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"^no VM exists between 10 and 20 s$"):
        arrivals_between(arrivals([0.0, 20.0], [10.0, 30.0]), 10.0, 20.0)


# --- steps and names ----------------------------------------------------------------------------------


def test_a_day_has_a_whole_number_of_steps() -> None:
    assert [steps_of_day(step_s) for step_s in (300.0, 0.1, 86_400.0, 86_400 / 7)] == [288, 864_000, 1, 7]
    for step_s in (0.0, -1.0, 7.0, 172_800.0, math.nan, math.inf):
        with pytest.raises(WorkloadError):
            steps_of_day(step_s)


def test_names_that_occur_again_get_a_number_that_is_free() -> None:
    names = unique_names(["a", "a#2", "a", "b", "a", "a#2"])
    assert names == ["a", "a#2", "a#3", "b", "a#4", "a#2#2"]
