"""The table of an evaluation for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from ..cli.tables import FILE_WIDTH, print_whole
from ..slices import RESOURCES, Resource
from .grid import Pooled, Variant, labels

_HEADINGS = ("violated\nslices", "in its\nworst trace", "mean\nmisprediction", "published\nfree", "and really\nfree")


def print_pooled(points: Sequence[Pooled], stream: TextIO | None = None) -> None:
    """Print a table per resource: all traces together, a row per variant, fewest violations first."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    label_of = labels(list(dict.fromkeys(point.variant for point in points)))
    for resource in RESOURCES:
        rows = [point for point in points if point.resource == resource.name]
        print_whole(console, [_table(resource, rows, label_of)])
        slices, traces = (max((getattr(row, name) for row in rows), default=0) for name in ("slices", "traces"))
        console.print(f"{slices} slices of {traces} traces\n")


def _table(resource: Resource, rows: Sequence[Pooled], label_of: dict[Variant, str]) -> Table:
    title = resource.title[0].upper() + resource.title[1:]
    table = Table(title=f"{title}; *: not dominated by another row", title_justify="left", box=None)
    table.add_column("\nstrategy", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.violation_frequency, -row.usable_free)):
        shares = (row.violation_frequency, row.worst, row.misprediction, row.published_free, row.usable_free)
        name = f"{label_of[row.variant]}{' *' if row.on_front else ''}"
        table.add_row(name, *(f"{share:.1%}" for share in shares), style="bold" if row.on_front else "")
    return table
