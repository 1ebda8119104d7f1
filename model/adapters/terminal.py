"""What a person sees while a replay runs and when it is over."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from model.scoring import Score, ranked
from model.series import RESOURCES

T = TypeVar("T")

#: Wide enough for every column where there is no terminal to ask: a table in a file is never folded.
_WIDTH_OF_A_FILE = 140
_TITLES = {"cpu": "CPU", "mem": "Memory"}

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("published_misprediction", "mis-\nprediction", ".3f"),
    ("published_violation", "\nviolation", ".3f"),
    ("published_violation_frequency", "promise\nbroken", ".1%"),
    ("published_free_share", "published\nfree", ".1%"),
    ("misprediction", "replay mis-\nprediction", ".3f"),
    ("violation", "replay\nviolation", ".3f"),
    ("violation_frequency", "violated\nslices", ".1%"),
    ("decrease", "\ndecrease", ".3f"),
    ("free_share", "\nfree", ".1%"),
)


class ProgressBar:
    """A bar on a terminal that stderr is; silent anywhere else."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._console = Console(file=stream)
        self._visible = stream.isatty()

    def busy(self, what: str) -> Progress:
        """A context in which something of unknown length is shown to go on."""
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._visible,
        )
        progress.add_task(what, total=None)
        return progress

    def track(self, items: Iterable[T], total: int) -> Iterator[T]:
        """Hand the items on, showing how many of them have passed."""
        columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._visible) as progress:
            yield from progress.track(items, total=total, update_period=0.2)


def print_scores(scores: Sequence[Score], risk: float, stream: TextIO | None = None) -> None:
    """The scores of every strategy, a table per resource, best first, and the choice that follows."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_A_FILE, highlight=False)
    for resource in RESOURCES:
        rows = ranked([row for row in scores if row.resource == resource.name], risk)
        console.print(_table(_TITLES[resource.name], rows))
        console.print(_verdict(rows, risk))
        console.print()


def _table(title: str, rows: Sequence[Score]) -> Table:
    table = Table(title=f"{title}: what was promised and what then happened", title_justify="left", box=None)
    table.add_column("\nstrategy", no_wrap=True)
    for _, heading, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        cells = [format(getattr(row, name), form) for name, _, form in _COLUMNS]
        table.add_row(
            Text(row.strategy), *(cell.replace("nan", "-").replace("-%", "-") for cell in cells), style="bold" if i == 0 else ""
        )
    return table


def _verdict(rows: Sequence[Score], risk: float) -> Text:
    first = rows[0]
    if first.published_misprediction != first.published_misprediction:
        return Text("No slice could be scored: it takes two successive ones with data.")
    broken = f"its promise was broken in {first.published_violation_frequency:.1%} of the slices"
    free = f"{first.published_free_share:.1%} of the node published as free"
    if first.published_violation_frequency > risk:
        return Text(f"No strategy keeps to {risk:.0%}. Most careful: {first.strategy}, {free}, {broken}.")
    return Text(f"Best choice at a risk of {risk:.0%}: {first.strategy}, {free}, {broken}.")
