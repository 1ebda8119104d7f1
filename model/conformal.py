"""A bound on usage that is exceeded in a target share of the slices.

Forecasts, quantiles of their own past errors, and a controller of the violation rate. :class:`SliceObservation` is the
input of a slice, :class:`ConformalBound` the estimator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .numerics import FloatArray, round_up

# Chosen on 131 nodes made of Bitbrains and PlanetLab VMs and on 18 generated ones of 2,000 slices, none of them among
# the traces that README's table is made of. "Alike" means within a hundredth of the misprediction.
#: N: errors kept of each candidate (64 to 128 alike).
_MEMORY = 96
#: p0: the tail begins at the quantile that this share exceeds, so that 38 of 96 errors fit it (0.35 to 0.5 alike).
_BODY = 0.4
#: Errors of slices that follow each other are alike: so many of them tell as much of the tail as one alone.
_DEPENDENCE = 2.0
#: How fast an envelope sinks to the present: within two slices, within ten.
_DECAYS = (0.5, 0.1)
#: The usual 0.3 of exponential smoothing, for what a VM uses (0.15 to 0.6 alike) and for a position's peak.
_VM_DECAY = 0.3
_SEASON_DECAY = 0.3
#: Losses count for about 1 / (1 - 0.97) = 33 slices (0.95 to 0.99 alike).
_FORGET = 0.97
#: eta: a candidate 5 % worse than the best weighs 1/e of it (10 to 50 alike).
_FOCUS = 20.0
#: A unit too little counts as three too much (2 to 6 alike, 1 favours broken promises).
_UNDER = 3.0
#: Before errors are known: three standard deviations, gone after some ten slices.
_PRIOR_STDS, _PRIOR_DECAY = 3.0, 0.8
#: Surplus of broken promises that is left alone, 0.2 of what is expected and 2.5 at most; the answer to more: a broken
#: promise lengthens the tail as if the risk were exp(0.4) times smaller.
_DEAD_SHARE, _DEAD_MOST, _GAIN = 0.2, 2.5, 0.4
#: Deficit that is left alone, and the answer to more, which makes the frequency exact in the long run.
_SLACK, _SLACK_GAIN = 2.0, 0.3
#: The answer to a surplus that is no accident. Where broken promises are meant to be frequent, from one in twenty on,
#: such a surplus is one of them larger.
_ALARM_GAIN, _ALARM_REST, _ALARM_FROM = 6.0, 1.0, 0.05
#: Where the surplus stops being counted, so that what is long past is not paid for without end.
_FEWEST, _MOST = -6.0, 20.0
#: How many promises the realised frequency is of.
_JUDGED = 100
#: A promise may exceed the truth by this share of the node before it is broken, as in the score.
_TOLERANCE = 1e-9

#: The largest target that can be kept to: a margin never sinks below the quantile that p0 exceeds.
MOST_RISK = 0.3

#: The attributes of a bound that are carried from slice to slice.
STATE_FIELDS = (
    *("slices", "surplus", "violations", "published", "booked"),
    *("spread", "own", "own_most", "envelopes", "season", "vms"),
    *("forecasts", "bounds", "losses", "errors"),
)


@dataclass(frozen=True, slots=True)
class SliceObservation:
    """One resource of a slice that ended, cores or MB.

    Attributes
    ----------
    position, positions : int
        Which slice of its scope it is, and how many these are.
    follows : bool
        Whether the slice before had data too: only then was a promise put to the test.
    config, booked : float
        What the node has, what its VMs were promised.
    peak, mean, std : float
        99th percentile, mean and population standard deviation of the node's samples.
    vms : tuple of v str
    vm_config, vm_mean, vm_peak : (v,) float64
        What each VM was promised, NaN where unknown; mean and peak of its samples, NaN where it has none.
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


class ConformalBound:
    r"""T, so that in a share ``risk`` of the slices more is used than T, and as close to the usage as that permits.

    y(t) is the 99th percentile of the node's samples in slice t, g(t+1) the growth of booking from t to t+1, which
    whoever placed the VMs has taken off the promise; i runs over the candidates.

    1. *Candidates* f_i(t) for y(t+1) - g(t+1): y(t); its decaying maxima e_a <- max(y, e_a + a (y - e_a)), a = 0.5
       and 0.1; the VMs' own decaying peaks, summed, plus what the node itself uses; and, where a scope has several
       positions, max(y(t), decaying maximum at the position of t+1). VMs that came or left move all remembered
       levels by what they used or use to use.
    2. *Margins* from each candidate's own last N errors r_i = y(t+1) - g(t+1) - f_i(t):
       q_i = u_i + b_i (k ((p0 / risk)^(1/k) - 1) + c(t))+, with u_i the quantile of the errors that p0 of them exceed
       and b_i their mean excess over it: an exponential tail, so that a risk of 1 % needs no hundred errors. b_i is
       known from m excesses only, and k = m / 2 is how many of them are worth counting: the quantile is that of the
       tail's predictive distribution, longer the less is known of it, ln(p0 / risk) in the end. One more error, three
       standard deviations of the samples, stands for those not seen yet and fades. U_i = f_i + q_i.
    3. *Weights* by recent errors: T = sum w_i U_i, w_i ~ exp(-eta (L_i - min L) / mean L), where L_i is the discounted
       sum of |y - g - U_i|, threefold where U_i was too little.
    4. *Steering*: D(t) = broken promises - risk x slices, E = risk x slices.
       c = 0.4 (D - d)+ + 6 (D - l)+ - 0.3 (-D - 2)+, with the dead zone d = min(0.2 E, 2.5) and the alarm at
       l = min(E, sqrt(E)) + min(1, (risk / 0.05)^2): a standard deviation of a fair count, and a rest. In the end
       this multiplies the level by exp(-c), the step of adaptive conformal inference, but on the sum of the steps.
    5. *Limits*: 0 <= T <= min(config, booked + the most that the node itself used). The first T is what is booked, or
       used if that is more. T is rounded up to what is published.

    Parameters
    ----------
    risk : float
        Above 0, at most :data:`MOST_RISK`.
    resolution : float
        0.1 (cores) or 1 (MB).

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

    def __init__(self, risk: float, resolution: float) -> None:
        self.risk = risk
        self.resolution = resolution
        self.slices = 0
        self.surplus = 0.0  # D
        self.violations: list[int] = []  # 1 for each of the last promises that was, 0 for each that was kept
        self.published = self.booked = 0.0  # at the end of the last slice
        self.spread = 0.0  # the largest standard deviation of a slice
        self.own = self.own_most = 0.0  # what the node itself uses: usually, at most
        self.envelopes: list[float] = []
        self.season: dict[int, float] = {}  # by position
        self.vms: dict[str, list[float]] = {}  # by name: what it usually uses, its decaying peak
        self.forecasts: FloatArray = np.empty(0)  # (i,)
        self.bounds: FloatArray = np.empty(0)  # (i,)
        self.losses: FloatArray = np.empty(0)  # (i,)
        self.errors: FloatArray = np.empty((0, 0))  # (i, up to N), oldest first

    @property
    def violation_rate(self) -> float:
        """The share of the last 100 promises that was broken; NaN before the first was put to the test."""
        return sum(self.violations) / len(self.violations) if self.violations else math.nan

    def update(self, seen: SliceObservation) -> float:
        """Learn from the slice that ended and answer with T."""
        first = not self.slices
        shift = self._see_vms(seen)
        if seen.follows and not first:
            self._score_published(seen)
        self._move_levels(seen, 0.0 if first else shift)
        self.forecasts = self._candidates(seen)
        if first:
            self.losses = np.zeros(self.forecasts.size)
            self.errors = np.empty((self.forecasts.size, 0))
        self.bounds = self.forecasts + self._margins()
        threshold = max(seen.booked, seen.peak) if first else float(self._weights() @ self.bounds)
        # Whatever the VMs do, they and the node use no more than this, and no more than there is.
        most = min(max(seen.booked + self.own_most, seen.peak), seen.config)
        threshold = round_up(max(0.0, min(threshold, most)), self.resolution)
        self.published = round(max(0.0, seen.config - threshold), 6)
        self.booked = seen.booked
        self.slices += 1
        return threshold

    def _see_vms(self, seen: SliceObservation) -> float:
        """Remember what each VM, and the node beside them, uses; by how much arrivals and departures move that."""
        found: dict[str, list[float]] = {}
        arrived = used = 0.0
        figures = (seen.vm_config.tolist(), seen.vm_mean.tolist(), seen.vm_peak.tolist())
        for name, config, mean, peak in zip(seen.vms, *figures, strict=True):
            known = self.vms.pop(name, None)
            if math.isnan(mean):
                # As before, or all that it may use.
                found[name] = known or [0.0, 0.0 if math.isnan(config) else config]
                used += found[name][0]
                continue
            used += mean
            if known is None:
                found[name] = [mean, peak]
                arrived += mean
            else:
                usual, top = known
                found[name] = [usual + _VM_DECAY * (mean - usual), max(peak, top + _VM_DECAY * (peak - top))]
        left = sum(usual for usual, _ in self.vms.values())
        self.vms = found
        own = seen.mean - used
        self.own = self.own + _VM_DECAY * (own - self.own) if self.slices else own
        self.own_most = max(self.own_most, own, seen.peak - seen.booked)
        return arrived - left

    def _score_published(self, seen: SliceObservation) -> None:
        """Was the promise kept, and how far off was each candidate?"""
        growth = max(0.0, seen.booked - self.booked)
        over = self.published - growth - (seen.config - seen.peak)
        violations = over > _TOLERANCE * seen.config
        self.violations = [*self.violations, int(violations)][-_JUDGED:]
        self.surplus = min(max(self.surplus + violations - self.risk, _FEWEST), _MOST)
        needed = seen.peak - growth
        self.errors = np.column_stack([self.errors, needed - self.forecasts])[:, -_MEMORY:]
        off = needed - self.bounds
        self.losses = _FORGET * self.losses + np.where(off > 0, _UNDER * off, -off)

    def _move_levels(self, seen: SliceObservation, shift: float) -> None:
        """The decaying maxima, all of them moved by what came and left."""
        peak = seen.peak
        self.spread = max(self.spread, seen.std)
        moved = [level + shift for level in self.envelopes] or [peak] * len(_DECAYS)
        self.envelopes = [
            max(peak, level + decay * (peak - level)) for level, decay in zip(moved, _DECAYS, strict=True)
        ]
        if seen.positions > 1:
            self.season = {position: level + shift for position, level in self.season.items()}
            old = self.season.get(seen.position, peak)
            self.season[seen.position] = max(peak, old + _SEASON_DECAY * (peak - old))

    def _candidates(self, seen: SliceObservation) -> FloatArray:
        """f_i, (i,) float64."""
        levels = [seen.peak, *self.envelopes, self.own + sum(top for _, top in self.vms.values())]
        if seen.positions > 1:
            levels.append(max(seen.peak, self.season.get((seen.position + 1) % seen.positions, seen.peak)))
        return np.maximum(np.array(levels), 0.0)

    def _margins(self) -> FloatArray:
        """q_i, (i,) float64."""
        candidates, known = self.errors.shape
        prior = np.full(candidates, _PRIOR_STDS * self.spread * _PRIOR_DECAY**known)
        ordered = np.sort(np.column_stack([self.errors, prior]), axis=1)
        # Conformal ranks count the error to come: the k-th of n is at k / (n + 1).
        rank = min(max((known + 2) * (1.0 - _BODY) - 1.0, 0.0), float(known))
        below = int(rank)
        above = min(below + 1, known)
        body = ordered[:, below] + (rank - below) * (ordered[:, above] - ordered[:, below])
        count = max(1, round((known + 1) * _BODY))
        excess = np.maximum(ordered[:, -count:] - body[:, None], 0.0).mean(axis=1)
        worth = count / _DEPENDENCE
        length = worth * math.expm1(math.log(_BODY / self.risk) / worth)
        return body + excess * max(0.0, length + self._pressure())

    def _pressure(self) -> float:
        """c, by how much the tail is lengthened."""
        surplus, expected = self.surplus, self.risk * self.slices
        dead = min(_DEAD_SHARE * expected, _DEAD_MOST)
        alarm = min(expected, math.sqrt(expected)) + _ALARM_REST * min(1.0, (self.risk / _ALARM_FROM) ** 2)
        return (
            _GAIN * max(0.0, surplus - dead)
            + _ALARM_GAIN * max(0.0, surplus - alarm)
            - _SLACK_GAIN * max(0.0, -surplus - _SLACK)
        )

    def _weights(self) -> FloatArray:
        """w_i, (i,) float64."""
        mean = self.losses.mean()
        if mean <= 0.0:
            return np.full(self.losses.size, 1.0 / self.losses.size)
        weights = np.exp(-_FOCUS * (self.losses - self.losses.min()) / mean)
        return weights / weights.sum()

    def state(self) -> dict[str, Any]:
        """What it carries on, as numbers, lists and dicts: N for each candidate, two per VM, one per position."""
        return {name: _plain(getattr(self, name)) for name in STATE_FIELDS}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one's :meth:`state` was taken.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it is none.
        """
        for name in STATE_FIELDS:
            told = state[name]
            is_array = isinstance(getattr(self, name), np.ndarray)
            setattr(self, name, np.array(told, dtype=np.float64) if is_array else copy.copy(told))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else copy.copy(value)
