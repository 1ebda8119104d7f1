"""The choice of a node: what fits, which is the freest, ties."""

from __future__ import annotations

import numpy as np
import pytest

from model.simulation.fleet import Fleet, FleetSize
from model.simulation.scheduler import PlacementScheduler, Weigher
from tests.support.simulation import Vm, workload_of


def scheduler(
    cpu: list[float], mem: list[float], weigher: Weigher = "spread", *, by_memory: bool = False
) -> PlacementScheduler:
    fleet = Fleet(FleetSize(len(cpu), 4.0, 1000.0), workload_of([Vm(0)], 3))
    one = PlacementScheduler(fleet, weigher, by_memory=by_memory)
    one.set_capacities(np.array(cpu), np.array(mem))
    one.begin_step()
    return one


def test_vm_fits_up_to_the_last_vcpu_and_mb() -> None:
    assert scheduler([4.0], [1000.0]).choose(4.0, 1000.0) == 0
    assert scheduler([4.0], [1000.0]).choose(4.1, 1000.0) is None
    assert scheduler([4.0], [1000.0]).choose(4.0, 1001.0) is None


def test_node_needs_room_for_both_resources() -> None:
    assert scheduler([8.0, 2.0], [100.0, 900.0]).choose(4.0, 500.0) is None
    assert scheduler([8.0, 4.0], [100.0, 900.0]).choose(4.0, 500.0) == 1


@pytest.mark.parametrize(("weigher", "chosen"), [("spread", 2), ("pack", 1)])
def test_freest_or_fullest_node_that_fits_is_taken(weigher: Weigher, chosen: int) -> None:
    assert scheduler([5.0, 4.0, 7.0, 1.0], [1000.0] * 4, weigher).choose(2.0, 10.0) == chosen


@pytest.mark.parametrize("weigher", ["spread", "pack"])
def test_tie_goes_to_the_lowest_index(weigher: Weigher) -> None:
    assert scheduler([1.0, 6.0, 6.0], [1000.0] * 3, weigher).choose(2.0, 10.0) == 1


def test_memory_counts_in_the_choice_only_when_it_is_published() -> None:
    # Scaled over the nodes that fit: CPU 1, 0.5, 0; memory 0, 0.75, 1.
    cpu, mem = [8.0, 7.0, 6.0], [200.0, 800.0, 1000.0]
    assert scheduler(cpu, mem).choose(1.0, 10.0) == 0
    assert scheduler(cpu, mem, by_memory=True).choose(1.0, 10.0) == 1
    assert scheduler(cpu, mem, "pack", by_memory=True).choose(1.0, 10.0) == 0


def test_scale_is_that_of_the_nodes_that_fit() -> None:
    # With the last node, which is too small, CPU would be 1 and 0.75 instead of 1 and 0.
    cpu, mem = [8.0, 7.0, 4.0], [500.0, 900.0, 0.0]
    assert scheduler(cpu, mem, by_memory=True).choose(1.0, 10.0) == 0


def test_equal_amounts_have_no_weight() -> None:
    assert scheduler([4.0, 4.0], [500.0, 900.0], by_memory=True).choose(1.0, 10.0) == 1


def test_only_allowed_nodes_are_chosen() -> None:
    one = scheduler([8.0, 7.0], [1000.0] * 2)
    assert one.choose(1.0, 10.0, np.array([False, True])) == 1
    assert one.choose(1.0, 10.0, np.array([False, False])) is None
    assert one.choose(1.0, 10.0) == 0
