"""What the nodes of a fleet learn from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from model.feedback import (
    SIZE_CLASSES,
    Feedback,
    FleetModel,
    ResourceCounts,
    SliceCounts,
    count_usage,
    size_class,
)
from model.nodemodel import ModelSettings, NodeModel
from model.slices import CPU, MEMORY, Usage
from model.vmmoments import VmMoments
from tests.unit.model.test_conformal import odd_slices

NAN = math.nan


def classes(**counts: float) -> tuple[float, ...]:
    """Values by size class: ``c0``, ``c1`` ..., otherwise 0."""
    return tuple(counts.get(f"c{i}", 0.0) for i in range(SIZE_CLASSES))


def usage(sizes: Sequence[float], rows: Sequence[Sequence[float]]) -> Usage:
    return Usage(64.0, np.ones(3), np.array(sizes, dtype=float), np.array(rows, dtype=float).reshape(len(sizes), -1))


def counted(one: Usage, *, full: bool = False) -> ResourceCounts:
    vms = VmMoments(24).update(tuple(f"vm{i}" for i in range(one.vm_config.size)), one)
    return count_usage(CPU, one, vms, full=full)


# --- counts of a slice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "sizes", "expected"),
    [
        (CPU, [0.5, 1, 2, 3, 4, 64, 128, 1e6], [0, 0, 1, 2, 2, 6, 7, 7]),
        (CPU, [NAN, 0.0, -1.0, math.inf], [0, 0, 0, 7]),
        (MEMORY, [256, 512, 1024, 65536, 2**30], [0, 0, 1, 7, 7]),
    ],
)
def test_size_classes_are_powers_of_two(resource: object, sizes: list[float], expected: list[int]) -> None:
    assert size_class(CPU if resource is CPU else MEMORY, np.array(sizes, dtype=float)).tolist() == expected


def test_vms_count_with_the_share_of_their_size_by_class() -> None:
    # Shares of the VM of 4: 0.25 and 0.75; of those of 1: 0.5, and 1 though the reading is 1.2.
    counts = counted(usage([4, 1, 1], [[1, 3], [0.5, NAN], [1.2, 1.2]]), full=True)
    assert (counts.nodes, counts.full, counts.largest) == (1.0, 1.0, 4.0)
    assert counts.observations == classes(c0=2.0, c2=1.0)
    assert counts.shares == classes(c0=1.5, c2=0.5)
    assert counts.squares == classes(c0=0.25 + 1.0, c2=(0.0625 + 0.5625) / 2)


def test_vm_without_a_size_or_without_samples_is_not_observed() -> None:
    counts = counted(usage([NAN, 0.0, 2.0], [[1, 1], [1, 1], [NAN, NAN]]))
    assert counts.observations == classes()
    assert counts.shares == classes()
    assert (counts.nodes, counts.largest) == (1.0, 2.0)


def test_node_without_samples_counts_nothing() -> None:
    silent = Usage(64.0, np.empty(0), np.array([4.0]), np.ones((1, 2)))
    assert counted(silent, full=True) == ResourceCounts()


def test_expected_are_the_means_of_the_vms_that_were_there_before() -> None:
    moments = VmMoments(24)
    moments.update(("a", "b"), usage([4, 4], [[1], [2]]))
    now = usage([4, 4, 4], [[3], [NAN], [4]])
    counts = count_usage(CPU, now, moments.update(("a", "b", "new"), now), full=False)
    # b has no samples now, and new had none before.
    assert (counts.expected, counts.used) == (1.0, 3.0)


def test_counts_of_nodes_add_up_whatever_the_order() -> None:
    one, other = counted(usage([4], [[1]]), full=True), counted(usage([8, 1], [[2], [1]]))
    total = one.plus(other)
    assert total == other.plus(one)
    assert (total.nodes, total.full, total.largest) == (2.0, 1.0, 8.0)
    assert total.observations == classes(c0=1.0, c2=1.0, c3=1.0)
    assert one.plus(ResourceCounts()) == one


# --- sums over slices -----------------------------------------------------------------------------------


def fleet_after(*slices: ResourceCounts, risk: float = 0.05) -> Feedback:
    fleet = FleetModel(risk, risk)
    feedback = fleet.feedback()
    for counts in slices:
        feedback = fleet.update([SliceCounts(cpu=counts)])
    return feedback


def test_unknown_vms_may_use_all_of_their_size() -> None:
    few = ResourceCounts(nodes=1, observations=classes(c2=29.0), shares=classes(c2=2.9), squares=classes(c2=0.3))
    for feedback in (fleet_after(), fleet_after(few)):
        assert feedback.cpu.mean == feedback.cpu.square == (1.0,) * SIZE_CLASSES
        assert (feedback.cpu.level, feedback.cpu.largest, feedback.cpu.common) == pytest.approx(
            (feedback.cpu.level, 0.0, 0.0)
        )


def test_class_with_few_observations_takes_the_figures_of_all() -> None:
    counts = ResourceCounts(
        nodes=1,
        observations=classes(c1=60.0, c2=20.0),
        shares=classes(c1=12.0, c2=16.0),
        squares=classes(c1=6.0, c2=14.0),
    )
    cpu = fleet_after(counts).cpu
    # Class 1: 12 / 60; class 2 and those without observations: 28 / 80.
    assert cpu.mean == pytest.approx([0.35, 0.2, *[0.35] * 6])
    assert cpu.square == pytest.approx([0.25, 0.1, *[0.25] * 6])


def test_old_observations_fade() -> None:
    one = ResourceCounts(nodes=1, observations=classes(c0=40.0), shares=classes(c0=40.0), largest=8.0)
    other = ResourceCounts(nodes=1, observations=classes(c0=40.0), shares=classes(c0=4.0), largest=1.0)
    cpu = fleet_after(one, other).cpu
    # (0.95 x 40 + 4) / (0.95 x 40 + 40); the largest VM fades as well.
    assert cpu.mean[0] == pytest.approx(42.0 / 78.0)
    assert cpu.largest == pytest.approx(0.95 * 8.0)


def level_after(*full: float, nodes: float = 20.0, risk: float = 0.05) -> float:
    return fleet_after(*(ResourceCounts(nodes=nodes, full=one) for one in full), risk=risk).cpu.level


def test_level_aims_at_half_of_the_target_risk() -> None:
    # Half of 5 % of 40 nodes is one node: the level stays.
    assert level_after(1.0, nodes=40.0) == pytest.approx(0.0)
    # Without full nodes it falls by 0.01 a slice; 2 of 40 are twice the aim.
    assert level_after(0.0) == pytest.approx(-0.01)
    assert level_after(2.0, nodes=40.0) == pytest.approx(0.01)
    # A slice raises it by 0.3 at most: 0.01 (1 / 0.025 - 1) = 0.39.
    assert level_after(20.0) == pytest.approx(0.3)


def test_level_is_bounded() -> None:
    assert level_after(*[0.0] * 300) == -1.0
    assert level_after(*[20.0] * 100) == 10.0


def test_risk_of_zero_raises_the_level_with_every_full_node() -> None:
    assert level_after(1.0, risk=0.0) == pytest.approx(0.3)
    assert level_after(0.0, risk=0.0) == 0.0


def test_correlation_is_the_excess_of_the_fleet_over_the_sum_of_the_means() -> None:
    def common(*pairs: tuple[float, float]) -> float:
        return fleet_after(*(ResourceCounts(nodes=1, expected=a, used=b) for a, b in pairs)).cpu.common

    # 20 % more: 2 x 0.2^2, with a weight of 1 / (1 + 12); less than expected counts as none.
    assert common((10.0, 12.0)) == pytest.approx(math.sqrt(2 * 0.04 / 13))
    assert common((10.0, 8.0), (0.0, 3.0)) == 0.0
    assert common(*[(10.0, 12.0)] * 2000) == pytest.approx(math.sqrt(2 * 0.04), rel=1e-3)


def test_slice_without_nodes_changes_nothing() -> None:
    fleet = FleetModel(0.05, 0.05)
    fleet.update([SliceCounts(cpu=counted(usage([4], [[1]]), full=True))])
    before = fleet.state()
    fleet.update([])
    fleet.update([SliceCounts()])
    assert fleet.state() == before


def test_resources_have_their_own_counts_and_risks() -> None:
    fleet = FleetModel(0.05, 0.5)
    full = ResourceCounts(nodes=40.0, full=2.0, largest=4.0)
    feedback = fleet.update([SliceCounts(cpu=full, mem=full)])
    assert (feedback.cpu.level, feedback.mem.level) == pytest.approx((0.01, 0.01 * (0.05 / 0.25 - 1)))
    assert feedback.of(CPU) is feedback.cpu
    assert feedback.of(MEMORY) is feedback.mem


@pytest.mark.parametrize("seed", range(2))
def test_fleet_continues_from_its_state(seed: int) -> None:
    model = NodeModel(ModelSettings(1, ("clt",), guarded=True))
    counts = [model.update(finished).counts for finished in odd_slices(seed)]
    whole, data = FleetModel(0.05, 0.01), msgspec.msgpack.encode(FleetModel(0.05, 0.01).state())
    for one in counts:
        restarted = FleetModel(0.05, 0.01)
        restarted.restore(msgspec.msgpack.decode(data))
        assert restarted.feedback() == whole.feedback()
        assert restarted.update([one]) == whole.update([one])
        data = msgspec.msgpack.encode(restarted.state())


@pytest.mark.parametrize("change", [{"cpu": {}}, {"cpu": {"shares": [1.0]}}])
def test_state_of_another_form_is_refused(change: dict[str, dict[str, list[float]]]) -> None:
    state = FleetModel(0.05, 0.05).state()
    broken = {"mem": state["mem"], "cpu": {**state["cpu"], **change["cpu"]} if change["cpu"] else {}}
    with pytest.raises((KeyError, ValueError)):
        FleetModel(0.05, 0.05).restore(broken)


def test_node_without_a_fleet_is_a_fleet_of_its_own() -> None:
    settings = ModelSettings(1, ("clt",), positions=3, guarded=True)
    alone, of_fleet, fleet = NodeModel(settings), NodeModel(settings), FleetModel(0.05, 0.05)
    for finished in odd_slices(4):
        with_feedback = of_fleet.update(finished, fleet.feedback())
        fleet.update([with_feedback.counts])
        assert repr(alone.update(finished)) == repr(with_feedback)
