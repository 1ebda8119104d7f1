"""Tables on a terminal of any width, where no figure and no name is truncated; and JSON in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CHECKS_WIDTH = 160


def first_that_fits(console: Console, tables: Iterable[Table]) -> Table:
    """The first of several tables, at least one, that fits the console without truncation; else the last one.

    Tables after the one that fits are not generated.
    """
    for table in tables:
        if fits(console, table):
            break
    return table


def print_whole(console: Console, tables: Iterable[Table]) -> None:
    """Print the first table that fits, or the last one, whose lines the terminal then has to fold."""
    table = first_that_fits(console, tables)
    console.width = max(console.width, _width(console, table))
    console.print(table)


def fits(console: Console, table: Table) -> bool:
    """Whether the console shows a table without truncation."""
    return _width(console, table) <= console.width


def _width(console: Console, table: Table) -> int:
    """The columns of the terminal that a table takes when nothing is truncated."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def print_json(value: Any) -> None:
    """Print a value as JSON in ASCII."""
    Console().print_json(data=value, indent=1, highlight=False, ensure_ascii=True, allow_nan=False)


def print_checks(checks: Sequence[tuple[str, bool, str]], *, json: bool = False) -> bool:
    """Print the results of ``--check``; True when all succeeded.

    Parameters
    ----------
    checks : sequence of (target, ok, message)
    json : bool
        Print a JSON list of objects with these three keys instead of a table.
    """
    if json:
        keys = ("target", "ok", "message")
        print_json([dict(zip(keys, check, strict=True)) for check in checks])
    else:
        _print_checks_table(checks)
    return all(succeeded for _, succeeded, _ in checks)


def _print_checks_table(checks: Sequence[tuple[str, bool, str]]) -> None:
    table = Table(box=None)
    for heading in ("target", "result", "details"):
        table.add_column(heading, no_wrap=heading != "details")
    for target, succeeded, details in checks:
        table.add_row(Text(target), Text("ok" if succeeded else "FAILED"), Text(details))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _CHECKS_WIDTH
    console.print(table)
