"""The answer of a scan on stdout: a table, an explanation of one node, CSV or JSON."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..cli.plain_text import FILE_WIDTH
from ..cli.tables import print_whole
from ..common.text import printable
from ..slices import RESOURCES, Resource
from ..status import guard_reasons
from .columns import COLUMNS, amount, note_of, shown_columns
from .finding import SEVERITIES, NodeFinding, ResourceFinding, Severity
from .totals import Totals, sentence_of

_COLOURS: dict[Severity, str] = {"harm": "red", "full": "yellow", "unsure": "dim", "room": "green"}


def print_findings(findings: Sequence[NodeFinding], totals: Totals, risk: float, stream: TextIO | None = None) -> None:
    """Print a row per node, the worst first, and the totals."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    print_whole(console, _tables(findings))
    console.print()
    for severity, number in totals.severities:
        text = Text(f"{number:6} {severity:7}", style=_COLOURS[severity])
        console.print(text, Text(SEVERITIES[severity], style="dim"))
    console.print(Text(sentence_of(totals, risk), style="bold"))


def _tables(findings: Sequence[NodeFinding]) -> Iterator[Table]:
    """The table with all columns, then narrower ones."""
    for most in sorted({column.importance for column in COLUMNS} | {9}, reverse=True):
        yield _table(findings, most)


def _table(findings: Sequence[NodeFinding], most: int) -> Table:
    columns = [column for column in shown_columns(findings) if column.importance < most or column.importance == 0]
    table = Table(box=None)
    table.add_column("\n", no_wrap=True)
    table.add_column("\nnode", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="left" if "contention" in column.heading else "right", no_wrap=True)
    if noted := any(note_of(one) for one in findings):
        table.add_column("\n")
    for one in findings:
        cells = [one.severity, one.node, *(column.text(one) for column in columns)]
        cells += [note_of(one)] if noted else []
        style = _COLOURS[one.severity]
        table.add_row(Text(cells[0], style=style), *(Text(cell) for cell in cells[1:]))
    return table


def print_explanation(finding: NodeFinding, stream: TextIO | None = None) -> None:
    """Print why the figures of one node are as they are."""
    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else FILE_WIDTH, highlight=False)
    for line in explanation_of(finding):
        console.print(Text(line))


def explanation_of(finding: NodeFinding) -> Iterator[str]:
    """The lines of an explanation."""
    yield f"{finding.node}: {finding.severity}, {SEVERITIES[finding.severity]}"
    if finding.error:
        yield f"  {finding.error}"
        return
    yield f"  {_utc(finding.first_s)} to {_utc(finding.last_s)}, {finding.vms} VMs, strategy {finding.strategy}"
    for resource in RESOURCES:
        if (one := finding.of(resource)) is not None:
            yield from _explain(resource, one)
        else:
            yield f"  {resource.title}: no confirmed samples"


def _explain(resource: Resource, one: ResourceFinding) -> Iterator[str]:
    unit = resource.display_unit
    yield f"  {resource.title}: {amount(resource, one.config)} {unit}, booked {amount(resource, one.booked)}"
    if one.reason:
        yield f"    nothing is free: {one.reason}"
    unguarded = f", of {amount(resource, one.unguarded)} that {'the strategy'} finds" if one.limits else ""
    yield f"    free {amount(resource, one.free)} {unit}{unguarded}: ratio {one.ratio_now:.2f} → {one.ratio_safe:.2f}"
    if one.limits:
        reasons = guard_reasons(one.limits, closed=one.closed, text_of=partial(amount, resource))
        yield f"    left by the guards: {reasons}"
    rate = f" ({one.violation_rate:.1%})" if one.compared else ""
    violations = f"{one.compared} compared, {one.violated} violated{rate}"
    yield f"    {one.slices} slices, {violations}, {one.waited} with contention"
    if one.contention:
        yield f"    now: {one.contention}"
    yield (
        f"    used {amount(resource, one.used_mean)} {unit} on average, {amount(resource, one.peak)} at the peak of "
        f"{_utc(one.peak_s)}"
    )
    for vm in one.top:
        name = f"{vm.name} ({vm.display_name})" if vm.display_name else vm.name
        yield f"      {amount(resource, vm.used)} of {amount(resource, vm.config)} {unit}  {printable(name)}"
    if len(one.others) > 1:
        others = (f"{name} {amount(resource, free)}" for name, free in one.others.items())
        yield f"    each strategy would publish: {', '.join(others)}"


def as_json(findings: Sequence[NodeFinding], totals: Totals, risk: float) -> dict[str, Any]:
    """The scan as JSON: cores, MB of 2**20 bytes, Unix seconds."""
    nodes = [{**msgspec.to_builtins(replace(one, sampled=())), "severity": one.severity} for one in findings]
    for node in nodes:
        del node["sampled"]
        for resource in RESOURCES:
            if (one := node[resource.name]) is not None:
                one["series"] = dict(zip(("end", "peak", "booked", "capacity"), one["series"], strict=True))
    return {
        "sentence": sentence_of(totals, risk),
        "risk": risk,
        "totals": {**msgspec.to_builtins(totals), "severities": dict(totals.severities)},
        "nodes": nodes,
    }


#: Figures of each resource in the CSV.
_FIGURES = (
    *("config", "booked", "capacity", "free", "ratio_now", "ratio_safe", "used_mean", "peak", "slices", "compared"),
    *("violated", "waited", "unguarded", "contention"),
)


def as_csv(findings: Sequence[NodeFinding]) -> str:
    """The scan as CSV: cores, MB of 2**20 bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{resource.name}_{name}" for resource in RESOURCES for name in _FIGURES]
    writer.writerow(["node", "severity", "vms", *names, "note"])
    for one in findings:
        figures = [_figure(one.of(resource), name) for resource in RESOURCES for name in _FIGURES]
        writer.writerow([one.node, one.severity, one.vms, *figures, note_of(one)])
    return text.getvalue()


def _figure(one: ResourceFinding | None, name: str) -> str:
    value = "" if one is None else getattr(one, name)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _utc(seconds: float) -> str:
    return "-" if math.isnan(seconds) else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
