"""The loop of the estimator: starts a job for each node that is behind the due slice, and publishes the results.

A node is computed slice by slice, in order, by one job in one of a few threads. Nodes do not wait for each other; where
they learn from each other, the slices that are caught up are those of the fleet, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..common.threads import DaemonThreads
from ..feedback import FleetModel
from ..nodemodel import ModelSettings
from ..publishers.base import Publisher
from ..publishers.prometheus import EstimatorCounts
from ..stability import StabilityDetector
from ..status import NodeStatus
from ..store.base import Store
from .checkpoints import CheckpointFile
from .contention_watch import ContentionWatch
from .fleet import Fleet, NoPeers, Peers, longest_wait_s
from .fleet_peers import StorePeers
from .node_problems import NodeProblems
from .node_worker import ModelRunner, NodeWorker, OnSlice
from .publish_policy import PublishPolicy, published_status
from .settings import EstimatorSettings
from .slicing import SliceClock, SliceReader

LOG = logging.getLogger("scroogevm.estimator")

#: Jobs at the same time. Most of the time of a job is spent waiting for a server; with the embedded store all of it is
#: computed, and more jobs only wait for each other.
_THREADS, _THREADS_EMBEDDED = 8, 2

#: For how long nodes that finish are gathered, for each node.
_GATHER_S = 1e-4

#: The clock is read at least this often: it may jump.
_TICK_S = 1.0

_RETRY_S = 10.0

#: How long the end of a run waits for jobs that are running.
_END_S = 5.0

#: How long the first publication waits for the first looks for contention: what an earlier run found within this slice
#: must not be published as free again.
_FIRST_CHECKS_S = 5.0


class Threads(Protocol):
    """Runs jobs in the background."""

    def run(self, job: Callable[..., None], *arguments: object) -> None:
        """Queue a job, which must not raise."""

    def close(self, timeout_s: float) -> bool:
        """Let the jobs end; False when some did not in time."""


@dataclass(slots=True)
class _Node:
    """A node and its place in the schedule."""

    worker: NodeWorker
    running: bool = False
    checking: bool = False
    checked: bool = False
    retry_at: float = 0.0


class Scheduler:
    """Brings all nodes up to date at the end of each slice.

    Parameters
    ----------
    workers : sequence of NodeWorker
    slice_clock : SliceClock
    policy : PublishPolicy
    counts : EstimatorCounts
        The counts of the workers and of the policy.
    threads : Threads
    at_once : int
        Number of threads.
    monotonic : callable
        Monotonic seconds.
    fleet : Fleet, optional
        That of the workers, if they learn from each other.
    watch : ContentionWatch, optional
        Looks for contention between the ends of the slices.
    watch_threads : Threads, optional
        Its own: a look that hangs delays no slice.
    """

    def __init__(
        self,
        workers: Sequence[NodeWorker],
        slice_clock: SliceClock,
        policy: PublishPolicy,
        counts: EstimatorCounts,
        threads: Threads,
        at_once: int,
        monotonic: Callable[[], float] = time.monotonic,
        fleet: Fleet | None = None,
        watch: ContentionWatch | None = None,
        watch_threads: Threads | None = None,
    ) -> None:
        self.counts = counts
        self._nodes = [_Node(worker) for worker in workers]
        self._slice_clock = slice_clock
        self._policy = policy
        self._threads = threads
        self._problems = NodeProblems(at_once)
        self._retry_s = min(_RETRY_S, slice_clock.calendar.slice_s / 4)
        self._monotonic = monotonic
        self._fleet = fleet
        self._watch = watch
        self._watch_threads = watch_threads
        self._loaded = False
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Compute and publish until the event is set."""
        self._load()
        finished = asyncio.Event()
        stopped = asyncio.create_task(stop.wait())
        started = self._monotonic()
        try:
            while not stop.is_set():
                due = self._slice_clock.due()
                self._start_jobs(due, finished)
                self._start_checks(due, finished)
                if not self._awaits_first_checks(started):
                    self._publish(due)
                await _first_of(stopped, finished, timeout_s=self._pause_s(due))
                # Each round looks at all nodes. One for every node that finishes would take a sixth of a slice end.
                await asyncio.wait({stopped}, timeout=_GATHER_S * len(self._nodes))
                finished.clear()
                if not self._awaits_first_checks(started):
                    self._publish(self._slice_clock.due())
        finally:
            stopped.cancel()
            self._stopping = True

    async def once(self) -> int:
        """Bring every node up to date, and publish; the number of nodes that could not be read."""
        self._load()
        finished = asyncio.Event()
        due = self._slice_clock.due()
        for node in self._nodes:
            node.retry_at = 0.0
        # Nodes that failed are not tried again. They are waited for until there is nothing else to do.
        while self._start_jobs(due, finished, math.inf) or self._start_jobs(due, finished, math.inf, at_once=True):
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # one class since Python 3.11
                await asyncio.wait_for(finished.wait(), _TICK_S)
            finished.clear()
            while any(node.running for node in self._nodes):
                await finished.wait()
                finished.clear()
            due = min(due, self._slice_clock.due())  # the clock may have been corrected meanwhile
        self._publish(due, at_once=True)
        return sum(bool(node.worker.error) for node in self._nodes)

    def close(self) -> bool:
        """End the threads; False when a job hangs, which then still uses the store."""
        self._stopping = True
        closed = self._threads.close(_END_S)
        if self._watch_threads is not None:
            closed &= self._watch_threads.close(_END_S)
        if self._fleet is not None:
            self._fleet.close()
        return closed

    def statuses(self, due: int | None = None) -> list[NodeStatus]:
        """The status of every node that is published while a slice is due, by default the present one."""
        due = self._slice_clock.due() if due is None else due
        return [self._published(node.worker, due) for node in self._nodes]

    def _published(self, worker: NodeWorker, due: int) -> NodeStatus:
        progress = worker.progress
        found = {} if self._watch is None else self._watch.found(worker.node, progress.number)
        return published_status(progress, due, self._slice_clock, failed=bool(worker.error), contentions=found)

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for node in self._nodes:
                node.worker.load()

    def _pause_s(self, due: int) -> float:
        """Seconds until the next slice is due, within bounds."""
        return max(0.005, min(_TICK_S, self._slice_clock.until_due_s(due + 1)))

    def _start_jobs(
        self, due: int, finished: asyncio.Event, retry_s: float | None = None, *, at_once: bool = False
    ) -> bool:
        """Start a job for each node that is behind.

        Parameters
        ----------
        due : int
        finished : asyncio.Event
            Set at the end of each job.
        retry_s : float, optional
            When a node that fails is tried again.
        at_once : bool
            Whether the fleet waits for no node unless some node is being computed.

        Returns
        -------
        bool
            Whether a node is being computed, or the counts of other masters are being read.
        """
        loop = asyncio.get_running_loop()
        now = self._monotonic()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finished.set)

        def finish(node: _Node) -> None:
            node.running = False
            finished.set()

        def job(node: _Node) -> None:
            if self._stopping:
                return
            node.worker.catch_up(due, lambda: self._stopping, *until)
            if node.worker.error:
                node.retry_at = self._monotonic() + (self._retry_s if retry_s is None else retry_s)
            if not self._stopping:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(finish, node)

        until = () if self._fleet is None else (self._advance_fleet(self._fleet, due, wake, at_once=at_once),)
        for node in self._nodes:
            is_startable = not node.running and now >= node.retry_at and node.worker.is_behind(due)
            if is_startable and (not until or node.worker.upcoming(due) <= until[0]):
                node.running = True
                self._threads.run(job, node)
        return any(node.running for node in self._nodes) or (self._fleet is not None and self._fleet.reading)

    def _start_checks(self, due: int, finished: asyncio.Event) -> None:
        """Start a look for contention at each node that is up to date, if it is time."""
        watch, threads = self._watch, self._watch_threads
        if watch is None or threads is None:
            return
        loop = asyncio.get_running_loop()

        def finish(node: _Node) -> None:
            node.checking, node.checked = False, True
            finished.set()

        def job(node: _Node, number: int) -> None:
            try:
                if not self._stopping:
                    watch.check(node.worker.node, number)
            except Exception:
                # A defect, or unexpected data of this node, must not stop the other nodes.
                LOG.exception("%s: look for contention failed", node.worker.node)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, node)

        for node in self._nodes:
            number = node.worker.progress.number
            if number is not None and number >= due - 1 and not node.checking and watch.is_due(node.worker.node):
                node.checking = True
                threads.run(job, node, number)

    def _awaits_first_checks(self, started: float) -> bool:
        """Whether a node is being looked at for the first time since the start, for seconds at most."""
        waiting = any(node.checking and not node.checked for node in self._nodes)
        return waiting and self._monotonic() < started + _FIRST_CHECKS_S

    def _advance_fleet(self, fleet: Fleet, due: int, wake: Callable[[], object], *, at_once: bool) -> int:
        """Close the slices of the fleet that are complete; the slice up to which nodes may be computed."""
        idle = not any(node.running for node in self._nodes)
        return fleet.advance(
            lambda: {node.worker.node: node.worker.upcoming(due) for node in self._nodes},
            *(due, wake),
            idle=idle,
            at_once=at_once,
        )

    def _publish(self, due: int, *, at_once: bool = False) -> None:
        """Publish what has changed, and log problems."""
        errors = {node.worker.node: node.worker.error for node in self._nodes}
        running = [node.worker.node for node in self._nodes if node.running]
        self._problems.report_failures(errors, running)
        progress, statuses = [node.worker.progress for node in self._nodes], self.statuses(due)
        late_s = self._slice_clock.late_s(due)
        # Between two slices that are caught up no node is running.
        busy = bool(running) or (self._fleet is not None and self._fleet.is_behind(due))
        published = self._policy.publish_if_changed(progress, statuses, late_s, busy=busy, at_once=at_once)
        if published and not busy:
            self._problems.report_missing_samples(statuses, errors)


def build_scheduler(
    settings: EstimatorSettings,
    model: ModelSettings,
    detectors: Mapping[str, StabilityDetector],
    store: Store,
    checkpoints: CheckpointFile,
    publishers: Mapping[str, Publisher],
    *,
    recorded: bool = False,
    on_slice: OnSlice = lambda *_: None,
    counts: EstimatorCounts | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Scheduler:
    """A scheduler with a worker for each node.

    Parameters
    ----------
    settings : EstimatorSettings
    model : ModelSettings
        Its positions are replaced by those of the calendar.
    detectors : mapping of resource name to StabilityDetector
    store : Store
    checkpoints : CheckpointFile
        Open when the scheduler runs.
    publishers : mapping of name to Publisher
    recorded : bool
        Whether the figures of every slice are kept for dumps.
    on_slice : callable
        Called with node, number, slice and estimate, in the thread of the node, after the checkpoint is saved.
    counts : EstimatorCounts, optional
    clock : callable
        Unix seconds.
    monotonic : callable
        Monotonic seconds.
    """
    counts = counts or EstimatorCounts()
    at_once = min(_THREADS_EMBEDDED if settings.store.is_embedded else _THREADS, len(settings.nodes))
    model = replace(model, positions=settings.calendar.positions)
    slice_clock = SliceClock(settings.calendar, settings.settle_s, clock)
    with_vm_samples = model.uses_vm_samples or recorded
    reader = SliceReader(store, settings.calendar, settings.rules, with_vm_samples=with_vm_samples)
    runner = ModelRunner(model, detectors)
    fleet = _build_fleet(settings, model, store, checkpoints, counts, monotonic) if model.uses_vm_moments else None
    workers = [
        NodeWorker(
            *(node, slice_clock, reader, runner, checkpoints, counts),
            fleet=fleet,
            previous_scopes=settings.previous_scopes,
            recorded=recorded,
            on_slice=on_slice,
            monotonic=monotonic,
        )
        for node in settings.nodes
    ]
    policy = PublishPolicy(publishers, counts, monotonic)
    threads = DaemonThreads(at_once, "node")
    watch = watch_threads = None
    if model.guarded and settings.contention_check_s > 0:
        watch = ContentionWatch(store, model.contention, settings.contention_check_s, clock, monotonic)
        watch_threads = DaemonThreads(at_once, "contention")
    return Scheduler(workers, slice_clock, policy, counts, threads, at_once, monotonic, fleet, watch, watch_threads)


def _build_fleet(
    settings: EstimatorSettings,
    model: ModelSettings,
    store: Store,
    checkpoints: CheckpointFile,
    counts: EstimatorCounts,
    monotonic: Callable[[], float],
) -> Fleet:
    """The fleet of all nodes; with a name of the master, also that of the other masters of the store."""
    wait_s = longest_wait_s(settings.calendar.slice_s)
    peers: Peers = NoPeers()
    if settings.master:
        peers = StorePeers(store, settings.master, settings.calendar, wait_s, monotonic)
    return Fleet(
        settings.nodes,
        lambda: FleetModel(model.cpu.risk, model.mem.risk),
        *(checkpoints, counts, wait_s, peers, monotonic),
    )


async def _first_of(stopped: asyncio.Task[bool], finished: asyncio.Event, timeout_s: float) -> None:
    waiting = asyncio.create_task(finished.wait())
    await asyncio.wait({stopped, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
