"""A bound on usage that is exceeded in a target share of the slices.

Forecasts, quantiles of their own past errors, and a controller of the violation rate. :class:`SliceObservation` is the
input of a slice, :class:`ConformalBound` the estimator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .numerics import BoolArray, FloatArray, round_up, zero_if_missing
from .slices import is_full, previous_rows
from .violations import RATE_SLICES, is_exceeded

# The constants were fitted on 131 nodes made of Bitbrains and PlanetLab VMs and on 18 generated nodes of 2,000 slices.
# The traces of the published comparison are not among them. A range in brackets changes the misprediction by less than
# 1 %.
#: N: errors kept per candidate (64 to 128).
_ERRORS_KEPT = 96
#: p0: the share of the errors that forms the tail, so that 38 of 96 errors fit it (0.35 to 0.5).
_TAIL_SHARE = 0.4
#: Errors of successive slices are correlated: this many count as one independent error.
_DEPENDENCE = 2.0
#: Decay of the two envelopes: they approach the present level within 2 and within 10 slices.
_ENVELOPE_DECAYS = (0.5, 0.1)
#: Exponential smoothing of what a VM uses (0.15 to 0.6) and of the peak of a position.
_VM_DECAY = 0.3
_SEASON_DECAY = 0.3
#: Discount of past losses: they count for about 1 / (1 - 0.97) = 33 slices (0.95 to 0.99).
_LOSS_DISCOUNT = 0.97
#: eta: a candidate whose loss is 5 % above the best has 1/e of its weight (10 to 50).
_WEIGHT_RATE = 20.0
#: Loss of a unit by which a bound is too low, in units by which it is too high (2 to 6; 1 favours violations).
_UNDER_COST = 3.0
#: The prior error is three standard deviations of the samples and fades within about 10 slices.
_PRIOR_STDS, _PRIOR_DECAY = 3.0, 0.8
#: Dead zone of the controller: a surplus of violations up to 0.2 of the expected count, at most 2.5, is tolerated.
#: Gain: each further violation lengthens the tail as a risk exp(0.4) times smaller does.
_DEAD_SHARE, _DEAD_MOST, _GAIN = 0.2, 2.5, 0.4
#: A deficit up to 2 is tolerated. A larger one shortens the tail, which makes the violation rate exact in the long run.
_SLACK, _SLACK_GAIN = 2.0, 0.3
#: The alarm is for a surplus beyond chance. From a risk of 0.05 on, violations are frequent, so the alarm starts one
#: violation later.
_ALARM_GAIN, _ALARM_OFFSET, _ALARM_FROM = 6.0, 1.0, 0.05
#: Limits of the surplus, so that the distant past does not dominate.
_SURPLUS_LEAST, _SURPLUS_MOST = -6.0, 20.0

#: The largest target risk: a margin is never below the quantile that a share p0 of the errors exceeds.
MOST_RISK = 0.3

#: The attributes of :class:`ConformalBound` that form its state.
STATE_FIELDS = (
    *("slices", "surplus", "violations", "published", "booked"),
    *("spread", "own", "own_most", "envelopes", "season", "vms"),
    *("forecasts", "bounds", "losses", "errors"),
)


@dataclass(frozen=True, slots=True)
class SliceObservation:
    """One resource of a finished slice, cores or MB.

    Attributes
    ----------
    position, positions : int
        Position of the slice in its scope, and number of positions.
    follows : bool
        Whether the slice before had data. Otherwise the last published figure is not scored.
    config, booked : float
        Capacity of the node, allocation of its VMs.
    peak, mean, std : float
        99th percentile, mean and population standard deviation of the node's samples.
    vms : tuple of v str
        Names.
    vm_config, vm_mean, vm_peak : (v,) float64
        Allocation of each VM, NaN where unknown; mean and peak of its samples, NaN where it has none.
    contended : bool
        Whether the VMs suffered, which counts as a full node.
    """

    position: int
    positions: int
    follows: bool
    config: float
    booked: float
    peak: float
    mean: float
    std: float
    vms: tuple[str, ...]
    vm_config: FloatArray
    vm_mean: FloatArray
    vm_peak: FloatArray
    contended: bool = False


class ConformalBound:
    r"""The threshold T that usage exceeds in a share ``risk`` of the slices, as close to the usage as possible.

    y(t) is the 99th percentile of the node's samples in slice t; g(t+1) >= 0 is the growth of the allocation from t to
    t+1, which the scheduler has already subtracted from the published figure; i runs over the candidates.

    1. *Candidates* f_i(t) forecast y(t+1) - g(t+1): y(t); its decaying maxima e_a <- max(y, e_a + a (y - e_a)),
       a = 0.5 and 0.1; the sum of the VMs' decaying peaks plus the node's own usage; and, with several positions per
       scope, max(y(t), decaying maximum at the position of t+1). Arrivals and departures of VMs shift the stored
       levels by the mean usage of these VMs.
    2. *Margins* q_i from the last N errors of each candidate, r_i = y(t+1) - g(t+1) - f_i(t):
       q_i = u_i + b_i (k ((p0 / risk)^(1/k) - 1) + c(t))+. u_i is the quantile that a share p0 of the errors exceeds,
       b_i the mean excess over it: an exponential tail, so that a risk of 1 % does not need 100 errors. b_i is
       estimated from m excesses, of which k = m / 2 count as independent, so the quantile is that of the tail's
       predictive distribution: longer with fewer errors, ln(p0 / risk) in the limit. A prior error of three standard
       deviations of the samples stands for the errors not yet observed and fades. U_i = f_i + q_i.
    3. *Weights* by recent losses: T = sum w_i U_i, w_i ~ exp(-eta (L_i - min L) / mean L). L_i is the discounted sum
       of |y - g - U_i|, times 3 where U_i was too low.
    4. *Control* of the violation rate: D(t) = violations - risk x slices, E = risk x slices,
       c = 0.4 (D - d)+ + 6 (D - l)+ - 0.3 (-D - 2)+, with the dead zone d = min(0.2 E, 2.5) and the alarm at
       l = min(E, sqrt(E)) + min(1, (risk / 0.05)^2), a standard deviation of the expected count plus an offset. In the
       limit c multiplies the level by exp(-c): the step of adaptive conformal inference, on the sum of the steps.
    5. *Limits*: 0 <= T <= min(config, booked + the maximum of the node's own usage). The first T is the allocation, or
       the usage if that is larger. T is rounded up to the published resolution.

    Parameters
    ----------
    risk : float
        Target share of violated slices, above 0, at most :data:`MOST_RISK`.
    resolution : float
        0.1 (cores) or 1 (MB).
    censored : bool
        Whether a slice with a full node counts as violated whatever was published: usage is cut at the capacity, and
        where nothing is published nothing else can be violated.

    References
    ----------
    I. Gibbs, E. Candes, "Adaptive conformal inference under distribution shift", NeurIPS 2021 (the moving level).
    A. Angelopoulos, E. Candes, R. Tibshirani, "Conformal PID control for time series prediction", NeurIPS 2023 (the
    saturating integrator). M. Zaffran et al., "Adaptive conformal predictions for time series", ICML 2022 (experts
    weighted by their loss). N. Cesa-Bianchi, G. Lugosi, "Prediction, learning, and games", 2006 (exponential
    weights). A. Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017 (the tail).
    J. Aitchison, I. Dunsmore, "Statistical prediction analysis", 1975 (its predictive distribution).

    Examples
    --------
    >>> nothing = np.empty(0)
    >>> bound = ConformalBound(risk=0.05, resolution=0.1)
    >>> [bound.update(SliceObservation(0, 1, k > 0, 64.0, 40.0, 10.0, 9.0, 0.5, (), *[nothing] * 3)) for k in range(3)]
    [40.0, 11.5, 10.1]
    """

    def __init__(self, risk: float, resolution: float, *, censored: bool = False) -> None:
        self.risk = risk
        self.censored = censored
        self.resolution = resolution
        self.slices = 0
        self.surplus = 0.0  # D
        self.violations: list[int] = []  # per published figure, newest last: 1 if violated, else 0
        self.published = self.booked = 0.0  # at the end of the last slice
        self.spread = 0.0  # largest standard deviation of a slice
        self.own = self.own_most = 0.0  # usage of the node beside its VMs: smoothed, maximum
        self.envelopes: list[float] = []
        self.season: dict[int, float] = {}  # decaying maximum by position
        self._names: tuple[str, ...] = ()  # (v,)
        self._usual: FloatArray = np.empty(0)  # (v,) smoothed mean
        self._top: FloatArray = np.empty(0)  # (v,) decaying peak
        self.forecasts: FloatArray = np.empty(0)  # (i,)
        self.bounds: FloatArray = np.empty(0)  # (i,)
        self.losses: FloatArray = np.empty(0)  # (i,)
        self.errors: FloatArray = np.empty((0, 0))  # (i, up to N), oldest first

    @property
    def vms(self) -> dict[str, list[float]]:
        """By VM: smoothed mean and decaying peak."""
        levels = zip(self._usual.tolist(), self._top.tolist(), strict=True)
        return {name: [usual, top] for name, (usual, top) in zip(self._names, levels, strict=True)}

    @vms.setter
    def vms(self, vms: Mapping[str, Sequence[float]]) -> None:
        levels = np.array(list(vms.values()), dtype=np.float64).reshape(len(vms), 2)
        self._names, self._usual, self._top = tuple(vms), levels[:, 0], levels[:, 1]

    @property
    def violation_rate(self) -> float:
        """Violated share of the last 100 published figures, 0 to 1; NaN before the first one is scored."""
        return sum(self.violations) / len(self.violations) if self.violations else math.nan

    def update(self, observation: SliceObservation) -> float:
        """Process a finished slice and return T, cores or MB."""
        first = not self.slices
        shift = self._track_vms(observation)
        if observation.follows and not first:
            self._score_published(observation)
        self._move_levels(observation, 0.0 if first else shift)
        self.forecasts = self._candidates(observation)
        if first:
            self.losses = np.zeros(self.forecasts.size)
            self.errors = np.empty((self.forecasts.size, 0))
        self.bounds = self.forecasts + self._margins()
        threshold = max(observation.booked, observation.peak) if first else float(self._weights() @ self.bounds)
        most = min(max(observation.booked + self.own_most, observation.peak), observation.config)
        threshold = round_up(max(0.0, min(threshold, most)), self.resolution)
        self.published = round(max(0.0, observation.config - threshold), 6)
        self.booked = observation.booked
        self.slices += 1
        return threshold

    def _track_vms(self, observation: SliceObservation) -> float:
        """Update the levels of the VMs and of the node itself.

        Returns
        -------
        float
            Mean usage of the VMs that arrived less that of those that left.
        """
        mean, peak = observation.vm_mean, observation.vm_peak
        sampled = ~np.isnan(mean)
        if observation.vms == self._names and sampled.all():
            self._top = np.maximum(peak, self._top + _VM_DECAY * (peak - self._top))
            self._usual = self._usual + _VM_DECAY * (mean - self._usual)
            used, arrived, left = _running_sum(mean), 0.0, 0.0
        else:
            used, arrived, left = self._track_changes(observation, sampled)
        own = observation.mean - used
        self.own = self.own + _VM_DECAY * (own - self.own) if self.slices else own
        self.own_most = max(self.own_most, own, observation.peak - observation.booked)
        return arrived - left

    def _track_changes(self, observation: SliceObservation, sampled: BoolArray) -> tuple[float, float, float]:
        """Update the levels of VMs some of which come, leave, or have no samples.

        Returns
        -------
        tuple of three floats
            Mean usage of all VMs, of those that arrived, and of those that left.
        """
        mean, peak = observation.vm_mean, observation.vm_peak
        usual, top, known, left = self._usual, self._top, np.ones(len(observation.vms), dtype=bool), 0.0
        if observation.vms != self._names:
            index = previous_rows(self._names, observation.vms)
            known = index >= 0
            gone = np.ones(len(self._names), dtype=bool)
            gone[index[known]] = False
            left = _running_sum(self._usual[gone])
            usual, top = (np.append(levels, 0.0)[index] for levels in (usual, top))
        # No samples: keep the previous levels; a new VM may use its whole allocation.
        start = np.where(sampled, peak, zero_if_missing(observation.vm_config))
        moved = np.maximum(peak, top + _VM_DECAY * (peak - top))
        self._top = np.where(known, np.where(sampled, moved, top), start)
        self._usual = np.where(sampled, np.where(known, usual + _VM_DECAY * (mean - usual), mean), usual)
        self._names = observation.vms
        used = _running_sum(np.where(sampled, mean, usual))
        return used, _running_sum(mean[sampled & ~known]), left

    def _score_published(self, observation: SliceObservation) -> None:
        """Compare the last published figure and all candidates with the usage of this slice."""
        growth = max(0.0, observation.booked - self.booked)
        violated = is_exceeded(self.published, growth, observation.config, observation.peak)
        violated |= self.censored and (is_full(observation.peak, observation.config) or observation.contended)
        self.violations = [*self.violations, int(violated)][-RATE_SLICES:]
        self.surplus = min(max(self.surplus + violated - self.risk, _SURPLUS_LEAST), _SURPLUS_MOST)
        needed = observation.peak - growth
        self.errors = _with_column(self.errors[:, 1 - _ERRORS_KEPT :], needed - self.forecasts)
        shortfall = needed - self.bounds
        self.losses = _LOSS_DISCOUNT * self.losses + np.where(shortfall > 0, _UNDER_COST * shortfall, -shortfall)

    def _move_levels(self, observation: SliceObservation, shift: float) -> None:
        """Update the decaying maxima, all of them shifted by the usage that arrived or left."""
        peak = observation.peak
        self.spread = max(self.spread, observation.std)
        moved = [level + shift for level in self.envelopes] or [peak] * len(_ENVELOPE_DECAYS)
        self.envelopes = [
            max(peak, level + decay * (peak - level)) for level, decay in zip(moved, _ENVELOPE_DECAYS, strict=True)
        ]
        if observation.positions > 1:
            if shift != 0.0:
                self.season = {position: level + shift for position, level in self.season.items()}
            old = self.season.get(observation.position, peak)
            self.season[observation.position] = max(peak, old + _SEASON_DECAY * (peak - old))

    def _candidates(self, observation: SliceObservation) -> FloatArray:
        """f_i, (i,) float64."""
        peak = observation.peak
        levels = [peak, *self.envelopes, self.own + _running_sum(self._top)]
        if observation.positions > 1:
            levels.append(max(peak, self.season.get((observation.position + 1) % observation.positions, peak)))
        return np.maximum(np.array(levels), 0.0)

    def _margins(self) -> FloatArray:
        """q_i, (i,) float64."""
        candidates, count = self.errors.shape
        prior = np.full(candidates, _PRIOR_STDS * self.spread * _PRIOR_DECAY**count)
        ordered = _with_column(self.errors, prior)
        ordered.sort(axis=1)
        # Conformal ranks include the next error: the k-th of n is the quantile k / (n + 1).
        rank = min(max((count + 2) * (1.0 - _TAIL_SHARE) - 1.0, 0.0), float(count))
        below = int(rank)
        above = min(below + 1, count)
        body = ordered[:, below] + (rank - below) * (ordered[:, above] - ordered[:, below])
        excesses = max(1, round((count + 1) * _TAIL_SHARE))
        mean_excess = np.add.reduce(np.maximum(ordered[:, -excesses:] - body[:, None], 0.0), axis=1) / excesses
        independent = excesses / _DEPENDENCE
        length = independent * math.expm1(math.log(_TAIL_SHARE / self.risk) / independent)
        return body + mean_excess * max(0.0, length + self._pressure())

    def _pressure(self) -> float:
        """c, the length that the controller adds to the tail."""
        surplus, expected = self.surplus, self.risk * self.slices
        dead = min(_DEAD_SHARE * expected, _DEAD_MOST)
        alarm = min(expected, math.sqrt(expected)) + _ALARM_OFFSET * min(1.0, (self.risk / _ALARM_FROM) ** 2)
        return (
            _GAIN * max(0.0, surplus - dead)
            + _ALARM_GAIN * max(0.0, surplus - alarm)
            - _SLACK_GAIN * max(0.0, -surplus - _SLACK)
        )

    def _weights(self) -> FloatArray:
        """w_i, (i,) float64."""
        mean = float(np.add.reduce(self.losses)) / self.losses.size
        if mean <= 0.0:
            return np.full(self.losses.size, 1.0 / self.losses.size)
        weights = np.exp(-_WEIGHT_RATE * (self.losses - np.minimum.reduce(self.losses)) / mean)
        return weights / np.add.reduce(weights)

    def state(self) -> dict[str, Any]:
        """The state as numbers, lists and dicts: N errors per candidate, two levels per VM, one per position."""
        return {name: _plain(getattr(self, name)) for name in STATE_FIELDS}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError, TypeError, ValueError
            When a field is missing or has another type.
        """
        for name in STATE_FIELDS:
            value = state[name]
            is_array = isinstance(getattr(self, name), np.ndarray)
            setattr(self, name, np.array(value, dtype=np.float64) if is_array else copy.copy(value))


def _running_sum(values: FloatArray) -> float:
    """The sum, added in the order of the values (numpy adds in pairs, which differs in the last bit)."""
    return float(np.add.accumulate(values)[-1]) if values.size else 0.0


def _with_column(rows: FloatArray, column: FloatArray) -> FloatArray:
    return np.concatenate((rows, column[:, None]), axis=1)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else copy.copy(value)
