"""The table of an evaluation for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from ..cli.tables import FILE_WIDTH, print_whole
from ..replay.presentation import TITLES
from ..slices import RESOURCES
from .grid import Pooled, labels

_POOLED = ("promise\nbroken", "in its\nworst trace", "mean\nmisprediction", "published\nfree", "and really\nfree")


def print_pooled(points: Sequence[Pooled], stream: TextIO | None = None) -> None:
    """What every variant is worth, a table per resource, seldom broken promises first."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    called = labels(list(dict.fromkeys(point.variant for point in points)))
    for resource in RESOURCES:
        rows = [point for point in points if point.resource == resource.name]
        table = Table(title=f"{TITLES[resource.name]}; *: nothing beats it", title_justify="left", box=None)
        table.add_column("\nstrategy", no_wrap=True)
        for heading in _POOLED:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in sorted(rows, key=lambda row: (row.violation_frequency, -row.usable_free)):
            shares = (row.violation_frequency, row.worst, row.misprediction, row.published_free, row.usable_free)
            name = f"{called[row.variant]}{' *' if row.on_front else ''}"
            table.add_row(name, *(f"{share:.1%}" for share in shares), style="bold" if row.on_front else "")
        print_whole(console, [table])
        slices = max((row.scored for row in rows), default=0)
        console.print(f"{slices} slices of {max((row.traces for row in rows), default=0)} traces\n")
