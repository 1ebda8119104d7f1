"""The published figures of the last slices of every node, in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...numerics import FloatArray
from ...slices import CPU, LARGEST, MEMORY, RESOURCES, Resource
from ...status import NodeStatus

#: Slices that are kept of each node.
SLICES_KEPT = 96

#: Columns of a history: the end of the slice, then free, booked now and config of each resource.
END_COLUMN = 0
RESOURCE_COLUMNS: Mapping[Resource, slice] = {CPU: slice(1, 4), MEMORY: slice(4, 7)}
COLUMNS = 7


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is published now and the history that led to it; immutable.

    Attributes
    ----------
    statuses : sequence of NodeStatus
    histories : mapping of node to (slices, 7) float64
        Oldest slice first; NaN where a figure is missing.
    """

    statuses: Sequence[NodeStatus] = ()
    histories: Mapping[str, FloatArray] = field(default_factory=dict)


class History:
    """A publisher that keeps the last slices of every node.

    Each publication replaces ``snapshot`` as a whole, so that readers in other threads need no lock.

    Parameters
    ----------
    slices_kept : int
    """

    def __init__(self, slices_kept: int = SLICES_KEPT) -> None:
        self._slices_kept = slices_kept
        self.snapshot = Snapshot()

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Append a slice to each node's history; a slice that is published again is replaced."""
        before = self.snapshot.histories
        self.snapshot = Snapshot(
            tuple(statuses), {status.node: self._extended(before.get(status.node), status) for status in statuses}
        )

    def _extended(self, history: FloatArray | None, status: NodeStatus) -> FloatArray:
        if history is None:
            history = np.empty((0, COLUMNS))
        if status.state == "unknown":
            return history
        # After a clock was set back, slices later than this one never happened.
        earlier = history[history[:, END_COLUMN] < status.slice_end_s]
        return np.vstack([earlier[max(0, len(earlier) - self._slices_kept + 1) :], _row(status)])


def _row(status: NodeStatus) -> list[float]:
    row = [status.slice_end_s]
    for resource in RESOURCES:
        published = status.of(resource)
        figures = (math.nan,) * 3
        if published.last is not None:
            fresh = published.state == "ok"
            booked_now = published.last.booked_now if fresh else math.nan
            figures = (published.free if fresh else math.nan, booked_now, published.last.config)
        row += [value if abs(value) < LARGEST else math.nan for value in figures]
    return row
