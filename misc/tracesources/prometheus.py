"""A node and its domains from the history of a Prometheus server."""

from __future__ import annotations

import argparse
import contextlib
import math
import queue
import re
import threading
from collections.abc import Callable, Sequence
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
    carried_forward,
    fill_holes,
    trace_config,
    utc,
)
from model.common.errors import system_words
from model.numerics import FloatArray

_MB = 2**20

#: A server refuses a query that would give more per series.
_MOST_POINTS = 11_000
_LONGEST_ANSWER = 2**29
#: Windows of rates span this many scrapes, so that one or two may fail.
_SCRAPES_PER_RATE = 4
#: libvirt's numbers for "shut off" and "crashed": defined, but nothing runs.
_OFF_STATES = (5.0, 6.0)
_STATE_METRICS = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")
_BALLOON_METRICS = (
    "libvirt_domain_memory_stats_actual_balloon_bytes",
    "libvirt_domain_memory_stats_current_balloon_bytes",
)


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""
    warnings: list[str] = []


class PrometheusServer:
    """The range queries of a Prometheus server.

    Parameters
    ----------
    url : str
        With the path prefix, if it has one.
    token : str or None
        Sent as bearer token.
    timeout_s : float
        For each query as a whole.
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
            # As `auth`, not as a header: a .netrc entry would replace the header.
            self._session.auth = _Bearer(token)

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def query_range(self, query: str, first_s: int, points: int, step_s: int) -> dict[str, FloatArray]:
        """Evaluate a query at ``points`` instants, the first one at ``first_s``.

        Returns
        -------
        dict of (points,) float64
            By the label ``domain``, "" where the result does not have it; NaN where there is no value.

        Raises
        ------
        ConversionError
        """
        result: dict[str, FloatArray] = {}
        for offset in range(0, points, _MOST_POINTS):
            start_s = first_s + offset * step_s
            count = min(_MOST_POINTS, points - offset)
            end_s = start_s + (count - 1) * step_s
            for series in self._ask({"query": query, "start": start_s, "end": end_s, "step": step_s}):
                whole = result.setdefault(series.metric.get("domain", ""), np.full(points, np.nan))
                for stamp, text in series.values:
                    place = round((stamp - first_s) / step_s)
                    if not offset <= place < offset + count:
                        raise ConversionError(f"{self.name}: an answer for a time that was not asked for, {stamp:.0f}")
                    try:
                        value = float(text)
                    except ValueError:
                        raise ConversionError(f"{self.name}: {text[:40]!r} is no sample value") from None
                    if math.isfinite(value):
                        whole[place] = value
        return result

    def _ask(self, params: dict[str, Any]) -> list[_Series]:
        status, body = self._get(params)
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if status != 200:
                raise ConversionError(f"{self.name}: HTTP status {status}") from None
            start = body[:40].decode(errors="replace")
            raise ConversionError(f"{self.name}: not the answer of a Prometheus server: {start!r}") from None
        if status != 200 or answer.status != "success" or answer.data is None:
            raise ConversionError(f"{self.name}: HTTP status {status}, {answer.error[:300] or 'no data in the answer'}")
        self.warnings += [warning for warning in answer.warnings if warning not in self.warnings]
        return answer.data.result

    def _get(self, params: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body, or an error once the time is over.

        The timeout of requests is for each read alone, and a slow server could send for ever: so the whole
        query runs in a thread that can be left behind.
        """
        outcome: queue.SimpleQueue[tuple[int, bytes] | ConversionError] = queue.SimpleQueue()
        threading.Thread(target=lambda: outcome.put(self._outcome(params)), daemon=True).start()
        try:
            found = outcome.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._late() from None
        if isinstance(found, ConversionError):
            raise found
        return found

    def _outcome(self, params: dict[str, Any]) -> tuple[int, bytes] | ConversionError:
        import requests

        body = bytearray()
        try:
            with self._session.get(self._url, params=params, timeout=self._timeout_s, stream=True) as response:
                for piece in response.iter_content(2**16):
                    body += piece
                    if len(body) > _LONGEST_ANSWER:
                        return ConversionError(f"{self.name}: an answer of more than {_LONGEST_ANSWER} bytes")
                return response.status_code, bytes(body)
        except requests.Timeout:
            return self._late()
        except Exception as error:
            # Whatever it is, it must get out of the thread.
            return ConversionError(f"{self.name}: {_reason(error)}")

    def _late(self) -> ConversionError:
        return ConversionError(f"{self.name}: no complete answer within {self._timeout_s:g} s")


class _Bearer:
    """Puts a bearer token on a request of requests."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _reason(error: BaseException) -> str:
    for _errno, words in system_words(error):
        return words
    return f"no answer ({type(error).__name__})"


def quoted(text: str) -> str:
    """A string literal of PromQL."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def same_host(instance: str) -> str:
    """A PromQL matcher of every ``instance`` on the host of this one, whatever the port."""
    host = re.sub(r":\d+$", "", instance)
    return f"instance=~{quoted(re.escape(host) + '(:[0-9]+)?')}"


def convert_prometheus(args: argparse.Namespace) -> Conversion:
    """A node and its domains as the server knows them."""
    token = _token(args.bearer_token_file)
    with contextlib.closing(PrometheusServer(args.server, token, args.timeout_s)) as server:
        return _ask_prometheus(server, args)


def _ask_prometheus(server: PrometheusServer, args: argparse.Namespace) -> Conversion:
    grid = Grid.within(args.start, args.end, args)
    node_label = f"instance={quoted(args.node_instance)}"
    rate_s = args.rate_s or _rate_window(server, node_label, grid)
    node_cpu = f'node_cpu_seconds_total{{{node_label},mode!~"idle|iowait"}}'

    def ask(query: str) -> dict[str, FloatArray]:
        # A step's figure is that of its end: rates look back.
        return server.query_range(query, grid.start_s + grid.step_s, grid.steps, grid.step_s)

    def ask_one(query: str) -> FloatArray:
        return ask(query).get("", np.full(grid.steps, np.nan))

    # `max by` so that two jobs that scrape the same exporter don't count twice.
    everywhere = np.full(grid.steps, True)
    total_mb = ask_one(f"max(node_memory_MemTotal_bytes{{{node_label}}})") / _MB
    available_mb = ask_one(f"max(node_memory_MemAvailable_bytes{{{node_label}}})") / _MB
    cpu_usage = ask_one(f"sum(max by (cpu, mode) (rate({node_cpu}[{rate_s}s])))")
    node = Machine(
        present=everywhere,
        cpu_config=ask_one(f"count(count by (cpu) (node_cpu_seconds_total{{{node_label}}}))"),
        mem_config=total_mb,
        cpu_usage=fill_holes(cpu_usage, everywhere, args.hold),
        mem_usage=fill_holes(total_mb - available_mb, everywhere, args.hold),
    )
    if np.isnan(node.cpu_usage).all():
        raise ConversionError(
            f"{server.name}: no rate of node_cpu_seconds_total{{{node_label}}} over {rate_s} s"
            f" between {utc(grid.start_s)} and {utc(grid.end_s)}"
        )
    label = same_host(args.node_instance)
    if args.libvirt_instance is not None:
        label = f"instance={quoted(args.libvirt_instance)}"
    meta = {
        "source": "Prometheus",
        "node_instance": args.node_instance,
        "libvirt_instance": args.libvirt_instance,
        "rate_s": rate_s,
        "step_s": args.step_s,
        "hold": args.hold,
    }
    vms = _domains(ask, label, rate_s, grid, args.hold)
    if vms is None:
        raise ConversionError(f"{server.name}: no metric of a libvirt exporter with {label} in that period")
    notes = [f"{server.name} warns: {warning}" for warning in server.warnings]
    return Conversion(trace_config(args), meta, grid, grid.step_s, node, vms, notes)


def _rate_window(server: PrometheusServer, node_label: str, grid: Grid) -> int:
    """Long enough for a rate at this server's scrape interval, and no shorter than a step."""
    count = f"max(count_over_time(node_memory_MemTotal_bytes{{{node_label}}}[{grid.slice_s}s]))"
    scrapes = server.query_range(count, grid.start_s + grid.slice_s, grid.slices, grid.slice_s).get("")
    if scrapes is None:
        raise ConversionError(
            f"{server.name}: no node_memory_MemTotal_bytes{{{node_label}}}"
            f" between {utc(grid.start_s)} and {utc(grid.end_s)}"
        )
    interval_s = grid.slice_s / float(np.nanmax(scrapes))
    return max(grid.step_s, math.ceil(_SCRAPES_PER_RATE * interval_s))


def _domains(
    ask: Callable[[str], dict[str, FloatArray]], label: str, rate_s: int, grid: Grid, hold: int
) -> dict[str, Machine] | None:
    """The domains of a hypervisor, or None when its exporter is unknown to the server."""

    def by_domain(metric: str, condition: str = "") -> str:
        return f"max by (domain) ({metric}{{{label}}}{condition})"

    def any_of(metrics: Sequence[str]) -> str:
        return f'max by (domain) ({{__name__=~"{"|".join(metrics)}",{label}}})'

    vcpus = ask(by_domain("libvirt_domain_info_virtual_cpus"))
    up = ask(f"max(libvirt_up{{{label}}})").get("")
    if not vcpus and up is None:
        return None
    states = ask(any_of(_STATE_METRICS))
    # libvirt says 0 where a guest gives no statistics. `unused` may be older than a balloon that has just
    # been inflated, and the difference negative: not known either.
    used = f"(({any_of(_BALLOON_METRICS)} > 0) - {by_domain('libvirt_domain_memory_stats_unused_bytes', ' > 0')}) >= 0"
    figures = {
        "cpu_usage": ask(f"max by (domain) (rate(libvirt_domain_info_cpu_time_seconds_total{{{label}}}[{rate_s}s]))"),
        "mem_config": ask(by_domain("libvirt_domain_info_maximum_memory_bytes")),
        "mem_usage": ask(used),
        "mem_rss": ask(by_domain("libvirt_domain_memory_stats_rss_bytes", " > 0")),
    }
    unknown = np.full(grid.steps, np.nan)
    answering = ~np.isnan(np.array(list(vcpus.values()))).all(axis=0) if up is None else up == 1.0
    vms: dict[str, Machine] = {}
    for name, cores in vcpus.items():
        seen = ~np.isnan(cores)
        off = np.isin(states.get(name, unknown), _OFF_STATES)
        # A domain that the exporter does not list is gone; while the exporter itself is gone, nothing changes.
        state = np.where(seen, np.where(off, 0.0, 1.0), np.where(answering, 0.0, np.nan))
        present = carried_forward(state) == 1.0
        if not present.any():
            continue
        mine = {figure: series.get(name, unknown) for figure, series in figures.items()}
        vms[name] = Machine(
            present=present,
            cpu_config=cores,
            mem_config=mine["mem_config"] / _MB,
            cpu_usage=fill_holes(mine["cpu_usage"], present, hold),
            mem_usage=fill_holes(mine["mem_usage"] / _MB, present, hold),
            mem_rss=fill_holes(mine["mem_rss"] / _MB, present, hold),
        )
    return vms


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: {getattr(error, 'strerror', None) or 'not a token'}") from None
    if not token or not token.isprintable() or " " in token:
        raise ConversionError(f"{path}: not a token")
    return token
