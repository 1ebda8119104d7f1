"""The answer of a replay on stdout: a table per resource, or one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from ..cli.tables import FILE_WIDTH, fits, print_whole
from ..slices import CPU, RESOURCES, Resource
from .evidence import Evidence, as_object
from .presentation import Column, columns_of, definitions_of, exclusion_note, heading_of
from .results import Results

#: Columns that every terminal gets: violations and their rate.
_FEWEST_COLUMNS = 2


def print_results(results: Results, risks: Mapping[str, float], stream: TextIO | None = None) -> None:
    """Print a table per resource, the best strategy first, and the verdict under it.

    Parameters
    ----------
    results : Results
    risks : mapping of resource name to float
        The target risks.
    """
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for resource in RESOURCES:
        risk = risks[resource.name]
        rows = results.ranked(resource, risk)
        verdict = results.verdict(resource, risk)
        heading = heading_of(resource, guarded=results.guarded)
        print_whole(console, [_widest_table(console, heading, columns_of(resource, rows), rows, verdict.strategy)])
        for line in (verdict.reason, exclusion_note(rows)):
            if line:
                console.print(line, markup=False)
        console.print()
    for line in definitions_of(results.evidence[CPU.name]):
        console.print(line, markup=False)


def _widest_table(
    console: Console, heading: str, columns: Sequence[Column], rows: Sequence[Evidence], recommended: str | None
) -> Table:
    """The table with as many columns, from the left, as the console shows; by bisection, for measuring is slow."""
    least, most = _FEWEST_COLUMNS, len(columns)
    while least < most:
        middle = (least + most + 1) // 2
        if fits(console, _table(heading, rows, columns[:middle], recommended)):
            least = middle
        else:
            most = middle - 1
    return _table(heading, rows, columns[:least], recommended)


def _table(heading: str, rows: Sequence[Evidence], columns: Sequence[Column], recommended: str | None) -> Table:
    table = Table(title=heading, title_justify="left", box=None)
    table.add_column("\nstrategy", no_wrap=True)
    for column in columns:
        table.add_column(column.heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row.strategy == recommended else ""
        table.add_row(row.strategy, *(column.text(row) for column in columns), style=style)
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
