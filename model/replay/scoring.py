"""How well a strategy served a node: what was promised against what then happened.

Two questions, two scores. The *replay* score is the original's: the threshold of a slice against the next
slice at the same position. The *published* score is the operator's: the figure that a scheduler was given
at the end of a slice against the slice that followed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from ..numerics import FloatArray

if TYPE_CHECKING:
    import pandas as pd

#: A promise may exceed the truth by this share of the node before it counts: binary fractions do.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class History:
    """One resource of one node under one strategy, slice by slice.

    Attributes
    ----------
    config, booked : (k,) float64
        What the node had and what was promised to VMs, cores or MB.
    peak : (k,) float64
        99th percentile of the node's usage; NaN in a slice without data.
    free, published : (k,) float64
        What the strategy called free, and what it published.
    lag : int
        S, the number of slices of a scope.
    """

    config: FloatArray
    booked: FloatArray
    peak: FloatArray
    free: FloatArray
    published: FloatArray
    lag: int

    @property
    def really_free(self) -> FloatArray:
        """(k,) float64: config less peak."""
        return self.config - self.peak


@dataclass(frozen=True, slots=True)
class Terms:
    """The figures of each slice from which a score is summed; NaN where a slice is not scored.

    Attributes
    ----------
    truth, prediction : (k,) float64
        Cores or MB, at the slice in which the prediction was to hold.
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

    truth(t) = config - peak(t); prediction(t) = free(t - S) - d, where d is the growth of what is booked,
    or the growth of the peak when less is booked than before.
    """
    booked_growth = history.booked - _shifted(history.booked, history.lag)
    peak_growth = history.peak - _shifted(history.peak, history.lag)
    prediction = _shifted(history.free, history.lag) - np.where(booked_growth >= 0, booked_growth, peak_growth)
    return _terms(history, prediction)


def published_terms(history: History) -> Terms:
    """The operator's score, slice by slice.

    truth(t) = config - peak(t); prediction(t) = published(t - 1) - max(0, growth of what is booked): who
    places a VM takes its size off the promise. A slice without data promised nothing and is not scored.
    """
    growth = history.booked - _shifted(history.booked, 1)
    promised = np.where(np.isnan(history.peak), np.nan, history.published)
    return _terms(history, _shifted(promised, 1) - np.maximum(growth, 0.0))


def _shifted(values: FloatArray, lag: int) -> FloatArray:
    """values(t - lag) at t; NaN where there is no such slice."""
    result = np.full(values.shape, np.nan)
    result[lag:] = values[: max(values.size - lag, 0)]
    return result


def _terms(history: History, prediction: FloatArray) -> Terms:
    truth = history.really_free
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
    measured = ~np.isnan(history.really_free)
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


def best(scores: Sequence[Score], risk: float = 0.05) -> Score | None:
    """The strategy of choice for one resource: whose promise is closest to the truth and seldom broken.

    Parameters
    ----------
    scores : sequence of Score
        Of one resource.
    risk : float
        In which share of the slices more may be used than was published. When every strategy breaks its
        promise more often, the one that does so least often.

    Returns
    -------
    Score or None
        None when nothing could be scored.
    """
    return next((row for row in ranked(scores, risk) if not np.isnan(row.published_misprediction)), None)


def ranked(scores: Sequence[Score], risk: float = 0.05) -> list[Score]:
    """The scores of one resource, best first: within the risk by misprediction, the others by frequency."""

    def order(row: Score) -> tuple[bool, bool, float]:
        broken = row.published_violation_frequency > risk
        key = row.published_violation_frequency if broken else row.published_misprediction
        return bool(np.isnan(row.published_misprediction)), broken, 0.0 if np.isnan(key) else key

    return sorted(scores, key=order)


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


def summary_frame(scores: Sequence[Score]) -> pd.DataFrame:
    """The scores as a pandas table, a row per strategy and resource."""
    import pandas as pd  # only the notebook and the report need it

    return pd.DataFrame([[getattr(row, name) for name in SUMMARY_COLUMNS] for row in scores], columns=SUMMARY_COLUMNS)


def slices_frame(epoch: FloatArray, histories: Mapping[str, History]) -> pd.DataFrame:
    """What was promised and what happened, slice by slice, as a pandas table.

    Parameters
    ----------
    epoch : (k,) float64
        The ends of the slices.
    histories : mapping of strategy name to History
        Of one resource.

    Returns
    -------
    pandas.DataFrame
        A row per strategy and slice: ``strategy, scope, epoch, config, booked, used, free, published,
        oversubscription`` (booked and free over config), ``useful_oversubscription`` (with what was really
        free), ``misprediction, cumulated_misprediction, violation`` of the replay score, and
        ``promised, really_free, broken`` of the published one (``broken``: more was used than promised).
    """
    import pandas as pd

    tables = []
    for strategy, history in histories.items():
        replay, published = replay_terms(history), published_terms(history)
        tables.append(
            pd.DataFrame(
                {
                    "strategy": strategy,
                    "scope": np.arange(epoch.size) / history.lag,
                    "epoch": epoch,
                    "config": history.config,
                    "booked": history.booked,
                    "used": history.peak,
                    "free": history.free,
                    "published": history.published,
                    "oversubscription": (history.booked + history.free) / history.config,
                    "useful_oversubscription": (history.booked + history.really_free) / history.config,
                    "misprediction": replay.misprediction,
                    "cumulated_misprediction": np.nancumsum(replay.misprediction),
                    "violation": replay.violation,
                    "promised": published.prediction,
                    "really_free": history.really_free,
                    "broken": published.violation > TOLERANCE,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
