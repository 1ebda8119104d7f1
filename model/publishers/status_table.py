"""The published status as a table or as JSON, once or until interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..cli.tables import first_that_fits, print_json, print_whole
from ..common.errors import UsageError
from ..slices import CPU, MEMORY, RESOURCES, Resource
from ..status import guard_reasons
from .status_file import PublishedNode, PublishedResource
from .status_sources import StatusSources

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
_RISK_DEFINITION = "; risk: target (violation rate: share of the last slices in which the node was full or exceeded)"
_GUARD_DEFINITION = (
    "; before the guards: what the strategy computes, and what each guard left of it; closed: nothing is offered, not "
    "even what VMs leave"
)


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
        """Capacity / config; None where it is not known."""
        capacity, config = self.node.capacity(resource), self.node.of(resource)[1].config
        return None if capacity is None or not config else capacity / config


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
    risk_only : bool
        Left out unless a node has a target risk or a violation rate.
    guards_only : bool
        Left out on narrow terminals, and unless a guard has lowered a figure.
    contention_only : bool
        Left out unless the VMs of a node suffer, and on very narrow terminals: the lines below the table say it, too.
    numeric : bool
        Aligned to the right.
    """

    group: str
    heading: str
    value: Callable[[NodeRow], str]
    wide_only: bool = False
    risk_only: bool = False
    guards_only: bool = False
    contention_only: bool = False
    numeric: bool = True


def _free(resource: Resource, row: NodeRow) -> str:
    """Published free; a closed resource is named on terminals of any width."""
    free, published = row.node.of(resource)
    return "closed" if published.closed else _amount(resource, free)


def _booked_now(resource: Resource, row: NodeRow) -> str:
    return _amount(resource, row.node.of(resource)[1].booked_now)


def _config(resource: Resource, row: NodeRow) -> str:
    return _amount(resource, row.node.of(resource)[1].config)


def _ratio(resource: Resource, row: NodeRow) -> str:
    ratio = row.ratio(resource)
    return _MISSING if ratio is None else f"{ratio:.2f}"


def _risk(resource: Resource, row: NodeRow) -> str:
    """Target risk and violation rate: ``5% (4%)``."""
    _, published = row.node.of(resource)
    if published.risk is None and published.violation_rate is None:
        return _MISSING
    target = _MISSING if published.risk is None else f"{100 * published.risk:.3g}%"
    rate = _MISSING if published.violation_rate is None else f"{100 * published.violation_rate:.0f}%"
    return f"{target} ({rate})"


def _limits(resource: Resource, row: NodeRow) -> str:
    """Why less is published than the strategy computed: ``30.1: horizon 10.2, ramp 7.5``."""
    _, published = row.node.of(resource)
    if not published.limits and not published.closed:
        return ""
    reasons = guard_reasons(published.limits, closed=published.closed, text_of=partial(_amount, resource))
    return f"{_amount(resource, published.unguarded)}: {reasons}"


def _contention(row: NodeRow) -> str:
    """The resources of which the VMs have too little: ``CPU high``."""
    levels = ((one.title, row.node.of(one)[1].contention.level) for one in RESOURCES)
    return ", ".join(f"{title} {level}" for title, level in levels if level != "none")


def _amount(resource: Resource, amount: float | None) -> str:
    return _MISSING if amount is None else f"{amount / resource.display_scale:.1f}"


def _age(row: NodeRow) -> str:
    age_s = row.age_s
    if age_s is None:
        return _MISSING
    if age_s < 120:
        return f"{math.floor(age_s)} s"
    return f"{age_s / 60:.0f} min" if age_s < 7200 else f"{age_s / 3600:.0f} h"


def _resource_columns(resource: Resource) -> tuple[Column, ...]:
    return (
        Column(resource.title, "ratio", partial(_ratio, resource)),
        Column(resource.title, "booked now", partial(_booked_now, resource), wide_only=True),
        Column(resource.title, "of", partial(_config, resource), wide_only=True),
        Column("risk", resource.title, partial(_risk, resource), risk_only=True),
    )


def _guard_columns() -> tuple[Column, ...]:
    return tuple(
        Column(f"{one.title} before", "the guards", partial(_limits, one), guards_only=True, numeric=False)
        for one in RESOURCES
    )


#: After the node's name and state.
COLUMNS: tuple[Column, ...] = (
    *(Column("free", one.display_unit, partial(_free, one)) for one in RESOURCES),
    *_resource_columns(CPU),
    *_resource_columns(MEMORY),
    Column("", "contention", _contention, contention_only=True, numeric=False),
    Column("age of", "the slice", _age, wide_only=True),
    Column("", "strategy", lambda row: row.node.strategy, numeric=False),
    *_guard_columns(),
)


def show_status(sources: StatusSources, *, json: bool = False) -> int:
    """Print the status; 1 when a node is stale, unknown or outdated, or a source cannot be read, else 0.

    Parameters
    ----------
    sources : StatusSources
    json : bool
        Print the list of :func:`status_objects` instead of a table.

    Raises
    ------
    UsageError
        When there is no status.
    """
    (nodes, problems), now_s = sources.read(), time.time()
    if len(problems) == len(sources):
        raise UsageError(problems[0])
    for problem in problems:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(problem))
    if json:
        print_json(status_objects(nodes, now_s))
    else:
        console = _console()
        print_whole(console, _tables(nodes, now_s))
        console.print(_definitions(nodes))
    return int(bool(problems) or any(row.state != "ok" for row in _rows(nodes, now_s)))


def watch_status(sources: StatusSources, sleep: Callable[[float], object] = time.sleep) -> None:
    """Keep the table on the screen until Ctrl-C; without a terminal, print it each time the status changes."""
    console = _console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_current(sources, console)[0], refresh=True)
                sleep(_WATCH_PERIOD_S)
    printed: object = None
    while True:
        content, status = _current(sources, console)
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
    guards: bool = True,
    contention: bool = True,
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
    guards : bool
        With what the guards left of the figures.
    contention : bool
        With the levels of contention.
    name_width : int, optional
        Longer names are folded; by default none is.
    """
    columns = [
        column
        for column in COLUMNS
        if not (brief and column.wide_only)
        and (not column.risk_only or _has_risk(nodes))
        and (not column.guards_only or (guards and _is_limited(nodes)))
        and (not column.contention_only or (contention and _is_contended(nodes)))
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
        "limits": published.limits,
        "closed": published.closed,
        "contention": msgspec.to_builtins(published.contention),
    }


def _rows(nodes: Mapping[str, PublishedNode], now_s: float) -> list[NodeRow]:
    return [NodeRow(name, node, now_s) for name, node in nodes.items()]


def _has_risk(nodes: Mapping[str, PublishedNode]) -> bool:
    resources: Iterator[PublishedResource] = (node.of(one)[1] for node in nodes.values() for one in RESOURCES)
    return any(published.risk is not None or published.violation_rate is not None for published in resources)


def _is_limited(nodes: Mapping[str, PublishedNode]) -> bool:
    resources = (node.of(one)[1] for node in nodes.values() for one in RESOURCES)
    return any(published.limits or published.closed for published in resources)


def _is_contended(nodes: Mapping[str, PublishedNode]) -> bool:
    return any(node.of(one)[1].contention.level != "none" for node in nodes.values() for one in RESOURCES)


def _definitions(nodes: Mapping[str, PublishedNode]) -> Text:
    """What the VMs of contended nodes suffer from, and the definitions of the columns."""
    risk = _RISK_DEFINITION if _has_risk(nodes) else ""
    guards = _GUARD_DEFINITION if _is_limited(nodes) else ""
    text = Text()
    for name, node in nodes.items():
        for resource in RESOURCES:
            contention = node.of(resource)[1].contention
            if contention.level != "none":
                line = f"\n{name}: {resource.title} contention {contention.level}: {contention.text}"
                text.append(line, style="red" if contention.level == "high" else "yellow")
    text.append(f"{chr(10) if text else ''}\n{_DEFINITIONS}{risk}{guards}", style="dim")
    return text


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def _tables(nodes: Mapping[str, PublishedNode], now_s: float) -> Iterator[Table]:
    """The whole table, then narrower ones."""
    yield status_table(nodes, now_s)
    yield status_table(nodes, now_s, guards=False)
    longest = max(map(len, nodes), default=0)
    for contention in (True, False):
        for width in _NAME_WIDTHS:
            folded = min(longest, width)
            yield status_table(nodes, now_s, brief=True, guards=False, contention=contention, name_width=folded)


def _current(sources: StatusSources, console: Console) -> tuple[RenderableType, object]:
    """What is shown now, and a value that differs when it changes for another reason than age."""
    (nodes, problems), now_s = sources.read(), time.time()
    missing = [Text(problem, style="red") for problem in problems]
    if len(problems) == len(sources):
        return Group(*missing), problems
    status = nodes, problems, [row.state for row in _rows(nodes, now_s)]
    return Group(*missing, first_that_fits(console, _tables(nodes, now_s)), _definitions(nodes)), status
