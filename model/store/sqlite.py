"""Where ticks are kept: what every store does, and the embedded one.

The embedded store is a SQLite file: a row per node and scrape, whose figures are one block of float64; a
layout, shared by all rows alike, says what they are. Several processes may read and write it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.atomic_files import identity
from ..numerics import FloatArray
from ..samples import Period, Samples, ScrapeSample
from .base import Encoded, StoreRefused, StoreUnavailable

#: Rows that one transaction deletes: a writer waits no longer than for these.
_DELETED_AT_ONCE = 2000

_BUSY_S = 10.0

#: Nodes and layouts whose numbers are remembered.
_MOST_KNOWN = 10_000


class SqliteStore:
    """The embedded store.

    Parameters
    ----------
    path : Path
    retention_s : float
        Older ticks are deleted by :meth:`expire`.

    Raises
    ------
    StoreRefused
        When the file is no store or can't be opened.
    """

    def __init__(self, path: Path, retention_s: float) -> None:
        self.path = path = path.expanduser().absolute()
        self.retention_s = retention_s
        # Connections are not shared between threads; a write and a read never wait for each other.
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._layouts: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._transaction():
                pass
        except StoreUnavailable as error:
            raise StoreRefused(str(error)) from None
        except (OSError, ValueError) as error:
            raise StoreRefused(f"{path!s}: {_words(error)}") from None

    def encode(self, sample: ScrapeSample) -> Encoded:
        """A layout and a block of figures."""
        names = sorted(sample.domains)
        node_fields = sorted(sample.fields)
        domain_fields = sorted(set().union(*sample.domains.values()))
        layout = json.dumps([node_fields, domain_fields, names], ensure_ascii=False, separators=(",", ":"))
        figures = [sample.fields[name] for name in node_fields]
        for name in names:
            domain = sample.domains[name]
            figures += [domain.get(field, math.nan) for field in domain_fields]
        data = np.array(figures, dtype=np.float64).tobytes()
        return Encoded((sample.node, sample.time_ms, layout, data), len(data) + 4 * len(layout) + 300, 1 + len(names))

    def write(self, scraped: Sequence[Encoded]) -> int:
        """Write all of them in one transaction."""
        with self._transaction() as connection:
            rows = [
                (self._id(connection, "node", self._nodes, node), time_ms, self._layout(connection, layout), data)
                for node, time_ms, layout, data in (sample.payload for sample in scraped)
            ]
            connection.executemany("INSERT OR IGNORE INTO tick(node, time_ms, layout, data) VALUES (?, ?, ?, ?)", rows)
        return 0

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """One query, then arithmetic on blocks."""
        rows = self._query(
            "SELECT time_ms, layout, data FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
            "AND time_ms >= ? AND time_ms < ? ORDER BY time_ms",
            (node, start_ms, end_ms),
        )
        layouts = self._read_layouts({layout for _, layout, _ in rows})
        return _period(rows, layouts, fields, domains=domains)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, dict[str, float]]:
        """From the newest row backwards, until every domain has told: as a rule one row is enough."""
        period = (node, start_ms, end_ms)
        layouts = self._read_layouts({layout for (layout,) in self._query(_LAYOUTS_OF_PERIOD, period)})
        missing = {
            (name, field)
            for _, fields, names in layouts.values()
            for name in names
            for field in {*_CONFIG_FIELDS} & {*fields}
        }
        result: dict[str, dict[str, float]] = {}
        # A few rows at a time: who left early in the period is found far back.
        before, step = end_ms, 1
        while missing:
            rows = self._query(_NEWEST_OF_PERIOD, (node, start_ms, before, step))
            for _, layout, data in rows:
                for name, field, value in _told(data, layouts.get(layout) or self._read_layouts({layout})[layout]):
                    if (name, field) in missing:
                        result.setdefault(name, {})[field] = value
                        missing.discard((name, field))
            if len(rows) < step:
                break
            before, step = rows[-1][0], min(4 * step, 256)
        return result

    def nodes(self) -> list[str]:
        """The nodes that have a tick."""
        return [name for (name,) in self._query(_NODES_WITH_TICKS, ())]

    def domains(self, node: str, start_ms: int, end_ms: int) -> list[str]:
        """From the layouts alone."""
        rows = self._query(_LAYOUTS_OF_PERIOD, (node, start_ms, end_ms))
        found = self._read_layouts({layout for (layout,) in rows})
        return sorted(set().union(*(names for _, _, names in found.values())))

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """The lowest time of its rows."""
        rows = self._query(
            "SELECT min(time_ms) FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
            "AND time_ms >= ? AND time_ms < ?",
            (node, start_ms, end_ms),
        )
        return None if rows[0][0] is None else int(rows[0][0])

    def last(self, node: str) -> ScrapeSample | None:
        """The row with the highest time."""
        rows = self._query(
            "SELECT time_ms, layout, data FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
            "ORDER BY time_ms DESC LIMIT 1",
            (node,),
        )
        if not rows:
            return None
        time_ms, layout, data = rows[0]
        node_fields, domain_fields, names = self._read_layouts({layout})[layout]
        figures = np.frombuffer(data)
        own = dict(zip(node_fields, figures[: len(node_fields)].tolist(), strict=True))
        table = figures[len(node_fields) :].reshape(len(names), len(domain_fields)).tolist()
        domains = {
            name: {field: value for field, value in zip(domain_fields, row, strict=True) if not math.isnan(value)}
            for name, row in zip(names, table, strict=True)
        }
        return ScrapeSample(node, time_ms, own, domains)

    def expire(self, now_s: float | None = None) -> int:
        """Delete what is older than the retention, a part at a time; how many ticks were deleted."""
        oldest_ms = ((time.time() if now_s is None else now_s) - self.retention_s) * 1000.0
        deleted = 0
        while True:
            gone = self._delete(oldest_ms, _DELETED_AT_ONCE)
            deleted += gone
            if gone < _DELETED_AT_ONCE:
                return deleted

    def _delete(self, oldest_ms: float, most: int) -> int:
        with self._transaction() as connection:
            return connection.execute(
                "DELETE FROM tick WHERE id IN (SELECT id FROM tick WHERE time_ms < ? LIMIT ?)", (oldest_ms, most)
            ).rowcount

    def check(self) -> str:
        """EstimatorCounts what there is, in a transaction that may write."""
        with self._transaction() as connection:
            ((scraped,),) = connection.execute("SELECT count(*) FROM tick").fetchall()
        return f"SQLite {sqlite3.sqlite_version}, {scraped} ticks of {len(self.nodes())} nodes"

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        connection, file = getattr(self._local, "opened", (None, None))
        if connection is None or file != identity(self.path):
            # The first time, or the file that was open is no longer the one of that name.
            self._nodes.clear()
            self._layouts.clear()
            if connection is not None:
                self._local.opened = (None, None)
                with self._lock:
                    self._connections.remove(connection)
                connection.close()
            connection = self._connect()
            with self._lock:
                self._connections.append(connection)
            self._local.opened = (connection, identity(self.path))
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # A killed process loses nothing that was committed; only a power cut may cost the last moments.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            for statement in _SCHEMA:
                connection.execute(statement)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # Ids that were given out in what is undone must not be used.
                self._nodes.clear()
                self._layouts.clear()
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise StoreUnavailable(f"{self.path}: {_words(error)}") from None

    def _query(self, statement: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._connection().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path}: {_words(error)}") from None

    def _layout(self, connection: sqlite3.Connection, layout: str) -> int:
        return self._id(connection, "layout", self._layouts, layout)

    @staticmethod
    def _id(connection: sqlite3.Connection, table: str, known: dict[str, int], name: str) -> int:
        if len(known) > _MOST_KNOWN:
            known.clear()
        if name not in known:
            # The table is one of our own two; the name goes in as a value.
            connection.execute(f"INSERT OR IGNORE INTO {table}(name) VALUES (?)", (name,))  # noqa: S608
            row = connection.execute(f"SELECT id FROM {table} WHERE name = ?", (name,)).fetchone()  # noqa: S608
            known[name] = int(row[0])
        return known[name]

    def _read_layouts(self, ids: set[int]) -> dict[int, tuple[list[str], list[str], list[str]]]:
        result = {}
        for layout in ids:
            ((text,),) = self._query("SELECT name FROM layout WHERE id = ?", (layout,))
            result[layout] = tuple(json.loads(text))
        return result


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS node(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS layout(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS tick(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time_ms INTEGER NOT NULL, "
    "layout INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS tick_of_node ON tick(node, time_ms)",
    "CREATE INDEX IF NOT EXISTS tick_by_age ON tick(time_ms)",
)

_CONFIG_FIELDS = ("cpu", "mem")

_LAYOUTS_OF_PERIOD = (
    "SELECT DISTINCT layout FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
    "AND time_ms >= ? AND time_ms < ?"
)

_NEWEST_OF_PERIOD = (
    "SELECT time_ms, layout, data FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
    "AND time_ms >= ? AND time_ms < ? ORDER BY time_ms DESC LIMIT ?"
)

_NODES_WITH_TICKS = "SELECT name FROM node WHERE EXISTS (SELECT 1 FROM tick WHERE tick.node = node.id) ORDER BY name"


def _words(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _period(
    rows: Sequence[tuple[int, int, bytes]],
    layouts: Mapping[int, tuple[list[str], list[str], list[str]]],
    fields: Collection[str],
    *,
    domains: bool,
) -> Period:
    """Take the blocks of successive rows of one layout apart together."""
    node = _Pieces(fields)
    told: dict[str, _Pieces] = {}
    start = 0
    while start < len(rows):
        layout = rows[start][1]
        end = start
        while end < len(rows) and rows[end][1] == layout:
            end += 1
        node_fields, domain_fields, names = layouts[layout]
        times = np.array([time_ms for time_ms, _, _ in rows[start:end]], dtype=np.int64)
        block = np.frombuffer(b"".join(data for _, _, data in rows[start:end])).reshape(end - start, -1)
        node.add(times, block[:, : len(node_fields)], node_fields)
        table = block[:, len(node_fields) :].reshape(end - start, len(names), len(domain_fields))
        for i, name in enumerate(names if domains else ()):
            told.setdefault(name, _Pieces(fields)).add(times, table[:, i, :], domain_fields)
        start = end
    return Period(node.samples(), {name: pieces.samples() for name, pieces in sorted(told.items())})


def _told(data: bytes, layout: tuple[list[str], list[str], list[str]]) -> Iterator[tuple[str, str, float]]:
    """Domain, field and value of what a row tells of the domains' configurations."""
    node_fields, fields, names = layout
    table = np.frombuffer(data)[len(node_fields) :].reshape(len(names), len(fields))
    for field in _CONFIG_FIELDS:
        if field in fields:
            values = table[:, fields.index(field)].tolist()
            yield from (
                (name, field, value) for name, value in zip(names, values, strict=True) if not math.isnan(value)
            )


class _Pieces:
    """Some columns, collected piece by piece; NaN where a piece does not have one."""

    def __init__(self, fields: Collection[str]) -> None:
        self._times: list[Any] = []
        self._columns: dict[str, list[FloatArray]] = {name: [] for name in fields}

    def add(self, times: Any, block: FloatArray, names: Sequence[str]) -> None:
        self._times.append(times)
        at = {name: i for i, name in enumerate(names)}
        for name, pieces in self._columns.items():
            pieces.append(block[:, at[name]] if name in at else np.full(times.size, np.nan))

    def samples(self) -> Samples:
        if not self._times:
            return Samples(np.empty(0, dtype=np.int64), {name: np.empty(0) for name in self._columns})
        return Samples(
            np.concatenate(self._times), {name: np.concatenate(pieces) for name, pieces in self._columns.items()}
        )
