"""The published status as a table, once or for as long as somebody looks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from model.adapters.commandline import UsageError
from model.adapters.statusfile import PublishedNode, PublishedResource, StatusFileError, read_status
from model.series import CPU, MEMORY, RESOURCES, Resource

_WIDTH_OF_A_FILE = 160
#: Memory is shown in GB of 2^30 bytes.
_SCALE = {CPU: 1.0, MEMORY: 1024.0}
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
        console.print(status_table(read_status(path), time.time()))
    except StatusFileError as error:
        raise UsageError(str(error)) from None


def watch_status(path: Path) -> None:
    """Keep the table on the screen until Ctrl-C."""
    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            try:
                live.update(status_table(read_status(path), time.time()), refresh=True)
            except StatusFileError as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(1.0)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    return console


def status_table(nodes: Mapping[str, PublishedNode], now_s: float) -> Table:
    """A row per node: free, booked, ratio and risk of each resource, age and state.

    Without any node whose strategy aims at a risk there is no column for it.

    Parameters
    ----------
    nodes : mapping of node to PublishedNode
    now_s : float
        Unix seconds.
    """
    table = Table(box=None, title="What may be placed on each node", title_justify="left")
    table.add_column("\nnode", overflow="fold")
    risky = any(node.of(resource)[1].risk is not None for node in nodes.values() for resource in RESOURCES)
    for over in (("CPU", "cores"), ("memory", "GB")):
        for first, heading in zip((*over, "", "", "risk"), ("free", "booked", "of", "ratio", "(real)"), strict=True):
            if risky or first != "risk":
                table.add_column(f"{first}\n{heading}", justify="right", no_wrap=True)
    for heading in ("age of\nthe slice", "\nstate", "\nstrategy"):
        table.add_column(heading, no_wrap=True)
    for name, node in nodes.items():
        state = node.state if node.valid_until is None or now_s <= node.valid_until else "outdated"
        cells = [text for resource in RESOURCES for text in _cells(node, resource, risky=risky)]
        age = "-" if node.slice_end is None else _age(now_s - node.slice_end)
        table.add_row(Text(name), *cells, age, Text(state, style=_COLOURS.get(state, "")), Text(node.strategy))
    if not nodes:
        table.caption = "no node"
    elif any(node.valid_until is not None and now_s > node.valid_until for node in nodes.values()):
        table.caption = "outdated: scroogevm.py has not published since; is it running?"
    return table


def _cells(node: PublishedNode, resource: Resource, *, risky: bool) -> list[str]:
    free, said = node.of(resource)
    scale = _SCALE[resource]
    risk = [_risk(said)] if risky else []
    if not said.config or said.booked is None:
        return [f"{free / scale:.1f}", "-", "-", "-", *risk]
    ratio = (said.booked + free) / said.config
    return [f"{free / scale:.1f}", f"{said.booked / scale:.1f}", f"{said.config / scale:.1f}", f"{ratio:.2f}", *risk]


def _risk(said: PublishedResource) -> str:
    """What is aimed at, and in brackets what came of it: ``5% (4%)``."""
    if said.risk is None:
        return "-"
    realised = "-" if said.realised_risk is None else f"{100 * said.realised_risk:.0f}%"
    return f"{100 * said.risk:.3g}% ({realised})"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{math.floor(max(seconds, 0))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
