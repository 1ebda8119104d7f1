"""The queue between scrapes and store: samples are written in order, the size is bounded, and loss is counted."""

from __future__ import annotations

import logging
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from model.aggregator import spool_backlog
from model.aggregator import write_queue as module
from model.aggregator.metrics import AggregatorMetrics
from model.aggregator.sample_codec import pack_sample
from model.aggregator.spool import Spool
from model.aggregator.waiting import estimate_size
from model.aggregator.write_queue import WriteQueue
from model.samples import ScrapeSample
from model.store.base import Encoded, StoreUnavailable
from model.store.sqlite import SqliteStore
from tests.support.servers import wait_for


def sample(k: int) -> ScrapeSample:
    return ScrapeSample("n", k, {"cpu": 1.0}, {"a": {"cpu": 1.0}})


class UnreliableStore(SqliteStore):
    """The embedded store, which is unavailable while ``away`` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 86400)
        self.away = threading.Event()
        self.calls: list[int] = []
        self.retry_after_s: float | None = None
        self.before_write: Callable[[], object] = lambda: None

    def write(self, samples: Sequence[Encoded]) -> int:
        self.calls.append(len(samples))
        self.before_write()
        if self.away.is_set():
            raise StoreUnavailable("away for the test", self.retry_after_s)
        return super().write(samples)

    def times(self) -> list[int]:
        return self.read("n", 0, 10**9, ("cpu",)).node.time_ms.tolist()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UnreliableStore]:
    store = UnreliableStore(tmp_path / "s")
    yield store
    store.close()


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_BACKOFF_S", 0.05)


def started(store: UnreliableStore, most_bytes: int = 10**6) -> WriteQueue:
    write_queue = WriteQueue(store, most_bytes)
    write_queue.start()
    return write_queue


def test_nothing_is_written_before_the_start(store: UnreliableStore) -> None:
    write_queue = WriteQueue(store, 10**6)
    write_queue.put(sample(0))
    assert (write_queue.counts().queued, store.calls) == (2, [])
    write_queue.start()
    assert write_queue.close(10)
    assert store.times() == [0]


def test_queued_samples_are_written(store: UnreliableStore) -> None:
    write_queue = started(store)
    for k in range(50):
        write_queue.put(sample(k))
    assert write_queue.close(10)
    assert store.times() == list(range(50))
    assert write_queue.counts().written == 100
    assert (write_queue.counts().queued, write_queue.counts().queued_bytes) == (0, 0)


def test_end_does_not_wait_for_further_samples(store: UnreliableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 3600.0)
    write_queue = started(store)
    for k in range(3):
        write_queue.put(sample(k))
    assert write_queue.close(30)
    assert store.times() == [0, 1, 2]


def test_store_that_was_away_gets_every_sample_once_and_in_order(
    store: UnreliableStore, event_log: pytest.LogCaptureFixture
) -> None:
    write_queue = started(store)
    store.away.set()
    for k in range(40):
        write_queue.put(sample(k))
    assert wait_for(lambda: len(store.calls) > 3, every=0.005)
    assert write_queue.counts().queued == 80
    store.away.clear()
    assert write_queue.close(10)
    assert store.times() == list(range(40))
    assert write_queue.counts().written == 80
    # The failure is logged once, and so is the recovery.
    assert [(record.levelno, record.getMessage()) for record in event_log.records] == [
        (logging.ERROR, "store: write failed, points are queued: away for the test"),
        (logging.INFO, "store: recovered"),
    ]


def test_full_queue_drops_the_oldest_samples_and_counts_them(
    store: UnreliableStore, event_log: pytest.LogCaptureFixture
) -> None:
    size = store.encode(sample(0)).size
    store.away.set()
    write_queue = started(store, 10 * size)
    for k in range(100):
        write_queue.put(sample(k))
    counts = write_queue.counts()
    assert counts.queued_bytes <= 10 * size
    assert counts.dropped == 2 * 90
    store.away.clear()
    assert write_queue.close(10)
    assert store.times() == list(range(90, 100))
    errors = [record.getMessage() for record in event_log.records if "queue" in record.getMessage().partition(":")[0]]
    assert errors == ["the queue is full: the oldest points are dropped", "the queue was full: points_dropped=180"]


def test_sample_larger_than_the_queue_is_kept(store: UnreliableStore) -> None:
    write_queue = started(store, 1)
    write_queue.put(sample(1))
    assert write_queue.close(10)
    assert store.times() == [1]


def test_pause_before_a_retry_doubles_and_follows_the_server(
    store: UnreliableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.5)
    monkeypatch.setattr(module, "_LONGEST_BACKOFF_S", 30.0)
    pauses: list[float] = []

    def pause(_queue: WriteQueue, pause_s: float) -> bool:
        pauses.append(pause_s)
        store.retry_after_s = {8: 100.0, 9: 1e6}.get(len(pauses))
        if len(pauses) == 10:
            store.away.clear()
        return True

    monkeypatch.setattr(WriteQueue, "_pause", pause)
    store.away.set()
    write_queue = started(store)
    write_queue.put(sample(0))
    assert write_queue.close(10)
    assert store.times() == [0]
    for pause_s, expected_s in zip(pauses[:8], [0.5, 1, 2, 4, 8, 16, 30, 30], strict=True):
        assert 0.75 * expected_s <= pause_s <= 1.25 * expected_s
    # Retry-After of the server, at most ten minutes.
    assert pauses[8:] == [100.0, 600.0]


def test_unexpected_error_loses_that_batch_alone(store: UnreliableStore, caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([ZeroDivisionError("a defect")])

    def fail_once() -> None:
        for error in errors:
            raise error

    store.before_write = fail_once
    write_queue = started(store)
    write_queue.put(sample(0))
    wait_for(lambda: write_queue.counts().refused == 2, every=0.005)
    write_queue.put(sample(1))
    assert write_queue.close(10)
    assert store.times() == [1]
    assert "a sample cannot be written and is dropped: ZeroDivisionError" in caplog.text


def test_sample_that_cannot_be_written_is_lost_alone(store: UnreliableStore) -> None:
    write_queue = WriteQueue(store, 10**7)
    for k in range(20):
        write_queue.put(sample(10**30 if k == 7 else k))  # too large for an integer of SQLite
    write_queue.start()
    assert write_queue.close(10)
    assert store.times() == [k for k in range(20) if k != 7]
    assert write_queue.counts().refused == 2


def test_close_gives_up_after_its_timeout(store: UnreliableStore, caplog: pytest.LogCaptureFixture) -> None:
    store.away.set()
    write_queue = started(store)
    write_queue.put(sample(0))
    start_s = time.monotonic()
    assert not write_queue.close(0.05)
    assert time.monotonic() - start_s < 3
    assert "stopped before the store was available: points_lost=2" in caplog.text


def test_close_waits_for_a_store_that_returns(store: UnreliableStore) -> None:
    def return_at_third_call() -> None:
        if len(store.calls) == 3:
            store.away.clear()

    store.away.set()
    store.before_write = return_at_third_call
    write_queue = started(store)
    write_queue.put(sample(0))
    assert write_queue.close(10)
    assert store.times() == [0]


def test_put_does_not_block_while_the_store_hangs(store: UnreliableStore) -> None:
    release = threading.Event()
    store.before_write = lambda: release.wait(20)
    write_queue = started(store)
    start_s = time.monotonic()
    for k in range(100):
        write_queue.put(sample(k))
    assert time.monotonic() - start_s < 5
    release.set()
    assert write_queue.close(10)
    assert store.times() == list(range(100))


def test_memory_of_the_queue_is_bounded(store: UnreliableStore) -> None:
    write_queue = WriteQueue(store, 2 * 2**20)
    vms: dict[str, Any] = {f"vm{i}": {f"f{j}": float(j) for j in range(25)} for i in range(40)}
    tracemalloc.start()
    for k in range(400):
        write_queue.put(ScrapeSample("n", k, {"cpu": 1.0}, vms))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert write_queue.counts().dropped > 0
    assert used < 4 * 2**20


# --- spool ------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", 10**7)
    yield made
    made.close()


def with_spool(store: UnreliableStore, spool: Spool, most_bytes: int = 10**6) -> WriteQueue:
    write_queue = WriteQueue(store, most_bytes, spool)
    write_queue.start()
    return write_queue


def test_backlog_survives_the_end_and_is_written_first_at_the_next_start(
    store: UnreliableStore, spool: Spool, event_log: pytest.LogCaptureFixture
) -> None:
    store.away.set()
    write_queue = with_spool(store, spool)
    for k in range(40):
        write_queue.put(sample(k))
    start_s = time.monotonic()
    assert write_queue.close(10)
    assert time.monotonic() - start_s < 5  # the store is not waited for
    assert f"points_spooled=80 spool={spool.path}" in event_log.text
    assert "points_lost" not in event_log.text

    order: list[int] = []
    store.away.clear()
    store.before_write = lambda: order.append(len(store.times()))
    again = Spool(spool.path, 10**7)
    write_queue = with_spool(store, again)
    write_queue.put(sample(100))
    assert wait_for(lambda: write_queue.counts().written == 82, every=0.005)
    assert store.times() == [*range(40), 100]
    assert order[:2] == [0, 40]
    assert write_queue.close(10)
    assert not spool.path.exists()
    assert f"{spool.path}: the backlog of an earlier run is written: points=80" in event_log.text
    assert event_log.text.count(f"{spool.path}: the backlog is stored") == 1


def test_full_memory_is_moved_to_the_spool_and_nothing_is_dropped(
    store: UnreliableStore, spool: Spool, event_log: pytest.LogCaptureFixture
) -> None:
    size = store.encode(sample(0)).size + estimate_size(sample(0))
    store.away.set()
    write_queue = with_spool(store, spool, 10 * size)
    for k in range(200):
        write_queue.put(sample(k))
        wait_for(lambda: write_queue.counts().queued_bytes <= 8 * size, every=0.0005)
    counts = write_queue.counts()
    assert (counts.dropped, counts.queued + counts.spooled) == (0, 400)
    assert counts.spooled > 300
    store.away.clear()
    assert wait_for(lambda: write_queue.counts().written == 400, every=0.005)
    assert write_queue.close(10)
    assert store.times() == list(range(200))
    assert event_log.text.count("the backlog is written here until the store takes it") == 1


def test_what_waits_long_is_moved_to_the_spool(
    store: UnreliableStore, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed then loses only what is younger."""
    monkeypatch.setattr(module, "_SPOOL_AFTER_S", 0.05)
    store.away.set()
    write_queue = with_spool(store, spool)
    write_queue.put(sample(0))
    wait_for(lambda: (write_queue.counts().spooled, write_queue.counts().queued) == (2, 0), every=0.005)
    store.away.clear()
    assert write_queue.close(10)


def test_age_of_the_backlog_is_that_of_the_oldest_sample_in_memory(store: UnreliableStore) -> None:
    now_s = [100.0]
    write_queue = WriteQueue(store, 10**6, clock=lambda: now_s[0])
    assert write_queue.backlog_age_s == 0.0
    write_queue.put(sample(0))
    now_s[0] = 107.0
    write_queue.put(sample(1))
    now_s[0] = 112.0
    assert write_queue.backlog_age_s == 12.0
    write_queue.start()
    assert write_queue.close(10)
    assert write_queue.backlog_age_s == 0.0


def test_age_of_the_backlog_counts_the_spool_also_after_a_restart(store: UnreliableStore, spool: Spool) -> None:
    spool.append([pack_sample(sample(0))], 2)
    spool.append([pack_sample(sample(1))], 2)
    spool.close()
    oldest, newest = sorted(spool.path.iterdir())
    os.utime(oldest, (1000.0, 1000.0))
    os.utime(newest, (1300.0, 1300.0))
    again = Spool(spool.path, 10**7, lambda: 1500.0)
    assert again.open_if_present()
    write_queue = WriteQueue(store, 10**6, again)
    assert write_queue.backlog_age_s == 500.0
    again.remove(oldest.name)
    assert write_queue.backlog_age_s == 200.0
    again.append([pack_sample(sample(2))], 2)
    again.remove(newest.name)
    assert write_queue.backlog_age_s == 0.0
    again.close()


def test_limits_are_those_of_the_settings(store: UnreliableStore, tmp_path: Path) -> None:
    without = WriteQueue(store, 5000)
    assert (without.most_bytes, without.most_spooled_bytes) == (5000, 0)
    assert WriteQueue(store, 5000, Spool(tmp_path / "spool", 7000)).most_spooled_bytes == 7000


def test_metrics_of_the_queue_have_the_figures_of_the_queue(store: UnreliableStore, tmp_path: Path) -> None:
    now_s = [0.0]
    write_queue = WriteQueue(store, 5000, Spool(tmp_path / "spool", 7000), clock=lambda: now_s[0])
    registry = CollectorRegistry()
    AggregatorMetrics(registry).watch(write_queue, registry)
    write_queue.put(sample(0))
    now_s[0] = 9.0
    counts = write_queue.counts()
    for name, value in {
        "points_queued": 2,
        "points_spooled": 0,
        "queue_bytes": counts.queued_bytes,
        "queue_limit_bytes": 5000,
        "spool_bytes": 0,
        "spool_limit_bytes": 7000,
        "backlog_age_seconds": 9,
    }.items():
        assert registry.get_sample_value(f"scroogevm_{name}") == value, name


def test_full_spool_drops_the_oldest_and_counts_them(
    store: UnreliableStore, tmp_path: Path, event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SPOOL_AFTER_S", 0.0)
    store.away.set()
    write_queue = with_spool(store, Spool(tmp_path / "spool", 1000))
    for k in range(100):
        write_queue.put(sample(k))
        wait_for(lambda: write_queue.counts().queued == 0, every=0.0005)
    dropped = write_queue.counts().dropped
    assert 100 < dropped < 200
    assert write_queue.counts().spooled_bytes <= 1000
    store.away.clear()
    assert wait_for(lambda: write_queue.counts().written == 200 - dropped, every=0.005)
    assert store.times() == list(range(dropped // 2, 100))
    assert write_queue.close(10)
    assert event_log.text.count("the spool is full: the oldest points are dropped") == 1


def test_spool_that_cannot_be_written_is_reported_once_and_the_memory_is_used(
    store: UnreliableStore, tmp_path: Path, event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(spool_backlog, "RETRY_S", 0.02)
    monkeypatch.setattr(module, "_SPOOL_AFTER_S", 0.0)
    (tmp_path / "file").write_text("")
    store.away.set()
    write_queue = with_spool(store, Spool(tmp_path / "file" / "spool", 10**6))
    for k in range(20):
        write_queue.put(sample(k))
    wait_for(lambda: len(store.calls) > 8, every=0.005)
    (tmp_path / "file").unlink()
    wait_for(lambda: write_queue.counts().spooled == 40, every=0.005)
    store.away.clear()
    assert wait_for(lambda: write_queue.counts().written == 40, every=0.005)
    assert store.times() == list(range(20))
    assert write_queue.close(10)
    assert event_log.text.count("the spool cannot be used: Not a directory") == 1
    assert event_log.text.count(f"{tmp_path / 'file' / 'spool'}: recovered") == 1


def test_damaged_spool_costs_its_tail_alone_and_is_counted(
    store: UnreliableStore, spool: Spool, event_log: pytest.LogCaptureFixture
) -> None:
    for start in (0, 10):
        spool.append([pack_sample(sample(k)) for k in range(start, start + 10)], 20)
    first = min(spool.path.iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    spool.close()
    write_queue = with_spool(store, spool)
    wait_for(lambda: write_queue.counts().written == 38, every=0.005)
    wait_for(lambda: write_queue.counts().dropped == 2, every=0.005)
    assert write_queue.close(10)
    assert store.times() == [k for k in range(20) if k != 9]
    assert event_log.text.count("is damaged: points_lost=2") == 1


def test_spooled_sample_of_another_version_is_lost_alone(store: UnreliableStore, spool: Spool) -> None:
    spool.append([pack_sample(sample(0)), b"\x93of another version", pack_sample(sample(1))], 6)
    write_queue = with_spool(store, spool)
    wait_for(lambda: write_queue.counts().written == 4, every=0.005)
    assert write_queue.close(10)
    assert store.times() == [0, 1]
    assert write_queue.counts().dropped == 2


def test_spool_of_an_instance_that_is_ending_is_written_once_it_has_ended(
    store: UnreliableStore, spool: Spool, event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(spool_backlog, "RETRY_S", 0.02)
    spool.append([pack_sample(sample(0))], 2)
    write_queue = with_spool(store, Spool(spool.path, 10**6))
    write_queue.put(sample(1))
    # Nothing is wrong as long as this instance does not need the spool.
    wait_for(lambda: store.times() == [1], every=0.005)
    spool.close()
    wait_for(lambda: store.times() == [0, 1], every=0.005)
    assert write_queue.close(10)
    assert "cannot be used" not in event_log.text


def test_defect_does_not_end_the_thread_that_writes(
    store: UnreliableStore, spool: Spool, event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    failing = threading.Event()
    failing.set()
    batch = spool_backlog.SpoolBacklog.batch

    def fail(self: spool_backlog.SpoolBacklog, most_points: int) -> Any:
        if failing.is_set():
            raise ZeroDivisionError("a defect")
        return batch(self, most_points)

    monkeypatch.setattr(spool_backlog.SpoolBacklog, "batch", fail)
    write_queue = with_spool(store, spool)
    write_queue.put(sample(0))
    wait_for(lambda: "write queue: failed: ZeroDivisionError" in event_log.text, every=0.005)
    failing.clear()
    wait_for(lambda: store.times() == [0], every=0.005)
    assert write_queue.close(10)
    assert event_log.text.count("ZeroDivisionError: a defect") == 1


def test_store_that_hangs_at_the_end_leaves_everything_in_the_spool(store: UnreliableStore, spool: Spool) -> None:
    release = threading.Event()
    store.before_write = lambda: release.wait(20)
    write_queue = with_spool(store, spool)
    for k in range(20):
        write_queue.put(sample(k))
    assert write_queue.close(0.2)
    again = Spool(spool.path, 10**6)
    again.open_if_present()
    assert again.counts().points == 40
    release.set()
    again.close()


def test_samples_of_several_threads_are_all_written(store: UnreliableStore, spool: Spool) -> None:
    write_queue = with_spool(store, spool, 10**8)
    threads = [
        threading.Thread(target=lambda part=part: [write_queue.put(sample(part * 100 + k)) for k in range(100)])
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert write_queue.close(20)
    assert store.times() == list(range(800))


def test_sample_that_cannot_be_encoded_is_lost_alone(
    store: UnreliableStore, event_log: pytest.LogCaptureFixture
) -> None:
    write_queue = WriteQueue(store, 10**7)
    for k in range(10):
        fields: dict[str, Any] = {"cpu": 1.0 if k % 2 else "x"}
        write_queue.put(ScrapeSample("n", k, fields, {}))
    write_queue.start()
    assert write_queue.close(10)
    assert store.times() == [1, 3, 5, 7, 9]
    assert (write_queue.counts().written, write_queue.counts().refused) == (5, 5)
    assert event_log.text.count("a sample cannot be written and is dropped: ValueError: ") == 1
