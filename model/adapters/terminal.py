"""What a person sees while a replay runs and when it is over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from model.adapters.console import print_whole
from model.adapters.presentation import COLUMNS, TITLES, Column, cell, verdict
from model.evaluation import Pooled, labels
from model.scoring import Score, ranked
from model.series import RESOURCES

T = TypeVar("T")

#: Wide enough for every column where there is no terminal to ask: a table in a file is never folded.
_WIDTH_OF_A_FILE = 140
_POOLED = ("promise\nbroken", "in its\nworst trace", "mean\nmisprediction", "published\nfree", "and really\nfree")


class ProgressBar:
    """A bar on a terminal that stderr is; silent anywhere else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
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

    @contextlib.contextmanager
    def counted(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A context with a function to call at each step of ``total``."""
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._visible) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

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


def print_pooled(points: Sequence[Pooled], stream: TextIO | None = None) -> None:
    """What every variant is worth, a table per resource, seldom broken promises first."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_A_FILE, highlight=False)
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


def print_checks(rows: Sequence[tuple[str, bool, str]]) -> bool:
    """What was asked, whether it answered well, and what it said; True when all did."""
    table = Table(box=None)
    for heading in ("target", "answer", "what it said"):
        table.add_column(heading, no_wrap=heading != "what it said")
    for name, good, words in rows:
        table.add_row(Text(name), Text("ok" if good else "FAILED"), Text(words))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    return all(good for _, good, _ in rows)
