"""Client of the query API of Prometheus, which Thanos, Mimir and VictoriaMetrics have too."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np

from ..common.errors import system_words
from ..common.text import printable
from ..common.threads import call_with_timeout
from ..numerics import FloatArray
from .base import StoreUnavailable

#: Servers reject queries with more points per series.
MOST_POINTS = 11_000
_MAX_RESPONSE_BYTES = 2**29
_PIECE = 2**18
#: Ask for a whole answer or none (Thanos, VictoriaMetrics), and for the newest samples (VictoriaMetrics hides those of
#: the last 30 s, moves the grid of a cached answer, and shows an old sample for longer in long steps).
_WHOLE = {
    **{"partial_response": "false", "deny_partial_response": "1"},
    **{"nocache": "1", "latency_offset": "1ms", "max_lookback": "5m"},
}
#: Notes on a query that concern no series (Prometheus 2.48 and later).
_NOTE = "PromQL info"
#: Messages of a response that is too large; without one, status 422 alone shows it.
_LIMIT = re.compile(r"too many|exceed|limit|larger than|max[A-Z]|not enough memory", re.IGNORECASE)


class QueryTooLarge(StoreUnavailable):
    """The server, or a limit here, refuses a query for its size; a smaller one may succeed."""


class Instant(NamedTuple):
    """A series of an instant query; the value may be NaN."""

    labels: Mapping[str, str]
    value: float


class Series(NamedTuple):
    """A series of a range query: (points,) float64, NaN where a value is missing or not finite."""

    labels: Mapping[str, str]
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Grid:
    """Equally spaced instants.

    Attributes
    ----------
    first_s : int
        Unix seconds.
    points : int
    step_s : int
    """

    first_s: int
    points: int
    step_s: int

    @property
    def last_s(self) -> int:
        """Unix seconds of the last instant."""
        return self.first_s + (self.points - 1) * self.step_s

    @property
    def times_s(self) -> FloatArray:
        """(points,) float64: Unix seconds."""
        return self.first_s + self.step_s * np.arange(self.points, dtype=np.float64)

    def finer(self, step_s: int) -> Grid:
        """Instants between the first and the last, in steps of which the present step is a multiple."""
        return Grid(self.first_s, (self.points - 1) * (self.step_s // step_s) + 1, step_s)

    def part(self, offset: int, points: int) -> Grid:
        """Some of the instants."""
        return Grid(self.first_s + offset * self.step_s, points, self.step_s)


class _RangeSeries(msgspec.Struct):
    metric: dict[str, str]
    values: msgspec.Raw


class _InstantSeries(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _RangeData(msgspec.Struct):
    result: list[_RangeSeries]


class _InstantData(msgspec.Struct):
    result: list[_InstantSeries]


class _Version(msgspec.Struct):
    version: str


class _Response(msgspec.Struct, rename={"is_partial": "isPartial"}):
    """The envelope of all responses."""

    status: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    warnings: list[str] = []
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server.

    Attributes
    ----------
    url : str
        With the path prefix if there is one, and perhaps with a password.
    token, user, password : str
        Bearer token, or basic authentication; empty for none.
    ca_file : str
        Certificates to trust instead of those of the system; empty for these.
    headers : mapping of str to str
        Sent with each request.
    timeout_s : float
        For each query in total.
    queries_at_once : int
    """

    url: str
    token: str = ""
    user: str = ""
    password: str = ""
    ca_file: str = ""
    headers: Mapping[str, str] | None = None
    timeout_s: float = 60.0
    queries_at_once: int = 4

    def __repr__(self) -> str:
        return f"Access({shown_url(self.url)!r})"


class PrometheusServer:
    """Runs queries on a server. Safe to use from any thread.

    Parameters
    ----------
    access : Access
    takes_partial : bool
        Whether a response with warnings counts; they are kept in ``warnings``.
    """

    def __init__(self, access: Access, *, takes_partial: bool = False) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from requests.auth import HTTPBasicAuth

        self.name = shown_url(access.url)
        self.warnings: list[str] = []
        self._access = access
        self._takes_partial = takes_partial
        self._at_once = threading.BoundedSemaphore(access.queries_at_once)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=access.queries_at_once))
        # A server takes longer to compress an answer than to compute it. Who reads from afar may set the header.
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.headers.update(access.headers or {})
        # As `auth`: an entry in .netrc would replace a header.
        if access.token:
            self._session.auth = _Bearer(access.token)
        elif access.user:
            self._session.auth = HTTPBasicAuth(access.user.encode(), access.password.encode())

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def query(self, promql: str, time_s: float) -> list[Instant]:
        """Evaluate a query at one instant.

        Raises
        ------
        StoreUnavailable, QueryTooLarge
        """
        data = self._call("query", {"query": promql, "time": f"{time_s:.3f}"}, _InstantData)
        return [Instant(series.metric, self._number(series.value[1])) for series in data.result]

    def query_range(self, promql: str, grid: Grid) -> list[Series]:
        """Evaluate a query at the instants of a grid.

        Raises
        ------
        StoreUnavailable, QueryTooLarge
        """
        found: dict[tuple[tuple[str, str], ...], Series] = {}
        for offset in range(0, grid.points, MOST_POINTS):
            part = grid.part(offset, min(MOST_POINTS, grid.points - offset))
            form = {"query": promql, "start": str(part.first_s), "end": str(part.last_s), "step": str(part.step_s)}
            for raw in self._call("query_range", form, _RangeData).result:
                key = tuple(sorted(raw.metric.items()))
                if key not in found:
                    found[key] = Series(raw.metric, np.full(grid.points, np.nan))
                values = found[key].values[offset : offset + part.points]
                self._fill(values, bytes(raw.values), part)
        return list(found.values())

    def query_times(self, promql: str, time_s: float) -> list[tuple[Mapping[str, str], FloatArray]]:
        """Evaluate a range selector such as ``up[10m]``: labels and times, (n,) float64 Unix seconds, of each series.

        Raises
        ------
        StoreUnavailable, QueryTooLarge
        """
        data = self._call("query", {"query": promql, "time": f"{time_s:.3f}"}, _RangeData)
        found = []
        for raw in data.result:
            try:
                stamps = [_stamp(piece) for piece in bytes(raw.values).split(b'"')[0:-1:2]]
            except ValueError:
                raise self._not_prometheus(bytes(raw.values)) from None
            found.append((raw.metric, np.array(stamps)))
        return found

    def version(self) -> str:
        """The version of the server; empty when it does not report one.

        Raises
        ------
        StoreUnavailable
        """
        try:
            return self._call("status/buildinfo", None, _Version).version
        except StoreUnavailable:
            # Query frontends do not have it: a query shows whether this is a server.
            self.query("vector(1)", 0.0)
            return ""

    def _fill(self, values: FloatArray, raw: bytes, grid: Grid) -> None:
        """Put the samples ``[[time, "value"], ...]`` of a response on the grid."""
        stamps, samples = self._parse(raw, grid)
        places = np.rint((stamps - grid.first_s) / grid.step_s)
        outside = ~((places >= 0) & (places < grid.points))
        if outside.any():
            stamp = stamps[outside][0]
            raise StoreUnavailable(f"{self.name}: a value for a time outside the query, {stamp:.0f}")
        values[places.astype(np.intp)] = np.where(np.isfinite(samples), samples, np.nan)

    def _parse(self, raw: bytes, grid: Grid) -> tuple[FloatArray, FloatArray]:
        """Times and values. There are millions: this takes a tenth of the time of a JSON parser."""
        pieces = raw.split(b'"')
        values, stamps = pieces[1::2], pieces[0:-1:2]
        if not values or pieces[-1].strip() != b"]]":
            raise self._not_prometheus(raw)
        try:
            samples = np.fromiter(map(float, values), np.float64, len(values))
        except ValueError:
            bad = next(value.decode(errors="replace") for value in values if not _is_number(value))
            raise StoreUnavailable(f"{self.name}: {bad[:40]!r} is not a sample value") from None
        try:
            first_s, last_s = _stamp(stamps[0]), _stamp(stamps[-1])
            if last_s - first_s == (len(values) - 1) * grid.step_s:
                # A server gives them in order: all instants between the first and the last.
                return first_s + grid.step_s * np.arange(len(values), dtype=np.float64), samples
            return np.fromiter(map(_stamp, stamps), np.float64, len(stamps)), samples
        except ValueError:
            raise self._not_prometheus(raw) from None

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise StoreUnavailable(f"{self.name}: {text[:40]!r} is not a sample value") from None

    def _call(self, operation: str, form: Mapping[str, str] | None, kind: type[Any]) -> Any:
        """The data of a response.

        Raises
        ------
        StoreUnavailable, QueryTooLarge
        """
        status, body, retry_after_s = self._send(operation, form)
        try:
            response = msgspec.json.decode(body, type=_Response)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if status != 200:
                raise self._refused(status, "", retry_after_s) from None
            raise self._not_prometheus(body) from None
        if status != 200 or response.status != "success":
            raise self._refused(status, response.error or "no data in the response", retry_after_s)
        if bytes(response.data) == b"null":
            raise StoreUnavailable(f"{self.name}: HTTP status {status}, no data in the response")
        self._note_warnings(response)
        try:
            return msgspec.json.decode(response.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._not_prometheus(body) from None

    def _note_warnings(self, response: _Response) -> None:
        warnings = [warning for warning in response.warnings if not warning.startswith(_NOTE)]
        if response.is_partial:
            warnings.append("the result is partial")
        if not warnings:
            return
        if not self._takes_partial:
            # Half of the VMs must not look like few VMs.
            raise StoreUnavailable(f"{self.name}: the result may be partial: {_short(warnings[0])}")
        self.warnings += [warning for warning in warnings if warning not in self.warnings]

    def _refused(self, status: int, error: str, retry_after_s: float | None) -> StoreUnavailable:
        message = f"{self.name}: HTTP status {status}" + (f", {_short(error)}" if error else "")
        if status in {401, 403}:
            return StoreUnavailable(f"{message}; are the credentials right?", retry_after_s)
        if 300 <= status < 400:
            return StoreUnavailable(f"{message}: the server redirects, use the URL to which it does")
        too_large = status in {413, 422} or (status == 400 and _LIMIT.search(error) is not None)
        return QueryTooLarge(message) if too_large else StoreUnavailable(message, retry_after_s)

    def _not_prometheus(self, body: bytes) -> StoreUnavailable:
        start = body[:40].decode(errors="replace")
        return StoreUnavailable(f"{self.name}: not the response of a Prometheus server: {start!r}")

    def _send(self, operation: str, form: Mapping[str, str] | None) -> tuple[int, bytes, float | None]:
        """Status, body and header Retry-After of a response.

        The timeout of requests applies to each read, and a slow server could send for ever; hence the limit for the
        whole query, which includes the wait for other queries.
        """
        import requests

        timeout_s = self._access.timeout_s
        if not self._at_once.acquire(timeout=timeout_s):
            raise StoreUnavailable(f"{self.name}: other queries did not end within {timeout_s:g} s")

        def job() -> tuple[int, bytes, float | None]:
            # Here: a query that is abandoned still loads the server.
            try:
                return self._download(operation, form)
            finally:
                self._at_once.release()

        try:
            return call_with_timeout(job, timeout_s, "prometheus query")
        except (TimeoutError, requests.Timeout):
            raise StoreUnavailable(f"{self.name}: no complete response within {timeout_s:g} s") from None
        except StoreUnavailable:
            raise
        except Exception as error:
            raise StoreUnavailable(f"{self.name}: {_reason(error)}") from None

    def _download(self, operation: str, form: Mapping[str, str] | None) -> tuple[int, bytes, float | None]:
        body, deadline = bytearray(), time.monotonic() + self._access.timeout_s
        url = f"{self._access.url.rstrip('/')}/api/v1/{operation}"
        method, data = ("GET", None) if form is None else ("POST", {**form, **_WHOLE})
        with self._session.request(
            method,
            url,
            data=data,
            timeout=self._access.timeout_s,
            stream=True,
            allow_redirects=False,
            verify=self._access.ca_file or None,
        ) as response:
            for piece in response.iter_content(_PIECE):
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > _MAX_RESPONSE_BYTES:
                    raise QueryTooLarge(f"{self.name}: a response of more than {_MAX_RESPONSE_BYTES} bytes")
            after = response.headers.get("Retry-After", "")
            return response.status_code, bytes(body), float(after) if after.isdecimal() else None


class _Bearer:
    """Adds a bearer token to a request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def shown_url(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _stamp(piece: bytes) -> float:
    """The time before a value: ``],[1704067215,``."""
    return float(piece.strip(b"[], "))


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return printable(text)[:300]


def _reason(error: BaseException) -> str:
    """The message of the system; the one of a library may hold a password."""
    for _errno, message in system_words(error):
        return message
    return f"no response ({type(error).__name__})"
