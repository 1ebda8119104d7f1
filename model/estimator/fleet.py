"""The fleet of a master: when the counts of a slice are complete, and which feedback a slice of a node uses.

The fleet has one open slice. Nodes are computed up to it and no further; all of them use the feedback of the slices
before it. It is closed once the next slice is due and every node has delivered its counts: they are summed up in the
order of the nodes, so that it does not matter which thread was first, and the next slice is open. A slice that is
missed by all nodes, because the store was unavailable or the estimator stopped, stays open until some node has
computed it: what is caught up later has the figures of a run without the gap.

A node that does not deliver is waited for only while others do, and :func:`longest_wait_s` longer. It is late then: the
slice is closed without its counts, and no further slice waits for it until it has caught up. A late node computes its
old slices with the newest feedback, and their counts are dropped, since their slices are closed.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..feedback import Feedback, FleetModel, SliceCounts, total_of
from ..publishers.prometheus import EstimatorCounts, FleetFigures
from ..slices import RESOURCES
from .checkpoint_format import CheckpointCorrupt, FleetCheckpoint
from .checkpoints import CheckpointFile
from .slicing import is_ahead

LOG = logging.getLogger("scroogevm.estimator")

_LONGEST_WAIT_S = 10.0


def longest_wait_s(slice_s: float) -> float:
    """For how long a node is waited for after the last one that delivered."""
    return min(_LONGEST_WAIT_S, 2.0 * slice_s)


class Peers(Protocol):
    """The other masters."""

    def share(self, number: int, counts: SliceCounts) -> None:
        """Make the counts of a slice available to them; never blocks."""

    def counts(self, number: int, wake: Callable[[], object]) -> Sequence[SliceCounts] | None:
        """Their counts of a slice; None until they are read, then ``wake`` is called. Never blocks."""

    def close(self) -> None:
        """End."""


class NoPeers:
    """A master of its own."""

    def share(self, number: int, counts: SliceCounts) -> None:
        """Do nothing."""

    def counts(self, number: int, wake: Callable[[], object]) -> Sequence[SliceCounts]:  # noqa: ARG002
        """No counts."""
        return ()

    def close(self) -> None:
        """Do nothing."""


class Fleet:
    """Sums up the nodes of a master, slice by slice. :meth:`feedback` and :meth:`deliver` are safe in any thread.

    Parameters
    ----------
    nodes : sequence of str
    new_model : callable
        Returns a model without slices.
    checkpoints : CheckpointFile
    counts : EstimatorCounts
        Gets the figures of the fleet.
    wait_s : float
        For how long a node is waited for after the last one that delivered.
    peers : Peers
    monotonic : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        new_model: Callable[[], FleetModel],
        checkpoints: CheckpointFile,
        counts: EstimatorCounts,
        wait_s: float,
        peers: Peers,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._new_model = new_model
        self._checkpoints = checkpoints
        self._counts = counts
        self._wait_s = wait_s
        self._peers = peers
        self._monotonic = monotonic
        #: Whether the open slice waits for the counts of other masters.
        self.reading = False
        self._lock = threading.Lock()
        self._model = new_model()
        self._feedback = Feedback()
        self._open: int | None = None
        #: Counts of the open slice.
        self._delivered: dict[str, SliceCounts] = {}
        self._delivered_at = -math.inf
        #: How many nodes had delivered when the counts were shared; None before.
        self._shared: int | None = None
        #: Nodes that missed the slice that was closed last.
        self._late: set[str] = set()
        #: By node, the last slice of its checkpoint and its counts.
        self._resumed: dict[str, tuple[int, SliceCounts]] = {}

    def feedback(self) -> Feedback:
        """The feedback of all slices before the open one."""
        return self._feedback

    def is_behind(self, due: int) -> bool:
        """Whether the open slice is one before the due one."""
        return self._open is not None and self._open < due

    def resume(self, node: str, number: int, counts: SliceCounts | None) -> None:
        """Take over the last slice of a node from its checkpoint, before the first :meth:`advance`."""
        self._resumed[node] = (number, counts or SliceCounts())

    def deliver(self, node: str, number: int, counts: SliceCounts) -> None:
        """Take the counts of a node for a slice; those of a closed slice are dropped."""
        with self._lock:
            if number == self._open:
                self._delivered[node] = counts
                self._delivered_at = self._monotonic()

    def close(self) -> None:
        """End the exchange with other masters."""
        self._peers.close()

    def advance(
        self,
        upcoming_of: Callable[[], Mapping[str, int]],
        due: int,
        wake: Callable[[], object],
        *,
        idle: bool,
        at_once: bool = False,
    ) -> int:
        """Close the slices that are complete.

        Parameters
        ----------
        upcoming_of : callable
            Returns the next slice of each node, as a mapping of node to int.
        due : int
            The last slice that has ended and settled.
        wake : callable
            Called in another thread when the counts of other masters have arrived, to call this method again.
        idle : bool
            Whether no node is being computed.
        at_once : bool
            Wait for no node when none is being computed.

        Returns
        -------
        int
            The open slice, up to which nodes may be computed.
        """
        with self._lock:
            if self._open is None or is_ahead(self._open - 1, due):
                self._start(upcoming_of(), due)
            if idle or self._waited_s() >= self._wait_s:
                self._share()
            self.reading = False
            if self._number < due:
                upcoming = upcoming_of()
                while self._is_complete(upcoming, due, at_once=at_once and idle) and not self.reading:
                    self._close(upcoming, wake)
            return self._number

    @property
    def _number(self) -> int:
        if self._open is None:
            raise RuntimeError("advance() was not called yet")
        return self._open

    def _start(self, upcoming: Mapping[str, int], due: int) -> None:
        """Continue after the slice that the checkpoint file closed last, or start with an empty model."""
        known = [number for number, _ in self._resumed.values() if not is_ahead(number, due)]
        if self._open is not None:
            LOG.warning("fleet: its last slice ends in the future; it starts afresh with the stored samples")
            self._model, known = self._new_model(), []
        else:
            known += self._restored(due)
        self._open = max(known) if known else min(upcoming.values())
        self._delivered = {node: counts for node, (number, counts) in self._resumed.items() if number == self._open}
        self._resumed = {}
        self._delivered_at = self._monotonic()
        self._late = {node for node, number in upcoming.items() if number < self._open}
        if len(self._late) == len(upcoming):
            self._late = set()
        self._shared = None
        self._use_model(None)

    def _restored(self, due: int) -> list[int]:
        """Restore the model; the slice after the one that was closed last, or nothing when there is no usable state."""
        model = self._new_model()
        try:
            if (saved := self._checkpoints.fleet()) is None:
                return []
            if is_ahead(saved.number, due):
                raise CheckpointCorrupt("its last slice ends in the future")
            model.restore(saved.model)
        except (CheckpointCorrupt, sqlite3.Error, KeyError, TypeError, AttributeError, ValueError) as error:
            LOG.warning("fleet: checkpoint discarded, it starts afresh: %s", error)
            return []
        self._model = model
        return [saved.number + 1]

    def _share(self) -> None:
        if len(self._delivered) not in (0, self._shared):
            self._shared = len(self._delivered)
            self._peers.share(self._number, total_of(self._own()))

    def _is_complete(self, upcoming: Mapping[str, int], due: int, *, at_once: bool) -> bool:
        if self._number >= due:
            return False
        missing = {node for node, number in upcoming.items() if number <= self._number}
        if len(missing) == len(upcoming):
            return False  # the store was unavailable, or nothing was computed yet
        return at_once or missing <= self._late or self._waited_s() >= self._wait_s

    def _waited_s(self) -> float:
        """Seconds since a node delivered."""
        return self._monotonic() - self._delivered_at

    def _close(self, upcoming: Mapping[str, int], wake: Callable[[], object]) -> None:
        """Close the open slice, unless the counts of other masters are still being read."""
        next_number = self._number + 1
        if self._delivered:
            others = self._peers.counts(self._number, wake)
            if others is None:
                self.reading = True
                return
            total = total_of([*self._own(), *others])
            self._model.update([total])
            self._checkpoints.save_fleet(FleetCheckpoint(self._number, self._model.state()))
            self._use_model(total)
        else:
            # Slices that no node computes, such as those before all samples of the store.
            next_number = max(next_number, min(upcoming.values()))
        self._late = {node for node, number in upcoming.items() if number <= self._number}
        self._open, self._delivered, self._shared = next_number, {}, None
        self._delivered_at = self._monotonic()

    def _own(self) -> list[SliceCounts]:
        """The counts of the open slice in the order of the nodes: sums of floats depend on the order."""
        return [self._delivered[node] for node in self._nodes if node in self._delivered]

    def _use_model(self, last: SliceCounts | None) -> None:
        """Publish the feedback of the model, and its figures as metrics."""
        self._feedback = feedback = self._model.feedback()
        full = {resource.name: last.of(resource) for resource in RESOURCES} if last else {}
        self._counts.fleet = FleetFigures(
            level={resource.name: feedback.of(resource).level for resource in RESOURCES},
            common={resource.name: feedback.of(resource).common for resource in RESOURCES},
            full_share={name: counts.full / counts.nodes for name, counts in full.items() if counts.nodes},
        )
