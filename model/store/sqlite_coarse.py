"""Thinned samples in the embedded store: a row per node and step of time, in a table of their own.

A transaction inserts the rows of some steps of a node and deletes the samples that they replace, so that no sample is
lost or counted twice, whatever ends the process. What the table of samples still holds is not thinned.

The blocks are compressed, which halves them; the function ``inflate`` of :func:`add_functions` reads them.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby

from .sqlite_blocks import Row, encode_block, thin_rows
from .sqlite_layouts import LayoutNumbers, read_layouts, upgrade

COARSE_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS coarse(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time_ms INTEGER NOT NULL, "
    "step_ms INTEGER NOT NULL, layout INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS coarse_of_node ON coarse(node, time_ms)",
    "CREATE INDEX IF NOT EXISTS coarse_by_age ON coarse(time_ms)",
)

#: Rows that are read and replaced at once, unless a single step has more.
_ROWS_AT_ONCE = 500

_SELECT_OLDEST = (
    "SELECT tick.node, node.name, tick.time_ms FROM tick JOIN node ON node.id = tick.node "
    "WHERE tick.time_ms < ? ORDER BY tick.time_ms LIMIT 1"
)
_OF_STEPS = "FROM tick WHERE node = ? AND time_ms >= ? AND time_ms < ?"
_SELECT_ROWS = f"SELECT time_ms, layout, data {_OF_STEPS} ORDER BY time_ms LIMIT ?"
_DELETE_ROWS = f"DELETE {_OF_STEPS}"
_INSERT = "INSERT OR IGNORE INTO coarse(node, time_ms, step_ms, layout, data) VALUES (?, ?, ?, ?, ?)"


def add_functions(connection: sqlite3.Connection) -> None:
    """Add what the statements need to a connection."""
    connection.create_function("inflate", 1, zlib.decompress, deterministic=True)


class Steps:
    """Samples of some steps of a node that are to be thinned.

    Parameters
    ----------
    connection : sqlite3.Connection
        It need not be in a transaction.
    before_ms : int
        The end of a step; later samples are left alone.
    step_ms : int

    Attributes
    ----------
    number : int
        Number of the samples; 0 when there are none before that time.
    """

    def __init__(self, connection: sqlite3.Connection, before_ms: int, step_ms: int) -> None:
        self._step_ms = step_ms
        self.number = 0
        oldest = connection.execute(_SELECT_OLDEST, (before_ms,)).fetchone()
        if oldest is None:
            return
        self._node, name, oldest_ms = oldest
        start_ms = oldest_ms // step_ms * step_ms
        rows = connection.execute(_SELECT_ROWS, (self._node, start_ms, before_ms, _ROWS_AT_ONCE)).fetchall()
        if len(rows) == _ROWS_AT_ONCE:
            before_ms = max(rows[-1][0] // step_ms * step_ms, start_ms + step_ms)
            rows = connection.execute(_SELECT_ROWS, (self._node, start_ms, before_ms, -1)).fetchall()
        self._bounds = (self._node, start_ms, before_ms)
        self.number = len(rows)
        self._thinned = list(_thin(connection, name, rows, step_ms))

    def replace(self, connection: sqlite3.Connection) -> bool:
        """Replace the samples by one of each step; false when others have changed them meanwhile.

        Parameters
        ----------
        connection : sqlite3.Connection
            In a transaction, which must be rolled back when the result is false.
        """
        if connection.execute(_DELETE_ROWS, self._bounds).rowcount != self.number:
            return False
        upgrade(connection)
        layouts = LayoutNumbers()
        rows = [
            (self._node, time_ms, self._step_ms, layouts.number(connection, layout, time_ms), block)
            for time_ms, layout, block in self._thinned
        ]
        connection.executemany(_INSERT, rows)
        return True


def _thin(
    connection: sqlite3.Connection, node: str, rows: Sequence[Row], step_ms: int
) -> Iterator[tuple[int, str, bytes]]:
    """Time, layout and block of the one sample of each step; rows that have lost their layout are omitted."""
    layouts = read_layouts(connection, {layout for _, layout, _ in rows})
    known = (row for row in rows if row[1] in layouts)
    for _, step in groupby(known, lambda row: row[0] // step_ms):
        sample = thin_rows(node, list(step), layouts)
        layout, block = encode_block(sample)
        yield sample.time_ms, layout.to_json(), zlib.compress(block)
