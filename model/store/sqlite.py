"""The embedded store: a SQLite file with a row per node and scrape. Several processes may read and write it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_files import identity, make_folder_of, resolve_database
from ..samples import Period, ScrapeSample
from .base import Encoded, StoreRefused, StoreUnavailable
from .sqlite_blocks import (
    Layout,
    config_keys,
    decode_configs,
    decode_period,
    decode_sample,
    encode_block,
    parse_layout,
)

#: Rows deleted by one transaction; a writer waits at most for that many.
_DELETED_AT_ONCE = 2000

#: How long a transaction waits for another one.
_LOCK_TIMEOUT_S = 10.0

#: SQLite's message for a file of another kind.
_NOT_A_DATABASE = "file is not a database"

#: Cached numbers of nodes and of layouts.
_MOST_CACHED = 10_000

#: Rows of the first query, and of the largest, that searches backwards for configurations.
_FIRST_SEARCH = 1
_LARGEST_SEARCH = 256

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS node(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS layout(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS tick(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time_ms INTEGER NOT NULL, "
    "layout INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS tick_of_node ON tick(node, time_ms)",
    "CREATE INDEX IF NOT EXISTS tick_by_age ON tick(time_ms)",
)

_OF_NODE = "FROM tick WHERE node = (SELECT id FROM node WHERE name = ?)"
_OF_PERIOD = f"{_OF_NODE} AND time_ms >= ? AND time_ms < ?"
_SELECT_PERIOD = f"SELECT time_ms, layout, data {_OF_PERIOD} ORDER BY time_ms"
_SELECT_NEWEST = f"SELECT time_ms, layout, data {_OF_PERIOD} ORDER BY time_ms DESC LIMIT ?"
_SELECT_LAYOUTS = f"SELECT DISTINCT layout {_OF_PERIOD}"
_SELECT_START = f"SELECT min(time_ms) {_OF_PERIOD}"
_SELECT_LAST = f"SELECT time_ms, layout, data {_OF_NODE} ORDER BY time_ms DESC LIMIT 1"
_SELECT_NODES = "SELECT name FROM node WHERE EXISTS (SELECT 1 FROM tick WHERE tick.node = node.id) ORDER BY name"
_INSERT = "INSERT OR IGNORE INTO tick(node, time_ms, layout, data) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM tick WHERE id IN (SELECT id FROM tick WHERE time_ms < ? LIMIT ?)"


class SqliteStore:
    """The embedded store.

    The file is opened, or created, by :meth:`open` or the first operation.

    Parameters
    ----------
    path : Path
    retention_s : float
        :meth:`expire` deletes older samples.
    """

    def __init__(self, path: Path, retention_s: float) -> None:
        self.path = path.expanduser().absolute()
        self.retention_s = retention_s
        # A connection per thread: with WAL, a reader and a writer do not block each other.
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._layouts: dict[str, int] = {}

    def open(self) -> None:
        """Create folder and file if necessary, and verify that the file is a store.

        Raises
        ------
        StoreRefused
            When the file is not a store, or its path cannot be that of a file.
        StoreUnavailable
            When it cannot be opened now.
        """
        try:
            with self._transaction():
                pass
        except StoreUnavailable as error:
            if _NOT_A_DATABASE in str(error):
                raise StoreRefused(str(error)) from None
            raise
        except ValueError as error:
            raise StoreRefused(f"{self.path!s}: {_message(error)}") from None

    def encode(self, sample: ScrapeSample) -> Encoded:
        """Encode a sample as node, time, layout and block."""
        layout, block = encode_block(sample)
        text = layout.to_json()
        return Encoded(
            (sample.node, sample.time_ms, text, block), len(block) + 4 * len(text) + 300, 1 + len(layout.domains)
        )

    def write(self, samples: Sequence[Encoded]) -> int:
        """Write all samples in one transaction."""
        with self._transaction() as connection:
            rows = [
                (self._id(connection, "node", node), time_ms, self._id(connection, "layout", layout), block)
                for node, time_ms, layout, block in (sample.payload for sample in samples)
            ]
            connection.executemany(_INSERT, rows)
        return 0

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Read all rows of a period with one query."""
        rows = self._query(_SELECT_PERIOD, (node, start_ms, end_ms))
        return decode_period(rows, self._read_layouts({layout for _, layout, _ in rows}), fields, domains=domains)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, dict[str, float]]:
        """Search backwards from the newest row until all configurations are found; usually one row is enough."""
        rows = self._query(_SELECT_LAYOUTS, (node, start_ms, end_ms))
        layouts = self._read_layouts({layout for (layout,) in rows})
        missing = config_keys(layouts.values())
        configs: dict[str, dict[str, float]] = {}
        # The configuration of a domain that left early is far back: read more rows each time.
        before, limit = end_ms, _FIRST_SEARCH
        while missing:
            rows = self._query(_SELECT_NEWEST, (node, start_ms, before, limit))
            for _, number, block in rows:
                layout = layouts.get(number) or self._read_layouts({number})[number]
                for name, field, value in decode_configs(layout, block):
                    if (name, field) in missing:
                        configs.setdefault(name, {})[field] = value
                        missing.discard((name, field))
            if len(rows) < limit:
                break
            before, limit = rows[-1][0], min(4 * limit, _LARGEST_SEARCH)
        return configs

    def nodes(self) -> list[str]:
        """Names of the nodes that have a row, sorted."""
        return [name for (name,) in self._query(_SELECT_NODES, ())]

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """Time of the first row of a node in a period."""
        ((time_ms,),) = self._query(_SELECT_START, (node, start_ms, end_ms))
        return None if time_ms is None else int(time_ms)

    def last(self, node: str) -> ScrapeSample | None:
        """Newest sample of a node."""
        for time_ms, layout, block in self._query(_SELECT_LAST, (node,)):
            return decode_sample(node, time_ms, self._read_layouts({layout})[layout], block)
        return None

    def expire(self, now_s: float | None = None) -> int:
        """Delete samples older than the retention, a part at a time; the number of deleted samples."""
        oldest_ms = ((time.time() if now_s is None else now_s) - self.retention_s) * 1000.0
        total = 0
        while True:
            with self._transaction() as connection:
                deleted = connection.execute(_DELETE, (oldest_ms, _DELETED_AT_ONCE)).rowcount
            total += deleted
            if deleted < _DELETED_AT_ONCE:
                return total

    def check(self) -> str:
        """Count samples and nodes in a transaction that could write."""
        with self._transaction() as connection:
            ((samples,),) = connection.execute("SELECT count(*) FROM tick").fetchall()
        return f"SQLite {sqlite3.sqlite_version}, {samples} samples of {len(self.nodes())} nodes"

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread; a new one when the file was replaced."""
        connection, file = getattr(self._local, "opened", (None, None))
        if connection is not None and file == identity(self.path):
            return connection
        self._clear_ids()
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
        make_folder_of(self.path)
        path = resolve_database(self.path)
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # A killed process loses no committed transaction; a power failure may lose the last few.
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
                # Numbers assigned in a transaction that is rolled back do not exist.
                self._clear_ids()
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, sqlite3.Warning, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {_message(error)}") from None

    def _query(self, statement: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._connection().execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {_message(error)}") from None

    def _id(self, connection: sqlite3.Connection, table: str, name: str) -> int:
        """Number of a node or layout; a new one is inserted."""
        cache = self._nodes if table == "node" else self._layouts
        if len(cache) > _MOST_CACHED:
            cache.clear()
        if name not in cache:
            # The table is one of two constants; the name is a bound value.
            connection.execute(f"INSERT OR IGNORE INTO {table}(name) VALUES (?)", (name,))  # noqa: S608
            row = connection.execute(f"SELECT id FROM {table} WHERE name = ?", (name,)).fetchone()  # noqa: S608
            cache[name] = int(row[0])
        return cache[name]

    def _clear_ids(self) -> None:
        self._nodes.clear()
        self._layouts.clear()

    def _read_layouts(self, numbers: set[int]) -> dict[int, Layout]:
        layouts = {}
        for number in numbers:
            ((text,),) = self._query("SELECT name FROM layout WHERE id = ?", (number,))
            layouts[number] = parse_layout(text)
        return layouts


def _message(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
