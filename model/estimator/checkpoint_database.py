"""The SQLite database of the checkpoint file: schema, exclusive opening, handling of unusable files."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_files import identity, make_folder_of, resolve_database
from .checkpoint_format import FORMAT, FleetCheckpoint, NodeCheckpoint, PositionCheckpoint, encode, pack_slice

LOG = logging.getLogger("scroogevm.checkpoints")

#: Seconds to wait for another process that has the file open.
_BUSY_S = 1.0

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS configuration(id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS node(name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS position(name TEXT, position INTEGER, data BLOB NOT NULL, "
    "PRIMARY KEY (name, position)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS slice(name TEXT, position INTEGER, number INTEGER, data BLOB NOT NULL, "
    "PRIMARY KEY (name, position, number))",
    "CREATE TABLE IF NOT EXISTS fleet(id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS figures(name TEXT, number INTEGER, data BLOB NOT NULL, PRIMARY KEY (name, number))",
)
_TABLES_OF_NODES = ("node", "position", "slice", "figures")

Positions = Mapping[tuple[str, int], PositionCheckpoint]


class CheckpointRefused(Exception):
    """The checkpoint file cannot be used; the message is one line."""


class CheckpointDatabase:
    """A SQLite file that one process at a time has open; calls must not overlap.

    Parameters
    ----------
    path : Path
    configuration : mapping
        The settings that the state depends on. A file of another configuration is renamed to ``*.aside``.
    busy_s : float
        Seconds to wait for another process that has the file open.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], busy_s: float = _BUSY_S) -> None:
        self.path = path.expanduser().absolute()
        self._configuration = json.dumps({"format": FORMAT, **configuration}, sort_keys=True)
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def open(self) -> None:
        """Open the file, or create it.

        Raises
        ------
        CheckpointRefused
            When that is impossible, or another process has it open.
        """
        try:
            make_folder_of(self.path)
            self._connection = self._open()
            self._identity = identity(self.path)
        except OSError as error:
            raise CheckpointRefused(f"{self.path}: {error.strerror}") from None
        except sqlite3.Error as error:
            cause = "another scroogevm.py uses it" if "locked" in str(error) else str(error)
            raise CheckpointRefused(f"{self.path}: {cause}") from None

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:
            raise sqlite3.ProgrammingError("the checkpoint file is not open")
        return self._connection

    def query(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """All rows of a query.

        Raises
        ------
        sqlite3.Error
        """
        return self.connection.execute(statement, values).fetchall()

    def write(
        self,
        nodes: Mapping[str, NodeCheckpoint],
        positions: Positions,
        figures: Iterable[Any] = (),
        fleet: FleetCheckpoint | None = None,
    ) -> None:
        """Write states, and figures of slices as (node, number, data, oldest number to keep), in one transaction.

        Raises
        ------
        sqlite3.Error
            Nothing is written then.
        """
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if fleet is not None:
                execute("INSERT OR REPLACE INTO fleet VALUES (1, ?)", (encode(fleet),))
            for node, checkpoint in nodes.items():
                execute("INSERT OR REPLACE INTO node VALUES (?, ?)", (node, encode(checkpoint)))
            for (node, position), state in positions.items():
                self._write_position(node, position, state)
            for node, number, data, oldest in figures:
                execute("INSERT OR REPLACE INTO figures VALUES (?, ?, ?)", (node, number, data))
                execute("DELETE FROM figures WHERE name = ? AND number < ?", (node, oldest))
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise

    def _write_position(self, node: str, position: int, state: PositionCheckpoint) -> None:
        """Write the state of a position; of its slices, those that are not in the file yet."""
        execute, key, oldest = self.connection.execute, (node, position), min(state.past, default=0)
        execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", (*key, encode(state.own)))
        execute("DELETE FROM slice WHERE name = ? AND position = ? AND number < ?", (*key, oldest))
        rows = execute("SELECT number FROM slice WHERE name = ? AND position = ?", key)
        written = {number for (number,) in rows}
        self.connection.executemany(
            "INSERT INTO slice VALUES (?, ?, ?, ?)",
            [(*key, number, pack_slice(one)) for number, one in state.past.items() if number not in written],
        )

    def delete(self, node: str) -> None:
        """Delete everything about a node.

        Raises
        ------
        sqlite3.Error
        """
        for table in _TABLES_OF_NODES:
            # The tables are constants; the name is passed as a value.
            self.connection.execute(f"DELETE FROM {table} WHERE name = ?", (node,))  # noqa: S608

    def recreate_if_removed(self) -> None:
        """Create the file again, with all of its content, if it was deleted or replaced while it was open.

        Raises
        ------
        OSError, sqlite3.Error
        """
        if identity(self.path) == self._identity:
            return
        LOG.warning("%s: deleted by another program, created again", self.path)
        if self.path.exists():
            self._set_aside("replaced by another program")
        fresh = self._connect()
        self.connection.backup(fresh)
        self.connection.close()
        self._connection, self._identity = fresh, identity(self.path)

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._set_aside("not a usable checkpoint file")
            return self._with_configuration(self._connect())
        row = connection.execute("SELECT value FROM configuration").fetchone()
        if row is not None and row[0] != self._configuration:
            connection.close()
            self._set_aside("written by another version or configuration")
            connection = self._connect()
        return self._with_configuration(connection)

    def _with_configuration(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.execute("INSERT OR IGNORE INTO configuration VALUES (1, ?)", (self._configuration,))
        return connection

    def _connect(self) -> sqlite3.Connection:
        path = resolve_database(self.path)
        connection = sqlite3.connect(path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            # A second daemon on the same file would skip the slices that the first one has computed.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            ((result,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if result != "ok":
                raise sqlite3.DatabaseError(result)
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _set_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.aside")
        LOG.warning("%s: %s, renamed to %s; the models start from the stored samples", self.path, reason, aside.name)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).replace(aside.with_name(aside.name + suffix))
