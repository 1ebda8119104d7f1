"""Thinning of the lines of a report's charts."""

from __future__ import annotations

import numpy as np
import pytest

from model.replay.charts import _GROUPS, _thinned


def _thinned_one_by_one(values: np.ndarray) -> list[int]:
    """The definition: of each group the least and the largest point, or the first where all are missing."""
    kept: list[int] = []
    for group in np.array_split(np.arange(values.size), _GROUPS):
        column = values[group]
        if np.isnan(column).all():
            kept.append(int(group[0]))
        else:
            kept += sorted({int(group[np.nanargmin(column)]), int(group[np.nanargmax(column)])})
    return kept


@pytest.mark.parametrize("size", [2 * _GROUPS + 1, 3 * _GROUPS, 4 * _GROUPS - 1, 5 * _GROUPS + 77])
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9, 1.0])
def test_thinned_line_keeps_the_extremes_of_each_group(size: int, missing: float) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(0, 4, size).astype(float)
    values[rng.random(size) < missing] = np.nan
    assert _thinned(values).tolist() == _thinned_one_by_one(values)


def test_short_line_keeps_every_point() -> None:
    assert _thinned(np.ones(2 * _GROUPS)).size == 2 * _GROUPS
