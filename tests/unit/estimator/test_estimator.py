"""The estimator on real stores, slice by slice, by a clock that the tests hold."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.estimator.checkpoints import CheckpointFile, CheckpointRefused
from model.estimator.dump_writer import DumpWriter
from model.estimator.scheduler import Estimator
from model.estimator.settings import EstimatorSettings
from model.estimator.slicing import Calendar
from model.estimator.trace_export import export
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.publishers.base import Publisher
from model.publishers.settings import StatusFileSettings
from model.publishers.status_file import StatusFile, read_status
from model.replay.replay import Replay
from model.replay.trace import parse_trace
from model.samples import ScrapeSample
from model.stability import mean_predictor
from model.status import NodeStatus
from model.store.base import Store, StoreUnavailable
from model.store.settings import StoreSettings
from model.store.sqlite import SqliteStore
from tests.conftest import strict_json

NODES = ("http://w1:9100/metrics", "http://w2:9100/metrics")
SLICE_S = 60
JUDGES = {"cpu": mean_predictor, "mem": mean_predictor}
#: A scope's start, two hours ago: within any retention.
FIRST = math.floor(time.time() / 180) * 3 - 120


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.sqlite", 86400)
    yield made
    made.close()


def ticks_of(node: str, numbers: Sequence[int], seed: int = 1, per_slice: int = 8) -> Iterator[ScrapeSample]:
    """A node of 32 cores whose VMs come and go; now and then it says nothing for a slice, or not everything."""
    draw = np.random.default_rng(seed)
    for number in numbers:
        silent = draw.random() < 0.1
        names = [f"vm-{i}" for i in range(6) if draw.random() < 0.9]
        level = draw.uniform(2, 20)
        for i in range(per_slice):
            time_ms = int((number * SLICE_S + (i + 0.25) * SLICE_S / per_slice) * 1000)
            fields = {
                "cpu": 32.0,
                "mem": 65536.0,
                "cpu_usage": level * draw.uniform(0.5, 1.5),
                "mem_usage": draw.uniform(2e4, 4e4),
            }
            if draw.random() < 0.1:
                del fields["cpu_usage"]
            domains = {
                name: {
                    "cpu": float(1 + j),
                    "mem": 1024.0 * (1 + j),
                    "cpu_usage": draw.uniform(0, 1 + j),
                    "mem_usage": draw.uniform(100, 1024),
                    "mem_rss": 900.0,
                }
                for j, name in enumerate(names)
                if i or j
            }
            for domain in domains.values():
                if draw.random() < 0.1:
                    del domain["cpu_usage"]
            if not silent:
                yield ScrapeSample(node, time_ms, fields, domains)


def fill(store: Store, nodes: Sequence[str], numbers: Sequence[int], **more: Any) -> None:
    for i, node in enumerate(nodes):
        store.write([store.encode(sample) for sample in ticks_of(node, numbers, seed=i + 1, **more)])


def settings_for(tmp_path: Path, **more: Any) -> EstimatorSettings:
    return EstimatorSettings(
        **{
            "nodes": NODES,
            "calendar": Calendar(SLICE_S, 3),
            "historical": 1,
            "previous_scopes": 0,
            "settle_s": 1.0,
            "status": StatusFileSettings(tmp_path / "status.json", 0o640, -1, -1),
            "checkpoint_path": tmp_path / "estimator.sqlite",
            "dump_slices": 100,
            "metrics_port": 0,
            "metrics_address": "127.0.0.1",
            "store": StoreSettings(None, tmp_path / "store.sqlite", 86400),
            **more,
        }
    )


def memory_for(settings: EstimatorSettings, model: ModelSettings) -> CheckpointFile:
    return CheckpointFile(
        settings.checkpoint_path, {"strategies": model.strategies}, model.historical + 1, settings.dump_slices
    )


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def at_end_of(self, number: int, late_s: float = 1.5) -> None:
        self.now_s = (number + 1) * SLICE_S + late_s


class Played:
    """An estimator that is woken when the test wants it to be; may be restarted at any slice."""

    def __init__(
        self,
        settings: EstimatorSettings,
        store: Store,
        strategies: Sequence[str] = tuple(STRATEGIES),
        **publishers: Publisher,
    ) -> None:
        self.settings = settings
        self.store = store
        self.model = ModelSettings(settings.historical, tuple(strategies))
        self.publishers = publishers
        self.clock = Clock()
        self.start()

    def start(self) -> None:
        self.memory = memory_for(self.settings, self.model)
        self.estimator = Estimator(
            self.settings, self.model, JUDGES, self.store, self.memory, self.publishers, clock=self.clock
        )

    def stop(self) -> None:
        assert self.estimator.close()
        self.memory.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def wake(self, number: int, late_s: float = 1.5) -> list[NodeStatus]:
        self.clock.at_end_of(number, late_s)
        for node in self.estimator._nodes.values():
            node.retry_at = 0.0
        asyncio.run(self.estimator.once())
        return self.estimator.statuses()

    def play(self, numbers: Sequence[int], restart: bool = False) -> list[list[NodeStatus]]:
        told = []
        for number in numbers:
            told.append(self.wake(number))
            if restart:
                self.restart()
        self.stop()
        return told


# --- one and the same --------------------------------------------------------------------------------


def test_restarted_after_every_slice_it_publishes_what_it_would_have_anyway(store: SqliteStore, tmp_path: Path) -> None:
    """With every strategy at once: nothing but what is on disk is carried on."""
    numbers = range(FIRST, FIRST + 30)
    fill(store, NODES, numbers)
    whole = Played(settings_for(tmp_path / "a"), store).play(numbers)
    pieces = Played(settings_for(tmp_path / "b"), store).play(numbers, restart=True)
    assert pieces == whole
    assert {name for slice_ in whole for name in slice_[0].cpu.others} == set(STRATEGIES)
    assert len({slice_[0].cpu.free for slice_ in whole}) > 5, "the figures move"


def test_aim_and_what_came_of_it_are_published_whatever_restarts(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 30)
    fill(store, NODES, numbers)
    whole = Played(settings_for(tmp_path / "a"), store, ["conformal"]).play(numbers)
    settings = settings_for(tmp_path / "b")
    publisher = StatusFile(settings.status, 90)
    assert Played(settings, store, ["conformal"], file=publisher).play(numbers, restart=True) == whole
    last = [said[0].cpu.last for said in whole]
    assert {figures.risk for figures in last if figures} == {0.05}
    assert len({figures.violation_rate for figures in last if figures}) > 5, "it moves"
    told = read_status(settings.status.path)[NODES[0]].cpu
    assert (told.risk, told.violation_rate) == (0.05, last[-1].violation_rate if last[-1] else None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_live_can_be_replayed(strategy: str, store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 25)
    fill(store, NODES, numbers)
    settings = settings_for(tmp_path)
    live = Played(settings, store, [strategy]).play(numbers)
    trace = parse_trace(b"".join(export(store, settings, NODES[0], numbers[0], numbers[-1])))
    replayed = Replay(trace, ModelSettings(settings.historical, (strategy,)), JUDGES).run()
    for resource in ("cpu", "mem"):
        history = replayed.recorder.histories(3)[strategy, resource]
        published = [getattr(slice_[0], resource).free for slice_ in live]
        assert published == history.published.tolist()
        booked = [said.last.booked for slice_ in live if (said := getattr(slice_[0], resource)).state == "ok"]
        assert booked == history.booked[~np.isnan(history.free)].tolist()
    assert trace.epoch == [(k + 1) * SLICE_S for k in numbers]


def test_configuration_told_before_any_usage_is_known_live_as_in_a_replay(store: SqliteStore, tmp_path: Path) -> None:
    """As after a restart of a node: what it has is told by its first page, what it uses by its second."""
    told = [
        ScrapeSample(NODES[0], FIRST * SLICE_S * 1000, {"cpu": 8.0}, {"a": {"cpu": 2.0}}),
        ScrapeSample(NODES[0], (FIRST + 1) * SLICE_S * 1000, {"cpu_usage": 1.0}, {"a": {"mem": 512.0}}),
    ]
    store.write([store.encode(sample) for sample in told])
    settings = settings_for(tmp_path)
    live = Played(settings, store, ["borg"]).play([FIRST, FIRST + 1], restart=True)
    trace = parse_trace(b"".join(export(store, settings, NODES[0], FIRST, FIRST + 1)))
    history = Replay(trace, ModelSettings(1, ("borg",)), JUDGES).run().recorder.histories(3)["borg", "cpu"]
    assert [slice_[0].cpu.free for slice_ in live] == history.published.tolist() == [0.0, 6.2]


def test_both_stores_give_the_same_figures(any_store: Store, store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 9)
    fill(any_store, NODES, numbers)
    if any_store is not store:
        fill(store, NODES, numbers)
    expected = Played(settings_for(tmp_path / "a"), store).play(numbers)
    assert Played(settings_for(tmp_path / "b"), any_store).play(numbers) == expected
    # Without strategies that look at single VMs much less is asked of the store.
    few = ("scroogevm", "borg", "greedy")
    assert [
        [{name: status.cpu.others[name] for name in few if status.cpu.others} for status in slice_]
        for slice_ in Played(settings_for(tmp_path / "c"), any_store, few).play(numbers)
    ] == [
        [{name: status.cpu.others[name] for name in few if status.cpu.others} for status in slice_]
        for slice_ in expected
    ]


def test_export_of_both_stores_is_the_same_trace(any_store: Store, store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 5)
    for one in {id(any_store): any_store, id(store): store}.values():
        fill(one, NODES, numbers)
    settings = settings_for(tmp_path)
    texts = [b"".join(export(one, settings, NODES[0], FIRST - 1, FIRST + 5)) for one in (any_store, store)]
    assert strict_json(texts[0]) == strict_json(texts[1])
    assert strict_json(texts[0])["node"]["raw_data"][0] == {}


def test_late_wake_up_goes_through_the_missed_slices_in_order(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    late = Played(settings_for(tmp_path / "b"), store)
    assert late.wake(FIRST) == steady[0]
    assert late.wake(FIRST + 11) == steady[11]


def test_earlier_scopes_are_read_where_nothing_is_remembered(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    settings = settings_for(tmp_path / "b", previous_scopes=3)
    assert Played(settings, store).play([FIRST + 11]) == [steady[11]]
    # Two scopes less: greedy has not seen what it would remember.
    assert Played(settings_for(tmp_path / "c", previous_scopes=1), store).play([FIRST + 11]) != [steady[11]]


# --- what goes wrong ----------------------------------------------------------------------------------


class Breakable:
    """A store that is away for some nodes, or for all, when the test says so."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.away: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, node: str, *more: Any, **others: Any) -> Any:
        if node in self.away or "all" in self.away:
            raise StoreUnavailable("no connection")
        return self._store.read(node, *more, **others)


def test_store_away_for_three_slices_leaves_stale_figures_and_then_none_is_missing(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    breakable: Any = Breakable(store)
    played = Played(settings_for(tmp_path / "b"), breakable)
    assert [played.wake(number) for number in numbers[:4]] == steady[:4]
    breakable.away = {"all"}
    event_log.clear()
    for number in range(FIRST + 4, FIRST + 7):
        for status in played.wake(number):
            assert (status.state, status.cpu.free, status.mem.free) == ("stale", 0.0, 0.0)
            assert status.slice_end_s == (number + 1) * SLICE_S
            assert status.cpu.last is not None
    breakable.away = set()
    # Something newer than the slice is there: all that was kept meanwhile is, too.
    assert played.wake(FIRST + 7, 10.0) == steady[7]
    words = [record.getMessage() for record in event_log.records if "samples of" not in record.getMessage()]
    assert words == ["store: no connection", "store: recovered"]


def test_what_the_aggregator_kept_while_the_store_was_away_is_waited_for(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 9)
    whole = SqliteStore(tmp_path / "whole.sqlite", 86400)
    fill(whole, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), whole).play(numbers)
    scraped = {node: list(ticks_of(node, numbers, seed=i + 1)) for i, node in enumerate(NODES)}

    def write(first: int, last: int) -> None:
        for node in NODES:
            kept = [one for one in scraped[node] if first * SLICE_S * 1000 <= one.time_ms < last * SLICE_S * 1000]
            store.write([store.encode(one) for one in kept])

    breakable: Any = Breakable(store)
    played = Played(settings_for(tmp_path / "b"), breakable)
    write(FIRST, FIRST + 4)
    assert [played.wake(number) for number in numbers[:4]] == steady[:4]
    breakable.away = {"all"}
    assert {status.state for status in played.wake(FIRST + 4)} == {"stale"}
    breakable.away = set()
    # The store is back before the aggregator has noticed: what it lacks is not taken for a silent node.
    assert {status.state for status in played.wake(FIRST + 5)} == {"stale"}
    write(FIRST + 4, FIRST + 9)
    assert [played.wake(number, 10.0) for number in numbers[6:8]] == steady[6:8]
    whole.close()


def test_node_that_stays_silent_after_an_outage_is_not_waited_for_for_ever(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES, range(FIRST, FIRST + 2))
    breakable: Any = Breakable(store)
    played = Played(settings_for(tmp_path), breakable, ["percentile"])
    played.wake(FIRST)
    breakable.away = {"all"}
    played.wake(FIRST + 1)
    breakable.away = set()
    played.wake(FIRST + 1)
    assert all(node.error for node in played.estimator._nodes.values())
    for node in played.estimator._nodes.values():
        node.waits_until = time.monotonic() - 0.001
    played.wake(FIRST + 1)
    assert not any(node.error for node in played.estimator._nodes.values())
    assert "ok" in {status.state for status in played.wake(FIRST + 1)}


def test_one_node_that_cannot_be_read_does_not_touch_the_other(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 6)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    breakable: Any = Breakable(store)
    played = Played(settings_for(tmp_path / "b"), breakable)
    breakable.away = {NODES[0]}
    event_log.clear()
    for k, number in enumerate(numbers):
        first, second = played.wake(number)
        assert (first.state, first.cpu.free) == ("unknown", 0.0)
        assert second == steady[k][1]
    assert [record.getMessage() for record in event_log.records if NODES[1] not in record.getMessage()] == [
        f"{NODES[0]}: no connection"
    ]


def test_silent_node_is_stale_with_its_last_figures_beside_it(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    quiet = range(FIRST, FIRST + 1)
    store.write(
        [
            store.encode(
                ScrapeSample(NODES[0], FIRST * SLICE_S * 1000, {"cpu": 8.0, "cpu_usage": 2.0}, {"a": {"cpu": 2.0}})
            )
        ]
    )
    settings = settings_for(tmp_path)
    played = Played(settings, store, ["percentile"], file=StatusFile(settings.status, 90))
    (status, never) = played.wake(quiet[0])
    assert (status.state, status.cpu.free, status.mem.state, never.state) == ("ok", 6.0, "unknown", "unknown")
    event_log.clear()
    played.wake(FIRST + 1)
    played.wake(FIRST + 2)
    written = strict_json(settings.status.path.read_bytes())[NODES[0]]
    assert (written["state"], written["free_cpu"], written["slice_end"]) == ("stale", 0.0, (FIRST + 3) * SLICE_S)
    assert written["cpu"] == {"state": "stale", "config": 8.0, "booked": 2.0, "tier0": 8.0, "tier1": 0.0, "tier2": 0.0}
    assert written["last_known"]["cpu"] == {
        "free": 6.0, "booked": 2.0, "tier0": 2.0, "tier1": 0.0, "tier2": 6.0, "slice_end": (FIRST + 1) * SLICE_S,
    }  # fmt: skip
    assert strict_json(settings.status.path.read_bytes())[NODES[1]]["state"] == "unknown"
    told = [record.getMessage() for record in event_log.records]
    assert len(told) == 1
    assert told[0].startswith(f"samples of {NODES[0]}: none in the slice that ended at ")
    store.write(
        [store.encode(ScrapeSample(NODES[0], (FIRST + 3) * SLICE_S * 1000, {"cpu": 8.0, "cpu_usage": 1.0}, {}))]
    )
    assert played.wake(FIRST + 3)[0].state == "ok"
    assert event_log.records[-1].getMessage() == f"samples of {NODES[0]}: recovered"


def test_figures_of_the_slice_before_are_not_fresh_for_ever(store: SqliteStore, tmp_path: Path) -> None:
    """Nodes whose turn has not come keep their figures for a quarter of a slice, then they are stale."""
    fill(store, NODES, range(FIRST, FIRST + 1))
    played = Played(settings_for(tmp_path), store, ["percentile"])
    played.wake(FIRST)
    states = {}
    for late_s in (1.5, 10.0, 15.9, 16.1, 59.0):
        played.clock.at_end_of(FIRST + 1, late_s)
        states[late_s] = played.estimator.statuses()[0].state
    assert states == {1.5: "ok", 10.0: "ok", 15.9: "ok", 16.1: "stale", 59.0: "stale"}


def test_clock_that_is_a_slice_ahead_is_waited_for(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES, range(FIRST, FIRST + 8))
    played = Played(settings_for(tmp_path), store, ["percentile"])
    assert "ok" in {status.state for status in played.wake(FIRST + 7)}
    # What was said of the future is not said of the present.
    assert {status.state for status in played.wake(FIRST + 6)} == {"stale"}
    fill(store, NODES, range(FIRST + 8, FIRST + 9), per_slice=3)
    assert "ok" in {status.state for status in played.wake(FIRST + 8)}


@pytest.mark.parametrize("ahead", [9, 12, 1000])
def test_what_a_clock_that_was_ahead_has_seen_is_forgotten(
    ahead: int, store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 8)
    fill(store, NODES, numbers)
    expected = Played(settings_for(tmp_path / "a"), store, ["percentile"]).play([FIRST + 7])
    played = Played(settings_for(tmp_path / "b"), store, ["percentile"])
    played.wake(FIRST + 7)
    played.wake(FIRST + ahead)
    event_log.clear()
    assert [played.wake(FIRST + 7)] == expected
    assert sum("which is not yet" in record.getMessage() for record in event_log.records) == len(NODES)


def test_clock_put_right_while_missed_slices_are_read_ends_that(store: SqliteStore, tmp_path: Path) -> None:
    """Years of slices that have not been would keep a thread, and leave the node stale, for hours."""
    fill(store, NODES, range(FIRST, FIRST + 2))
    played = Played(settings_for(tmp_path), store, ["percentile"])
    played.wake(FIRST)

    async def jump() -> list[NodeStatus]:
        played.clock.at_end_of(FIRST + 10**7)
        stop = asyncio.Event()
        running = asyncio.create_task(played.estimator.run(stop))
        await asyncio.sleep(0.3)
        played.clock.at_end_of(FIRST + 1)
        await asyncio.sleep(2.0)
        statuses = played.estimator.statuses()
        stop.set()
        await running
        return statuses

    assert "ok" in {status.state for status in asyncio.run(jump())}
    played.stop()


def test_figures_that_make_no_sense_cost_the_dump_alone(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    fill(store, NODES, range(FIRST, FIRST + 4))
    settings = settings_for(tmp_path)
    played = Played(settings, store, ["percentile"])
    args = argparse.Namespace(output=str(tmp_path / "dumps"), debug=1, stability="mean")
    dump = DumpWriter(args, settings, played.model, played.memory)
    played.estimator._recorded, played.estimator._on_slice = True, dump.on_slice
    played.wake(FIRST + 1)
    played.memory._connection.execute("UPDATE figures SET data = x'93c0' WHERE name = ?", (NODES[1],))
    assert played.wake(FIRST + 2)[1].slice_end_s == (FIRST + 3) * SLICE_S
    dump.write_all()
    played.stop()
    assert len(list((tmp_path / "dumps").iterdir())) == 1
    assert sum("can't be written" in record.getMessage() for record in event_log.records) == 1


class Wall:
    """An outlet that takes nothing while it is told not to."""

    def __init__(self) -> None:
        self.closed = False
        self.told: list[list[float]] = []

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        if self.closed:
            raise OSError(28, "No space left on device")
        self.told.append([status.slice_end_s for status in statuses])


def test_every_slice_end_is_published_also_while_the_store_is_away(store: SqliteStore, tmp_path: Path) -> None:
    """Else the file would look as if the daemon were gone."""
    fill(store, NODES, range(FIRST, FIRST + 1))
    breakable: Any = Breakable(store)
    wall = Wall()
    played = Played(settings_for(tmp_path), breakable, ["percentile"], wall=wall)
    played.wake(FIRST)
    breakable.away = {"all"}
    for number in range(FIRST + 1, FIRST + 4):
        played.wake(number, late_s=50.0)
    played.stop()
    assert wall.told == [[(number + 1) * SLICE_S] * 2 for number in range(FIRST, FIRST + 4)]


def test_what_an_outlet_did_not_take_is_offered_again_to_it_alone(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES, range(FIRST, FIRST + 1))
    wall, other = Wall(), Wall()
    wall.closed = True
    played = Played(settings_for(tmp_path), store, ["percentile"], wall=wall, other=other)
    played.wake(FIRST)
    wall.closed = False
    played.wake(FIRST)
    played.wake(FIRST)
    played.stop()
    assert wall.told == other.told == [[(FIRST + 1) * SLICE_S] * 2]


def test_store_that_nobody_hears_from_is_told_before_all_have_waited_for_it(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    """A server that is frozen costs each read its time limit: with many nodes some read is always under way."""

    class Slow(Breakable):
        def read(self, node: str, *more: Any, **others: Any) -> Any:
            time.sleep(0.3)
            return super().read(node, *more, **others)

    slow: Any = Slow(store)
    slow.away = {"all"}
    nodes = tuple(f"http://w{i}:9100/metrics" for i in range(64))
    played = Played(settings_for(tmp_path, nodes=nodes), slow, ["percentile"])
    played.clock.at_end_of(FIRST)

    async def a_while() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(played.estimator.run(stop))
        await asyncio.sleep(1.0)
        stop.set()
        await running

    asyncio.run(a_while())
    played.stop()
    assert [record.getMessage() for record in event_log.records] == ["store: no connection"]


def test_slice_that_is_remembered_is_published_whatever_comes_next(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 4)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    played = Played(settings_for(tmp_path / "b"), store)
    played.wake(FIRST)

    def fail(*_: Any) -> None:
        raise RuntimeError

    played.estimator._on_slice = fail
    played.wake(FIRST + 1)
    assert played.wake(FIRST + 1) == steady[1]
    played.stop()


@pytest.mark.parametrize("table", ["node", "position", "slice"])
def test_broken_memory_of_one_node_starts_it_anew_and_leaves_the_other(
    table: str, store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a", previous_scopes=2), store).play(numbers)
    settings = settings_for(tmp_path / "b", previous_scopes=2)
    Played(settings, store).play(numbers[:9])
    with sqlite3.connect(settings.checkpoint_path) as broken:
        broken.execute(f"UPDATE {table} SET data = x'93c0' WHERE name = ?", (NODES[0],))
    broken.close()
    event_log.clear()
    played = Played(settings, store)
    first, second = played.wake(FIRST + 9)
    assert first.slice_end_s == (FIRST + 10) * SLICE_S
    assert first.cpu.state == steady[9][0].cpu.state
    assert second == steady[9][1]
    words = [record.getMessage() for record in event_log.records if "samples of" not in record.getMessage()]
    assert [word.startswith(f"{NODES[0]}: what is remembered of it makes no sense") for word in words] == [True]


def test_full_disk_is_no_reason_to_stop(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    """The memory can't be written for some slices: figures go on, and are on disk once that is possible."""
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    settings = settings_for(tmp_path / "b")
    played = Played(settings, store)
    told = played.play(numbers[:4])
    played.start()
    connection = played.memory._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    event_log.clear()
    for number in numbers[4:8]:
        played.memory._retry_at = 0.0
        told.append(played.wake(number))
    connection.execute("PRAGMA max_page_count = 1000000")
    played.memory._retry_at = 0.0
    told.append(played.wake(numbers[8]))
    words = [
        record.getMessage() for record in event_log.records if str(settings.checkpoint_path) in record.getMessage()
    ]
    assert len(words) == 2
    assert "database or disk is full" in words[0]
    assert "recovered" in words[1]
    played.restart()
    told += played.play(numbers[9:], restart=True)
    assert told == steady


def test_status_file_that_cannot_be_written_is_told_once_and_again_when_it_can(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    fill(store, NODES, range(FIRST, FIRST + 6))
    settings = settings_for(tmp_path)
    settings.status.path.mkdir()
    played = Played(settings, store, ["percentile"], **{"status file": StatusFile(settings.status, 90)})
    for number in range(FIRST, FIRST + 3):
        played.wake(number)
    settings.status.path.rmdir()
    played.wake(FIRST + 3)
    words = [record.getMessage() for record in event_log.records if "status file" in record.getMessage()]
    assert words == ["status file: can't be written: Not a regular file", "status file: recovered"]
    assert read_status(settings.status.path).keys() == set(NODES)


def test_memory_of_another_configuration_is_set_aside(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 6)
    fill(store, NODES, numbers)
    settings = settings_for(tmp_path)
    Played(settings, store, ["percentile"]).play(numbers)
    event_log.clear()
    played = Played(settings, store, ["doa"])
    assert "of another version or configuration: set aside as estimator.sqlite.aside" in event_log.text
    assert len(event_log.records) == 1
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists()
    assert played.wake(FIRST + 5)[0].cpu.others.keys() == {"doa"}


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at" * 100, b""])
def test_file_that_is_no_memory_is_set_aside(content: bytes, store: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.checkpoint_path.write_bytes(content)
    fill(store, NODES, range(FIRST, FIRST + 1))
    assert "ok" in {status.state for status in Played(settings, store).wake(FIRST)}
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists() == bool(content)


@pytest.mark.parametrize("start", [1, 3])
def test_memory_with_damaged_pages_is_set_aside(start: int, store: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, previous_scopes=1)
    fill(store, NODES, range(FIRST, FIRST + 9))
    Played(settings, store).play(range(FIRST, FIRST + 8))
    data = settings.checkpoint_path.read_bytes()
    settings.checkpoint_path.write_bytes(data[: start * 4096] + bytes(len(data) - start * 4096))
    played = Played(settings, store)
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists()
    assert "ok" in {status.state for status in played.wake(FIRST + 8)}
    played.stop()


def test_two_daemons_do_not_share_a_memory(store: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    played = Played(settings, store)
    with pytest.raises(CheckpointRefused, match=r"another scroogevm\.py is at work with it"):
        memory_for(settings, played.model)


def test_node_that_grows_its_history_keeps_no_more_of_it_than_it_needs(store: SqliteStore, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 40)
    fill(store, NODES, numbers, per_slice=3)
    settings = settings_for(tmp_path)
    Played(settings, store).play(numbers)
    with sqlite3.connect(settings.checkpoint_path) as connection:
        rows = connection.execute("SELECT name, position, count(*) FROM slice GROUP BY name, position").fetchall()
    connection.close()
    assert [count for _, _, count in rows] == [settings.historical + 1] * 3 * len(NODES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_samples_of_vms_are_kept_only_for_who_looks_at_earlier_ones(
    strategy: str, store: SqliteStore, tmp_path: Path
) -> None:
    """They are by far the most that there is to keep."""
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    settings = settings_for(tmp_path)
    played = Played(settings, store, [strategy])
    played.play(numbers)
    memory = memory_for(settings, played.model)
    kept = [slice_ for position in range(3) for slice_ in memory.position(NODES[0], position).past.values()]
    memory.close()
    samples = sum(usage.vm_usage.size for slice_ in kept for usage in (slice_.cpu, slice_.mem))
    assert (samples > 0) is (strategy in {"rclike", "maxpeak"})


def test_mode_of_the_status_file_is_the_configured_one(store: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    Played(settings, store, ["percentile"], file=StatusFile(settings.status, 90)).wake(FIRST)
    assert settings.status.path.stat().st_mode & 0o777 == 0o640
    assert json.loads(settings.status.path.read_text()).keys() == set(NODES)


def test_nonsense_in_the_store_costs_no_node_its_figures(store: SqliteStore, tmp_path: Path, recwarn: Any) -> None:
    bad: Callable[[float], ScrapeSample] = lambda value: ScrapeSample(  # noqa: E731
        NODES[0],
        FIRST * SLICE_S * 1000 + 7,
        {"cpu": value, "mem": -value, "cpu_usage": value, "mem_usage": -value},
        {"a": {"cpu": value, "mem": -1.0}},
    )
    fill(store, NODES, range(FIRST, FIRST + 2))
    store.write(
        [
            store.encode(bad(1e300)),
            store.encode(ScrapeSample(NODES[0], FIRST * SLICE_S * 1000 + 8, {"cpu": math.inf}, {})),
        ]
    )
    settings = settings_for(tmp_path)
    for statuses in Played(settings, store, logged := list(STRATEGIES)).play(range(FIRST, FIRST + 2)):
        for status in statuses:
            assert math.isfinite(status.cpu.free)
            assert set(status.cpu.others) in ({*logged}, set())
    parse_trace(b"".join(export(store, settings, NODES[0], FIRST, FIRST + 1)))
    assert not recwarn.list


def test_memory_file_that_is_taken_away_is_made_again(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 12)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    settings = settings_for(tmp_path / "b")
    played = Played(settings, store)
    told = [played.wake(number) for number in numbers[:5]]
    for path in settings.checkpoint_path.parent.glob("estimator.sqlite*"):
        path.unlink()
    told += [played.wake(number) for number in numbers[5:8]]
    assert sum("was taken away" in record.getMessage() for record in event_log.records) == 1
    played.restart()
    told += played.play(numbers[8:], restart=True)
    assert told == steady


def test_memory_file_that_cannot_be_made_again_is_no_reason_to_stop(
    store: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    numbers = range(FIRST, FIRST + 8)
    fill(store, NODES, numbers)
    steady = Played(settings_for(tmp_path / "a"), store).play(numbers)
    settings = settings_for(tmp_path / "b")
    played = Played(settings, store)
    told = [played.wake(number) for number in numbers[:4]]
    # Another file is in its place, and what stands where that would be set aside can't be replaced.
    settings.checkpoint_path.unlink()
    settings.checkpoint_path.write_bytes(b"not ours")
    aside = settings.checkpoint_path.with_name(f"{settings.checkpoint_path.name}.aside")
    (aside / "full").mkdir(parents=True)
    told += [played.wake(number) for number in numbers[4:6]]
    assert any("all goes on in memory" in record.getMessage() for record in event_log.records)
    aside.joinpath("full").rmdir()
    aside.rmdir()
    played.memory._retry_at = 0.0
    told += [played.wake(numbers[6])]
    assert "recovered" in event_log.records[-1].getMessage()
    played.restart()
    told += played.play(numbers[7:], restart=True)
    assert told == steady
