"""Scores and slices as pandas tables, for the notebook and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..numerics import FloatArray
from ..slices import RESOURCES
from .evidence import Evidence, rate_text
from .scoring import SUMMARY_COLUMNS, TOLERANCE, History, Score, published_terms, replay_terms

if TYPE_CHECKING:
    import pandas as pd


def summary_frame(scores: Sequence[Score]) -> pd.DataFrame:
    """The scores, a row per strategy and resource, with the columns of ``summary.csv``."""
    import pandas as pd

    return pd.DataFrame([[getattr(row, name) for name in SUMMARY_COLUMNS] for row in scores], columns=SUMMARY_COLUMNS)


def evidence_frame(rows: Sequence[Evidence]) -> pd.DataFrame:
    """The columns of a replay's table that matter first, a row per strategy and resource, in the order given."""
    import pandas as pd

    resources = {resource.name: resource for resource in RESOURCES}
    table = []
    for row in rows:
        resource = resources[row.score.resource]
        table.append(
            {
                "resource": resource.title,
                "strategy": row.strategy,
                "violations": f"{row.violations} of {row.slices}",
                "rate (95% interval)": rate_text(row),
                "worst violation": row.worst_violation / resource.display_scale,
                "published free": row.published_free / resource.display_scale,
                "unit": resource.display_unit,
                "booked / capacity": row.booked_ratio,
                "with published free": row.offered_ratio,
                "exceeds capacity": row.exceeds_capacity,
            }
        )
    return pd.DataFrame(table)


def slices_frame(epoch: FloatArray, histories: Mapping[str, History]) -> pd.DataFrame:
    """Forecasts and usage, slice by slice.

    Parameters
    ----------
    epoch : (k,) float64
        The ends of the slices.
    histories : mapping of strategy name to History
        Of one resource.

    Returns
    -------
    pandas.DataFrame
        A row per strategy and slice: ``strategy, scope, epoch, config, booked, used, free, published``,
        ``oversubscription`` (booked + free over config), ``useful_oversubscription`` (booked + unused over config),
        ``misprediction, cumulated_misprediction, violation`` of the replay score, and ``left, unused, violated`` of
        the published one: what was left of the published amount, config - used, and whether left exceeds unused.
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
                    "useful_oversubscription": (history.booked + history.unused) / history.config,
                    "misprediction": replay.misprediction,
                    "cumulated_misprediction": np.nancumsum(replay.misprediction),
                    "violation": replay.violation,
                    "left": published.prediction,
                    "unused": history.unused,
                    "violated": published.violation > TOLERANCE,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
