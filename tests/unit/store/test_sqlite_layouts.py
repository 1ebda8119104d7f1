"""Layouts of the embedded store: they stay small when VMs come and go, expire, and older files are read."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from model.samples import LastConfig, ScrapeSample
from model.store.base import Encoded
from model.store.sqlite import SqliteStore
from model.store.sqlite_blocks import encode_block
from model.store.sqlite_layouts import TOUCH_MS

NODE = "http://w1:9100/metrics"
HOUR_MS = 3_600_000
DAY_S = 86400
T0 = 1_795_000_000_000
FIELDS = ("cpu", "cpu_usage")


def sample(time_ms: int, *vms: str, node: str = NODE) -> ScrapeSample:
    fields = {f"field_{i}": float(i) for i in range(30)}
    return ScrapeSample(node, time_ms, {"cpu": 64.0, **fields}, {vm: {"cpu": 4.0, **fields} for vm in sorted(vms)})


def write(store: SqliteStore, *samples: ScrapeSample) -> None:
    assert store.write([store.encode(sample) for sample in samples]) == 0


def count(store: SqliteStore, table: str) -> int:
    with closing(sqlite3.connect(store.path)) as connection:
        ((number,),) = connection.execute(f"SELECT count(*) FROM {table}")
    return int(number)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.sqlite", DAY_S)
    yield store
    store.close()


def test_vm_that_comes_or_goes_costs_less_than_a_kilobyte(store: SqliteStore) -> None:
    """Without the values of the samples, which are there for an unchanged node as well."""

    def size(changing: bool) -> float:
        path = store.path.with_name(f"{changing}")
        with closing(SqliteStore(path, DAY_S)) as other:
            for k in range(200):
                first = k if changing else 0
                write(other, sample(T0 + k * 1000, *(f"instance-{first + i:08x}" for i in range(40))))
        with closing(sqlite3.connect(path)) as connection:
            ((pages,),), ((page_size,),) = (
                connection.execute(f"PRAGMA {name}").fetchall() for name in ("page_count", "page_size")
            )
        return float(pages * page_size)

    assert (size(True) - size(False)) / 200 < 1000  # 7000 when each layout has all names


def test_layouts_words_and_nodes_expire_with_their_samples(store: SqliteStore) -> None:
    for k in range(48):
        write(store, sample(T0 + k * HOUR_MS, f"old{k}", node=f"http://old{k}/"))
    last_ms = T0 + 10 * DAY_S * 1000
    write(store, sample(last_ms, "new"))
    assert count(store, "layout") == 49
    assert store.expire(last_ms / 1000).deleted == 48
    assert [count(store, table) for table in ("tick", "layout", "node")] == [1, 1, 1]
    assert count(store, "word") == 2  # the fields, which node and domain have in common here, and the name
    assert store.last(NODE) == sample(last_ms, "new")


def test_layout_in_use_does_not_expire(store: SqliteStore) -> None:
    for k in range(0, 24 * 10):
        now_ms = T0 + k * HOUR_MS
        write(store, sample(now_ms, "a"))
        store.expire(now_ms / 1000)
        assert store.last(NODE) == sample(now_ms, "a")
    period = store.read(NODE, 0, 2 * T0, FIELDS)
    assert period.domains["a"].time_ms.size == period.node.time_ms.size == 25
    assert [count(store, table) for table in ("layout", "word")] == [1, 2]


def test_every_sample_within_the_retention_keeps_its_layout(store: SqliteStore) -> None:
    """Layouts that are used again just before they expire, at any time within the precision of their times."""
    step_ms = TOUCH_MS // 5
    for k in range(60):
        now_ms = T0 + k * step_ms
        write(store, sample(now_ms, *(name for name, every in (("a", 1), ("b", 7), ("c", 24)) if k % every == 0)))
        store.expire(now_ms / 1000)
        rows = count(store, "tick")
        assert store.read(NODE, 0, 2 * T0, FIELDS).node.time_ms.size == rows


def test_number_that_another_connection_has_deleted_is_not_used(store: SqliteStore) -> None:
    write(store, sample(T0, "a"), sample(T0, "a", node="http://w2/"))
    thread = threading.Thread(target=store.expire, args=(T0 / 1000 + 10 * DAY_S,))
    thread.start()
    thread.join()
    assert count(store, "layout") == 0
    late = sample(T0 + 1000, "a")  # of the same layout, and older than the retention
    write(store, late)
    assert store.last(NODE) == late


def old_file(path: Path, *samples: ScrapeSample) -> None:
    """A file as the version before wrote it: a layout is the JSON of all names."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "PRAGMA journal_mode = WAL",
            "CREATE TABLE node(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
            "CREATE TABLE layout(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
            "CREATE TABLE tick(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time_ms INTEGER NOT NULL, "
            "layout INTEGER NOT NULL, data BLOB NOT NULL)",
            "CREATE UNIQUE INDEX tick_of_node ON tick(node, time_ms)",
            "CREATE INDEX tick_by_age ON tick(time_ms)",
        ):
            connection.execute(statement)
        for one in samples:
            layout, block = encode_block(one)
            text = json.dumps(layout, separators=(",", ":"))
            connection.execute("INSERT OR IGNORE INTO node(name) VALUES (?)", (one.node,))
            connection.execute("INSERT OR IGNORE INTO layout(name) VALUES (?)", (text,))
            connection.execute(
                "INSERT INTO tick(node, time_ms, layout, data) "
                "SELECT node.id, ?, layout.id, ? FROM node, layout WHERE node.name = ? AND layout.name = ?",
                (one.time_ms, block, one.node, text),
            )
        connection.commit()


def test_older_file_is_read_and_written_without_loss(store: SqliteStore) -> None:
    old = [sample(T0 + k * HOUR_MS, "a", f"b{k // 2}") for k in range(10)]
    old_file(store.path, *old)
    assert store.last(NODE) == old[-1]  # reading alone changes nothing
    new = sample(T0 + 10 * HOUR_MS, "a", "b4")
    write(store, new)
    period = store.read(NODE, 0, 2 * T0, FIELDS)
    assert period.domains["a"].time_ms.tolist() == [one.time_ms for one in (*old, new)]
    assert sorted(period.domains) == ["a", "b0", "b1", "b2", "b3", "b4"]
    assert store.last(NODE) == new
    assert store.last_configs(NODE, 0, 2 * T0)["b0"] == LastConfig({"cpu": 4.0}, old[1].time_ms)
    # A day after the newest sample of the older file, its layouts are still there; then they expire.
    assert store.expire((T0 + 9 * HOUR_MS) / 1000 + DAY_S).deleted == 9
    assert store.read(NODE, 0, 2 * T0, FIELDS).domains["b4"].time_ms.size == 2
    store.expire((T0 + 10 * HOUR_MS) / 1000 + 3 * DAY_S)
    assert [count(store, table) for table in ("tick", "layout", "word")] == [0, 0, 0]


def test_older_file_is_upgraded_once(store: SqliteStore) -> None:
    old_file(store.path, sample(T0, "a"))
    for k in range(1, 4):
        with closing(SqliteStore(store.path, DAY_S)) as other:
            write(other, sample(T0 + k, "a"))
            assert other.expire(T0 / 1000).deleted == 0
    assert count(store, "layout") == 2


def test_row_whose_layout_is_missing_is_left_out(store: SqliteStore) -> None:
    write(store, sample(T0, "a"), sample(T0 + 1, "b"))
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("DELETE FROM layout WHERE id = (SELECT max(id) FROM layout)")
        connection.commit()
    assert store.last(NODE) is None
    assert store.read(NODE, 0, 2 * T0, FIELDS).node.time_ms.tolist() == [T0]
    assert store.last_configs(NODE, 0, 2 * T0) == {"a": LastConfig({"cpu": 4.0}, T0)}


def test_cached_numbers_are_bounded(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.store.sqlite_layouts._MOST_CACHED", 10)
    encoded: list[Encoded] = [store.encode(sample(T0 + k, f"vm{k}")) for k in range(50)]
    store.write(encoded)
    assert len(store._layouts._cached) <= 10
    assert store.read(NODE, 0, 2 * T0, FIELDS).node.time_ms.size == 50
