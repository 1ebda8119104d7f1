"""Reads a long time of many nodes, group by group: the memory that it takes depends on the group alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..common.threads import map_until
from ..samples import Period
from .prometheus_groups import DOMAINS_PER_NODE, Figures, GroupReader
from .prometheus_nodes import Node
from .prometheus_queries import LIBVIRT_QUERIES, LISTED, MEMORY_QUERIES, NODE_QUERIES, SIZE_QUERIES, Query
from .prometheus_samples import DomainRows, add_bookings, build_period, compare, domain_rows, lookback_points, node_rows
from .prometheus_server import Grid

#: Queries at once.
_THREADS = 3
#: For how long a server shows the last sample of a series.
_SHOWN_S = 300
#: Share of the samples of one query that a figure of a group may have: several figures are held at once.
_SHARE = 8


def read_history(
    reader: GroupReader, nodes: Sequence[Node], grid: Grid, vm_grid: Grid, start_ms: int, end_ms: int, max_samples: int
) -> Iterator[tuple[str, Period]]:
    """The samples of each node.

    Parameters
    ----------
    reader : GroupReader
    nodes : sequence of Node
    grid, vm_grid : Grid
        Of the figures of nodes and of domains.
    start_ms, end_ms : int
        The period, Unix milliseconds; its end is excluded.
    max_samples : int
        Of one query.

    Raises
    ------
    StoreUnavailable
    """
    if not grid.points or not nodes:
        return
    grid, vm_grid = _extended(grid), _extended(vm_grid)
    size = max(1, max_samples // _SHARE // (vm_grid.points * DOMAINS_PER_NODE))
    for first in range(0, len(nodes), size):
        group = nodes[first : first + size]
        figures, of_libvirt = _at_once(reader, group, [(grid, NODE_QUERIES), (vm_grid, _domain_queries(vm_grid))])
        split = reader.split(group, grid, vm_grid, figures, of_libvirt, {})
        del figures, of_libvirt
        for node, (series, of_domains) in zip(group, split, strict=True):
            rows = node_rows(grid, series)
            places = _places(grid, vm_grid)
            # The size of the node at the points of its domains.
            back = np.clip(np.searchsorted(grid.times_s, vm_grid.times_s), 0, grid.points - 1)
            of_vms = domain_rows(vm_grid, of_domains, rows.fields["cpu"][back], rows.fields["mem"][back])
            domains = _repeated(of_vms, places)
            if grid.step_s == vm_grid.step_s:
                # Means over different times need not agree.
                compare(rows, domains)
            add_bookings(rows, domains)
            yield node.name, build_period(rows, domains, start_ms, end_ms)


def _domain_queries(grid: Grid) -> dict[str, Query]:
    """The figures of domains, without what tells more in short steps only."""
    queries = {**LIBVIRT_QUERIES, **SIZE_QUERIES, "unused": MEMORY_QUERIES["unused"]}
    if grid.step_s >= _SHOWN_S:
        del queries[LISTED]
    return queries


def _at_once(
    reader: GroupReader, nodes: Sequence[Node], wanted: Sequence[tuple[Grid, Mapping[str, Query]]]
) -> list[Figures]:
    """Read figures by several queries at once, for a server has several CPUs.

    Raises
    ------
    StoreUnavailable
    """
    jobs = [(i, grid, name, query) for i, (grid, queries) in enumerate(wanted) for name, query in queries.items()]
    found: list[Figures] = [{} for _ in wanted]
    errors: list[Exception] = []

    def read(job: tuple[int, Grid, str, Query]) -> None:
        i, grid, name, query = job
        try:
            found[i] |= reader.figures(nodes, grid, {name: query})
        except Exception as error:
            errors.append(error)

    for _ in map_until(jobs, read, _THREADS, lambda: 0.0 if errors else math.inf, "history"):
        pass
    if errors:
        raise errors[0]
    return found


def _extended(grid: Grid) -> Grid:
    before = lookback_points(grid.step_s)
    return Grid(grid.first_s - before * grid.step_s, grid.points + before, grid.step_s)


def _places(grid: Grid, vm_grid: Grid) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The first point of the domains that is not before each point of the node: its rate covers that time."""
    return np.clip(np.searchsorted(vm_grid.times_s, grid.times_s), 0, vm_grid.points - 1)


def _repeated(rows: DomainRows, places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> DomainRows:
    fields = {name: values[:, places] for name, values in rows.fields.items()}
    return DomainRows(rows.names, rows.known[places], rows.present[:, places], fields)
