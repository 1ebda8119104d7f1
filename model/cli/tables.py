"""Tables on a terminal of any width: no figure and no name is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def fitting(console: Console, tables: Iterable[Table]) -> Table:
    """The first of several tables that the console has room for without cutting anything; else the last of them.

    No table behind the one that fits is asked for. There is one at least.
    """
    for table in tables:
        if _needs(console, table) <= console.width:
            break
    return table


def print_whole(console: Console, tables: Iterable[Table]) -> None:
    """Print the first table that fits; the last of them even where the terminal has to fold its lines."""
    table = fitting(console, tables)
    console.width = max(console.width, _needs(console, table))
    console.print(table)


def _needs(console: Console, table: Table) -> int:
    """How many columns it takes to show every figure whole."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


#: Wide enough for every column where there is no terminal to ask: a table in a file is never folded.
FILE_WIDTH = 140


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
