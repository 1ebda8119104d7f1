"""One node: reads the slices that its model lacks, computes them in order, and saves a checkpoint after each."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import numpy as np

from ..estimates import NodeEstimate
from ..feedback import SliceCounts
from ..guards import turn_of
from ..nodemodel import ModelSettings, ModelState, NodeModel
from ..publishers.prometheus import EstimatorCounts
from ..replay.dump import slice_figures
from ..slices import RESOURCES, Slice
from ..stability import StabilityDetector
from ..status import NodeStatus
from ..store.base import StoreRefused, StoreUnavailable
from .bookings import LastConfigs
from .checkpoint_format import CheckpointCorrupt, NodeCheckpoint, PositionCheckpoint
from .checkpoints import CheckpointFile
from .fleet import Fleet
from .slicing import SliceClock, SliceReader, is_ahead

LOG = logging.getLogger("scroogevm.estimator")

#: After an outage of its store the aggregator begins to write its backlog within this time: it retries every 30 s.
BACKLOG_S = 40.0

OnSlice = Callable[[str, int, Slice, NodeEstimate], object]


class StoreBehind(Exception):
    """The store lacks samples that the aggregator still has in its queue."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a node is.

    Attributes
    ----------
    number : int or None
        The last slice that was read; None before the first one.
    status : NodeStatus
        The status at its end.
    """

    number: int | None
    status: NodeStatus


class BacklogWait:
    """Waits for the aggregator's backlog after an outage of the store.

    The backlog is written in order. A sample that is newer than a slice shows that the slice is complete. A long
    backlog, which comes from the spool, is waited for as long as samples arrive.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = -math.inf
        self._newest_ms: int | None = None

    def start(self) -> None:
        """Note that the store is unavailable."""
        self._until = math.inf

    def check(self, has_newer_samples: Callable[[], bool], newest_ms: Callable[[], int | None]) -> None:
        """Return once the store has the samples of a slice, or none has arrived for :data:`BACKLOG_S`.

        Parameters
        ----------
        has_newer_samples : callable
            Whether the store has samples that are newer than the slice.
        newest_ms : callable
            Time of the newest sample.

        Raises
        ------
        StoreBehind
        """
        if self._until < self._clock():
            return
        if not has_newer_samples():
            newest = newest_ms()
            if self._until == math.inf or newest != self._newest_ms:
                self._until, self._newest_ms = self._clock() + BACKLOG_S, newest
            raise StoreBehind("the store is available again, waiting for the backlog of vmaggreg.py")
        self._until = -math.inf


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """Computes one slice of any node from its checkpoint.

    Attributes
    ----------
    settings : ModelSettings
    detectors : mapping of resource name to StabilityDetector
    """

    settings: ModelSettings
    detectors: Mapping[str, StabilityDetector]

    def restore(self, node: str, before: NodeCheckpoint | None, state: PositionCheckpoint, position: int) -> NodeModel:
        """The model of a node at a position; a new one without a checkpoint.

        Raises
        ------
        CheckpointCorrupt
        """
        model = NodeModel(self.settings, self.detectors, turn_of(node))
        if before is not None:
            past = [state.past[number] for number in sorted(state.past)]
            try:
                model.restore(ModelState(before.model, state.own), position, past)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise CheckpointCorrupt(repr(error)) from None
        return model

    def kept(self, finished: Slice) -> Slice:
        """The part of a slice that later slices need."""
        cpu, mem = (self.settings.kept(resource, finished.usage(resource)) for resource in RESOURCES)
        return replace(finished, cpu=cpu, mem=mem)


class NodeWorker:
    """Brings one node up to date; each call runs in a thread of the scheduler.

    Parameters
    ----------
    node : str
    slice_clock : SliceClock
    reader : SliceReader
    runner : ModelRunner
    checkpoints : CheckpointFile
    counts : EstimatorCounts
    fleet : Fleet, optional
        What the nodes of the master learn from each other; without it the node is a fleet of its own.
    previous_scopes : int
        Scopes before the current one that are read for a node without a checkpoint.
    recorded : bool
        Whether the figures of every slice are kept for dumps.
    on_slice : callable
        Called with node, number, slice and estimate after the checkpoint is saved.
    monotonic : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        node: str,
        slice_clock: SliceClock,
        reader: SliceReader,
        runner: ModelRunner,
        checkpoints: CheckpointFile,
        counts: EstimatorCounts,
        *,
        fleet: Fleet | None = None,
        previous_scopes: int = 0,
        recorded: bool = False,
        on_slice: OnSlice = lambda *_: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self.error = ""
        self._unknown = NodeStatus(node, runner.settings.strategies[0])
        self.progress = Progress(None, self._unknown)
        self._slice_clock = slice_clock
        self._calendar = slice_clock.calendar
        self._reader = reader
        self._runner = runner
        self._checkpoints = checkpoints
        self._counts = counts
        self._fleet = fleet
        self._previous_scopes = previous_scopes
        self._recorded = recorded
        self._on_slice = on_slice
        self._backlog = BacklogWait(monotonic)

    def load(self) -> None:
        """Take the progress from the checkpoint; a corrupt one is reported by :meth:`catch_up`."""
        try:
            checkpoint = self._checkpoints.node(self.node)
        except (CheckpointCorrupt, sqlite3.Error):
            return
        if checkpoint is not None:
            self.progress = Progress(checkpoint.number, checkpoint.status)
            if self._fleet is not None:
                self._fleet.resume(self.node, checkpoint.number, checkpoint.counts)

    def is_behind(self, due: int) -> bool:
        """Whether there is something to compute or to correct."""
        number = self.progress.number
        return number is None or number < due or is_ahead(number, due)

    def upcoming(self, due: int) -> int:
        """The next slice that is computed while a slice is due."""
        number = self.progress.number
        if number is not None and not is_ahead(number, due):
            return number + 1  # the slices before were computed, or were read and had no data
        return self._calendar.scope_start(due) - self._previous_scopes * self._calendar.positions

    def catch_up(
        self, due: int, is_stopping: Callable[[], bool] = lambda: False, last: int | None = None
    ) -> NodeStatus:
        """Compute the slices that are missing; returns the status at the end of the last one that could be read.

        Never raises: ``error`` is the reason why a slice could not be computed, or empty.

        Parameters
        ----------
        due : int
        is_stopping : callable
            Whether to return after the present slice.
        last : int, optional
            The last slice to compute, by default the due one.
        """
        try:
            self._backlog.check(lambda: self._has_samples_after(due), lambda: self._reader.newest_ms(self.node))
            self._advance(due, is_stopping, due if last is None else min(due, last))
            self.error = ""
        except StoreUnavailable as error:
            self.error = str(error)
            self._backlog.start()
        except (StoreRefused, StoreBehind) as error:
            self.error = str(error)
        except sqlite3.Error as error:
            self.error = f"the checkpoint file cannot be read: {error}"
        except Exception as error:
            # A defect, or unexpected data of this node, must not stop the other nodes.
            if not self.error:
                LOG.exception("%s: slice failed", self.node)
            self.error = f"internal error: {error!r}"
        if self.error:
            self._counts.failures += 1
        return self.progress.status

    def _has_samples_after(self, due: int) -> bool:
        return self._reader.has_samples_from(self.node, self._calendar.bounds_ms(due)[1], self._slice_clock.now_s())

    def _advance(self, due: int, is_stopping: Callable[[], bool], last: int) -> None:
        try:
            self._compute_missing(due, is_stopping, last)
        except CheckpointCorrupt as error:
            LOG.warning("%s: checkpoint discarded, the node starts from the stored samples: %s", self.node, error)
            self._checkpoints.delete(self.node)
            self.progress = Progress(None, self._unknown)
            self._compute_missing(due, is_stopping, last)

    def _compute_missing(self, due: int, is_stopping: Callable[[], bool], last: int) -> None:
        checkpoint = self._checkpoints.node(self.node)
        if checkpoint is not None and is_ahead(checkpoint.number, due):
            end = format_utc(self._calendar.end_s(checkpoint.number))
            raise CheckpointCorrupt(f"its last slice ends in the future, at {end}")
        if checkpoint is not None:
            # Also when a slice was saved and a later step of it failed.
            self.progress = Progress(checkpoint.number, checkpoint.status)
        for number in range(self.upcoming(due), last + 1):
            # The clock may have been corrected meanwhile.
            if is_stopping() or number > self._slice_clock.due():
                return
            configs = checkpoint.configs.copy() if checkpoint else LastConfigs()
            finished = self._reader.read(self.node, number, configs)
            if is_stopping():
                return
            if checkpoint is not None or _has_data(finished):
                checkpoint = self._compute(number, finished, checkpoint, configs)
                self.progress = Progress(number, checkpoint.status)
            else:
                self.progress = Progress(number, self.progress.status.aged(self._calendar.end_s(number)))
                self._deliver(number, SliceCounts())
            self._counts.slices += 1

    def _compute(
        self, number: int, finished: Slice, before: NodeCheckpoint | None, configs: LastConfigs
    ) -> NodeCheckpoint:
        """Update the model with a slice, and save the checkpoint."""
        position = finished.position
        state = self._checkpoints.position(self.node, position)
        model = self._runner.restore(self.node, before, state, position)
        feedback = self._fleet.feedback() if self._fleet is not None else None
        # Impossible samples may overflow; the results are infinite, as in a replay.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            estimate = model.update(finished, feedback)
        status = (before.status if before else self._unknown).after(finished, estimate)
        after = model.state(position)
        counts = estimate.counts if self._fleet is not None else None
        checkpoint = NodeCheckpoint(number, after.node, configs, status, counts)
        state.own = after.position
        state.past[number] = self._runner.kept(finished)
        figures = slice_figures(finished, estimate) if self._recorded else None
        self._checkpoints.save(self.node, checkpoint, position, state, figures)
        self._deliver(number, estimate.counts)
        self._on_slice(self.node, number, finished, estimate)
        return checkpoint

    def _deliver(self, number: int, counts: SliceCounts) -> None:
        if self._fleet is not None:
            self._fleet.deliver(self.node, number, counts)


def _has_data(finished: Slice) -> bool:
    """Whether anything is known of the node in a slice."""
    return bool(finished.vms) or not (math.isnan(finished.cpu.config) and math.isnan(finished.mem.config))


def format_utc(seconds: float) -> str:
    """A time as log lines show it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
