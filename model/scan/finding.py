"""What a scan finds of a node. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..simulation.draw import SampledVm
from ..slices import CPU, RESOURCES, Resource

Severity = Literal["harm", "full", "unsure", "room"]

#: The severities, the worst first, and what they mean.
SEVERITIES: Mapping[Severity, str] = {
    "harm": "VMs suffer, or more is sold than is safe",
    "full": "nothing more can be placed",
    "unsure": "too little is known",
    "room": "more can be placed",
}

#: A scan of fewer compared slices is unsure: two days of half hours.
LEAST_SLICES = 96

#: Points of the series of a picture.
POINTS = 160


@dataclass(frozen=True, slots=True)
class TopVm:
    """A VM that drives the peak of a node.

    Attributes
    ----------
    name : str
    used, config : float
        Its mean usage in the slice of the peak, and its allocation (NaN if unknown), cores or MB.
    display_name : str
        As its users call it, where an exporter has that.
    """

    name: str
    used: float
    config: float
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class ResourceFinding:
    """One resource of a node after the last slice of its history, cores or MB.

    Attributes
    ----------
    config, booked, capacity : float
        What the node has; what is allocated to the VMs that are alive; what a scheduler may book in total.
    free : float
        What may be added: 0 without confirmed samples in the last slice.
    used_mean, peak : float
        Mean usage, and the largest 99th percentile of a slice.
    peak_s : float
        End of the slice of the peak, Unix seconds; NaN without one.
    slices, compared, violated : int
        Slices with figures; those that could be compared with what was published before; those in which the node was
        full, its VMs suffered, or more was used than was left.
    waited : int
        Slices in which VMs suffered.
    unguarded : float
        What the strategy itself would offer.
    limits : mapping of guard to float
        What was left by each guard that lowered it.
    closed : bool
    contention : str
        What VMs suffer from now; empty when they do not.
    others : mapping of strategy to float
        What each strategy would offer.
    ratio_now : float
        Booked / capacity, or the ratio that OpenStack Placement has.
    top : tuple of TopVm
        Those that used most in the slice of the peak.
    series : tuple of four lists
        Times, peaks, what was booked and what the capacity would have been, for a picture.
    reason : str
        Why there are no figures of the last slice.
    """

    config: float
    booked: float
    capacity: float
    free: float
    used_mean: float
    peak: float
    peak_s: float
    slices: int
    compared: int
    violated: int
    waited: int
    unguarded: float
    limits: Mapping[str, float]
    closed: bool
    contention: str
    others: Mapping[str, float]
    ratio_now: float
    top: tuple[TopVm, ...] = ()
    series: tuple[tuple[float, ...], ...] = ()
    reason: str = ""

    @property
    def ratio_safe(self) -> float:
        """Capacity / config, or NaN."""
        return self.capacity / self.config if self.config > 0 else math.nan

    @property
    def violation_rate(self) -> float:
        """Share of the compared slices, or NaN."""
        return self.violated / self.compared if self.compared else math.nan


@dataclass(frozen=True, slots=True)
class NodeFinding:
    """A node; ``error`` is why there are no figures at all.

    Attributes
    ----------
    node, strategy : str
    first_s, last_s : float
        The period, Unix seconds.
    vms : int
        VMs that are alive.
    cpu, mem : ResourceFinding or None
    error : str
    sampled : tuple of SampledVm
        What some of its VMs used, for a simulation; not shown.
    """

    node: str
    strategy: str = ""
    first_s: float = math.nan
    last_s: float = math.nan
    vms: int = 0
    cpu: ResourceFinding | None = None
    mem: ResourceFinding | None = None
    error: str = ""
    sampled: tuple[SampledVm, ...] = ()

    def of(self, resource: Resource) -> ResourceFinding | None:
        """One resource."""
        return self.cpu if resource is CPU else self.mem

    @property
    def severity(self) -> Severity:
        """The worse severity of both resources; what cannot be compared is unsure."""
        found = [severity_of(one) for one in (self.of(resource) for resource in RESOURCES) if one is not None]
        if not found:
            return "unsure"
        # A node that is short of one resource takes no more VMs, however much it has of the other one.
        return next(severity for severity in SEVERITIES if severity in found)

    def sort_key(self) -> tuple[int, float, str]:
        """The worst node first, and of the others the one that may take least."""
        free = self.cpu.free / self.cpu.config if self.cpu is not None and self.cpu.config > 0 else 0.0
        return list(SEVERITIES).index(self.severity), free, self.node


def severity_of(one: ResourceFinding) -> Severity:
    """How a resource of a node fares."""
    if one.contention or (one.booked > one.config and one.closed):
        return "harm"
    if one.reason or one.compared < LEAST_SLICES:
        return "unsure"
    # A thousandth of the node is nothing that could be sold.
    return "room" if one.free > one.config / 1000 else "full"


def with_display_names(finding: NodeFinding, names: Mapping[str, str]) -> NodeFinding:
    """The finding with the display names of VMs, by name."""

    def named(one: ResourceFinding | None) -> ResourceFinding | None:
        if one is None:
            return None
        return replace(one, top=tuple(replace(vm, display_name=names.get(vm.name, "")) for vm in one.top))

    return replace(finding, cpu=named(finding.cpu), mem=named(finding.mem))
