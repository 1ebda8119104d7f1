"""What is published of a node: fresh figures, or the plain statement that there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .nodemodel import Estimate, NodeEstimate
from .slices import CPU, MEMORY, Resource, Slice

State = Literal["ok", "stale", "unknown"]


@dataclass(frozen=True, slots=True)
class Figures:
    """One resource of a node at the end of a slice, cores or MB.

    Attributes
    ----------
    config, booked : float
        What the node has, what its VMs were promised.
    tier0, tier1, tier2 : float
        Used for sure, between, free, by the slice's own position.
    free : float
        What was published: the least that is free at any position.
    slice_end_s : float
        Unix seconds.
    risk, violation_rate : float or None
        The share of its promises that the strategy means to have broken, and that of the last ones that was. None
        where there is nothing to tell: unlike NaN, that equals itself when it has been written down and read.
    """

    config: float
    booked: float
    tier0: float
    tier1: float
    tier2: float
    free: float
    slice_end_s: float
    risk: float | None = None
    violation_rate: float | None = None


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource of a node.

    Attributes
    ----------
    state : str
        ``ok``; ``stale``: nothing was heard in the last whole slice; ``unknown``: nothing ever was.
    last : Figures or None
        The last ones that there were; those of this slice when the state is ``ok``.
    others : mapping of strategy to float
        What each strategy would have published at the end of this slice, cores or MB.
    """

    state: State = "unknown"
    last: Figures | None = None
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def free(self) -> float:
        """What may be placed on the node: nothing, when nothing is known."""
        return self.last.free if self.last is not None and self.state == "ok" else 0.0

    @property
    def ratio(self) -> float:
        """(booked + free) / config; NaN when that is not known."""
        known = self.last is not None and self.last.config > 0
        return (self.last.booked + self.free) / self.last.config if self.last is not None and known else math.nan

    def aged(self) -> ResourceStatus:
        """The same once its slice is no longer the last one."""
        others = dict.fromkeys(self.others, 0.0)
        return replace(self, state="unknown" if self.last is None else "stale", others=others)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node.

    Attributes
    ----------
    node, strategy : str
    slice_end_s : float
        The end of the slice of which this is said, Unix seconds; NaN before the first.
    cpu, mem : ResourceStatus
    """

    node: str
    strategy: str
    slice_end_s: float = math.nan
    cpu: ResourceStatus = ResourceStatus()
    mem: ResourceStatus = ResourceStatus()

    @property
    def state(self) -> State:
        """The better one of its resources: the other one has its own beside it, and publishes 0."""
        states = (self.cpu.state, self.mem.state)
        return "ok" if "ok" in states else "stale" if "stale" in states else "unknown"

    def of(self, resource: Resource) -> ResourceStatus:
        """One resource."""
        return self.cpu if resource is CPU else self.mem

    def aged(self, slice_end_s: float) -> NodeStatus:
        """What is said when a later slice has ended and nothing is known of it."""
        return replace(self, slice_end_s=slice_end_s, cpu=self.cpu.aged(), mem=self.mem.aged())

    def after(self, finished: Slice, estimate: NodeEstimate) -> NodeStatus:
        """What is said at the end of the next slice."""
        return replace(
            self,
            slice_end_s=finished.end_s,
            cpu=self._resource_after(CPU, finished, estimate),
            mem=self._resource_after(MEMORY, finished, estimate),
        )

    def _resource_after(self, resource: Resource, finished: Slice, estimate: NodeEstimate) -> ResourceStatus:
        usage, said = finished.usage(resource), estimate.of(resource).by_strategy
        if not usage.measured:
            return self.of(resource).aged()
        last = _figures(said[self.strategy], usage.config, usage.booked, finished.end_s)
        return ResourceStatus("ok", last, {name: answer.published for name, answer in said.items()})


def _figures(said: Estimate, config: float, booked: float, slice_end_s: float) -> Figures:
    return Figures(
        *(config, booked, said.tier0, said.tier1, said.tier2, said.published, slice_end_s),
        risk=_known(said.risk),
        violation_rate=_known(said.violation_rate),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
