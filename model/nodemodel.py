"""One node: slices in, in time order; estimates out. Live and offline are one and the same here."""

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
    """What one strategy says of one resource at the end of a slice, cores or MB.

    Attributes
    ----------
    threshold : float
        The strategy's own figure, unrounded.
    tier0, tier1, tier2 : float
        Used for sure, between the two thresholds (always 0 so far), free.
    published : float
        What a scheduler is told: the least that is free at any position seen so far.
    risk, violation_rate : float
        The share of its promises that the strategy means to have broken, and that of the last ones that was; NaN
        where there is no such aim, or no promise that was put to the test.
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
        """What is left of the config: tier2."""
        return self.tier2


#: The answer to a slice in which the node gave no data: nothing is known, so nothing is promised.
UNKNOWN = Estimate(threshold=math.nan, tier0=math.nan, tier1=math.nan, tier2=math.nan, published=0.0)


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """What is said of one resource at the end of a slice: its stability, and each strategy's estimate."""

    stable: bool
    by_strategy: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class NodeEstimate:
    """What is said of a node at the end of a slice."""

    cpu: ResourceEstimate
    mem: ResourceEstimate

    def of(self, resource: Resource) -> ResourceEstimate:
        """The estimate of one resource."""
        return self.cpu if resource is CPU else self.mem


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a node is modelled.

    Attributes
    ----------
    historical : int
        h: how many predecessors at the same position the window holds beside the current slice.
    strategies : tuple of str
        Names in :data:`~model.oversubscriptioncomputation.STRATEGIES`.
    cpu, mem : StrategySettings
        What the strategies are given, by resource.
    positions : int
        S: slices of a scope. Replay and estimator set it; with 1 no strategy looks for a season.
    """

    historical: int
    strategies: tuple[str, ...]
    cpu: StrategySettings = field(default_factory=StrategySettings)
    mem: StrategySettings = field(default_factory=StrategySettings)
    positions: int = 1

    @property
    def uses_vm_samples(self) -> bool:
        """Whether any of the strategies looks at what single VMs used."""
        return any(STRATEGIES[name].uses_vm_samples for name in self.strategies)

    @property
    def keeps_vm_samples(self) -> bool:
        """Whether any of them does so in earlier slices, too."""
        return any(STRATEGIES[name].keeps_vm_samples for name in self.strategies)


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a node's model carries from slice to slice, but for the slices themselves.

    Nested dicts whose leaves are numbers, texts and None, so that it can be written down.

    Attributes
    ----------
    node : dict
        By resource name, what is common to all positions.
    position : dict
        By resource name, what belongs to one position.
    """

    node: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)


class _Position:
    """The slices of one resource at one position, and the strategies that live there."""

    def __init__(self, historical: int, strategies: Mapping[str, Strategy]) -> None:
        # One slice more than the window: stability compares the new one with h + 1 older ones.
        self.slices: deque[PresentUsage] = deque(maxlen=historical + 2)
        self.window_length = historical + 1
        self.strategies = strategies

    def stable(self, detector: StabilityDetector) -> bool:
        """Whether the newest slice resembles the h + 1 older ones; not before there are that many."""
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
        self.begun_s = math.inf  # the end of the first slice in which the node told anything
        self.measured = False  # whether it did in the slice before

    def _instances(self, per_position: bool) -> dict[str, Strategy]:
        chosen = self.settings.cpu if self.resource is CPU else self.settings.mem
        return {
            name: STRATEGIES[name](self.resource, chosen)
            for name in self.settings.strategies
            if STRATEGIES[name].per_position is per_position
        }

    def _at(self, position: int) -> _Position:
        if position not in self.positions:
            instances = self.shared | self._instances(per_position=True)
            self.positions[position] = _Position(self.settings.historical, instances)
        return self.positions[position]

    def state(self, position: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is common to all positions, and what belongs to this one."""
        own = {name: s.state() for name, s in self._at(position).strategies.items() if name not in self.shared}
        shared = {name: strategy.state() for name, strategy in self.shared.items()}
        common = {"begun_s": self.begun_s, "measured": self.measured, "free": self.free, "shared": shared}
        return common, own

    def restore(self, common: Mapping[str, Any], own: Mapping[str, Any], position: int, past: Iterable[Slice]) -> None:
        self.begun_s = float(common["begun_s"])
        self.measured = bool(common["measured"])
        self.free = {name: dict(common["free"][name]) for name in self.settings.strategies}
        place = self._at(position)
        for name, strategy in place.strategies.items():
            if name in self.shared:
                strategy.restore(common["shared"][name])
            elif name in own:
                strategy.restore(own[name])
        place.slices.extend(
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
            # Slices from before a node's first word are not gaps in what is known of it.
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
        # Six digits keep what a node is configured with and drop what binary fractions add to it.
        free = round(max(0.0, observed.config - tier0), 6)
        if name in self.shared:
            published = free
        else:
            self.free[name][observed.position] = free
            published = min(self.free[name].values())
        return Estimate(
            threshold=threshold,
            tier0=tier0,
            tier1=0.0,
            tier2=free,
            published=published,
            risk=strategy.risk,
            violation_rate=strategy.violation_rate,
        )


class NodeModel:
    """Computes what is free on one node.

    Parameters
    ----------
    settings : ModelSettings
    detectors : mapping of resource name to StabilityDetector, optional
        Who decides that a slice is stable; by default the mean predictor for both resources.
    """

    def __init__(self, settings: ModelSettings, detectors: Mapping[str, StabilityDetector] | None = None) -> None:
        self._resources: Sequence[_ResourceModel] = [
            _ResourceModel(resource, settings, detectors[resource.name] if detectors else mean_predictor)
            for resource in RESOURCES
        ]

    def state(self, position: int) -> ModelState:
        """What has to be kept beside the slices of this position so that :meth:`restore` can go on from here."""
        found = {model.resource.name: model.state(position) for model in self._resources}
        return ModelState(
            node={name: common for name, (common, _) in found.items()},
            position={name: own for name, (_, own) in found.items()},
        )

    def restore(self, state: ModelState, position: int, past: Iterable[Slice]) -> None:
        """Go on at one position from where another model's memory was taken.

        Parameters
        ----------
        state : ModelState
            Empty parts are those of a model that has seen nothing.
        position : int
        past : iterable of Slice
            The last h + 1 slices at that position, or as many as there were, oldest first.

        Raises
        ------
        KeyError, TypeError
            When the memory is not that of a model with these settings.
        """
        past = tuple(past)
        for model in self._resources:
            name = model.resource.name
            if name in state.node:
                model.restore(state.node[name], state.position.get(name, {}), position, past)

    def update(self, finished: Slice) -> NodeEstimate:
        """Learn from the slice that ended, and estimate what is free. Slices come in time order."""
        cpu, mem = (model.update(finished) for model in self._resources)
        return NodeEstimate(cpu=cpu, mem=mem)
