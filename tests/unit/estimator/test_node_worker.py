"""One node: outages of the store, the backlog of the aggregator, and corrupt checkpoints."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.estimator.node_worker import BACKLOG_S, BacklogWait, StoreBehind
from model.oversubscriptioncomputation import STRATEGIES
from model.status import NodeStatus, ResourceStatus
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import (
    FIRST,
    NODES,
    SLICE_S,
    STORED,
    Clock,
    LiveRun,
    UnavailableStore,
    fill,
    scrapes,
    settings_for,
)

Statuses = Sequence[Sequence[NodeStatus]]


def messages(log: pytest.LogCaptureFixture) -> list[str]:
    """The log lines, without those about missing samples."""
    lines = [record.getMessage() for record in log.records]
    return [line for line in lines if "samples of" not in line]


def _without_fleet(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of the strategies that learn nothing from other nodes."""
    return {name: figure for name, figure in figures.items() if not STRATEGIES[name].uses_vm_moments}


# --- outages of the store -------------------------------------------------------------------------------


def test_outage_of_three_slices_leaves_stale_figures_and_then_no_slice_is_missing(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    store: Any = UnavailableStore(stored)
    live = LiveRun(settings_for(tmp_path), store)
    assert [live.wake(number) for number in STORED[:4]] == steady[:4]
    store.unavailable = {"all"}
    event_log.clear()
    for number in STORED[4:7]:
        for status in live.wake(number):
            assert (status.state, status.cpu.free, status.mem.free) == ("stale", 0.0, 0.0)
            assert status.slice_end_s == (number + 1) * SLICE_S
            assert status.cpu.last is not None
    store.unavailable = set()
    # A sample that is newer than the slice is stored, so that the backlog is complete.
    assert live.wake(FIRST + 7, 10.0) == steady[7]
    assert messages(event_log) == ["store: no connection", "store: recovered"]
    live.stop()


def test_backlog_of_the_aggregator_is_waited_for_after_an_outage(
    store: SqliteStore, steady: Statuses, tmp_path: Path
) -> None:
    scraped = {node: list(scrapes(node, STORED[:9], seed=i + 1)) for i, node in enumerate(NODES)}

    def write(first: int, last: int) -> None:
        for node in NODES:
            queue = [one for one in scraped[node] if first * SLICE_S * 1000 <= one.time_ms < last * SLICE_S * 1000]
            store.write([store.encode(one) for one in queue])

    unavailable: Any = UnavailableStore(store)
    live = LiveRun(settings_for(tmp_path), unavailable)
    write(FIRST, FIRST + 4)
    assert [live.wake(number) for number in STORED[:4]] == steady[:4]
    unavailable.unavailable = {"all"}
    assert {status.state for status in live.wake(FIRST + 4)} == {"stale"}
    unavailable.unavailable = set()
    # The store is back before the aggregator has retried: a slice without samples is not a silent node.
    assert {status.state for status in live.wake(FIRST + 5)} == {"stale"}
    write(FIRST + 4, FIRST + 9)
    assert [live.wake(number, 10.0) for number in STORED[6:8]] == steady[6:8]
    live.stop()


def test_node_that_stays_silent_after_an_outage_is_waited_for_only_a_while(store: SqliteStore, tmp_path: Path) -> None:
    fill(store, NODES, range(FIRST, FIRST + 2))
    unavailable: Any = UnavailableStore(store)
    live = LiveRun(settings_for(tmp_path), unavailable, ["percentile"])
    live.wake(FIRST)
    unavailable.unavailable = {"all"}
    live.wake(FIRST + 1)
    unavailable.unavailable = set()
    live.wake(FIRST + 1)
    assert live.unread == len(NODES)
    live.wake(FIRST + 1, after_s=BACKLOG_S - 0.1)
    assert live.unread == len(NODES)
    assert "ok" in {status.state for status in live.wake(FIRST + 1, after_s=SLICE_S)}
    assert live.unread == 0
    live.stop()


def test_backlog_wait_ends_with_a_newer_sample_or_after_a_while() -> None:
    clock = Clock()
    wait = BacklogWait(clock)

    def is_behind(newest_ms: int = 0) -> bool:
        try:
            wait.check(lambda: False, lambda: newest_ms)
        except StoreBehind:
            return True
        return False

    assert not is_behind()  # the store was never unavailable
    wait.start()
    clock.now_s = 1000.0
    assert is_behind()
    wait.check(lambda: True, lambda: 0)
    assert not is_behind()  # the backlog is complete
    wait.start()
    assert is_behind()
    clock.now_s += BACKLOG_S
    assert is_behind()
    clock.now_s += 0.1
    assert not is_behind()


def test_long_backlog_is_waited_for_as_long_as_samples_arrive() -> None:
    clock = Clock()
    wait = BacklogWait(clock)
    wait.start()
    for newest_ms in range(20):
        with pytest.raises(StoreBehind):
            wait.check(lambda: False, lambda newest_ms=newest_ms: newest_ms)  # type: ignore[misc]
        clock.now_s += BACKLOG_S - 1
    with pytest.raises(StoreBehind):
        wait.check(lambda: False, lambda: 19)
    clock.now_s += 1.1
    wait.check(lambda: False, lambda: 19)


def test_node_that_cannot_be_read_does_not_affect_another_one(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    """Its fleet lacks the counts of that node: what it learns is what it learns without that node."""
    alone = LiveRun(settings_for(tmp_path / "alone", nodes=NODES[1:]), stored).play(STORED[:6])
    store: Any = UnavailableStore(stored)
    live = LiveRun(settings_for(tmp_path), store)
    store.unavailable = {NODES[0]}
    event_log.clear()
    for k, number in enumerate(STORED[:6]):
        first, second = live.wake(number)
        assert (first.state, first.cpu.free) == ("unknown", 0.0)
        assert second == alone[k][0]
        assert _without_fleet(second.cpu.others) == _without_fleet(steady[k][1].cpu.others)
    lines = [record.getMessage() for record in event_log.records if NODES[1] not in record.getMessage()]
    assert lines == [f"{NODES[0]}: no connection"]
    live.stop()


# --- checkpoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["node", "position", "slice"])
def test_corrupt_checkpoint_restarts_its_node_and_leaves_the_other(
    table: str, stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, previous_scopes=2)
    LiveRun(settings, stored).play([STORED[8]])
    with sqlite3.connect(settings.checkpoint_path) as file:
        file.execute(f"UPDATE {table} SET data = x'93c0' WHERE name = ?", (NODES[0],))
    file.close()
    event_log.clear()
    live = LiveRun(settings, stored)
    first, second = live.wake(FIRST + 9)
    assert first.slice_end_s == (FIRST + 10) * SLICE_S
    assert first.cpu.state == steady[9][0].cpu.state
    # What the corrupt checkpoint counted for the fleet is lost with it: strategies that learn from other nodes may differ.
    assert own_figures(second) == own_figures(steady[9][1])
    (line,) = messages(event_log)
    assert line.startswith(f"{NODES[0]}: checkpoint discarded, the node starts from the stored samples: ")
    live.stop()


def own_figures(status: NodeStatus) -> NodeStatus:
    """A status without the figures of strategies that learn from the fleet."""

    def own(resource: ResourceStatus) -> ResourceStatus:
        others = {name: free for name, free in resource.others.items() if not STRATEGIES[name].uses_vm_moments}
        return replace(resource, others=others)

    return replace(status, cpu=own(status.cpu), mem=own(status.mem))


def test_saved_slice_is_published_although_a_later_step_failed(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    live = LiveRun(settings_for(tmp_path), stored)
    live.wake(FIRST)

    def fail(*_: Any) -> None:
        raise RuntimeError

    live.on_slice = fail
    live.wake(FIRST + 1)
    assert live.unread == len(NODES)
    assert sum(record.exc_info is not None for record in event_log.records) == len(NODES)
    live.on_slice = lambda *_: None
    assert live.wake(FIRST + 1) == steady[1]
    live.stop()


@pytest.mark.parametrize("ahead", [9, 12, 100])
def test_checkpoint_of_a_clock_that_was_ahead_is_discarded(
    ahead: int, stored: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    expected = LiveRun(settings_for(tmp_path / "a"), stored, ["percentile"]).play([FIRST + 7])
    live = LiveRun(settings_for(tmp_path / "b"), stored, ["percentile"])
    live.wake(FIRST + 7)
    live.wake(FIRST + ahead)
    event_log.clear()
    assert [live.wake(FIRST + 7)] == expected
    assert sum("its last slice ends in the future" in line for line in messages(event_log)) == len(NODES)
    live.stop()


def test_clock_that_is_corrected_while_missed_slices_are_read_ends_that(stored: SqliteStore, tmp_path: Path) -> None:
    """Years of slices in the future would take hours, during which the node is stale."""

    class Jump(UnavailableStore):
        reads = 0

        def read(self, node: str, *arguments: Any, **more: Any) -> Any:
            self.reads += 1
            if self.reads == 50:
                live.clock.at_end_of(FIRST + 1)
            assert self.reads < 100, "the slices of the future are still being read"
            return super().read(node, *arguments, **more)

    store: Any = Jump(stored)
    live = LiveRun(settings_for(tmp_path), store, ["percentile"])
    live.wake(FIRST)
    live.wake(FIRST + 10**7)
    assert "ok" in {status.state for status in live.wake(FIRST + 1)}
    live.stop()


# --- nodes without samples ------------------------------------------------------------------------------


@pytest.mark.parametrize("with_earlier_samples", [False, True])
def test_stop_during_a_read_saves_nothing_of_that_slice(
    with_earlier_samples: bool, stored: SqliteStore, tmp_path: Path
) -> None:
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), stored, ["percentile"])
    if with_earlier_samples:
        live.wake(FIRST)
    worker = live.scheduler._nodes[0].worker
    before = live.checkpoints.node(NODES[0])
    stops = iter([False, True])
    live.clock.at_end_of(FIRST + 1)
    worker.catch_up(FIRST + 1, lambda: next(stops))
    assert live.checkpoints.node(NODES[0]) == before
    live.stop()
