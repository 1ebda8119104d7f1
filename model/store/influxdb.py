"""InfluxDB 2.x as a store: measurement ``node`` with tag ``url``, measurement ``domain`` with tags ``url`` and
``domain``; all fields float but ``vm_number``, an integer.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import urllib3.exceptions
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.dialect import Dialect
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException

from ..common.errors import causes, system_words
from ..samples import Period, Samples, ScrapeSample
from .base import Encoded, StoreRefused, StoreUnavailable
from .settings import InfluxSettings

LOG = logging.getLogger("scroogevm.influx")

_MS: Any = WritePrecision.MS
#: One Flux stream can't mix the integer with the floats, so it is asked for by itself.
_INTEGERS = frozenset({"vm_number"})
#: Requests no larger than this: a server refuses some size, and a lost answer costs a whole request again.
_LARGEST_REQUEST = 4 * 2**20
_CONFLICT = re.compile(r'field type conflict: input field \\?"([^"\\]+)\\?" on measurement \\?"([^"\\]+)\\?"')
_DROPPED = re.compile(r"dropped[= ](\d+)")
_ERROR_TABLE = re.compile(rb"\s*,?error,reference\r?\n([^\n]*)")
#: So much of an answer is taken from the connection at once.
_PIECE = 2**18
#: And so much is made arrays of while the server is at the next.
_PART = 2**19
_TAG_ESCAPES = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ "})

_DTYPES: Any = {"_time": "category", "_field": "category", "domain": "category", "_value": np.float64}

_FLUX = """
from(bucket: bucket)
  |> range(start: time(v: start_ns), stop: time(v: stop_ns))
  |> filter(fn: (r) => {measurements})
  |> filter(fn: (r) => r.url == url)
  |> filter(fn: (r) => {fields})
  |> keep(columns: ["_time", "_value", "_field", "domain"])
  |> group(columns: ["_field"])
"""
_NODE = 'r._measurement == "node"'
_BOTH = f'{_NODE} or r._measurement == "domain"'
_FLUX_PROMISED = """
from(bucket: bucket)
  |> range(start: time(v: start_ns), stop: time(v: stop_ns))
  |> filter(fn: (r) => r._measurement == "domain")
  |> filter(fn: (r) => r.url == url)
  |> filter(fn: (r) => r._field == "cpu" or r._field == "mem")
  |> last()
  |> keep(columns: ["_time", "_value", "_field", "domain"])
  |> group(columns: ["_field"])
"""
_FLUX_FIRST = """
from(bucket: bucket)
  |> range(start: time(v: start_ns), stop: time(v: stop_ns))
  |> filter(fn: (r) => r._measurement == "node" or r._measurement == "domain")
  |> filter(fn: (r) => r.url == url)
  |> filter(fn: (r) => r._field != "vm_number")
  |> first()
  |> keep(columns: ["_time", "_value", "_field", "domain"])
  |> group(columns: ["_field"])
"""
_FLUX_LAST = """
from(bucket: bucket)
  |> range(start: 0)
  |> filter(fn: (r) => r._measurement == "node" or r._measurement == "domain")
  |> filter(fn: (r) => r.url == url)
  |> filter(fn: (r) => {fields})
  |> last()
  |> keep(columns: ["_time", "_value", "_field", "domain"])
  |> group(columns: ["_field"])
"""
_FLUX_NODES = """
import "influxdata/influxdb/schema"
schema.tagValues(bucket: bucket, tag: "url", start: 0, predicate: (r) => r._measurement == "node")
"""
_FLUX_DOMAINS = """
from(bucket: bucket)
  |> range(start: time(v: start_ns), stop: time(v: stop_ns))
  |> filter(fn: (r) => r._measurement == "domain" and r._field == "cpu" and r.url == url)
  |> last()
  |> keep(columns: ["domain"])
  |> group()
  |> rename(columns: {domain: "_value"})
"""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of an answer; fields and domains by their place among the names, a domain "" is the node."""

    times: Any
    values: Any
    field_names: Sequence[str]
    fields: Any
    domain_names: Sequence[str]
    domains: Any


_DIALECT = Dialect(header=True, delimiter=",", annotations=[], date_time_format="RFC3339")


class InfluxStore:
    """A bucket of an InfluxDB 2.x server.

    Parameters
    ----------
    settings : InfluxSettings
    """

    def __init__(self, settings: InfluxSettings) -> None:
        self._settings = settings
        self._client = InfluxDBClient(
            url=settings.url, token=settings.token, org=settings.org, timeout=int(settings.timeout_s * 1000)
        )
        self._excluded: set[tuple[str, str]] = set()
        self._write_api = self._client.write_api(write_options=SYNCHRONOUS)

    def encode(self, sample: ScrapeSample) -> Encoded:
        """A tick as lines of line protocol; what can't be written is left out, counted and logged."""
        url = _tag(sample.node)
        lines = []
        unwritable = [name for name in sample.domains if not _is_writable(name)]
        if unwritable:
            LOG.warning(
                "%s: no tag of InfluxDB can hold the name of %d domains: %r",
                sample.node,
                len(unwritable),
                unwritable[:3],
            )
        for name, fields in sample.domains.items():
            figures = self._figures("domain", fields)
            if figures and _is_writable(name):
                lines.append(f"domain,domain={_tag(name)},url={url} {figures} {sample.time_ms}")
        figures = self._figures("node", sample.fields)
        if figures and _is_writable(sample.node):
            lines.append(f"node,url={url} {figures} {sample.time_ms}")
        text = "\n".join(lines)
        return Encoded(text, len(text.encode()) + 200, len(lines))

    def _figures(self, measurement: str, fields: Mapping[str, float]) -> str:
        return ",".join(
            f"{name}={int(value)}i" if name in _INTEGERS else f"{name}={value!r}"
            for name, value in fields.items()
            if math.isfinite(value) and not (self._excluded and (measurement, name) in self._excluded)
        )

    def write(self, scraped: Sequence[Encoded]) -> int:
        """One request for all, or as many as their size asks for.

        A line that the server can't parse makes it refuse the whole request: the request is halved until the
        line is found, and the line is given up. A value of another kind than its field has in the bucket
        costs that value alone.
        """
        refused, size = 0, 0
        batch: list[str] = []
        for sample in scraped:
            if batch and size + sample.size > _LARGEST_REQUEST:
                refused += self._write_lines("\n".join(batch).split("\n"))
                batch, size = [], 0
            if sample.payload:
                batch.append(sample.payload)
                size += sample.size
        return refused + (self._write_lines("\n".join(batch).split("\n")) if batch else 0)

    def _write_lines(self, lines: list[str]) -> int:
        try:
            self._request(lines)
        except ApiException as error:
            words = _words(error)
            if error.status in {400, 413} and len(lines) > 1:
                half = len(lines) // 2
                return self._write_lines(lines[:half]) + self._write_lines(lines[half:])
            if error.status in {400, 413}:
                LOG.warning("InfluxDB refused a point for good: %s", words)
                return 1
            if error.status == 422:
                return self._write_without_conflict(lines, words)
            raise StoreUnavailable(f"InfluxDB: {words}", _retry_after(error)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"InfluxDB: {_reason(error)}") from None
        return 0

    def _write_without_conflict(self, lines: list[str], words: str) -> int:
        """Write again what the server dropped for one field that is of another kind in its bucket.

        It drops the whole point and names the field; from now on that field is left out. Points that are
        dropped for another reason, such as their age, are lost.
        """
        conflict = _CONFLICT.search(words)
        if conflict is None or (conflict[2], conflict[1]) in self._excluded:
            found = _DROPPED.search(words)
            dropped = int(found[1]) if found else len(lines)
            LOG.warning("InfluxDB dropped %d of %d points: %s", dropped, len(lines), words)
            return dropped
        field, measurement = conflict[1], conflict[2]
        LOG.warning("field %s of %s is left out from now on: %s", field, measurement, words)
        self._excluded.add((measurement, field))
        kept = [_without(line, measurement, field) for line in lines]
        changed = sum(a != b for a, b in zip(kept, lines, strict=True))
        # Who was not dropped is written twice, which is once.
        rest = [line for line in kept if line]
        return changed + (self._write_lines(rest) if rest else 0)

    def _request(self, lines: list[str]) -> None:
        self._write_api.write(
            bucket=self._settings.bucket,
            org=self._settings.org,
            record="\n".join(lines),
            write_precision=_MS,
        )

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """A query for all fields together, as CSV, read by pandas."""
        tables = self.transfer(node, start_ms, end_ms, fields, domains=domains)
        return _period((_rows(table) for table in tables), fields)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, dict[str, float]]:
        """The server looks for the last values itself."""
        result: dict[str, dict[str, float]] = {}
        if end_ms <= start_ms:
            return result
        times = _bounds(start_ms, end_ms)
        for table in self._query(_FLUX_PROMISED, {"url": node, **times}):
            rows = _rows(table)
            for domain, field, value in zip(
                rows.domains.tolist(), rows.fields.tolist(), rows.values.tolist(), strict=True
            ):
                result.setdefault(rows.domain_names[domain], {})[rows.field_names[field]] = value
        return result

    def transfer(
        self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True
    ) -> Iterator[bytes]:
        """The tables that :meth:`read` makes arrays of, as they come from the server."""
        measurements = _BOTH if domains else _NODE
        times = _bounds(start_ms, end_ms)
        for kind in _kinds(fields):
            if kind and end_ms > start_ms:
                yield from self._query(
                    _FLUX.format(fields=_condition(kind), measurements=measurements), {"url": node, **times}
                )

    def nodes(self) -> list[str]:
        """Values of the tag ``url``."""
        return self._tag_values(_FLUX_NODES, {})

    def domains(self, node: str, start_ms: int, end_ms: int) -> list[str]:
        """Those that have a sample: the tags' own index knows no times within a shard."""
        times = _bounds(start_ms, end_ms)
        return self._tag_values(_FLUX_DOMAINS, {"url": node, **times})

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """The lowest time of the first value of every field."""
        tables = self._query(_FLUX_FIRST, {"url": node, **_bounds(start_ms, end_ms)})
        return min((int(_rows(table).times.min()) for table in tables), default=None)

    def last(self, node: str) -> ScrapeSample | None:
        """The last value of every field, where it is of the newest tick."""
        conditions = ('r._field != "vm_number"', 'r._field == "vm_number"')
        answers = (self._query(_FLUX_LAST.format(fields=kind), {"url": node}) for kind in conditions)
        found = [_rows(table) for answer in answers for table in answer]
        if not found:
            return None
        newest = max(int(rows.times.max()) for rows in found)
        own: dict[str, float] = {}
        domains: dict[str, dict[str, float]] = {}
        for rows in found:
            for i in np.flatnonzero(rows.times == newest).tolist():
                domain = rows.domain_names[rows.domains[i]]
                machine = domains.setdefault(domain, {}) if domain else own
                machine[rows.field_names[rows.fields[i]]] = float(rows.values[i])
        return ScrapeSample(node, newest, own, domains)

    def close(self) -> None:
        """Close the connection."""
        self._write_api.close()
        self._client.close()

    def check(self) -> str:
        """Reads the bucket, writes nothing to it, and asks for the version."""
        list(self._query("from(bucket: bucket) |> range(start: -1m) |> limit(n: 1)", {}))
        # An empty body is refused where a real one would be.
        self._write_lines([""])
        return f"InfluxDB {self._version()}, bucket {self._settings.bucket}"

    def _version(self) -> str:
        """What the server says it is: any web server may answer with a good status."""
        version = str(self._client.version())
        if version == "unknown":
            raise StoreUnavailable("InfluxDB: what answers there is no InfluxDB")
        return version

    def _query(self, flux: str, params: Mapping[str, Any]) -> Iterator[bytes]:
        """The tables of an answer, as text, each as soon as it is there: the server works on while we do.

        Raises
        ------
        StoreUnavailable
            At once, or behind the first tables: a query that fails on its way ends with a table of errors,
            and the status is a good one all the same.
        """
        try:
            response = self._client.query_api().query_raw(
                flux, dialect=_DIALECT, params={"bucket": self._settings.bucket, **params}
            )
            for table in _tables(response.stream(_PIECE, decode_content=True)):
                if failed := _ERROR_TABLE.match(table):
                    raise StoreUnavailable(f"InfluxDB: {failed[1].decode(errors='replace').strip()[:300]}")
                yield table
        except ApiException as error:
            raise StoreUnavailable(f"InfluxDB: {_words(error)}", _retry_after(error)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"InfluxDB: {_reason(error)}") from None

    def _tag_values(self, flux: str, params: Mapping[str, Any]) -> list[str]:
        import pandas as pd

        how: Any = {"usecols": ["_value"], "dtype": str, "keep_default_na": False}
        found = [pd.read_csv(io.BytesIO(table), **how)["_value"] for table in self._query(flux, params)]
        return sorted(name for names in found for name in names)


def _tables(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut an answer into parts that are tables by themselves, each with its header.

    An empty line stands between tables of different columns; a long table is cut between two rows.
    """
    rest, header = bytearray(), b""
    for piece in pieces:
        # The mark may be cut by the end of a piece, but the part before it need not be searched again.
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


def _rows(table_text: bytes) -> _Rows:
    import pandas as pd

    has_domain = b",domain" in table_text[: table_text.find(b"\n")]
    table = pd.read_csv(
        io.BytesIO(table_text),
        usecols=["_time", "_value", "_field", *(["domain"] if has_domain else [])],
        dtype=_DTYPES,
        keep_default_na=False,
        na_filter=False,
    )
    # Few different times, fields and domains stand on many rows: they are looked at once each.
    stamps = pd.to_datetime(table["_time"].cat.categories, format="ISO8601", utc=True).as_unit("ms").asi8
    fields = table["_field"].cat
    domains = table["domain"].cat if has_domain else None
    return _Rows(
        times=np.asarray(stamps)[table["_time"].cat.codes],
        values=table["_value"].to_numpy(),
        field_names=list(fields.categories),
        fields=fields.codes.to_numpy(),
        domain_names=list(domains.categories) if domains is not None else [""],
        domains=domains.codes.to_numpy() if domains is not None else np.zeros(len(table), np.int8),
    )


def _kinds(fields: Collection[str]) -> tuple[list[str], list[str]]:
    return sorted(set(fields) - _INTEGERS), sorted(set(fields) & _INTEGERS)


def _condition(fields: Iterable[str]) -> str:
    """Fields are named by us, never from outside."""
    for name in fields:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise StoreRefused(f"{name!r} is no field")
    return " or ".join(f'r._field == "{name}"' for name in fields)


def _period(parts: Iterable[_Rows], fields: Collection[str]) -> Period:
    series: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    for rows in parts:
        key = rows.domains.astype(np.int64) * len(rows.field_names) + rows.fields
        starts = _starts(key)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), key.size], strict=True):
            domain, field = divmod(int(key[start]), len(rows.field_names))
            found = series.setdefault(rows.domain_names[domain], {}).setdefault(rows.field_names[field], [])
            found.append((rows.times[start:end], rows.values[start:end]))
    columns = {domain: {name: _joined(runs) for name, runs in own.items()} for domain, own in series.items()}
    node = _samples(columns.pop("", {}), fields)
    return Period(node, {name: _samples(own, fields) for name, own in sorted(columns.items())})


def _joined(runs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The runs of a series as one, in time order: as a rule they come in it, but that is not promised."""
    times = np.concatenate([times for times, _ in runs])
    values = np.concatenate([values for _, values in runs])
    if (np.diff(times) > 0).all():
        return times, values
    order = np.argsort(times, kind="stable")
    return times[order], values[order]


def _starts(key: Any) -> Any:
    """Where runs of equal keys start."""
    return np.flatnonzero(np.r_[True, key[1:] != key[:-1]])


def _samples(columns: Mapping[str, tuple[Any, Any]], fields: Collection[str]) -> Samples:
    """Columns, each with times of its own, on the times of all of them."""
    moments = np.empty(0, np.int64)
    for times, _ in columns.values():
        if not np.array_equal(moments, times):
            moments = np.union1d(moments, times)
    result = {}
    for name in fields:
        times, values = columns.get(name, (moments[:0], np.empty(0)))
        if times.size == moments.size:
            result[name] = values
        else:
            result[name] = np.full(moments.size, np.nan)
            result[name][np.searchsorted(moments, times)] = values
    return Samples(moments, result)


def _is_writable(name: str) -> bool:
    """A tag can't be empty, end in a backslash or hold a line break."""
    return bool(name) and not name.endswith("\\") and "\n" not in name and "\r" not in name


def _tag(name: str) -> str:
    return name.translate(_TAG_ESCAPES)


def _without(line: str, measurement: str, field: str) -> str:
    """A line without one of its fields, if it is of that measurement; empty when nothing is left of it."""
    if not line.startswith(f"{measurement},"):
        return line
    # Fields and time hold no blanks: figures are all that is in them.
    head, figures, stamp = line.rsplit(" ", 2)
    kept = [figure for figure in figures.split(",") if not figure.startswith(f"{field}=")]
    return f"{head} {','.join(kept)} {stamp}" if kept else ""


def _words(error: ApiException) -> str:
    """The server's own words; never a header, which may hold the token."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', body)
    words = (found[1] if found else body).strip().replace("\n", " ")
    return f"HTTP status {error.status}: {words[:300] or error.reason}"


def _retry_after(error: ApiException) -> float | None:
    """Seconds; the server may also name a date, which is as good as not naming anything."""
    headers: Any = error.headers or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdecimal() else None


def _bounds(start_ms: int, end_ms: int) -> dict[str, int]:
    """The period that a query's range asks for."""
    return {"start_ns": start_ms * 1_000_000, "stop_ns": end_ms * 1_000_000}


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error that is wrapped several times over."""
    for _errno, words in system_words(error):
        return words
    if any(isinstance(cause, (urllib3.exceptions.TimeoutError, TimeoutError)) for cause in causes(error)):
        return "no answer in time"
    return f"no connection ({type(error).__name__})"
