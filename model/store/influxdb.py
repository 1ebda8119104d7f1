"""InfluxDB 2.x as a store. All fields are floats but ``vm_number``, which is an integer."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import urllib3.exceptions
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.dialect import Dialect
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException

from ..common.errors import causes, system_words
from ..common.logs import ProblemLog
from ..samples import LastConfig, Period, ScrapeSample
from . import influxdb_queries as queries
from .base import Encoded, FleetRow, Resolution, StoreRefused, StoreUnavailable
from .influxdb_decoding import (
    decode_configs,
    decode_fleet,
    decode_newest,
    decode_period,
    decode_rows,
    decode_texts,
    error_of,
    split_tables,
)
from .influxdb_lines import encode_fleet, encode_lines, is_tag, remove_field
from .settings import InfluxSettings

LOG = logging.getLogger("scroogevm.influx")

_MS: Any = WritePrecision.MS
_DIALECT = Dialect(header=True, delimiter=",", annotations=[], date_time_format="RFC3339")

#: Largest request, bytes: servers limit the size, and a failed request is sent again as a whole.
_LARGEST_REQUEST = 4 * 2**20
#: Memory of an encoded sample besides its text, bytes.
_OVERHEAD = 200
#: Subject of problems with single points; they are over when none has occurred for so long, seconds.
_REJECTED = "InfluxDB"
_QUIET_S = 600.0
#: Bytes read from a connection at once.
_PIECE = 2**18
#: How long it is believed since when a bucket has samples of a node, seconds: old samples expire.
_BEGIN_VALID_S = 60.0
#: After the end of any period, Unix milliseconds.
_NEVER_MS = 2**62

_CONFLICT = re.compile(r'field type conflict: input field \\?"([^"\\]+)\\?" on measurement \\?"([^"\\]+)\\?"')
_DROPPED = re.compile(r"dropped[= ](\d+)")


class InfluxStore:
    """A bucket of an InfluxDB 2.x server; the first operation connects.

    Parameters
    ----------
    settings : InfluxSettings
    """

    def __init__(self, settings: InfluxSettings) -> None:
        self._settings = settings
        self._client = InfluxDBClient(
            url=settings.url, token=settings.token, org=settings.org, timeout=int(settings.timeout_s * 1000)
        )
        self._write_api = self._client.write_api(write_options=SYNCHRONOUS)
        self._problems = ProblemLog(LOG)
        #: Measurement and name of fields whose type the bucket does not accept.
        self._excluded: set[tuple[str, str]] = set()
        #: Since when the bucket has samples of each node, Unix milliseconds, and until when that is believed.
        self._begins: dict[str, tuple[int, float]] = {}

    def encode(self, sample: ScrapeSample) -> Encoded:
        """Encode a sample as line protocol; names that a tag cannot hold are omitted and logged."""
        invalid = [name for name in sample.domains if not is_tag(name)]
        subject = f"{sample.node} in InfluxDB"
        if invalid:
            cause = f"{len(invalid)} domains are not stored, a tag cannot hold their names: {invalid[:3]!r}"
            self._problems.report(subject, cause)
        else:
            self._problems.resolve(subject)
        lines = encode_lines(sample, self._excluded)
        text = "\n".join(lines)
        return Encoded(text, len(text.encode()) + _OVERHEAD, len(lines))

    def write(self, samples: Sequence[Encoded]) -> int:
        """Write samples with as few requests as their size allows.

        The server rejects a request that contains an invalid line: the request is halved until the line is found,
        and the line is dropped. A value whose type differs from that of its field in the bucket is dropped alone.
        """
        rejected, size = 0, 0
        batch: list[str] = []
        for sample in samples:
            if batch and size + sample.size > _LARGEST_REQUEST:
                rejected += self._write_lines("\n".join(batch).split("\n"))
                batch, size = [], 0
            if sample.payload:
                batch.append(sample.payload)
                size += sample.size
        rejected += self._write_lines("\n".join(batch).split("\n")) if batch else 0
        if not rejected:
            self._problems.resolve(_REJECTED, quiet_s=_QUIET_S)
        return rejected

    def _write_lines(self, lines: list[str]) -> int:
        """Write lines; the number of rejected ones."""
        try:
            self._write_api.write(
                bucket=self._settings.bucket, org=self._settings.org, record="\n".join(lines), write_precision=_MS
            )
        except ApiException as error:
            if error.status in {400, 413} and len(lines) > 1:
                half = len(lines) // 2
                return self._write_lines(lines[:half]) + self._write_lines(lines[half:])
            message = _response_message(error)
            if error.status in {400, 413}:
                self._problems.report(_REJECTED, f"a point is rejected: {message}", logging.ERROR)
                return 1
            if error.status == 422:
                return self._write_without_conflict(lines, message)
            raise _unavailable(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unavailable(error) from None
        return 0

    def _write_without_conflict(self, lines: list[str], message: str) -> int:
        """Write points again that were dropped because one field has another type in the bucket.

        The server drops the whole point and names one field; from then on that field is omitted. Points dropped
        for another reason, such as their age, are lost.
        """
        conflict = _CONFLICT.search(message)
        if conflict is None or (conflict[2], conflict[1]) in self._excluded:
            match = _DROPPED.search(message)
            dropped = int(match[1]) if match else len(lines)
            cause = f"{dropped} of {len(lines)} points are dropped: {message}"
            self._problems.report(_REJECTED, cause, logging.ERROR)
            return dropped
        field, measurement = conflict[1], conflict[2]
        LOG.error("field %s of %s is not stored from now on: %s", field, measurement, message)
        self._excluded.add((measurement, field))
        kept = [remove_field(line, measurement, field) for line in lines]
        changed = sum(new != old for new, old in zip(kept, lines, strict=True))
        # Points that were not dropped are written twice, which stores them once.
        remaining = [line for line in kept if line]
        return changed + (self._write_lines(remaining) if remaining else 0)

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Read a period with a query per type of field."""
        return decode_period(self.transfer(node, start_ms, end_ms, fields, domains=domains), fields)

    def transfer(
        self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True
    ) -> Iterator[bytes]:
        """The tables of :meth:`read`, not decoded."""
        return self._query_period(queries.period_queries(fields, domains=domains), node, start_ms, end_ms)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, LastConfig]:
        """Read the last values, which the server selects."""
        return decode_configs(self._query_period([queries.LAST_CONFIGS], node, start_ms, end_ms))

    def nodes(self) -> list[str]:
        """Values of the tag ``url``, sorted."""
        buckets = filter(None, (self._settings.bucket, self._settings.coarse_bucket))
        return sorted({name for bucket in buckets for name in decode_texts(self._query(queries.NODES, {}, bucket))})

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """Lowest time of the first values of all fields in a period."""
        tables = self._query_period([queries.FIRST], node, start_ms, end_ms)
        return min((int(decode_rows(table).times.min()) for table in tables), default=None)

    def resolution(self, node: str, start_ms: int, end_ms: int) -> Resolution | None:
        """What the bucket does not have is thinned, as far as the coarse bucket has it."""
        before_ms = min(self._coarse_until_ms(node, start_ms), end_ms)
        if before_ms <= start_ms or not self._coarse_tables([queries.FIRST], node, start_ms, before_ms):
            return None
        return Resolution(before_ms, self._settings.step_s * 1000)

    def _query_period(self, statements: Sequence[str], node: str, start_ms: int, end_ms: int) -> Iterator[bytes]:
        """The tables of statements over a period: of the coarse bucket as far as the other has no samples any more."""
        coarse_ms = min(self._coarse_until_ms(node, start_ms), end_ms)
        if start_ms < coarse_ms:
            tables = self._coarse_tables(statements, node, start_ms, coarse_ms)
            yield from tables
            # The step in which the samples of the bucket begin is whole in the coarse one, unless that is empty so far.
            start_ms = coarse_ms if tables else start_ms
        if start_ms < end_ms:
            parameters = {"url": node, **queries.period_parameters(start_ms, end_ms)}
            for statement in statements:
                yield from self._query(statement, parameters)

    def _coarse_tables(self, statements: Sequence[str], node: str, start_ms: int, end_ms: int) -> list[bytes]:
        parameters = {"url": node, **queries.period_parameters(start_ms, end_ms)}
        return [
            table
            for statement in statements
            for table in self._query(statement, parameters, self._settings.coarse_bucket)
        ]

    def _coarse_until_ms(self, node: str, start_ms: int) -> int:
        """The end of the step in which the samples of the bucket begin; 0 when a period after that time needs no other.

        Parameters
        ----------
        node : str
        start_ms : int
            The start of the period.
        """
        if not self._settings.coarse_bucket:
            return 0
        begin_ms, until_s = self._begins.get(node, (0, -math.inf))
        if time.monotonic() >= until_s:
            tables = self._query(queries.BEGIN, {"url": node})
            begins = [int(decode_rows(table).times.min()) for table in tables]
            if not begins:
                return _NEVER_MS
            begin_ms = min(begins)
            self._begins[node] = (begin_ms, time.monotonic() + _BEGIN_VALID_S)
        step_ms = self._settings.step_s * 1000
        return 0 if start_ms >= begin_ms else -(-begin_ms // step_ms) * step_ms

    def last(self, node: str) -> ScrapeSample | None:
        """The last values of all fields that belong to the newest sample."""
        for bucket in filter(None, (self._settings.bucket, self._settings.coarse_bucket)):
            tables = (table for query in queries.LAST for table in self._query(query, {"url": node}, bucket))
            sample = decode_newest(node, tables)
            if sample is not None:
                return sample
        return None

    def write_fleet(self, row: FleetRow) -> None:
        """Write the counts as one point."""
        if not is_tag(row.master):
            raise StoreRefused(f"a tag cannot hold the name {row.master!r}")
        if self._write_lines([encode_fleet(row)]):
            raise StoreRefused("InfluxDB rejects the counts of the fleet")

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:
        """Read all fields of a period."""
        if end_ms <= start_ms:
            return []
        return decode_fleet(self._query(queries.FLEET, queries.period_parameters(start_ms, end_ms)))

    def check(self) -> str:
        """Read from the bucket, test that it can be written without writing, and get the version."""
        for bucket in filter(None, (self._settings.bucket, self._settings.coarse_bucket)):
            list(self._query(queries.ONE_ROW, {}, bucket))
        # The server checks the permission of an empty write, and stores nothing.
        self._write_lines([""])
        version = str(self._client.version())
        # Any web server may respond with a good status.
        if version == "unknown":
            raise StoreUnavailable("InfluxDB: the server is not InfluxDB")
        return f"InfluxDB {version}, bucket {self._settings.bucket}"

    def close(self) -> None:
        """Close the connections."""
        self._write_api.close()
        self._client.close()

    def _query(self, flux: str, parameters: Mapping[str, Any], bucket: str = "") -> Iterator[bytes]:
        """The tables of a response, each as soon as it arrives.

        Parameters
        ----------
        flux : str
        parameters : mapping
        bucket : str
            Empty: that of the samples.

        Raises
        ------
        StoreUnavailable
            At once, or after some tables: the status is sent before a query has finished.
        """
        try:
            response = self._client.query_api().query_raw(
                flux, dialect=_DIALECT, params={"bucket": bucket or self._settings.bucket, **parameters}
            )
            for table in split_tables(response.stream(_PIECE, decode_content=True)):
                if (message := error_of(table)) is not None:
                    raise StoreUnavailable(f"InfluxDB: {message}")
                yield table
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _unavailable(error) from None


def _unavailable(error: BaseException) -> StoreUnavailable:
    if isinstance(error, ApiException):
        return StoreUnavailable(f"InfluxDB: {_response_message(error)}", _retry_after(error))
    return StoreUnavailable(f"InfluxDB: {_connection_message(error)}")


def _response_message(error: ApiException) -> str:
    """Status and message of a response; no header, which may contain the token."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    match = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', body)
    message = (match[1] if match else body).strip().replace("\n", " ")
    return f"HTTP status {error.status}: {message[:300] or error.reason}"


def _retry_after(error: ApiException) -> float | None:
    """Seconds of the header Retry-After; a date is ignored."""
    headers: Any = error.headers or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdecimal() else None


def _connection_message(error: BaseException) -> str:
    """The system's message at the bottom of nested errors."""
    for _errno, message in system_words(error):
        return message
    if any(isinstance(cause, (urllib3.exceptions.TimeoutError, TimeoutError)) for cause in causes(error)):
        return "no response in time"
    return f"no connection ({type(error).__name__})"
