"""Decodes CSV responses of InfluxDB, while they arrive, to arrays."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..samples import LastConfig, Period, Samples, ScrapeSample
from .base import FleetRow

#: Longer tables are decoded in parts while the server sends the rest, bytes.
_PART = 2**19

#: One thread parses at a time. Several at once would take a quarter more CPU time to wait for each other.
_TURN = threading.Lock()

_ERROR_TABLE = re.compile(rb"\s*,?error,reference\r?\n([^\n]*)")
_DTYPES: Any = {"_time": "category", "_field": "category", "domain": "category", "_value": np.float64}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table.

    Attributes
    ----------
    times : (n,) int64
        Unix milliseconds.
    values : (n,) float64
    field_names, domain_names : sequence of str
        The domain name of a node is "".
    fields, domains : (n,) integers
        Positions among the names.
    """

    times: Any
    values: Any
    field_names: Sequence[str]
    fields: Any
    domain_names: Sequence[str]
    domains: Any


def split_tables(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Split a response into tables that each have a header.

    An empty line separates tables with different columns; a long table is split between two rows.
    """
    rest, header = bytearray(), b""
    for piece in pieces:
        # A separator may be split between two pieces; the part before it was searched already.
        start = max(len(rest) - 3, 0)
        rest += piece
        while (end := rest.find(b"\r\n\r\n", start)) >= 0:
            yield header + bytes(rest[: end + 2])
            del rest[: end + 4]
            header, start = b"", 0
        if len(rest) > _PART:
            end = rest.rfind(b"\r\n") + 2
            yield header + bytes(rest[:end])
            header = header or bytes(rest[: rest.find(b"\r\n") + 2])
            del rest[:end]
    if rest.strip():
        yield header + bytes(rest)


def error_of(table: bytes) -> str | None:
    """Message of a table of errors, in which a query ends that fails after its response began; else None."""
    match = _ERROR_TABLE.match(table)
    return match[1].decode(errors="replace").strip()[:300] if match else None


def decode_rows(table: bytes) -> Rows:
    """Rows of a table."""
    import pandas as pd

    has_domain = b",domain" in table[: table.find(b"\n")]
    with _TURN:
        frame = pd.read_csv(
            io.BytesIO(table),
            usecols=["_time", "_value", "_field", *(["domain"] if has_domain else [])],
            dtype=_DTYPES,
            keep_default_na=False,
            na_filter=False,
        )
    # Times, fields and domains repeat on many rows: as categories, each is parsed once.
    times = pd.to_datetime(frame["_time"].cat.categories, format="ISO8601", utc=True).as_unit("ms").asi8
    fields = frame["_field"].cat
    domains = frame["domain"].cat if has_domain else None
    return Rows(
        times=np.asarray(times)[frame["_time"].cat.codes],
        values=frame["_value"].to_numpy(),
        field_names=list(fields.categories),
        fields=fields.codes.to_numpy(),
        domain_names=list(domains.categories) if domains is not None else [""],
        domains=domains.codes.to_numpy() if domains is not None else np.zeros(len(frame), np.int8),
    )


def decode_texts(tables: Iterable[bytes]) -> list[str]:
    """The values of tables of texts, sorted."""
    import pandas as pd

    options: Any = {"usecols": ["_value"], "dtype": str, "keep_default_na": False}
    return sorted(text for table in tables for text in pd.read_csv(io.BytesIO(table), **options)["_value"])


def decode_configs(tables: Iterable[bytes]) -> dict[str, LastConfig]:
    """Fields, values and the newest time of each domain."""
    configs: dict[str, dict[str, float]] = {}
    times_ms: dict[str, int] = {}
    for rows in map(decode_rows, tables):
        columns = (rows.times.tolist(), rows.domains.tolist(), rows.fields.tolist(), rows.values.tolist())
        for time_ms, domain, field, value in zip(*columns, strict=True):
            name = rows.domain_names[domain]
            configs.setdefault(name, {})[rows.field_names[field]] = value
            times_ms[name] = max(time_ms, times_ms.get(name, time_ms))
    return {name: LastConfig(fields, times_ms[name]) for name, fields in configs.items()}


def decode_fleet(tables: Iterable[bytes]) -> list[FleetRow]:
    """The counts of all masters, by time and name."""
    import pandas as pd

    options: Any = {"dtype": {"_value": np.float64, "_field": str, "master": str}, "keep_default_na": False}
    counts: dict[tuple[int, str], dict[str, float]] = {}
    for table in tables:
        frame = pd.read_csv(io.BytesIO(table), usecols=["_time", "_value", "_field", "master"], **options)
        times_ms = (
            pd.to_datetime(frame["_time"], format="ISO8601", utc=True).astype("datetime64[ms, UTC]").astype("int64")
        )
        for time_ms, master, name, value in zip(
            times_ms, frame["master"], frame["_field"], frame["_value"], strict=True
        ):
            counts.setdefault((int(time_ms), master), {})[name] = float(value)
    return [FleetRow(master, time_ms, fields) for (time_ms, master), fields in sorted(counts.items())]


def decode_newest(node: str, tables: Iterable[bytes]) -> ScrapeSample | None:
    """The sample of the newest time of tables that hold the last value of each field."""
    parts = list(map(decode_rows, tables))
    if not parts:
        return None
    newest = max(int(rows.times.max()) for rows in parts)
    fields: dict[str, float] = {}
    domains: dict[str, dict[str, float]] = {}
    for rows in parts:
        for i in np.flatnonzero(rows.times == newest).tolist():
            domain = rows.domain_names[rows.domains[i]]
            machine = domains.setdefault(domain, {}) if domain else fields
            machine[rows.field_names[rows.fields[i]]] = float(rows.values[i])
    return ScrapeSample(node, newest, fields, domains)


def decode_period(tables: Iterable[bytes], fields: Collection[str]) -> Period:
    """Arrays of a period."""
    series: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    for rows in map(decode_rows, tables):
        key = rows.domains.astype(np.int64) * len(rows.field_names) + rows.fields
        starts = _run_starts(key)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), key.size], strict=True):
            domain, field = divmod(int(key[start]), len(rows.field_names))
            runs = series.setdefault(rows.domain_names[domain], {}).setdefault(rows.field_names[field], [])
            runs.append((rows.times[start:end], rows.values[start:end]))
    columns = {domain: {name: _join(runs) for name, runs in by_field.items()} for domain, by_field in series.items()}
    node = _align(columns.pop("", {}), fields)
    return Period(node, {name: _align(by_field, fields) for name, by_field in sorted(columns.items())})


def _run_starts(key: Any) -> Any:
    """Where runs of equal keys start."""
    return np.flatnonzero(np.r_[True, key[1:] != key[:-1]])


def _join(runs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Times and values of a series, in time order, which InfluxDB does not guarantee."""
    times = np.concatenate([times for times, _ in runs])
    values = np.concatenate([values for _, values in runs])
    if (np.diff(times) > 0).all():
        return times, values
    order = np.argsort(times, kind="stable")
    return times[order], values[order]


def _align(columns: Mapping[str, tuple[Any, Any]], fields: Collection[str]) -> Samples:
    """Columns with times of their own on the union of all times; NaN where a column has no value."""
    union = np.empty(0, np.int64)
    for times, _ in columns.values():
        if not np.array_equal(union, times):
            union = np.union1d(union, times)
    aligned = {}
    for name in fields:
        times, values = columns.get(name, (union[:0], np.empty(0)))
        if times.size == union.size:
            aligned[name] = values
        else:
            aligned[name] = np.full(union.size, np.nan)
            aligned[name][np.searchsorted(union, times)] = values
    return Samples(union, aligned)
