"""Converts the history of a node and its domains on a Prometheus server."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from misc.tracesources.grid import (
    Conversion,
    ConversionError,
    Grid,
    Machine,
    TraceOptions,
    carried_forward,
    fill_gaps,
    trace_config,
    utc,
)
from misc.tracesources.prometheus_contention import DomainContention, node_contention
from model.common.errors import system_words
from model.common.threads import call_with_timeout
from model.numerics import FloatArray

_MB = 2**20

#: Servers reject queries with more points per series.
_MOST_POINTS = 11_000
_MAX_RESPONSE_BYTES = 2**29
#: The window of a rate spans so many scrapes, so that one or two may fail.
_SCRAPES_PER_RATE = 4
#: libvirt's states "shut off" and "crashed".
_OFF_STATES = (5.0, 6.0)
_STATE_METRICS = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")
_BALLOON_METRICS = (
    "libvirt_domain_memory_stats_actual_balloon_bytes",
    "libvirt_domain_memory_stats_current_balloon_bytes",
)


@dataclass(frozen=True, slots=True)
class PrometheusOptions:
    """The server and the exporters on it.

    Attributes
    ----------
    server : str
        URL, with the path prefix if there is one.
    node_instance : str
        Label ``instance`` of node_exporter.
    libvirt_instance : str or None
        Label ``instance`` of the libvirt exporter; None = any on the same host.
    rate_s : int or None
        Window of rates; None = at least a step and four scrape intervals.
    bearer_token_file : Path or None
    timeout_s : float
        Of each query.
    start, end : float
        Period, Unix seconds.
    """

    server: str
    node_instance: str
    libvirt_instance: str | None
    rate_s: int | None
    bearer_token_file: Path | None
    timeout_s: float
    start: float
    end: float


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Data(msgspec.Struct):
    result: list[_Series]


class _Response(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""
    warnings: list[str] = []


class PrometheusServer:
    """Runs range queries on a Prometheus server.

    Parameters
    ----------
    url : str
        With the path prefix, if there is one.
    token : str or None
        Sent as bearer token.
    timeout_s : float
        For each query in total.
    """

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        import requests

        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self.warnings: list[str] = []
        self._url = f"{url.rstrip('/')}/api/v1/query_range"
        self._timeout_s = timeout_s
        self._session = requests.Session()
        if token is not None:
            # As `auth`: an entry in .netrc would replace a header.
            self._session.auth = _Bearer(token)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def query_range(self, query: str, first_s: int, points: int, step_s: int) -> dict[str, FloatArray]:
        """Evaluate a query at ``points`` instants, the first one at ``first_s``.

        Returns
        -------
        dict of (points,) float64
            By the label ``domain``, "" if the result does not have it; NaN where a value is missing.

        Raises
        ------
        ConversionError
        """
        result: dict[str, FloatArray] = {}
        for offset in range(0, points, _MOST_POINTS):
            start_s = first_s + offset * step_s
            count = min(_MOST_POINTS, points - offset)
            end_s = start_s + (count - 1) * step_s
            for series in self._query({"query": query, "start": start_s, "end": end_s, "step": step_s}):
                whole = result.setdefault(series.metric.get("domain", ""), np.full(points, np.nan))
                for stamp, text in series.values:
                    place = round((stamp - first_s) / step_s)
                    if not offset <= place < offset + count:
                        raise ConversionError(f"{self.name}: a value for a time outside the query, {stamp:.0f}")
                    try:
                        value = float(text)
                    except ValueError:
                        raise ConversionError(f"{self.name}: {text[:40]!r} is not a sample value") from None
                    if math.isfinite(value):
                        whole[place] = value
        return result

    def _query(self, params: dict[str, Any]) -> list[_Series]:
        status, body = self._get(params)
        try:
            response = msgspec.json.decode(body, type=_Response)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if status != 200:
                raise ConversionError(f"{self.name}: HTTP status {status}") from None
            start = body[:40].decode(errors="replace")
            raise ConversionError(f"{self.name}: not the response of a Prometheus server: {start!r}") from None
        if status != 200 or response.status != "success" or response.data is None:
            raise ConversionError(
                f"{self.name}: HTTP status {status}, {response.error[:300] or 'no data in the response'}"
            )
        self.warnings += [warning for warning in response.warnings if warning not in self.warnings]
        return response.data.result

    def _get(self, params: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of a response.

        The timeout of requests applies to each read, and a slow server could send for ever; hence the limit for the
        whole query.
        """
        import requests

        try:
            return call_with_timeout(lambda: self._download(params), self._timeout_s, "prometheus query")
        except (TimeoutError, requests.Timeout):
            raise ConversionError(f"{self.name}: no complete response within {self._timeout_s:g} s") from None
        except ConversionError:
            raise
        except Exception as error:
            raise ConversionError(f"{self.name}: {_reason(error)}") from None

    def _download(self, params: dict[str, Any]) -> tuple[int, bytes]:
        body = bytearray()
        with self._session.get(self._url, params=params, timeout=self._timeout_s, stream=True) as response:
            for piece in response.iter_content(2**16):
                body += piece
                if len(body) > _MAX_RESPONSE_BYTES:
                    raise ConversionError(f"{self.name}: a response of more than {_MAX_RESPONSE_BYTES} bytes")
            return response.status_code, bytes(body)


class _Bearer:
    """Adds a bearer token to a request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _reason(error: BaseException) -> str:
    """The message of the system; the one of a library may hold a password."""
    for _errno, message in system_words(error):
        return message
    return f"no response ({type(error).__name__})"


def quoted(text: str) -> str:
    """Quote a string literal of PromQL."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def same_host(instance: str) -> str:
    """Build a PromQL matcher of all instances on the host of this one, with any port."""
    host = re.sub(r":\d+$", "", instance)
    return f"instance=~{quoted(re.escape(host) + '(:[0-9]+)?')}"


def convert_prometheus(data: PrometheusOptions, options: TraceOptions) -> Conversion:
    """Convert a node and its domains to a trace.

    Raises
    ------
    ConversionError
    """
    token = _read_token(data.bearer_token_file)
    with contextlib.closing(PrometheusServer(data.server, token, data.timeout_s)) as server:
        return _convert(server, data, options)


def _convert(server: PrometheusServer, data: PrometheusOptions, options: TraceOptions) -> Conversion:
    grid = Grid.within(data.start, data.end, options)
    node_label = f"instance={quoted(data.node_instance)}"
    rate_s = data.rate_s or _rate_window(server, node_label, grid)
    node_cpu = f'node_cpu_seconds_total{{{node_label},mode!~"idle|iowait"}}'

    def query(promql: str) -> dict[str, FloatArray]:
        # Rates look back: the value of a step is the one at its end.
        return server.query_range(promql, grid.start_s + grid.step_s, grid.steps, grid.step_s)

    def query_one(promql: str) -> FloatArray:
        return query(promql).get("", np.full(grid.steps, np.nan))

    # `max by`: two jobs may scrape the same exporter.
    always = np.full(grid.steps, True)
    total_mb = query_one(f"max(node_memory_MemTotal_bytes{{{node_label}}})") / _MB
    available_mb = query_one(f"max(node_memory_MemAvailable_bytes{{{node_label}}})") / _MB
    cpu_usage = query_one(f"sum(max by (cpu, mode) (rate({node_cpu}[{rate_s}s])))")
    cores = query_one(f"count(count by (cpu) (node_cpu_seconds_total{{{node_label}}}))")
    contention = node_contention(query_one, node_label, rate_s, grid.step_s, cores, cpu_usage)
    node = Machine(
        present=always,
        cpu_config=cores,
        mem_config=total_mb,
        cpu_usage=fill_gaps(cpu_usage, always, options.hold),
        mem_usage=fill_gaps(total_mb - available_mb, always, options.hold),
        contention={name: fill_gaps(values, always, options.hold) for name, values in contention.items()},
    )
    if np.isnan(node.cpu_usage).all():
        raise ConversionError(
            f"{server.name}: no rate of node_cpu_seconds_total{{{node_label}}} over {rate_s} s"
            f" between {utc(grid.start_s)} and {utc(grid.end_s)}"
        )
    label = same_host(data.node_instance)
    if data.libvirt_instance is not None:
        label = f"instance={quoted(data.libvirt_instance)}"
    meta = {
        "source": "Prometheus",
        "node_instance": data.node_instance,
        "libvirt_instance": data.libvirt_instance,
        "rate_s": rate_s,
        "step_s": options.step_s,
        "hold": options.hold,
    }
    waits = DomainContention.read(query, label, node_label, rate_s)
    vms = _convert_domains(query, label, rate_s, grid, options.hold, waits)
    if vms is None:
        raise ConversionError(f"{server.name}: no metric of a libvirt exporter with {label} in the period")
    notes = [f"{server.name} warns: {warning}" for warning in server.warnings]
    return Conversion(trace_config(options), meta, grid, grid.step_s, node, vms, notes)


def _rate_window(server: PrometheusServer, node_label: str, grid: Grid) -> int:
    """Window of rates, s: four scrape intervals of this server, and at least a step."""
    count = f"max(count_over_time(node_memory_MemTotal_bytes{{{node_label}}}[{grid.slice_s}s]))"
    scrapes = server.query_range(count, grid.start_s + grid.slice_s, grid.slices, grid.slice_s).get("")
    if scrapes is None:
        raise ConversionError(
            f"{server.name}: no node_memory_MemTotal_bytes{{{node_label}}}"
            f" between {utc(grid.start_s)} and {utc(grid.end_s)}"
        )
    interval_s = grid.slice_s / float(np.nanmax(scrapes))
    return max(grid.step_s, math.ceil(_SCRAPES_PER_RATE * interval_s))


def _convert_domains(
    query: Callable[[str], dict[str, FloatArray]],
    label: str,
    rate_s: int,
    grid: Grid,
    hold: int,
    waits: DomainContention,
) -> dict[str, Machine] | None:
    """The domains of a hypervisor, or None if the server has no metric of its exporter."""

    def by_domain(metric: str, condition: str = "") -> str:
        return f"max by (domain) ({metric}{{{label}}}{condition})"

    def any_of(metrics: Sequence[str]) -> str:
        return f'max by (domain) ({{__name__=~"{"|".join(metrics)}",{label}}})'

    vcpus = query(by_domain("libvirt_domain_info_virtual_cpus"))
    up = query(f"max(libvirt_up{{{label}}})").get("")
    if not vcpus and up is None:
        return None
    states = query(any_of(_STATE_METRICS))
    # libvirt reports 0 if a guest gives no statistics. `unused` may be older than a balloon that was just inflated:
    # then the difference is negative, and memory usage is missing too.
    used = f"(({any_of(_BALLOON_METRICS)} > 0) - {by_domain('libvirt_domain_memory_stats_unused_bytes', ' > 0')}) >= 0"
    figures = {
        "cpu_usage": query(f"max by (domain) (rate(libvirt_domain_info_cpu_time_seconds_total{{{label}}}[{rate_s}s]))"),
        "mem_config": query(by_domain("libvirt_domain_info_maximum_memory_bytes")),
        "mem_usage": query(used),
        "mem_rss": query(by_domain("libvirt_domain_memory_stats_rss_bytes", " > 0")),
    }
    unknown = np.full(grid.steps, np.nan)
    responding = ~np.isnan(np.array(list(vcpus.values()))).all(axis=0) if up is None else up == 1.0
    vms: dict[str, Machine] = {}
    for name, cores in vcpus.items():
        listed = ~np.isnan(cores)
        off = np.isin(states.get(name, unknown), _OFF_STATES)
        # A domain that the exporter does not list does not run; while the exporter does not respond, states hold.
        state = np.where(listed, np.where(off, 0.0, 1.0), np.where(responding, 0.0, np.nan))
        present = carried_forward(state) == 1.0
        if not present.any():
            continue
        usage = {figure: series.get(name, unknown) for figure, series in figures.items()}
        vms[name] = Machine(
            present=present,
            cpu_config=cores,
            mem_config=usage["mem_config"] / _MB,
            cpu_usage=fill_gaps(usage["cpu_usage"], present, hold),
            mem_usage=fill_gaps(usage["mem_usage"] / _MB, present, hold),
            mem_rss=fill_gaps(usage["mem_rss"] / _MB, present, hold),
            contention={
                figure: fill_gaps(values, present, hold)
                for figure, values in waits.fields(name, cores, usage["cpu_usage"]).items()
            },
        )
    return vms


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: {getattr(error, 'strerror', None) or 'not a token'}") from None
    if not token or not token.isprintable() or " " in token:
        raise ConversionError(f"{path}: not a token")
    return token
