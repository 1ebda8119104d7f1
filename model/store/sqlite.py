"""The embedded store: a SQLite file with a row per node and scrape. Several processes may read and write it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..common.atomic_files import identity, make_folder_of, resolve_database
from ..samples import LastConfig, Period, ScrapeSample
from . import sqlite_queries as queries
from .base import Encoded, FleetRow, Resolution, StoreRefused, StoreUnavailable
from .settings import Thinning
from .sqlite_blocks import (
    Layout,
    config_keys,
    decode_configs,
    decode_period,
    decode_sample,
    encode_block,
    encode_layout,
)
from .sqlite_coarse import COARSE_SCHEMA, Steps, add_functions
from .sqlite_fleet import DELETE_FLEET, FLEET_SCHEMA, INSERT_FLEET, SELECT_FLEET, decode_fleet, encode_fleet
from .sqlite_layouts import LAYOUT_SCHEMA, LayoutNumbers, delete_unused, read_layouts, upgrade

#: Rows deleted by one transaction; a writer waits at most for that many.
_DELETED_AT_ONCE = 2000

#: Longest pause between two of them.
_LONGEST_REST_S = 0.5

#: How long a transaction waits for another one.
_LOCK_TIMEOUT_S = 10.0

#: How long the end waits for the operation of another thread.
_CLOSE_TIMEOUT_S = 5.0

#: SQLite's message for a file of another kind.
_NOT_A_DATABASE = "file is not a database"

#: Cached numbers of nodes.
_MOST_CACHED = 10_000

#: Rows of the first query, and of the largest, that searches backwards for configurations.
_FIRST_SEARCH = 1
_LARGEST_SEARCH = 256

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS node(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    *LAYOUT_SCHEMA,
    "CREATE TABLE IF NOT EXISTS tick(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time_ms INTEGER NOT NULL, "
    "layout INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS tick_of_node ON tick(node, time_ms)",
    "CREATE INDEX IF NOT EXISTS tick_by_age ON tick(time_ms)",
    *COARSE_SCHEMA,
    *FLEET_SCHEMA,
)


class Expired(NamedTuple):
    """What was done to old samples."""

    deleted: int
    thinned: int


@dataclass(slots=True, eq=False)
class _Opened:
    """A connection of one thread, and the file that it has opened."""

    connection: sqlite3.Connection
    file: object
    in_use: threading.Lock = field(default_factory=threading.Lock)


class SqliteStore:
    """The embedded store.

    The file is opened, or created, by :meth:`open` or the first operation.

    Parameters
    ----------
    path : Path
    retention_s : float
        :meth:`expire` deletes older samples.
    thinning : Thinning, optional
        Which samples :meth:`expire` thins; None: none.
    """

    def __init__(self, path: Path, retention_s: float, thinning: Thinning | None = None) -> None:
        self.path = path.expanduser().absolute()
        self.retention_s = retention_s
        self.thinning = thinning
        # A connection per thread: with WAL, a reader and a writer do not block each other.
        self._local = threading.local()
        self._opened: list[_Opened] = []
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._layouts = LayoutNumbers()
        #: Connection and its number of changes by others, for which the cached numbers are valid.
        self._version: tuple[int, int] | None = None

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
        text = encode_layout(sample, layout)
        return Encoded(
            (sample.node, sample.time_ms, text, block), len(block) + 4 * len(text) + 300, 1 + len(layout.domains)
        )

    def write(self, samples: Sequence[Encoded]) -> int:
        """Write all samples in one transaction."""
        with self._transaction() as connection:
            self._check_version(connection)
            rows = [
                (self._node(connection, node), time_ms, self._layouts.number(connection, layout, time_ms), block)
                for node, time_ms, layout, block in (sample.payload for sample in samples)
            ]
            connection.executemany(queries.INSERT, rows)
        return 0

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Read all rows of a period with one query."""
        rows = self._query(queries.SELECT_PERIOD, (node, start_ms, end_ms))
        layouts = self._read_layouts({layout for _, layout, _ in rows})
        # A row that expires at the same time may have lost its layout.
        rows = [row for row in rows if row[1] in layouts]
        return decode_period(rows, layouts, fields, domains=domains)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, LastConfig]:
        """Search backwards from the newest row until all configurations are found; usually one row is enough."""
        rows = self._query(queries.SELECT_LAYOUTS, (node, start_ms, end_ms))
        layouts = self._read_layouts({layout for (layout,) in rows})
        missing = config_keys(layouts.values())
        configs: dict[str, dict[str, float]] = {}
        times_ms: dict[str, int] = {}
        # The configuration of a domain that left early is far back: read more rows each time.
        before, limit = end_ms, _FIRST_SEARCH
        while missing:
            rows = self._query(queries.SELECT_NEWEST, (node, start_ms, before, limit))
            for time_ms, number, block in rows:
                if number not in layouts:
                    layouts |= self._read_layouts({number})  # a row that was written in the meantime
                if number not in layouts:
                    continue  # one that expires at the same time
                layout = layouts[number]
                for name, config, value in decode_configs(layout, block):
                    if (name, config) in missing:
                        configs.setdefault(name, {})[config] = value
                        times_ms.setdefault(name, time_ms)  # rows are read backwards: the first one is the newest
                        missing.discard((name, config))
            if len(rows) < limit:
                break
            before, limit = rows[-1][0], min(4 * limit, _LARGEST_SEARCH)
        return {name: LastConfig(fields, times_ms[name]) for name, fields in configs.items()}

    def nodes(self) -> list[str]:
        """Names of the nodes that have a row, sorted."""
        return [name for (name,) in self._query(queries.SELECT_NODES, ())]

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """Time of the first row of a node in a period."""
        starts = self._query(queries.SELECT_STARTS, (node, start_ms, end_ms))
        return min((int(time_ms) for (time_ms,) in starts if time_ms is not None), default=None)

    def last(self, node: str) -> ScrapeSample | None:
        """Newest sample of a node."""
        for time_ms, number, block in self._query(queries.SELECT_LAST, (node,)):
            for layout in self._read_layouts({number}).values():
                return decode_sample(node, time_ms, layout, block)
        return None

    def resolution(self, node: str, start_ms: int, end_ms: int) -> Resolution | None:
        """The last thinned row of a period tells."""
        for time_ms, step_ms in self._query(queries.SELECT_COARSE, (node, start_ms, end_ms)):
            return Resolution((time_ms // step_ms + 1) * step_ms, step_ms)
        return None

    def expire(self, now_s: float | None = None, stopped: threading.Event | None = None) -> Expired:
        """Delete samples older than the retention, and thin old ones, a part at a time.

        Layouts and nodes that no sample uses any more are deleted as well. The file does not become smaller: SQLite
        uses the space again.

        Parameters
        ----------
        now_s : float, optional
            Unix seconds; the present by default.
        stopped : threading.Event, optional
            Ends it after the next part. Between two parts it rests as long as the first one took.

        Raises
        ------
        StoreUnavailable
            What was done until then is complete.
        """
        now_s = time.time() if now_s is None else now_s
        oldest_ms = (now_s - self.retention_s) * 1000.0
        rest = _Rest(stopped)
        deleted = 0
        for statement in queries.DELETE:
            deleted += self._repeat(partial(_delete, statement, oldest_ms), rest)
        thinned = self._thin(now_s, rest)
        self._repeat(partial(_delete_unused, oldest_ms), rest)
        return Expired(deleted, thinned)

    def _repeat(self, delete: Callable[[sqlite3.Connection], int], rest: _Rest) -> int:
        """Delete in successive transactions until one has little to delete; the number of deleted rows."""
        total, deleted = 0, _DELETED_AT_ONCE
        while deleted >= _DELETED_AT_ONCE and not rest.stopped:
            with rest, self._transaction() as connection:
                deleted = delete(connection)
            total += deleted
        return total

    def _thin(self, now_s: float, rest: _Rest) -> int:
        """Thin the samples that are old enough, some steps of a node at a time; the number of samples replaced."""
        if self.thinning is None:
            return 0
        step_ms = self.thinning.step_s * 1000
        before_ms = int((now_s - self.thinning.full_s) * 1000) // step_ms * step_ms
        total = 0
        while not rest.stopped:
            with rest:
                # Read and computed without a lock: a writer waits for the replacement alone.
                try:
                    with self._connection() as connection:
                        steps = Steps(connection, before_ms, step_ms)
                except (sqlite3.Error, OSError) as error:
                    raise StoreUnavailable(f"{self.path}: {_message(error)}") from None
                if not steps.number:
                    return total
                try:
                    with self._transaction() as connection:
                        if not steps.replace(connection):
                            raise _Changed
                except _Changed:
                    continue
            total += steps.number
        return total

    def write_fleet(self, row: FleetRow) -> None:
        """Write one row; a writing aggregator is waited for like in any transaction."""
        with self._transaction() as connection:
            connection.execute(INSERT_FLEET, encode_fleet(row))

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:
        """Read the rows of a period."""
        return decode_fleet(self._query(SELECT_FLEET, (start_ms, end_ms)))

    def check(self) -> str:
        """Count samples and nodes in a transaction that could write."""
        with self._transaction() as connection:
            ((samples,),) = connection.execute(queries.COUNT_SAMPLES).fetchall()
        return f"SQLite {sqlite3.sqlite_version}, {samples} samples of {len(self.nodes())} nodes"

    def close(self) -> None:
        """Close the connections of all threads.

        A connection that another thread uses is waited for: to close it meanwhile would crash the process.
        """
        with self._lock:
            opened, self._opened = self._opened, []
        self._local = threading.local()
        for one in opened:
            if one.in_use.acquire(timeout=_CLOSE_TIMEOUT_S):
                one.connection.close()
                one.in_use.release()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The connection of this thread, in use until the end of the block; a new one when the file was replaced."""
        while True:
            before: _Opened | None = getattr(self._local, "opened", None)
            usable = before is not None and before.file == identity(self.path)
            one = before if before is not None and usable else self._open_again(before)
            with one.in_use:
                # The store may have been closed meanwhile.
                if one is getattr(self._local, "opened", None):
                    yield one.connection
                    return

    def _open_again(self, before: _Opened | None) -> _Opened:
        self._clear_ids()
        if before is not None:
            self._local.opened = None
            with self._lock, contextlib.suppress(ValueError):
                self._opened.remove(before)
            before.connection.close()
        one = _Opened(self._connect(), identity(self.path))
        with self._lock:
            self._opened.append(one)
        self._local.opened = one
        return one

    def _connect(self) -> sqlite3.Connection:
        make_folder_of(self.path)
        path = resolve_database(self.path)
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            add_functions(connection)
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
            with self._connection() as connection:
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
            with self._connection() as connection:
                return connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {_message(error)}") from None

    def _check_version(self, connection: sqlite3.Connection) -> None:
        """Forget cached numbers when another connection has changed the file; it may have deleted their rows."""
        ((changes,),) = connection.execute("PRAGMA data_version").fetchall()
        version = (id(connection), int(changes))
        if version != self._version:
            self._clear_ids()
            upgrade(connection)
            self._version = version

    def _node(self, connection: sqlite3.Connection, name: str) -> int:
        """Number of a node; a new one is inserted."""
        if len(self._nodes) > _MOST_CACHED:
            self._nodes.clear()
        if name not in self._nodes:
            connection.execute("INSERT OR IGNORE INTO node(name) VALUES (?)", (name,))
            ((number,),) = connection.execute("SELECT id FROM node WHERE name = ?", (name,)).fetchall()
            self._nodes[name] = int(number)
        return self._nodes[name]

    def _clear_ids(self) -> None:
        self._nodes.clear()
        self._layouts.clear()
        self._version = None

    def _read_layouts(self, numbers: set[int]) -> dict[int, Layout]:
        try:
            with self._connection() as connection:
                return read_layouts(connection, numbers)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path}: {_message(error)}") from None


class _Changed(Exception):
    """Another process has changed the samples that were to be thinned."""


class _Rest:
    """Rests after each part of a long work as long as the part took, so that others get their turn.

    Parameters
    ----------
    event : threading.Event or None
        Ends the work; None: it neither rests nor ends.
    """

    def __init__(self, event: threading.Event | None) -> None:
        self._event = event
        self._begin_s = 0.0

    @property
    def stopped(self) -> bool:
        return self._event is not None and self._event.is_set()

    def __enter__(self) -> None:
        self._begin_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._event is not None:
            self._event.wait(min(time.monotonic() - self._begin_s, _LONGEST_REST_S))


def _delete(statement: str, oldest_ms: float, connection: sqlite3.Connection) -> int:
    return connection.execute(statement, (oldest_ms, _DELETED_AT_ONCE)).rowcount


def _delete_unused(oldest_ms: float, connection: sqlite3.Connection) -> int:
    upgrade(connection)
    connection.execute(queries.DELETE_NODES)
    connection.execute(DELETE_FLEET, (oldest_ms,))
    return delete_unused(connection, oldest_ms, _DELETED_AT_ONCE)


def _message(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
