"""Contention that begins within a slice: it is published at once, until the slice ends, and whatever fails."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contention import Contention, ContentionSettings, Level
from model.estimator import contention_watch
from model.estimator.contention_watch import ContentionWatch, contention_now
from model.estimator.publish_policy import published_status
from model.publishers.status_file import StatusFile, read_status
from model.samples import Period, Samples, ScrapeSample
from model.slices import RESOURCES
from model.status import NodeStatus
from model.store.base import Store, StoreRefused, StoreUnavailable
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import (
    FIRST,
    NODES,
    SLICE_S,
    Clock,
    LiveRun,
    UnavailableStore,
    settings_for,
    write_slice,
)

NODE = NODES[0]
OF_NODE = {"cpu": 16.0, "mem": 65536.0, "cpu_usage": 15.8, "mem_usage": 1e4}
VM = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": 2.0, "mem_usage": 500.0}
CALM = VM | {"cpu_wait": 0.0, "cpu_wait_share": 0.0}
SUFFERS = VM | {"cpu_wait": 1.0, "cpu_wait_share": 1 / 3}
NOW_S = 1_800_000_000.0


def scrape(
    ago_s: float, vms: Mapping[str, Mapping[str, float]], node: str = NODE, now_s: float = NOW_S, **fields: float
) -> ScrapeSample:
    return ScrapeSample(node, int((now_s - ago_s) * 1000), OF_NODE | fields, vms)


def fill(store: SqliteStore, samples: Sequence[ScrapeSample]) -> None:
    store.write([store.encode(one) for one in sorted(samples, key=lambda one: one.time_ms)])


#: Four minutes, a sample every 15 seconds, the newest 5 seconds ago.
AGES = range(5, 240, 15)


class Watched:
    """A watch on a store, with clocks that the test sets."""

    def __init__(self, store: Store, settings: ContentionSettings | None = None, period_s: float = 30.0) -> None:
        self.clock, self.monotonic = Clock(), Clock()
        self.clock.now_s = NOW_S
        self.watch = ContentionWatch(store, settings or ContentionSettings(), period_s, self.clock, self.monotonic)

    def look(self, number: int = 7) -> dict[str, Level]:
        self.watch.check(NODE, number)
        return {name: one.level for name, one in self.watch.found(NODE, number).items()}


@pytest.fixture
def watched(store: SqliteStore) -> Watched:
    return Watched(store)


# --- what is found ------------------------------------------------------------------------------------


def test_vm_that_waits_now_is_found(store: SqliteStore, watched: Watched, event_log: pytest.LogCaptureFixture) -> None:
    fill(store, [scrape(ago, {"a": SUFFERS if ago < 60 else CALM, "b": CALM}) for ago in AGES])
    assert watched.look() == {"cpu": Level.HIGH}
    (found,) = watched.watch.found(NODE, 7).values()
    assert dict(found.vms) == pytest.approx({"a": 1 / 3})
    (line,) = [record.getMessage() for record in event_log.records]
    assert line == f"{NODE}: nothing is free until the slice ends: 1 VM waits for CPU: a 33 %"


def test_nothing_is_found_where_vms_do_not_suffer(
    store: SqliteStore, watched: Watched, event_log: pytest.LogCaptureFixture
) -> None:
    little = CALM | {"cpu_wait": 0.16, "cpu_wait_share": 0.074}
    fill(store, [scrape(ago, {"a": little, "b": CALM}) for ago in AGES])
    assert watched.look() == {}
    assert watched.watch.found("other", 7) == {}
    assert not event_log.records


def test_contention_that_is_over_or_a_moment_is_not_found(store: SqliteStore, watched: Watched) -> None:
    # It ended 65 seconds ago.
    fill(store, [scrape(ago, {"a": SUFFERS if ago >= 60 else CALM}) for ago in AGES])
    assert watched.look() == {}


def test_most_of_the_newest_samples_must_show_it(store: SqliteStore, watched: Watched) -> None:
    # Two of the four of the last minute are not most of them, three are.
    for number, node, suffering in ((0, "x", (5, 20)), (1, "y", (5, 20, 35))):
        fill(store, [scrape(ago, {"a": SUFFERS if ago in suffering else CALM}, node) for ago in AGES])
        watched.watch.check(node, number)
    assert watched.watch.found("x", 0) == {}
    assert set(watched.watch.found("y", 1)) == {"cpu"}


def test_vm_at_its_quota_is_not_found(store: SqliteStore, watched: Watched) -> None:
    """Four minutes show a constant level; the last one is too short."""
    quota = VM | {"cpu_usage": 1.0, "cpu_wait": 3.0, "cpu_wait_share": 0.75}
    fill(store, [scrape(ago, {"a": quota, "b": CALM}, cpu_usage=4.0) for ago in range(5, 240, 20)])
    assert watched.look() == {}
    # Two of them wait for each other, and on a busy node it is no quota.
    fill(store, [scrape(ago, {"a": quota, "b": quota}, "two", cpu_usage=4.0) for ago in AGES])
    fill(store, [scrape(ago, {"a": quota, "b": CALM}, "busy") for ago in AGES])
    for node in ("two", "busy"):
        watched.watch.check(node, 7)
        assert set(watched.watch.found(node, 7)) == {"cpu"}


def test_capped_vms_and_thresholds_are_those_of_the_settings(store: SqliteStore) -> None:
    fill(store, [scrape(ago, {"a": SUFFERS, "b": SUFFERS}) for ago in AGES])
    assert Watched(store, ContentionSettings(capped=("a",))).look() == {"cpu": Level.HIGH}
    assert Watched(store, ContentionSettings(capped=("*",))).look() == {}
    assert Watched(store, ContentionSettings(vm_some=0.2, vm_high=0.4)).look() == {}
    assert Watched(store, ContentionSettings(samples=0.99)).look() == {"cpu": Level.HIGH}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"psi_memory": 0.06}, {"mem"}),
        ({"psi_memory": 0.04}, set()),
        ({"swap_in": 101.0}, {"mem"}),
        ({"oom_kills": 1.0}, {"mem"}),
        ({"oom_kills": 0.0}, set()),
        ({"psi_cpu": 1.0}, set()),
    ],
)
def test_node_that_lacks_memory_is_found(
    fields: dict[str, float], found: set[str], store: SqliteStore, watched: Watched
) -> None:
    fill(store, [scrape(ago, {}, **fields) for ago in AGES])
    assert set(watched.look()) == found


def test_kill_of_the_last_minute_is_found(store: SqliteStore, watched: Watched) -> None:
    fill(store, [scrape(ago, {}, oom_kills=float(ago == 35)) for ago in AGES])
    assert watched.look() == {"mem": Level.HIGH}


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_samples_show_nothing(number: int, store: SqliteStore, watched: Watched) -> None:
    fill(store, [scrape(ago, {"a": SUFFERS}) for ago in list(AGES)[:number]])
    assert watched.look() == {}


def test_absent_figures_and_sizes_show_nothing(store: SqliteStore, watched: Watched) -> None:
    bare = {"cpu_wait": 1.0, "cpu_wait_share": 0.9}
    samples = [
        ScrapeSample(NODE, int((NOW_S - ago) * 1000), {"mem": 1.0}, {"a": VM if ago > 60 else {}}) for ago in AGES
    ]
    fill(store, samples)
    assert watched.look() == {}
    # Of a VM of unknown size, on a node of unknown size, what it waits is known.
    fill(store, [ScrapeSample("bare", one.time_ms, {"mem": 1.0}, {"a": bare}) for one in samples])
    watched.watch.check("bare", 7)
    assert set(watched.watch.found("bare", 7)) == {"cpu"}


@pytest.mark.parametrize("ahead_s", [-30.0, -5.0, 0.0, 4.0, 30.0])
def test_clock_of_the_node_may_differ_by_seconds(ahead_s: float, store: SqliteStore, watched: Watched) -> None:
    fill(store, [scrape(ago - ahead_s, {"a": SUFFERS if ago < 75 else CALM}) for ago in AGES])
    assert watched.look() == {"cpu": Level.HIGH}


@pytest.mark.parametrize("ahead_s", [-300.0, 300.0])
def test_node_whose_clock_is_wrong_by_minutes_shows_nothing(
    ahead_s: float, store: SqliteStore, watched: Watched
) -> None:
    fill(store, [scrape(ago - ahead_s, {"a": SUFFERS}) for ago in AGES])
    assert watched.look() == {}


def test_period_without_domains_is_looked_at() -> None:
    times = np.array([1000, 2000, 3000])
    unknown = {name: np.full(3, math.nan) for name in ("cpu", "mem", "cpu_usage", "mem_usage")}
    node = Samples(times, unknown | {"swap_in": np.full(3, 500.0)})
    assert set(contention_now(Period(node, {}), 1000, ContentionSettings())) == {"mem"}
    assert contention_now(Period(node, {}), 2500, ContentionSettings()) == {}, "a single sample"


# --- how long it counts -------------------------------------------------------------------------------


def test_what_was_found_counts_until_the_next_slice(
    store: SqliteStore, watched: Watched, event_log: pytest.LogCaptureFixture
) -> None:
    fill(store, [scrape(ago, {"a": SUFFERS}) for ago in AGES])
    assert watched.look(7) == {"cpu": Level.HIGH}
    watched.clock.now_s += 600.0  # nothing is stored any more
    assert watched.look(7) == {"cpu": Level.HIGH}
    assert len(event_log.records) == 1, "it is logged once"
    assert watched.watch.found(NODE, 8) == watched.watch.found(NODE, None) == {}
    assert watched.look(8) == {}
    assert watched.watch.found(NODE, 7) == {}


def test_another_resource_is_added(store: SqliteStore, watched: Watched, event_log: pytest.LogCaptureFixture) -> None:
    fill(store, [scrape(ago, {"a": SUFFERS}) for ago in AGES])
    assert set(watched.look()) == {"cpu"}
    watched.clock.now_s += 300.0
    fill(store, [scrape(ago, {"a": CALM}, now_s=NOW_S + 300, swap_in=900.0) for ago in AGES])
    assert set(watched.look()) == {"cpu", "mem"}
    texts = [record.getMessage() for record in event_log.records]
    assert len(texts) == 2
    assert texts[1].endswith("swaps in 900 pages/s")


def test_node_is_looked_at_once_a_period(store: SqliteStore) -> None:
    watched = Watched(store, period_s=30.0)
    assert watched.watch.is_due(NODE)
    watched.look()
    due = []
    for seconds in (0.0, 29.9, 30.0):
        watched.monotonic.now_s = seconds
        due.append((watched.watch.is_due(NODE), watched.watch.is_due("other")))
    assert due == [(False, True), (False, True), (True, True)]


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), StoreRefused("no")])
def test_store_that_fails_shows_nothing_and_is_asked_again_after_a_period(
    error: Exception, store: SqliteStore, event_log: pytest.LogCaptureFixture
) -> None:
    class Failing(UnavailableStore):
        fails = True

        def read(self, *arguments: Any, **more: Any) -> Any:
            if self.fails:
                raise error
            return super().read(*arguments, **more)

    fill(store, [scrape(ago, {"a": SUFFERS}) for ago in AGES])
    failing: Any = Failing(store)
    watched = Watched(failing)
    assert watched.look() == {}
    assert not watched.watch.is_due(NODE)
    assert not event_log.records, "the jobs of the nodes log it"
    failing.fails = False
    assert watched.look() == {"cpu": Level.HIGH}
    failing.fails = True
    assert watched.look() == {"cpu": Level.HIGH}, "what was found remains"


# --- what is published --------------------------------------------------------------------------------


def test_contended_status_is_closed_and_offers_no_more_than_the_node_has(store: SqliteStore, tmp_path: Path) -> None:
    live = live_run(store, tmp_path)
    status = live.wake(FIRST + 2)[0]
    live.stop()
    assert (status.cpu.free, status.mem.free) > (0, 0)
    found = Contention(Level.HIGH, {"a": 0.5}, 1)
    closed = status.contended({"cpu": found})
    assert (closed.cpu.free, closed.mem) == (0.0, status.mem)
    assert closed.cpu.last is not None
    assert (closed.cpu.last.closed, closed.cpu.contention) == (True, found)
    assert closed.cpu.last.limits["contention"] == -1.0
    assert set(closed.cpu.others.values()) == {0.0}
    assert closed.cpu.capacity == status.cpu.last.booked_now == 4.0  # type: ignore[union-attr]
    both = status.contended({"cpu": found, "mem": found})
    assert (both.cpu.free, both.mem.free) == (0.0, 0.0)
    assert status.contended({}) == status
    # A node that is stale or unknown publishes nothing anyway.
    stale = status.aged(status.slice_end_s + 60)
    unknown = NodeStatus("n", "borg")
    assert stale.contended({"cpu": found}) == stale
    assert unknown.contended({"cpu": found}) == unknown


def test_contention_counts_as_long_as_the_figures_that_it_closes(store: SqliteStore, tmp_path: Path) -> None:
    live = live_run(store, tmp_path)
    live.wake(FIRST + 2)
    worker, slice_clock = live.scheduler._nodes[0].worker, live.scheduler._slice_clock
    found = {"cpu": Contention(Level.HIGH, {"a": 0.5}, 1)}

    def published(number: int, late_s: float) -> tuple[str, bool | None, float]:
        live.clock.at_end_of(number, late_s)
        one = published_status(worker.progress, slice_clock.due(), slice_clock, failed=False, contentions=found)
        return one.state, one.cpu.last.closed if one.cpu.last else None, one.cpu.free

    assert published(FIRST + 2, 30.0) == ("ok", True, 0.0)
    # The next slice ended, and is not computed yet.
    assert published(FIRST + 3, 5.0) == ("ok", True, 0.0)
    assert published(FIRST + 3, 50.0)[::2] == ("stale", 0.0)
    live.stop()


class RunningDaemon:
    """The loop of a live run, for the time of a block."""

    def __init__(self, live: LiveRun) -> None:
        self.live = live

    async def __aenter__(self) -> RunningDaemon:
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.live.scheduler.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self.task

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)


def live_run(store: Any, folder: Path, *, guarded: bool = True, nodes: Sequence[str] = (NODE,), **more: Any) -> LiveRun:
    """An estimator whose first three slices are stored; it looks for contention every 30 s of a clock that stands."""
    if isinstance(store, SqliteStore) and not more.pop("filled", False):
        for k in range(3):
            for node in nodes:
                write_slice(store, FIRST + k, OF_NODE | {"cpu_usage": 4.0}, {"a": CALM}, node=node)
    settings = settings_for(folder, nodes=tuple(nodes), previous_scopes=1, **more)
    return LiveRun(settings, store, ["nsigma", "clt"], guarded=guarded, file=StatusFile(settings.status, 90))


def suffer(
    store: SqliteStore, live: LiveRun, late_s: float, nodes: Sequence[str] = (NODE,), vm: Mapping[str, float] = SUFFERS
) -> None:
    """Set the clock to a time within slice FIRST + 3, and store what the VMs waited for since its begin."""
    live.clock.at_end_of(FIRST + 2, late_s)
    ages = range(1, int(late_s), 5)
    fill(store, [scrape(ago, {"a": vm}, node, live.clock.now_s) for node in nodes for ago in ages])


def published(live: LiveRun) -> dict[str, tuple[float, bool, float]]:
    """By node: free CPU, whether it is closed, and free memory, of the status file."""
    path = live.settings.status.path
    if not path.exists():
        return {}
    return {name: (one.free_cpu, one.cpu.closed, one.free_mem) for name, one in read_status(path).items()}


def is_closed(live: LiveRun, node: str = NODE) -> bool:
    return node in published(live) and published(live)[node][:2] == (0.0, True)


def played(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_contention_within_a_slice_is_published_until_the_next_slice_is_computed(
    store: SqliteStore, tmp_path: Path
) -> None:
    live = live_run(store, tmp_path)
    live.clock.at_end_of(FIRST + 2, 2.0)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            await daemon.until(lambda: published(live).get(NODE, (0.0,))[0] > 0)
            before = published(live)[NODE]
            suffer(store, live, 40.0)
            live.monotonic.now_s += 31.0
            await daemon.until(lambda: is_closed(live))
            assert published(live)[NODE][2] == before[2], "the memory is as it was"
            # It ends within the slice; the node stays closed.
            looked_at = live.monotonic.now_s
            fill(store, [scrape(ago, {"a": CALM}, NODE, live.clock.now_s + 15) for ago in range(1, 10)])
            live.clock.now_s += 15.0
            live.monotonic.now_s += 31.0
            await daemon.until(lambda: live.scheduler._watch._due[NODE] > looked_at + 31.0)  # type: ignore[union-attr]
            assert is_closed(live)
            # The next slice ends; most of its samples show it.
            fill(store, [scrape(ago, {"a": CALM}, NODE, (FIRST + 4) * SLICE_S) for ago in (0.5, 4.5)])
            live.clock.at_end_of(FIRST + 3, 2.0)
            await daemon.until(lambda: read_status(live.settings.status.path)[NODE].slice_end == (FIRST + 4) * SLICE_S)
            last = read_status(live.settings.status.path)[NODE].cpu
            assert (last.state, last.contention.level, last.closed) == ("ok", "high", True)

    played(play)
    live.stop()


def test_contention_that_the_slice_does_not_confirm_ends_with_it(store: SqliteStore, tmp_path: Path) -> None:
    """No more than a tenth of its samples: the figure is that of the slice again."""
    live = live_run(store, tmp_path)
    live.wake(FIRST + 2)
    watch = live.scheduler._watch
    assert watch is not None
    with watch._lock:
        watch._found[NODE] = (FIRST + 2, {"cpu": Contention(Level.HIGH, {"a": 0.5}, 1)})
    assert live.scheduler.statuses()[0].cpu.free == 0.0
    write_slice(store, FIRST + 3, OF_NODE | {"cpu_usage": 4.0}, {"a": CALM})
    (status,) = live.wake(FIRST + 3)
    live.stop()
    assert status.cpu.free > 0.0
    assert status.cpu.contention.level is Level.NONE


@pytest.mark.parametrize(("guarded", "check_s"), [(False, 30.0), (True, 0.0)])
def test_nothing_is_looked_for_without_guards_or_with_a_period_of_0(
    guarded: bool, check_s: float, store: SqliteStore, tmp_path: Path
) -> None:
    live = live_run(store, tmp_path, guarded=guarded, contention_check_s=check_s)
    live.wake(FIRST + 2)
    free = live.scheduler.statuses()[0].cpu.free
    suffer(store, live, 40.0)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            await daemon.until(lambda: bool(published(live)))
            live.monotonic.now_s += 100.0
            await asyncio.sleep(0.05)

    played(play)
    assert live.scheduler._watch is None
    assert published(live)[NODE][0] == free > 0
    live.stop()


def test_restart_within_the_slice_publishes_nothing_before_it_has_looked(store: SqliteStore, tmp_path: Path) -> None:
    """The figures of the checkpoint are those of the slice before; the published file stays as it is meanwhile."""

    class Slow(UnavailableStore):
        released, asked = threading.Event(), threading.Event()

        def read(self, *arguments: Any, **more: Any) -> Any:
            self.asked.set()
            self.released.wait(60)
            return super().read(*arguments, **more)

    slow: Any = Slow(store)
    live_run(store, tmp_path).stop()
    live = live_run(slow, tmp_path)
    slow.released.set()
    live.wake(FIRST + 2)
    free = live.scheduler.statuses()[0].cpu.free
    live.restart()
    slow.released.clear()
    slow.asked.clear()
    live.settings.status.path.unlink()
    suffer(store, live, 40.0)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            await daemon.until(slow.asked.is_set)
            await asyncio.sleep(0.05)
            assert published(live) == {}
            slow.released.set()
            await daemon.until(lambda: bool(published(live)))
            assert is_closed(live)

    played(play)
    live.stop()
    assert free > 0


def test_first_publication_waits_for_a_look_that_hangs_for_seconds_only(store: SqliteStore, tmp_path: Path) -> None:
    released = threading.Event()

    class Hanging(UnavailableStore):
        hangs = False

        def read(self, node: str, *arguments: Any, **more: Any) -> Any:
            if self.hangs and node == NODE:
                released.wait(60)
            return super().read(node, *arguments, **more)

    live_run(store, tmp_path, nodes=NODES).stop()
    hanging: Any = Hanging(store)
    live = live_run(hanging, tmp_path, nodes=NODES)
    live.wake(FIRST + 2)
    live.restart()
    live.settings.status.path.unlink()
    hanging.hangs = True
    suffer(store, live, 40.0, NODES)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            await daemon.until(lambda: live.scheduler._nodes[1].checked)
            await asyncio.sleep(0.05)
            assert published(live) == {}
            live.monotonic.now_s += 5.1
            await daemon.until(lambda: bool(published(live)))
            assert is_closed(live, NODES[1])
            assert published(live)[NODE][0] > 0
            released.set()
            await daemon.until(lambda: is_closed(live))

    played(play)
    live.stop()


def test_look_that_hangs_or_crashes_stops_no_node(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    """The only node has one thread for its slices, which a look must not take."""
    released, hanging = threading.Event(), threading.Event()
    live = live_run(store, tmp_path)
    live.wake(FIRST + 2)
    outcomes = iter([RuntimeError("a defect"), None])

    def look(*_: object) -> dict[str, Contention]:
        error = next(outcomes, None)
        if error is not None:
            raise error
        hanging.set()
        released.wait(60)
        return {}

    monkeypatch.setattr(contention_watch, "contention_now", look)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            live.clock.at_end_of(FIRST + 2, 10.0)
            await daemon.until(
                lambda: any("look for contention failed" in record.getMessage() for record in event_log.records)
            )
            live.monotonic.now_s += 31.0
            await daemon.until(hanging.is_set)
            write_slice(store, FIRST + 3, OF_NODE | {"cpu_usage": 4.0}, {"a": CALM})
            live.clock.at_end_of(FIRST + 3, 2.0)
            await daemon.until(
                lambda: (
                    published(live)[NODE][0] > 0 and live.scheduler.statuses()[0].slice_end_s == (FIRST + 4) * SLICE_S
                )
            )
            released.set()

    played(play)
    live.stop()


def test_scheduler_that_ends_while_a_look_hangs_says_so(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.estimator import scheduler

    monkeypatch.setattr(scheduler, "_END_S", 0.05)
    released, hanging = threading.Event(), threading.Event()
    live = live_run(store, tmp_path)
    live.wake(FIRST + 2)

    def look(*_: object) -> dict[str, Contention]:
        hanging.set()
        released.wait(60)
        return {}

    monkeypatch.setattr(contention_watch, "contention_now", look)

    async def play() -> None:
        async with RunningDaemon(live) as daemon:
            await daemon.until(hanging.is_set)

    played(play)
    assert not live.scheduler.close()
    released.set()
    live.stop()


def test_nodes_that_are_behind_are_not_looked_at(store: SqliteStore, tmp_path: Path) -> None:
    live = live_run(store, tmp_path, nodes=NODES)
    jobs: list[str] = []

    class Recorded:
        def run(self, job: Callable[..., None], node: Any, number: int) -> None:
            jobs.append(f"{node.worker.node} {number - FIRST}")

        def close(self, timeout_s: float) -> bool:
            return True

    live.scheduler._watch_threads = Recorded()
    live.wake(FIRST + 2)

    async def start(due: int) -> None:
        live.scheduler._start_checks(due, asyncio.Event())

    asyncio.run(start(FIRST + 4))
    assert jobs == []
    # Also while the next slice is not computed yet; and not twice at once.
    for due in (FIRST + 3, FIRST + 2):
        asyncio.run(start(due))
    assert jobs == [f"{node} 2" for node in NODES]
    live.stop()


def test_resources_of_the_watch_have_the_names_of_the_models() -> None:
    assert [resource.name for resource in RESOURCES] == ["cpu", "mem"]
