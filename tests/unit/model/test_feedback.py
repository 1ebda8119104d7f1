"""What the nodes of a fleet learn from each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.feedback import FleetModel, ResourceCounts, ResourceFeedback, SliceCounts, count_usage
from model.numerics import FloatArray
from model.slices import CPU, MEMORY, RESOURCES, Usage
from model.vmmoments import SIZE_CLASSES, VmMoments
from tests.support.vm_slices import figures, odd_slices, vm_usage


def classes(**values: float) -> tuple[float, ...]:
    """By class: ``c2=3.0`` is the third one; the others are 0."""
    return tuple(values.get(f"c{i}", 0.0) for i in range(SIZE_CLASSES))


def of_cpu(**counts: object) -> SliceCounts:
    return SliceCounts(cpu=ResourceCounts(**counts))  # type: ignore[arg-type]


def levels(fleet: FleetModel, count: int, nodes: float, full: float) -> list[float]:
    """The level for CPU after each of some slices."""
    return [fleet.update([of_cpu(nodes=nodes, full=full)]).cpu.level for _ in range(count)]


# --- counts -------------------------------------------------------------------------------------------


def test_counts_of_a_node() -> None:
    usage = vm_usage([5], [(4, [1, 3]), (4, [2, math.nan]), (1, [0.25, 0.25]), (2, [math.nan, math.nan])])
    vms = replace(figures([4, 4, 1, 2], used=[2, 2, 0.25, math.nan]), expected=np.array([1.0, math.nan, 0.5, 7.0]))
    counts = count_usage(usage, vms, full=True)
    assert (counts.nodes, counts.full, counts.largest) == (1.0, 1.0, 4.0)
    assert counts.observations == classes(c0=1, c2=2)
    # Class of 4 cores: means (1/4 + 3/4) / 2 and 1/2; mean squares (1/16 + 9/16) / 2 and 1/4.
    assert counts.shares == classes(c0=0.25, c2=1.0)
    assert counts.squares == classes(c0=0.0625, c2=0.5625)
    # Of the VMs that have both: 1 + 0.5 were expected, 2 + 0.25 were used.
    assert (counts.expected, counts.used) == (1.5, 2.25)


def test_shares_are_at_most_one_and_at_least_zero() -> None:
    usage = vm_usage([5], [(4, [6, -1]), (math.nan, [2, 2]), (0, [0, 0])])
    counts = count_usage(usage, figures([4, math.nan, 0], used=[2.5, 2, 0]), full=False)
    assert (counts.observations, counts.shares, counts.squares) == (classes(c2=1), classes(c2=0.5), classes(c2=0.5))
    assert (counts.full, counts.largest) == (0.0, 4.0)


def test_node_without_vms_counts_as_a_node() -> None:
    assert count_usage(vm_usage([5]), figures([]), full=False) == ResourceCounts(nodes=1.0)


@pytest.mark.parametrize("usage", [vm_usage([], [(4, [1])]), vm_usage([5], [(4, [1])], config=math.nan)])
def test_nothing_is_counted_of_a_node_without_samples(usage: Usage) -> None:
    assert count_usage(usage, figures([4], used=[1]), full=False) == ResourceCounts()


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_unusual_slices_are_finite(seed: int) -> None:
    moments = {resource.name: VmMoments(resource, 3) for resource in RESOURCES}
    fleet = FleetModel(0.05, 0.05)
    for finished in odd_slices(seed):
        parts = []
        for resource in RESOURCES:
            usage = finished.usage(resource)
            vms = moments[resource.name].update(finished.vms, usage)
            parts.append(count_usage(usage, vms, full=False))
            observations, shares, squares = (
                np.array(values) for values in (parts[-1].observations, parts[-1].shares, parts[-1].squares)
            )
            assert ((squares >= 0) & (squares <= shares) & (shares <= observations)).all()
        feedback = fleet.update([SliceCounts(*parts)])
        for resource in RESOURCES:
            used = feedback.of(resource)
            assert all(0 <= share <= 1 for share in (*used.mean, *used.square))
            assert math.isfinite(used.level + used.largest + used.common)


whole_numbers = st.integers(0, 1000).map(float)
by_class = st.tuples(*[whole_numbers] * SIZE_CLASSES)
resource_counts = st.builds(
    ResourceCounts,
    *(whole_numbers, whole_numbers),
    *(by_class, by_class, by_class),
    *(whole_numbers, whole_numbers, whole_numbers),
)


@settings(max_examples=30, deadline=None)
@given(resource_counts, resource_counts, resource_counts)
def test_counts_add_up_in_any_order(one: ResourceCounts, two: ResourceCounts, three: ResourceCounts) -> None:
    assert one.plus(two).plus(three) == one.plus(two.plus(three)) == three.plus(one).plus(two)
    assert one.plus(ResourceCounts()) == one
    assert one.plus(two).largest == max(one.largest, two.largest)
    assert one.plus(two).observations[3] == one.observations[3] + two.observations[3]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(resource_counts, resource_counts), min_size=1, max_size=6), st.integers(0, 6))
def test_masters_may_sum_up_their_nodes_first(nodes: list[tuple[ResourceCounts, ResourceCounts]], cut: int) -> None:
    single, masters = FleetModel(0.05, 0.01), FleetModel(0.05, 0.01)
    every = [SliceCounts(cpu, mem) for cpu, mem in nodes]
    sums = []
    for part in (every[:cut], every[cut:]):
        total = SliceCounts()
        for counts in part:
            total = SliceCounts(total.cpu.plus(counts.cpu), total.mem.plus(counts.mem))
        sums.append(total)
    assert masters.update(sums) == single.update(every)
    assert masters.update(reversed(sums)) == single.update(every)


# --- level --------------------------------------------------------------------------------------------


def test_level_rises_with_full_nodes() -> None:
    # Risk 0.05: aim 0.4 * 0.05 = 0.02, gain 0.01 / 0.02 = 0.5; a quarter of the nodes full: 0.5 (0.25 - 0.02).
    assert levels(FleetModel(0.05, 0.05), 2, 4, 1) == pytest.approx([0.115, 0.23])
    assert levels(FleetModel(0.05, 0.05), 1, 4, 3)[0] == pytest.approx(0.365)


def test_level_rises_by_two_per_slice_and_to_ten_at_most() -> None:
    # Risk 0.001: aim 0.0004, gain min(25, 6): 6 (1 - 0.0004) is above 2.
    assert levels(FleetModel(0.001, 0.05), 7, 1, 1) == [2.0, 4.0, 6.0, 8.0, 10.0, 10.0, 10.0]
    assert levels(FleetModel(0.0, 0.05), 1, 1, 1) == [2.0]


def test_level_falls_without_full_nodes_to_its_floor() -> None:
    fleet = FleetModel(0.05, 0.05)
    # 0.5 * 0.02 per slice: 0.24 in a day.
    assert levels(fleet, 24, 10, 0)[-1] == pytest.approx(-0.24)
    later = levels(fleet, 200, 10, 0)
    assert later == sorted(later, reverse=True)
    assert later[-1] == later[-50] == -1.5
    # A small risk: 6 * 0.0004 per slice. None: the level stays.
    assert levels(FleetModel(0.001, 0.05), 10, 10, 0)[-1] == pytest.approx(-0.024)
    assert levels(FleetModel(0.0, 0.05), 10, 10, 0)[-1] == 0.0


def test_level_stays_near_the_aim() -> None:
    # One of 50 nodes full is the aim of a risk of 5 %.
    assert levels(FleetModel(0.05, 0.05), 100, 50, 1)[-1] == pytest.approx(0.0, abs=1e-9)


def test_resources_have_a_level_each() -> None:
    feedback = FleetModel(0.05, 0.05).update(
        [SliceCounts(ResourceCounts(nodes=1, full=1), ResourceCounts(nodes=1, full=0))]
    )
    assert (feedback.cpu.level, feedback.mem.level) == (pytest.approx(0.49), pytest.approx(-0.01))
    assert (feedback.of(CPU), feedback.of(MEMORY)) == (feedback.cpu, feedback.mem)


def test_slice_without_measured_nodes_changes_nothing() -> None:
    fleet = FleetModel(0.05, 0.05)
    fleet.update(
        [of_cpu(nodes=4, full=1, observations=classes(c1=40), shares=classes(c1=10), largest=8, expected=4, used=6)]
    )
    before, state = fleet.feedback(), fleet.state()
    assert before.cpu.level > 0
    assert before.cpu.common > 0
    for counts in ([], [SliceCounts()], [SliceCounts(), SliceCounts()]):
        assert fleet.update(counts) == before
    assert fleet.state() == state


# --- what VMs of a size use ---------------------------------------------------------------------------


def test_nothing_is_known_at_first() -> None:
    assert FleetModel(0.05, 0.05).feedback().cpu == ResourceFeedback()
    assert ResourceFeedback().mean == ResourceFeedback().square == (1.0,) * SIZE_CLASSES


def test_classes_fall_back_to_all_vms_and_then_to_one() -> None:
    few = of_cpu(nodes=1, observations=classes(c0=20, c2=9), shares=classes(c0=5, c2=4), squares=classes(c0=2, c2=2))
    # 29 observations are fewer than 30.
    assert FleetModel(0.05, 0.05).update([few]).cpu.mean == (1.0,) * SIZE_CLASSES
    many = of_cpu(nodes=1, observations=classes(c0=40, c2=10), shares=classes(c0=10, c2=5), squares=classes(c0=4, c2=3))
    cpu = FleetModel(0.05, 0.05).update([many]).cpu
    # Class 0: 10 / 40; the others as all: (10 + 5) / (40 + 10).
    assert cpu.mean == pytest.approx((0.25, *[0.3] * 7))
    assert cpu.square == pytest.approx((0.1, *[0.14] * 7))


def test_observations_fade() -> None:
    fleet = FleetModel(0.05, 0.05)
    counted = {"nodes": 1, "observations": classes(c0=100)}
    fleet.update([of_cpu(**counted, shares=classes(c0=50), largest=16)])
    second = fleet.update([of_cpu(**counted, shares=classes(c0=20), largest=4)]).cpu
    # (0.95 * 50 + 20) / (0.95 * 100 + 100); the largest VM fades from 16.
    assert second.mean[0] == pytest.approx(67.5 / 195)
    assert second.largest == pytest.approx(15.2)
    # ln(100 * 1.95 / 30) / -ln(0.95) = 36.5 slices later there are fewer than 30 observations.
    later = [fleet.update([of_cpu(nodes=1)]).cpu.mean[0] for _ in range(37)]
    assert later[35] == pytest.approx(67.5 / 195)
    assert later[36] == 1.0


# --- usage that rises together ------------------------------------------------------------------------


def common(draw: Callable[[int], FloatArray], slices: int, vms: int = 1000) -> float:
    """The common deviation of a fleet of VMs of 8 cores whose usage in slice k is ``draw(k)``."""
    moments, fleet = VmMoments(CPU, 24), FleetModel(0.05, 0.05)
    names = tuple(f"vm{i:04}" for i in range(vms))
    for k in range(slices):
        usage = Usage(10_000.0, np.array([1.0]), np.full(vms, 8.0), draw(k).reshape(vms, 1))
        fleet.update([SliceCounts(cpu=count_usage(usage, moments.update(names, usage), full=False))])
    return fleet.feedback().cpu.common


def test_independent_usage_has_no_common_deviation() -> None:
    assert common(lambda _: np.ones(1000), 100) == 0.0
    random = np.random.default_rng(1)
    # The sum of 1000 VMs has a relative deviation of 1 / sqrt(1000) = 0.03.
    assert common(lambda _: random.exponential(1.0, 1000), 200) < 0.05


def test_fleet_that_doubles_together_has_its_deviation() -> None:
    # 1 and 2 cores in turn: the mean is 1.5, the standard deviation a third of it.
    assert common(lambda k: np.full(1000, 1.0 + k % 2), 400) == pytest.approx(1 / 3, rel=0.05)


def test_common_deviation_starts_at_zero_over_half_a_day() -> None:
    # Twice the expected usage: 2 * (2 - 1)^2, with the weight 1 / (1 + 12).
    cpu = FleetModel(0.05, 0.05).update([of_cpu(nodes=1, expected=100, used=200)]).cpu
    assert cpu.common == pytest.approx(math.sqrt(2 / 13))
    assert FleetModel(0.05, 0.05).update([of_cpu(nodes=1, expected=100, used=50)]).cpu.common == 0.0
    assert FleetModel(0.05, 0.05).update([of_cpu(nodes=1, used=50)]).cpu.common == 0.0


# --- state --------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(resource_counts, resource_counts), max_size=5), resource_counts)
def test_restored_fleet_continues(past: list[tuple[ResourceCounts, ResourceCounts]], last: ResourceCounts) -> None:
    whole, restored = FleetModel(0.05, 0.01), FleetModel(0.05, 0.01)
    for cpu, mem in past:
        whole.update([SliceCounts(cpu, mem)])
    state = whole.state()
    encoded = msgspec.msgpack.encode(state)
    restored.restore(msgspec.msgpack.decode(encoded))
    assert restored.feedback() == whole.feedback()
    assert restored.update([SliceCounts(last, last)]) == whole.update([SliceCounts(last, last)])
    assert msgspec.msgpack.encode(state) == encoded


def test_state_of_another_kind_is_refused() -> None:
    fleet = FleetModel(0.05, 0.05)
    state = fleet.state()
    with pytest.raises(KeyError, match="mem"):
        fleet.restore({"cpu": state["cpu"]})
    with pytest.raises(ValueError, match="3 size classes, not 8"):
        fleet.restore(state | {"mem": state["mem"] | {"shares": [1.0, 2.0, 3.0]}})
    with pytest.raises((TypeError, ValueError)):
        fleet.restore(state | {"mem": state["mem"] | {"level": None}})
    assert fleet.state() == state
