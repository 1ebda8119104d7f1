"""What the nodes of a fleet learn from each other: what VMs of a size use, and how often nodes are full.

Every node counts its slice (:class:`SliceCounts`); counts add up over nodes and masters. :class:`FleetModel` turns the
sums into the :class:`Feedback` that the nodes use in their next slice. A fleet may have a single node.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .numerics import FloatArray
from .slices import CPU, RESOURCES, Resource, Usage, sums_of
from .vmmoments import SIZE_CLASSES, VmFigures

#: A class with fewer observations (a VM in a slice) takes the figures of all VMs.
_LEAST_OBSERVATIONS = 30.0
#: Share of the observations that a slice makes obsolete: they count for about 20 slices.
_DECAY = 0.05
#: The level of caution, in standard deviations, rises with the share of full nodes and falls below the aim: by 0.24 in
#: a day of 24 slices without a full node, by less where the target risk is small. A slice raises it by at most 2. The
#: aim is two fifths of the target risk: bad days come together, and the sum over time stays below the target.
_STEP, _MOST_GAIN, _MOST_STEP, _AIM = 0.01, 6.0, 2.0, 0.4
_LEAST_LEVEL, _MOST_LEVEL = -1.5, 10.0
#: The deviation of the fleet from the sum of the means counts over a week, and starts at 0 over half a day.
_COMMON_DECAY, _COMMON_PRIOR_SLICES = 1.0 / 168, 12


@dataclass(frozen=True, slots=True)
class ResourceCounts:
    """One resource of some nodes in a slice.

    Attributes
    ----------
    nodes, full : float
        Nodes with samples, and those that were full.
    observations, shares, squares : tuple of 8 floats
        By size class: VMs with samples, the sums of their mean share of their size, and of its mean square.
    largest : float
        Size of the largest VM, cores or MB.
    expected, used : float
        What the VMs that were there before were expected to use, the sum of their means, and what they used; cores or
        MB.
    """

    nodes: float = 0.0
    full: float = 0.0
    observations: tuple[float, ...] = (0.0,) * SIZE_CLASSES
    shares: tuple[float, ...] = (0.0,) * SIZE_CLASSES
    squares: tuple[float, ...] = (0.0,) * SIZE_CLASSES
    largest: float = 0.0
    expected: float = 0.0
    used: float = 0.0

    def plus(self, other: ResourceCounts) -> ResourceCounts:
        """The counts of the nodes of both."""
        return ResourceCounts(
            self.nodes + other.nodes,
            self.full + other.full,
            _sums(self.observations, other.observations),
            _sums(self.shares, other.shares),
            _sums(self.squares, other.squares),
            max(self.largest, other.largest),
            self.expected + other.expected,
            self.used + other.used,
        )


def _sums(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class SliceCounts:
    """The counts of both resources."""

    cpu: ResourceCounts = ResourceCounts()  # immutable
    mem: ResourceCounts = ResourceCounts()

    def of(self, resource: Resource) -> ResourceCounts:
        """The counts of one resource."""
        return self.cpu if resource is CPU else self.mem

    def plus(self, other: SliceCounts) -> SliceCounts:
        """The counts of the nodes of both."""
        if self is _NOTHING:
            return other
        return SliceCounts(self.cpu.plus(other.cpu), self.mem.plus(other.mem))


def total_of(counts: Iterable[SliceCounts]) -> SliceCounts:
    """The counts of all nodes together."""
    return functools.reduce(SliceCounts.plus, counts, _NOTHING)


_NOTHING = SliceCounts()
#: The rows of the state of a fleet.
_BY_CLASS = ("observations", "shares", "squares")


def count_usage(usage: Usage, vms: VmFigures, *, full: bool) -> ResourceCounts:
    """Count one resource of a node in a slice; nothing is counted of a node without samples."""
    if not usage.measured:
        return ResourceCounts()
    observations, shares, squares = _by_class(usage, vms)
    followed = ~(np.isnan(vms.expected) | np.isnan(vms.used))
    return ResourceCounts(
        nodes=1.0,
        full=float(full),
        observations=observations,
        shares=shares,
        squares=squares,
        largest=float(np.fmax.reduce(usage.vm_config, initial=0.0)),
        expected=float(np.add.reduce(vms.expected[followed])),
        used=float(np.add.reduce(vms.used[followed])),
    )


def _by_class(usage: Usage, vms: VmFigures) -> Iterator[tuple[float, ...]]:
    """By size class: VMs with samples, the sums of their mean share of their size, and of its mean square."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.where(usage.vm_config > 0, usage.vm_config, np.nan)
        # Readings may exceed the size of a VM a little.
        shares = np.minimum(np.maximum(usage.vm_usage / sizes[:, None], 0.0), 1.0)
    sums = sums_of(shares)
    for values in (sums.number > 0, sums.mean, sums.square):
        yield tuple(np.bincount(vms.classes, values, SIZE_CLASSES).tolist())


@dataclass(frozen=True, slots=True)
class ResourceFeedback:
    """What a node uses of its fleet for one resource.

    Attributes
    ----------
    mean, square : tuple of 8 floats
        By size class: mean share that VMs use of their size, and mean square of it. 1 where nothing is known: an
        unknown VM may use all of its size.
    level : float
        Caution of the fleet, in standard deviations: above 0 where nodes were full too often, below 0 where they were
        full less often than the target risk permits.
    largest : float
        Size of the largest VM of the fleet, cores or MB.
    common : float
        By which share of the sum of their means the VMs of the fleet together use more than that: their correlation.
    """

    mean: tuple[float, ...] = (1.0,) * SIZE_CLASSES
    square: tuple[float, ...] = (1.0,) * SIZE_CLASSES
    level: float = 0.0
    largest: float = 0.0
    common: float = 0.0


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a node uses of its fleet."""

    cpu: ResourceFeedback = ResourceFeedback()  # immutable
    mem: ResourceFeedback = ResourceFeedback()

    def of(self, resource: Resource) -> ResourceFeedback:
        """The feedback for one resource."""
        return self.cpu if resource is CPU else self.mem


@dataclass(slots=True)
class _ResourceState:
    #: (3, 8) float64: observations, shares and squares by size class.
    by_class: FloatArray = field(default_factory=lambda: np.zeros((3, SIZE_CLASSES)))
    level: float = 0.0
    largest: float = 0.0
    deviation: float = 0.0
    slices: int = 0


class FleetModel:
    """Sums up a fleet, slice by slice.

    Parameters
    ----------
    risk_cpu, risk_mem : float
        Target share of full slices, 0 to 1.
    """

    def __init__(self, risk_cpu: float, risk_mem: float) -> None:
        self._aims = {"cpu": _AIM * risk_cpu, "mem": _AIM * risk_mem}
        self._states = {resource.name: _ResourceState() for resource in RESOURCES}
        self._feedback: Feedback | None = None
        self._saved: dict[str, Any] | None = None

    def update(self, counts: Iterable[SliceCounts]) -> Feedback:
        """Add the counts of a slice; the feedback for the next one."""
        total = total_of(counts)
        for resource in RESOURCES:
            _add(self._states[resource.name], total.of(resource), self._aims[resource.name])
        self._feedback = self._saved = None
        return self.feedback()

    def feedback(self) -> Feedback:
        """The feedback after the last slice."""
        if self._feedback is None:
            self._feedback = Feedback(*(_feedback(self._states[resource.name]) for resource in RESOURCES))
        return self._feedback

    def state(self) -> dict[str, Any]:
        """The state as numbers, lists and dicts, which are not to be changed."""
        if self._saved is None:
            # Of a node in a fleet of several it never changes.
            self._saved = {name: _saved(state) for name, state in self._states.items()}
        return self._saved

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another model.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it is not such a state.
        """
        self._states = {resource.name: _restored(state[resource.name]) for resource in RESOURCES}
        self._feedback, self._saved = None, dict(state)


def _saved(state: _ResourceState) -> dict[str, Any]:
    return {
        **dict(zip(_BY_CLASS, state.by_class.tolist(), strict=True)),
        "level": state.level,
        "largest": state.largest,
        "deviation": state.deviation,
        "slices": state.slices,
    }


def _restored(state: Mapping[str, Any]) -> _ResourceState:
    return _ResourceState(
        np.array([_class_array(state[name]) for name in _BY_CLASS]),
        float(state["level"]),
        float(state["largest"]),
        float(state["deviation"]),
        int(state["slices"]),
    )


def _class_array(values: Any) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (SIZE_CLASSES,):
        raise ValueError(f"{array.size} size classes, not {SIZE_CLASSES}")
    return array


def _add(state: _ResourceState, counts: ResourceCounts, aim: float) -> None:
    if not counts.nodes:
        return
    kept = 1.0 - _DECAY
    state.by_class = kept * state.by_class + np.array((counts.observations, counts.shares, counts.squares))
    state.largest = max(kept * state.largest, counts.largest)
    gain = min(_STEP / aim, _MOST_GAIN) if aim > 0 else _MOST_GAIN
    step = min(gain * (counts.full / counts.nodes - aim), _MOST_STEP)
    if counts.expected > 0:
        state.slices += 1
        # Twice what was expected is the most that counts: an idle fleet that wakes up is one deviation, not a thousand.
        excess = min(max(counts.used / counts.expected - 1.0, 0.0), 1.0)
        weight = max(1.0 / (state.slices + _COMMON_PRIOR_SLICES), _COMMON_DECAY)
        state.deviation += weight * (2.0 * excess**2 - state.deviation)
    state.level = min(max(state.level + step, _LEAST_LEVEL), _MOST_LEVEL)


def _feedback(state: _ResourceState) -> ResourceFeedback:
    mean, square = _means(state.by_class)
    return ResourceFeedback(mean, square, state.level, state.largest, math.sqrt(state.deviation))


def _means(by_class: FloatArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean shares and mean squares by size class."""
    observations, sums = by_class[0], by_class[1:]
    total = float(np.add.reduce(observations))
    enough = total >= _LEAST_OBSERVATIONS
    overall = np.add.reduce(sums, axis=1, keepdims=True) / total if enough else np.ones((2, 1))
    known = observations >= _LEAST_OBSERVATIONS
    mean, square = np.where(known, sums / np.where(known, observations, 1.0), overall).tolist()
    return tuple(mean), tuple(square)
