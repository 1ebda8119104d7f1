"""Statements of the embedded store. All values are bound; only names of tables and columns are put together here."""

# ruff: noqa: S608

from __future__ import annotations

_OF_NODE = "node = (SELECT id FROM node WHERE name = ?1)"
_OF_PERIOD = f"{_OF_NODE} AND time_ms >= ?2 AND time_ms < ?3"
_ROWS = "SELECT time_ms, layout, data FROM tick"
_COARSE_ROWS = "SELECT time_ms, layout, inflate(data) FROM coarse"
_HAS_ROWS = " OR ".join(f"EXISTS (SELECT 1 FROM {name} WHERE {name}.node = node.id)" for name in ("tick", "coarse"))

#: Thinned samples and others; SQLite merges the two, which have the same order.
SELECT_PERIOD = f"{_COARSE_ROWS} WHERE {_OF_PERIOD} UNION ALL {_ROWS} WHERE {_OF_PERIOD} ORDER BY time_ms"
SELECT_NEWEST = f"{SELECT_PERIOD} DESC LIMIT ?4"
SELECT_LAST = f"{_COARSE_ROWS} WHERE {_OF_NODE} UNION ALL {_ROWS} WHERE {_OF_NODE} ORDER BY time_ms DESC LIMIT 1"
SELECT_LAYOUTS = f"SELECT layout FROM coarse WHERE {_OF_PERIOD} UNION SELECT layout FROM tick WHERE {_OF_PERIOD}"
SELECT_STARTS = (
    f"SELECT min(time_ms) FROM coarse WHERE {_OF_PERIOD} UNION ALL SELECT min(time_ms) FROM tick WHERE {_OF_PERIOD}"
)
SELECT_COARSE = f"SELECT time_ms, step_ms FROM coarse WHERE {_OF_PERIOD} ORDER BY time_ms DESC LIMIT 1"
SELECT_NODES = f"SELECT name FROM node WHERE {_HAS_ROWS} ORDER BY name"
COUNT_SAMPLES = "SELECT (SELECT count(*) FROM tick) + (SELECT count(*) FROM coarse)"

#: A sample of a step that is thinned was stored before, and is in what remains of the step.
INSERT = (
    "INSERT OR IGNORE INTO tick(node, time_ms, layout, data) SELECT ?1, ?2, ?3, ?4 WHERE NOT coalesce((SELECT "
    "time_ms / step_ms * step_ms FROM coarse WHERE node = ?1 AND time_ms >= ?2 ORDER BY time_ms LIMIT 1) <= ?2, 0)"
)
#: For each table: samples before a time, as many as a limit.
DELETE = tuple(
    f"DELETE FROM {name} WHERE id IN (SELECT id FROM {name} WHERE time_ms < ? LIMIT ?)" for name in ("tick", "coarse")
)
DELETE_NODES = f"DELETE FROM node WHERE NOT ({_HAS_ROWS})"
