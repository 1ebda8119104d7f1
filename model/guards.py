"""Guards between what a strategy computes as free and what is published: each may lower a figure, none raises it.

A strategy forecasts the next slice of the VMs that it sees. A scheduler fills what is published with VMs that stay for
days and of which nothing is known yet. The guards close that gap. They are composed in order (:data:`GUARDS`): each
gets the figure of the one before.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contention import Level
from .feedback import ResourceFeedback
from .numerics import zero_if_missing
from .slices import is_full
from .vmmoments import LEAST_SCOPE, VmFigures, counted_scope

#: Part of what is free that a node is offered in an hour of a day (1/24 of a scope).
_RAMP = 0.25
#: One slice in so many a node offers all that is free, up to the largest VM of the fleet.
_TURN = 8
#: Share of the capacity that is kept back per level of caution of the fleet.
_FLEET_RESERVE = 0.02
#: A VM is young for a quarter of a scope.
_YOUNG_SHARE = 0.25
#: A node that was full gets nothing for half a scope, and keeps back this share of its capacity more than before, which
#: fades within two scopes.
_RECOVERY_SHARE = 0.5
_NODE_RESERVE, _NODE_MOST, _NODE_FADES = 0.015, 0.2, 2.0


def turn_of(node: str) -> int:
    """When a node has its turn: a number that follows from its name, so that restarts and replays agree."""
    return zlib.crc32(node.encode(errors="surrogatepass")) % _TURN


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Settings of the guards.

    Attributes
    ----------
    scope : int
        Slices of a scope, the "virtual day".
    ramp : float
        Part of what is free that is offered in 1/24 of a scope, above 0, at most 1.
    """

    scope: int = LEAST_SCOPE
    ramp: float = _RAMP

    @property
    def day(self) -> int:
        """Slices of a scope, at least 24."""
        return counted_scope(self.scope)

    @property
    def ramp_of_slice(self) -> float:
        """Part of what is free that is offered in one slice."""
        return float(1.0 - (1.0 - self.ramp) ** (LEAST_SCOPE / self.day))


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the guards use of a node at the end of a slice, cores or MB.

    Attributes
    ----------
    config, peak : float
        Capacity, and the 99th percentile of the samples.
    young : float
        What young VMs will use in addition, once they use what VMs of their size do.
    fleet_reserve, node_reserve : float
        Shares of the capacity that are kept back.
    recovering : bool
        Whether the node was full lately.
    largest : float
        Size of the largest VM of the fleet.
    in_turn : bool
        Whether the node offers all that is free in this slice.
    ramp : float
        Part of what is free that is offered in a slice.
    contention : Level
        How much its VMs suffer.
    """

    config: float
    peak: float
    young: float
    fleet_reserve: float
    node_reserve: float
    recovering: bool
    largest: float
    in_turn: bool
    ramp: float
    contention: Level = Level.NONE


def _usage_guard(state: NodeState, free: float) -> float:
    return min(free, state.config - state.peak)


def _young_guard(state: NodeState, free: float) -> float:
    return free - state.young


def _fleet_guard(state: NodeState, free: float) -> float:
    return free - state.fleet_reserve * state.config


def _node_guard(state: NodeState, free: float) -> float:
    left = free - state.node_reserve * state.config
    return min(left, _RECOVERING) if state.recovering else left


def _ramp_guard(state: NodeState, free: float) -> float:
    if free <= 0.0:
        return free
    part = state.ramp * free
    # Where much is free, the largest VM finds a place beside the others of the slice.
    offered = max(part, min(part + state.largest, free - state.largest))
    return max(offered, min(free, state.largest)) if state.in_turn else offered


#: The guards without a memory of their own, after the horizon; by the names that a status shows.
GUARDS: Mapping[str, Callable[[NodeState, float], float]] = {
    "usage": _usage_guard,
    "young": _young_guard,
    "fleet": _fleet_guard,
    "node": _node_guard,
    "ramp": _ramp_guard,
}
HORIZON = "horizon"
CONTENTION = "contention"
#: Less than nothing is left of a node that recovers, or whose VMs suffer, cores or MB: that closes it.
_RECOVERING = -1.0


def offered_capacity(booked_now: float, free: float, config: float, *, closed: bool) -> float:
    """What a scheduler may book on a node in total, cores or MB.

    Booked now + published free. A closed node offers nothing, not even what its VMs leave: no more than it has.
    """
    return min(booked_now, config) if closed else booked_now + free


@dataclass(frozen=True, slots=True)
class GuardedFigure:
    """What is published, and why.

    Attributes
    ----------
    free : float
        Cores or MB.
    closed : bool
        Whether the node has less than nothing free: what its VMs leave is not offered again.
    limits : mapping of guard to float
        What was left by each guard that lowered the figure, in the order of the guards.
    """

    free: float
    closed: bool
    limits: Mapping[str, float]


class NodeCondition:
    """What the guards remember of one resource of a node.

    Parameters
    ----------
    settings : GuardSettings
    phase : int
        When the node has its turn: one slice in eight.
    """

    def __init__(self, settings: GuardSettings, phase: int) -> None:
        self._settings = settings
        self.count = phase
        self.reserve = 0.0
        self.recovery = 0

    def update(
        self,
        config: float,
        peak: float,
        vms: VmFigures,
        feedback: ResourceFeedback,
        *,
        contended: bool = False,
        contention: Level = Level.NONE,
    ) -> NodeState:
        """The state after a slice with samples.

        Parameters
        ----------
        config, peak : float
            Capacity, and 99th percentile of the samples; cores or MB.
        vms : VmFigures
        feedback : ResourceFeedback
        contended : bool
            Whether the VMs suffered in the slice, which counts as a full node.
        contention : Level
            The level on which the node acts.
        """
        settings = self._settings
        full = is_full(peak, config) or contended
        self.count += 1
        self.recovery = math.ceil(_RECOVERY_SHARE * settings.day) if full else max(self.recovery - 1, 0)
        faded = self.reserve * (1.0 - 1.0 / (_NODE_FADES * settings.day))
        self.reserve = min(faded + _NODE_RESERVE * full, _NODE_MOST)
        return NodeState(
            config=config,
            peak=peak,
            young=self._young(vms, feedback),
            fleet_reserve=_FLEET_RESERVE * max(0.0, feedback.level),
            node_reserve=self.reserve,
            recovering=self.recovery > 0,
            largest=feedback.largest,
            in_turn=self.count % _TURN == 0,
            ramp=settings.ramp_of_slice,
            contention=contention,
        )

    def _young(self, vms: VmFigures, feedback: ResourceFeedback) -> float:
        """What young VMs will use in addition; an older VM counts with what it uses."""
        young_slices = _YOUNG_SHARE * self._settings.day
        if np.minimum.reduce(vms.ages, initial=young_slices) >= young_slices:
            return 0.0
        missing = 1.0 - np.minimum(vms.ages / young_slices, 1.0)
        young = (missing > 0) & vms.alive
        usual = np.array(feedback.mean)[vms.classes[young]] * zero_if_missing(vms.config[young])
        excess = np.maximum(usual - zero_if_missing(vms.used[young]), 0.0)
        return float(np.add.reduce(missing[young] * excess))

    def state(self) -> dict[str, Any]:
        """The state as numbers."""
        return {"count": self.count, "reserve": self.reserve, "recovery": self.recovery}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError
        """
        self.count, self.recovery = int(state["count"]), int(state["recovery"])
        self.reserve = float(state["reserve"])


class FigureGuards:
    """The guards of one figure: one strategy for one resource of a node.

    Parameters
    ----------
    slices : int
        Over how many slices the least figure counts (horizon).
    """

    def __init__(self, slices: int) -> None:
        self.past: deque[float] = deque(maxlen=max(slices, 1))
        self.capacity = 0.0  # what was offered in total, booked now included, at the end of the last slice

    def update(self, free: float, node: NodeState, booked_now: float) -> GuardedFigure:
        """Lower a figure as far as the guards require.

        Parameters
        ----------
        free : float
            Cores or MB; below 0 where the threshold exceeds the capacity.
        node : NodeState
        booked_now : float
            Allocations of the VMs that are alive.
        """
        limits: dict[str, float] = {}
        self.past.append(free)
        left = min(self.past)
        if left < free:
            limits[HORIZON] = left
        if node.contention is Level.HIGH and left > _RECOVERING:
            left = limits[CONTENTION] = _RECOVERING
        for name, guard in GUARDS.items():
            before, left = left, min(left, guard(node, left))
            if left < before:
                limits[name] = left
        # Some VMs suffer: the node is offered no more in total than before. Where more is booked, that closes it.
        if node.contention is Level.SOME and left > (held := round(self.capacity - booked_now, 6)):
            left = limits[CONTENTION] = held
        figure = GuardedFigure(max(left, 0.0), left < 0.0, limits)
        offered = offered_capacity(booked_now, figure.free, node.config, closed=figure.closed)
        self.capacity = min(offered, self.capacity) if node.contention is Level.SOME else offered
        return figure

    def state(self) -> dict[str, Any]:
        """The state as numbers and a list."""
        return {"past": list(self.past), "capacity": self.capacity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance, also of a version that did not hold the capacity.

        Raises
        ------
        KeyError
        """
        self.past.extend(state["past"])
        self.capacity = float(state.get("capacity", 0.0))
