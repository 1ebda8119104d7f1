"""The layouts of the embedded store: which values a block holds.

A layout row lists numbers of words: the fields of the node, the fields of the domains, and the names of the domains. A
VM that comes or goes adds a row of some hundred bytes and its name, and no copy of all other names. Older files hold
the layouts themselves, which are read as before.

Layouts and words carry the time of the newest sample that uses them, to within ``TOUCH_MS``, and expire with it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .sqlite_blocks import Layout, parse_layout

#: The time of the newest sample is written again when it is older than this, ms.
TOUCH_MS = 6 * 3_600_000

#: Cached numbers of layouts.
_MOST_CACHED = 10_000

#: Parameters of one query.
_PARAMETERS = 500

LAYOUT_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS layout(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, used_ms INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS word(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, used_ms INTEGER NOT NULL)",
)


class LayoutNumbers:
    """Numbers of the layouts that are written; those used last are cached."""

    def __init__(self) -> None:
        self._cached: dict[bytes, tuple[int, int]] = {}

    def clear(self) -> None:
        """Forget numbers that another connection may have deleted."""
        self._cached.clear()

    def number(self, connection: sqlite3.Connection, text: str, time_ms: int) -> int:
        """Number of a layout for a sample of a time; it is inserted if it is new.

        Parameters
        ----------
        connection : sqlite3.Connection
            In a transaction.
        text : str
            The layout as JSON.
        time_ms : int
        """
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        number, used_ms = self._cached.get(key, (0, 0))
        if key in self._cached and time_ms <= used_ms + TOUCH_MS:
            return number
        layout = parse_layout(text)
        words = [_json(layout.node_fields), _json(layout.domain_fields), *layout.domains]
        node_fields, domain_fields, *domains = (_touch(connection, "word", word, time_ms)[0] for word in words)
        entry = _touch(connection, "layout", _json([node_fields, domain_fields, domains]), time_ms)
        if len(self._cached) >= _MOST_CACHED:
            self._cached.clear()
        self._cached[key] = entry
        return entry[0]


def _touch(connection: sqlite3.Connection, table: str, name: str, time_ms: int) -> tuple[int, int]:
    """Number of a layout or word and the time of its newest sample, as it is stored."""
    # The table is one of two constants; all else are bound values.
    row = connection.execute(f"SELECT id, used_ms FROM {table} WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is None:
        number = connection.execute(f"INSERT INTO {table}(name, used_ms) VALUES (?, ?)", (name, time_ms)).lastrowid  # noqa: S608
        return int(number or 0), time_ms
    number, used_ms = row
    if time_ms > used_ms + TOUCH_MS:
        connection.execute(f"UPDATE {table} SET used_ms = ? WHERE id = ?", (time_ms, number))  # noqa: S608
        used_ms = time_ms
    return int(number), int(used_ms)


def read_layouts(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, Layout]:
    """Layouts by number; one that has expired is missing."""
    stored = {number: json.loads(text) for number, text in _select(connection, "layout", numbers)}
    words = dict(_select(connection, "word", {word for entry in stored.values() for word in _words(entry)}))
    layouts = {}
    for number, entry in stored.items():
        if isinstance(entry[0], list):
            layouts[number] = Layout(*entry)
        elif all(word in words for word in _words(entry)):
            layouts[number] = _expand(entry, words)
    return layouts


def _expand(entry: Sequence[Any], words: Mapping[int, str]) -> Layout:
    node_fields, domain_fields, domains = entry
    return Layout(json.loads(words[node_fields]), json.loads(words[domain_fields]), [words[word] for word in domains])


def _words(entry: Sequence[Any]) -> list[int]:
    """Numbers of the words of a stored layout; none for a layout of an older file."""
    return [] if isinstance(entry[0], list) else [entry[0], entry[1], *entry[2]]


def _select(connection: sqlite3.Connection, table: str, numbers: Iterable[int]) -> list[tuple[int, str]]:
    rows: list[tuple[int, str]] = []
    left = sorted(set(numbers))
    while left:
        some, left = left[:_PARAMETERS], left[_PARAMETERS:]
        marks = ",".join("?" * len(some))
        rows += connection.execute(f"SELECT id, name FROM {table} WHERE id IN ({marks})", some).fetchall()  # noqa: S608
    return rows


def upgrade(connection: sqlite3.Connection) -> None:
    """Add what the layouts of an older file lack; its layouts count as used by its newest sample."""
    if any(column == "used_ms" for _, column, *_ in connection.execute("PRAGMA table_info(layout)")):
        return
    ((newest_ms,),) = connection.execute("SELECT max(time_ms) FROM tick").fetchall()
    # A default is stored once, not in each row.
    connection.execute(f"ALTER TABLE layout ADD COLUMN used_ms INTEGER NOT NULL DEFAULT {int(newest_ms or 0)}")


def delete_unused(connection: sqlite3.Connection, oldest_ms: float, most: int) -> int:
    """Delete some layouts and words that only samples before a time used; the number of deleted rows.

    Parameters
    ----------
    connection : sqlite3.Connection
        In a transaction.
    oldest_ms : float
        Time of the oldest sample that is kept, Unix milliseconds.
    most : int
        Rows of each table.
    """
    deleted = 0
    # A word is touched with its layouts, but not more often than they are: it is later by the same time again.
    for table, before_ms in (("layout", oldest_ms - TOUCH_MS), ("word", oldest_ms - 3 * TOUCH_MS)):
        unused = f"SELECT id FROM {table} WHERE used_ms < ? LIMIT ?"  # noqa: S608
        deleted += connection.execute(f"DELETE FROM {table} WHERE id IN ({unused})", (before_ms, most)).rowcount  # noqa: S608
    return deleted


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
