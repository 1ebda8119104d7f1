"""The counts of fleets in the embedded store: a row per master and slice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .base import FleetRow

FLEET_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS fleet(time_ms INTEGER, master TEXT, counts TEXT NOT NULL, "
    "PRIMARY KEY (time_ms, master)) WITHOUT ROWID",
)
SELECT_FLEET = "SELECT time_ms, master, counts FROM fleet WHERE time_ms >= ? AND time_ms < ? ORDER BY time_ms, master"
INSERT_FLEET = "INSERT OR REPLACE INTO fleet(time_ms, master, counts) VALUES (?, ?, ?)"
DELETE_FLEET = "DELETE FROM fleet WHERE time_ms < ?"


def encode_fleet(row: FleetRow) -> tuple[int, str, str]:
    """The values of a row."""
    return row.time_ms, row.master, json.dumps(dict(row.counts))


def decode_fleet(rows: Iterable[tuple[int, str, Any]]) -> list[FleetRow]:
    """The counts of rows; a row that is not such counts is omitted."""
    decoded = []
    for time_ms, master, text in rows:
        try:
            counts = {str(name): float(value) for name, value in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
        decoded.append(FleetRow(master, time_ms, counts))
    return decoded
