"""How figures are told to a person, the same way in the terminal, the log, the report and the notebook."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from ..common.text import printable
from ..nodemodel import NodeEstimate
from ..slices import Slice
from .scoring import Score

TITLES = {"cpu": "CPU", "mem": "Memory"}

#: Attribute of a score, heading, format.
Column = tuple[str, str, str]

#: The published score first, for it is the operator's.
COLUMNS: tuple[Column, ...] = (
    ("published_misprediction", "published misprediction", ".3f"),
    ("published_violation", "published violation", ".3f"),
    ("published_violation_frequency", "promise broken", ".1%"),
    ("published_free_share", "published free", ".1%"),
    ("misprediction", "replay misprediction", ".3f"),
    ("violation", "replay violation", ".3f"),
    ("violation_frequency", "violated slices", ".1%"),
    ("decrease", "replay decrease", ".3f"),
    ("free_share", "mean free", ".1%"),
)


def cell(score: Score, attribute: str, form: str) -> str:
    """One figure of a score; a dash where nothing could be scored."""
    value: float = getattr(score, attribute)
    return "-" if math.isnan(value) else format(value, form)


def verdict(rows: Sequence[Score], risk: float) -> str:
    """One sentence: which strategy to choose.

    Parameters
    ----------
    rows : sequence of Score
        Of one resource, best first (:func:`model.scoring.ranked`).
    risk : float
        In which share of the slices a promise may be broken.
    """
    first = rows[0]
    if math.isnan(first.published_misprediction):
        return "No slice could be scored: it takes two successive ones with data."
    broken = f"its promise was broken in {first.published_violation_frequency:.1%} of the slices"
    free = f"{first.published_free_share:.1%} of the node published as free"
    if first.published_violation_frequency > risk:
        return f"No strategy keeps to a risk of {risk:.0%}. Most careful: {first.strategy}, {free}, {broken}."
    return f"Best choice at a risk of {risk:.0%}: {first.strategy}, {free}, {broken}."


def log_scope(log: logging.Logger, node_name: str, scope: int, finished: Slice, estimate: NodeEstimate) -> None:
    """A line per strategy at the end of a scope."""
    if not log.isEnabledFor(logging.INFO):
        return
    node = printable(node_name)
    if not (finished.cpu.measured or finished.mem.measured):
        log.info("%s scope %d: no data in its last slice", node, scope)
        return
    for strategy, cpu in estimate.cpu.by_strategy.items():
        mem = estimate.mem.by_strategy[strategy]
        log.info(
            "%s scope %d %s: %d VMs, booked %.1f cores %.0f MB, free %.1f cores %.0f MB, published %.1f cores %.0f MB",
            *(node, scope, strategy, len(finished.vms), finished.cpu.booked, finished.mem.booked),
            *(cpu.free, mem.free, cpu.published, mem.published),
        )
