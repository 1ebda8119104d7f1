"""The model of one node: takes slices in time order and returns estimates, live and in a replay alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .contention import Contention, ContentionSettings, ContentionTracker, Level, Measured, measure
from .estimates import UNKNOWN, Estimate, NodeEstimate, ResourceEstimate
from .feedback import Feedback, FleetModel, ResourceCounts, ResourceFeedback, SliceCounts, count_usage
from .guards import FigureGuards, GuardSettings, NodeCondition, NodeState
from .oversubscriptioncomputation import STRATEGIES, Observation, Strategy, StrategySettings
from .slices import CPU, RESOURCES, PresentUsage, Resource, Slice, Usage, Window, is_full
from .stability import StabilityDetector, is_stable, mean_predictor
from .violations import ViolationRecord
from .vmmoments import VmMoments


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
    guarded : bool
        Whether guards lower what is published (:mod:`model.guards`).
    contention : ContentionSettings
        From when on VMs suffer (:mod:`model.contention`).
    """

    historical: int
    strategies: tuple[str, ...]
    cpu: StrategySettings = field(default_factory=StrategySettings)
    mem: StrategySettings = field(default_factory=StrategySettings)
    positions: int = 1
    guarded: bool = False
    contention: ContentionSettings = ContentionSettings()  # noqa: RUF009  # immutable

    def of(self, resource: Resource) -> StrategySettings:
        """The parameters of the strategies for one resource."""
        return self.cpu if resource is CPU else self.mem

    @property
    def uses_vm_samples(self) -> bool:
        """Whether the guards or any strategy use the samples of single VMs."""
        return self.guarded or any(STRATEGIES[name].uses_vm_samples for name in self.strategies)

    @property
    def uses_vm_moments(self) -> bool:
        """Whether the guards or any strategy use the moments of single VMs."""
        return self.guarded or any(STRATEGIES[name].uses_vm_moments for name in self.strategies)

    def kept(self, resource: Resource, usage: Usage) -> Usage:
        """What later slices need of a slice: samples of single VMs are by far its largest part."""
        if any(STRATEGIES[name].keeps_vm_samples for name in self.strategies):
            return usage.with_largest(resource.vm_peak_percentile, self.historical + 1)
        return usage.without_vms()


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


class _Publication:
    """What is published of one strategy: the guards of its figure, and the slices that violated it."""

    def __init__(self, guards: GuardSettings | None) -> None:
        self.guards = FigureGuards(1 if guards is None else guards.day)
        self.record = ViolationRecord()

    def state(self) -> dict[str, Any]:
        return {**self.guards.state(), "record": self.record.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.guards.restore(state)
        self.record.restore(state["record"])


class _ResourceModel:
    """One resource of a node at all positions."""

    def __init__(
        self, resource: Resource, settings: ModelSettings, detector: StabilityDetector | None, phase: int
    ) -> None:
        self.resource = resource
        self.settings = settings
        self.detector = detector
        self.positions: dict[int, _Position] = {}
        self.free: dict[str, dict[int, float]] = {name: {} for name in settings.strategies}
        self.shared = self._instances(per_position=False)
        self.begun_s = math.inf  # end of the first slice with samples
        self.measured = False  # whether the slice before has samples
        guards = GuardSettings(settings.positions) if settings.guarded else None
        self.condition = None if guards is None else NodeCondition(guards, phase)
        self.tracker = None if guards is None else ContentionTracker(settings.contention, guards.day)
        self.moments = VmMoments(resource, settings.positions) if settings.uses_vm_moments else None
        self.publications = {name: _Publication(guards) for name in settings.strategies}

    def _instances(self, per_position: bool) -> dict[str, Strategy]:
        parameters = replace(self.settings.of(self.resource), censored=self.settings.guarded)
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
        common = {
            "begun_s": self.begun_s,
            "measured": self.measured,
            "free": self.free,
            "shared": shared,
            "moments": None if self.moments is None else self.moments.state(),
            "condition": None if self.condition is None else self.condition.state(),
            "contention": None if self.tracker is None else self.tracker.state(),
            "published": {name: one.state() for name, one in self.publications.items()},
        }
        return common, own

    def restore(self, common: Mapping[str, Any], own: Mapping[str, Any], position: int, past: Iterable[Slice]) -> None:
        self.begun_s = float(common["begun_s"])
        self.measured = bool(common["measured"])
        self.free = {name: dict(common["free"][name]) for name in self.settings.strategies}
        if self.moments is not None:
            self.moments.restore(common["moments"])
        if self.condition is not None:
            self.condition.restore(common["condition"])
        # A checkpoint of an earlier version has none.
        if self.tracker is not None and common.get("contention") is not None:
            self.tracker.restore(common["contention"])
        for name, publication in self.publications.items():
            publication.restore(common["published"][name])
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

    def update(self, finished: Slice, feedback: ResourceFeedback) -> tuple[ResourceEstimate, ResourceCounts]:
        usage = finished.usage(self.resource)
        follows, self.measured = self.measured, usage.measured
        if usage.measured:
            self.begun_s = min(self.begun_s, finished.end_s)
        if finished.end_s < self.begun_s:
            # Slices before the first sample of a node are not gaps.
            return self._unknown(), ResourceCounts()
        position = self._at(finished.position)
        present = PresentUsage(finished.vms, usage)
        position.slices.append(present)
        measured = measure(self.resource, finished, self.settings.contention)
        if not usage.measured:
            if self.tracker is not None:
                self._act_on(measured, finished)
            return replace(self._unknown(), contention=measured.contention), ResourceCounts()
        stable = self.detector is not None and position.stable(self.detector)
        # Usage is cut at the size of the node, or of the cores that its VMs share.
        wanted = usage
        if measured.at_quota:
            wanted = usage.without_waits(np.array([name in measured.at_quota for name in finished.vms], dtype=bool))
        demand = present if wanted.demand is usage else PresentUsage(finished.vms, wanted.demand)
        peak = demand.usage.peak
        contended = measured.contention.level is Level.HIGH
        vms, counts, node, contention = None, ResourceCounts(), None, measured.contention
        if self.moments is not None:
            vms = self.moments.update(finished.vms, demand.usage)
            counts = count_usage(demand.usage, vms, full=is_full(peak, usage.config) or contended)
        if self.condition is not None and self.tracker is not None and vms is not None:
            contention = self._act_on(measured, finished)
            # What young VMs wait for is in no figure of a strategy that uses plain usage.
            young = vms if usage.vm_demand is None else replace(vms, used=usage.vm_sums.means)
            node = self.condition.update(
                *(usage.config, peak, young, feedback), contended=contended, contention=contention.level
            )
        observed = Observation(
            position.window(),
            stable,
            finished.position,
            self.settings.positions,
            follows,
            feedback,
            vms,
            demand=demand,
            contended=contended,
        )
        estimates = {
            name: self._estimate(name, position.strategies[name], observed, peak, node)
            for name in self.settings.strategies
        }
        position.slices[-1] = present.reduced(self.settings.kept(self.resource, usage))
        return ResourceEstimate(stable, estimates, contention), counts

    def _unknown(self) -> ResourceEstimate:
        return ResourceEstimate(False, dict.fromkeys(self.settings.strategies, UNKNOWN))

    def _act_on(self, measured: Measured, finished: Slice) -> Contention:
        """The contention of a slice, with the level on which the node acts."""
        assert self.tracker is not None  # noqa: S101
        level = self.tracker.update(measured, finished.alive)
        return measured.contention if level is measured.contention.level else replace(measured.contention, level=level)

    def _estimate(
        self, name: str, strategy: Strategy, observed: Observation, peak: float, node: NodeState | None
    ) -> Estimate:
        usage, publication = observed.window.current, self.publications[name]
        threshold, config = strategy.update(observed), usage.config
        tier0 = self.resource.tier0(threshold)
        # Six digits keep any configuration and remove the error of binary fractions.
        free = round(max(0.0, config - tier0), 6)
        unguarded = free
        if name not in self.shared:
            self.free[name][observed.position] = free
            unguarded = min(self.free[name].values())
        unguarded = min(unguarded, config)
        violated = publication.record.compare(usage, peak, follows=observed.follows, contended=observed.contended)
        published, closed = unguarded, False
        limits: Mapping[str, float] = {}
        if node is not None:
            # A threshold above the capacity is less than nothing free.
            guarded = publication.guards.update(min(unguarded, config - tier0), node, usage.booked_now)
            published, closed, limits = round(guarded.free, 6), guarded.closed, dict(guarded.limits)
        publication.record.note_published(published, usage)
        return Estimate(
            threshold=threshold,
            tier0=tier0,
            tier1=0.0,
            tier2=free,
            published=published,
            risk=strategy.risk,
            forecast_violation_rate=strategy.violation_rate,
            violation_rate=publication.record.rate,
            violated=violated,
            unguarded=unguarded,
            closed=closed,
            limits=limits,
        )


class NodeModel:
    """Estimates the free resources of one node.

    Parameters
    ----------
    settings : ModelSettings
    detectors : mapping of resource name to StabilityDetector, optional
        Decide whether a slice is stable; by default the mean predictor for both resources. None: no slice is stable.
    phase : int
        In which slices the guards offer more of the node; nodes of a fleet take turns.
    """

    def __init__(
        self,
        settings: ModelSettings,
        detectors: Mapping[str, StabilityDetector | None] | None = None,
        phase: int = 0,
    ) -> None:
        self._resources: Sequence[_ResourceModel] = [
            _ResourceModel(resource, settings, detectors[resource.name] if detectors else mean_predictor, phase)
            for resource in RESOURCES
        ]
        #: Of a node without a fleet.
        self._fleet = FleetModel(settings.cpu.risk, settings.mem.risk)

    def state(self, position: int) -> ModelState:
        """The state that :meth:`restore` needs, beside the slices at this position."""
        states = {model.resource.name: model.state(position) for model in self._resources}
        return ModelState(
            node={name: common for name, (common, _) in states.items()} | {_FLEET: self._fleet.state()},
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
        if state.node:
            self._fleet.restore(state.node[_FLEET])
        for model in self._resources:
            name = model.resource.name
            if name in state.node:
                model.restore(state.node[name], state.position.get(name, {}), position, past)

    def update(self, finished: Slice, feedback: Feedback | None = None) -> NodeEstimate:
        """Update the strategies with the slice that ended, and estimate the free resources.

        Parameters
        ----------
        finished : Slice
            Later than all slices before.
        feedback : Feedback, optional
            What the fleet has learnt until the slice before; without it the node is a fleet of its own.
        """
        used = self._fleet.feedback() if feedback is None else feedback
        (cpu, of_cpu), (mem, of_mem) = (model.update(finished, used.of(model.resource)) for model in self._resources)
        counts = SliceCounts(of_cpu, of_mem)
        if feedback is None:
            self._fleet.update([counts])
        return NodeEstimate(cpu=cpu, mem=mem, counts=counts)


#: Key of the state of the fleet of one node.
_FLEET = "fleet"
