"""Mean and mean square of what each VM uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from model.slices import Usage
from model.vmmoments import VmFigures, VmMoments
from tests.unit.model.test_conformal import odd_slices

NAN = math.nan


def usage(rows: Sequence[Sequence[float]], alive: Sequence[bool] | None = None) -> Usage:
    """VMs of 4 cores with the samples of each."""
    samples = np.array(rows, dtype=float).reshape(len(rows), len(rows[0]) if rows else 0)
    flags = None if alive is None else np.array(alive)
    return Usage(64.0, np.ones(3), np.full(len(rows), 4.0), samples, vm_alive=flags)


def test_moments_of_a_young_vm_are_plain_means() -> None:
    moments = VmMoments(24)
    moments.update(("a",), usage([[1, 3]]))  # mean 2, mean square (1 + 9) / 2
    figures = moments.update(("a",), usage([[4, 4]]))
    assert figures.ages.tolist() == [2.0]
    assert figures.means.tolist() == [3.0]
    assert figures.squares.tolist() == [(5.0 + 16.0) / 2]
    assert figures.variances.tolist() == [10.5 - 9.0]
    assert figures.used.tolist() == [4.0]
    assert figures.expected.tolist() == [2.0]  # the mean before this slice


@pytest.mark.parametrize(("scope", "step"), [(1, 24), (24, 24), (48, 48)])
def test_moments_are_exponential_averages_over_a_scope_of_at_least_24_slices(scope: int, step: int) -> None:
    moments = VmMoments(scope)
    for _ in range(100):
        moments.update(("a",), usage([[1.0]]))
    figures = moments.update(("a",), usage([[3.0]]))
    assert figures.means[0] == pytest.approx(1.0 + 2.0 / step)
    assert figures.squares[0] == pytest.approx(1.0 + 8.0 / step)


def test_vm_that_was_absent_starts_afresh_and_the_others_keep_their_moments() -> None:
    moments = VmMoments(24)
    moments.update(("a", "b", "c"), usage([[1], [2], [3]]))
    figures = moments.update(("c", "d", "a"), usage([[3], [7], [1]]))
    assert figures.ages.tolist() == [2.0, 1.0, 2.0]
    assert figures.means.tolist() == [3.0, 7.0, 1.0]
    np.testing.assert_array_equal(figures.expected, [3.0, NAN, 1.0])
    figures = moments.update(("b", "a"), usage([[5], [1]]))
    assert figures.ages.tolist() == [1.0, 3.0]
    assert figures.means.tolist() == [5.0, 1.0]


def test_slice_without_samples_of_a_vm_makes_it_no_older() -> None:
    moments = VmMoments(24)
    before = moments.update(("a", "b"), usage([[1, NAN], [NAN, NAN]]))
    assert (before.ages.tolist(), before.means.tolist()) == ([1.0, 0.0], [1.0, 0.0])
    figures = moments.update(("a", "b"), usage([[NAN, NAN], [2, NAN]]))
    assert figures.ages.tolist() == [1.0, 1.0]
    assert figures.means.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(figures.used, [NAN, 2.0])
    np.testing.assert_array_equal(figures.expected, [1.0, NAN])


def test_all_vms_are_alive_unless_the_slice_names_those_that_are() -> None:
    assert VmMoments(24).update(("a", "b"), usage([[1], [1]])).alive.tolist() == [True, True]
    assert VmMoments(24).update(("a", "b"), usage([[1], [1]], [False, True])).alive.tolist() == [False, True]


def test_node_without_vms_or_without_samples_has_empty_figures() -> None:
    moments = VmMoments(24)
    assert moments.update((), usage([])).means.shape == (0,)
    nothing = Usage(64.0, np.ones(3), np.array([4.0]), np.empty((1, 0)))
    assert moments.update(("a",), nothing).ages.tolist() == [0.0]


def equal(one: VmFigures, other: VmFigures) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name != "alive")
        for name in VmFigures.__dataclass_fields__
    )


@pytest.mark.parametrize("seed", range(3))
def test_moments_continue_from_their_state(seed: int) -> None:
    whole = VmMoments(3)
    data = msgspec.msgpack.encode(whole.state())
    for finished in odd_slices(seed):
        restarted = VmMoments(3)
        restarted.restore(msgspec.msgpack.decode(data))
        figures = whole.update(finished.vms, finished.cpu)
        assert equal(restarted.update(finished.vms, finished.cpu), figures)
        data = msgspec.msgpack.encode(restarted.state())
        assert np.isfinite(figures.means).all()
        assert (figures.variances >= 0).all()


def test_figures_of_a_slice_are_not_changed_by_later_ones() -> None:
    moments = VmMoments(24)
    figures = moments.update(("a",), usage([[1.0]]))
    moments.update(("a",), usage([[3.0]]))
    assert (figures.ages.tolist(), figures.means.tolist()) == ([1.0], [1.0])
