"""Contention: VMs that wait for CPU, and nodes that stall for memory.

Usage cannot exceed what a node has: a saturated node shows 100 % whether 5 or 50 VMs wait. :func:`measure_cpu` and
:func:`measure_memory` measure a slice; :class:`ContentionTracker` turns the levels of successive slices into the one on
which the node acts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .numerics import BoolArray, FloatArray, percentile_of
from .slices import CPU, Resource, Slice, Usage, Waits

#: Shares of its runnable time that a VM waits, for which the time of VMs is counted.
WAIT_SHARES = (0.05, 0.10, 0.20)

#: A VM waits when it loses at least this part of each of its vCPUs: an idle VM that waits as long as it runs loses
#: nothing that its users would see.
_LEAST_WAIT = 0.01
#: Levels of ``some`` in shares of those of ``high``.
_SOME_STALLED, _SOME_SWAPPED = 0.2, 0.1
#: A VM that waits alone, on a node that is used by less than the first share, and runs at a constant level, within the
#: second share of it, below the third share of its vCPUs, has reached a quota of its own.
_CALM, _CONSTANT, _BELOW_SIZE = 0.9, 0.05, 0.98
#: So few samples show no level.
_LEAST_SAMPLES = 4
#: VMs that are listed.
_MOST_LISTED = 20


class Level(IntEnum):
    """How much the VMs of a node suffer."""

    NONE = 0
    SOME = 1
    HIGH = 2

    @property
    def text(self) -> str:
        """``none``, ``some`` or ``high``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ContentionSettings:
    """Thresholds.

    Attributes
    ----------
    vm_some, vm_high : float
        Share of the time in which a VM could run that it waits. VMware's guidance for CPU Ready: below 5 % fine, above
        10 % critical.
    samples : float
        Share of the samples of a slice that may be above a threshold.
    psi_cpu : float
        Share of time in which tasks of the node wait for CPU, for ``some``; it also rises with quotas, so that it is
        never ``high``.
    psi_memory : float
        Share of time in which all tasks of the node are stalled for memory, for ``high``; a fifth of it is ``some``.
    swap_in : float
        Pages per second that the node swaps in, for ``high``; a tenth of it is ``some``.
    slices, window : int
        ``some`` needs so many slices of so many; as many slices without contention end it.
    capped : tuple of str
        Patterns of the names of VMs with a CPU quota, whose waiting does not count.
    """

    vm_some: float = 0.05
    vm_high: float = 0.10
    samples: float = 0.10
    psi_cpu: float = 0.20
    psi_memory: float = 0.05
    swap_in: float = 100.0
    slices: int = 2
    window: int = 4
    capped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contention:
    """The contention for one resource of a node.

    Attributes
    ----------
    level : Level
    vms : mapping of VM to float
        The VMs that wait, the worst first, at most 20; what more than a tenth of their samples exceed, 0 to 1.
    waiting : int
        Number of VMs that wait.
    pressure : mapping of field to float
        The figures of the node that exceed a threshold: ``psi_cpu``, ``psi_memory``, ``swap_in``, ``oom_kills``.
    calm : bool
        Whether the node has CPU left while its VMs wait: pinned to the same cores, or to those of one NUMA node or
        hyperthread.
    """

    level: Level = Level.NONE
    vms: Mapping[str, float] = field(default_factory=dict)
    waiting: int = 0
    pressure: Mapping[str, float] = field(default_factory=dict)
    calm: bool = False

    @property
    def worst(self) -> float:
        """The largest share of a VM; 0 when none waits."""
        return max(self.vms.values(), default=0.0)

    @property
    def causes(self) -> frozenset[str]:
        """The VMs and fields that exceed a threshold."""
        return frozenset((*self.vms, *self.pressure))


@dataclass(frozen=True, slots=True)
class Measured:
    """The contention of one slice.

    Attributes
    ----------
    contention : Contention
    sources : frozenset of str
        The VMs and fields of which there are samples; empty when nothing is known.
    at_quota : frozenset of str
        The VMs that wait for a quota of their own, not for the node.
    undecided : bool
        Whether the only VM that waits has too few samples to show whether it is at its quota.
    """

    contention: Contention = Contention()  # immutable
    sources: frozenset[str] = frozenset()
    at_quota: frozenset[str] = frozenset()
    undecided: bool = False


def measure(resource: Resource, finished: Slice, settings: ContentionSettings) -> Measured:
    """The contention for one resource in a slice."""
    if finished.waits is None:
        return Measured()
    if resource is CPU:
        return measure_cpu(finished.vms, finished.cpu, finished.waits, settings)
    return measure_memory(finished.waits, settings)


def measure_cpu(vms: Sequence[str], usage: Usage, waits: Waits, settings: ContentionSettings) -> Measured:
    """The contention for CPU.

    Parameters
    ----------
    vms : sequence of v str
    usage : Usage
        CPU of the node.
    waits : Waits
        Of the same VMs.
    settings : ContentionSettings
    """
    sampled = ~np.isnan(waits.vm_share).all(axis=1) if waits.vm_share.size else np.zeros(len(vms), dtype=bool)
    sources = {vms[i] for i in np.flatnonzero(sampled).tolist()}
    levels, shares = np.zeros(len(vms)), waits.vm_share
    capped = _matching(vms, settings.capped)
    at_quota = {vms[i] for i in np.flatnonzero(capped).tolist()}
    if (shares > settings.vm_some).any():
        least = _LEAST_WAIT * np.nan_to_num(usage.vm_config)
        # Where the amount is unknown, the share alone counts.
        shares = np.where((waits.vm_wait < least[:, None]) & ~np.isnan(shares), 0.0, shares)
        levels = np.nan_to_num(_exceeded_rows(shares, settings.samples)) * ~capped
    waiting = np.flatnonzero(levels > settings.vm_some)
    peak = percentile_of(usage.node, 99) if usage.node.size else math.nan
    calm = bool(peak < _CALM * usage.config)
    undecided = False
    if calm and waiting.size == 1:
        row = int(waiting[0])
        waits_in = shares[row] > settings.vm_some
        undecided = bool(np.count_nonzero(waits_in) < _LEAST_SAMPLES)
        if not undecided and _is_at_quota(shares[row][waits_in], waits.vm_wait[row][waits_in], usage.vm_config[row]):
            at_quota.add(vms[row])
            waiting = waiting[:0]
    ordered = sorted(waiting.tolist(), key=lambda i: (-levels[i], vms[i]))
    pressure, psi = {}, _exceeded(waits.node("psi_cpu"), settings.samples)
    if not math.isnan(psi):
        sources.add("psi_cpu")
        if psi > settings.psi_cpu:
            pressure["psi_cpu"] = psi
    high = bool((levels[waiting] > settings.vm_high).any())
    level = Level.HIGH if high else Level.SOME if ordered or pressure else Level.NONE
    listed = {vms[i]: float(levels[i]) for i in ordered[:_MOST_LISTED]}
    contention = Contention(level, listed, len(ordered), pressure, bool(ordered) and calm)
    return Measured(contention, frozenset(sources), frozenset(at_quota), undecided)


def measure_memory(waits: Waits, settings: ContentionSettings) -> Measured:
    """The contention for memory: a stalled node, one that swaps in, or one that killed a process."""
    limits = (
        ("psi_memory", settings.psi_memory, _SOME_STALLED),
        ("swap_in", settings.swap_in, _SOME_SWAPPED),
    )
    level, pressure, sources = Level.NONE, {}, set()
    for name, high, some in limits:
        value = _exceeded(waits.node(name), settings.samples)
        if not math.isnan(value):
            sources.add(name)
            if value > some * high:
                pressure[name] = value
                level = max(level, Level.HIGH if value > high else Level.SOME)
    kills = waits.node("oom_kills")
    if kills.size:
        sources.add("oom_kills")
        if (killed := float(kills.sum())) > 0:
            pressure["oom_kills"], level = killed, Level.HIGH
    return Measured(Contention(level, pressure=pressure), frozenset(sources))


def _exceeded(values: FloatArray, share: float) -> float:
    """The largest value that more than a share of the samples reach; NaN without samples."""
    return float(_exceeded_rows(values[None, :], share)[0]) if values.size else math.nan


def _exceeded_rows(values: FloatArray, share: float) -> FloatArray:
    """The same for each row; NaN for one without samples. NaN pads."""
    descending = -np.sort(-values, axis=1)  # NaN last
    count = values.shape[1] - np.isnan(values).sum(axis=1)
    rank = np.minimum((count * share + 1e-9).astype(np.intp), np.maximum(count - 1, 0))
    exceeded: FloatArray = np.take_along_axis(descending, rank[:, None], axis=1)[:, 0]
    return exceeded


def _matching(vms: Sequence[str], patterns: Collection[str]) -> BoolArray:
    if not patterns:
        return np.zeros(len(vms), dtype=bool)
    return np.array([any(fnmatchcase(name, pattern) for pattern in patterns) for name in vms], dtype=bool)


def _is_at_quota(share: FloatArray, wait: FloatArray, size: float) -> bool:
    """Whether a VM runs at a constant level below its size in the samples in which it waits."""
    run = wait * (1.0 / share - 1.0)
    level = float(run.mean())
    constant = float(np.ptp(run)) <= _CONSTANT * level
    # A VM that never runs is starved: no quota is 0.
    return constant and 0.0 < level < _BELOW_SIZE * size


def waiting_vms(waits: Waits) -> tuple[float, ...]:
    """How many VMs waited for more than 5, 10 and 20 % of the time in which they could run, means over a slice."""
    samples = waits.vm_share.shape[1] - np.isnan(waits.vm_share).sum(axis=1)
    above = ((waits.vm_share > share).sum(axis=1) for share in WAIT_SHARES)
    return tuple(float((number / np.maximum(samples, 1)).sum()) for number in above)


class ContentionTracker:
    """The level on which a node acts, from the levels of successive slices.

    ``high`` acts at once; ``some`` when it persists. Contention ends after as many slices without it. What cannot be
    confirmed has not ended: while a cause of the contention has no samples, the level stays, for a scope at most.

    Parameters
    ----------
    settings : ContentionSettings
    scope : int
        Slices of a scope, at least 24.
    """

    def __init__(self, settings: ContentionSettings, scope: int) -> None:
        self._settings = settings
        self._scope = scope
        self.level = Level.NONE
        self.causes: frozenset[str] = frozenset()
        self.recent: list[bool] = []
        self.calm = 0
        self.unknown = 0

    def update(self, measured: Measured, vms: Iterable[str]) -> Level:
        """Add a slice.

        Parameters
        ----------
        measured : Measured
        vms : iterable of str
            The VMs that are alive; a cause that left is none any more.
        """
        settings, level = self._settings, measured.contention.level
        if self.level is Level.NONE and not measured.sources:
            return self.level
        if level is Level.NONE and self._lacks_cause(measured.sources, frozenset(vms)):
            self.unknown += 1
            if self.unknown <= self._scope:
                return self.level
        self.unknown = 0
        self.recent = [*self.recent, level > Level.NONE][-settings.window :]
        self.causes = self.causes | measured.contention.causes
        if level is Level.NONE:
            self.calm += 1
            ended = self.level is Level.NONE or self.calm >= settings.slices
        else:
            self.calm = 0
            ended = self.level is Level.NONE and sum(self.recent) < settings.slices
        if level is Level.HIGH:
            self.level = level
        else:
            self.level = Level.NONE if ended else Level.SOME
        if self.level is Level.NONE and level is Level.NONE:
            self.causes = frozenset()
        return self.level

    def _lacks_cause(self, sources: frozenset[str], vms: frozenset[str]) -> bool:
        """Whether a cause of the contention may persist unseen."""
        present = {cause for cause in self.causes if cause in vms or cause in _NODE_FIELDS}
        return self.level is not Level.NONE and (not sources or not present <= sources)

    def state(self) -> dict[str, Any]:
        """The state as numbers and lists."""
        return {
            "level": int(self.level),
            "causes": sorted(self.causes),
            "recent": self.recent,
            "calm": self.calm,
            "unknown": self.unknown,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError
        """
        self.level, self.causes = Level(state["level"]), frozenset(state["causes"])
        self.recent = [bool(flag) for flag in state["recent"]]
        self.calm, self.unknown = int(state["calm"]), int(state["unknown"])


_NODE_FIELDS = frozenset(("psi_cpu", "psi_memory", "swap_in", "oom_kills"))


def present_text(contention: Contention, used: float) -> str:
    """What VMs suffer from now, see :func:`describe`; empty when they do not.

    The level on which a node acts outlasts its causes.
    """
    return "" if contention.level is Level.NONE else describe(contention, used) or "it has not ended yet"


def describe(contention: Contention, used: float) -> str:
    """What happens, in a few words; empty without contention.

    Parameters
    ----------
    contention : Contention
    used : float
        Used share of the node, for a node that has CPU left; NaN if unknown.

    Examples
    --------
    >>> describe(Contention(Level.HIGH, {"a": 0.31, "b": 0.06}, 2, calm=True), 0.41)
    '2 VMs wait for CPU: a 31 %, b 6 %; the node uses 41 % of its CPU: check pinning, NUMA and hyperthreads'
    """
    parts = []
    if contention.vms:
        named = [f"{name} {100 * share:.0f} %" for name, share in list(contention.vms.items())[:3]]
        more = contention.waiting - len(named)
        number = f"{contention.waiting} VM{'s wait' if contention.waiting > 1 else ' waits'} for CPU"
        parts.append(f"{number}: {', '.join(named)}{f' and {more} more' if more > 0 else ''}")
    texts = {
        "psi_cpu": lambda value: f"tasks wait for CPU {100 * value:.0f} % of the time",
        "psi_memory": lambda value: f"stalled for memory {100 * value:.0f} % of the time",
        "swap_in": lambda value: f"swaps in {value:.0f} pages/s",
        "oom_kills": lambda value: f"killed {value:.0f} processes for lack of memory",
    }
    parts += [texts[name](value) for name, value in contention.pressure.items()]
    if contention.calm:
        share = "little" if math.isnan(used) else f"{100 * used:.0f} %"
        parts.append(f"the node uses {share} of its CPU: check pinning, NUMA and hyperthreads")
    return "; ".join(parts)
