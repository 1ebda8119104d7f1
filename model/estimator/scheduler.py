"""The loop of the estimator: starts a job for each node that is behind the due slice, and publishes the results.

A node is computed slice by slice, in order, by one job in one of a few threads; nodes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..common.threads import DaemonThreads
from ..nodemodel import ModelSettings
from ..publishers.base import Publisher
from ..publishers.prometheus import EstimatorCounts
from ..stability import StabilityDetector
from ..status import NodeStatus
from ..store.base import Store
from .checkpoints import CheckpointFile
from .node_problems import NodeProblems
from .node_worker import ModelRunner, NodeWorker, OnSlice
from .publish_policy import PublishPolicy, published_status
from .settings import EstimatorSettings
from .slicing import SliceClock, SliceReader

_THREADS = 8

#: The clock is read at least this often: it may jump.
_TICK_S = 1.0

_RETRY_S = 10.0

#: How long the end of a run waits for jobs that are running.
_END_S = 5.0


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
    ) -> None:
        self.counts = counts
        self._nodes = [_Node(worker) for worker in workers]
        self._slice_clock = slice_clock
        self._policy = policy
        self._threads = threads
        self._problems = NodeProblems(at_once)
        self._retry_s = min(_RETRY_S, slice_clock.calendar.slice_s / 4)
        self._monotonic = monotonic
        self._loaded = False
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Compute and publish until the event is set."""
        self._load()
        finished = asyncio.Event()
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                due = self._slice_clock.due()
                self._start_jobs(due, finished)
                self._publish(due)
                await _first_of(stopped, finished, timeout_s=self._pause_s(due))
                finished.clear()
                self._publish(self._slice_clock.due())
        finally:
            stopped.cancel()
            self._stopping = True

    async def once(self) -> int:
        """Bring every node up to date, and publish; the number of nodes that could not be read."""
        self._load()
        finished = asyncio.Event()
        due = self._slice_clock.due()
        self._start_jobs(due, finished)
        while any(node.running for node in self._nodes):
            await finished.wait()
            finished.clear()
        self._publish(due, at_once=True)
        return sum(bool(node.worker.error) for node in self._nodes)

    def close(self) -> bool:
        """End the threads; False when a job hangs, which then still uses the store."""
        self._stopping = True
        return self._threads.close(_END_S)

    def statuses(self, due: int | None = None) -> list[NodeStatus]:
        """The status of every node that is published while a slice is due, by default the present one."""
        due = self._slice_clock.due() if due is None else due
        return [
            published_status(worker.progress, due, self._slice_clock, failed=bool(worker.error))
            for worker in (node.worker for node in self._nodes)
        ]

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for node in self._nodes:
                node.worker.load()

    def _pause_s(self, due: int) -> float:
        """Seconds until the next slice is due, within bounds."""
        return max(0.005, min(_TICK_S, self._slice_clock.until_due_s(due + 1)))

    def _start_jobs(self, due: int, finished: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        now = self._monotonic()

        def finish(node: _Node) -> None:
            node.running = False
            finished.set()

        def job(node: _Node) -> None:
            if self._stopping:
                return
            node.worker.catch_up(due, lambda: self._stopping)
            if node.worker.error:
                node.retry_at = self._monotonic() + self._retry_s
            if not self._stopping:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(finish, node)

        for node in self._nodes:
            if node.worker.is_behind(due) and not node.running and now >= node.retry_at:
                node.running = True
                self._threads.run(job, node)

    def _publish(self, due: int, *, at_once: bool = False) -> None:
        """Publish what has changed, and log problems."""
        errors = {node.worker.node: node.worker.error for node in self._nodes}
        running = [node.worker.node for node in self._nodes if node.running]
        self._problems.report_failures(errors, running)
        progress, statuses = [node.worker.progress for node in self._nodes], self.statuses(due)
        late_s = self._slice_clock.late_s(due)
        published = self._policy.publish_if_changed(progress, statuses, late_s, busy=bool(running), at_once=at_once)
        if published and not running:
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
    counts, at_once = counts or EstimatorCounts(), min(_THREADS, len(settings.nodes))
    model = replace(model, positions=settings.calendar.positions)
    slice_clock = SliceClock(settings.calendar, settings.settle_s, clock)
    with_vm_samples = model.uses_vm_samples or recorded
    reader = SliceReader(store, settings.calendar, settings.rules, with_vm_samples=with_vm_samples)
    runner = ModelRunner(model, detectors)
    workers = [
        NodeWorker(
            *(node, slice_clock, reader, runner, checkpoints, counts),
            previous_scopes=settings.previous_scopes,
            recorded=recorded,
            on_slice=on_slice,
            monotonic=monotonic,
        )
        for node in settings.nodes
    ]
    policy = PublishPolicy(publishers, counts, monotonic)
    threads = DaemonThreads(at_once, "node")
    return Scheduler(workers, slice_clock, policy, counts, threads, at_once, monotonic)


async def _first_of(stopped: asyncio.Task[bool], finished: asyncio.Event, timeout_s: float) -> None:
    waiting = asyncio.create_task(finished.wait())
    await asyncio.wait({stopped, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
