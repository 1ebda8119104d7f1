"""The status of a node as it is published: its figures, or the state that explains why there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from .contention import Contention, present_text
from .estimates import Estimate, NodeEstimate
from .guards import CONTENTION, offered_capacity
from .slices import CPU, MEMORY, RESOURCES, Resource, Slice, Usage

State = Literal["ok", "stale", "unknown"]


@dataclass(frozen=True, slots=True)
class Figures:
    """One resource of a node at the end of a slice, cores or MB.

    Attributes
    ----------
    config, booked : float
        The capacity of the node, and the sum of the allocations of the VMs of the slice.
    booked_now : float
        The sum of the allocations of the VMs that are alive at the end of the slice. What a scheduler may place in
        total is this and what is free: of a VM that left and the VM that replaced it, only one is there.
    tier0, tier1, tier2 : float
        Used, between, free, at the position of the slice.
    free : float
        The published free: the minimum over all positions.
    slice_end_s : float
        Unix seconds.
    risk, violation_rate, forecast_violation_rate : float or None
        The target risk of the strategy; the share of recent slices in which the node was full, or more was used than
        was left; the share in which the strategy's own figure was violated. None if there is no such figure: unlike
        NaN, None equals itself after it was written and read.
    unguarded : float or None
        What would be published without guards.
    closed : bool
        Whether the guards found less than nothing free: what VMs leave must not be offered again.
    limits : mapping of guard to float
        What was left by each guard that lowered the figure, in the order of the guards.
    contention : Contention
        How much the VMs suffer, and which.
    used : float or None
        99th percentile of the usage, a share of the capacity.
    own : float
        The least that the node itself uses beside its VMs, by the means of the slice. 0 while a VM has no samples: what
        it uses would count as the node's. For memory a VM counts with its allocation, because its process may hold more
        than the guest uses.
    """

    config: float
    booked: float
    booked_now: float
    tier0: float
    tier1: float
    tier2: float
    free: float
    slice_end_s: float
    risk: float | None = None
    violation_rate: float | None = None
    forecast_violation_rate: float | None = None
    unguarded: float | None = None
    closed: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    contention: Contention = Contention()  # noqa: RUF009  # immutable
    used: float | None = None
    own: float = 0.0


def guard_reasons(limits: Mapping[str, float], *, closed: bool, text_of: Callable[[float], str]) -> str:
    """Why less is published than the strategy computed: ``horizon 10.2, ramp 7.5``.

    Parameters
    ----------
    limits : mapping of guard to float
    closed : bool
    text_of : callable
        The text of an amount, cores or MB.
    """
    reasons = [f"{guard} {text_of(max(left, 0.0))}" for guard, left in limits.items()]
    return ", ".join([*reasons, "closed"] if closed else reasons)


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource of a node.

    Attributes
    ----------
    state : str
        ``ok``; ``stale``: no samples in the last slice; ``unknown``: no samples yet.
    last : Figures or None
        The latest figures; those of this slice when the state is ``ok``.
    others : mapping of strategy to float
        The free resources that each strategy would have published at the end of this slice, cores or MB.
    reason : str
        Why there are no figures of the last slice although the node was scraped.
    """

    state: State = "unknown"
    last: Figures | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def free(self) -> float:
        """The published free: 0 unless the state is ``ok``."""
        return self.last.free if self.last is not None and self.state == "ok" else 0.0

    @property
    def contention(self) -> Contention:
        """How much the VMs suffer; not at all unless the state is ``ok``."""
        return self.last.contention if self.last is not None and self.state == "ok" else Contention()

    @property
    def contention_text(self) -> str:
        """What VMs suffer from, in a few words; empty when they do not."""
        used = math.nan if self.last is None or self.last.used is None else self.last.used
        return present_text(self.contention, used)

    @property
    def capacity(self) -> float:
        """What a scheduler may book in total, cores or MB; NaN before the first figures."""
        last = self.last
        if last is None:
            return math.nan
        return offered_capacity(last.booked_now, self.free, last.config, closed=last.closed)

    @property
    def ratio(self) -> float:
        """Capacity / config; NaN if the configuration is unknown."""
        if self.last is None or not self.last.config > 0:
            return math.nan
        return self.capacity / self.last.config

    def contended(self, contention: Contention) -> ResourceStatus:
        """The status when the VMs suffer in the present slice: nothing is free until it ends."""
        if self.last is None or self.state != "ok":
            return self
        limits = {**self.last.limits, CONTENTION: -1.0}
        last = replace(self.last, free=0.0, closed=True, limits=limits, contention=contention)
        return replace(self, last=last, others=dict.fromkeys(self.others, 0.0))

    def aged(self, reason: str = "") -> ResourceStatus:
        """The status after a later slice without samples, or with samples that do not count for a reason."""
        state: State = "unknown" if self.last is None else "stale"
        return replace(self, state=state, others=dict.fromkeys(self.others, 0.0), reason=reason)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The status of a node.

    Attributes
    ----------
    node, strategy : str
    slice_end_s : float
        The end of the slice that the status describes, Unix seconds; NaN before the first one.
    cpu, mem : ResourceStatus
    """

    node: str
    strategy: str
    slice_end_s: float = math.nan
    cpu: ResourceStatus = ResourceStatus()
    mem: ResourceStatus = ResourceStatus()

    @property
    def state(self) -> State:
        """The better state of the two resources. The other resource has its own state, and publishes 0."""
        states = (self.cpu.state, self.mem.state)
        return "ok" if "ok" in states else "stale" if "stale" in states else "unknown"

    def of(self, resource: Resource) -> ResourceStatus:
        """The status of one resource."""
        return self.cpu if resource is CPU else self.mem

    def aged(self, slice_end_s: float) -> NodeStatus:
        """The status after a later slice without samples."""
        return replace(self, slice_end_s=slice_end_s, cpu=self.cpu.aged(), mem=self.mem.aged())

    def contended(self, contentions: Mapping[str, Contention]) -> NodeStatus:
        """The status when the VMs suffer in the present slice, by resource name."""
        cpu, mem = (
            self.of(resource).contended(contentions[resource.name])
            if resource.name in contentions
            else self.of(resource)
            for resource in RESOURCES
        )
        return replace(self, cpu=cpu, mem=mem)

    def after(self, finished: Slice, estimate: NodeEstimate) -> NodeStatus:
        """The status after the next slice."""
        return replace(
            self,
            slice_end_s=finished.end_s,
            cpu=self._resource_after(CPU, finished, estimate),
            mem=self._resource_after(MEMORY, finished, estimate),
        )

    def _resource_after(self, resource: Resource, finished: Slice, estimate: NodeEstimate) -> ResourceStatus:
        usage, estimates = finished.usage(resource), estimate.of(resource).by_strategy
        if not usage.measured:
            return self.of(resource).aged(usage.missing)
        last = _figures(
            *(resource, estimates[self.strategy], usage, finished.end_s), contention=estimate.of(resource).contention
        )
        return ResourceStatus("ok", last, {name: one.published for name, one in estimates.items()})


def _figures(
    resource: Resource, estimate: Estimate, usage: Usage, slice_end_s: float, contention: Contention
) -> Figures:
    return Figures(
        config=usage.config,
        booked=usage.booked,
        booked_now=usage.booked_now,
        # A threshold below 0 is that of a strategy which would sell more than there is.
        tier0=max(0.0, estimate.tier0),
        tier1=estimate.tier1,
        tier2=min(estimate.tier2, usage.config),
        free=estimate.published,
        slice_end_s=slice_end_s,
        risk=_none_if_nan(estimate.risk),
        violation_rate=_none_if_nan(estimate.violation_rate),
        forecast_violation_rate=_none_if_nan(estimate.forecast_violation_rate),
        unguarded=estimate.unguarded,
        closed=estimate.closed,
        limits=dict(estimate.limits),
        contention=contention,
        used=usage.peak / usage.config,
        own=_own_usage(resource, usage),
    )


def _own_usage(resource: Resource, usage: Usage) -> float:
    of_vms = usage.vm_sums.means if resource is CPU else usage.vm_config
    if np.isnan(of_vms).any():
        return 0.0
    return max(0.0, usage.mean - float(of_vms.sum()))


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
