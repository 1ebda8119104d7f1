"""The tables of a simulation for a terminal, and the same as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table

from ..cli.plain_text import FILE_WIDTH
from ..cli.tables import print_whole
from .summary import Comparison, Summary


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes
    ----------
    name : str
        Of the figure, see :data:`~model.simulation.grid.FIGURES`.
    heading : str
    text : callable
        The text of one number.
    highest : bool
        Whether the largest figure of all seeds is shown instead of the mean.
    spread : bool
        Whether the smallest and the largest are shown beside the mean.
    """

    name: str
    heading: str
    text: Callable[[float], str]
    highest: bool = False
    spread: bool = False

    def cell(self, summary: Summary, *, spread: bool) -> str:
        """The text of a cell."""
        figure = summary.figures[self.name]
        if math.isnan(figure.mean):
            return "-"
        if self.highest:
            return self.text(figure.most)
        mean, least, most = (self.text(value) for value in (figure.mean, figure.least, figure.most))
        return f"{mean} ({least}..{most})" if spread and self.spread and least != most else mean


def percent(share: float) -> str:
    """A share, small ones with more digits.

    >>> [percent(share) for share in (0, 0.000001, 0.00012, 0.0123, 0.123)]
    ['0%', '<0.001%', '0.012%', '1.23%', '12.3%']
    """
    if share == 0:
        return "0%"
    if share < 0.00001:
        return "<0.001%"
    digits = 1 if share >= 0.0995 else 2 if share >= 0.000995 else 3
    return f"{share:.{digits}%}"


def _two(value: float) -> str:
    return f"{value:.2f}"


_COLUMNS = (
    Column("sold", "vCPUs sold\nper core", _two, spread=True),
    Column("over", "slices\nover", percent, spread=True),
    Column("worst_node", "worst\nnode", percent, highest=True),
    Column("mem_over", "memory\nover", percent),
    Column("hosts_needed", "nodes\nneeded", lambda value: f"{value:.3g}", spread=True),
    Column("unserved", "\nunserved", percent),
    Column("reported", "\nreported", percent),
    Column("wait_10", "VM time\nwaiting", percent),
    Column("accepted", "VMs\naccepted", percent),
    Column("accepted_large", "large\nones", percent),
    Column("used", "cores\nused", percent),
    Column("p999", "p99.9 of\ndemand", _two),
)
#: Columns that are left out, one after the other, where a terminal is too narrow.
_LAST_FIRST = ("p999", "wait_10", "used", "accepted_large", "unserved", "accepted", "reported")


def columns_of(comparison: Comparison) -> list[Column]:
    """The columns that have figures."""
    return [
        column
        for column in _COLUMNS
        if (column.name != "mem_over" or comparison.memory)
        and not all(math.isnan(one.mean(column.name)) for one in comparison.summaries)
    ]


def print_comparisons(comparisons: Sequence[Comparison], stream: TextIO | None = None) -> None:
    """Print a table and the sentence for each workload."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for comparison in comparisons:
        print_whole(console, _tables(comparison))
        console.print(f"\n{comparison.sentence}\n", markup=False)


def _tables(comparison: Comparison) -> Iterator[Table]:
    """The table with all columns, then narrower ones."""
    columns = columns_of(comparison)
    for spread in (True, False):
        for left_out in range(len(_LAST_FIRST) + 1) if spread else (len(_LAST_FIRST),):
            kept = [column for column in columns if column.name not in _LAST_FIRST[:left_out]]
            yield _table(comparison, kept, spread=spread)


def _table(comparison: Comparison, columns: Sequence[Column], *, spread: bool) -> Table:
    rows = comparison.ranked()
    runs = max((row.runs for row in rows), default=0)
    seeds = f", means of {runs} seeds" + (" (least..most)" if spread else "") if runs > 1 else ""
    title = f"{comparison.name}{seeds}; *: at most {100 * comparison.harm:g} % over"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("\nsetting", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in rows:
        safe = row.is_safe(comparison.harm)
        cells = (column.cell(row, spread=spread) for column in columns)
        table.add_row(f"{row.setting.label}{' *' if safe else ''}", *cells, style="bold" if safe else "")
    return table
