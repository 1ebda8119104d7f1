"""The figures of a run, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model.simulation.fleet import FleetSize
from model.simulation.harm import Figures
from model.simulation.policies import FixedRatio
from model.simulation.simulation import SimulationSettings, simulate
from tests.support.simulation import STEP, Vm, workload_of

#: One node of 10 cores and 10,000 MB, slices of four steps.
SIZE = FleetSize(nodes=1, cores=10.0, memory_mb=10000.0)
SETTINGS = SimulationSettings(size=SIZE, slice_s=4 * STEP, warm_up_s=0.0)


def figures(vms: list[Vm], steps: int, settings: SimulationSettings = SETTINGS, ratio: float = 4.0) -> Figures:
    return simulate(workload_of(vms, steps), FixedRatio(settings.size, ratio), settings).figures()


def test_slice_is_over_when_its_99th_percentile_of_demand_exceeds_the_cores() -> None:
    # Demand 0.5 + 1.01 x 10 x share: three times 0.5 and once 10.6. Its 99th percentile, linear between the two largest
    # of four: 0.5 + 0.97 x 10.1 = 10.297.
    found = figures([Vm(0, vcpu=10, cpu=[0, 0, 0, 1])], 4)
    assert found.over == found.worst_node == 1.0
    # 0.5 + 0.97 x 10.1 x 0.96 = 9.905, although the last step wants 10.196.
    assert figures([Vm(0, vcpu=10, cpu=[0, 0, 0, 0.96])], 4).over == 0.0


def test_used_unserved_and_largest_demand() -> None:
    # Wanted: 0.5, 5.55, 10.6, 10.6; served: 0.5, 5.55, 10, 10.
    found = figures([Vm(0, vcpu=10, cpu=[0, 0.5, 1, 1])], 4)
    assert found.used == pytest.approx(26.05 / 40)
    assert found.unserved == pytest.approx(1.2 / 27.25, rel=1e-6)
    assert found.p999 == pytest.approx(1.06)


def test_sold_and_hosted_count_what_is_there_at_the_ends_of_the_slices() -> None:
    vms = [Vm(0, 4, vcpu=2, memory_mb=100), Vm(0, 5, vcpu=3, memory_mb=500), Vm(5, vcpu=5, memory_mb=1000)]
    found = figures(vms, 8)
    # After the first slice the second VM is left, after the second slice the third.
    assert found.sold == pytest.approx((3 + 5) / 2 / 10)
    assert found.mem_sold == pytest.approx((500 + 1000) / 2 / 10000)
    assert found.hosted == 1.0


def test_accepted_shares_of_vms_of_vcpus_and_of_large_vms() -> None:
    # In the first slice the node takes 10 vCPUs: 8, 1 and 1.
    vms = [Vm(0, vcpu=8, memory_mb=10), Vm(0, vcpu=9, memory_mb=10), *[Vm(1, vcpu=1, memory_mb=10)] * 3]
    found = figures(vms, 4)
    assert found.accepted == pytest.approx(3 / 5)
    assert found.accepted_vcpu == pytest.approx(10 / 20)
    assert found.accepted_large == pytest.approx(1 / 2)


def test_warm_up_counts_in_no_figure() -> None:
    # The first slice is over and refuses a VM.
    vms = [Vm(0, 4, vcpu=10, cpu=[1.0]), Vm(0, vcpu=10), Vm(4, vcpu=2, memory_mb=10)]
    found = figures(vms, 8, replace(SETTINGS, warm_up_s=4 * STEP))
    assert (found.over, found.unserved, found.accepted) == (0.0, 0.0, 1.0)
    assert found.sold == pytest.approx(0.2)
    all_slices = figures(vms, 8)
    assert all_slices.over == 0.5
    assert all_slices.accepted == pytest.approx(2 / 3)


def test_last_slice_counts_even_in_a_warm_up_that_is_too_long() -> None:
    assert figures([Vm(4, vcpu=2)], 8, replace(SETTINGS, warm_up_s=100 * STEP)).sold == pytest.approx(0.2)


def test_memory_is_over_when_any_sample_exceeds_the_node() -> None:
    # 4096 + 128 + 5777 = 10001 in one step of the second slice.
    vm = Vm(0, vcpu=1, memory_mb=5777, mem=[0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5])
    assert figures([vm], 8).mem_over == 0.5
    assert figures([replace(vm, memory_mb=5776)], 8).mem_over == 0.0


def test_worst_node_is_the_one_with_the_largest_share() -> None:
    size = replace(SIZE, nodes=2)
    # The first VM goes to node 0, the second one to node 1; 20 vCPUs do not fit in the first slice.
    vms = [Vm(0, vcpu=10, cpu=[1.0]), Vm(0, vcpu=10, cpu=[0, 0, 0, 0, 1, 1, 1, 1])]
    found = figures(vms, 8, replace(SETTINGS, size=size))
    assert (found.over, found.worst_node) == (0.75, 1.0)


def test_shares_of_nothing_are_nan() -> None:
    found = figures([Vm(0, vcpu=1)], 8, replace(SETTINGS, warm_up_s=4 * STEP))
    assert math.isnan(found.accepted)
    assert math.isnan(found.accepted_large)
    assert math.isnan(found.reported)
