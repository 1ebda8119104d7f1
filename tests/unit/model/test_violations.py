"""When a slice violates what was published before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest

from model.estimates import Estimate
from model.nodemodel import ModelSettings, NodeModel
from model.slices import Usage
from model.violations import RATE_SLICES, ViolationRecord
from tests.support.vm_slices import slice_of, vm_usage


def booked(*sizes: float, alive: Sequence[bool] | None = None) -> Usage:
    """A node of 20 cores with VMs of these sizes."""
    return vm_usage([1], [(size, [1]) for size in sizes], 20.0, alive)


def published(free: float, usage: Usage) -> ViolationRecord:
    record = ViolationRecord()
    record.note_published(free, usage)
    return record


@pytest.mark.parametrize(
    ("free", "peak", "violated"),
    [
        (4.0, 15.0, 0.0),  # 20 - 15 = 5 were left
        (4.0, 16.0, 0.0),  # exactly as published
        (4.0, 17.0, 1.0),  # 3
        (0.0, 19.9, 0.0),
        (0.0, 19.98, 1.0),  # 99.9 % of 20: full, although 0 was published
        (0.0, 25.0, 1.0),
    ],
)
def test_slice_is_violated_when_less_was_left_or_the_node_was_full(free: float, peak: float, violated: float) -> None:
    record = published(free, booked(8))
    assert record.compare(booked(8), peak, follows=True) == violated
    assert (record.rate, list(record.flags)) == (violated, [int(violated)])


def test_growth_of_what_is_booked_uses_the_published_figure() -> None:
    # Published 4; a VM of 2 cores arrives: 4 - 2 = 2 must be left, and 20 - 17 = 3 are.
    assert published(4.0, booked(8)).compare(booked(8, 2), 17.0, follows=True) == 0.0
    # A VM that was deleted within the slice does not count: 4 > 3.
    assert published(4.0, booked(8)).compare(booked(8, 2, alive=[True, False]), 17.0, follows=True) == 1.0
    # A VM that leaves does not add to the figure: still 4 <= 20 - 16.
    assert published(4.0, booked(8, 2)).compare(booked(8), 16.0, follows=True) == 0.0


def test_nothing_is_compared_without_a_figure_before() -> None:
    record = ViolationRecord()
    assert math.isnan(record.rate)
    assert math.isnan(record.compare(booked(8), 25.0, follows=True))
    record.note_published(4.0, booked(8))
    assert math.isnan(record.compare(booked(8), 25.0, follows=False))
    assert not record.flags


def test_rate_covers_the_last_slices() -> None:
    record = published(4.0, booked(8))
    for k in range(RATE_SLICES + 10):
        record.compare(booked(8), 20.0 if k < 30 else 10.0, follows=True)
    # 110 slices, of which the first 30 were violated; the first 10 of them are forgotten.
    assert len(record.flags) == RATE_SLICES
    assert record.rate == pytest.approx(20 / 100)


def test_restored_record_continues() -> None:
    record, other = published(4.0, booked(8)), ViolationRecord()
    record.compare(booked(8), 20.0, follows=True)
    record.note_published(3.0, booked(8, 2))
    other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(record.state())))
    assert other.compare(booked(8, 4), 17.5, follows=True) == record.compare(booked(8, 4), 17.5, follows=True) == 0.0
    assert other.state() == record.state()
    fresh = ViolationRecord()
    fresh.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(ViolationRecord().state())))
    assert math.isnan(fresh.compare(booked(8), 20.0, follows=True))


# --- in the model of a node ---------------------------------------------------------------------------


def estimates(strategy: str, usages: Sequence[Usage], *, guarded: bool) -> list[Estimate]:
    model = NodeModel(ModelSettings(0, (strategy,), guarded=guarded))
    return [model.update(slice_of(k, usage)).cpu.by_strategy[strategy] for k, usage in enumerate(usages)]


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("strategy", ["clt", "conformal", "rclike", "nsigma"])
def test_full_slice_is_violated_although_nothing_was_published(strategy: str, guarded: bool) -> None:
    full = vm_usage([10, 10], [(10, [10, 10])])
    first, second = estimates(strategy, [full, full], guarded=guarded)
    assert first.published == second.published == 0.0
    assert math.isnan(first.violated)
    assert (second.violated, second.violation_rate) == (1.0, 1.0)


@pytest.mark.parametrize(("guarded", "rate"), [(True, 1.0), (False, 0.0)])
def test_conformal_counts_full_slices_where_guards_are_on(guarded: bool, rate: float) -> None:
    full = vm_usage([10, 10], [(10, [10, 10])])
    assert estimates("conformal", [full] * 5, guarded=guarded)[-1].forecast_violation_rate == rate


def test_published_figure_is_compared_with_the_slice_after_it() -> None:
    calm, busy = vm_usage([2, 2], [(4, [2, 2])]), vm_usage([9, 9], [(4, [4, 4])])
    gap = vm_usage([], [(4, [])])
    # nsigma, h = 0: T = 2, published 8; with 9 in use 1 is left; then 1 was published, and 8 were left.
    flags = [one.violated for one in estimates("nsigma", [calm, busy, calm, gap, busy], guarded=False)]
    assert repr(flags) == repr([math.nan, 1.0, 0.0, math.nan, math.nan])
