"""The answer of a replay on stdout: a table per resource, or one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import msgspec

from ..cli.plain_text import FILE_WIDTH, folded, is_plain, table_lines, table_width
from ..slices import CPU, RESOURCES, Resource
from .evidence import Evidence, as_object
from .presentation import Column, columns_of, definitions_of, exclusion_note, heading_of
from .results import Results

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns that every terminal gets: violations and their rate.
_FEWEST_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class _Section:
    """One resource: a table, the best strategy first, and the lines under it."""

    heading: str
    columns: Sequence[Column]
    rows: Sequence[Evidence]
    recommended: str | None
    notes: Sequence[str]

    def headings(self, columns: int) -> list[str]:
        """The headings of the strategy and of the first columns."""
        return ["\nstrategy", *(column.heading.replace(" ", "\n", 1) for column in self.columns[:columns])]

    def cells(self, row: Evidence, columns: int) -> list[str]:
        """The texts of one row."""
        return [row.strategy, *(column.text(row) for column in self.columns[:columns])]


def print_results(results: Results, risks: Mapping[str, float], stream: TextIO | None = None) -> None:
    """Print a table per resource, the best strategy first, and the verdict under it.

    Parameters
    ----------
    results : Results
    risks : mapping of resource name to float
        The target risks.
    """
    stream = stream or sys.stdout
    sections = [_section(results, resource, risks[resource.name]) for resource in RESOURCES]
    definitions = definitions_of(results.evidence[CPU.name])
    show = _print_plain if is_plain(stream) else _print_on_terminal
    show(sections, definitions, stream)


def _section(results: Results, resource: Resource, risk: float) -> _Section:
    rows = results.ranked(resource, risk)
    verdict = results.verdict(resource, risk)
    return _Section(
        heading=heading_of(resource, guarded=results.guarded),
        columns=columns_of(resource, rows),
        rows=rows,
        recommended=verdict.strategy,
        notes=[line for line in (verdict.reason, exclusion_note(rows)) if line],
    )


def _print_plain(sections: Sequence[_Section], definitions: Sequence[str], stream: TextIO) -> None:
    width, lines = FILE_WIDTH, []
    for section in sections:
        columns = len(section.columns)
        while columns > _FEWEST_COLUMNS and _plain_width(section, columns) > width:
            columns -= 1
        width = max(width, _plain_width(section, columns))
        cells = [section.cells(row, columns) for row in section.rows]
        lines += table_lines(section.heading, section.headings(columns), cells)
        lines += [line for note in section.notes for line in folded(note, width)]
        lines.append("")
    lines += [line for definition in definitions for line in folded(definition, width)]
    stream.write("".join(f"{line}\n" for line in lines))


def _plain_width(section: _Section, columns: int) -> int:
    return table_width(section.headings(columns), [section.cells(row, columns) for row in section.rows])


def _print_on_terminal(sections: Sequence[_Section], definitions: Sequence[str], stream: TextIO) -> None:
    from rich.console import Console

    from ..cli.tables import print_whole

    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for section in sections:
        print_whole(console, [_widest_table(console, section)])
        for line in section.notes:
            console.print(line, markup=False)
        console.print()
    for line in definitions:
        console.print(line, markup=False)


def _widest_table(console: Console, section: _Section) -> Table:
    """The table with as many columns, from the left, as the console shows; by bisection, for measuring is slow."""
    from ..cli.tables import fits

    least, most = _FEWEST_COLUMNS, len(section.columns)
    while least < most:
        middle = (least + most + 1) // 2
        if fits(console, _table(section, middle)):
            least = middle
        else:
            most = middle - 1
    return _table(section, least)


def _table(section: _Section, columns: int) -> Table:
    from rich.table import Table

    table = Table(title=section.heading, title_justify="left", box=None)
    for i, heading in enumerate(section.headings(columns)):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in section.rows:
        table.add_row(*section.cells(row, columns), style="bold" if row.strategy == section.recommended else "")
    return table


def print_json(results: Results, risks: Mapping[str, float], stream: TextIO | None = None) -> None:
    """Print the same as one JSON object; a figure that does not exist is null."""
    stream = stream or sys.stdout
    answer = {
        "node": results.node_name,
        "slices": len(results.epoch),
        "guards": results.guarded,
        **{resource.name: _resource_object(results, resource, risks[resource.name]) for resource in RESOURCES},
    }
    stream.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
    stream.flush()


def _resource_object(results: Results, resource: Resource, risk: float) -> Mapping[str, object]:
    verdict = results.verdict(resource, risk)
    return {
        "unit": resource.display_unit,
        "target_risk": risk,
        "verdict": {"strategy": verdict.strategy, "reason": verdict.reason},
        "rows": [as_object(row, resource) for row in results.ranked(resource, risk)],
    }
