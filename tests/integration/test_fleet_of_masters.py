"""Several estimators share what their nodes have learnt, through each kind of store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.estimator.fleet_peers import StorePeers, counts_of, fields_of
from model.estimator.slicing import Calendar
from model.feedback import ResourceCounts, SliceCounts
from model.status import NodeStatus
from model.store.base import FleetRow, Store, StoreRefused, StoreUnavailable
from tests.support.servers import wait_for
from tests.unit.estimator.support import FIRST, SLICE_S, LiveRun, fill, settings_for

NODES = tuple(f"http://w{i}:9100/metrics" for i in range(1, 5))
NUMBERS = range(FIRST, FIRST + 12)
CALENDAR = Calendar(SLICE_S, 3)
ONE = ResourceCounts(3.0, 1.0, (2.0,) * 8, (0.5,) * 8, (0.25,) * 8, 16.0, 10.0, 11.0)
COUNTS = SliceCounts(ONE, ResourceCounts(3.0))


def cpu_figures(statuses: Sequence[NodeStatus]) -> list[float]:
    return [status.cpu.free for status in statuses]


class Masters:
    """Two estimators with two nodes each."""

    def __init__(self, stores: Sequence[Any], folder: Path, names: Sequence[str]) -> None:
        self.runs = [
            LiveRun(settings_for(folder / f"{i}", nodes=NODES[2 * i : 2 * i + 2], master=name), store, ["clt"])
            for i, (store, name) in enumerate(zip(stores, names, strict=True))
        ]

    def play(self, numbers: Sequence[int], *, restart: bool = False) -> list[list[float]]:
        published = []
        for number in numbers:
            published.append([free for run in self.runs for free in cpu_figures(run.wake(number))])
            self.wait_for_counts(number)
            if restart:
                for run in self.runs:
                    run.restart()
        return published

    def wait_for_counts(self, number: int) -> None:
        """Wait until the counts are written: a run with a clock of the test does not wait for the next slice."""
        time_ms = CALENDAR.bounds_ms(number)[1]
        for run in self.runs:
            if name := run.settings.master:
                wait_for(lambda: name in {row.master for row in run.store.read_fleet(time_ms, time_ms + 1)})  # noqa: B023

    def stop(self) -> None:
        for run in self.runs:
            run.stop()


def test_masters_that_share_a_store_publish_what_one_master_of_all_nodes_does(any_store: Store, tmp_path: Path) -> None:
    fill(any_store, NODES, NUMBERS)
    one = LiveRun(settings_for(tmp_path / "one", nodes=NODES), any_store, ["clt"]).play(NUMBERS)
    masters = Masters([any_store] * 2, tmp_path / "two", ["m1", "m2"])
    published = masters.play(NUMBERS, restart=True)
    masters.stop()
    # Sums of floats in another order differ in the last digit, which free amounts are rounded to.
    assert published == [pytest.approx(cpu_figures(statuses), abs=0.1) for statuses in one]
    separate = Masters([any_store] * 2, tmp_path / "separate", ["", ""])
    assert separate.play(NUMBERS) != published
    separate.stop()


def test_master_that_is_down_counts_nothing(any_store: Store, tmp_path: Path) -> None:
    fill(any_store, NODES, NUMBERS)
    alone = LiveRun(settings_for(tmp_path / "a", nodes=NODES[:2]), any_store, ["clt"]).play(NUMBERS)
    shared = LiveRun(settings_for(tmp_path / "b", nodes=NODES[:2], master="m1"), any_store, ["clt"]).play(NUMBERS)
    assert shared == alone
    assert {row.master for row in any_store.read_fleet(0, 4 * 10**12)} == {"m1"}
    assert len(any_store.read_fleet(0, 4 * 10**12)) == len(NUMBERS)


class ReadOnly:
    """A store that refuses the counts, or whose part for them fails."""

    def __init__(self, store: Store, error: Exception) -> None:
        self._store = store
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write_fleet(self, row: FleetRow) -> None:
        raise self._error

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:
        raise self._error


@pytest.mark.parametrize("error", [StoreRefused("it is read-only"), StoreUnavailable("no connection"), OSError("what")])
def test_store_that_cannot_hold_the_counts_is_logged_once_and_costs_no_figure(
    error: Exception, any_store: Store, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    fill(any_store, NODES, NUMBERS)
    alone = LiveRun(settings_for(tmp_path / "a", nodes=NODES[:2]), any_store, ["clt"]).play(NUMBERS)
    event_log.clear()
    store: Any = ReadOnly(any_store, error)
    assert LiveRun(settings_for(tmp_path / "b", nodes=NODES[:2], master="m1"), store, ["clt"]).play(NUMBERS) == alone
    lines = [record.getMessage() for record in event_log.records if " of " in record.getMessage()]
    counts = sorted(line for line in lines if "cannot be" in line)
    cause = str(error) if not isinstance(error, OSError) else repr(error)
    assert counts == [
        f"counts of other masters: cannot be read: {cause}",
        f"counts of the fleet: cannot be written: {cause}",
    ]


class Hanging(ReadOnly):
    """A store whose reads of the counts do not return in time."""

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:
        time.sleep(1.0)
        return []


def test_read_of_the_counts_that_hangs_is_given_up(any_store: Store, event_log: pytest.LogCaptureFixture) -> None:
    peers = StorePeers(Hanging(any_store, OSError()), "m1", CALENDAR, wait_s=0.2)  # type: ignore[arg-type]
    assert peers.counts(FIRST, lambda: None) is None
    wait_for(lambda: peers.counts(FIRST, lambda: None) == ())
    assert [record.getMessage() for record in event_log.records] == [
        "counts of other masters: cannot be read: no response in time"
    ]
    peers.close()


@pytest.fixture
def peers(any_store: Store) -> Iterator[StorePeers]:
    made = StorePeers(any_store, "m1", CALENDAR, wait_s=30.0)
    yield made
    made.close()


def read(peers: StorePeers, number: int) -> Sequence[SliceCounts]:
    woken: list[None] = []
    if peers.counts(number, lambda: woken.append(None)) is None:
        wait_for(lambda: woken)
    found = peers.counts(number, lambda: None)
    assert found is not None
    return found


def test_counts_pass_through_the_store_without_a_change(any_store: Store, peers: StorePeers) -> None:
    other = StorePeers(any_store, "m2", CALENDAR, wait_s=30.0)
    other.share(FIRST, COUNTS)
    other.close()
    peers.share(FIRST, SliceCounts(ONE, ONE))
    assert read(peers, FIRST) == (COUNTS,), "the own ones are not read back"
    assert read(peers, FIRST + 1) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"slice_s": 30.0},
        {"cpu_full": 4.0},
        {"cpu_nodes": -1.0},
        {"mem_used": 1e300},
        {"cpu_shares_2": 2.5},
        {"cpu_squares_7": 2.1},
    ],
)
def test_impossible_counts_are_dropped(any_store: Store, peers: StorePeers, changed: dict[str, float]) -> None:
    time_ms = CALENDAR.bounds_ms(FIRST)[1]
    good = fields_of(COUNTS, SLICE_S)
    any_store.write_fleet(FleetRow("bad", time_ms, good | changed))
    any_store.write_fleet(FleetRow("newer", time_ms, good | {"disk_nodes": 1.0}))
    assert read(peers, FIRST) == (COUNTS,)


def test_counts_that_lack_a_field_are_dropped() -> None:
    good = fields_of(COUNTS, 60.0)
    assert counts_of(good, 60.0) == COUNTS
    for name in good:
        assert counts_of({key: value for key, value in good.items() if key != name}, 60.0) is None
