"""Publishes to Placement in a thread of its own, and looks at the providers between two publications."""

from __future__ import annotations

from collections.abc import Sequence

from ...common.threads import LatestValue
from ...status import NodeStatus
from .ratio import capacities_of
from .reconciler import PlacementReconciler


class PlacementPublisher:
    """Publishes the latest status of all nodes; never blocks and never raises.

    Statuses that arrive during a round replace one another; only the latest is published next.

    Parameters
    ----------
    reconciler : PlacementReconciler
    """

    def __init__(self, reconciler: PlacementReconciler) -> None:
        self._latest: LatestValue[Sequence[NodeStatus]] = LatestValue(
            lambda statuses: reconciler.publish(capacities_of(statuses)),
            "placement publisher",
            idle=reconciler.poll,
            pause_s=reconciler.pause_s,
        )

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Replace the status that waits."""
        self._latest.put(tuple(statuses))

    def close(self, timeout_s: float) -> None:
        """Publish the status that waits, if that is possible within ``timeout_s`` seconds, and end the thread."""
        self._latest.close(timeout_s)
