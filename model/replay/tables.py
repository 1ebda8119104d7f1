"""The scores of a replay as tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from ..cli.tables import FILE_WIDTH, print_whole
from ..slices import RESOURCES
from .presentation import COLUMNS, TITLES, Column, cell, verdict
from .scoring import Score, ranked


def print_scores(scores: Sequence[Score], risk: float, stream: TextIO | None = None) -> None:
    """The scores of every strategy, a table per resource, best first, and the choice that follows."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for resource in RESOURCES:
        rows = ranked([row for row in scores if row.resource == resource.name], risk)
        promised = [column for column in COLUMNS if column[0].startswith("published")]
        print_whole(console, (_table(TITLES[resource.name], rows, columns) for columns in (COLUMNS, promised)))
        console.print(verdict(rows, risk))
        console.print()


def _table(title: str, rows: Sequence[Score], columns: Sequence[Column]) -> Table:
    table = Table(title=f"{title}: what was promised and what then happened", title_justify="left", box=None)
    table.add_column("\nstrategy", no_wrap=True)
    for _, heading, _ in columns:
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        cells = (cell(row, attribute, form) for attribute, _, form in columns)
        table.add_row(row.strategy, *cells, style="bold" if i == 0 else "")
    return table
