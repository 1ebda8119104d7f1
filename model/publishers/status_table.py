"""The published status as a table, once or for as long as somebody looks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..cli.tables import fitting, print_whole
from ..common.errors import UsageError
from ..slices import CPU, MEMORY, RESOURCES, Resource
from .status_file import PublishedNode, PublishedResource, StatusFileError, read_status

_WIDTH_OF_A_FILE = 160
#: Memory is shown in GB of 2^30 bytes.
_SCALE = {CPU: 1.0, MEMORY: 1024.0}
_FIGURES = ("free", "booked", "of", "ratio", "(real)")
#: What a narrow terminal does without, and how many characters of a node's name it shows in a line.
_MORE, _SHORT_NAMES = ("booked", "of"), (60, 40, 24, 12)
_COLOURS = {"ok": "green", "stale": "yellow", "unknown": "red", "outdated": "red"}


def show_status(path: Path) -> None:
    """Print the table.

    Raises
    ------
    UsageError
        When there is no status.
    """
    console = _console()
    try:
        print_whole(console, _tables(path))
    except StatusFileError as error:
        raise UsageError(str(error)) from None


def watch_status(path: Path) -> None:
    """Keep the table on the screen until Ctrl-C."""
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                live.update(fitting(console, _tables(path)), refresh=True)
            except StatusFileError as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(1.0)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    return console


def _tables(path: Path) -> Iterator[Table]:
    """For a wide terminal, and for narrower and narrower ones."""
    nodes, now_s = read_status(path), time.time()
    yield status_table(nodes, now_s)
    longest = max(map(len, nodes), default=0)
    for width in _SHORT_NAMES:
        yield status_table(nodes, now_s, brief=True, name_width=min(longest, width))


def status_table(
    nodes: Mapping[str, PublishedNode], now_s: float, *, brief: bool = False, name_width: int | None = None
) -> Table:
    """A row per node: free, booked, ratio and risk of each resource, age and state.

    Without any node whose strategy aims at a risk there is no column for it.

    Parameters
    ----------
    nodes : mapping of node to PublishedNode
    now_s : float
        Unix seconds.
    brief : bool
        Without what is booked and what there is, of which the ratio tells most, and without the slice's age.
    name_width : int, optional
        Longer names are folded; by default none is.
    """
    table = Table(box=None, title="What may be placed on each node", title_justify="left")
    table.add_column("\nnode", overflow="fold", width=name_width, no_wrap=name_width is None)
    risky = any(node.of(resource)[1].risk is not None for node in nodes.values() for resource in RESOURCES)
    headings = [heading for heading in _FIGURES if (risky or heading != "(real)") and not (brief and heading in _MORE)]
    for over in (("CPU", "cores"), ("memory", "GB")):
        above = [*over, *[""] * 3][: len(headings)]
        for first, heading in zip(above, headings, strict=True):
            table.add_column(f"{'risk' if heading == '(real)' else first}\n{heading}", justify="right", no_wrap=True)
    for heading in ([] if brief else ["age of\nthe slice"]) + ["\nstate", "\nstrategy"]:
        table.add_column(heading, no_wrap=True)
    for name, node in nodes.items():
        state = node.state if node.valid_until is None or now_s <= node.valid_until else "outdated"
        told = [_cells(node, resource) for resource in RESOURCES]
        cells = [of_resource[heading] for of_resource in told for heading in headings]
        age = [] if brief else ["-" if node.slice_end is None else _age(now_s - node.slice_end)]
        table.add_row(Text(name), *cells, *age, Text(state, style=_COLOURS.get(state, "")), Text(node.strategy))
    if not nodes:
        table.caption = "no node"
    elif any(node.valid_until is not None and now_s > node.valid_until for node in nodes.values()):
        table.caption = "outdated: scroogevm.py has not published since; is it running?"
    return table


def _cells(node: PublishedNode, resource: Resource) -> dict[str, str]:
    """What is said of a resource, by the heading under which it stands."""
    free, said = node.of(resource)
    scale = _SCALE[resource]
    told = [f"{free / scale:.1f}", "-", "-", "-"]
    if said.config and said.booked is not None:
        ratio = (said.booked + free) / said.config
        told[1:] = [f"{said.booked / scale:.1f}", f"{said.config / scale:.1f}", f"{ratio:.2f}"]
    return dict(zip(_FIGURES, [*told, _risk(said)], strict=True))


def _risk(said: PublishedResource) -> str:
    """What is aimed at, and in brackets what came of it: ``5% (4%)``."""
    if said.risk is None:
        return "-"
    violation_rate = "-" if said.violation_rate is None else f"{100 * said.violation_rate:.0f}%"
    return f"{100 * said.risk:.3g}% ({violation_rate})"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{math.floor(max(seconds, 0))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
