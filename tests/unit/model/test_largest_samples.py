"""Percentiles of the samples of VMs over a window, of which older slices hold the largest alone."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from model.estimator.checkpoint_format import pack_slice, unpack_slice
from model.numerics import FloatArray
from model.slices import RESOURCES, PresentUsage, Slice, Usage, Window

NAMES = tuple("abcdefg")


def random_usage(rng: np.random.Generator, vms: int, samples: int) -> Usage:
    values = np.round(rng.gamma(2.0, 1.0, (vms, samples)), int(rng.integers(1, 6)))
    values[rng.random(values.shape) < rng.choice([0.0, 0.1])] = np.nan
    return Usage(1000.0, rng.random(3), np.full(vms, 4.0), values)


def percentiles(slices: list[PresentUsage], length: int, percent: float) -> FloatArray:
    return Window(slices, length).vm_percentile(percent)


@pytest.mark.parametrize("seed", range(100))
def test_percentile_of_the_largest_is_that_of_all_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length, samples = int(rng.integers(1, 6)), int(rng.integers(1, 400))
    # A slice has at most 1.25 times the samples of another one.
    usages = [random_usage(rng, len(NAMES), int(samples * rng.uniform(1.0, 1.25))) for _ in range(length)]
    for resource in RESOURCES:
        percent = resource.vm_peak_percentile
        older = [PresentUsage(NAMES, usage.with_largest(percent, length)) for usage in usages[:-1]]
        found = percentiles([*older, PresentUsage(NAMES, usages[-1])], length, percent)
        pooled = np.concatenate([usage.vm_usage for usage in usages], axis=1)
        present = np.all([~np.isnan(usage.vm_usage).all(axis=1) for usage in usages], axis=0)
        for i, value in enumerate(found):
            own = pooled[i][~np.isnan(pooled[i])]
            assert value == np.percentile(own, percent) if present[i] else math.isnan(value)


def test_rows_follow_the_names_of_the_last_slice() -> None:
    def of(vms: str, *values: float) -> PresentUsage:
        return PresentUsage(tuple(vms), Usage(8.0, np.ones(1), np.ones(len(vms)), np.array([[v] for v in values])))

    slices = [of("abx", 1, 2, 9), of("ab", 3, 4), of("bcy", 7, 8, 9), of("ab", 5, 6)]
    assert percentiles(slices[:2] + slices[3:], 3, 100.0).tolist() == [5.0, 6.0]
    assert percentiles(slices, 4, 100.0).tolist()[1] == 7.0
    assert math.isnan(percentiles(slices, 4, 100.0)[0])
    assert np.isnan(percentiles(slices, 5, 100.0)).all()
    assert percentiles([of("")], 1, 100.0).tolist() == []


def test_window_with_many_more_samples_than_a_slice_has_no_percentile() -> None:
    """What was left out may be among those that count: the allocation of the VM counts instead."""
    rng = np.random.default_rng(1)
    few, many = (Usage(8.0, np.ones(1), np.ones(1), rng.random((1, n))) for n in (100, 3000))
    older = PresentUsage(("a",), few.with_largest(99.0, 2))
    assert older.usage.vm_usage.shape == (1, 4)
    assert np.isnan(percentiles([older, PresentUsage(("a",), many)], 2, 99.0)).all()
    whole = PresentUsage(("a",), few)
    again = percentiles([whole, PresentUsage(("a",), few)], 2, 99.0)
    assert again == np.percentile(np.concatenate([few.vm_usage, few.vm_usage], axis=1), 99.0)


def test_part_that_is_kept_has_all_of_the_node_and_few_samples_of_vms() -> None:
    usage = random_usage(np.random.default_rng(2), 40, 300)
    largest = usage.with_largest(99.0, 4)
    assert usage.with_largest(99.0, 4) is largest
    assert largest.vm_usage.shape == (40, 16)
    assert largest.with_largest(99.0, 4).vm_usage is largest.vm_usage
    assert usage.with_largest(100.0, 4).vm_usage.shape == (40, 1)
    assert usage.without_vms().vm_usage.shape == (40, 0)
    for part in (largest, usage.without_vms()):
        assert (part.config, part.booked, part.peak) == (usage.config, usage.booked, usage.peak)


def test_checkpoint_holds_the_largest_and_the_numbers() -> None:
    usage = random_usage(np.random.default_rng(3), len(NAMES), 200)
    finished = Slice(60.0, 0, NAMES, usage.with_largest(99.0, 3), usage.with_largest(100.0, 3))
    again = unpack_slice(pack_slice(finished))
    for one, other in ((again.cpu, finished.cpu), (again.mem, finished.mem)):
        np.testing.assert_array_equal(one.vm_usage, other.vm_usage)
        np.testing.assert_array_equal(one.vm_number, other.vm_number)
    window = [PresentUsage(NAMES, of) for of in (again.cpu, usage)]
    expected = np.nanpercentile(np.concatenate([usage.vm_usage] * 2, axis=1), 99.0, axis=1)
    np.testing.assert_array_equal(percentiles(window, 2, 99.0), expected)


def test_checkpoint_of_a_version_that_kept_all_samples_can_be_read() -> None:
    usage = random_usage(np.random.default_rng(4), len(NAMES), 20)
    packed = msgspec.msgpack.decode(pack_slice(Slice(60.0, 0, NAMES, usage, usage)))
    older = msgspec.msgpack.encode([*packed[:3], packed[3][:5], packed[4][:5]])
    again = unpack_slice(older)
    np.testing.assert_array_equal(again.cpu.vm_usage, usage.vm_usage)
    assert again.cpu.vm_number is None
