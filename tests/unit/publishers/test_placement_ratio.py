"""Capacities and allocation ratios."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.publishers.placement.ratio import (
    NodeCapacity,
    RatioLimits,
    ResourceCapacity,
    allocation_ratio,
    capacities_of,
    limited_ratio,
    update_inventories,
)
from model.status import Figures, NodeStatus, ResourceStatus
from tests.support.placement import capacity_of, resource_capacity

LIMITS = RatioLimits(1.0, 16.0)


@given(st.floats(0, 99), st.integers(1, 2**22), st.booleans())
def test_offered_capacity_is_at_most_the_amount_and_close_to_it(share: float, usable: int, whole: bool) -> None:
    amount = float(int(share * usable)) if whole else share * usable
    ratio = allocation_ratio(amount, usable)
    assert round(ratio, 4) == ratio
    assert int(usable * ratio) <= amount + 1e-6
    # Exact below 5000 units (cores); of memory less than a step is lost.
    lost = int(amount) - usable * ratio
    assert lost <= (0 if usable < 5000 else usable / 10_000)


def test_capacity_has_what_is_booked_now_and_what_is_free() -> None:
    figures = Figures(8.0, 7.0, 5.0, 2.0, 0.0, 6.0, 6.0, 60.0, own=0.5)
    fresh, stale = ResourceStatus("ok", figures), ResourceStatus("stale", figures)
    statuses = [NodeStatus("a", "borg", 60.0, fresh, stale), NodeStatus("b", "borg")]
    # A stale resource has nothing free; one that was never measured has no capacity.
    assert capacities_of(statuses) == [
        NodeCapacity("a", ResourceCapacity(6.0, 5.0, 8.0, 0.5, 60.0), ResourceCapacity(0.0, 5.0, 8.0, 0.5, 60.0)),
        NodeCapacity("b", None, None),
    ]


@pytest.mark.parametrize(
    ("amount", "limits", "expected"),
    [
        (12.0, LIMITS, (1.5, "")),
        (4.0, LIMITS, (1.0, "")),
        (4.0, RatioLimits(0.0001, 16.0), (0.5, "")),
        (0.0, RatioLimits(0.0001, 16.0), (0.0001, "")),
        (160.0, LIMITS, (16.0, "ratio 20 is limited to 16")),
    ],
)
def test_ratio_stays_within_the_limits(amount: float, limits: RatioLimits, expected: tuple[float, str]) -> None:
    assert limited_ratio(amount, {"total": 10, "reserved": 2}, limits) == expected


@pytest.mark.parametrize(
    ("amount", "record", "message"),
    [
        (12.0, {"total": 10, "reserved": 10}, "the inventory is reserved entirely"),
        (math.nan, {"total": 10, "reserved": 0}, "nan is not a capacity"),
        (math.inf, {"total": 10, "reserved": 0}, "inf is not a capacity"),
        (-1.0, {"total": 10, "reserved": 0}, "-1 is not a capacity"),
    ],
)
def test_missing_ratio_has_a_reason(amount: float, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        limited_ratio(amount, record, LIMITS)


def updated_ratio(inventories: dict[str, Any], capacity: NodeCapacity, booked: float = 0.0) -> tuple[float, str]:
    """The ratio of VCPU, and the note beside it."""
    update = update_inventories(inventories, {"VCPU": booked}, capacity, RatioLimits(0.0001, 16.0))
    return update.inventories["VCPU"]["allocation_ratio"], update.notes["VCPU"]


def vcpu(total: float, reserved: float = 0, **others: Any) -> dict[str, Any]:
    return {"VCPU": {"total": total, "reserved": reserved, "allocation_ratio": 3.0}, **others}


def of_cpu(free: float, config: float, own: float = 0.0) -> NodeCapacity:
    return NodeCapacity("a", resource_capacity(free, config=config, own=own), None)


def test_ratio_that_differs_by_single_precision_is_not_written() -> None:
    inventories = {"VCPU": {"total": 3, "reserved": 0, "allocation_ratio": 2.666699886322}, "DISK_GB": {"total": 1}}
    update = update_inventories(inventories, {}, capacity_of("a", 8.0, None), LIMITS)
    assert (update.inventories, update.changed, update.notes) == (inventories, False, {"VCPU": ""})
    assert update.ratios == {"VCPU": 2.6667}
    update = update_inventories(inventories, {}, capacity_of("a", 6.0, 100.0), LIMITS)
    assert update.inventories == {**inventories, "VCPU": {**inventories["VCPU"], "allocation_ratio": 2.0}}
    assert update.changed
    assert update.notes == {"VCPU": "", "MEMORY_MB": "the provider has no such inventory"}


@pytest.mark.parametrize(
    ("reserved", "own", "ratio"),
    [
        (0, 0.0, 30 / 32),
        (8, 0.0, 22 / 24),  # 8 cores are kept back
        (8, 3.0, 25 / 24),  # of which the node uses 3, which are not free already
        (8, 9.0, 30 / 24),
        (8, 90.0, 30 / 24),
    ],
)
def test_reserve_is_kept_back_less_what_the_node_itself_uses(reserved: int, own: float, ratio: float) -> None:
    """10 vCPUs are booked, 20 cores are free; a capacity that only divides by less cancels the reserve."""
    written, note = updated_ratio(vcpu(32, reserved), of_cpu(20.0, 32.0, own), 10.0)
    assert (written, note) == (pytest.approx(ratio, abs=1e-4), "")


@pytest.mark.parametrize(
    ("free", "ratio"),
    [
        (30.0, (4 + 30 - 24) / 8),  # all that is used may be used of the 8 shared cores
        (25.0, (4 + 1) / 8),
        (24.0, 4 / 8),
        (5.0, 4 / 8),
        (0.0, 4 / 8),
    ],
)
def test_dedicated_cpus_are_not_free_for_shared_ones(free: float, ratio: float) -> None:
    """8 shared and 24 dedicated CPUs on a node of 32 cores; 4 vCPUs are booked on the shared ones."""
    inventories = vcpu(8, PCPU={"total": 24, "reserved": 0, "allocation_ratio": 1.0})
    assert updated_ratio(inventories, of_cpu(free, 32.0), 4.0) == (ratio, "")


def test_overbooked_part_that_is_in_use_is_closed() -> None:
    """12 vCPUs are booked on 8 shared cores, and what is free elsewhere is not free there: what VMs leave is kept."""
    inventories = vcpu(8, PCPU={"total": 24, "reserved": 0, "allocation_ratio": 1.0})
    assert updated_ratio(inventories, of_cpu(20.0, 32.0), 12.0) == (1.0, "")


def test_cores_outside_of_the_inventory_are_not_free_but_for_what_the_node_uses_of_them() -> None:
    assert updated_ratio(vcpu(28), of_cpu(20.0, 32.0), 12.0) == (1.0, "")
    assert updated_ratio(vcpu(28), of_cpu(20.0, 32.0, own=1.0), 12.0) == (1.0358, "")  # 29 of 28


@pytest.mark.parametrize(
    ("inventories", "size"),
    [(vcpu(40), "40"), (vcpu(16, PCPU={"total": 24, "reserved": 0, "allocation_ratio": 1.0}), "16 and 24 dedicated")],
)
def test_inventory_larger_than_the_node_is_left_alone(inventories: dict[str, Any], size: str) -> None:
    ratio, note = updated_ratio(inventories, of_cpu(20.0, 32.0), 10.0)
    assert ratio == 3.0
    assert note == f"the inventory has {size}, the node 32; the ratio is not kept"


def test_own_ratio_of_a_part_that_is_no_longer_known_is_lowered_to_what_is_booked() -> None:
    """The node shrinks from 40 cores to 32: the ratio that was written for 40 must not stay."""
    update = update_inventories(vcpu(40), {"VCPU": 60.0}, of_cpu(20.0, 32.0), LIMITS, {"VCPU": 3.0})
    assert update.inventories["VCPU"]["allocation_ratio"] == 1.5
    update = update_inventories(vcpu(40), {"VCPU": 200.0}, of_cpu(20.0, 32.0), LIMITS, {"VCPU": 3.0})
    assert update.inventories["VCPU"]["allocation_ratio"] == 3.0


def test_memory_of_a_kernel_may_be_a_little_less_than_the_inventory() -> None:
    inventories = {"MEMORY_MB": {"total": 65536, "reserved": 0, "allocation_ratio": 1.0}}
    capacity = NodeCapacity("a", None, resource_capacity(32768.0, 49152.0, config=64512.0, own=0.0))
    update = update_inventories(inventories, {"MEMORY_MB": 49152.0}, capacity, LIMITS)
    assert update.ratios == {"MEMORY_MB": 1.25}
    assert update.notes == {"MEMORY_MB": ""}


@given(
    st.floats(0, 64),
    st.integers(1, 64),
    st.integers(0, 64),
    st.integers(0, 64),
    st.floats(0, 64),
    st.floats(0, 200),
)
def test_part_offers_at_most_what_the_node_has_free(
    free: float, total: int, dedicated: int, reserved: int, own: float, booked: float
) -> None:
    """Never more than what is booked and what is free on the whole node, whatever Placement says of its parts."""
    inventories = vcpu(total, min(reserved, total - 1), PCPU={"total": dedicated, "reserved": 0})
    update = update_inventories(inventories, {"VCPU": booked}, of_cpu(free, 64.0, own), RatioLimits(0.0001, 16.0))
    if total + dedicated > 64.0 * 1.02:
        assert not update.changed
        return
    record = update.inventories["VCPU"]
    offered = int((record["total"] - record["reserved"]) * record["allocation_ratio"])
    assert offered <= booked + max(0.0, free - dedicated) + 1e-6
