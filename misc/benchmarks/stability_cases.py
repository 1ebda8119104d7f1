"""Slices of which it is known whether the last is like the ones before: the cases of ``bench_stability.py``.

**The rule**, written before any case was drawn or labelled. An operator asks whether a margin that was fitted to the
older slices may be made smaller. A change counts where it makes a threshold taken from them (mean and 2 or 3 standard
deviations, or a high percentile) wrong by 2 % of the node at least, and by more than usage moves anyway: from
limit = max(0.02, 1.5 s) on, s being the standard deviation about what repeats itself in every slice. Unlike are:

- *level*, *trend*: away by the limit, up or down, from the nearest level of any older slice;
- *spread*: 1.6 times the noise or 0.4 of it, by 2 % of the node at 2.5 standard deviations;
- *burst*, *outliers*: 1 % of the samples, and one at least, by the limit above all that is usual;
- *shape*: what repeats itself is taller, by the limit.

And these are like: the same again; the same values in another order, of which thresholds know nothing; fewer outliers
than 1 %; changes of less than half the limit. One change in ten is between half the limit and 1.3 of it.

Cases drawn here are labelled by what was done to them, those of ``stability-labels.csv`` by eye.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.numerics import FloatArray
from model.replay.trace import read_trace
from model.slices import RESOURCES

_FLOOR, _STDS = 0.02, 1.5
#: h + 1.
_OLDER = 4
_LIKE = ("small level", "small burst", "few outliers", "other order")
_UNLIKE = ("level", "trend", "more spread", "less spread", "burst", "outliers", "shape")

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
        What was done to it, or why it was labelled so.
    """

    older: FloatArray
    new: FloatArray
    like: bool
    kind: str


@dataclass(frozen=True, slots=True)
class _Process:
    """What a node does in every slice.

    Attributes
    ----------
    level, noise, wander : float
        Mean; standard deviation of the samples within a slice, and of the slices' levels.
    memory : float
        Of the noise, an autoregression of order 1.
    skewed, joined : bool
        Lognormal noise; noise that goes on from slice to slice.
    shape : (m,) float64
        What repeats itself in every slice, mean 0.
    height, often : float
        Of the bursts that a slice may have; share of the slices that have one.
    """

    level: float
    noise: float
    wander: float
    memory: float
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
        """The most that is usual."""
        return self.level + float(self.shape.max()) + self.height + 3 * float(np.hypot(self.noise, self.wander))


def drawn(seed: int, count: int) -> Iterator[Case]:
    """So many cases, every other one like; the same for the same seed."""
    random = np.random.default_rng(seed)
    for i in range(count):
        case = None
        while case is None:
            case = _case(random, like=i % 2 == 0)
        yield case


def _case(random: np.random.Generator, like: bool) -> Case | None:
    """A case; None where what was drawn does not fit together, or not into the node."""
    samples = int(random.choice([6, 12, 30, 60, 360], p=[0.1, 0.4, 0.15, 0.25, 0.1]))
    process = _process(random, samples)
    usage = _slices(random, process, samples)
    kind = "same"
    if not like or random.random() < 0.3:
        kind = str(random.choice(_LIKE if like else _UNLIKE))
        size = _size(random, counts=not like)
        if not _changed(random, process, usage, kind, size):
            return None
    if usage.min() < 0 or usage.max() > 1:
        return None
    usage = np.round(usage, 3)
    return Case(usage[:-1].ravel(), usage[-1], like, kind)


def _process(random: np.random.Generator, samples: int) -> _Process:
    noise = float(np.exp(random.uniform(np.log(0.002), np.log(0.06))))
    place = np.linspace(0, 1, samples)
    shape = random.choice([-1, 1]) * (np.sin(np.pi * place) if random.random() < 0.5 else place)
    return _Process(
        level=random.uniform(0.05, 0.9),
        noise=noise,
        wander=noise * float(random.choice([0.0, 0.3, 1.0])),
        memory=float(random.choice([0.0, random.uniform(0.0, 0.9), random.uniform(0.9, 0.98)])),
        skewed=random.random() < 0.4,
        joined=random.random() < 0.5,
        shape=random.uniform(0.01, 0.15) * (random.random() < 0.35) * (shape - shape.mean()),
        height=random.uniform(0.03, 0.3) * (random.random() < 0.3),
        often=float(random.choice([1.0, 0.6])),
    )


def _slices(random: np.random.Generator, process: _Process, samples: int) -> FloatArray:
    """(5, m) float64: the older slices and the new one, all of the same process."""
    count = _OLDER + 1
    lengths = [count * samples] if process.joined else [samples] * count
    noise = np.concatenate([_noise(random, process, length) for length in lengths]).reshape(count, samples)
    wander = process.wander * random.standard_normal((count, 1))
    usage: FloatArray = process.level + wander + process.noise * noise + process.shape
    if process.height:
        bursting = random.random(count) < process.often
        bursting[random.integers(_OLDER)] = True  # or it would not be usual
        for i in np.flatnonzero(bursting):
            usage[i, _part(random, samples, 0.08, 0.3)] += process.height
    return usage


def _noise(random: np.random.Generator, process: _Process, size: int) -> FloatArray:
    """(size,) float64 of mean 0 and standard deviation 1."""
    values = random.standard_normal(size)
    values[1:] *= np.sqrt(1 - process.memory**2)
    for i in range(1, size):
        values[i] += process.memory * values[i - 1]
    if not process.skewed:
        return values
    variance = 0.36
    lognormal = np.exp(np.sqrt(variance) * values) - np.exp(variance / 2)
    return lognormal / np.sqrt(np.expm1(variance) * np.exp(variance))


def _part(random: np.random.Generator, samples: int, least: float, most: float) -> slice:
    """A part of a slice, in shares of it."""
    length = max(1, round(samples * random.uniform(least, most)))
    start = int(random.integers(samples - length + 1))
    return slice(start, start + length)


def _size(random: np.random.Generator, counts: bool) -> float:
    """How large a change is, in limits."""
    if random.random() < 0.1:
        return random.uniform(1.0, 1.3) if counts else random.uniform(0.5, 1.0)
    if not counts:
        return random.uniform(0.1, 0.5)
    return random.uniform(1.3, 2.5) if random.random() < 0.5 else random.uniform(2.5, 8.0)


def _changed(random: np.random.Generator, process: _Process, usage: FloatArray, kind: str, size: float) -> bool:
    """Change the slices in place; False where that kind is not to be had of this process."""
    new, samples = usage[-1], usage.shape[1]
    change = size * process.limit
    up = 1 if random.random() < 0.5 else -1
    levels = np.median(usage, axis=1)  # usual bursts don't move it
    if kind == "level":
        nearest = levels[:-1].max() if up > 0 else levels[:-1].min()
        new += nearest - levels[-1] + up * change
    elif kind == "small level":
        new += up * change
    elif kind == "trend":
        usage += up * change * np.arange(_OLDER + 1)[:, None]
    elif kind in ("more spread", "less spread"):
        factor = 1 + max(0.6, _FLOOR / 2.5 / process.noise) * size if kind == "more spread" else 0.4 / size
        if process.height or 2.5 * process.noise * abs(1 - factor) < _FLOOR:
            return False
        new += (factor - 1) * (new - process.shape - process.level)
    elif kind == "burst":
        part = _part(random, samples, 0.15, 0.5)
        new[part] = process.top + change + process.noise * random.standard_normal(new[part].size)
    elif kind == "small burst":
        new[_part(random, samples, 0.15, 0.5)] += change
    elif kind in ("outliers", "few outliers"):
        few = kind == "few outliers"
        count = int(0.006 * samples) if few else int(np.ceil(0.02 * samples))
        if not count:
            return False
        height = _size(random, counts=True) * process.limit if few else change
        new[random.choice(samples, count, replace=False)] = process.top + height
    else:
        if not process.shape.any() or (kind == "shape" and process.height):
            return False
        new += process.shape * change / process.shape.max() if kind == "shape" else process.shape[::-1] - process.shape
    return True


def labelled(folder: Path, labels: Path = LABELS) -> list[Case]:
    """The cases of the traces in a folder that were labelled by eye.

    Raises
    ------
    OSError
        When a trace is not there.
    """
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for name in sorted({row["trace"] for row in rows}):
        trace = read_trace(folder / f"{name}.json")
        positions, slices = trace.config.positions, list(trace.slices())
        for row in (row for row in rows if row["trace"] == name):
            (resource,) = (one for one in RESOURCES if one.name == row["resource"])
            at = int(row["slice"])
            usages = [slices[at - positions * back].usage(resource) for back in range(_OLDER, -1, -1)]
            shares = [np.round(usage.node / usages[-1].config, 3) for usage in usages]
            found.append(Case(np.concatenate(shares[:-1]), shares[-1], row["label"] == "like", row["why"]))
    return found
