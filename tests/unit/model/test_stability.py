"""Stability detectors, and the labelled cases on which they are compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misc.benchmarks.stability_cases import draw_cases
from model.numerics import FloatArray
from model.stability import STABILITY_DETECTORS, mean_predictor, within_range
from tests.conftest import SHARED

TRACES = SHARED / "traces"
SHARES = arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 1000).map(lambda n: n / 1000))


# --- the detector by range ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(SHARES, SHARES)
def test_slice_within_the_range_of_the_older_ones_is_stable(older: FloatArray, new: FloatArray) -> None:
    assert within_range(older, np.clip(new, older.min(), older.max()))


@settings(deadline=None)
@given(SHARES, SHARES, st.integers(-30, 30).filter(lambda n: abs(n) != 20))
def test_range_may_be_exceeded_by_two_percent_of_the_node(older: FloatArray, new: FloatArray, off: int) -> None:
    inside = np.clip(new, older.min(), older.max())
    inside[0] = (older.max() if off > 0 else older.min()) + off / 1000
    assert within_range(older, inside) is (abs(off) < 20)


@pytest.mark.parametrize("thousandths", range(0, 981, 7))
def test_exactly_two_percent_are_stable_despite_binary_fractions(thousandths: int) -> None:
    low, high = thousandths / 1000, (thousandths + 20) / 1000
    assert within_range(np.array([low]), np.array([high]))
    assert within_range(np.array([high]), np.array([low]))


def test_order_of_samples_does_not_matter() -> None:
    case = next(draw_cases(5, 1))
    reversed_samples = case.older[::-1], case.new[::-1]
    assert within_range(*reversed_samples) == within_range(case.older, case.new)


# --- the registry ---------------------------------------------------------------------------------------


def test_every_detector_has_a_summary_of_one_line_and_returns_a_bool() -> None:
    for detector in STABILITY_DETECTORS.values():
        assert detector.summary
        assert "\n" not in detector.summary
        assert isinstance(detector(np.array([0.1, 0.2]), np.array([0.1])), bool)


def test_mean_predictor_ignores_the_order_of_samples() -> None:
    assert mean_predictor(np.array([0.2, 0.4]), np.array([0.4, 0.2]))


# --- the cases ------------------------------------------------------------------------------------------
