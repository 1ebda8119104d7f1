"""What the models remember, on disk: a SQLite file beside the status file.

Every slice end of a node is one transaction, and the next one starts from what is written here: a daemon
that was killed goes on as if it had not been. A disk that takes nothing more is no reason to stop; what can't be
written is held in memory until it can.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..common.atomic_files import identity
from ..common.logs import ProblemLog
from ..numerics import FloatArray
from ..replay.dump import SliceFigures
from ..slices import Slice, Usage
from ..status import NodeStatus
from .slicing import LastConfigs

LOG = logging.getLogger("scroogevm.memory")

#: Raised when what is written changes its form.
_FORMAT = 2
_BUSY_S = 1.0
_RETRY_S = 5.0


class CheckpointRefused(Exception):
    """The file can't be used; the message is one line."""


class CheckpointCorrupt(Exception):
    """What is remembered of a node makes no sense."""


@dataclass(slots=True)
class NodeCheckpoint:
    """A node after its last slice.

    Attributes
    ----------
    number : int
        Of that slice.
    common : dict
        What its model keeps for all positions.
    known : LastConfigs
    status : NodeStatus
        What was published of it.
    """

    number: int
    common: dict[str, Any]
    known: LastConfigs
    status: NodeStatus


@dataclass(slots=True)
class PositionCheckpoint:
    """One position of a node: its own part of the model's memory, and its last slices by their numbers."""

    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    past: dict[int, Slice] = field(default_factory=dict)


class CheckpointFile:
    """The memory of all nodes.

    Parameters
    ----------
    path : Path
    configuration : mapping
        What the memory depends on; a file of another one is set aside.
    kept : int
        How many slices of a position are kept.
    kept_figures : int
        For how many slices of a node the figures are kept.

    Raises
    ------
    CheckpointRefused
        When the file can't be opened, or another daemon has it open.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], kept: int, kept_figures: int) -> None:
        self.path = path.expanduser().absolute()
        self._kept = kept
        self._kept_figures = kept_figures
        self._text = json.dumps({"format": _FORMAT, **configuration}, sort_keys=True)
        self._lock = threading.Lock()
        self._problems = ProblemLog(LOG)
        self._held_nodes: dict[str, NodeCheckpoint] = {}
        self._held_positions: dict[tuple[str, int], PositionCheckpoint] = {}
        self._retry_at = 0.0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
            self._identity = identity(self.path)
        except OSError as error:
            raise CheckpointRefused(f"{self.path}: {error.strerror}") from None
        except sqlite3.Error as error:
            words = "another scroogevm.py is at work with it" if "locked" in str(error) else str(error)
            raise CheckpointRefused(f"{self.path}: {words}") from None

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._set_aside("is no memory of an estimator")
            return self._connect()
        found = connection.execute("SELECT value FROM configuration").fetchone()
        if found is not None and found[0] != self._text:
            connection.close()
            self._set_aside("is of another version or configuration")
            connection = self._connect()
        connection.execute("INSERT OR IGNORE INTO configuration VALUES (1, ?)", (self._text,))
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # One daemon at a time: two would take each slice for the other's.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.aside")
        LOG.warning("%s %s: set aside as %s, the models start from what is stored", self.path, why, aside.name)
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + end).replace(aside.with_name(aside.name + end))

    def node(self, node: str) -> NodeCheckpoint | None:
        """What is remembered of a node; None when that is nothing.

        Raises
        ------
        CheckpointCorrupt
        """
        with self._lock:
            if node in self._held_nodes:
                return self._held_nodes[node]
            row = self._ask("SELECT data FROM node WHERE name = ?", (node,))
        return _decoded(row[0][0], NodeCheckpoint) if row else None

    def position(self, node: str, position: int) -> PositionCheckpoint:
        """What is remembered of one position of a node.

        Raises
        ------
        CheckpointCorrupt
        """
        with self._lock:
            if held := self._held_positions.get((node, position)):
                # A copy: what another node's thread may write is exchanged by save() alone, whole.
                return replace(held, past=dict(held.past))
            row = self._ask("SELECT data FROM position WHERE name = ? AND position = ?", (node, position))
            past = self._ask(
                "SELECT number, data FROM slice WHERE name = ? AND position = ? ORDER BY number", (node, position)
            )
        own = _decoded(row[0][0], dict[str, dict[str, Any]]) if row else {}
        return PositionCheckpoint(own, {number: _unpacked(data) for number, data in past})

    def _ask(self, statement: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def save(
        self, node: str, memory: NodeCheckpoint, position: int, place: PositionCheckpoint, figures: SliceFigures | None
    ) -> None:
        """Write down a node after a slice; never fails.

        Parameters
        ----------
        node : str
        memory : NodeCheckpoint
        position : int
        place : PositionCheckpoint
            Is thinned out to what is kept.
        figures : SliceFigures or None
            Of the slice, for the dump.
        """
        for number in sorted(place.past)[: -self._kept]:
            del place.past[number]
        with self._lock:
            self._held_nodes[node] = memory
            self._held_positions[node, position] = place
            if time.monotonic() < self._retry_at:
                return
            try:
                self._make_sure_it_is_there()
                self._write((node, memory.number, msgspec.msgpack.encode(figures)) if figures else None)
            except (OSError, sqlite3.Error) as error:
                self._retry_at = time.monotonic() + _RETRY_S
                self._problems.report(str(self.path), f"can't be written, all goes on in memory: {error}")
            else:
                self._held_nodes.clear()
                self._held_positions.clear()
                self._problems.resolve(str(self.path))

    def _make_sure_it_is_there(self) -> None:
        """Make the file again, with all that was in it, when it was taken away under our hands."""
        if identity(self.path) == self._identity:
            return
        LOG.warning("%s was taken away: it is made again", self.path)
        if self.path.exists():
            self._set_aside("is not the one that was opened")
        fresh = self._connect()
        self._connection.backup(fresh)
        self._connection.close()
        self._connection, self._identity = fresh, identity(self.path)

    def _write(self, figures: tuple[str, int, bytes] | None = None) -> None:
        execute, executemany = self._connection.execute, self._connection.executemany
        execute("BEGIN IMMEDIATE")
        try:
            for node, memory in self._held_nodes.items():
                execute("INSERT OR REPLACE INTO node VALUES (?, ?)", (node, msgspec.msgpack.encode(memory)))
            for (node, position), place in self._held_positions.items():
                own = msgspec.msgpack.encode(place.own)
                execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", (node, position, own))
                where, oldest = (node, position), min(place.past, default=0)
                execute("DELETE FROM slice WHERE name = ? AND position = ? AND number < ?", (*where, oldest))
                found = execute("SELECT number FROM slice WHERE name = ? AND position = ?", where)
                written = {number for (number,) in found}
                rows = [(*where, number, _packed(one)) for number, one in place.past.items() if number not in written]
                executemany("INSERT INTO slice VALUES (?, ?, ?, ?)", rows)
            if figures:
                execute("INSERT OR REPLACE INTO figures VALUES (?, ?, ?)", figures)
                execute(
                    "DELETE FROM figures WHERE name = ? AND number <= ?", (figures[0], figures[1] - self._kept_figures)
                )
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise

    def figures(self, node: str) -> list[SliceFigures]:
        """The figures of a node that were kept for its dump, oldest first.

        Raises
        ------
        CheckpointCorrupt
        """
        with self._lock:
            rows = self._ask("SELECT data FROM figures WHERE name = ? ORDER BY number", (node,))
        return [_decoded(data, SliceFigures) for (data,) in rows]

    def forget(self, node: str) -> None:
        """Let a node start anew."""
        with self._lock:
            self._held_nodes.pop(node, None)
            for key in [key for key in self._held_positions if key[0] == node]:
                del self._held_positions[key]
            for table in ("node", "position", "slice", "figures"):
                # The tables are our own; the name goes in as a value.
                self._connection.execute(f"DELETE FROM {table} WHERE name = ?", (node,))  # noqa: S608

    def close(self) -> None:
        """Write what is held, if that can be done, and let go of the file."""
        with self._lock:
            if self._held_nodes:
                with contextlib.suppress(sqlite3.Error):
                    self._write()
            self._connection.close()


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS configuration(id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS node(name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS position(name TEXT, position INTEGER, data BLOB NOT NULL, "
    "PRIMARY KEY (name, position)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS slice(name TEXT, position INTEGER, number INTEGER, data BLOB NOT NULL, "
    "PRIMARY KEY (name, position, number))",
    "CREATE TABLE IF NOT EXISTS figures(name TEXT, number INTEGER, data BLOB NOT NULL, PRIMARY KEY (name, number))",
)


class _PackedUsage(msgspec.Struct, array_like=True):
    config: float
    node: bytes
    vm_config: bytes
    vm_usage: bytes


class _PackedSlice(msgspec.Struct, array_like=True):
    end_s: float
    position: int
    vms: tuple[str, ...]
    cpu: _PackedUsage
    mem: _PackedUsage


def _packed(finished: Slice) -> bytes:
    cpu, mem = (
        _PackedUsage(usage.config, usage.node.tobytes(), usage.vm_config.tobytes(), usage.vm_usage.tobytes())
        for usage in (finished.cpu, finished.mem)
    )
    return msgspec.msgpack.encode(_PackedSlice(finished.end_s, finished.position, finished.vms, cpu, mem))


def _unpacked(data: bytes) -> Slice:
    packed = _decoded(data, _PackedSlice)
    try:
        cpu, mem = (
            Usage(
                usage.config,
                np.frombuffer(usage.node),
                np.frombuffer(usage.vm_config),
                _matrix(usage.vm_usage, len(packed.vms)),
            )
            for usage in (packed.cpu, packed.mem)
        )
    except ValueError as error:
        raise CheckpointCorrupt(str(error)) from None
    return Slice(packed.end_s, packed.position, packed.vms, cpu, mem)


def _matrix(data: bytes, rows: int) -> FloatArray:
    return np.frombuffer(data).reshape(rows, len(data) // 8 // rows if rows else 0)


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind, strict=False)
    except (msgspec.DecodeError, ValueError) as error:
        raise CheckpointCorrupt(str(error)) from None
