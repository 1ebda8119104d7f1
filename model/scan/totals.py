"""The figures of a scanned fleet, and its sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..slices import RESOURCES
from .finding import SEVERITIES, NodeFinding, Severity

_GB = 1024.0
_TB = 1024.0**2


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the nodes that have figures.

    Attributes
    ----------
    nodes, missing : int
        Nodes with figures, and without.
    severities : tuple of (severity, int)
        Nodes of each severity, the worst first; without those that have none.
    free_vcpus : int
        Whole vCPUs that could be placed, on nodes of which enough is known.
    free_mb : float
    booked_vcpus, cores, booked_mb, mb : float
    violated, compared : int
        Slices of CPU.
    """

    nodes: int
    missing: int
    severities: tuple[tuple[Severity, int], ...]
    free_vcpus: int
    free_mb: float
    booked_vcpus: float
    cores: float
    booked_mb: float
    mb: float
    violated: int
    compared: int


def totals_of(findings: Sequence[NodeFinding]) -> Totals:
    """Sum up a fleet."""
    known = [one for one in findings if not one.error]
    counted = [(severity, sum(one.severity == severity for one in known)) for severity in SEVERITIES]
    cpu, mem = ([found for one in known if (found := one.of(resource)) is not None] for resource in RESOURCES)
    # What is not confirmed, or cannot be placed for lack of the other resource, is not counted.
    room = [one for one in known if one.severity == "room"]
    return Totals(
        nodes=len(known),
        missing=len(findings) - len(known),
        severities=tuple((severity, number) for severity, number in counted if number),
        free_vcpus=sum(math.floor(one.cpu.free + 1e-6) for one in room if one.cpu is not None),
        free_mb=sum(one.mem.free for one in room if one.mem is not None),
        booked_vcpus=sum(one.booked for one in cpu),
        cores=sum(one.config for one in cpu),
        booked_mb=sum(one.booked for one in mem),
        mb=sum(one.config for one in mem),
        violated=sum(one.violated for one in cpu),
        compared=sum(one.compared for one in cpu),
    )


def memory_text(mb: float) -> str:
    """An amount of memory, GB or TB of 2**30 and 2**40 bytes.

    >>> memory_text(51200.0), memory_text(3_250_585.6)
    ('50 GB', '3.1 TB')
    """
    return f"{mb / _TB:.1f} TB" if mb >= _TB else f"{mb / _GB:.0f} GB"


def sentence_of(totals: Totals, risk: float) -> str:
    """The answer in one sentence.

    >>> sentence_of(Totals(2, 1, (), 1412, 3_250_585.6, 90.0, 64.0, 1.0, 1.0, 0, 9), 0.01)
    '2 nodes: 1,412 vCPUs and 3.1 TB could be placed at 1 % risk (1 node has no figures)'
    """
    nodes = f"{totals.nodes} node{'s' if totals.nodes != 1 else ''}"
    missing = (
        f" ({totals.missing} node{'s have' if totals.missing != 1 else ' has'} no figures)" if totals.missing else ""
    )
    placed = f"{totals.free_vcpus:,} vCPUs and {memory_text(totals.free_mb)} could be placed"
    return f"{nodes}: {placed} at {100 * risk:g} % risk{missing}"
