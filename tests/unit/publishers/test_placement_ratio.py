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
    allocation_ratio,
    capacities_of,
    limited_ratio,
    update_inventories,
)
from model.status import Figures, NodeStatus, ResourceStatus

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
    figures = Figures(8.0, 7.0, 5.0, 2.0, 0.0, 6.0, 6.0, 60.0)
    fresh, stale = ResourceStatus("ok", figures), ResourceStatus("stale", figures)
    statuses = [NodeStatus("a", "borg", 60.0, fresh, stale), NodeStatus("b", "borg")]
    # A stale resource has nothing free; one that was never measured has no capacity.
    assert capacities_of(statuses) == [NodeCapacity("a", 6.0, 0.0, 5.0, 5.0), NodeCapacity("b", None, None)]


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
        (12.0, None, "the provider has no such inventory"),
        (12.0, {"total": 10, "reserved": 10}, "the inventory is reserved entirely"),
        (math.nan, {"total": 10, "reserved": 0}, "nan is not a capacity"),
        (math.inf, {"total": 10, "reserved": 0}, "inf is not a capacity"),
        (-1.0, {"total": 10, "reserved": 0}, "-1 is not a capacity"),
    ],
)
def test_missing_ratio_has_a_reason(amount: float, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        limited_ratio(amount, record, LIMITS)


@pytest.mark.parametrize(("allocated", "ratio"), [({"VCPU": 3.0}, 1.5), ({"VCPU": 9.0}, 2.0), ({}, 0.75)])
def test_booked_now_counts_up_to_what_is_allocated(allocated: dict[str, float], ratio: float) -> None:
    inventories = {"VCPU": {"total": 4, "reserved": 0, "allocation_ratio": 1.0}}
    capacity = NodeCapacity("a", 3.0, None, 5.0, 1024.0)
    update = update_inventories(inventories, allocated, capacity, RatioLimits(0.0001, 16.0))
    assert update.inventories["VCPU"]["allocation_ratio"] == ratio


def test_ratio_that_differs_by_single_precision_is_not_written() -> None:
    inventories = {"VCPU": {"total": 3, "reserved": 0, "allocation_ratio": 2.666699886322}, "DISK_GB": {"total": 1}}
    update = update_inventories(inventories, {}, NodeCapacity("a", 8.0, None), LIMITS)
    assert (update.inventories, update.changed, update.notes) == (inventories, False, {"VCPU": ""})
    update = update_inventories(inventories, {}, NodeCapacity("a", 6.0, 100.0), LIMITS)
    assert update.inventories == {**inventories, "VCPU": {**inventories["VCPU"], "allocation_ratio": 2.0}}
    assert update.changed
    assert update.notes == {"VCPU": "", "MEMORY_MB": "the provider has no such inventory"}
