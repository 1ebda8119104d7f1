"""The published status as a table or as JSON, once or until interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..cli.tables import first_that_fits, print_json, print_whole
from ..common.errors import UsageError
from ..slices import CPU, MEMORY, RESOURCES, Resource
from .explanation import explain_limits
from .status_file import PublishedNode, PublishedResource, StatusFileError, read_status

_FILE_WIDTH = 160

#: Widths of the column of names on terminals that are too narrow for whole names.
_NAME_WIDTHS = (60, 40, 24, 12)

_COLOURS = {"ok": "green", "stale": "yellow", "unknown": "red", "outdated": "red"}

_WATCH_PERIOD_S = 1.0

_MISSING = "-"

_DEFINITIONS = (
    "free: published free, what may still be placed; booked now: allocated to the VMs at the end of the slice; "
    "of: what the node has; ratio: (booked now + free) / of"
)
_RISK_DEFINITION = "; risk: target (share of the last slices in which the node was full, or more was used than left)"
_WHY_DEFINITION = (
    "; why (on wide terminals and in --json): free of what would be free without guards: what each guard left"
)
_CLOSED_DEFINITION = "; closed: less than nothing is free, and what VMs leave is not offered: ratio at most 1"
_CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it is shown at a time, Unix seconds."""

    name: str
    node: PublishedNode
    now_s: float

    @property
    def state(self) -> str:
        """The published state, or ``outdated`` after its validity."""
        valid_until = self.node.valid_until
        return "outdated" if valid_until is not None and self.now_s > valid_until else self.node.state

    @property
    def age_s(self) -> float | None:
        """Seconds since the end of the slice; None before the first one."""
        return None if self.node.slice_end is None else max(0.0, self.now_s - self.node.slice_end)

    def ratio(self, resource: Resource) -> float | None:
        """(booked now + free) / config, at most 1 for a closed resource; None where it is not known."""
        free, published = self.node.of(resource)
        if not published.config or published.booked_now is None:
            return None
        booked_now, config = published.booked_now, published.config
        return (min(booked_now, config) if published.closed else booked_now + free) / config


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes
    ----------
    group, heading : str
        Upper and lower line of the heading.
    value : callable
        The text of a node.
    wide_only : bool
        Left out on narrow terminals.
    shown : callable
        Whether the resources of the nodes need it.
    numeric : bool
        Aligned to the right.
    """

    group: str
    heading: str
    value: Callable[[NodeRow], str]
    wide_only: bool = False
    shown: Callable[[Iterable[PublishedResource]], bool] = lambda _: True
    numeric: bool = True


def _free(resource: Resource, row: NodeRow) -> str:
    free, published = row.node.of(resource)
    return _CLOSED if published.closed else _amount(resource, free)


def _booked_now(resource: Resource, row: NodeRow) -> str:
    return _amount(resource, row.node.of(resource)[1].booked_now)


def _config(resource: Resource, row: NodeRow) -> str:
    return _amount(resource, row.node.of(resource)[1].config)


def _ratio(resource: Resource, row: NodeRow) -> str:
    ratio = row.ratio(resource)
    return _MISSING if ratio is None else f"{ratio:.2f}"


def _risk(resource: Resource, row: NodeRow) -> str:
    """Target risk and violation rate: ``5% (4%)``, ``- (4%)`` for a strategy without a target."""
    _, published = row.node.of(resource)
    if published.risk is None and published.violation_rate is None:
        return _MISSING
    target = _MISSING if published.risk is None else f"{100 * published.risk:.3g}%"
    rate = _MISSING if published.violation_rate is None else f"{100 * published.violation_rate:.0f}%"
    return f"{target} ({rate})"


def _why(resource: Resource, row: NodeRow) -> str:
    """Published free of what would be free without guards, and what each guard left."""
    free, published = row.node.of(resource)
    return explain_limits(resource, free, published.unguarded, published.limits) or _MISSING


def _amount(resource: Resource, amount: float | None) -> str:
    return _MISSING if amount is None else f"{amount / resource.display_scale:.1f}"


def _age(row: NodeRow) -> str:
    age_s = row.age_s
    if age_s is None:
        return _MISSING
    if age_s < 120:
        return f"{math.floor(age_s)} s"
    return f"{age_s / 60:.0f} min" if age_s < 7200 else f"{age_s / 3600:.0f} h"


def _has_risk(resources: Iterable[PublishedResource]) -> bool:
    return any(published.risk is not None or published.violation_rate is not None for published in resources)


def _is_limited(resources: Iterable[PublishedResource]) -> bool:
    return any(published.limits for published in resources)


def _resource_columns(resource: Resource) -> tuple[Column, ...]:
    return (
        Column(resource.title, "ratio", partial(_ratio, resource)),
        Column(resource.title, "booked now", partial(_booked_now, resource), wide_only=True),
        Column(resource.title, "of", partial(_config, resource), wide_only=True),
        Column("risk", resource.title, partial(_risk, resource), shown=_has_risk),
    )


#: After the node's name and state.
COLUMNS: tuple[Column, ...] = (
    *(Column("free", one.display_unit, partial(_free, one)) for one in RESOURCES),
    *_resource_columns(CPU),
    *_resource_columns(MEMORY),
    Column("age of", "the slice", _age, wide_only=True),
    Column("", "strategy", lambda row: row.node.strategy, numeric=False),
    *(
        Column("why", f"{one.title}, {one.display_unit}", partial(_why, one), numeric=False, shown=_is_limited)
        for one in RESOURCES
    ),
)


def show_status(path: Path, *, json: bool = False) -> int:
    """Print the status; 1 when a node is stale, unknown or outdated, else 0.

    Parameters
    ----------
    path : Path
        The status file.
    json : bool
        Print the list of :func:`status_objects` instead of a table.

    Raises
    ------
    UsageError
        When there is no status.
    """
    try:
        nodes, now_s = read_status(path), time.time()
    except StatusFileError as error:
        raise UsageError(str(error)) from None
    if json:
        print_json(status_objects(nodes, now_s))
    else:
        console = _console()
        print_whole(console, _tables(nodes, now_s))
        console.print(_definitions(nodes))
    return int(any(row.state != "ok" for row in _rows(nodes, now_s)))


def watch_status(path: Path, sleep: Callable[[float], object] = time.sleep) -> None:
    """Keep the table on the screen until Ctrl-C; without a terminal, print it each time the status changes."""
    console = _console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_current(path, console)[0], refresh=True)
                sleep(_WATCH_PERIOD_S)
    printed: object = None
    while True:
        content, status = _current(path, console)
        if status != printed:
            console.print(content)
            console.file.flush()
            printed = status
        sleep(_WATCH_PERIOD_S)


def status_table(
    nodes: Mapping[str, PublishedNode],
    now_s: float,
    *,
    brief: bool = False,
    why: bool = True,
    name_width: int | None = None,
) -> Table:
    """A row per node with the columns of :data:`COLUMNS`.

    Parameters
    ----------
    nodes : mapping of node to PublishedNode
    now_s : float
        Unix seconds.
    brief : bool
        Without the columns for wide terminals.
    why : bool
        With the limits of the guards, where there are any.
    name_width : int, optional
        Longer names are folded; by default none is.
    """
    resources = _resources(nodes)
    columns = [
        column
        for column in COLUMNS
        if not (brief and column.wide_only) and (why or column.group != "why") and column.shown(resources)
    ]
    table = Table(box=None, title="Free resources of each node", title_justify="left")
    table.add_column("\nnode", overflow="fold", width=name_width, no_wrap=name_width is None)
    table.add_column("\nstate", no_wrap=True)
    for column in columns:
        heading = f"{column.group}\n{column.heading}"
        table.add_column(heading, justify="right" if column.numeric else "left", no_wrap=True)
    rows = _rows(nodes, now_s)
    for row in rows:
        state = Text(row.state, style=_COLOURS.get(row.state, ""))
        table.add_row(Text(row.name), state, *(Text(column.value(row)) for column in columns))
    if not nodes:
        table.caption = "no node"
    elif any(row.state == "outdated" for row in rows):
        table.caption = "outdated: scroogevm.py has stopped publishing; is it running?"
    return table


def status_objects(nodes: Mapping[str, PublishedNode], now_s: float) -> list[dict[str, Any]]:
    """The status as JSON objects: times in seconds, CPU in cores, memory in MB, None where a figure is missing."""
    return [
        {
            "node": row.name,
            "state": row.state,
            "slice_end": row.node.slice_end,
            "age_s": row.age_s,
            "strategy": row.node.strategy,
            **{resource.name: _resource_object(row, resource) for resource in RESOURCES},
        }
        for row in _rows(nodes, now_s)
    ]


def _resource_object(row: NodeRow, resource: Resource) -> dict[str, Any]:
    free, published = row.node.of(resource)
    return {
        "state": published.state,
        "free": free,
        "booked": published.booked,
        "booked_now": published.booked_now,
        "config": published.config,
        "ratio": row.ratio(resource),
        "target_risk": published.risk,
        "violation_rate": published.violation_rate,
        "forecast_violation_rate": published.forecast_violation_rate,
        "unguarded": published.unguarded,
        "closed": published.closed,
        "limits": published.limits,
    }


def _rows(nodes: Mapping[str, PublishedNode], now_s: float) -> list[NodeRow]:
    return [NodeRow(name, node, now_s) for name, node in nodes.items()]


def _resources(nodes: Mapping[str, PublishedNode]) -> list[PublishedResource]:
    return [node.of(resource)[1] for node in nodes.values() for resource in RESOURCES]


def _definitions(nodes: Mapping[str, PublishedNode]) -> Text:
    resources = _resources(nodes)
    texts = (
        _DEFINITIONS,
        _RISK_DEFINITION if _has_risk(resources) else "",
        _WHY_DEFINITION if _is_limited(resources) else "",
        _CLOSED_DEFINITION if any(published.closed for published in resources) else "",
    )
    return Text("\n" + "".join(texts), style="dim")


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def _tables(nodes: Mapping[str, PublishedNode], now_s: float) -> Iterator[Table]:
    """The whole table, then narrower ones."""
    yield status_table(nodes, now_s)
    if _is_limited(_resources(nodes)):
        yield status_table(nodes, now_s, why=False)
    longest = max(map(len, nodes), default=0)
    for width in _NAME_WIDTHS:
        yield status_table(nodes, now_s, brief=True, why=False, name_width=min(longest, width))


def _current(path: Path, console: Console) -> tuple[RenderableType, object]:
    """What is shown now, and a value that differs when it changes for another reason than age."""
    try:
        nodes, now_s = read_status(path), time.time()
    except StatusFileError as error:
        return Text(str(error), style="red"), str(error)
    status = nodes, [row.state for row in _rows(nodes, now_s)]
    return Group(first_that_fits(console, _tables(nodes, now_s)), _definitions(nodes)), status
