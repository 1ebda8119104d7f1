"""Checkpoints of all nodes, in a file beside the status file.

The state after each slice of a node is written in one transaction, and the next slice starts from it, so that a
daemon that was killed continues where it was. When the file cannot be written, for instance on a full disk, the
estimator continues: the state is held in RAM until it can be written.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.logs import ProblemLog
from ..replay.dump import SliceFigures
from .checkpoint_database import LOG, CheckpointDatabase, CheckpointRefused
from .checkpoint_format import (
    CheckpointCorrupt,
    FleetCheckpoint,
    NodeCheckpoint,
    PositionCheckpoint,
    decode,
    decode_node,
    encode,
    unpack_slice,
)

__all__ = ["CheckpointCorrupt", "CheckpointFile", "CheckpointRefused", "NodeCheckpoint", "PositionCheckpoint"]

_RETRY_S = 5.0


class CheckpointFile:
    """The checkpoints of all nodes; a context manager that opens and closes the file. Safe to use from any thread.

    Parameters
    ----------
    path : Path
    configuration : mapping
        The settings that the state depends on. A file of another configuration is renamed to ``*.aside``.
    kept : int
        Slices that are kept of each position.
    kept_figures : int
        Slices of each node whose figures are kept.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        configuration: Mapping[str, Any],
        kept: int,
        kept_figures: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = CheckpointDatabase(path, configuration)
        self._kept = kept
        self._kept_figures = kept_figures
        self._clock = clock
        self._lock = threading.Lock()
        self._problems = ProblemLog(LOG)
        self._open = False
        self._held_nodes: dict[str, NodeCheckpoint] = {}
        self._held_positions: dict[tuple[str, int], PositionCheckpoint] = {}
        self._held_fleet: FleetCheckpoint | None = None
        self._retry_at = 0.0

    @property
    def path(self) -> Path:
        """The absolute path."""
        return self._database.path

    def open(self) -> CheckpointFile:
        """Open the file, or create it.

        Raises
        ------
        CheckpointRefused
            When that is impossible, or another process has it open.
        """
        self._database.open()
        self._open = True
        return self

    def __enter__(self) -> CheckpointFile:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def node(self, node: str) -> NodeCheckpoint | None:
        """The checkpoint of a node; None if there is none.

        Raises
        ------
        CheckpointCorrupt, sqlite3.Error
        """
        with self._lock:
            if node in self._held_nodes:
                return self._held_nodes[node]
            rows = self._database.query("SELECT data FROM node WHERE name = ?", (node,))
        return decode_node(rows[0][0]) if rows else None

    def position(self, node: str, position: int) -> PositionCheckpoint:
        """The checkpoint of one position of a node; empty if there is none.

        Raises
        ------
        CheckpointCorrupt, sqlite3.Error
        """
        key = (node, position)
        with self._lock:
            if held := self._held_positions.get(key):
                # The caller changes the copy; save() then replaces the held state as a whole.
                return replace(held, past=dict(held.past))
            rows = self._database.query("SELECT data FROM position WHERE name = ? AND position = ?", key)
            slices = self._database.query(
                "SELECT number, data FROM slice WHERE name = ? AND position = ? ORDER BY number", key
            )
        own = decode(rows[0][0], dict[str, dict[str, Any]]) if rows else {}
        return PositionCheckpoint(own, {number: unpack_slice(data) for number, data in slices})

    def save(
        self,
        node: str,
        checkpoint: NodeCheckpoint,
        position: int,
        state: PositionCheckpoint,
        figures: SliceFigures | None,
    ) -> None:
        """Save the state of a node after a slice; never fails.

        Parameters
        ----------
        node : str
        checkpoint : NodeCheckpoint
        position : int
        state : PositionCheckpoint
            Its oldest slices are deleted.
        figures : SliceFigures or None
            Figures of the slice, for the dump. They are lost when the file cannot be written now.
        """
        for number in sorted(state.past)[: -self._kept]:
            del state.past[number]
        rows = []
        if figures:
            rows = [(node, checkpoint.number, encode(figures), checkpoint.number - self._kept_figures + 1)]
        with self._lock:
            if not self._open:
                return  # by a thread whose read did not return before the end of the run
            self._held_nodes[node] = checkpoint
            self._held_positions[node, position] = state
            self._write_held(rows)

    def fleet(self) -> FleetCheckpoint | None:
        """The checkpoint of the fleet; None if there is none.

        Raises
        ------
        CheckpointCorrupt, sqlite3.Error
        """
        with self._lock:
            rows = self._database.query("SELECT data FROM fleet", ())
        return decode(rows[0][0], FleetCheckpoint) if rows else None

    def save_fleet(self, checkpoint: FleetCheckpoint) -> None:
        """Save the state of the fleet after a slice; never fails.

        No state of a node is written before the state of the fleet from which it was computed.
        """
        with self._lock:
            if self._open:
                self._held_fleet = checkpoint
                self._write_held(())

    def _write_held(self, figures: Iterable[Any]) -> None:
        """Write what is held in RAM, unless that failed just now."""
        if self._clock() < self._retry_at:
            return
        try:
            self._database.recreate_if_removed()
            self._database.write(self._held_nodes, self._held_positions, figures, self._held_fleet)
        except (OSError, sqlite3.Error) as error:
            self._retry_at = self._clock() + _RETRY_S
            self._problems.report(str(self.path), f"cannot be written, the state is held in RAM: {error}")
        else:
            self._held_nodes.clear()
            self._held_positions.clear()
            self._held_fleet = None
            self._problems.resolve(str(self.path))

    def figures(self, node: str) -> list[SliceFigures]:
        """The figures of the last slices of a node, oldest first.

        Raises
        ------
        CheckpointCorrupt, sqlite3.Error
        """
        with self._lock:
            rows = self._database.query("SELECT data FROM figures WHERE name = ? ORDER BY number", (node,))
        return [decode(data, SliceFigures) for (data,) in rows]

    def delete(self, node: str) -> None:
        """Delete the checkpoint of a node.

        Raises
        ------
        sqlite3.Error
        """
        with self._lock:
            self._held_nodes.pop(node, None)
            for key in [key for key in self._held_positions if key[0] == node]:
                del self._held_positions[key]
            self._database.delete(node)

    def close(self) -> None:
        """Write the held state if possible, and close the file."""
        with self._lock:
            if self._open and (self._held_nodes or self._held_fleet is not None):
                with contextlib.suppress(sqlite3.Error):
                    self._database.write(self._held_nodes, self._held_positions, (), self._held_fleet)
            self._open = False
            self._database.close()
