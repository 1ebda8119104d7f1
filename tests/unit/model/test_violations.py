"""The realised risk: slices in which the node was full, or more was used than was left."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.slices import Slice, Usage
from model.violations import ViolationRecord


def usage(peak: float, booked: float = 8.0, alive: list[bool] | None = None, config: float = 16.0) -> Usage:
    """A node of 16 cores with VMs of 4 cores."""
    count = round(booked / 4)
    flags = None if alive is None else np.array(alive)
    return Usage(config, np.full(5, peak), np.full(count, 4.0), np.full((count, 5), 0.5), vm_alive=flags)


def compared(published: float, before: Usage, after: Usage, peak: float) -> float:
    record = ViolationRecord()
    record.note_published(published, before)
    return record.compare(after, peak, follows=True)


@pytest.mark.parametrize(
    ("published", "booked", "peak", "violated"),
    [
        (6.0, 8.0, 9.0, 0.0),  # 16 - 9 = 7 were free
        (6.0, 8.0, 10.0, 0.0),  # exactly what was left
        (6.0, 8.0, 10.5, 1.0),
        (6.0, 12.0, 13.0, 0.0),  # a VM of 4 was placed: 6 - 4 = 2 were left, 3 were free
        (6.0, 12.0, 14.5, 1.0),
        (6.0, 4.0, 10.5, 1.0),  # a VM left; that adds nothing
        (0.0, 8.0, 15.9, 0.0),
        (0.0, 8.0, 16.0, 1.0),  # full: nothing was published, and yet the VMs may have wanted more
        (0.0, 8.0, 0.999 * 16, 1.0),
    ],
)
def test_slice_is_violated_when_full_or_when_more_was_used_than_was_left(
    published: float, booked: float, peak: float, violated: float
) -> None:
    assert compared(published, usage(1.0), usage(peak, booked), peak) == violated


def test_growth_is_that_of_booked_now() -> None:
    """One of two VMs was replaced in the slice: three are booked in it, two are there before and after."""
    replaced = usage(9.5, 12.0, [False, True, True])
    assert (replaced.booked, replaced.booked_now) == (12.0, 8.0)
    assert compared(7.0, usage(1.0), replaced, 9.5) == 1.0
    assert compared(6.0, usage(1.0), replaced, 9.5) == 0.0


def test_slice_without_a_figure_before_it_is_not_compared() -> None:
    record = ViolationRecord()
    assert math.isnan(record.compare(usage(16.0), 16.0, follows=True))
    record.note_published(4.0, usage(1.0))
    assert math.isnan(record.compare(usage(16.0), 16.0, follows=False))
    assert math.isnan(record.rate)
    assert record.flags == []


def test_rate_covers_the_last_hundred_slices() -> None:
    record = ViolationRecord()
    record.note_published(4.0, usage(1.0))
    for peak in (16.0, *[1.0] * 3):
        record.compare(usage(peak), peak, follows=True)
    assert record.rate == 0.25
    for _ in range(97):
        record.compare(usage(1.0), 1.0, follows=True)
    assert record.rate == 0.0


def test_record_continues_from_its_state() -> None:
    whole = ViolationRecord()
    restarted = ViolationRecord()
    for k in range(120):
        peak = 16.0 if k % 7 == 0 else 3.0
        copy = ViolationRecord()
        copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state())))
        restarted = copy
        results = [record.compare(usage(peak), peak, follows=k > 0) for record in (whole, restarted)]
        assert results[0] == results[1] or all(map(math.isnan, results))
        for record in (whole, restarted):
            record.note_published(float(k % 5), usage(peak))
    assert whole.state() == restarted.state()
    assert len(whole.flags) == 100


def a_slice(k: int, node: Usage) -> Slice:
    return Slice(60.0 * (k + 1), 0, tuple(f"vm{i}" for i in range(node.vm_config.size)), node, node)


@pytest.mark.parametrize("guarded", [False, True])
def test_rate_exists_for_every_strategy_and_is_not_the_one_of_the_forecast(guarded: bool) -> None:
    """borg publishes 16 - 7.2 = 8.8 (bare); 3, 12 (violated: 4 were free) and 16 (full) are used."""
    model = NodeModel(ModelSettings(1, tuple(STRATEGIES), guarded=guarded))
    results = [model.update(a_slice(k, usage(peak))).cpu.by_strategy for k, peak in enumerate((3.0, 3.0, 12.0, 16.0))]
    for name, one in results[-1].items():
        assert one.violated == 1.0
        assert one.violation_rate >= 1 / 3
        assert math.isnan(one.forecast_violation_rate) == (name != "conformal")
    assert [one["borg"].violated for one in results[1:]] == [0.0, 0.0 if guarded else 1.0, 1.0]


def test_full_node_that_publishes_nothing_is_violated_and_its_forecast_is_not() -> None:
    model = NodeModel(ModelSettings(1, ("conformal",)))
    for k in range(30):
        estimate = model.update(a_slice(k, usage(16.0, 16.0))).cpu.by_strategy["conformal"]
    assert estimate.published == 0.0
    assert estimate.violation_rate == 1.0
    assert estimate.forecast_violation_rate == 0.0
