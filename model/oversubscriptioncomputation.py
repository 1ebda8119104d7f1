"""The oversubscription strategies: how much of a resource counts as used.

A strategy is one class with ``@register("name")`` above it. An instance serves one resource of one node at one position
(or at all positions, see :attr:`Strategy.per_position`) and holds its own state. :meth:`Strategy.update` is called once
per finished slice, in time order, and returns the threshold T; free = config - T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .clt import MOST_RISK as CLT_MOST_RISK
from .clt import moment_bound
from .conformal import MOST_RISK as CONFORMAL_MOST_RISK
from .conformal import STATE_FIELDS, ConformalBound, SliceObservation
from .feedback import ResourceFeedback
from .numerics import aggregate, known_sum, mean_of, percentile_of, round_up, row_percentile, zero_if_missing
from .slices import PresentUsage, Resource, Window
from .vmmoments import VmFigures, counted_scope


@dataclass(frozen=True, slots=True)
class StrategySettings:
    """The parameters of the strategies for one resource.

    Attributes
    ----------
    percentile : float
        P, 0 to 100 (``--cpu``, ``--mem``).
    aggregation : int
        N, number of successive samples that are averaged before per-slice figures (``--aggreg``).
    risk : float
        Target share of violated slices, 0 to 1 (``--risk-cpu``, ``--risk-mem``).
    censored : bool
        Whether a full slice counts as violated: usage is cut at the capacity of the node. Set with the guards.
    """

    percentile: float = 90.0
    aggregation: int = 1
    risk: float = 0.05
    censored: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """The input of a strategy: one resource at the end of a slice.

    Attributes
    ----------
    window : Window
        The current slice, in which the node has samples, and its predecessors at the same position.
    stable : bool
        Whether the current slice resembles its predecessors, see :mod:`model.stability`.
    position, positions : int
        Position of the slice in its scope, and number of positions.
    follows : bool
        Whether the node has data in the slice before, at whatever position.
    feedback : ResourceFeedback
        What the fleet has learnt until the slice before.
    vms : VmFigures or None
        Moments of the single VMs, where a strategy uses them.
    demand : PresentUsage or None
        The current slice with what its VMs wanted in place of what they used, as far as it is known how long they
        waited; None: their usage.
    contended : bool
        Whether the VMs suffered.
    """

    window: Window
    stable: bool
    position: int = 0
    positions: int = 1
    follows: bool = True
    feedback: ResourceFeedback = ResourceFeedback()  # noqa: RUF009  # immutable
    vms: VmFigures | None = None
    demand: PresentUsage | None = None
    contended: bool = False

    @property
    def wanted(self) -> PresentUsage:
        """The current slice, with demand where it is known."""
        return self.window.slices[-1] if self.demand is None else self.demand

    @property
    def config(self) -> float:
        """Capacity of the node, cores or MB."""
        return self.window.current.config

    @property
    def booked(self) -> float:
        """Allocation of its VMs, cores or MB."""
        return self.window.current.booked


class Strategy(ABC):
    """Computes how much of a resource counts as used."""

    summary: ClassVar[str]
    """One line for help texts and documentation."""
    per_position: ClassVar[bool] = True
    """False: one instance processes all slices in time order, whatever their position."""
    uses_vm_samples: ClassVar[bool] = False
    """Whether it reads the usage of single VMs, in addition to their allocations."""
    keeps_vm_samples: ClassVar[bool] = False
    """Whether it reads that usage in earlier slices, too, which then have to be kept in memory."""
    uses_vm_moments: ClassVar[bool] = False
    """Whether it reads mean and variance of single VMs over a scope."""
    most_risk: ClassVar[float] = 1.0
    """The largest target risk of a strategy with the parameter ``risk``."""
    parameters: ClassVar[tuple[str, ...]] = ()
    """The parameters that change its result: fields of :class:`StrategySettings`, and ``stability``."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """The attributes that form its state: numbers, strings, None, and lists or dicts of them."""

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        self.resource = resource
        self.settings = settings

    @property
    def risk(self) -> float:
        """Target risk, 0 to 1; NaN for a strategy without one."""
        return math.nan

    @property
    def violation_rate(self) -> float:
        """Violated share of its recent published figures, 0 to 1; NaN for a strategy that does not measure it."""
        return math.nan

    def state(self) -> dict[str, Any]:
        """The state after the last slice, by name."""
        return {name: getattr(self, name) for name in self.state_fields}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError
            When a field is missing.
        """
        for name in self.state_fields:
            setattr(self, name, state[name])

    @abstractmethod
    def update(self, observation: Observation) -> float:
        """Process a finished slice and return the threshold T, cores or MB."""


STRATEGIES: dict[str, type[Strategy]] = {}


def register(name: str) -> Callable[[type[Strategy]], type[Strategy]]:
    """Add a strategy to :data:`STRATEGIES`, under its name on the command line."""

    def add(strategy: type[Strategy]) -> type[Strategy]:
        STRATEGIES[name] = strategy
        return strategy

    return add


@register("percentile")
class Percentile(Strategy):
    """T = P-th percentile (linear interpolation) of the pooled samples of the window."""

    summary = "P-th percentile of the usage in the window"
    parameters = ("percentile",)

    def update(self, observation: Observation) -> float:
        return percentile_of(observation.window.pooled, self.settings.percentile)


@register("doa")
class DegreeOfAggressiveness(Strategy):
    """T starts at booked, falls by config / 20 after a calm slice and rises by config / 2 after a full one.

    u is the current slice, aggregated. If max(u) < 0.95 config: T <- max(T - round(config / 20), -2 config);
    else T <- T + round(config / 2).
    """

    summary = "starts at the allocation; a step down after a calm slice, a step up after a full one"
    parameters = ("aggregation",)
    state_fields = ("threshold",)

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.threshold: float | None = None

    def update(self, observation: Observation) -> float:
        config = observation.config
        threshold = observation.booked if self.threshold is None else self.threshold
        peak = np.maximum.reduce(aggregate(observation.window.current.node, self.settings.aggregation))
        if peak < 0.95 * config:
            threshold = max(threshold - round(config / 20), -2 * config)
        else:
            threshold += round(config / 2)
        self.threshold = threshold
        return threshold


@register("greedy")
class Greedy(Strategy):
    """T is the highest per-slice percentile, plus half of any growth until the node is stable.

    P = max over the slices of the window of their P-th percentile, rounded up to 0.1 core or 1 MB;
    dB = booked - previous booked, dP = P - previous T. In the first slice dB = booked and dP = 0.
    If nothing is booked and nothing used in the slice: T = P; if dB > 0 or dP > 0: T = P + max(dB, dP) / 2;
    else if stable: T = P; else T = previous T.
    """

    summary = "highest per-slice percentile, plus half of any growth until the node is stable"
    parameters = ("percentile", "aggregation", "stability")
    state_fields = ("previous_booked", "previous_threshold")

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.previous_booked = 0.0
        self.previous_threshold: float | None = None

    def update(self, observation: Observation) -> float:
        settings = self.settings
        peaks = (past.peak(settings.percentile, settings.aggregation) for past in observation.window.slices)
        peak = round_up(max(peak for peak in peaks if not math.isnan(peak)), self.resource.resolution)
        idle = observation.booked == 0 and not observation.window.current.node.any()
        booked_growth = observation.booked - self.previous_booked
        peak_growth = 0.0 if self.previous_threshold is None else peak - self.previous_threshold
        if idle or (observation.stable and booked_growth <= 0 and peak_growth <= 0):
            threshold = peak
        elif booked_growth > 0 or peak_growth > 0:
            threshold = peak + max(booked_growth, peak_growth) / 2
        elif self.previous_threshold is None:
            threshold = peak
        else:
            threshold = self.previous_threshold
        self.previous_booked = observation.booked
        self.previous_threshold = threshold
        return threshold


@register("scroogevm")
class ScroogeVM(Strategy):
    """T = mean + r std of the pooled samples; r shrinks while the node is stable and grows with its usage.

    r starts at 3.5 and stays in [2, 5]. Stable: r <- r - 0.1; else, if the mean of the window exceeds the mean of the
    previous slice (aggregated, rounded up to 0.1 core or MB): r <- r + 0.2; else r stays.
    """

    summary = "mean + r standard deviations; r shrinks while the node is stable (2 to 5)"
    parameters = ("aggregation", "stability")
    state_fields = ("ratio", "previous_mean")

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.ratio = 3.5
        self.previous_mean: float | None = None

    def update(self, observation: Observation) -> float:
        window = observation.window
        if observation.stable:
            self.ratio = max(self.ratio - 0.1, 2.0)
        elif self.previous_mean is not None and window.mean > self.previous_mean:
            self.ratio = min(self.ratio + 0.2, 5.0)
        mean = mean_of(aggregate(window.current.node, self.settings.aggregation))
        self.previous_mean = round_up(mean, 0.1)
        return window.mean + self.ratio * window.std


@register("nsigma")
class NSigma(Strategy):
    """T = mean + 5 std of the pooled samples.

    After the N-sigma predictor of Bashir et al., "Take it to the limit: peak prediction-driven resource
    overcommitment in datacenters", EuroSys 2021; here on absolute usage of the node, without a cap.
    """

    summary = "mean + 5 standard deviations"

    def update(self, observation: Observation) -> float:
        return observation.window.mean + 5 * observation.window.std


@register("rclike")
class ResourceCentralLike(Strategy):
    """T = the sum of the VMs' own peaks; a VM whose window is not full counts with its allocation.

    A peak is the 99th percentile of a VM's CPU usage, at most its vCPUs, or the maximum of its memory usage.
    After Cortez et al., "Resource Central", SOSP 2017, as simplified in Bashir et al., EuroSys 2021.
    """

    summary = "sum of the VMs' own peaks"
    uses_vm_samples = keeps_vm_samples = True

    def update(self, observation: Observation) -> float:
        config = observation.window.current.vm_config
        peak = observation.window.vm_percentile(self.resource.vm_peak_percentile)
        if self.resource.vm_peak_capped:
            peak = np.fmin(peak, config)
        return known_sum(np.where(np.isnan(peak), config, peak))


@register("borg")
class BorgDefault(Strategy):
    """T = booked / 1.1: a fixed ratio, the default of Borg according to Bashir et al., EuroSys 2021."""

    summary = "booked / 1.1"

    def update(self, observation: Observation) -> float:
        return observation.booked / 1.1


@register("maxpeak")
class MaxPeak(Strategy):
    """T = max(nsigma, rclike), the maximum predictor of Bashir et al., EuroSys 2021."""

    summary = "the larger of nsigma and rclike"
    uses_vm_samples = keeps_vm_samples = True

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.predictors = (NSigma(resource, settings), ResourceCentralLike(resource, settings))

    def update(self, observation: Observation) -> float:
        return max(predictor.update(observation) for predictor in self.predictors)


@register("conformal")
class Conformal(Strategy):
    """T is exceeded in a target share of the slices, ``--risk``, and as close to the usage as that permits.

    T = sum of w_i (f_i + q_i), at most booked plus the node's own usage. f_i: the last peak, decaying maxima of past
    peaks, of those at the next position of the scope, and of the VMs' own peaks; q_i: a high quantile of the errors of
    f_i, higher after violations; w_i: weights by recent errors. :class:`~model.conformal.ConformalBound` has the
    formulas and their sources.
    """

    summary = "exceeded in a share --risk of the slices: forecasts, and a margin from their own errors"
    per_position = False
    uses_vm_samples = True
    parameters = ("risk",)
    most_risk = CONFORMAL_MOST_RISK
    state_fields = STATE_FIELDS

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.bound = ConformalBound(settings.risk, resource.resolution, censored=settings.censored)

    @property
    def risk(self) -> float:
        return self.settings.risk

    @property
    def violation_rate(self) -> float:
        return self.bound.violation_rate

    def state(self) -> dict[str, Any]:
        return self.bound.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.bound.restore(state)

    def update(self, observation: Observation) -> float:
        current = observation.wanted
        usage = current.usage
        peak = row_percentile(usage.vm_usage, self.resource.vm_peak_percentile)
        return self.bound.update(
            SliceObservation(
                position=observation.position,
                positions=observation.positions,
                follows=observation.follows,
                config=usage.config,
                booked=usage.booked,
                peak=usage.peak,
                mean=usage.mean,
                std=usage.std,
                vms=current.vms,
                vm_config=usage.vm_config,
                vm_mean=usage.vm_sums.means,
                vm_peak=np.fmin(peak, usage.vm_config) if self.resource.vm_peak_capped else peak,
                contended=observation.contended,
            )
        )


@register("clt")
class CentralLimit(Strategy):
    """T = own + sum m_i + z sqrt(sum s_i^2): means and variances of the single VMs over about a scope.

    z is the normal quantile of the target risk, ``--risk``. VMs that are young count in part as VMs of their size do.
    :func:`~model.clt.moment_bound` has the formula and its source. T is at
    least the 99th percentile of the slice, at most what is booked now plus own, the usage of the node itself.
    """

    summary = "sum of the VMs' means plus z standard deviations of the sum; z by --risk"
    per_position = False
    uses_vm_samples = True
    parameters = ("risk",)
    uses_vm_moments = True
    most_risk = CLT_MOST_RISK
    state_fields = ("slices", "own")

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.slices = 0
        self.own = 0.0

    @property
    def risk(self) -> float:
        return self.settings.risk

    def update(self, observation: Observation) -> float:
        vms, current = observation.vms, observation.wanted
        assert vms is not None  # noqa: S101  # the node model follows the VMs for this strategy
        scope = counted_scope(observation.positions)
        own = max(current.usage.mean - float(np.add.reduce(zero_if_missing(vms.used))), 0.0)
        self.slices += 1
        self.own += max(1.0 / self.slices, 1.0 / scope) * (own - self.own)
        bound = moment_bound(self.resource, self.settings.risk, scope, vms, observation.feedback)
        return max(self.own + min(bound, current.usage.booked_now), current.usage.peak)
