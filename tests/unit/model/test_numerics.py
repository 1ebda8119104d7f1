"""Percentiles of samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.numerics import percentile_of

VALUES = st.floats(-1e12, 1e12)


@given(st.lists(VALUES, min_size=1, max_size=60), st.floats(0, 100))
def test_percentile_is_that_of_numpy(values: list[float], percent: float) -> None:
    samples = np.array(values)
    before = samples.copy()
    assert percentile_of(samples, percent) == np.percentile(samples, percent)
    np.testing.assert_array_equal(samples, before)
