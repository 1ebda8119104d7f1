"""The last published slices of every node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...numerics import FloatArray
from ...slices import RESOURCES
from ...status import NodeStatus
from .page import KEPT, LARGEST_SHOWN

# --- what was published ------------------------------------------------------------------------------


class History:
    """The last slices of every node; an outlet of the estimator.

    What is shown is exchanged whole and never changed, so that readers need no lock.

    Parameters
    ----------
    kept : int
        How many slices of a node.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self.shown: tuple[Sequence[NodeStatus], Mapping[str, FloatArray]] = ((), {})
        """The newest statuses, and by node its course: (slices, 7) float64."""

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Take note; what was said of a slice before is replaced."""
        _, courses = self.shown
        self.shown = (
            tuple(statuses),
            {status.node: self._continued(courses.get(status.node), status) for status in statuses},
        )

    def _continued(self, course: FloatArray | None, status: NodeStatus) -> FloatArray:
        before = np.empty((0, 7)) if course is None else course
        if status.state == "unknown":
            return before
        # A clock that was put back takes back what came after.
        kept = before[before[:, 0] < status.slice_end_s]
        return np.vstack([kept[max(0, len(kept) - self._kept + 1) :], _row(status)])


def _row(status: NodeStatus) -> list[float]:
    row = [status.slice_end_s]
    for resource in RESOURCES:
        said = status.of(resource)
        known = said.last is not None and said.state == "ok"
        figures = (
            said.free if known else math.nan,
            said.last.booked if said.last is not None and known else math.nan,
            said.last.config if said.last is not None else math.nan,
        )
        row += [value if abs(value) < LARGEST_SHOWN else math.nan for value in figures]
    return row
