"""The closed loop against a plain implementation of its rules."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.nodemodel import ModelSettings, NodeModel
from model.simulation.fleet import FleetSize
from model.simulation.policies import FixedRatio, Oracle, StrategyPolicy
from model.simulation.simulation import SimulationSettings, refuses_at_most, simulate
from model.slices import Slice, Usage
from tests.support.simulation import STEP, Scripted, Vm, plain_simulation, workload_of

PER_SLICE = 3
SIZE = FleetSize(nodes=2, cores=4.0, memory_mb=16000.0)
SETTINGS = SimulationSettings(size=SIZE, slice_s=PER_SLICE * STEP, warm_up_s=0.0)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    nodes, slices = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    steps = slices * PER_SLICE
    shares = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=7)
    vm = st.builds(
        Vm,
        first=st.integers(0, steps - 1),
        end=st.just(math.inf),
        vcpu=st.sampled_from([0.5, 1, 2, 4, 8, 16]),
        memory_mb=st.sampled_from([512, 1000, 4000, 16000, 20000]),
        cpu=shares,
        mem=shares,
    )
    lives = st.one_of(st.just(math.inf), st.integers(1, 2 * steps))
    pairs = draw(st.lists(st.tuples(vm, lives), min_size=1, max_size=25))
    vms = sorted((replace(one, end=one.first + life) for one, life in pairs), key=lambda one: one.first)
    ratios = st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 1.5, 3.0, 20.0]), min_size=nodes, max_size=nodes),
        min_size=slices,
        max_size=slices,
    )
    size = FleetSize(nodes, 4.0, 16000.0)
    memory = draw(st.booleans())
    return {
        "vms": vms,
        "steps": steps,
        "cpu": [[ratio * size.cores for ratio in row] for row in draw(ratios)],
        "mem": [[ratio * size.memory_mb for ratio in row] for row in draw(ratios)] if memory else None,
        "settings": SimulationSettings(
            size=size,
            slice_s=PER_SLICE * STEP,
            weigher=draw(st.sampled_from(["spread", "pack"])),
            publish_memory=memory,
            warm_up_s=draw(st.integers(0, slices)) * PER_SLICE * STEP,
        ),
    }


@settings(max_examples=300, deadline=None)
@given(cases())
def test_simulation_follows_the_rules_step_by_step(case: dict[str, Any]) -> None:
    expected = plain_simulation(case["vms"], case["steps"], case["settings"], case["cpu"], case["mem"])
    policy = Scripted(case["cpu"], case["mem"])
    harm = simulate(workload_of(case["vms"], case["steps"]), policy, case["settings"])
    assert policy.placed == expected.placed
    found = asdict(harm.figures())
    assert math.isnan(found.pop("reported"))
    # The load is kept with 32 bits.
    assert found == pytest.approx(expected.figures, rel=1e-6, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(0, 60))
def test_search_for_a_fleet_ends_early_with_the_same_answer(case: dict[str, Any], refusable: int) -> None:
    workload = workload_of(case["vms"], case["steps"])
    harm = simulate(workload, Scripted(case["cpu"], case["mem"]), case["settings"])
    enough = refuses_at_most(refusable, workload, Scripted(case["cpu"], case["mem"]), case["settings"])
    assert enough == (harm.refused_vcpu <= refusable)


# --- what a policy sees -------------------------------------------------------------------------------


def test_vms_of_a_full_node_are_slowed_alike_and_the_demand_is_not_cut() -> None:
    # 1.01 x (4 + 2) = 6.06 are wanted of the 4 - 0.5 = 3.5 cores that the host leaves.
    vms = [Vm(0, vcpu=4, cpu=[1.0]), Vm(1, vcpu=4, cpu=[0.5])]
    size = replace(SIZE, nodes=1)
    policy = Scripted([[16.0]] * 2)
    simulate(workload_of([vms[0], Vm(3, vcpu=4, cpu=[0.5])], 6), policy, replace(SETTINGS, size=size))
    first, second = policy.seen
    # Alone, the first VM wants 4.04 + 0.5 cores of 4.
    assert first.cpu.demand == pytest.approx(np.full((1, 3), 4.54))
    assert first.cpu.node == pytest.approx(np.full((1, 3), 4.0))
    assert first.cpu.vm == pytest.approx(np.full((1, 3), 4 * 3.5 / 4.04))
    assert second.cpu.demand == pytest.approx(np.full((1, 3), 6.56))
    assert second.cpu.vm == pytest.approx(np.array([[4 * 3.5 / 6.06] * 3, [2 * 3.5 / 6.06] * 3]))


def test_vm_is_measured_in_the_steps_in_which_it_exists_and_booked_until_it_ends() -> None:
    vms = [Vm(0, 2, vcpu=2, memory_mb=1000, cpu=[0.5], mem=[0.25]), Vm(1, vcpu=1, memory_mb=2000, cpu=[1.0], mem=[1.0])]
    policy = Scripted([[4.0]])
    harm = simulate(workload_of(vms, 3), policy, replace(SETTINGS, size=replace(SIZE, nodes=1)))
    (ended,) = policy.seen
    assert ended.cpu.vm == pytest.approx(np.array([[1, 1, np.nan], [np.nan, 1, 1]]), nan_ok=True)
    assert ended.cpu.node[0] == pytest.approx([0.5 + 1.01, 0.5 + 2.02, 0.5 + 1.01])
    assert ended.mem.node[0] == pytest.approx([4096 + 128 + 250, 4096 + 256 + 2250, 4096 + 128 + 2000])
    assert ended.alive.tolist() == [False, True]
    assert ended.fleet.booked_cpu.tolist() == [1.0]
    assert harm.figures().sold == pytest.approx(1 / 4)


def test_vm_that_ends_makes_room_for_one_that_arrives_in_the_same_step() -> None:
    vms = [Vm(0, 1, vcpu=4), Vm(1, 2, vcpu=4), Vm(1, vcpu=4), Vm(2, vcpu=4)]
    policy = Scripted([[4.0]])
    simulate(workload_of(vms, 3), policy, replace(SETTINGS, size=replace(SIZE, nodes=1)))
    assert policy.placed == {0: 0, 1: 0, 3: 0}


@pytest.mark.parametrize(("published", "sold"), [(0.0, 4), (3.0, 4), (10.0, 10), (1e9, 64)])
def test_capacity_stays_between_the_size_of_the_node_and_16_times_it(published: float, sold: int) -> None:
    vms = [Vm(0, 3)] + [Vm(3)] * 100
    policy = Scripted([[published]] * 2)
    harm = simulate(workload_of(vms, 6), policy, replace(SETTINGS, size=replace(SIZE, nodes=1, memory_mb=1e6)))
    assert harm.sold[0, 1] * 4 == sold


@pytest.mark.parametrize(("published", "hosted"), [(0.0, 16), (40000.0, 40), (1e9, 256)])
def test_capacity_of_memory_has_the_same_limits(published: float, hosted: int) -> None:
    vms = [Vm(0, 3)] + [Vm(3, vcpu=0.01)] * 300
    settings = replace(SETTINGS, size=replace(SIZE, nodes=1), publish_memory=True)
    harm = simulate(workload_of(vms, 6), Scripted([[1e9]] * 2, [[published]] * 2), settings)
    assert harm.hosted[0, 1] == hosted


def test_memory_is_that_of_the_node_when_it_is_not_published() -> None:
    vms = [Vm(0, 3)] + [Vm(3, vcpu=0.01)] * 300
    harm = simulate(workload_of(vms, 6), Scripted([[1e9] * 2] * 2, [[1e9] * 2] * 2), SETTINGS)
    assert harm.hosted[:, 1].tolist() == [16, 16]


# --- policies -----------------------------------------------------------------------------------------


def test_fixed_ratio_books_that_many_vcpus_from_the_second_slice_on() -> None:
    vms = [Vm(step, vcpu=1, memory_mb=10) for step in range(9) for _ in range(10)]
    harm = simulate(workload_of(vms, 9), FixedRatio(SIZE, 2.5), SETTINGS)
    assert harm.sold.tolist() == [[1.0, 2.5, 2.5]] * 2


def test_oracle_places_a_vm_only_where_it_fits_for_all_of_its_life() -> None:
    # 1.01 x 3.4 + 0.5 = 3.934 of 4 cores. The first slice, in which the size of the node counts, stays empty.
    first = Vm(3, 7, vcpu=4, cpu=[0.85])
    for_good = Vm(3, vcpu=4, cpu=[0.85])
    # It wants its cores when the first VM has left; the last one wants them before.
    later = Vm(4, vcpu=4, cpu=[0, 0, 0, 0, 0, 0, 0, 0.85, 0.85])
    too_early = Vm(5, vcpu=4, cpu=[0, 0, 0, 0, 0, 0, 0.85, 0.85, 0.85])
    workload = workload_of([first, for_good, later, too_early], 9)
    harm = simulate(workload, Oracle(SIZE, workload), SETTINGS)
    assert harm.hosted.sum(axis=0).tolist() == [0, 3, 2]
    assert harm.sold[:, 1].tolist() == [2.0, 1.0]
    assert harm.figures().p999 <= 1.0


def test_strategy_publishes_what_a_node_model_computes_of_the_same_slices() -> None:
    rng = np.random.default_rng(1)
    vms = sorted(
        (
            Vm(
                int(first),
                int(first) + int(life),
                vcpu=1,
                memory_mb=500,
                cpu=rng.random(18) / 4,
                mem=rng.random(18) / 2,
            )
            for first, life in zip(rng.integers(0, 18, 60), rng.integers(1, 12, 60), strict=True)
        ),
        key=lambda vm: vm.first,
    )
    workload = workload_of(vms, 18)
    model_settings = ModelSettings(1, ("nsigma",), positions=2)
    policy = StrategyPolicy(workload, SIZE, model_settings, SETTINGS.slice_s, publish_memory=True)
    models = [NodeModel(model_settings) for _ in range(SIZE.nodes)]

    class Checked(Scripted):
        def update(self, ended: Any) -> Any:
            capacities = policy.update(ended)
            for node, model in enumerate(models):
                own = [i for i in ended.vms.tolist() if ended.fleet.node_of[i] == node]
                rows = [ended.vms.tolist().index(i) for i in own]
                cpu = Usage(4.0, ended.cpu.node[node], workload.vcpu[own], ended.cpu.vm[rows])
                mem = Usage(16000.0, ended.mem.node[node], workload.memory_mb[own], ended.mem.vm[rows])
                names = tuple(f"vm{i}" for i in own)
                estimate = model.update(Slice((ended.number + 1) * SETTINGS.slice_s, ended.number % 2, names, cpu, mem))
                booked = sum(workload.vcpu[i] for i in own if vms[i].end > (ended.number + 1) * PER_SLICE)
                assert capacities.cpu[node] == pytest.approx(booked + estimate.cpu.by_strategy["nsigma"].published)
                booked = sum(workload.memory_mb[i] for i in own if vms[i].end > (ended.number + 1) * PER_SLICE)
                assert capacities.mem[node] == pytest.approx(booked + estimate.mem.by_strategy["nsigma"].published)
            return capacities

    harm = simulate(workload, Checked([]), replace(SETTINGS, publish_memory=True))
    assert harm.sold.max() > 1.0
