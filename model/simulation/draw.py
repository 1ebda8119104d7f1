"""Draws workloads from usage series: who arrives when, stays for how long, and uses what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from .workload import SeriesPool, Workload

Arrivals = Literal["flood", "ramp", "finite"]
Mix = Literal["even", "busy", "turn"]

_DAY_S = 86400.0
#: Lifetimes: 60 % of the VMs live for hours and 25 % for days (medians of 4 and 48 hours, lognormal); 15 % stay.
_HOURS_SHARE, _DAYS_SHARE = 0.60, 0.25
_HOURS_MEDIAN, _HOURS_SIGMA = 4.0, 1.2
_DAYS_MEDIAN, _DAYS_SIGMA = 48.0, 0.8
#: So that a VM that uses nothing can be drawn among the busy ones too.
_LEAST_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class SampledVm:
    """A VM of a data set: its size, and what it uses of it.

    Attributes
    ----------
    vcpu, memory_mb : float
    cpu, mem : (t,) float32
        Shares of vCPUs and memory, 0 to 1, one per step.
    """

    vcpu: float
    memory_mb: float
    cpu: NDArray[np.float32]
    mem: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How a workload is drawn.

    Attributes
    ----------
    nodes : int
        Of the fleet that the demand is meant for.
    days : float
    per_node_hour : float
        VMs that arrive per node and hour, on average.
    arrivals : str
        ``flood``: at a constant rate. ``ramp``: at a rate that rises from 0. ``finite``: at a constant rate in the
        first half of the time, and none after it.
    mix : str
        ``even`` draws all VMs alike, ``busy`` those that use more of their size more often, ``turn`` evenly in the
        first half and then the busy ones.
    same_clock : bool
        Whether all VMs replay the same days, as they ran in the data set; otherwise each one has a random day of its
        own, at the same time of the day.
    """

    nodes: int = 20
    days: float = 14.0
    per_node_hour: float = 6.0
    arrivals: Arrivals = "flood"
    mix: Mix = "even"
    same_clock: bool = False


def draw_workload(vms: Sequence[SampledVm], step_s: float, settings: DrawSettings, seed: int) -> Workload:
    """Draw a workload.

    Parameters
    ----------
    vms : sequence of SampledVm
        Series with the same step; whole days are used.
    step_s : float
    settings : DrawSettings
    seed : int
    """
    rng = np.random.default_rng([seed, 17])
    day = round(_DAY_S / step_s)
    steps = round(settings.days * day)
    create = _arrivals(rng, settings, step_s, steps)
    create_s = create.astype(np.float64) * step_s
    n = create.size
    series = _series(rng, vms, settings.mix, create, steps)
    days = np.array([max(vm.cpu.size // day, 1) for vm in vms])
    offset = np.zeros(n, np.intp) if settings.same_clock else (rng.random(n) * days[series]).astype(np.intp) * day
    return Workload(
        step_s=step_s,
        duration_s=steps * step_s,
        names=[f"vm{i:06d}" for i in range(n)],
        create_s=create_s,
        delete_s=create_s + _lifetimes_s(rng, n),
        vcpu=np.array([vm.vcpu for vm in vms])[series],
        memory_mb=np.array([vm.memory_mb for vm in vms])[series],
        series=series,
        offset=offset,
        cpu=SeriesPool([vm.cpu for vm in vms]),
        mem=SeriesPool([vm.mem for vm in vms]),
    )


def _arrivals(rng: np.random.Generator, settings: DrawSettings, step_s: float, steps: int) -> NDArray[np.intp]:
    """(n,) int: the step in which each VM arrives."""
    clock = np.arange(steps)
    rate = np.full(steps, settings.per_node_hour * settings.nodes * step_s / 3600.0)
    if settings.arrivals == "ramp":
        rate = rate * clock / steps
    elif settings.arrivals == "finite":
        rate[steps // 2 :] = 0.0
    return np.repeat(clock, rng.poisson(rate))


def _series(
    rng: np.random.Generator, vms: Sequence[SampledVm], mix: Mix, create: NDArray[np.intp], steps: int
) -> NDArray[np.intp]:
    even = rng.choice(len(vms), create.size)
    weight = np.array([float(vm.cpu.mean(dtype=np.float64)) for vm in vms]) + _LEAST_WEIGHT
    busy = rng.choice(len(vms), create.size, p=weight / weight.sum())
    if mix == "even":
        return even
    return busy if mix == "busy" else np.where(create >= steps // 2, busy, even)


def _lifetimes_s(rng: np.random.Generator, n: int) -> FloatArray:
    kind = rng.random(n)
    hours = rng.lognormal(np.log(_HOURS_MEDIAN), _HOURS_SIGMA, n)
    days = rng.lognormal(np.log(_DAYS_MEDIAN), _DAYS_SIGMA, n)
    life = 3600.0 * np.where(kind < _HOURS_SHARE, hours, days)
    return np.where(kind < _HOURS_SHARE + _DAYS_SHARE, life, np.inf)
