"""Series and workloads: which element of a series a VM uses in which step, and when it exists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.simulation.workload import SeriesPool, Workload
from model.slices import CPU, MEMORY


def pool(*series: list[float]) -> SeriesPool:
    return SeriesPool([np.array(one, np.float32) for one in series])


def test_a_series_repeats_after_its_end() -> None:
    shares = pool([0.0, 0.25, 0.5], [1.0], [0.125, 0.75])
    series, offsets = np.array([0, 1, 2, 0]), np.array([1, 7, 0, -1])
    # Step 2 is element 3 % 3 = 0 of the first, 2 % 2 = 0 of the third and 1 of the last (-1 + 2).
    assert shares.at(series, offsets, 2, 4).tolist() == [
        [0.0, 0.25, 0.5, 0.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.125, 0.75, 0.125, 0.75],
        [0.25, 0.5, 0.0, 0.25],
    ]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-30, 30)), max_size=6),
    first=st.integers(0, 40),
    steps=st.integers(0, 20),
)
def test_elements_are_those_of_the_definition(
    lengths: list[int], rows: list[tuple[int, int]], first: int, steps: int
) -> None:
    """Element (offset + s) mod length at step s, for series of equal and of other lengths."""
    values = [[(10 * k + i) / 64 for i in range(n)] for k, n in enumerate(lengths)]
    series = np.array([k % len(lengths) for k, _ in rows], np.intp)
    offsets = np.array([offset for _, offset in rows], np.intp)
    found = pool(*values).at(series, offsets, first, steps)
    expected = [
        [values[k][(offset + s) % lengths[k]] for s in range(first, first + steps)]
        for k, offset in zip(series.tolist(), offsets.tolist(), strict=True)
    ]
    assert found.shape == (len(rows), steps)
    assert found.tolist() == expected


def workload() -> Workload:
    """Steps of 10 s. a: steps 1 and 2 (15 s is within step 1, 30 s is the end of step 2); b: from step 2 on."""
    return Workload(
        step_s=10.0,
        duration_s=60.0,
        names=["a", "b", "c"],
        create_s=np.array([15.0, 20.0, 42.0]),
        delete_s=np.array([30.0, math.inf, 42.0]),
        vcpu=np.array([4.0, 2.0, 1.0]),
        memory_mb=np.array([100.0, 200.0, 300.0]),
        series=np.array([0, 1, 1]),
        offset=np.array([0, 1, 0]),
        cpu=pool([0.5], [0.25, 0.5]),
        mem=pool([0.0, 1.0, 0.5], [1.0]),
    )


def test_usage_is_missing_where_a_vm_does_not_exist() -> None:
    nan = math.nan
    used = workload().usage(CPU, np.array([0, 1]), 0, 6)
    # b: element (1 + s) mod 2 of [0.25, 0.5] times 2 vCPUs.
    np.testing.assert_array_equal(used, [[nan, 2, 2, nan, nan, nan], [nan, nan, 1, 0.5, 1, 0.5]])
    used = workload().usage(MEMORY, np.array([1, 0]), 1, 2)
    np.testing.assert_array_equal(used, [[nan, 200], [100, 50]])


def test_each_vm_exists_for_a_step_at_least() -> None:
    used = workload().usage(CPU, np.array([2]), 3, 3)
    np.testing.assert_array_equal(used, [[math.nan, 0.25, math.nan]])


def test_steps_of_life_and_of_the_whole() -> None:
    made = workload()
    assert made.steps == 6
    assert made.first_step.tolist() == [1, 2, 4]
    assert made.end_step[[0, 2]].tolist() == [3, 5]
    # A VM that stays ends after the last step.
    assert made.end_step[1] > 6
    assert len(made) == 3
    assert made.sizes(CPU).tolist() == [4.0, 2.0, 1.0]
    assert made.sizes(MEMORY).tolist() == [100.0, 200.0, 300.0]


def test_usage_within_life_is_complete() -> None:
    assert workload().usage(CPU, np.array([1]), 2, 4).tolist() == [[1.0, 0.5, 1.0, 0.5]]


@pytest.mark.parametrize("steps", [1, 5])
def test_pool_of_equal_lengths_gives_the_same(steps: int) -> None:
    shares = pool([0.0, 0.25, 0.5], [1.0, 0.75, 0.5])
    assert shares.at(np.array([1]), np.array([2]), 0, steps).tolist() == [[0.5, 1.0, 0.75, 0.5, 1.0][:steps]]
