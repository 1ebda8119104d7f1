"""When the statuses of all nodes are published, and which publishers are retried."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from ..common.logs import ProblemLog
from ..contention import Contention
from ..publishers.base import Publisher
from ..publishers.prometheus import EstimatorCounts
from ..status import NodeStatus
from .node_worker import Progress
from .slicing import SliceClock

LOG = logging.getLogger("scroogevm.estimator")

#: Seconds between two publications while nodes are being computed, and between two attempts of a failed publisher.
_INTERVAL_S = 1.0


def published_status(
    progress: Progress,
    due: int,
    slice_clock: SliceClock,
    *,
    failed: bool,
    contentions: Mapping[str, Contention] | None = None,
) -> NodeStatus:
    """The status that is published of a node while a slice is due.

    Parameters
    ----------
    progress : Progress
    due : int
    slice_clock : SliceClock
    failed : bool
        Whether the last attempt to compute the node failed.
    contentions : mapping of resource name to Contention, optional
        What began since the last slice.
    """
    status = progress.status.contended(contentions) if contentions else progress.status
    if progress.number == due:
        return status
    waits = progress.number == due - 1 and not failed
    if waits and 0 <= slice_clock.late_s(due) < slice_clock.grace_s:
        return status
    return progress.status.aged(slice_clock.calendar.end_s(due))


class PublishPolicy:
    """Publishes changes at once or bundled, and retries the publishers that failed.

    Parameters
    ----------
    publishers : mapping of name to Publisher
    counts : EstimatorCounts
    monotonic : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        publishers: Mapping[str, Publisher],
        counts: EstimatorCounts,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publishers = publishers
        self._counts = counts
        self._monotonic = monotonic
        self._problems = ProblemLog(LOG)
        self._published: Sequence[tuple[object, ...]] = ()
        self._published_at = monotonic()
        self._failed: set[str] = set()

    def publish_if_changed(
        self,
        progress: Sequence[Progress],
        statuses: Sequence[NodeStatus],
        late_s: float,
        *,
        busy: bool,
        at_once: bool = False,
    ) -> bool:
        """Publish the statuses to the publishers that lack them; True if an attempt was due.

        Parameters
        ----------
        progress : sequence of Progress
            Of all nodes.
        statuses : sequence of NodeStatus
            Of the same nodes.
        late_s : float
            Seconds since the end of the due slice.
        busy : bool
            Whether nodes are being computed: changes are bundled then.
        at_once : bool
            Do not bundle.
        """
        state = [
            (one.number, status.state, status.slice_end_s, status.cpu.contention.level, status.mem.contention.level)
            for one, status in zip(progress, statuses, strict=True)
        ]
        changed = state != self._published
        if not changed and not self._failed:
            return False
        early = self._monotonic() - self._published_at < _INTERVAL_S
        if early and not at_once and (busy or not changed):
            return False
        if not busy:
            self._counts.lateness_s = max(0.0, late_s)
        for name, publisher in self._publishers.items():
            if changed or name in self._failed:
                self._publish(name, publisher, statuses)
        self._published, self._published_at = state, self._monotonic()
        return True

    def _publish(self, name: str, publisher: Publisher, statuses: Sequence[NodeStatus]) -> None:
        try:
            publisher.publish(statuses)
        except OSError as error:
            self._failed.add(name)
            self._counts.publication_failures += 1
            self._problems.report(name, f"cannot be written: {error.strerror or error}")
        else:
            self._failed.discard(name)
            self._counts.publications += 1
            self._problems.resolve(name)
