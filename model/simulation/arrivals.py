"""Arrivals and ends of VMs whose usage is not known, and their workload with the usage of other VMs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..numerics import FloatArray
from .draw import SampledVm
from .workload import IntArray, SeriesPool, Shares, Workload
from .workload_file import WorkloadError

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class ArrivalList:
    """VMs in the order of their arrival.

    Attributes
    ----------
    names : sequence of n str
        Each occurs once.
    create_s, delete_s : (n,) float64
        Seconds from the start; 0 for VMs that came before it, infinite for those that stay.
    vcpu, memory_mb : (n,) float64
        Sizes.
    usage : sequence of n float32 arrays or None, optional
        Share of its vCPUs that each VM uses from its arrival on; None where it is unknown.
    usage_step_s : float
        Seconds of an element of ``usage``.
    origin_s : float
        The start, Unix seconds; NaN if unknown.
    notes : sequence of str
        What was left out and why, a line each.
    """

    names: Sequence[str]
    create_s: FloatArray
    delete_s: FloatArray
    vcpu: FloatArray
    memory_mb: FloatArray
    usage: Sequence[Shares | None] | None = None
    usage_step_s: float = math.nan
    origin_s: float = math.nan
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)


def arrivals_between(arrivals: ArrivalList, start_s: float, end_s: float) -> ArrivalList:
    """The VMs that exist in a period, which becomes the whole time; those that came earlier arrive at its start.

    Raises
    ------
    WorkloadError
        When there are none.
    """
    inside = np.flatnonzero((arrivals.create_s < end_s) & (arrivals.delete_s > start_s))
    if not inside.size:
        raise WorkloadError(f"no VM exists between {start_s:g} and {end_s:g} s")
    usage = None
    if arrivals.usage is not None:
        ages = np.maximum(start_s - arrivals.create_s[inside], 0.0) // arrivals.usage_step_s
        usage = [_from(arrivals.usage[i], int(age)) for i, age in zip(inside.tolist(), ages.tolist(), strict=True)]
    return replace(
        arrivals,
        names=[arrivals.names[i] for i in inside.tolist()],
        create_s=np.maximum(arrivals.create_s[inside] - start_s, 0.0),
        delete_s=arrivals.delete_s[inside] - start_s,
        vcpu=arrivals.vcpu[inside],
        memory_mb=arrivals.memory_mb[inside],
        usage=usage,
        origin_s=arrivals.origin_s + start_s,
    )


def _from(usage: Shares | None, first: int) -> Shares | None:
    return None if usage is None else np.roll(usage, -first)


def join_usage(
    arrivals: ArrivalList, vms: Sequence[SampledVm], step_s: float, seed: int, duration_s: float | None = None
) -> Workload:
    """Let each arrival use what a sampled VM used.

    A VM with the same number of vCPUs is drawn, otherwise one whose number is nearest (as a ratio); it replays a
    random day, at the same time of the day when the start is a midnight. A VM with usage of its own keeps that, and
    all of its memory counts as used.

    Parameters
    ----------
    arrivals : ArrivalList
    vms : sequence of SampledVm
        May be empty when every arrival has usage of its own.
    step_s : float
        Of the series of the sampled VMs; a part of a day.
    seed : int
    duration_s : float, optional
        Rounded up to whole steps; by default until the last arrival or end.

    Raises
    ------
    WorkloadError
        When there are no VMs to draw from.
    """
    day = steps_of_day(step_s)
    own = list(arrivals.usage or [None] * len(arrivals))
    others = np.flatnonzero([usage is None for usage in own])
    if others.size and not vms:
        raise WorkloadError(
            f"{arrivals.names[int(others[0])]}: its usage is unknown, and there is no VM to draw it from"
        )
    rng = np.random.default_rng([seed, 18])
    series, offset = np.zeros(len(arrivals), np.intp), np.zeros(len(arrivals), np.intp)
    if others.size:
        series[others] = _similar(rng, arrivals.vcpu[others], np.array([vm.vcpu for vm in vms]))
        days = np.array([max(vm.cpu.size // day, 1) for vm in vms])
        offset[others] = (rng.random(others.size) * days[series[others]]).astype(np.intp) * day
    cpu, mem = [vm.cpu for vm in vms], [vm.mem for vm in vms]
    first = np.floor(arrivals.create_s / step_s).astype(np.intp)
    for i, usage in enumerate(own):
        if usage is not None:
            steps = math.ceil(usage.size * arrivals.usage_step_s / step_s)
            index = (np.arange(steps) * step_s / arrivals.usage_step_s).astype(np.intp)
            series[i], offset[i] = len(cpu), -first[i] % steps
            cpu.append(usage[np.minimum(index, usage.size - 1)])
            mem.append(np.ones(1, np.float32))
    if duration_s is None:
        events = np.concatenate([arrivals.create_s + step_s, arrivals.delete_s])
        duration_s = float(events[np.isfinite(events)].max())
    return Workload(
        step_s=step_s,
        duration_s=math.ceil(duration_s / step_s) * step_s,
        names=arrivals.names,
        create_s=arrivals.create_s,
        delete_s=arrivals.delete_s,
        vcpu=arrivals.vcpu,
        memory_mb=arrivals.memory_mb,
        series=series,
        offset=offset,
        cpu=SeriesPool(cpu),
        mem=SeriesPool(mem),
    )


def _similar(rng: np.random.Generator, wanted: FloatArray, offered: FloatArray) -> IntArray:
    """(n,) int: for each size one of those that are nearest to it."""
    result = np.zeros(wanted.size, np.intp)
    for size in np.unique(wanted):
        distance = np.abs(np.log(offered / size))
        nearest = np.flatnonzero(distance <= distance.min() + 1e-9)
        rows = wanted == size
        result[rows] = rng.choice(nearest, int(rows.sum()))
    return result


def steps_of_day(step_s: float) -> int:
    """Number of steps of a day.

    Raises
    ------
    WorkloadError
        When it is not a whole number.
    """
    if not 0 < step_s <= _DAY_S or not math.isclose(_DAY_S / step_s, round(_DAY_S / step_s), rel_tol=1e-9):
        raise WorkloadError(f"a step of {step_s:g} s is not a part of a day")
    return round(_DAY_S / step_s)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names; one that occurs again gets a number.

    >>> unique_names(["a", "b", "a", "a"])
    ['a', 'b', 'a#2', 'a#3']
    """
    taken = set(names)
    count: Counter[str] = Counter()
    result = []
    for name in names:
        count[name] += 1
        unique = name
        while count[name] > 1 and (unique := f"{name}#{count[name]}") in taken:
            count[name] += 1
        taken.add(unique)
        result.append(unique)
    return result
