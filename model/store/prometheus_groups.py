"""Reads the series of groups of nodes: one query per figure for many nodes, within limits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..numerics import FloatArray
from .prometheus_nodes import Node
from .prometheus_queries import (
    DOMAIN_WAIT_QUERIES,
    LIBVIRT_QUERIES,
    LIBVIRT_TIME,
    LIBVIRT_UP,
    MEMORY_LEAST,
    MEMORY_QUERIES,
    NODE_QUERIES,
    NODE_TIME,
    NODE_WAIT_QUERIES,
    OTHERWISE_LIBVIRT_TIME,
    SIZE_QUERIES,
    TEXTFILE_WAIT_QUERIES,
    Matcher,
    Query,
    Scope,
    memory_least,
)
from .prometheus_samples import GROWS_S, DomainSeries, NodeSeries
from .prometheus_server import Grid, PrometheusServer, QueryTooLarge, Series

#: Series of a figure that a node is expected to have: of each domain, of each CPU and mode, of each vCPU.
DOMAINS_PER_NODE = 50
_SERIES = {"cpu_modes": 1000, "queue": 130, "wait": 200, "run": 200, "waiting_vcpus": 200}

Figures = dict[str, list[Series]]


class Wanted(NamedTuple):
    """Figures beside those that every read needs.

    Attributes
    ----------
    memory : bool
        Memory that domains use.
    waits : bool
        How long the node and its domains waited.
    """

    memory: bool
    waits: bool


class GroupReader:
    """Reads groups of nodes from a server.

    Parameters
    ----------
    server : PrometheusServer
    label : str
        The label that names exporters.
    extra : tuple of Matcher
        Of all series.
    max_samples : int
        Of one query.
    """

    def __init__(self, server: PrometheusServer, label: str, extra: tuple[Matcher, ...], max_samples: int) -> None:
        self._server = server
        self._label = label
        self._extra = extra
        self._max_samples = max_samples

    def read(self, nodes: Sequence[Node], grid: Grid, wanted: Wanted) -> Iterator[tuple[NodeSeries, DomainSeries]]:
        """The series of each node, in the order of the nodes.

        Raises
        ------
        StoreUnavailable
        """
        figures = self.node_figures(nodes, grid, {**NODE_QUERIES, **(NODE_WAIT_QUERIES if wanted.waits else {})})
        of_libvirt = self.figures(nodes, grid, _domain_queries(wanted))
        of_textfile = self.figures(nodes, grid, TEXTFILE_WAIT_QUERIES) if wanted.waits else {}
        return self._split(nodes, grid, figures, of_libvirt, of_textfile)

    def node_figures(self, nodes: Sequence[Node], grid: Grid, queries: Mapping[str, Query]) -> Figures:
        """The series of figures of all nodes, and the least memory that they had before the grid.

        Raises
        ------
        StoreUnavailable
        """
        before = self.figures(nodes, grid.part(0, 1), {MEMORY_LEAST: memory_least(GROWS_S)})
        return before | self.figures(nodes, grid, queries)

    def divided(self, figures: Figures) -> dict[str, Mapping[str, list[Series]]]:
        """The series of each figure by exporter."""
        return {name: self._by_target(series) for name, series in figures.items()}

    def _split(
        self, nodes: Sequence[Node], grid: Grid, figures: Figures, of_libvirt: Figures, of_textfile: Figures
    ) -> Iterator[tuple[NodeSeries, DomainSeries]]:
        by_node, by_libvirt, by_textfile = (self.divided(of) for of in (figures, of_libvirt, of_textfile))
        for node in nodes:
            own = {name: targets.get(node.node, []) for name, targets in by_node.items()}
            domains = {name: targets.get(node.libvirt, []) for name, targets in by_libvirt.items()}
            textfile = {name: targets.get(node.node, []) for name, targets in by_textfile.items()}
            yield node_series(own, grid), _domain_series(domains, textfile, grid)

    def figures(self, nodes: Sequence[Node], grid: Grid, queries: Mapping[str, Query]) -> Figures:
        """The series of each figure, of all nodes.

        Raises
        ------
        StoreUnavailable
        """
        found = {name: self._query(name, query, nodes, grid) for name, query in queries.items()}
        if LIBVIRT_TIME in found:
            timed = {series.labels.get(self._label) for series in found[LIBVIRT_TIME]}
            others = [node for node in nodes if node.libvirt not in timed]
            if others:
                found[LIBVIRT_TIME] += self._query(LIBVIRT_TIME, OTHERWISE_LIBVIRT_TIME, others, grid)
        return found

    def _query(self, name: str, query: Query, nodes: Sequence[Node], grid: Grid) -> list[Series]:
        samples = _SERIES.get(name, DOMAINS_PER_NODE) * grid.points
        most = max(1, self._max_samples // samples)
        found: list[Series] = []
        for first in range(0, len(nodes), most):
            found += self._halved(query, nodes[first : first + most], grid)
        return found

    def _halved(self, query: Query, nodes: Sequence[Node], grid: Grid) -> list[Series]:
        """The series of these nodes; a query that is too large is halved, by nodes, and for one node by time."""
        scope = Scope(
            label=self._label,
            nodes=tuple(node.node for node in nodes),
            libvirts=tuple(node.libvirt for node in nodes),
            extra=self._extra,
            step_s=grid.step_s,
        )
        try:
            return self._server.query_range(query(scope), grid)
        except QueryTooLarge:
            if len(nodes) > 1:
                half = len(nodes) // 2
                return self._halved(query, nodes[:half], grid) + self._halved(query, nodes[half:], grid)
            if grid.points == 1:
                raise
        half = grid.points // 2
        parts = [(0, half), (half, grid.points - half)]
        found: dict[tuple[tuple[str, str], ...], Series] = {}
        for offset, points in parts:
            for series in self._halved(query, nodes, grid.part(offset, points)):
                key = tuple(sorted(series.labels.items()))
                whole = found.setdefault(key, Series(series.labels, np.full(grid.points, np.nan)))
                whole.values[offset : offset + points] = series.values
        return list(found.values())

    def _by_target(self, series: Sequence[Series]) -> Mapping[str, list[Series]]:
        targets: defaultdict[str, list[Series]] = defaultdict(list)
        for one in series:
            targets[one.labels.get(self._label, "")].append(one)
        return targets


def _domain_queries(wanted: Wanted) -> dict[str, Query]:
    return {
        **LIBVIRT_QUERIES,
        **SIZE_QUERIES,
        **(MEMORY_QUERIES if wanted.memory else {}),
        **(DOMAIN_WAIT_QUERIES if wanted.waits else {}),
    }


def node_series(figures: Mapping[str, Sequence[Series]], grid: Grid) -> NodeSeries:
    """The series of a node by figure."""

    def one(name: str) -> FloatArray:
        return next((series.values for series in figures.get(name, ())), np.full(grid.points, np.nan))

    return NodeSeries(
        time_s=one(NODE_TIME),
        modes={series.labels.get("mode", ""): series.values for series in figures["cpu_modes"]},
        cores=one("cores"),
        memory_total=one("memory_total"),
        memory_available=one("memory_available"),
        memory_least=min((float(series.values[0]) for series in figures.get(MEMORY_LEAST, ())), default=math.nan),
        waits={name: one(name) for name in NODE_WAIT_QUERIES if name in figures},
    )


def _domain_series(
    figures: Mapping[str, Sequence[Series]], textfile: Mapping[str, Sequence[Series]], grid: Grid
) -> DomainSeries:
    def one(name: str) -> FloatArray:
        return next((series.values for series in figures[name]), np.full(grid.points, np.nan))

    listing = (series.labels.get("domain", "") for name in ("vcpus", "allocation") for series in figures[name])
    names = tuple(sorted({name for name in listing if name}))
    places = {name: i for i, name in enumerate(names)}
    found = {}
    for figure in figures:
        if figure in LIBVIRT_QUERIES:
            continue
        values = found[figure] = np.full((len(names), grid.points), np.nan)
        # Of the libvirt exporter where it has the figure, otherwise of a textfile of the node.
        for series in (*textfile.get(figure, ()), *figures[figure]):
            if (place := places.get(series.labels.get("domain", ""))) is not None:
                values[place] = series.values
    return DomainSeries(one(LIBVIRT_TIME), one(LIBVIRT_UP), names, found)
