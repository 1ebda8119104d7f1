"""The view model of the status page: everything that the template shows, as text and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from ...common.text import printable
from ...numerics import FloatArray
from ...slices import RESOURCES, Resource
from ...status import NodeStatus, ResourceStatus, guard_reasons
from .history import COLUMNS, END_COLUMN, RESOURCE_COLUMNS, SLICES_KEPT, Snapshot
from .query import LONGEST_FILTER, PAGE_STATES, PageState, Query
from .sparklines import HEIGHT, STEP, WIDTH, Sparkline, draw_sparkline

NODES_PER_PAGE = 200

#: Shown where a figure is missing.
NO_FIGURE = "-"


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page depends on beside the statuses.

    Attributes
    ----------
    slice_s : float
        Duration of a slice.
    valid_s : float
        A status is outdated so long after the end of its slice.
    slices_kept : int
        Slices of a chart.
    refresh_s : int
        After so many seconds the browser reloads the page.
    """

    slice_s: float
    valid_s: float
    slices_kept: int = SLICES_KEPT
    refresh_s: int = 10


@dataclass(frozen=True, slots=True)
class Amounts:
    """One resource of a node, or of all nodes.

    Attributes
    ----------
    free, booked_now, config, ratio : str
    last_free : str
        What was published last as free; empty unless the resource is stale.
    state : str
        Empty when it is the state of the node.
    guards : str
        What the guards left of the strategy's figure; empty when they lowered nothing.
    realised : str
        The share of recent slices in which the node was full or exceeded; empty when there was none.
    contention, contention_level : str
        What its VMs suffer from, empty when they do not; ``none``, ``some`` or ``high``.
    chart : Sparkline
    """

    free: str
    booked_now: str
    config: str
    ratio: str
    last_free: str
    state: str
    chart: Sparkline
    guards: str = ""
    realised: str = ""
    contention: str = ""
    contention_level: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A node. ``alternatives`` are strategies with the free amount of each resource, empty when there is only one."""

    node: str
    state: PageState
    amounts: Sequence[Amounts]
    age: str
    strategy: str
    alternatives: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the navigation."""

    text: str
    url: str
    current: bool
    state: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page; texts are not escaped.

    Attributes
    ----------
    time, slice, period : str
        Now, the duration of a slice and that of a chart.
    refresh_s : int
    query : Query
    pause_url, resume_url : str
    resources : sequence of Resource
    totals : sequence of Amounts
        Of all nodes, in the order of the resources.
    states, pages : sequence of Link
        Filters by state; pages of the table, empty if there is only one.
    matches : str
        How many nodes match the filter; empty when all do.
    contended : bool
        Whether VMs of a shown node suffer, so that there is a column that says from what.
    empty : str
        Why there is no row.
    rows : sequence of Row
    slices, chart_units, chart_width, chart_height : int
        Slices of a chart, its width in SVG units, its size in pixels.
    longest_filter : int
    """

    time: str
    slice: str
    period: str
    refresh_s: int
    query: Query
    pause_url: str
    resume_url: str
    resources: Sequence[Resource]
    totals: Sequence[Amounts]
    states: Sequence[Link]
    pages: Sequence[Link]
    matches: str
    contended: bool
    empty: str
    rows: Sequence[Row]
    slices: int
    chart_units: int
    chart_width: int = WIDTH
    chart_height: int = HEIGHT
    longest_filter: int = LONGEST_FILTER


def build_page(settings: PageSettings, snapshot: Snapshot, query: Query, now_s: float) -> Page:
    """The page for a query at a time, Unix seconds."""
    statuses = snapshot.statuses
    states = [_state(settings, status, now_s) for status in statuses]
    matching = [
        (status, state)
        for status, state in zip(statuses, states, strict=True)
        if query.node in status.node.lower() and query.state in {"", state}
    ]
    pages = max(1, -(-len(matching) // NODES_PER_PAGE))
    page = min(query.page, pages)
    charts = _Charts(settings, snapshot)
    rows = [
        _row(status, state, charts, now_s)
        for status, state in matching[(page - 1) * NODES_PER_PAGE : page * NODES_PER_PAGE]
    ]
    return Page(
        time=datetime.fromtimestamp(now_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        slice=_duration(settings.slice_s),
        period=_duration(settings.slices_kept * settings.slice_s),
        refresh_s=settings.refresh_s if query.refresh else 0,
        query=query,
        pause_url=query.link(refresh="0"),
        resume_url=query.link(refresh=""),
        resources=RESOURCES,
        totals=_totals(statuses, charts),
        states=_state_links(states, query),
        pages=[Link(str(k), query.link(page=k), k == page) for k in range(1, pages + 1)] if pages > 1 else [],
        matches=f"{len(matching)} of {len(statuses)}" if len(matching) != len(statuses) else "",
        contended=any(amounts.contention for row in rows for amounts in row.amounts),
        empty="no node matches" if statuses else "nothing is published yet",
        rows=rows,
        slices=settings.slices_kept,
        chart_units=STEP * settings.slices_kept,
    )


class _Charts:
    """Charts of the histories on a common time axis that ends with the newest slice."""

    def __init__(self, settings: PageSettings, snapshot: Snapshot) -> None:
        self._slices = settings.slices_kept
        self._slice_s = settings.slice_s
        self._histories = snapshot.histories
        ends = (history[-1, END_COLUMN] for history in snapshot.histories.values() if len(history))
        self._newest_s = max(ends, default=math.nan)

    def of_node(self, node: str) -> list[Sparkline]:
        """A chart per resource."""
        return self._draw(self._aligned(self._histories.get(node)))

    def of_all(self) -> list[Sparkline]:
        """Charts of the sums over all nodes; a slice is missing where every node misses it."""
        total, present = np.zeros((self._slices, COLUMNS)), np.zeros((self._slices, COLUMNS), dtype=bool)
        for history in self._histories.values():
            aligned = self._aligned(history)
            known = ~np.isnan(aligned)
            total[known] += aligned[known]
            present |= known
        return self._draw(np.where(present, total, np.nan))

    def _aligned(self, history: FloatArray | None) -> FloatArray:
        """(slices, 7) float64 on the common time axis, NaN where a slice is missing."""
        aligned = np.full((self._slices, COLUMNS), np.nan)
        if history is not None and len(history):
            ages = np.rint((self._newest_s - history[:, END_COLUMN]) / self._slice_s).astype(np.int64)
            index = self._slices - 1 - ages
            aligned[index[index >= 0]] = history[index >= 0]
        return aligned

    def _draw(self, aligned: FloatArray) -> list[Sparkline]:
        return [draw_sparkline(resource, *aligned[:, RESOURCE_COLUMNS[resource]].T) for resource in RESOURCES]


def _state(settings: PageSettings, status: NodeStatus, now_s: float) -> PageState:
    # Outdated: the daemon serves pages but has stopped publishing.
    return "outdated" if now_s > status.slice_end_s + settings.valid_s else status.state


def _state_links(states: Sequence[PageState], query: Query) -> list[Link]:
    counts = [(state, states.count(state)) for state in PAGE_STATES]
    return [Link(f"{len(states)} nodes", query.link(state="", page=1), not query.state)] + [
        Link(f"{count} {state}", query.link(state=state, page=1), query.state == state, state)
        for state, count in counts
        if count or query.state == state
    ]


def _row(status: NodeStatus, state: PageState, charts: _Charts, now_s: float) -> Row:
    of_resources = [status.of(resource) for resource in RESOURCES]
    return Row(
        node=status.node,
        state=state,
        amounts=[
            _amounts(resource, published, status, chart)
            for resource, published, chart in zip(RESOURCES, of_resources, charts.of_node(status.node), strict=True)
        ],
        age=NO_FIGURE if math.isnan(status.slice_end_s) else _duration(max(0.0, now_s - status.slice_end_s)),
        strategy=status.strategy,
        alternatives=_alternatives(of_resources),
    )


def _amounts(resource: Resource, published: ResourceStatus, status: NodeStatus, chart: Sparkline) -> Amounts:
    last, level, text = published.last, published.contention.level.text, printable(published.contention_text)
    return Amounts(
        free=_figure(published.free, resource),
        booked_now=_figure(last.booked_now, resource) if last else NO_FIGURE,
        config=_figure(last.config, resource) if last else NO_FIGURE,
        ratio=_ratio(published.ratio),
        last_free=_figure(last.free, resource) if last and published.state == "stale" else "",
        state=published.state if published.state != status.state else "",
        chart=chart,
        guards=_guards(resource, published),
        realised=f"{last.violation_rate:.0%}" if last and last.violation_rate else "",
        contention=f"{resource.title} {level}: {text}" if text else "",
        contention_level=level,
    )


def _guards(resource: Resource, published: ResourceStatus) -> str:
    """``30.1: horizon 10.2, ramp 7.5``."""
    last = published.last
    if last is None or last.unguarded is None or published.state != "ok" or not (last.limits or last.closed):
        return ""
    reasons = guard_reasons(last.limits, closed=last.closed, text_of=lambda amount: _figure(amount, resource))
    return f"{_figure(last.unguarded, resource)}: {reasons}"


def _alternatives(of_resources: Iterable[ResourceStatus]) -> list[tuple[str, list[str]]]:
    by_resource = [(resource, one.others) for resource, one in zip(RESOURCES, of_resources, strict=True)]
    names = next((amounts for _, amounts in by_resource if amounts), {})
    if len(names) < 2:
        return []
    return [
        (
            name,
            [_figure(amounts[name], resource) if name in amounts else NO_FIGURE for resource, amounts in by_resource],
        )
        for name in names
    ]


def _totals(statuses: Sequence[NodeStatus], charts: _Charts) -> list[Amounts]:
    return [_total(resource, statuses, chart) for resource, chart in zip(RESOURCES, charts.of_all(), strict=True)]


def _total(resource: Resource, statuses: Sequence[NodeStatus], chart: Sparkline) -> Amounts:
    last = [figures for status in statuses if (figures := status.of(resource).last) is not None]
    known = [published for status in statuses if (published := status.of(resource)).last is not None]
    free, capacity = (sum(getattr(published, name) for published in known) for name in ("free", "capacity"))
    booked_now, config = sum(figures.booked_now for figures in last), sum(figures.config for figures in last)
    return Amounts(
        free=_figure(free, resource),
        booked_now=_figure(booked_now, resource),
        config=_figure(config, resource),
        ratio=_ratio(capacity / config if config > 0 else math.nan),
        last_free="",
        state="",
        chart=chart,
    )


def _figure(value: float, resource: Resource) -> str:
    return f"{value / resource.display_scale:.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else NO_FIGURE


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{math.floor(seconds)} s"
