"""The model of one node: takes slices in time order and returns estimates, live and in a replay alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .oversubscriptioncomputation import STRATEGIES, Observation, Strategy, StrategySettings
from .slices import CPU, RESOURCES, PresentUsage, Resource, Slice, Window
from .stability import StabilityDetector, is_stable, mean_predictor


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of one strategy for one resource at the end of a slice, cores or MB.

    Attributes
    ----------
    threshold : float
        The result of the strategy, unrounded.
    tier0, tier1, tier2 : float
        Used, between the two thresholds (always 0 so far), free.
    published : float
        The published free: the minimum of the free resources over all positions so far, and at most the capacity.
    risk, violation_rate : float
        The target risk of the strategy, and the share of recent slices that were violated; NaN for a strategy
        without a target risk, and before the first slice that a forecast can be compared with.
    """

    threshold: float
    tier0: float
    tier1: float
    tier2: float
    published: float
    risk: float = math.nan
    violation_rate: float = math.nan

    @property
    def free(self) -> float:
        """The free resources, an alias of tier2."""
        return self.tier2


#: The estimate for a slice without samples of the node: nothing is published as free.
UNKNOWN = Estimate(threshold=math.nan, tier0=math.nan, tier1=math.nan, tier2=math.nan, published=0.0)


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """Stability of one resource at the end of a slice, and the estimate of each strategy."""

    stable: bool
    by_strategy: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class NodeEstimate:
    """The estimates for a node at the end of a slice."""

    cpu: ResourceEstimate
    mem: ResourceEstimate

    def of(self, resource: Resource) -> ResourceEstimate:
        """The estimate of one resource."""
        return self.cpu if resource is CPU else self.mem


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Parameters of the model of a node.

    Attributes
    ----------
    historical : int
        h, the number of earlier slices at the same position in the window, beside the current slice.
    strategies : tuple of str
        Names in :data:`~model.oversubscriptioncomputation.STRATEGIES`.
    cpu, mem : StrategySettings
        Parameters of the strategies, by resource.
    positions : int
        S, the slices of a scope. Replay and estimator set it; with 1 no strategy looks for a season.
    """

    historical: int
    strategies: tuple[str, ...]
    cpu: StrategySettings = field(default_factory=StrategySettings)
    mem: StrategySettings = field(default_factory=StrategySettings)
    positions: int = 1

    @property
    def uses_vm_samples(self) -> bool:
        """Whether any strategy uses the samples of single VMs."""
        return any(STRATEGIES[name].uses_vm_samples for name in self.strategies)

    @property
    def keeps_vm_samples(self) -> bool:
        """Whether any strategy uses the samples of single VMs in earlier slices too."""
        return any(STRATEGIES[name].keeps_vm_samples for name in self.strategies)


@dataclass(frozen=True, slots=True)
class ModelState:
    """The state of a model between two slices, without the slices of its windows.

    Nested dicts with numbers, texts and None as leaves, which any serializer can write.

    Attributes
    ----------
    node : dict
        By resource name, the state that is common to all positions.
    position : dict
        By resource name, the state of one position.
    """

    node: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)


class _Position:
    """The slices of one resource at one position, and the instances of the strategies."""

    def __init__(self, historical: int, strategies: Mapping[str, Strategy]) -> None:
        # One slice more than the window: stability compares the new one with h + 1 older ones.
        self.slices: deque[PresentUsage] = deque(maxlen=historical + 2)
        self.window_length = historical + 1
        self.strategies = strategies

    def stable(self, detector: StabilityDetector) -> bool:
        """Whether the latest slice resembles the h + 1 slices before it; False as long as there are fewer."""
        *older, new = self.slices
        if len(older) < self.window_length:
            return False
        pooled = np.concatenate([past.usage.node for past in older])
        return pooled.size > 0 and is_stable(detector, pooled, new.usage.node, new.usage.config)

    def window(self) -> Window:
        return Window(list(self.slices)[-self.window_length :], self.window_length)


class _ResourceModel:
    """One resource of a node at all positions."""

    def __init__(self, resource: Resource, settings: ModelSettings, detector: StabilityDetector) -> None:
        self.resource = resource
        self.settings = settings
        self.detector = detector
        self.positions: dict[int, _Position] = {}
        self.free: dict[str, dict[int, float]] = {name: {} for name in settings.strategies}
        self.shared = self._instances(per_position=False)
        self.begun_s = math.inf  # end of the first slice with samples
        self.measured = False  # whether the slice before has samples

    def _instances(self, per_position: bool) -> dict[str, Strategy]:
        parameters = self.settings.cpu if self.resource is CPU else self.settings.mem
        return {
            name: STRATEGIES[name](self.resource, parameters)
            for name in self.settings.strategies
            if STRATEGIES[name].per_position is per_position
        }

    def _at(self, position: int) -> _Position:
        if position not in self.positions:
            instances = self.shared | self._instances(per_position=True)
            self.positions[position] = _Position(self.settings.historical, instances)
        return self.positions[position]

    def state(self, position: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state that is common to all positions, and the state of this position."""
        own = {name: s.state() for name, s in self._at(position).strategies.items() if name not in self.shared}
        shared = {name: strategy.state() for name, strategy in self.shared.items()}
        common = {"begun_s": self.begun_s, "measured": self.measured, "free": self.free, "shared": shared}
        return common, own

    def restore(self, common: Mapping[str, Any], own: Mapping[str, Any], position: int, past: Iterable[Slice]) -> None:
        self.begun_s = float(common["begun_s"])
        self.measured = bool(common["measured"])
        self.free = {name: dict(common["free"][name]) for name in self.settings.strategies}
        at_position = self._at(position)
        for name, strategy in at_position.strategies.items():
            if name in self.shared:
                strategy.restore(common["shared"][name])
            elif name in own:
                strategy.restore(own[name])
        at_position.slices.extend(
            PresentUsage(finished.vms, finished.usage(self.resource))
            for finished in past
            if finished.end_s >= self.begun_s
        )

    def update(self, finished: Slice) -> ResourceEstimate:
        usage = finished.usage(self.resource)
        follows, self.measured = self.measured, usage.measured
        if usage.measured:
            self.begun_s = min(self.begun_s, finished.end_s)
        if finished.end_s < self.begun_s:
            # Slices before the first sample of a node are not gaps.
            return ResourceEstimate(False, dict.fromkeys(self.settings.strategies, UNKNOWN))
        position = self._at(finished.position)
        position.slices.append(PresentUsage(finished.vms, usage))
        if not usage.measured:
            return ResourceEstimate(False, dict.fromkeys(self.settings.strategies, UNKNOWN))
        stable = position.stable(self.detector)
        observed = Observation(position.window(), stable, finished.position, self.settings.positions, follows)
        return ResourceEstimate(
            stable,
            {name: self._estimate(name, position.strategies[name], observed) for name in self.settings.strategies},
        )

    def _estimate(self, name: str, strategy: Strategy, observed: Observation) -> Estimate:
        threshold = strategy.update(observed)
        tier0 = self.resource.tier0(threshold)
        # Six digits keep any configuration and remove the error of binary fractions.
        free = round(max(0.0, observed.config - tier0), 6)
        published = free
        if name not in self.shared:
            self.free[name][observed.position] = free
            published = min(self.free[name].values())
        return Estimate(
            threshold=threshold,
            tier0=tier0,
            tier1=0.0,
            tier2=free,
            published=min(published, observed.config),
            risk=strategy.risk,
            violation_rate=strategy.violation_rate,
        )


class NodeModel:
    """Estimates the free resources of one node.

    Parameters
    ----------
    settings : ModelSettings
    detectors : mapping of resource name to StabilityDetector, optional
        Decide whether a slice is stable; by default the mean predictor for both resources.
    """

    def __init__(self, settings: ModelSettings, detectors: Mapping[str, StabilityDetector] | None = None) -> None:
        self._resources: Sequence[_ResourceModel] = [
            _ResourceModel(resource, settings, detectors[resource.name] if detectors else mean_predictor)
            for resource in RESOURCES
        ]

    def state(self, position: int) -> ModelState:
        """The state that :meth:`restore` needs, beside the slices at this position."""
        states = {model.resource.name: model.state(position) for model in self._resources}
        return ModelState(
            node={name: common for name, (common, _) in states.items()},
            position={name: own for name, (_, own) in states.items()},
        )

    def restore(self, state: ModelState, position: int, past: Iterable[Slice]) -> None:
        """Continue at one position from the state of another model.

        Parameters
        ----------
        state : ModelState
            Empty for a model without slices.
        position : int
        past : iterable of Slice
            The last h + 1 slices at that position, or fewer at the beginning, oldest first.

        Raises
        ------
        KeyError, TypeError
            When the state belongs to a model with other settings.
        """
        past = tuple(past)
        for model in self._resources:
            name = model.resource.name
            if name in state.node:
                model.restore(state.node[name], state.position.get(name, {}), position, past)

    def update(self, finished: Slice) -> NodeEstimate:
        """Update the strategies with the slice that ended, and estimate the free resources.

        Parameters
        ----------
        finished : Slice
            Later than all slices before.
        """
        cpu, mem = (model.update(finished) for model in self._resources)
        return NodeEstimate(cpu=cpu, mem=mem)
