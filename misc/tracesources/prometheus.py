"""Converts the history of a node and its domains on a Prometheus server."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from model.numerics import FloatArray
from model.store.base import StoreUnavailable
from model.store.prometheus_contention import checked_domain_waits, checked_node_waits
from model.store.prometheus_queries import quoted
from model.store.prometheus_server import Access, PrometheusServer
from model.store.prometheus_server import Grid as ServerGrid

_MB = 2**20

#: The window of a rate spans so many scrapes, so that one or two may fail.
_SCRAPES_PER_RATE = 4
#: libvirt's states "shut off" and "crashed".
_OFF_STATES = (5.0, 6.0)
_WAIT, _RUN = "libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total"
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


class _Reader:
    """Runs range queries whose result has a series per domain, or one."""

    def __init__(self, server: PrometheusServer) -> None:
        self._server = server
        self.name = server.name

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
        try:
            found = self._server.query_range(query, ServerGrid(first_s, points, step_s))
        except StoreUnavailable as error:
            raise ConversionError(str(error)) from None
        return {series.labels.get("domain", ""): series.values for series in found}


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
    access = Access(data.server, token or "", timeout_s=data.timeout_s)
    with contextlib.closing(PrometheusServer(access, takes_partial=True)) as server:
        conversion = _convert(_Reader(server), data, options)
        notes = [f"{server.name} warns: {warning}" for warning in server.warnings]
    return replace(conversion, notes=[*conversion.notes, *notes])


def _convert(server: _Reader, data: PrometheusOptions, options: TraceOptions) -> Conversion:
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
    contention = _node_waits(query_one, node_label, rate_s, grid.step_s, cores, cpu_usage)
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
    waits = _DomainWaits.read(query, label, node_label, rate_s)
    vms = _convert_domains(query, label, rate_s, grid, options.hold, waits)
    if vms is None:
        raise ConversionError(f"{server.name}: no metric of a libvirt exporter with {label} in the period")
    return Conversion(trace_config(options), meta, grid, grid.step_s, node, vms, [])


def _node_waits(
    query: Callable[[str], FloatArray], label: str, rate_s: int, step_s: int, cores: FloatArray, usage: FloatArray
) -> dict[str, FloatArray]:
    """Pressure, waits and memory trouble of a node; ``oom_kills`` is the number per step."""

    def rate(metric: str) -> FloatArray:
        return query(f"max(rate({metric}{{{label}}}[{rate_s}s]))")

    rates = {
        "psi_cpu": rate("node_pressure_cpu_waiting_seconds_total"),
        "psi_memory": rate("node_pressure_memory_stalled_seconds_total"),
        "swap_in": rate("node_vmstat_pswpin"),
        "queue": query(f"sum(max by (cpu) (rate(node_schedstat_waiting_seconds_total{{{label}}}[{rate_s}s])))"),
    }
    return {**checked_node_waits(rates, cores, usage), "oom_kills": rate("node_vmstat_oom_kill") * step_s}


@dataclass(frozen=True, slots=True)
class _DomainWaits:
    """Rates of the vCPUs of domains.

    Attributes
    ----------
    waits, runs, numbers : mapping of domain to (n,) float64
        Sums of waiting and running, cores, and the number of vCPUs that wait.
    """

    waits: Mapping[str, FloatArray]
    runs: Mapping[str, FloatArray]
    numbers: Mapping[str, FloatArray]

    @classmethod
    def read(
        cls, query: Callable[[str], Mapping[str, FloatArray]], libvirt_label: str, node_label: str, rate_s: int
    ) -> _DomainWaits:
        """Read the rates from the libvirt exporter, otherwise from node_exporter, which may serve a textfile."""

        def rates(metric: str) -> str:
            by_vcpu = [
                f"max by (domain, vcpu) (rate({metric}{{{label}}}[{rate_s}s]))" for label in (libvirt_label, node_label)
            ]
            return f"by (domain) ({' or '.join(by_vcpu)})"

        return cls(query(f"sum {rates(_WAIT)}"), query(f"sum {rates(_RUN)}"), query(f"count {rates(_WAIT)}"))

    def fields(self, domain: str, vcpus: FloatArray, usage: FloatArray) -> dict[str, FloatArray]:
        """``cpu_wait`` and ``cpu_wait_share`` of a domain; NaN where its figures contradict each other."""
        if domain not in self.waits:
            return {}
        run = self.runs.get(domain, usage)
        return checked_domain_waits(self.waits[domain], run, self.numbers[domain], vcpus, usage)


def _rate_window(server: _Reader, node_label: str, grid: Grid) -> int:
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
    waits: _DomainWaits,
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
