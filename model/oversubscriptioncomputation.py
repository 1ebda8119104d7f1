"""The oversubscription strategies: how much of a resource is to be seen as used.

A strategy is one class and the line ``@register("name")`` above it. An instance serves one resource of
one node at one position (or at all of them, see :attr:`Strategy.per_position`) and keeps what it has to
remember itself. Once per finished slice, in time order, :meth:`Strategy.update` is told what was observed
and answers with a threshold; free = config - threshold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .conformal import STATE_FIELDS, ConformalBound, SliceObservation
from .numerics import aggregate, round_up, row_percentiles
from .slices import Resource, Window


@dataclass(frozen=True, slots=True)
class StrategySettings:
    """What the operator chose for one resource.

    Attributes
    ----------
    percentile : float
        P, 0 to 100 (``--cpu``, ``--mem``).
    aggregation : int
        N, how many successive samples are averaged before per-slice figures (``--aggreg``).
    risk : float
        In which share of the slices a promise may be broken (``--risk-cpu``, ``--risk-mem``).
    """

    percentile: float = 90.0
    aggregation: int = 1
    risk: float = 0.05


@dataclass(frozen=True, slots=True)
class Observation:
    """What a strategy sees of one resource at the end of a slice.

    Attributes
    ----------
    window : Window
        The current slice and its predecessors at the same position; the node has samples in the current.
    stable : bool
        Whether the current slice resembles the ones before (:mod:`model.stability`).
    position, positions : int
        Which slice of its scope it is, and how many these are.
    follows : bool
        Whether the node gave data in the slice before, too, whatever its position.
    """

    window: Window
    stable: bool
    position: int = 0
    positions: int = 1
    follows: bool = True

    @property
    def config(self) -> float:
        """What the node has."""
        return self.window.current.config

    @property
    def booked(self) -> float:
        """What is promised to the VMs."""
        return self.window.current.booked


class Strategy(ABC):
    """One way to tell how much of a resource is used."""

    per_position: ClassVar[bool] = True
    """False: one instance sees every slice in time order, whatever its position."""
    uses_vm_samples: ClassVar[bool] = False
    """Whether it looks at what single VMs used, and not only at what they were promised."""
    keeps_vm_samples: ClassVar[bool] = False
    """Whether it looks at that in the slices before the current one, too: they are much to remember."""
    parameters: ClassVar[tuple[str, ...]] = ()
    """What changes its answer: ``percentile``, ``aggregation`` and ``risk`` of its settings; ``stability``."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """The attributes that it carries from slice to slice; numbers, texts, None, and lists or dicts of them."""

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        self.resource = resource
        self.settings = settings

    @property
    def risk(self) -> float:
        """The share of its promises that may be broken, as it means to have it; NaN: it means nothing of the kind."""
        return math.nan

    @property
    def violation_rate(self) -> float:
        """The share of its last promises that was broken; NaN where nobody counts."""
        return math.nan

    def state(self) -> dict[str, Any]:
        """What it carries from slice to slice."""
        return {name: getattr(self, name) for name in self.state_fields}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where another instance's :meth:`state` was taken.

        Raises
        ------
        KeyError
            When something is missing in it.
        """
        for name in self.state_fields:
            setattr(self, name, state[name])

    @abstractmethod
    def update(self, observed: Observation) -> float:
        """Learn from the slice that ended and answer with the threshold T, in cores or MB."""


STRATEGIES: dict[str, type[Strategy]] = {}


def register(name: str) -> Callable[[type[Strategy]], type[Strategy]]:
    """Make a strategy known under the name that the command line uses."""

    def enter(strategy: type[Strategy]) -> type[Strategy]:
        STRATEGIES[name] = strategy
        return strategy

    return enter


@register("percentile")
class Percentile(Strategy):
    """T = P-th percentile (linear interpolation) of the pooled samples of the window."""

    parameters = ("percentile",)

    def update(self, observed: Observation) -> float:
        return float(np.percentile(observed.window.pooled, self.settings.percentile))


@register("doa")
class DegreeOfAggressiveness(Strategy):
    """T starts at what is booked; calm slices lower it by a twentieth, a full one raises it by half.

    max(u) < 0.95 config: T - round(config / 20), not below -2 config; else T + round(config / 2).
    u is the current slice, aggregated.
    """

    parameters = ("aggregation",)
    state_fields = ("threshold",)

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.threshold: float | None = None

    def update(self, observed: Observation) -> float:
        config = observed.config
        threshold = observed.booked if self.threshold is None else self.threshold
        busiest = aggregate(observed.window.current.node, self.settings.aggregation).max()
        if busiest < 0.95 * config:
            threshold = max(threshold - round(config / 20), -2 * config)
        else:
            threshold += round(config / 2)
        self.threshold = threshold
        return threshold


@register("greedy")
class Greedy(Strategy):
    """The highest per-slice percentile, with half of any growth on top until the node calms down.

    P = max over the window's slices of their P-th percentile, rounded up to 0.1 core or 1 MB;
    dB = booked - previous booked; dP = P - previous T. dB > 0 or dP > 0: T = P + max(dB, dP) / 2;
    else stable: T = P; else T = previous T. The first time dB = booked and dP = 0. Nothing booked and nothing
    used in the slice: T = P.
    """

    parameters = ("percentile", "aggregation", "stability")
    state_fields = ("previous_booked", "previous_threshold")

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.previous_booked = 0.0
        self.previous_threshold: float | None = None

    def update(self, observed: Observation) -> float:
        chosen = self.settings
        peaks = (past.peak(chosen.percentile, chosen.aggregation) for past in observed.window.slices)
        peak = round_up(max(peak for peak in peaks if not math.isnan(peak)), self.resource.resolution)
        idle = observed.booked == 0 and not observed.window.current.node.any()
        booked_growth = observed.booked - self.previous_booked
        peak_growth = 0.0 if self.previous_threshold is None else peak - self.previous_threshold
        if idle or (observed.stable and booked_growth <= 0 and peak_growth <= 0):
            threshold = peak
        elif booked_growth > 0 or peak_growth > 0:
            threshold = peak + max(booked_growth, peak_growth) / 2
        elif self.previous_threshold is None:
            threshold = peak
        else:
            threshold = self.previous_threshold
        self.previous_booked = observed.booked
        self.previous_threshold = threshold
        return threshold


@register("scroogevm")
class ScroogeVM(Strategy):
    """T = mean + r std of the pooled samples; r shrinks while the node is stable, grows with its usage.

    r starts at 3.5 and stays in [2, 5]. Stable: r - 0.1; else r + 0.2 when the mean exceeds the previous
    slice's mean, rounded up to 0.1 (core or MB); else r stays.
    """

    parameters = ("aggregation", "stability")
    state_fields = ("ratio", "previous_mean")

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.ratio = 3.5
        self.previous_mean: float | None = None

    def update(self, observed: Observation) -> float:
        window = observed.window
        if observed.stable:
            self.ratio = max(self.ratio - 0.1, 2.0)
        elif self.previous_mean is not None and window.mean > self.previous_mean:
            self.ratio = min(self.ratio + 0.2, 5.0)
        mean = float(aggregate(window.current.node, self.settings.aggregation).mean())
        self.previous_mean = round_up(mean, 0.1)
        return window.mean + self.ratio * window.std


@register("nsigma")
class NSigma(Strategy):
    """T = mean + 5 std of the pooled samples.

    After the N-sigma predictor of Bashir et al., "Take it to the limit: peak prediction-driven resource
    overcommitment in datacenters", EuroSys 2021; on absolute node usage and not capped.
    """

    def update(self, observed: Observation) -> float:
        return observed.window.mean + 5 * observed.window.std


@register("rclike")
class ResourceCentralLike(Strategy):
    """T = the sum of the VMs' own peaks; a VM whose window is not full counts with its configuration.

    A peak is the 99th percentile of a VM's CPU usage, at most its vCPUs, or the maximum of its memory.
    After Cortez et al., "Resource Central", SOSP 2017, as simplified in Bashir et al., EuroSys 2021.
    """

    uses_vm_samples = keeps_vm_samples = True

    def update(self, observed: Observation) -> float:
        config = observed.window.current.vm_config
        peak = observed.window.vm_percentile(self.resource.vm_peak_percentile)
        if self.resource.vm_peak_capped:
            peak = np.fmin(peak, config)
        return float(np.nansum(np.where(np.isnan(peak), config, peak)))


@register("borg")
class BorgDefault(Strategy):
    """T = booked / 1.1: a fixed ratio, after the default of Borg as told in Bashir et al., EuroSys 2021."""

    def update(self, observed: Observation) -> float:
        return observed.booked / 1.1


@register("maxpeak")
class MaxPeak(Strategy):
    """T = max(nsigma, rclike), the most careful of both; Bashir et al., EuroSys 2021."""

    uses_vm_samples = keeps_vm_samples = True

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.predictors = (NSigma(resource, settings), ResourceCentralLike(resource, settings))

    def update(self, observed: Observation) -> float:
        return max(predictor.update(observed) for predictor in self.predictors)


@register("conformal")
class Conformal(Strategy):
    """T is exceeded in a chosen share of the slices, ``--risk``, and as close to the usage as that permits.

    T = sum of w_i (f_i + q_i), at most what is booked and the node itself uses. f_i: the last peak, decaying maxima of
    the peaks before, of those at the next position of the scope, and of the VMs' own; q_i: a high quantile of the
    errors that f_i made, the higher the more promises were broken; w_i: by recent errors. The formulas, and whose they
    are, stand at :class:`~model.conformal.ConformalBound`.
    """

    per_position = False
    uses_vm_samples = True
    parameters = ("risk",)
    state_fields = STATE_FIELDS

    def __init__(self, resource: Resource, settings: StrategySettings) -> None:
        super().__init__(resource, settings)
        self.bound = ConformalBound(settings.risk, resource.resolution)

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

    def update(self, observed: Observation) -> float:
        present = observed.window.slices[-1]
        usage = present.usage
        samples = np.sort(usage.vm_usage, axis=1)  # NaN last
        count = samples.shape[1] - np.isnan(samples).sum(axis=1)
        peak = row_percentiles(samples, (self.resource.vm_peak_percentile,))[0]
        return self.bound.update(
            SliceObservation(
                position=observed.position,
                positions=observed.positions,
                follows=observed.follows,
                config=usage.config,
                booked=usage.booked,
                peak=float(row_percentiles(np.sort(usage.node)[None, :], (99.0,))[0, 0]),
                mean=float(usage.node.mean()),
                std=float(usage.node.std()),
                vms=present.vms,
                vm_config=usage.vm_config,
                vm_mean=np.nansum(samples, axis=1) / np.where(count > 0, count, np.nan),
                vm_peak=np.fmin(peak, usage.vm_config) if self.resource.vm_peak_capped else peak,
            )
        )
