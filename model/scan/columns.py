"""The columns of a scan, the same in terminal, CSV and report. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..slices import CPU, MEMORY, Resource
from .finding import NodeFinding

_NONE = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes
    ----------
    heading : str
        With a line break where it has two lines.
    text : callable
        The text of a cell.
    value : callable
        What it is sorted by.
    importance : int
        The higher, the earlier it is left out on a narrow terminal.
    explanation : str
    """

    heading: str
    text: Callable[[NodeFinding], str]
    value: Callable[[NodeFinding], float]
    importance: int
    explanation: str


def amount(resource: Resource, value: float) -> str:
    """An amount in the unit of tables: cores, or GB of 2**30 bytes."""
    return _NONE if math.isnan(value) else f"{value / resource.display_scale:.{1 if resource is CPU else 0}f}"


def _number(resource: Resource, name: str) -> Callable[[NodeFinding], float]:
    def value(finding: NodeFinding) -> float:
        one = finding.of(resource)
        return math.nan if one is None else float(getattr(one, name))

    return value


def _amount_column(resource: Resource, heading: str, name: str, importance: int, explanation: str) -> Column:
    value = _number(resource, name)
    return Column(
        f"{heading}\n{resource.display_unit}", lambda one: amount(resource, value(one)), value, importance, explanation
    )


def _ratio_column(resource: Resource, importance: int) -> Column:
    def text(finding: NodeFinding) -> str:
        one = finding.of(resource)
        return _NONE if one is None else f"{one.ratio_now:.2f} → {one.ratio_safe:.2f}"

    return Column(
        f"ratio now →\nsafe, {resource.title}",
        text,
        _number(resource, "ratio_safe"),
        importance,
        "what is booked, or what OpenStack Placement has, and what a scheduler may book; over the capacity",
    )


def _violations(resource: Resource) -> Column:
    def text(finding: NodeFinding) -> str:
        one = finding.of(resource)
        if one is None or not one.compared:
            return _NONE
        return f"{one.violated} of {one.compared}"

    return Column(
        f"violated,\n{resource.title}",
        text,
        _number(resource, "violation_rate"),
        2 if resource is CPU else 5,
        "slices in which the node was full, its VMs suffered, or more was used than was left, of the compared ones",
    )


def _waits(finding: NodeFinding) -> str:
    texts = [one.contention for one in (finding.cpu, finding.mem) if one is not None and one.contention]
    if texts:
        return texts[0]
    waited = max((one.waited for one in (finding.cpu, finding.mem) if one is not None), default=0)
    return f"{waited} slices" if waited else ""


def _waited(finding: NodeFinding) -> float:
    return float(max((one.waited for one in (finding.cpu, finding.mem) if one is not None), default=0))


COLUMNS: Sequence[Column] = (
    _amount_column(CPU, "CPU", "config", 4, "capacity of the node"),
    _amount_column(CPU, "booked", "booked", 3, "allocated to the VMs that are alive"),
    _ratio_column(CPU, 0),
    _amount_column(CPU, "free", "free", 0, "what may be placed in addition"),
    _violations(CPU),
    _amount_column(MEMORY, "memory", "config", 7, "capacity of the node"),
    _amount_column(MEMORY, "booked", "booked", 6, "allocated to the VMs that are alive"),
    _ratio_column(MEMORY, 4),
    _amount_column(MEMORY, "free", "free", 1, "what may be placed in addition"),
    _violations(MEMORY),
    Column("\nVMs", lambda one: str(one.vms), lambda one: float(one.vms), 8, "VMs that are alive"),
    Column("\ncontention", _waits, _waited, 3, "what VMs suffer from now, or in how many slices they did"),
)


def shown_columns(findings: Sequence[NodeFinding]) -> Sequence[Column]:
    """The columns that have a text for any node."""
    return [column for column in COLUMNS if any(column.text(one) for one in findings)]


def note_of(finding: NodeFinding) -> str:
    """Why a node is as it is, in a few words."""
    if finding.error:
        return finding.error
    for resource in (CPU, MEMORY):
        one = finding.of(resource)
        if one is None:
            return f"{resource.title}: no confirmed samples"
        if one.reason:
            return f"{resource.title}: {one.reason}"
    return ""
