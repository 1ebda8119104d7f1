"""Publishes to Placement in a thread of its own, and looks at the providers between two publications."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ...common.threads import start_thread
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
        self._reconciler = reconciler
        self._changed = threading.Condition()
        self._latest: Sequence[NodeStatus] | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Replace the status that waits."""
        with self._changed:
            self._latest = tuple(statuses)
            self._changed.notify()
            if self._thread is None:
                self._thread = start_thread("placement publisher", self._run)

    def close(self, timeout_s: float) -> None:
        """Publish the status that waits, if that is possible within ``timeout_s`` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._latest is not None or self._closing, timeout=self._reconciler.pause_s()
                )
                latest, self._latest = self._latest, None
                closing = self._closing
            if latest is not None:
                self._reconciler.publish(capacities_of(latest))
            elif closing:
                return
            else:
                self._reconciler.poll()
