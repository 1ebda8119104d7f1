"""Reads a long time of many nodes with few queries, group by group: the memory that it takes is that of a group.

The idle time of a node is read in short steps: that shows its peaks at a small part of the cost of all CPU modes. In
long steps everything is read that confirms it, see :mod:`.prometheus_samples`. Where both do not agree, there are no
samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..common.threads import map_until
from ..numerics import FloatArray
from ..samples import Period, Samples
from .prometheus_groups import DOMAINS_PER_NODE, Figures, GroupReader, node_series
from .prometheus_nodes import Node
from .prometheus_queries import (
    FINE_DOMAIN_QUERIES,
    FINE_QUERIES,
    IDLE,
    IDLE_OF_DUPLICATES,
    IDLE_SERIES,
    LIBVIRT_UP,
    MEMORY_LEAST,
    SLOW_DOMAIN_QUERIES,
    SLOW_QUERIES,
    Query,
    libvirt_scrapes,
    memory_least,
    node_scrapes,
)
from .prometheus_samples import (
    GROWS_S,
    DomainRows,
    DomainSeries,
    NodeRows,
    NodeSeries,
    add_bookings,
    build_period,
    domain_rows,
    lookback_points,
    node_rows,
)
from .prometheus_server import Grid, Series

#: The longest steps of the figures of nodes, of the usage of domains, and of what changes rarely.
_NODE_S, _DOMAIN_S, _SLOW_S = 60, 300, 1800
#: A slice has at least so many of the first two.
_PER_SLICE, _OF_DOMAINS_PER_SLICE = 20, 6
#: Queries at once.
_THREADS = 2
#: Share of the samples of one query that a figure of a group may have: several figures are held at once.
_SHARE = 12
#: Idle time in short steps is confirmed when the usage differs by this share of the node's cores at most.
_AGREES = 0.02

_Places = np.ndarray[tuple[int], np.dtype[np.intp]]


class Steps(NamedTuple):
    """Seconds between points: of figures of nodes, of the usage of domains, of what changes rarely.

    Each is a multiple of the one before it; the first is a multiple of the scrape interval, so that the scrapes of two
    points are as far apart as the points.
    """

    node_s: int
    domain_s: int
    slow_s: int


def steps_of(interval_s: int, slice_s: float) -> Steps:
    """The steps for a scrape interval and a length of slices."""

    def step(unit_s: int, longest_s: float) -> int:
        return unit_s * max(1, math.floor(longest_s / unit_s))

    node_s = step(interval_s, min(_NODE_S, slice_s / _PER_SLICE))
    domain_s = step(node_s, min(_DOMAIN_S, slice_s / _OF_DOMAINS_PER_SLICE))
    return Steps(node_s, domain_s, step(domain_s, min(_SLOW_S, slice_s)))


#: Figures: scrapes in a step of the node before each point.
_NODE_SCRAPES, _LIBVIRT_SCRAPES = "node_scrapes", "libvirt_scrapes"


#: Figures that name the domains.
_OF_LIBVIRT = (*FINE_DOMAIN_QUERIES, *SLOW_DOMAIN_QUERIES, _LIBVIRT_SCRAPES)
_OF_EACH = ("vcpus", "allocation", "cpu_time")


class _Grids(NamedTuple):
    node: Grid
    domain: Grid
    slow: Grid
    #: Scrapes in a step of the node, when none fails.
    scrapes: int


def read_history(
    reader: GroupReader, nodes: Sequence[Node], start_ms: int, end_ms: int, slice_s: float, max_samples: int
) -> Iterator[tuple[str, Period]]:
    """The samples of each node, in any order.

    Parameters
    ----------
    reader : GroupReader
    nodes : sequence of Node
    start_ms, end_ms : int
        The period, Unix milliseconds; its end is excluded.
    slice_s : float
        Length of the slices for which the samples are needed.
    max_samples : int
        Of one query.

    Raises
    ------
    StoreUnavailable
    """
    if end_ms <= start_ms:
        yield from ((node.name, Period(Samples(np.empty(0, dtype=np.int64), {}), {})) for node in nodes)
        return
    for interval_s in sorted({node.step_s for node in nodes}):
        alike = [node for node in nodes if node.step_s == interval_s]
        steps = steps_of(interval_s, slice_s)
        slow = _slow_grid(start_ms, end_ms, steps)
        grids = _Grids(slow.finer(steps.node_s), slow.finer(steps.domain_s), slow, steps.node_s // interval_s)
        size = max(1, max_samples // _SHARE // (grids.domain.points * DOMAINS_PER_NODE))
        for first in range(0, len(alike), size):
            yield from _read_group(reader, alike[first : first + size], grids, start_ms, end_ms)


def _slow_grid(start_ms: int, end_ms: int, steps: Steps) -> Grid:
    """Points of a period, and some before it for its first samples."""
    last_s = math.ceil(end_ms / 1000 / steps.node_s) * steps.node_s
    before_s = lookback_points(steps.node_s) * steps.node_s + 2 * steps.domain_s
    points = math.ceil((last_s - start_ms / 1000 + before_s) / steps.slow_s) + 1
    return Grid(last_s - (points - 1) * steps.slow_s, points, steps.slow_s)


def _read_group(
    reader: GroupReader, nodes: Sequence[Node], grids: _Grids, start_ms: int, end_ms: int
) -> Iterator[tuple[str, Period]]:
    wanted = [
        (grids.node, {**FINE_QUERIES, _NODE_SCRAPES: node_scrapes(grids.node.step_s)}),
        (grids.domain, {**FINE_DOMAIN_QUERIES, _LIBVIRT_SCRAPES: libvirt_scrapes(grids.node.step_s)}),
        (grids.slow, {**SLOW_QUERIES, **SLOW_DOMAIN_QUERIES}),
        (grids.node.part(0, 1), {MEMORY_LEAST: memory_least(GROWS_S)}),
    ]
    found = reader.divided(_at_once(reader, nodes, wanted))
    _add_missing(reader, nodes, grids, found)
    for node in nodes:
        yield node.name, _period_of(node, found, grids, start_ms, end_ms)


def _period_of(
    node: Node, found: Mapping[str, Mapping[str, list[Series]]], grids: _Grids, start_ms: int, end_ms: int
) -> Period:
    """The samples of a node, from the figures of its group."""
    own = {name: targets.get(node.node, []) for name, targets in found.items()}
    own |= {name: found[name].get(node.libvirt, []) for name in _OF_LIBVIRT}
    time_s = _scrape_times(_one(own[_NODE_SCRAPES], grids.node), grids.node, grids)
    slow = node_series({name: own[name] for name in (*SLOW_QUERIES, MEMORY_LEAST)}, grids.slow)
    # A query for each point's time would take ten times as long, and one for the idle time half of all CPU modes.
    at = slice(None, None, grids.slow.step_s // grids.node.step_s)
    slow = replace(slow, time_s=time_s[at], modes={**slow.modes, "idle": _one(own[IDLE], grids.node)[at]})
    rows = node_rows(grids.node, _fine_series(own, time_s, slow, grids))
    _confirm(rows, node_rows(grids.slow, slow), grids)
    # The size of the node at the points of its domains.
    back = np.clip(np.searchsorted(grids.node.times_s, grids.domain.times_s), 0, grids.node.points - 1)
    sizes = rows.fields["cpu"][back], rows.fields["mem"][back]
    domains = _repeated(domain_rows(grids.domain, _domain_series(own, grids), *sizes), grids)
    add_bookings(rows, domains)
    return build_period(rows, domains, start_ms, end_ms)


def _at_once(reader: GroupReader, nodes: Sequence[Node], wanted: Sequence[tuple[Grid, Mapping[str, Query]]]) -> Figures:
    """Read figures by several queries at once, for a server has several CPUs.

    Raises
    ------
    StoreUnavailable
    """
    jobs = [(grid, name, query) for grid, queries in wanted for name, query in queries.items()]
    found: Figures = {}
    errors: list[Exception] = []

    def read(job: tuple[Grid, str, Query]) -> None:
        grid, name, query = job
        try:
            found.update(reader.figures(nodes, grid, {name: query}))
        except Exception as error:
            errors.append(error)

    for _ in map_until(jobs, read, _THREADS, lambda: 0.0 if errors else math.inf, "history"):
        pass
    if errors:
        raise errors[0]
    return found


def _add_missing(
    reader: GroupReader, nodes: Sequence[Node], grids: _Grids, found: dict[str, Mapping[str, list[Series]]]
) -> None:
    """Replace what is wrong where two jobs scrape a node, and read what exporters without ``libvirt_up`` lack.

    Raises
    ------
    StoreUnavailable
    """

    def has_duplicates(node: Node) -> bool:
        series, cores = (_one(found[name].get(node.node, []), grids.slow) for name in (IDLE_SERIES, "cores"))
        return not np.array_equal(series, cores, equal_nan=True)

    twice = [node for node in nodes if has_duplicates(node)]
    silent = [node for node in nodes if node.libvirt not in found[_LIBVIRT_SCRAPES]]
    for chosen, grid, name, query in (
        (twice, grids.node, IDLE, IDLE_OF_DUPLICATES),
        (silent, grids.domain, _LIBVIRT_SCRAPES, libvirt_scrapes(grids.node.step_s, has_up=False)),
    ):
        if chosen:
            again = reader.divided(reader.figures(chosen, grid, {name: query}))[name]
            found[name] = {**found[name], **again}


def _one(series: Sequence[Series], grid: Grid) -> FloatArray:
    return series[0].values if series else np.full(grid.points, np.nan)


def _scrape_times(counts: FloatArray, grid: Grid, grids: _Grids) -> FloatArray:
    """The last point before which no scrape failed, Unix seconds: scrapes are as far apart as such points."""
    last = np.maximum.accumulate(np.where(counts >= grids.scrapes, np.arange(grid.points), -1))
    return np.where(last >= 0, grid.times_s[last], np.nan)


def _next_of(grid: Grid, slow: Grid) -> _Places:
    """The slow point that is not before each point of a grid, but for the first."""
    return np.clip(np.searchsorted(slow.times_s, grid.times_s), 1, slow.points - 1)


def _fine_series(
    own: Mapping[str, Sequence[Series]], time_s: FloatArray, slow: NodeSeries, grids: _Grids
) -> NodeSeries:
    """Series of a node in short steps: a CPU that is not idle is busy.

    The size of the node is the smaller one of those at two slow points.
    """
    grid = grids.node
    idle_s = _one(own[IDLE], grid)
    after = _next_of(grid, grids.slow)
    cores, memory = (np.fmin(size[after - 1], size[after]) for size in (slow.cores, slow.memory_total))
    return NodeSeries(
        time_s=time_s,
        modes={"user": cores * (time_s - grid.first_s) - idle_s, "system": np.zeros(grid.points), "idle": idle_s},
        cores=cores,
        memory_total=memory,
        memory_available=_one(own["memory_available_fine"], grid),
        memory_least=slow.memory_least,
        waits={},
    )


def _confirm(rows: NodeRows, slow: NodeRows, grids: _Grids) -> None:
    """Remove the CPU usage in short steps whose mean is not the one in long steps, or where that is not confirmed."""
    usage, elapsed_ms = rows.fields["cpu_usage"], rows.fields["elapsed_time"]
    confirmed = np.zeros(usage.size, dtype=bool)
    measured = ~np.isnan(usage)
    step_s, times_s = grids.slow.step_s, grids.node.times_s
    for k in np.flatnonzero(~np.isnan(slow.fields["cpu_usage"])).tolist():
        since_s = slow.time_s[k] - slow.fields["elapsed_time"][k] / 1000
        last_s = grids.slow.first_s + k * step_s
        bounds = last_s - math.floor((last_s - since_s) / step_s) * step_s, last_s
        first, last = np.searchsorted(times_s, bounds, side="right").tolist()
        own = np.flatnonzero(measured[first:last]) + first
        if own.size:
            mean = np.average(usage[own], weights=elapsed_ms[own])
            confirmed[own] = abs(mean - slow.fields["cpu_usage"][k]) <= _AGREES * slow.fields["cpu"][k]
    for name in ("cpu_usage", "elapsed_time"):
        rows.fields[name] = np.where(confirmed, rows.fields[name], np.nan)


def _domain_series(own: Mapping[str, Sequence[Series]], grids: _Grids) -> DomainSeries:
    """Series of the domains of a node; the sizes are the larger ones of two slow points."""
    grid, slow = grids.domain, grids.slow
    names = tuple(sorted({of.labels.get("domain", "") for name in _OF_EACH for of in own[name]} - {""}))
    places = {name: i for i, name in enumerate(names)}

    def table(name: str, points: int) -> FloatArray:
        # Two jobs may scrape an exporter. The least unused memory counts; 0 is none that is reported.
        choose = np.fmin if name == "unused" else np.fmax
        values = np.full((len(names), points), np.nan)
        for series in own[name]:
            if (place := places.get(series.labels.get("domain", ""))) is not None:
                choose(values[place], np.where(series.values == 0, np.nan, series.values), out=values[place])
        return values

    after = _next_of(grid, slow)
    both = {
        name: (values[:, after - 1], values[:, after])
        for name, values in ((name, table(name, slow.points)) for name in SLOW_DOMAIN_QUERIES)
    }
    figures = {name: np.fmax(*of) for name, of in both.items() if name != "off"}
    # One that was off at one of both points was on for a part of the time.
    figures["off"] = both["off"][0] * both["off"][1]
    figures |= {name: table(name, grid.points) for name in ("cpu_time", "unused")}
    # A domain without CPU time is listed where it has a size before and after.
    figures["listed"] = np.where(np.isnan(figures["cpu_time"]), np.add(*both["vcpus"]), 1.0)
    time_s = _scrape_times(_one(own[_LIBVIRT_SCRAPES], grid), grid, grids)
    return DomainSeries(time_s, _one(own[LIBVIRT_UP], grid), names, figures)


def _repeated(rows: DomainRows, grids: _Grids) -> DomainRows:
    """The samples of domains at the points of the node: at the first point of the domains that is not before each."""
    places = np.clip(np.searchsorted(grids.domain.times_s, grids.node.times_s), 0, grids.domain.points - 1)
    fields = {name: values[:, places] for name, values in rows.fields.items()}
    return DomainRows(rows.names, rows.known[places], rows.present[:, places], fields)
