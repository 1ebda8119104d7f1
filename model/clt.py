"""A bound on usage from the moments of single VMs: the sum of their means, plus z standard deviations of the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from .feedback import ResourceFeedback, size_class
from .numerics import BoolArray, FloatArray
from .slices import Resource, Usage

#: Moments count the last scope; a scope of fewer slices counts as so many.
LEAST_SCOPE = 24
#: After a quarter of a scope a VM's own moments have half of the weight, those of VMs of its size the other half.
_PRIOR_SHARE = 0.25
#: Variance of a VM that is not known yet, in variances of what VMs of its size use: it may be one of the busy ones.
_PRIOR_VARIANCE = 1.5

#: The attributes of :class:`MomentBound` that form its state.
STATE_FIELDS = ("slices", "own", "names", "ages", "means", "squares")

#: The largest target risk: z is 0 there.
MOST_RISK = 0.5


@dataclass(frozen=True, slots=True)
class _Present:
    """The VMs of a slice, (v,) float64 each: allocation, mean and mean square of the samples (NaN without)."""

    config: FloatArray
    mean: FloatArray
    square: FloatArray


class MomentBound:
    r"""T = own + sum m_i + z sqrt(sum s_i^2) over the VMs that are alive, by the central limit theorem.

    m_i and s_i^2 are mean and variance of what VM i uses: exponential averages over about a scope, which start as the
    plain mean. A VM that is younger counts in part as one of its size: with age a (slices) and prior p, the weight of
    its own moments is a / (a + p); the rest is the mean, and 1.5 times the variance, of the VMs of its size on the
    fleet. own is what the node itself uses. z is the normal quantile of the target risk; where the nodes of the fleet
    are full less often than the risk permits, z is lowered, by 1 at most. T is at least the 99th percentile of the
    slice, at most what is booked plus own.

    Parameters
    ----------
    resource : Resource
    risk : float
        Above 0, at most 0.5.

    References
    ----------
    P. Patel et al., "Audible: overclocking and oversubscription of CPU by predictable VM utilization", ASPLOS 2024.
    """

    def __init__(self, resource: Resource, risk: float) -> None:
        self._resource = resource
        self._z = NormalDist().inv_cdf(1.0 - risk)
        self._scope = float(LEAST_SCOPE)
        self.slices = 0
        self.own = 0.0
        self.names: list[str] = []
        self.ages: FloatArray = np.empty(0)
        self.means: FloatArray = np.empty(0)
        self.squares: FloatArray = np.empty(0)

    def update(self, vms: tuple[str, ...], usage: Usage, peak: float, feedback: ResourceFeedback, scope: int) -> float:
        """Process a finished slice and return T, cores or MB.

        Parameters
        ----------
        vms : tuple of v str
        usage : Usage
        peak : float
            99th percentile of the node's samples.
        feedback : ResourceFeedback
        scope : int
            Slices of a scope.
        """
        self._scope = float(max(scope, LEAST_SCOPE))
        present = _moments(usage)
        self._follow(vms)
        self._update_moments(present)
        own = float(usage.node.mean()) - float(np.nansum(present.mean))
        self.slices += 1
        self.own += max(1.0 / self.slices, 1.0 / self._scope) * (max(own, 0.0) - self.own)
        alive = np.ones(len(vms), dtype=bool) if usage.vm_alive is None else usage.vm_alive
        mean, variance = self._sums(present.config, alive, feedback)
        z = self._z + min(feedback.level, 0.0)
        bound = self.own + mean + z * math.sqrt(variance)
        return max(min(bound, usage.booked_now + self.own), peak)

    def _follow(self, vms: tuple[str, ...]) -> None:
        """Bring the moments into the order of the VMs; a VM that was absent starts afresh."""
        if list(vms) == self.names:
            return
        at = {name: i for i, name in enumerate(self.names)}
        index = np.array([at.get(name, -1) for name in vms], dtype=np.intp)
        for name in ("ages", "means", "squares"):
            values = np.append(getattr(self, name), 0.0)  # what index -1 takes
            setattr(self, name, values[index])
        self.names = list(vms)

    def _update_moments(self, present: _Present) -> None:
        sampled = ~np.isnan(present.mean)
        self.ages = self.ages + sampled
        step = np.where(sampled, np.maximum(1.0 / np.maximum(self.ages, 1.0), 1.0 / self._scope), 0.0)
        self.means = self.means + step * (np.where(sampled, present.mean, 0.0) - self.means)
        self.squares = self.squares + step * (np.where(sampled, present.square, 0.0) - self.squares)

    def _sums(self, config: FloatArray, alive: BoolArray, feedback: ResourceFeedback) -> tuple[float, float]:
        """The sums of means and variances over the VMs that are alive."""
        size = np.nan_to_num(config[alive])
        weight = self.ages[alive] / (self.ages[alive] + _PRIOR_SHARE * self._scope)
        classes = size_class(self._resource, config[alive])
        class_mean, class_square = (np.array(values)[classes] for values in (feedback.mean, feedback.square))
        class_variance = _PRIOR_VARIANCE * np.maximum(class_square - class_mean**2, 0.0)
        own_mean = self.means[alive]
        own_variance = np.maximum(self.squares[alive] - own_mean**2, 0.0)
        mean = weight * own_mean + (1.0 - weight) * class_mean * size
        variance = weight * own_variance + (1.0 - weight) * class_variance * size**2
        return float(mean.sum()), float(variance.sum())

    def state(self) -> dict[str, Any]:
        """The state as numbers and lists: three figures per VM."""
        values = {name: getattr(self, name) for name in STATE_FIELDS}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError
            When a field is missing.
        """
        self.slices, self.own, self.names = int(state["slices"]), float(state["own"]), list(state["names"])
        self.ages, self.means, self.squares = (np.array(state[name], float) for name in ("ages", "means", "squares"))


def _moments(usage: Usage) -> _Present:
    present = ~np.isnan(usage.vm_usage)
    number = present.sum(axis=1)
    divisor = np.where(number > 0, number, np.nan)
    filled = np.where(present, usage.vm_usage, 0.0)
    return _Present(usage.vm_config, filled.sum(axis=1) / divisor, (filled * filled).sum(axis=1) / divisor)
