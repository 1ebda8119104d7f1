"""Between aggregator and store: in order, bounded, and nothing lost that fits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.aggregator import write_queue as spool_module
from model.aggregator.write_queue import WriteQueue
from model.samples import ScrapeSample
from model.store.base import Encoded, StoreUnavailable
from model.store.sqlite import SqliteStore
from tests.support.servers import wait_for


def sample(k: int) -> ScrapeSample:
    return ScrapeSample("n", k, {"cpu": 1.0}, {"a": {"cpu": 1.0}})


class Flaky(SqliteStore):
    """The real store, which is away while it is told to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 86400)
        self.away = threading.Event()
        self.calls: list[int] = []
        self.retry_after_s: float | None = None
        self.hurdle: Callable[[], None] = lambda: None

    def write(self, scraped: Sequence[Encoded]) -> int:
        self.calls.append(len(scraped))
        self.hurdle()
        if self.away.is_set():
            raise StoreUnavailable("away for the test", self.retry_after_s)
        return super().write(scraped)

    def times(self) -> list[int]:
        return self.read("n", 0, 10**9, ("cpu",)).node.time_ms.tolist()


@pytest.fixture
def store(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path / "s")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(spool_module, "_LONGEST_BACKOFF_S", 0.05)


def test_what_is_put_is_written(store: Flaky) -> None:
    write_queue = WriteQueue(store, 10**6)
    for k in range(50):
        write_queue.put(sample(k))
    assert write_queue.close(10)
    assert store.times() == list(range(50))
    assert write_queue.counts().written == 100
    assert (write_queue.counts().queued, write_queue.counts().queued_bytes) == (0, 0)


def test_store_that_was_away_gets_every_tick_once_and_in_order(store: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    write_queue = WriteQueue(store, 10**6)
    store.away.set()
    for k in range(40):
        write_queue.put(sample(k))
        time.sleep(0.002)
    assert wait_for(lambda: len(store.calls) > 3)
    assert write_queue.counts().queued == 80
    store.away.clear()
    assert wait_for(lambda: write_queue.counts().queued == 0)
    write_queue.close(5)
    assert store.times() == list(range(40))
    assert write_queue.counts().written == 80
    # Told once when it began, and once when it was over.
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


def test_full_queue_drops_the_oldest_and_counts_them(store: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    size = store.encode(sample(0)).size
    write_queue = WriteQueue(store, 10 * size)
    store.away.set()
    for k in range(100):
        write_queue.put(sample(k))
    counts = write_queue.counts()
    assert counts.queued_bytes <= 10 * size
    assert counts.dropped == 2 * 90
    store.away.clear()
    assert write_queue.close(10)
    assert store.times()[-10:] == list(range(90, 100))
    assert sum("oldest points are dropped" in record.message for record in caplog.records) == 1


def test_one_tick_larger_than_the_queue_is_kept_all_the_same(store: Flaky) -> None:
    write_queue = WriteQueue(store, 1)
    write_queue.put(sample(1))
    assert write_queue.close(10)
    assert store.times() == [1]


def test_wish_of_the_server_is_waited_for(store: Flaky) -> None:
    store.retry_after_s = 0.4
    store.away.set()
    write_queue = WriteQueue(store, 10**6)
    write_queue.put(sample(0))
    wait_for(lambda: len(store.calls) == 1)
    start = time.monotonic()
    wait_for(lambda: len(store.calls) == 2, every=0.005)
    assert time.monotonic() - start > 0.3
    store.away.clear()
    assert write_queue.close(10)


def test_fault_in_a_write_costs_that_batch_alone(store: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    faults = iter([ZeroDivisionError("a fault of ours")])

    def hurdle() -> None:
        for fault in faults:
            raise fault

    store.hurdle = hurdle
    write_queue = WriteQueue(store, 10**6)
    write_queue.put(sample(0))
    wait_for(lambda: write_queue.counts().refused == 2)
    write_queue.put(sample(1))
    assert write_queue.close(10)
    assert store.times() == [1]
    assert "given up" in caplog.text


def test_tick_that_can_not_be_written_costs_itself_alone(store: Flaky) -> None:
    store.away.set()
    write_queue = WriteQueue(store, 10**7)
    for k in range(20):
        write_queue.put(sample(10**30 if k == 7 else k))  # no integer of SQLite's
    store.away.clear()
    assert write_queue.close(10)
    assert store.times() == [k for k in range(20) if k != 7]
    assert write_queue.counts().refused == 2


def test_stop_flushes_what_waits_and_gives_up_in_time(store: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    store.away.set()
    write_queue = WriteQueue(store, 10**6)
    write_queue.put(sample(0))
    start = time.monotonic()
    assert not write_queue.close(0.3)
    assert time.monotonic() - start < 3
    assert "2 points waited" in caplog.text


def test_stop_waits_for_a_store_that_comes_back(store: Flaky) -> None:
    store.away.set()
    write_queue = WriteQueue(store, 10**6)
    write_queue.put(sample(0))
    threading.Timer(0.2, store.away.clear).start()
    assert write_queue.close(10)
    assert store.times() == [0]


def test_putting_never_waits_for_a_store_that_hangs(store: Flaky) -> None:
    release = threading.Event()
    store.hurdle = lambda: release.wait(20) and None
    write_queue = WriteQueue(store, 10**6)
    start = time.monotonic()
    for k in range(100):
        write_queue.put(sample(k))
    assert time.monotonic() - start < 5
    release.set()
    assert write_queue.close(10)
    assert store.times() == list(range(100))


def test_queue_holds_no_more_memory_than_it_says(store: Flaky) -> None:
    import tracemalloc

    store.away.set()
    write_queue = WriteQueue(store, 2 * 2**20)
    vms: dict[str, Any] = {f"vm{i}": {f"f{j}": float(j) for j in range(25)} for i in range(40)}
    tracemalloc.start()
    for k in range(1000):
        write_queue.put(ScrapeSample("n", k, {"cpu": 1.0}, vms))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 * 2**20
    assert not write_queue.close(0.05)
