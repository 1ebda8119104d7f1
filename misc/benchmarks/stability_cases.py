"""Slices with a label, like their past or unlike it: the cases of ``bench_stability.py``.

**The rule**, fixed before any case was drawn or labelled. The question of an operator is whether a margin that was
fitted to the older slices may be reduced. A change counts where it makes a threshold of the older slices (mean plus 2
or 3 standard deviations, or a high percentile) wrong by at least 2 % of the node, and by more than the usual movement:
from limit = max(0.02, 1.5 s) on, where s is the standard deviation about the pattern of every slice. Unlike are:

- *level*, *trend*: a distance of the limit, up or down, from the nearest level of any older slice;
- *spread*: 1.6 times the noise or 0.4 of it, and by 2 % of the node at 2.5 standard deviations;
- *burst*, *outliers*: 1 % of the samples, and at least one, above the usual maximum by the limit;
- *shape*: the pattern is higher by the limit.

Like are: the same process again; the same values in another order, which does not change a threshold; fewer outliers
than 1 %; changes of less than half the limit. One change in ten is between half the limit and 1.3 times the limit.

Drawn cases are labelled by the change that was made, see :data:`KINDS`; those of ``stability-labels.csv`` by eye.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from model.numerics import FloatArray
from model.replay.trace import read_trace
from model.slices import RESOURCES

_FLOOR, _STDS = 0.02, 1.5
#: Number of older slices, h + 1.
_OLDER = 4

LABELS = Path(__file__).resolve().with_name("stability-labels.csv")


@dataclass(frozen=True, slots=True)
class Case:
    """Two periods, and whether the second is like the first.

    Attributes
    ----------
    older, new : (4m,), (m,) float64
        Shares of the node, three digits.
    like : bool
    kind : str
        The change, or the reason of the label.
    """

    older: FloatArray
    new: FloatArray
    like: bool
    kind: str


@dataclass(frozen=True, slots=True)
class _Process:
    """The usage of a node, shares of the node.

    Attributes
    ----------
    level, noise, wander : float
        Mean; standard deviation of the samples in a slice, and of the levels of the slices.
    correlation : float
        Of the noise, an autoregression of order 1.
    skewed, joined : bool
        Lognormal noise; noise that continues across slices.
    shape : (m,) float64
        Pattern of every slice, mean 0.
    height, often : float
        Height of the bursts, 0 for none; share of the slices with a burst.
    """

    level: float
    noise: float
    wander: float
    correlation: float
    skewed: bool
    joined: bool
    shape: FloatArray
    height: float
    often: float

    @property
    def limit(self) -> float:
        """The smallest change that counts."""
        return max(_FLOOR, _STDS * float(np.hypot(self.noise, self.wander)))

    @property
    def top(self) -> float:
        """The usual maximum."""
        return self.level + float(self.shape.max()) + self.height + 3 * float(np.hypot(self.noise, self.wander))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A case before its change.

    Attributes
    ----------
    usage : (5, m) float64
        The older slices and the new one; changed in place.
    size : float
        Size of the change, in limits.
    sign : int
        1 or -1.
    """

    random: np.random.Generator
    process: _Process
    usage: FloatArray
    size: float
    sign: int

    @property
    def new(self) -> FloatArray:
        """The new slice."""
        return self.usage[-1]

    @property
    def change(self) -> float:
        """Size of the change, share of the node."""
        return self.size * self.process.limit


# --- changes: each changes a draft in place; False where the process does not permit it -----------------


def _level(draft: _Draft) -> bool:
    levels = np.median(draft.usage, axis=1)  # not moved by usual bursts
    nearest = levels[:-1].max() if draft.sign > 0 else levels[:-1].min()
    draft.new[:] += nearest - levels[-1] + draft.sign * draft.change
    return True


def _small_level(draft: _Draft) -> bool:
    draft.new[:] += draft.sign * draft.change
    return True


def _trend(draft: _Draft) -> bool:
    draft.usage[:] += draft.sign * draft.change * np.arange(_OLDER + 1)[:, None]
    return True


def _more_spread(draft: _Draft) -> bool:
    return _spread(draft, 1 + max(0.6, _FLOOR / 2.5 / draft.process.noise) * draft.size)


def _less_spread(draft: _Draft) -> bool:
    return _spread(draft, 0.4 / draft.size)


def _spread(draft: _Draft, factor: float) -> bool:
    process = draft.process
    if process.height or 2.5 * process.noise * abs(1 - factor) < _FLOOR:
        return False
    draft.new[:] += (factor - 1) * (draft.new - process.shape - process.level)
    return True


def _burst(draft: _Draft) -> bool:
    part = draft.new[_part(draft.random, draft.new.size, 0.15, 0.5)]
    process = draft.process
    part[:] = process.top + draft.change + process.noise * draft.random.standard_normal(part.size)
    return True


def _small_burst(draft: _Draft) -> bool:
    draft.new[_part(draft.random, draft.new.size, 0.15, 0.5)] += draft.change
    return True


def _outliers(draft: _Draft) -> bool:
    return _set_outliers(draft, int(np.ceil(0.02 * draft.new.size)), draft.change)


def _few_outliers(draft: _Draft) -> bool:
    count = int(0.006 * draft.new.size)
    return bool(count) and _set_outliers(draft, count, _size(draft.random, counts=True) * draft.process.limit)


def _set_outliers(draft: _Draft, count: int, height: float) -> bool:
    draft.new[draft.random.choice(draft.new.size, count, replace=False)] = draft.process.top + height
    return True


def _shape(draft: _Draft) -> bool:
    process = draft.process
    if not process.shape.any() or process.height:
        return False
    draft.new[:] += process.shape * draft.change / process.shape.max()
    return True


def _other_order(draft: _Draft) -> bool:
    shape = draft.process.shape
    draft.new[:] += shape[::-1] - shape
    return bool(shape.any())


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of case: its name, its label, and the change that makes it."""

    name: str
    like: bool
    change: Callable[[_Draft], bool]


#: The order is part of the seed. Seven like cases in ten are "same", without a change.
KINDS = (
    Kind("small level", True, _small_level),
    Kind("small burst", True, _small_burst),
    Kind("few outliers", True, _few_outliers),
    Kind("other order", True, _other_order),
    Kind("level", False, _level),
    Kind("trend", False, _trend),
    Kind("more spread", False, _more_spread),
    Kind("less spread", False, _less_spread),
    Kind("burst", False, _burst),
    Kind("outliers", False, _outliers),
    Kind("shape", False, _shape),
)


# --- drawing --------------------------------------------------------------------------------------------


def draw_cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` cases, every other one like its past; the same for the same seed."""
    random = np.random.default_rng(seed)
    for i in range(count):
        case = None
        while case is None:
            case = _draw_case(random, like=i % 2 == 0)
        yield case


def _draw_case(random: np.random.Generator, like: bool) -> Case | None:
    """A case; None where the change does not suit the process, or usage leaves the node."""
    samples = int(random.choice([6, 12, 30, 60, 360], p=[0.1, 0.4, 0.15, 0.25, 0.1]))
    process = _draw_process(random, samples)
    usage = _draw_slices(random, process, samples)
    name = "same"
    if not like or random.random() < 0.3:
        kinds = {kind.name: kind for kind in KINDS if kind.like == like}
        name = str(random.choice(list(kinds)))
        size = _size(random, counts=not like)
        sign = 1 if random.random() < 0.5 else -1
        if not kinds[name].change(_Draft(random, process, usage, size, sign)):
            return None
    if usage.min() < 0 or usage.max() > 1:
        return None
    usage = np.round(usage, 3)
    return Case(usage[:-1].ravel(), usage[-1], like, name)


def _draw_process(random: np.random.Generator, samples: int) -> _Process:
    noise = float(np.exp(random.uniform(np.log(0.002), np.log(0.06))))
    place = np.linspace(0, 1, samples)
    shape = random.choice([-1, 1]) * (np.sin(np.pi * place) if random.random() < 0.5 else place)
    return _Process(
        level=random.uniform(0.05, 0.9),
        noise=noise,
        wander=noise * float(random.choice([0.0, 0.3, 1.0])),
        correlation=float(random.choice([0.0, random.uniform(0.0, 0.9), random.uniform(0.9, 0.98)])),
        skewed=random.random() < 0.4,
        joined=random.random() < 0.5,
        shape=random.uniform(0.01, 0.15) * (random.random() < 0.35) * (shape - shape.mean()),
        height=random.uniform(0.03, 0.3) * (random.random() < 0.3),
        often=float(random.choice([1.0, 0.6])),
    )


def _draw_slices(random: np.random.Generator, process: _Process, samples: int) -> FloatArray:
    """(5, m) float64: the older slices and the new one, all of the same process."""
    count = _OLDER + 1
    lengths = [count * samples] if process.joined else [samples] * count
    noise = np.concatenate([_draw_noise(random, process, length) for length in lengths]).reshape(count, samples)
    wander = process.wander * random.standard_normal((count, 1))
    usage: FloatArray = process.level + wander + process.noise * noise + process.shape
    if process.height:
        bursting = random.random(count) < process.often
        bursting[random.integers(_OLDER)] = True  # otherwise a burst would not be usual
        for i in np.flatnonzero(bursting):
            usage[i, _part(random, samples, 0.08, 0.3)] += process.height
    return usage


def _draw_noise(random: np.random.Generator, process: _Process, size: int) -> FloatArray:
    """(size,) float64 of mean 0 and standard deviation 1."""
    values = random.standard_normal(size)
    values[1:] *= np.sqrt(1 - process.correlation**2)
    # x(i) + correlation x(i - 1)
    values = np.array(list(accumulate(values.tolist(), lambda last, value: value + process.correlation * last)))
    if not process.skewed:
        return values
    variance = 0.36
    lognormal = np.exp(np.sqrt(variance) * values) - np.exp(variance / 2)
    return lognormal / np.sqrt(np.expm1(variance) * np.exp(variance))


def _part(random: np.random.Generator, samples: int, least: float, most: float) -> slice:
    """A contiguous part of a slice; ``least`` and ``most`` are shares of its length."""
    length = max(1, round(samples * random.uniform(least, most)))
    start = int(random.integers(samples - length + 1))
    return slice(start, start + length)


def _size(random: np.random.Generator, counts: bool) -> float:
    """Size of a change that counts or not, in limits."""
    if random.random() < 0.1:
        return random.uniform(1.0, 1.3) if counts else random.uniform(0.5, 1.0)
    if not counts:
        return random.uniform(0.1, 0.5)
    return random.uniform(1.3, 2.5) if random.random() < 0.5 else random.uniform(2.5, 8.0)


# --- labelled by eye ------------------------------------------------------------------------------------


def labelled_cases(folder: Path, labels: Path = LABELS) -> list[Case]:
    """The cases of the traces in a folder that were labelled by eye.

    Raises
    ------
    OSError
        When a trace is missing.
    """
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = []
    for name in sorted({row["trace"] for row in rows}):
        trace = read_trace(folder / f"{name}.json")
        positions, slices = trace.config.positions, list(trace.slices())
        for row in (row for row in rows if row["trace"] == name):
            (resource,) = (one for one in RESOURCES if one.name == row["resource"])
            at = int(row["slice"])
            usages = [slices[at - positions * back].usage(resource) for back in range(_OLDER, -1, -1)]
            shares = [np.round(usage.node / usages[-1].config, 3) for usage in usages]
            cases.append(Case(np.concatenate(shares[:-1]), shares[-1], row["label"] == "like", row["why"]))
    return cases
