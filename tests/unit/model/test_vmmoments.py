"""Mean and mean square of single VMs, and the classes of their sizes."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.slices import CPU, MEMORY
from model.vmmoments import LEAST_SCOPE, VmMoments, size_classes
from tests.support.vm_slices import vm_usage


def test_size_classes_are_powers_of_two() -> None:
    # log2(3) = 1.58 is nearer to 2; below 1 core and above 128 there is no class; 0 and NaN are unknown.
    sizes = np.array([0.25, 1.0, 2.0, 3.0, 4.0, 128.0, 1024.0, 0.0, math.nan])
    assert size_classes(CPU, sizes).tolist() == [0, 0, 1, 2, 2, 7, 7, 0, 0]
    assert size_classes(MEMORY, np.array([256.0, 512.0, 1024.0, 4096.0, 65536.0, 1e9])).tolist() == [0, 0, 1, 3, 7, 7]
    assert size_classes(CPU, np.empty(0)).shape == (0,)


def test_first_slices_count_alike() -> None:
    moments = VmMoments(CPU, 24)
    first = moments.update(("a",), vm_usage([3], [(4, [1, 3])]))
    # Mean 2, mean square (1 + 9) / 2, variance 5 - 4.
    assert (first.ages.tolist(), first.used.tolist(), first.means.tolist()) == ([1.0], [2.0], [2.0])
    assert (first.squares.tolist(), first.variances.tolist()) == ([5.0], [1.0])
    assert math.isnan(first.expected[0])
    second = moments.update(("a",), vm_usage([4], [(4, [4, math.nan])]))
    # (2 + 4) / 2 and (5 + 16) / 2.
    assert (second.ages.tolist(), second.means.tolist(), second.squares.tolist()) == ([2.0], [3.0], [10.5])
    assert (second.expected.tolist(), second.used.tolist()) == ([2.0], [4.0])


@pytest.mark.parametrize(("scope", "weight"), [(1, 1 / 24), (24, 1 / 24), (48, 1 / 48)])
def test_later_slices_count_over_a_scope_of_at_least_a_day(scope: int, weight: float) -> None:
    moments = VmMoments(CPU, scope)
    for _ in range(100):
        moments.update(("a",), vm_usage([1], [(4, [1])]))
    last = moments.update(("a",), vm_usage([2], [(4, [3])]))
    assert moments.scope == max(scope, LEAST_SCOPE)
    assert last.means[0] == pytest.approx(1 + weight * (3 - 1))
    assert last.squares[0] == pytest.approx(1 + weight * (9 - 1))


def test_vm_without_samples_keeps_its_figures_and_its_age() -> None:
    moments = VmMoments(CPU, 24)
    moments.update(("a", "b"), vm_usage([3], [(4, [1, 3]), (2, [1, 1])]))
    gap = moments.update(("a", "b"), vm_usage([3], [(4, [math.nan]), (2, [2])]))
    assert (gap.ages.tolist(), gap.means.tolist(), gap.squares.tolist()) == ([1.0, 2.0], [2.0, 1.5], [5.0, 2.5])
    assert math.isnan(gap.used[0])
    assert gap.expected.tolist() == [2.0, 1.0]
    none = moments.update(("a", "b"), vm_usage([3], [(4, []), (2, [])]))
    assert (none.ages.tolist(), none.means.tolist()) == ([1.0, 2.0], [2.0, 1.5])


def test_figures_follow_the_names() -> None:
    moments = VmMoments(CPU, 24)
    moments.update(("a", "b"), vm_usage([3], [(4, [1]), (2, [2])]))
    moved = moments.update(("aa", "b", "c"), vm_usage([3], [(1, [0.5]), (2, [2]), (4, [3])]))
    assert moved.ages.tolist() == [1.0, 2.0, 1.0]
    assert moved.means.tolist() == [0.5, 2.0, 3.0]
    assert np.isnan(moved.expected).tolist() == [True, False, True]
    assert moved.classes.tolist() == [0, 1, 2]


def test_absent_vm_starts_afresh() -> None:
    moments = VmMoments(CPU, 24)
    for names, samples in ((("a",), [4.0]), ((), None), (("a",), [1.0])):
        last = moments.update(names, vm_usage([3], [] if samples is None else [(4, samples)]))
        assert last.ages.tolist() == [1.0] * len(names)
    assert last.means.tolist() == [1.0]


def test_vms_are_alive_unless_the_slice_states_otherwise() -> None:
    vms = [(4.0, [1.0]), (math.nan, [1.0])]
    assert VmMoments(CPU, 1).update(("a", "b"), vm_usage([3], vms)).alive.tolist() == [True, True]
    dead = VmMoments(CPU, 1).update(("a", "b"), vm_usage([3], vms, alive=[True, False]))
    assert (dead.alive.tolist(), dead.classes.tolist(), dead.means.tolist()) == ([True, False], [2, 0], [1.0, 1.0])


def test_restored_moments_continue() -> None:
    whole, restored = VmMoments(CPU, 24), VmMoments(CPU, 24)
    whole.update(("a", "b"), vm_usage([3], [(4, [1, 3]), (2, [math.nan])]))
    state = whole.state()
    encoded = msgspec.msgpack.encode(state)
    restored.restore(msgspec.msgpack.decode(encoded))
    usage = vm_usage([3], [(2, [1]), (4, [2])])
    assert repr(restored.update(("b", "c"), usage)) == repr(whole.update(("b", "c"), usage))
    assert msgspec.msgpack.encode(state) == encoded
    with pytest.raises(KeyError, match="squares"):
        restored.restore({"names": [], "ages": [], "means": []})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=4), min_size=1, max_size=40))
def test_figures_are_within_the_samples(slices: list[list[float]]) -> None:
    moments = VmMoments(CPU, 1)
    for samples in slices:
        last = moments.update(("a",), vm_usage([0], [(4, samples)]))
    least, most = min(map(min, slices)), max(map(max, slices))
    assert least * (1 - 1e-9) <= last.means[0] <= most * (1 + 1e-9)
    assert 0 <= last.variances[0] <= (most - least) ** 2 / 4 + 1e-6 * most**2
