"""Computes samples of a node and its domains from the series of a Prometheus server.

The rules are those of the aggregator. Rates are computed here, from counters and the times at which they were scraped:
``rate()`` extrapolates after a gap and smooths peaks away, and both would make a node look less busy than it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..attribution import NodeAttribution, ResourceUsage, Unknown
from ..numerics import BoolArray, FloatArray
from ..samples import DomainHistory, Period, Samples
from .prometheus_contention import checked_domain_waits, checked_node_waits
from .prometheus_server import Grid

_MB = 2.0**20

#: Domains are known for this number of steps after a scrape: the next one may be late.
_KNOWN_STEPS = 1.1
#: A server adds counters in any order, so that equal sums differ by rounding, s.
_NO_GROWTH_S = 1e-4

#: As in the aggregator: see ``confirmation``, ``rates``, ``domain_rates`` and ``sizes`` there.
_TOLERANCE, _READ_S = 0.05, 0.05
_VMS_TOLERANCE, _VMS_READ_S = 0.1, 0.1
_BUSY_CORES = 0.05
_MOST_CORES, _MOST_MEMORY_MB, _MOST_MEMORY_PER_CORE_MB = 8192.0, 2.0**26, 2.0**19
_LARGEST_ALLOCATION, _MOST_USAGE = 4.0, 1.5
_MEMORY_FALLS = 4.0
_RESERVE_TOLERANCE = 0.01
#: A smaller size, or statistics of a balloon that moved, count after this time.
_PERSISTS_S = 60.0
#: More memory of a node counts after this time.
GROWS_S = 3600.0

_NOT_BUSY = ("idle", "iowait")
_NODE_WAITS = ("psi_cpu", "psi_memory", "swap_in", "oom_kills", "queue")


def lookback_points(step_s: int) -> int:
    """Points before a period that its samples are computed from."""
    return math.ceil(_PERSISTS_S / step_s) + 3


@dataclass(frozen=True, slots=True)
class NodeSeries:
    """Series of a node on a grid, (n,) float64; NaN where there is none.

    Attributes
    ----------
    time_s : (n,) float64
        When it was scraped, Unix seconds.
    modes : mapping of mode to (n,) float64
        CPU time, s.
    cores : (n,) float64
    memory_total, memory_available : (n,) float64
        Bytes.
    memory_least : float
        The least ``memory_total`` of the hour before the grid; NaN where there is none.
    waits : mapping of str to (n,) float64
        Counters; none of them where they are not read.
    """

    time_s: FloatArray
    modes: Mapping[str, FloatArray]
    cores: FloatArray
    memory_total: FloatArray
    memory_available: FloatArray
    memory_least: float
    waits: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class DomainSeries:
    """Series of the domains of a node on a grid.

    Attributes
    ----------
    time_s, up : (n,) float64
        When the libvirt exporter was scraped, Unix seconds, and whether it reached libvirt.
    names : tuple of str
    figures : mapping of str to (d, n) float64
        ``vcpus``, ``allocation`` (bytes), ``off``, ``cpu_time`` (s), and as far as they are read ``unused``,
        ``available``, ``rss`` (bytes), ``wait``, ``run`` (s) and ``waiting_vcpus``. ``listed`` has a value where the
        exporter listed a domain at its last scrape; without it, a domain is listed where it has vCPUs.
    """

    time_s: FloatArray
    up: FloatArray
    names: tuple[str, ...]
    figures: Mapping[str, FloatArray]


class NodeRows(NamedTuple):
    """Samples of a node on the points of a grid.

    Attributes
    ----------
    time_s : (n,) float64
        When it was scraped, Unix seconds.
    scraped : (n,) bool
        Whether that was in the step before each point.
    fields : mapping of field name to (n,) float64
    """

    time_s: FloatArray
    scraped: BoolArray
    fields: dict[str, FloatArray]


class DomainRows(NamedTuple):
    """Samples of domains on the points of a grid.

    Attributes
    ----------
    names : tuple of str
    known : (n,) bool
        Whether it is known which domains there are.
    present : (d, n) bool
    fields : mapping of field name to (d, n) float64
    """

    names: tuple[str, ...]
    known: BoolArray
    present: BoolArray
    fields: dict[str, FloatArray]


def node_rows(grid: Grid, series: NodeSeries) -> NodeRows:
    """The samples of a node, without what depends on its domains."""
    # Each point shows the newest scrape; a scrape counts at the first point that is not before it.
    scraped = grid.times_s - series.time_s < grid.step_s
    # A larger size counts once it has persisted: it raises what is free.
    cores = _within(np.where(scraped, series.cores, np.nan), _MOST_CORES)
    cores = _lowest_of_recent(cores, math.ceil(_PERSISTS_S / grid.step_s), math.nan)
    total, available = series.memory_total / _MB, series.memory_available / _MB
    largest = np.minimum(_MOST_MEMORY_MB, _MOST_MEMORY_PER_CORE_MB * np.where(np.isnan(cores), _MOST_CORES, cores))
    memory = _within(np.where(scraped, total, np.nan), largest)
    memory = _lowest_of_recent(memory, math.ceil(GROWS_S / grid.step_s), series.memory_least / _MB)
    used = total - available
    with np.errstate(invalid="ignore"):
        possible = scraped & (available >= 0) & (available <= total) & (used <= memory)
    usage, elapsed_s, before = _confirmed_usage(series, cores)
    fields = {
        "cpu": cores,
        "mem": memory,
        "cpu_usage": usage,
        "mem_usage": np.where(possible, used, np.nan),
        "elapsed_time": 1000.0 * elapsed_s,
    }
    if series.waits:
        increases = {name: _increase(series.waits.get(name), before) for name in _NODE_WAITS}
        kills = increases.pop("oom_kills")
        rates = {name: increase / elapsed_s for name, increase in increases.items()}
        fields |= checked_node_waits(rates, cores, usage)
        fields["oom_kills"] = np.where(kills >= 0, kills, np.nan)
    return NodeRows(series.time_s, scraped, fields)


def _lowest_of_recent(values: FloatArray, points: int, before: float) -> FloatArray:
    """The lowest of each value and those at some points before it; ``before`` is that of the points before the first.

    NaN where there is no value.
    """
    known = values[~np.isnan(values)]
    if not known.size or (known.min() == known.max() and not before < known[0]):
        return values
    padded = np.concatenate([np.full(points, before), values])
    lowest = np.fmin.reduce(np.lib.stride_tricks.sliding_window_view(padded, points + 1), axis=1)
    return np.where(np.isnan(values), np.nan, lowest)


def _within(values: FloatArray, most: float | FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.where((values > 0) & (values <= most), values, np.nan)


def _confirmed_usage(series: NodeSeries, cores: FloatArray) -> tuple[FloatArray, FloatArray, list[int]]:
    """CPU usage, the time that it covers, s, and the point from which each is computed, -1 without one.

    Busy + idle must have grown by about cores x elapsed time. After points that are not confirmed, a rate covers the
    time since the last one that was.
    """
    n = cores.size
    usage, elapsed_s, bases = np.full(n, np.nan), np.full(n, np.nan), [-1] * n
    busy_s, total_s = _cpu_times(series.modes, n)
    known = np.flatnonzero(~(np.isnan(busy_s + total_s + cores + series.time_s)))
    times, busy, total, sizes = (values.tolist() for values in (series.time_s, busy_s, total_s, cores))
    confirmed = latest = -1
    for i in known.tolist():
        is_still = is_reset = False
        for before in dict.fromkeys((confirmed, latest)):
            elapsed = times[i] - times[before]
            if before < 0 or elapsed <= 0:
                continue
            grown, all_grown = busy[i] - busy[before], total[i] - total[before]
            expected = sizes[i] * elapsed
            margin = _TOLERANCE * expected + sizes[i] * _READ_S
            is_still, is_reset = abs(all_grown) < _NO_GROWTH_S, grown < -_NO_GROWTH_S
            if is_still or is_reset:
                break
            if grown <= expected + margin and abs(all_grown - expected) <= margin:
                usage[i], elapsed_s[i], bases[i] = max(grown, 0.0) / elapsed, elapsed, before
                confirmed = i
                break
        if confirmed < 0 or is_reset:
            confirmed = i
        if not is_still:
            latest = i
    return usage, elapsed_s, bases


def _cpu_times(modes: Mapping[str, FloatArray], points: int) -> tuple[FloatArray, FloatArray]:
    """Busy and busy + idle time; NaN where a mode is missing that the node has otherwise."""
    if not {"idle", "user", "system"} <= modes.keys():
        return np.full(points, np.nan), np.full(points, np.nan)
    busy = np.sum([values for mode, values in modes.items() if mode not in _NOT_BUSY], axis=0)
    return busy, busy + np.sum([modes[mode] for mode in _NOT_BUSY if mode in modes], axis=0)


def _increase(counter: FloatArray | None, before: list[int]) -> FloatArray:
    """By what a counter grew since the points ``before``; NaN where there is none."""
    bases = np.array(before)
    if counter is None:
        return np.full(bases.size, np.nan)
    return np.where(bases >= 0, _without_rounding(counter - counter[bases]), np.nan)


def _without_rounding(growth: FloatArray) -> FloatArray:
    return np.where(np.abs(growth) < _NO_GROWTH_S, 0.0, growth)


def domain_rows(grid: Grid, series: DomainSeries, cores: FloatArray, memory_mb: FloatArray) -> DomainRows:
    """The samples of the domains of a node.

    Parameters
    ----------
    grid : Grid
    series : DomainSeries
    cores, memory_mb : (n,) float64
        Size of the node.
    """
    age_s = grid.times_s - series.time_s
    with np.errstate(invalid="ignore"):
        known = (age_s <= _KNOWN_STEPS * grid.step_s) & ~(series.up == 0)
        scraped = known & (age_s < grid.step_s)
    figures = {name: np.where(known, values, np.nan) for name, values in series.figures.items()}
    # A domain that the exporter listed at its last scrape and that is not off; it may lack any figure.
    listed = ~np.isnan(figures.get("listed", figures["vcpus"]))
    for i in np.flatnonzero(known & ~scraped).tolist():
        listed[:, i] = listed[:, i - 1] if i else False
    listed |= np.isnan(figures["vcpus"]).all(axis=1, keepdims=True) & ~np.isnan(figures["allocation"])
    present = listed & np.isnan(figures["off"])
    figures = {name: np.where(present, values, np.nan) for name, values in figures.items()}
    largest_cores, largest_mb = (_LARGEST_ALLOCATION * _held(size) for size in (cores, memory_mb))
    memory = figures["allocation"] / _MB
    persists = max(2, math.ceil(_PERSISTS_S / grid.step_s))
    fields = {
        "cpu": _believed(_within_sizes(figures["vcpus"], largest_cores), persists, 1.0),
        "mem": _believed(_within_sizes(memory, largest_mb), persists, _MEMORY_FALLS),
    }
    columns = _new_columns(scraped, figures["cpu_time"], series.time_s)
    usage = _rates(figures["cpu_time"], series.time_s, columns)
    with np.errstate(invalid="ignore"):
        usage = np.where(usage > _MOST_USAGE * _held(cores), np.nan, usage)
    fields["cpu_usage"] = usage
    if "unused" in figures:
        reserve = memory - figures.get("available", np.full(memory.shape, np.nan)) / _MB
        fields["mem_usage"] = _memory_usage(memory, figures["unused"] / _MB, reserve, persists)
    if "rss" in figures:
        fields["mem_rss"] = figures["rss"] / _MB
    if "wait" in figures:
        wait, run = (_rates(figures[name], series.time_s, columns) for name in ("wait", "run"))
        # Exporters without the time that vCPUs ran: it is that of the domain.
        run = np.where(np.isnan(figures["run"]).all(axis=1, keepdims=True), usage, run)
        fields |= checked_domain_waits(wait, run, figures["waiting_vcpus"], figures["vcpus"], usage)
    return DomainRows(series.names, known, present, fields)


def _held(size: FloatArray) -> FloatArray:
    """A size of the node, with the largest one where it is not known."""
    if np.isnan(size).all():
        return np.full(size.size, np.inf)
    return np.where(np.isnan(size), np.nanmax(size), size)


def _within_sizes(values: FloatArray, largest: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.where((values > 0) & (values <= largest), values, np.nan)


def _believed(sizes: FloatArray, points: int, falls: float) -> FloatArray:
    """Sizes (d, n); a much smaller one counts once it has persisted for some points: it lowers what is booked."""
    result = sizes.copy()
    for row in _changing(sizes):
        recent = _highest_of_recent(sizes[row], points)
        with np.errstate(invalid="ignore"):
            result[row] = np.where(sizes[row] < recent / falls, recent, sizes[row])
    return result


def _changing(values: FloatArray) -> list[int]:
    """The rows that have more than one value."""
    if not values.size:
        return []
    filled = np.where(np.isnan(values), -np.inf, values), np.where(np.isnan(values), np.inf, values)
    return np.flatnonzero(filled[0].max(axis=1) > filled[1].min(axis=1)).tolist()


def _highest_of_recent(values: FloatArray, points: int) -> FloatArray:
    recent = values.copy()
    for back in range(1, min(points, values.size - 1) + 1):
        recent[back:] = np.fmax(recent[back:], values[:-back])
    return recent


def _new_columns(scraped: BoolArray, counters: FloatArray, time_s: FloatArray) -> list[int]:
    """The points with new counters; an exporter that repeats old ones is waited for.

    Domains that all stop at once, or all of those that were busy, are repeated values. One alone may be paused.
    """
    columns = np.flatnonzero(scraped)
    columns = columns[np.diff(time_s[columns], prepend=-np.inf) > 0]
    if counters.shape[0] < 2 or columns.size < 2:
        return columns.tolist()
    growth = np.diff(counters[:, columns], axis=1)
    with np.errstate(invalid="ignore"):
        busy = growth > _BUSY_CORES * np.diff(time_s[columns])
    known, still = ~np.isnan(growth), growth == 0
    was_busy = known & np.hstack([np.zeros((counters.shape[0], 1), dtype=bool), busy[:, :-1]])
    repeated = [((of & ~still).sum(axis=0) == 0) & (of.sum(axis=0) > 1) for of in (known, was_busy)]
    return columns[np.concatenate([[True], ~(repeated[0] | repeated[1])])].tolist()


def _rates(counters: FloatArray, time_s: FloatArray, columns: list[int]) -> FloatArray:
    """Increase per second (d, n) at these points since the one before; NaN where a counter decreased."""
    rates = np.full(counters.shape, np.nan)
    if len(columns) > 1:
        growth = _without_rounding(np.diff(counters[:, columns], axis=1))
        with np.errstate(invalid="ignore"):
            rates[:, columns[1:]] = np.where(growth >= 0, growth / np.diff(time_s[columns]), np.nan)
    return rates


def _memory_usage(memory: FloatArray, unused: FloatArray, reserve: FloatArray, points: int) -> FloatArray:
    """What guests use, MB: their statistics are of the size that they had at their last report.

    After a balloon has moved, they count when the guest's kernel has the same reserve as before, or after a while.
    """
    with np.errstate(invalid="ignore"):
        usage = np.where((unused >= 0) & (unused <= memory), memory - unused, np.nan)
        for row in _changing(memory):
            size, own = memory[row], reserve[row]
            for back in range(1, min(points, size.size - 1) + 1):
                moved = ~np.isnan(size[:-back]) & (size[:-back] != size[back:])
                agrees = np.abs(own[back:] - own[:-back]) <= _RESERVE_TOLERANCE * size[back:]
                usage[row, back:] = np.where(moved & ~agrees, np.nan, usage[row, back:])
    return usage


class Agreed(NamedTuple):
    """What a node and its domains used when they agreed last, before the last point of a grid.

    That point is the first one of the grid that follows.

    Attributes
    ----------
    attribution : NodeAttribution
    time_s : float
        The last scrape that was compared, Unix seconds.
    """

    attribution: NodeAttribution
    time_s: float


def compare(rows: NodeRows, domains: DomainRows, before: Agreed | None = None) -> Agreed:
    """Remove what a node and its domains contradict each other in: a usage that is too low, domains that are missing.

    Parameters
    ----------
    rows : NodeRows
    domains : DomainRows
        On the same grid.
    before : Agreed, optional
        The result for an earlier period, with which later scrapes are compared.
    """
    usage = rows.fields["cpu_usage"]
    # Both exporters are not scraped at the same time: the sum must fit to the node before, now, or after.
    near = np.fmax(usage, np.fmax(_shifted(usage, 1), _shifted(usage, -1)))
    cores, elapsed_s = rows.fields["cpu"], rows.fields["elapsed_time"] / 1000.0
    with np.errstate(invalid="ignore"):
        margin = cores * (_TOLERANCE + _VMS_READ_S / elapsed_s)
        contradicted = np.nansum(domains.fields["cpu_usage"], axis=0) > (1 + _VMS_TOLERANCE) * near + margin
    for name in ("cpu_usage", "elapsed_time"):
        rows.fields[name] = np.where(contradicted, np.nan, rows.fields[name])
    return _attribute(rows, domains, before or Agreed(NodeAttribution(), -math.inf))


def _attribute(rows: NodeRows, domains: DomainRows, before: Agreed) -> Agreed:
    """Remove domains that vanished, or their usage that fell, while the node goes on as before."""
    attribution, last_s = before.attribution.copy(), before.time_s
    agreed: Agreed | None = None
    resident = domains.fields.get("mem_rss", np.full(domains.present.shape, np.nan))
    node = [rows.fields[name].tolist() for name in ("cpu_usage", "cpu", "mem_usage", "mem")]
    with np.errstate(invalid="ignore"):
        later = rows.scraped & domains.known & (rows.time_s > before.time_s)
    for i in np.flatnonzero(later).tolist():
        there = np.flatnonzero(domains.present[:, i])
        names = [domains.names[place] for place in there.tolist()]
        used, held = (
            dict(zip(names, _known(of[there, i]), strict=True)) for of in (domains.fields["cpu_usage"], resident)
        )
        if i == rows.scraped.size - 1:
            agreed = Agreed(attribution.copy(), last_s)
        last_s = float(rows.time_s[i])
        node_usage, cores, node_memory, size = (None if math.isnan(of[i]) else of[i] for of in node)
        unknown = attribution.compare(
            ResourceUsage(node_usage, used, cores or 0.0), ResourceUsage(node_memory, held, size or 0.0)
        )
        if unknown is Unknown.VMS:
            domains.known[i] = False
            domains.present[:, i] = False
        elif unknown is Unknown.VMS_CPU:
            for name in ("cpu_usage", "cpu_wait", "cpu_wait_share"):
                if name in domains.fields:
                    domains.fields[name][:, i] = np.nan
    return agreed or Agreed(attribution, last_s)


def _known(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def add_bookings(rows: NodeRows, domains: DomainRows) -> None:
    """Add what is booked on a node.

    Parameters
    ----------
    rows : NodeRows
    domains : DomainRows
        On the same grid.
    """
    for name in ("cpu", "mem"):
        # A sum with an unknown part is unknown.
        total = np.where(domains.present, domains.fields[name], 0.0).sum(axis=0)
        rows.fields[f"oc_{name}"] = np.where(domains.known, total / rows.fields[name], np.nan)
    rows.fields["vm_number"] = np.where(domains.known & rows.scraped, domains.present.sum(axis=0), np.nan)


def _shifted(values: FloatArray, by: int) -> FloatArray:
    result = np.full(values.size, np.nan)
    if by > 0:
        result[by:] = values[:-by]
    else:
        result[:by] = values[-by:]
    return result


def build_period(rows: NodeRows, domains: DomainRows, start_ms: int, end_ms: int) -> Period:
    """The samples of a period, its end excluded, at the times at which the node was scraped.

    A domain has samples where it is present.
    """
    time_ms = np.rint(1000.0 * np.where(rows.scraped, rows.time_s, -1.0)).astype(np.int64)
    points = rows.scraped & (time_ms >= start_ms) & (time_ms < end_ms)
    times = time_ms[points]
    present = domains.present[:, points]
    ordered = sorted(np.flatnonzero(present.any(axis=1)).tolist(), key=lambda row: domains.names[row])
    columns = np.ix_(ordered, np.flatnonzero(points))
    history = DomainHistory(
        tuple(domains.names[row] for row in ordered),
        times,
        present[ordered],
        {field: values[columns] for field, values in domains.fields.items()},
    )
    return Period(Samples(times, {name: values[points] for name, values in rows.fields.items()}), history)
