"""The table of an evaluation for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from ..cli.plain_text import FILE_WIDTH, folded, is_plain, table_lines, table_width
from ..slices import RESOURCES, Resource
from .grid import Pooled, Variant, labels

_HEADINGS = (
    *("\nstrategy", "violated\nslices", "in its\nworst trace", "mean\nmisprediction", "published\nfree"),
    "and really\nfree",
)


@dataclass(frozen=True, slots=True)
class _Section:
    """One resource: a table and the line under it."""

    title: str
    rows: Sequence[Pooled]
    cells: Sequence[Sequence[str]]
    note: str


def print_pooled(points: Sequence[Pooled], stream: TextIO | None = None) -> None:
    """Print a table per resource: all traces together, a row per variant, fewest violations first."""
    stream = stream or sys.stdout
    label_of = labels(list(dict.fromkeys(point.variant for point in points)))
    sections = [_section(resource, points, label_of) for resource in RESOURCES]
    show = _print_plain if is_plain(stream) else _print_on_terminal
    show(sections, stream)


def _section(resource: Resource, points: Sequence[Pooled], label_of: dict[Variant, str]) -> _Section:
    rows = [point for point in points if point.resource == resource.name]
    rows.sort(key=lambda row: (row.violation_frequency, -row.usable_free))
    slices, traces = (max((getattr(row, name) for row in rows), default=0) for name in ("slices", "traces"))
    return _Section(
        title=f"{resource.title[0].upper()}{resource.title[1:]}; *: not dominated by another row",
        rows=rows,
        cells=[_cells(row, label_of[row.variant]) for row in rows],
        note=f"{slices} slices of {traces} traces",
    )


def _cells(row: Pooled, label: str) -> list[str]:
    shares = (row.violation_frequency, row.worst, row.misprediction, row.published_free, row.usable_free)
    return [f"{label}{' *' if row.on_front else ''}", *(f"{share:.1%}" for share in shares)]


def _print_plain(sections: Sequence[_Section], stream: TextIO) -> None:
    width, lines = FILE_WIDTH, []
    for section in sections:
        width = max(width, table_width(_HEADINGS, section.cells))
        lines += [*table_lines(section.title, _HEADINGS, section.cells), *folded(section.note, width), ""]
    stream.write("".join(f"{line}\n" for line in lines))


def _print_on_terminal(sections: Sequence[_Section], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..cli.tables import print_whole

    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for section in sections:
        table = Table(title=section.title, title_justify="left", box=None)
        for i, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for row, cells in zip(section.rows, section.cells, strict=True):
            table.add_row(*cells, style="bold" if row.on_front else "")
        print_whole(console, [table])
        console.print(f"{section.note}\n")
