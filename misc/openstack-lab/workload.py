"""The VMs that customers ask for, and what each of them uses; the same seed gives the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.numerics import FloatArray

#: vCPUs of VMs and their probabilities; memory is not what nodes lack.
_SIZES, _OF_SIZE = (2, 4, 8), (0.2, 0.4, 0.4)
MB_PER_VCPU = 512

#: Share of the VMs that wait for a place at the begin, before the others arrive one by one.
_AT_ONCE = 0.6

#: Length of a burst, s, and its probability in such a time.
_BURST_S, _BURST = 10, 0.04


@dataclass(frozen=True, slots=True)
class Arrival:
    """A VM that a customer asks for.

    Attributes
    ----------
    name : str
    at_s, leave_s : float
        Seconds of the run.
    vcpus : int
    pinned : bool
    """

    name: str
    at_s: float
    leave_s: float
    vcpus: int
    pinned: bool = False


def draw_arrivals(seed: int, vcpus: float, life_s: float, fill_s: float, run_s: float) -> list[Arrival]:
    """VMs in the order of arrival, so that about so many vCPUs are asked for at any time.

    Parameters
    ----------
    seed : int
    vcpus : float
        Sum of the sizes of the VMs that would be there if all were admitted.
    life_s : float
        Mean life of a VM.
    fill_s : float
        Time in which the first ones arrive.
    run_s : float
    """
    rng = np.random.default_rng([seed, 1])
    count = vcpus / float(np.dot(_SIZES, _OF_SIZE))
    first = int(count * _AT_ONCE)
    times = [*np.linspace(0.0, fill_s, first, endpoint=False).tolist(), *_times(rng, count / life_s, run_s)]
    arrivals = []
    for i, at_s in enumerate(sorted(times)):
        leave_s = at_s + float(rng.exponential(life_s)) + 30.0
        arrivals.append(Arrival(f"vm-{i:04d}", at_s, leave_s, int(rng.choice(_SIZES, p=_OF_SIZE))))
    return arrivals


def _times(rng: np.random.Generator, rate: float, until_s: float) -> Iterator[float]:
    at_s = 0.0
    while (at_s := at_s + float(rng.exponential(1.0 / rate))) < until_s:
        yield at_s


class Usage:
    """What VMs want to use: a daily curve that they have in common, a level and noise of their own, and bursts.

    Parameters
    ----------
    seed, run_s, day_s : int
    level : float
        Mean share of a VM's vCPUs, about.
    """

    def __init__(self, seed: int, run_s: int, day_s: int, level: float) -> None:
        self._seed, self._run_s, self._level = seed, run_s, level
        self._day = 1.0 + 0.35 * np.sin(2 * np.pi * np.arange(run_s) / day_s)
        self._series = lru_cache(maxsize=None)(self._draw)

    def share(self, name: str, second: int) -> float:
        """Share of its vCPUs that a VM wants in a second of the run, 0 to 1; repeats after the run's length."""
        return float(self._series(name)[second % self._run_s])

    def _draw(self, name: str) -> FloatArray:
        rng = np.random.default_rng([self._seed, 2, *name.encode()])
        series = rng.gamma(2.0, 0.5) * self._level * self._day * np.exp(0.25 * rng.normal(size=self._run_s))
        bursts = rng.random(-(-self._run_s // _BURST_S)) < _BURST
        series = np.maximum(series, np.repeat(bursts, _BURST_S)[: self._run_s] * rng.uniform(0.6, 1.0))
        return np.clip(series, 0.005, 1.0)
