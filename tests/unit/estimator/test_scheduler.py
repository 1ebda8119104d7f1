"""When nodes are computed, and what is published meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.estimator.publish_policy import PublishPolicy
from model.estimator.scheduler import Scheduler
from model.estimator.slicing import Calendar, SliceClock
from model.publishers.prometheus import EstimatorCounts
from model.publishers.status_file import StatusFile
from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.conftest import strict_json
from tests.unit.estimator.support import (
    FIRST,
    NODES,
    SLICE_S,
    Clock,
    FakePublisher,
    LiveRun,
    UnavailableStore,
    fill,
    settings_for,
    write_slice,
)


class ListedJobs:
    """Threads that keep their jobs until the test runs them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def run(self, job: Callable[..., None], *arguments: object) -> None:
        self.jobs.append((job, arguments))

    def run_all(self) -> int:
        jobs, self.jobs = self.jobs, []
        for job, arguments in jobs:
            job(*arguments)
        return len(jobs)

    def close(self, timeout_s: float) -> bool:
        return True


class FakeWorker:
    """A worker whose progress the test controls."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.error = ""
        self.fails = False
        self.computed: list[int] = []
        self.progress: Any = None
        self.load()

    def load(self) -> None:
        from model.estimator.node_worker import Progress

        number = self.computed[-1] if self.computed else None
        self.progress = Progress(number, NodeStatus(self.node, "borg"))

    def is_behind(self, due: int) -> bool:
        return due not in self.computed

    def catch_up(self, due: int, is_stopping: Callable[[], bool]) -> NodeStatus:
        self.error = "no connection" if self.fails else ""
        if not self.fails:
            self.computed.append(due)
            self.load()
        return self.progress.status


def scheduler_of(workers: Sequence[FakeWorker], clock: Clock, monotonic: Clock) -> tuple[Scheduler, ListedJobs]:
    counts, jobs = EstimatorCounts(), ListedJobs()
    policy = PublishPolicy({}, counts, monotonic)
    slice_clock = SliceClock(Calendar(SLICE_S, 3), 1.0, clock)
    nodes: Any = workers
    return Scheduler(nodes, slice_clock, policy, counts, jobs, 8, monotonic), jobs


def test_node_is_computed_once_per_slice_and_retried_after_a_failure() -> None:
    clock, monotonic, workers = Clock(), Clock(), [FakeWorker("a"), FakeWorker("b")]
    workers[1].fails = True
    scheduler, jobs = scheduler_of(workers, clock, monotonic)

    async def play() -> list[int]:
        started = []
        finished = asyncio.Event()
        for seconds in (1.5, 2.0, 16.0, 16.6):
            clock.at_end_of(FIRST, seconds)
            monotonic.now_s = seconds
            scheduler._start_jobs(FIRST, finished)
            scheduler._start_jobs(FIRST, finished)  # nodes that are running are not started again
            started.append(jobs.run_all())
            await asyncio.sleep(0)
        return started

    # Slices of 60 s: a failed node is retried after 10 s.
    assert asyncio.run(play()) == [2, 0, 1, 0]
    assert [worker.computed for worker in workers] == [[FIRST], []]


def test_slice_is_due_when_it_has_settled() -> None:
    clock = Clock()
    slice_clock = SliceClock(Calendar(SLICE_S, 3), 10.0, clock)
    clock.at_end_of(FIRST, 9.9)
    assert slice_clock.due() == FIRST - 1
    assert slice_clock.until_due_s(FIRST) == pytest.approx(0.1)
    clock.at_end_of(FIRST, 10.0)
    assert slice_clock.due() == FIRST
    assert slice_clock.late_s(FIRST) == 10.0
    assert slice_clock.grace_s == 10.0 + 60 / 4
    assert SliceClock(Calendar(3600, 24), 10.0).grace_s == 130.0


def test_silent_node_is_stale_with_its_last_figures(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    write_slice(store, FIRST, {"cpu": 8.0, "cpu_usage": 2.0}, {"a": {"cpu": 2.0}})
    settings = settings_for(tmp_path)
    live = LiveRun(settings, store, ["percentile"], file=StatusFile(settings.status, 90))
    status, never = live.wake(FIRST)
    assert (status.state, status.cpu.free, status.mem.state, never.state) == ("ok", 6.0, "unknown", "unknown")
    assert [record.getMessage() for record in event_log.records] == [
        f"samples of {NODES[1]}: none stored yet, published free is 0"
    ]
    event_log.clear()
    live.wake(FIRST + 1)
    live.wake(FIRST + 2)
    published = strict_json(settings.status.path.read_bytes())
    written = published[NODES[0]]
    assert (written["state"], written["free_cpu"], written["slice_end"]) == ("stale", 0.0, (FIRST + 3) * SLICE_S)
    assert written["cpu"] == {
        "state": "stale",
        "config": 8.0,
        "booked": 2.0,
        "booked_now": 2.0,
        "tier0": 8.0,
        "tier1": 0.0,
        "tier2": 0.0,
        "own": 0.0,
        "closed": False,
        "contention": {"level": "none", "waiting_vms": 0},
    }
    assert written["last_known"]["cpu"] == {
        "free": 6.0, "booked": 2.0, "booked_now": 2.0, "tier0": 2.0, "tier1": 0.0, "tier2": 6.0, "slice_end": (FIRST + 1) * SLICE_S,
    }  # fmt: skip
    assert published[NODES[1]]["state"] == "unknown"
    (line,) = [record.getMessage() for record in event_log.records]
    assert line.startswith(f"samples of {NODES[0]}: none in the slice that ended at ")
    assert line.endswith(" UTC, published free is 0")
    write_slice(store, FIRST + 3, {"cpu": 8.0, "cpu_usage": 1.0}, {})
    assert live.wake(FIRST + 3)[0].state == "ok"
    assert event_log.records[-1].getMessage() == f"samples of {NODES[0]}: recovered"
    live.stop()


def test_figures_of_the_slice_before_are_published_for_a_quarter_of_a_slice(
    stored: SqliteStore, tmp_path: Path
) -> None:
    """A node that is not computed yet is stale afterwards."""
    live = LiveRun(settings_for(tmp_path), stored, ["percentile"])
    live.wake(FIRST)
    states = {}
    for late_s in (1.5, 10.0, 15.9, 16.1, 59.0):
        live.clock.at_end_of(FIRST + 1, late_s)
        states[late_s] = live.scheduler.statuses()[0].state
    assert states == {1.5: "ok", 10.0: "ok", 15.9: "ok", 16.1: "stale", 59.0: "stale"}
    live.stop()


def test_clock_that_was_a_slice_ahead_is_waited_for(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES, range(FIRST, FIRST + 8))
    live = LiveRun(settings_for(tmp_path), store, ["percentile"])
    assert "ok" in {status.state for status in live.wake(FIRST + 7)}
    # The figures of a slice in the future are not published.
    assert {status.state for status in live.wake(FIRST + 6)} == {"stale"}
    fill(store, NODES, range(FIRST + 8, FIRST + 9), per_slice=6)
    assert "ok" in {status.state for status in live.wake(FIRST + 8)}
    live.stop()


def test_every_slice_end_is_published_while_the_store_is_unavailable(stored: SqliteStore, tmp_path: Path) -> None:
    """Otherwise the status file looks as if the daemon had ended."""
    store: Any = UnavailableStore(stored)
    publisher = FakePublisher()
    live = LiveRun(settings_for(tmp_path), store, ["percentile"], publisher=publisher)
    live.wake(FIRST)
    store.unavailable = {"all"}
    for number in range(FIRST + 1, FIRST + 4):
        live.wake(number, late_s=50.0)
    live.stop()
    assert publisher.published == [[(number + 1) * SLICE_S] * 2 for number in range(FIRST, FIRST + 4)]


def test_node_that_hangs_delays_its_fleet_once_and_for_seconds(stored: SqliteStore, tmp_path: Path) -> None:
    class Hanging(UnavailableStore):
        released = threading.Event()

        def read(self, node: str, *arguments: Any, **more: Any) -> Any:
            if node == NODES[0]:
                self.released.wait(60)
            return super().read(node, *arguments, **more)

    store: Any = Hanging(stored)
    live = LiveRun(settings_for(tmp_path), store, ["clt"])
    hanging, other = (node.worker for node in live.scheduler._nodes)
    live.clock.at_end_of(FIRST + 2)

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def play() -> int | None:
        stop = asyncio.Event()
        running = asyncio.create_task(live.scheduler.run(stop))
        await until(lambda: other.progress.number == FIRST)
        live.monotonic.now_s += 9.9
        await asyncio.sleep(1.2)  # more than a tick
        waited_at = other.progress.number
        live.monotonic.now_s += 0.2
        await until(lambda: other.progress.number == FIRST + 2)
        store.released.set()
        await until(lambda: hanging.progress.number == FIRST + 2)
        stop.set()
        await running
        return waited_at

    assert asyncio.run(asyncio.wait_for(play(), 60)) == FIRST
    live.stop()


def test_unavailable_store_is_logged_once_and_before_all_nodes_were_tried(
    stored: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    """With a server that does not respond each read takes its time limit, and with many nodes one always runs."""

    class Slow(UnavailableStore):
        reads = 0

        def read(self, node: str, *arguments: Any, **more: Any) -> Any:
            self.reads += 1
            time.sleep(0.05)
            return super().read(node, *arguments, **more)

    store: Any = Slow(stored)
    store.unavailable = {"all"}
    nodes = tuple(f"http://w{i}:9100/metrics" for i in range(64))
    live = LiveRun(settings_for(tmp_path, nodes=nodes), store, ["percentile"])
    live.clock.at_end_of(FIRST)

    async def until_logged() -> int:
        stop = asyncio.Event()
        running = asyncio.create_task(live.scheduler.run(stop))
        while not event_log.records:
            await asyncio.sleep(0.005)
        reads: int = store.reads
        while store.reads < reads + 8:  # what follows is not logged
            await asyncio.sleep(0.005)
        stop.set()
        await running
        return reads

    assert asyncio.run(until_logged()) < len(nodes)
    live.stop()
    assert [record.getMessage() for record in event_log.records] == ["store: no connection"]
