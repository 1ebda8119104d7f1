"""The estimator: at the end of each slice, every node's samples through its model, and out to who wants to know.

A node is brought forward slice by slice, in order, from what is remembered of it; that is one job in one of
a few threads, and no node waits for another. Between jobs nothing is kept but what is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np

from ..common.logs import ProblemLog
from ..common.threads import DaemonThreads
from ..nodemodel import ModelSettings, ModelState, NodeEstimate, NodeModel
from ..publishers.base import Publisher
from ..publishers.prometheus import EstimatorCounts
from ..replay.dump import SliceFigures, slice_figures
from ..slices import Slice
from ..stability import StabilityDetector
from ..status import NodeStatus
from ..store.base import Store, StoreRefused, StoreUnavailable
from .checkpoints import CheckpointCorrupt, CheckpointFile, NodeCheckpoint
from .node_worker import CATCH_UP_S, NodeProgress, StoreBehind, without_vm_samples
from .settings import EstimatorSettings
from .slicing import FIELDS, LastConfigs, build_slice, last_configs

LOG = logging.getLogger("scroogevm.estimator")

_THREADS = 8

#: The clock is looked at so often: it may jump.
_TICK_S = 1.0

#: Not more often is anything published while nodes are still at work.
_PUBLISH_EVERY_S = 1.0

_RETRY_S = 10.0

#: How long the end waits for jobs that are under way.
_END_S = 5.0

#: How long after a slice's end figures of the slice before count as the last ones.
_PATIENCE_S = 120.0


class Estimator:
    """Brings all nodes forward for as long as it is told to.

    Parameters
    ----------
    settings : EstimatorSettings
    model : ModelSettings
        Its positions are the calendar's, whatever it says.
    detectors : mapping of resource name to StabilityDetector
    store : Store
    memory : CheckpointFile
    publishers : mapping of name to Publisher
    recorded : bool
        Whether the figures of every slice are kept for dumps.
    on_slice : callable
        Told node, number, slice and estimate, in the thread of the node, once they are remembered.
    clock : callable
        Unix seconds.
    """

    def __init__(
        self,
        settings: EstimatorSettings,
        model: ModelSettings,
        detectors: Mapping[str, StabilityDetector],
        store: Store,
        memory: CheckpointFile,
        publishers: Mapping[str, Publisher],
        *,
        recorded: bool = False,
        on_slice: Callable[[str, int, Slice, NodeEstimate], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calendar = settings.calendar
        self._settings = settings
        self._model = replace(model, positions=settings.calendar.positions)
        self._judges = detectors
        self._store = store
        self._memory = memory
        self._outlets = publishers
        self._recorded = recorded
        self._on_slice = on_slice
        self._clock = clock
        self._problems = ProblemLog(LOG)
        self._stopping = False
        self._shown: Sequence[tuple[int | None, str, float]] = ()
        self._failed: set[str] = set()  # outlets that do not have what is shown
        self._published_at = time.monotonic()
        self._pool = DaemonThreads(min(_THREADS, len(settings.nodes)))
        self.counts = EstimatorCounts()
        self._nodes = {node: NodeProgress(self._remembered(node)) for node in settings.nodes}

    @property
    def patience_s(self) -> float:
        """How long after a slice's end, at most, figures of the slice before are published as they are."""
        return self._settings.settle_s + min(_PATIENCE_S, self._calendar.slice_s / 4)

    def _remembered(self, node: str) -> tuple[int | None, NodeStatus]:
        with contextlib.suppress(CheckpointCorrupt, sqlite3.Error):  # its first job will tell
            if memory := self._memory.node(node):
                return memory.number, memory.status
        return None, NodeStatus(node, self._model.strategies[0])

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until the event is set."""
        changed = asyncio.Event()
        stopper = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                due = self._due()
                self._start_jobs(due, changed)
                self._tell(due)
                await _any_of(stopper, changed, timeout_s=self._pause_s(due))
                changed.clear()
                self._tell(self._due())
        finally:
            stopper.cancel()
            self._stopping = True

    def close(self) -> bool:
        """Wait a little for what is under way; False when something hangs, and what it uses must be left to it."""
        self._stopping = True
        return self._pool.close(_END_S)

    async def once(self) -> int:
        """Bring every node forward to now, publish, and leave; how many nodes could not be read."""
        changed = asyncio.Event()
        due = self._due()
        self._start_jobs(due, changed)
        while any(node.busy for node in self._nodes.values()):
            await changed.wait()
            changed.clear()
        self._tell(due, now=True)
        return sum(bool(node.error) for node in self._nodes.values())

    def _due(self) -> int:
        """The last slice that has ended and settled."""
        return self._calendar.last_ended(self._clock() - self._settings.settle_s)

    def _pause_s(self, due: int) -> float:
        next_s = self._calendar.end_s(due + 1) + self._settings.settle_s - self._clock()
        return max(0.005, min(_TICK_S, next_s))

    def _start_jobs(self, due: int, changed: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        now = time.monotonic()

        def finish(node: NodeProgress) -> None:
            node.busy = False
            changed.set()

        def job(name: str, node: NodeProgress) -> None:
            self._bring_forward(name, node, due)
            if not self._stopping:
                loop.call_soon_threadsafe(finish, node)

        for name, node in self._nodes.items():
            number = node.done[0]
            behind = number is None or number < due or self._is_ahead(number, due)
            if behind and not node.busy and now >= node.retry_at:
                node.busy = True
                self._pool.run(job, name, node)

    # --- a node, in a thread ------------------------------------------------------------------------

    def _bring_forward(self, name: str, node: NodeProgress, due: int) -> None:
        if self._stopping:
            return
        try:
            self._wait_for_what_was_kept(name, node, due)
            self._advance(name, node, due)
            node.error = ""
        except StoreUnavailable as error:
            node.error = str(error)
            node.waits_until = math.inf
        except (StoreRefused, StoreBehind) as error:
            node.error = str(error)
        except sqlite3.Error as error:
            node.error = f"the memory of the models can't be read: {error}"
        except Exception as error:
            # A fault of ours, or of what is stored, which must not cost the other nodes: told with all that is known.
            if not node.error:
                LOG.exception("%s: the slice failed", name)
            node.error = f"internal error: {error!r}"
        if node.error:
            self.counts.failures += 1
            node.retry_at = time.monotonic() + min(_RETRY_S, self._calendar.slice_s / 4)

    def _wait_for_what_was_kept(self, name: str, node: NodeProgress, due: int) -> None:
        """After the store was away: what the aggregator kept meanwhile is written in order, but not at once.

        Raises
        ------
        StoreBehind
            As long as it may still come: no sample is newer than the slice, and the store has not answered for long.
        """
        if node.waits_until < time.monotonic():
            return
        start_ms = self._calendar.bounds_ms(due)[1]
        newer = self._store.read(name, start_ms, int(self._clock() * 1000) + 1, ("cpu",), domains=False)
        node.waits_until = min(node.waits_until, time.monotonic() + CATCH_UP_S)
        if not newer.node.time_ms.size:
            raise StoreBehind("the store answers again; what was kept for it meanwhile is waited for")
        node.waits_until = -math.inf

    def _advance(self, name: str, node: NodeProgress, due: int) -> None:
        try:
            self._go_on(name, node, due)
        except CheckpointCorrupt as error:
            LOG.warning("%s: what is remembered of it makes no sense, it starts anew: %s", name, error)
            self._memory.forget(name)
            node.done = (None, NodeStatus(name, self._model.strategies[0]))
            self._go_on(name, node, due)

    def _go_on(self, name: str, node: NodeProgress, due: int) -> None:
        memory = self._memory.node(name)
        if memory is not None and self._is_ahead(memory.number, due):
            raise CheckpointCorrupt(f"it reaches to {_moment(self._calendar.end_s(memory.number))}, which is not yet")
        if memory is not None:
            # Also when its last slice was remembered, and what came next failed.
            node.done = (memory.number, memory.status)
        for number in range(self._first(node, memory, due), due + 1):
            # A clock that had jumped may have been put right meanwhile.
            if self._stopping or number > self._due():
                return
            memory = self._step(name, number, memory)
            if memory is not None:
                node.done = (number, memory.status)
            else:
                node.done = (number, node.done[1].aged(self._calendar.end_s(number)))
            self.counts.slices += 1

    def _first(self, node: NodeProgress, memory: NodeCheckpoint | None, due: int) -> int:
        """The slice to go on with."""
        if memory is not None:
            return memory.number + 1
        number, _ = node.done
        if number is not None and not self._is_ahead(number, due):
            # It was looked for before, and nothing was there.
            return number + 1
        return self._calendar.scope_start(due) - self._settings.previous_scopes * self._calendar.positions

    def _is_ahead(self, number: int, due: int) -> bool:
        """Whether the clock must have been wrong; by a single slice it is waited for."""
        return number - due > 1

    def _step(self, name: str, number: int, before: NodeCheckpoint | None) -> NodeCheckpoint | None:
        """One slice of a node; None as long as nothing was ever heard of it."""
        known = LastConfigs(before.known.node, dict(before.known.vms)) if before else LastConfigs()
        finished = self._read(name, number, known)
        if before is None and not finished.vms and math.isnan(finished.cpu.config) and math.isnan(finished.mem.config):
            return None
        position = finished.position
        place = self._memory.position(name, position)
        model = NodeModel(self._model, self._judges)
        if before is not None:
            past = [place.past[k] for k in sorted(place.past)]
            try:
                model.restore(ModelState(before.common, place.own), position, past)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise CheckpointCorrupt(repr(error)) from None
        # What overflows on samples that no machine gives is infinite, as in a replay.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            estimate = model.update(finished)
        said = before.status if before else NodeStatus(name, self._model.strategies[0])
        after = model.state(position)
        memory = NodeCheckpoint(number, after.node, known, said.after(finished, estimate))
        place.own = after.position
        place.past[number] = finished if self._model.keeps_vm_samples else without_vm_samples(finished)
        figures: SliceFigures | None = slice_figures(finished, estimate) if self._recorded else None
        self._memory.save(name, memory, position, place, figures)
        self._on_slice(name, number, finished, estimate)
        return memory

    def _read(self, name: str, number: int, known: LastConfigs) -> Slice:
        start_ms, end_ms = self._calendar.bounds_ms(number)
        if self._model.uses_vm_samples or self._recorded:
            period = self._store.read(name, start_ms, end_ms, FIELDS)
            vms, samples = last_configs(period.domains), period.domains
            return build_slice(number, self._calendar, known, period.node, vms, samples)
        period = self._store.read(name, start_ms, end_ms, FIELDS, domains=False)
        return build_slice(number, self._calendar, known, period.node, self._store.last_configs(name, start_ms, end_ms))

    # --- what is said -------------------------------------------------------------------------------

    def statuses(self, due: int | None = None) -> list[NodeStatus]:
        """What is published of every node now."""
        due = self._due() if due is None else due
        return [self._status(node, due) for node in self._nodes.values()]

    def _status(self, node: NodeProgress, due: int) -> NodeStatus:
        number, said = node.done
        if number == due:
            return said
        late_s = self._clock() - self._calendar.end_s(due)
        if number == due - 1 and not node.error and 0 <= late_s < self.patience_s:
            # Its turn will come.
            return said
        return said.aged(self._calendar.end_s(due))

    def _tell(self, due: int, *, now: bool = False) -> None:
        """Publish, if there is anything new, and log what went wrong or is well again."""
        busy = any(node.busy for node in self._nodes.values())
        self._tell_errors(busy=busy)
        said = self.statuses(due)
        nodes = self._nodes.values()
        shown = [(node.done[0], one.state, one.slice_end_s) for node, one in zip(nodes, said, strict=True)]
        new = shown != self._shown
        early = time.monotonic() - self._published_at < _PUBLISH_EVERY_S
        if not (new or self._failed) or ((busy or not new) and early and not now):
            return
        if not busy:
            self.counts.lateness_s = max(0.0, self._clock() - self._calendar.end_s(due))
            self._tell_silence(said)
        for name, publisher in self._outlets.items():
            if new or name in self._failed:
                self._publish(name, publisher, said)
        self._shown, self._published_at = shown, time.monotonic()

    def _publish(self, name: str, publisher: Publisher, said: Sequence[NodeStatus]) -> None:
        try:
            publisher.publish(said)
        except OSError as error:
            self._failed.add(name)
            self.counts.publication_failures += 1
            self._problems.report(name, f"can't be written: {error.strerror or error}")
        else:
            self._failed.discard(name)
            self.counts.publications += 1
            self._problems.resolve(name)

    def _tell_errors(self, *, busy: bool) -> None:
        failed = {name: node.error for name, node in self._nodes.items() if node.error}
        waiting = sum(node.busy and not node.error for node in self._nodes.values())
        # Where nobody answers, some node is always at work: who still waits for its turn is not waited for.
        if len(failed) >= min(_THREADS, len(self._nodes)) and len(failed) + waiting == len(self._nodes):
            self._problems.report("store", next(iter(failed.values())))
            return
        if busy:
            return
        self._problems.resolve("store")
        for name in self._nodes:
            if name in failed:
                self._problems.report(name, failed[name])
            else:
                self._problems.resolve(name)

    def _tell_silence(self, said: Sequence[NodeStatus]) -> None:
        for one in said:
            what = f"samples of {one.node}"
            if one.state == "ok":
                self._problems.resolve(what)
            elif not self._nodes[one.node].error:
                when = (
                    f"in the slice that ended at {_moment(one.slice_end_s)}"
                    if one.state == "stale"
                    else "were ever stored"
                )
                self._problems.report(what, f"none {when}, nothing is free there")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


async def _any_of(stopper: asyncio.Task[bool], changed: asyncio.Event, timeout_s: float) -> None:
    waiting = asyncio.create_task(changed.wait())
    await asyncio.wait({stopper, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
