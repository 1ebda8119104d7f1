"""Scores of a strategy on a node: what was published as free against what was used.

There are two scores. The *replay* score is the original's: the threshold of a slice against the next slice at the
same position. The *published* score is the operator's: the figure that a scheduler got at the end of a slice against
the slice that followed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..numerics import FloatArray

#: A smaller excess, as a share of the node, is rounding of binary fractions and no violation.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class History:
    """One resource of one node under one strategy, slice by slice.

    Attributes
    ----------
    config, booked : (k,) float64
        Capacity of the node and sum of the VMs' allocations, cores or MB.
    peak : (k,) float64
        99th percentile of the node's usage; NaN in a slice without data.
    free, published : (k,) float64
        What the strategy computed as free, and what it published.
    lag : int
        S, the number of slices of a scope.
    waiting : (k, 3) float64 or None
        VM-minutes in which VMs waited for more than 5, 10 and 20 % of the time in which they could run; None where it
        was not measured.
    """

    config: FloatArray
    booked: FloatArray
    peak: FloatArray
    free: FloatArray
    published: FloatArray
    lag: int
    waiting: FloatArray | None = None

    @property
    def unused(self) -> FloatArray:
        """(k,) float64: config - peak."""
        return self.config - self.peak


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a score, slice by slice; NaN where a slice is not scored.

    Attributes
    ----------
    truth, prediction : (k,) float64
        Cores or MB, at the slice that the prediction is about.
    misprediction, violation, decrease : (k,) float64
        Shares of the node.
    """

    truth: FloatArray
    prediction: FloatArray
    misprediction: FloatArray
    violation: FloatArray
    decrease: FloatArray


def replay_terms(history: History) -> Terms:
    """The original's score, slice by slice.

    truth(t) = config - peak(t); prediction(t) = free(t - S) - d, where d is the growth of booked, or the growth of
    the peak where booked shrinks.
    """
    booked_growth = history.booked - _shifted(history.booked, history.lag)
    peak_growth = history.peak - _shifted(history.peak, history.lag)
    prediction = _shifted(history.free, history.lag) - np.where(booked_growth >= 0, booked_growth, peak_growth)
    return _terms(history, prediction)


def published_terms(history: History) -> Terms:
    """The operator's score, slice by slice.

    truth(t) = config - peak(t); prediction(t) = published(t - 1) - max(0, booked(t) - booked(t - 1)): a scheduler
    subtracts each VM that it places. The prediction is what was *left* of the published amount. A slice without
    data publishes nothing, so the slice after it is not scored.
    """
    growth = history.booked - _shifted(history.booked, 1)
    published = np.where(np.isnan(history.peak), np.nan, history.published)
    return _terms(history, _shifted(published, 1) - np.maximum(growth, 0.0))


def waiting_while_offered(history: History) -> FloatArray | None:
    """VM-minutes of waiting in the slices before which something was published, (3,) float64: harm that it worsened."""
    if history.waiting is None:
        return None
    waited: FloatArray = history.waiting[_shifted(history.published, 1) > 0].sum(axis=0)
    return waited


def _shifted(values: FloatArray, lag: int) -> FloatArray:
    """values(t - lag) at t; NaN where there is no such slice."""
    result = np.full(values.shape, np.nan)
    result[lag:] = values[: max(values.size - lag, 0)]
    return result


def _terms(history: History, prediction: FloatArray) -> Terms:
    truth = history.unused
    scored = ~np.isnan(truth) & ~np.isnan(prediction)
    truth, prediction = np.where(scored, truth, np.nan), np.where(scored, prediction, np.nan)
    return Terms(
        truth=truth,
        prediction=prediction,
        misprediction=np.abs(truth - prediction) / history.config,
        violation=np.maximum(0.0, prediction - truth) / history.config,
        decrease=np.maximum(0.0, prediction - history.free) / history.config,
    )


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one strategy for one resource; a row of ``summary.csv``.

    Sums are over slices, in shares of the node; frequencies and free shares are 0 to 1. NaN where no
    slice could be scored.
    """

    strategy: str
    resource: str
    misprediction: float
    violation: float
    violation_frequency: float
    decrease: float
    free_share: float
    published_misprediction: float
    published_violation: float
    published_violation_frequency: float
    published_free_share: float


SUMMARY_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Score))


def score(strategy: str, resource: str, history: History) -> Score:
    """Both scores of a replay.

    The free shares are means over all slices with data, the frequencies shares of the scored slices.
    """
    replay, published = replay_terms(history), published_terms(history)
    measured = ~np.isnan(history.unused)
    return Score(
        strategy=strategy,
        resource=resource,
        misprediction=_sum(replay.misprediction),
        violation=_sum(replay.violation),
        violation_frequency=_frequency(replay.violation),
        decrease=_sum(replay.decrease),
        free_share=_mean((history.free / history.config)[measured]),
        published_misprediction=_sum(published.misprediction),
        published_violation=_sum(published.violation),
        published_violation_frequency=_frequency(published.violation),
        published_free_share=_mean((history.published / history.config)[measured]),
    )


def _sum(terms: FloatArray) -> float:
    scored = terms[~np.isnan(terms)]
    return float(scored.sum()) if scored.size else float("nan")


def _frequency(violations: FloatArray) -> float:
    return _mean((violations > TOLERANCE)[~np.isnan(violations)].astype(np.float64))


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")


def summary_csv(scores: Sequence[Score]) -> str:
    """``summary.csv``: a row per strategy and resource; an empty cell where nothing could be scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SUMMARY_COLUMNS)
    for row in scores:
        values = (getattr(row, name) for name in SUMMARY_COLUMNS)
        writer.writerow([value if isinstance(value, str) else _cell(value) for value in values])
    return text.getvalue()


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(round(value, 12))
