"""Flux queries. Values are bound as parameters; field names are the only text that is inserted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from .base import StoreRefused

#: Fields of type integer. One Flux stream cannot hold them together with floats: they have a query of their own.
INTEGER_FIELDS = frozenset({"vm_number"})

_NODE = 'r._measurement == "node"'
_DOMAIN = 'r._measurement == "domain"'
_RANGE = "|> range(start: time(v: start_ns), stop: time(v: stop_ns))"
_BY_FIELD = """|> keep(columns: ["_time", "_value", "_field", "domain"])
  |> group(columns: ["_field"])"""


def _select(measurements: str, fields: str, *, span: str = _RANGE, reduce: str = "") -> str:
    return f"""
from(bucket: bucket)
  {span}
  |> filter(fn: (r) => {measurements})
  |> filter(fn: (r) => r.url == url)
  |> filter(fn: (r) => {fields})
  {reduce}
  {_BY_FIELD}
"""


FLEET = f"""
from(bucket: bucket)
  {_RANGE}
  |> filter(fn: (r) => r._measurement == "fleet")
  |> keep(columns: ["_time", "_value", "_field", "master"])
  |> group()
"""

ONE_ROW = "from(bucket: bucket) |> range(start: -1m) |> limit(n: 1)"

LAST_CONFIGS = _select(_DOMAIN, 'r._field == "cpu" or r._field == "mem"', reduce="|> last()")

FIRST = _select(f"{_NODE} or {_DOMAIN}", 'r._field != "vm_number"', reduce="|> first()")

#: Of all times: since when the bucket has samples of a node.
BEGIN = _select(_NODE, 'r._field != "vm_number"', span="|> range(start: 0)", reduce="|> first()")

#: The floats of the newest sample, and its integers.
LAST = tuple(
    _select(f"{_NODE} or {_DOMAIN}", f'r._field {operator} "vm_number"', span="|> range(start: 0)", reduce="|> last()")
    for operator in ("!=", "==")
)

NODES = """
import "influxdata/influxdb/schema"
schema.tagValues(bucket: bucket, tag: "url", start: 0, predicate: (r) => r._measurement == "node")
"""


def period_queries(fields: Collection[str], *, domains: bool) -> list[str]:
    """Queries that read fields of a period: one for the floats, one for the integers.

    Raises
    ------
    StoreRefused
        When a name is not a field name.
    """
    measurements = f"{_NODE} or {_DOMAIN}" if domains else _NODE
    by_type = (sorted(set(fields) - INTEGER_FIELDS), sorted(set(fields) & INTEGER_FIELDS))
    return [_select(measurements, _any_of(names)) for names in by_type if names]


def period_parameters(start_ms: int, end_ms: int) -> dict[str, int]:
    """Parameters that bound the range of a query."""
    return {"start_ns": start_ms * 1_000_000, "stop_ns": end_ms * 1_000_000}


def _any_of(fields: Iterable[str]) -> str:
    for name in fields:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise StoreRefused(f"{name!r} is not a field name")
    return " or ".join(f'r._field == "{name}"' for name in fields)
