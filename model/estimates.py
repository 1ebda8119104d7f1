"""What the model of a node computes at the end of a slice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from .contention import Contention
from .feedback import SliceCounts
from .guards import offered_capacity
from .slices import CPU, Resource


class Estimate(msgspec.Struct, frozen=True):
    """The estimate of one strategy for one resource at the end of a slice, cores or MB.

    Attributes
    ----------
    threshold : float
        The result of the strategy, unrounded.
    tier0, tier1, tier2 : float
        Used, between the two thresholds (always 0 so far), free.
    published : float
        The published free: the minimum of the free resources over all positions so far, and at most the capacity;
        lowered by the guards, where they are on.
    risk, forecast_violation_rate : float
        The target risk of the strategy, and the share of recent slices in which its own figure was violated; NaN for a
        strategy without a target risk, and before the first slice that a forecast can be compared with.
    violation_rate : float
        Share of recent slices in which the node was full, or more was used than was left of the published figure; NaN
        before the first slice that can be compared.
    violated : float
        The same for this slice: 1 or 0; NaN when there was no figure before it.
    unguarded : float
        What would be published without guards.
    closed : bool
        Whether what the VMs of the node leave must not be offered again.
    limits : mapping of guard to float
        What was left by each guard that lowered the figure, in the order of the guards.
    """

    threshold: float
    tier0: float
    tier1: float
    tier2: float
    published: float
    risk: float = math.nan
    forecast_violation_rate: float = math.nan
    violation_rate: float = math.nan
    violated: float = math.nan
    unguarded: float = 0.0
    closed: bool = False
    limits: Mapping[str, float] = msgspec.field(default_factory=dict)

    @property
    def free(self) -> float:
        """The free resources, an alias of tier2."""
        return self.tier2

    def capacity(self, booked_now: float, config: float) -> float:
        """What a scheduler may book on the node in total, cores or MB; see :func:`~model.guards.offered_capacity`."""
        return offered_capacity(booked_now, self.published, config, closed=self.closed)


#: The estimate for a slice without samples of the node: nothing is published as free.
UNKNOWN = Estimate(threshold=math.nan, tier0=math.nan, tier1=math.nan, tier2=math.nan, published=0.0)


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """One resource at the end of a slice: its stability, the estimate of each strategy, and the contention.

    The level of the contention is the one on which the node acts; that of the slice alone may be lower.
    """

    stable: bool
    by_strategy: Mapping[str, Estimate]
    contention: Contention = Contention()  # noqa: RUF009  # immutable


@dataclass(frozen=True, slots=True)
class NodeEstimate:
    """The estimates for a node at the end of a slice, and what its fleet learns from the slice."""

    cpu: ResourceEstimate
    mem: ResourceEstimate
    counts: SliceCounts = SliceCounts()  # noqa: RUF009  # immutable

    def of(self, resource: Resource) -> ResourceEstimate:
        """The estimate of one resource."""
        return self.cpu if resource is CPU else self.mem
