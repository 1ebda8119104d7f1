"""The figures of a simulation: what was sold, and how far nodes were over their size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from .fleet import FleetSize
from .policies import Capacities, FleetSlice

#: A VM of so many vCPUs is a large one.
LARGE_VCPU = 8
#: A VM waits when it lacks more than this share of what it wants.
WAITS = (0.05, 0.10, 0.20)
#: Excess that is rounding, a share of the node.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of the slices after the warm-up; shares are 0 to 1, NaN where there is nothing to divide by.

    Attributes
    ----------
    sold : float
        vCPUs booked at the ends of the slices / cores.
    hosted : float
        VMs on the whole fleet, mean.
    accepted, accepted_vcpu, accepted_large : float
        Accepted share of the VMs, of their vCPUs, and of the VMs with 8 vCPUs and more.
    used : float
        Share of the cores that is used.
    over : float
        Share of node-slices whose 99th percentile of demand exceeds the cores.
    worst_node : float
        The largest ``over`` of one node.
    unserved : float
        Share of the demand for CPU that the nodes could not serve.
    p999 : float
        99.9th percentile of demand / cores, over nodes and steps.
    mem_over, mem_worst_node : float
        Share of node-slices in which the demand for memory exceeds the node in any step; the largest of one node.
    mem_sold : float
        MB booked / MB of the nodes.
    reported : float
        Share of violated node-slices, as the policy itself counts them from what is measured.
    wait_5, wait_10, wait_20 : float
        Share of the time of all VMs in which they wait for more than 5, 10 and 20 % of what they want.
    """

    sold: float
    hosted: float
    accepted: float
    accepted_vcpu: float
    accepted_large: float
    used: float
    over: float
    worst_node: float
    unserved: float
    p999: float
    mem_over: float
    mem_worst_node: float
    mem_sold: float
    reported: float
    wait_5: float
    wait_10: float
    wait_20: float


class Harm:
    """Collects the figures of a run, slice by slice.

    Attributes
    ----------
    sold, used, over : (n, slices) arrays
        vCPUs booked / cores at the end, mean use / cores, and whether the node was over.
    """

    def __init__(self, size: FleetSize, slices: int, steps: int, warm_up: int) -> None:
        self._size = size
        self.warm_up = min(warm_up, max(slices - 1, 0))
        shape = (size.nodes, slices)
        self.sold, self.used, self.mem_sold = (np.zeros(shape) for _ in range(3))
        self.hosted = np.zeros(shape, np.intp)
        self.over, self.mem_over = np.zeros(shape, bool), np.zeros(shape, bool)
        self.violated = np.full(shape, math.nan)
        self._load = np.zeros((size.nodes, slices, steps))
        self._waiting = np.zeros((1 + len(WAITS), slices))  # VMs in steps: all, and those that wait
        self._offered = np.zeros((3, slices))
        self._accepted = np.zeros((3, slices))

    def add_arrivals(self, number: int, vcpu: FloatArray, accepted: NDArray[np.bool_]) -> None:
        """Count the VMs that ask for a place in a slice.

        Parameters
        ----------
        number : int
        vcpu : (n,) float64
        accepted : (n,) bool
            Which of them found one.
        """
        counted = np.stack([np.ones(vcpu.size), vcpu, (vcpu >= LARGE_VCPU).astype(np.float64)])
        self._offered[:, number] = counted.sum(axis=1)
        self._accepted[:, number] = counted[:, accepted].sum(axis=1)

    @property
    def refused_vcpu(self) -> float:
        """vCPUs that found no place so far, warm-up included."""
        return float((self._offered[1] - self._accepted[1]).sum())

    def add_slice(self, number: int, ended: FleetSlice, capacities: Capacities) -> None:
        """Record a slice."""
        cores, memory = self._size.cores, self._size.memory_mb
        p99 = np.percentile(ended.cpu.demand, 99, axis=1)
        self.sold[:, number] = ended.fleet.booked_cpu / cores
        self.mem_sold[:, number] = ended.fleet.booked_mem / memory
        self.hosted[:, number] = ended.fleet.hosted
        self.used[:, number] = ended.cpu.node.mean(axis=1) / cores
        self.over[:, number] = p99 > cores * (1 + _TOLERANCE)
        self.mem_over[:, number] = ended.mem.demand.max(axis=1) > memory * (1 + _TOLERANCE)
        self._load[:, number] = ended.cpu.demand / cores
        running, served = ended.cpu.running, ended.cpu.served
        if running is not None:
            self._waiting[0, number] = running.sum()
            if served is not None:
                self._waiting[1:, number] = [running[1.0 - served > wait].sum() for wait in WAITS]
        if capacities.violated is not None:
            self.violated[:, number] = capacities.violated

    def figures(self) -> Figures:
        """The figures of the slices after the warm-up."""
        counted = slice(self.warm_up, None)
        over, mem_over = self.over[:, counted], self.mem_over[:, counted]
        load = self._load[:, counted]
        demand = float(load.sum(dtype=np.float64))
        with np.errstate(invalid="ignore"):
            accepted = self._accepted[:, counted].sum(axis=1) / self._offered[:, counted].sum(axis=1)
        reported = self.violated[:, counted]
        existed, *waited = self._waiting[:, counted].sum(axis=1).tolist()
        waits = [vms / existed if existed else 0.0 for vms in waited]
        return Figures(
            sold=float(self.sold[:, counted].mean()),
            hosted=float(self.hosted[:, counted].sum(axis=0).mean()),
            accepted=float(accepted[0]),
            accepted_vcpu=float(accepted[1]),
            accepted_large=float(accepted[2]),
            used=float(self.used[:, counted].mean()),
            over=float(over.mean()),
            worst_node=float(over.mean(axis=1).max()),
            unserved=float(np.maximum(load - 1.0, 0.0).sum(dtype=np.float64)) / demand if demand else 0.0,
            p999=float(np.percentile(load, 99.9)),
            mem_over=float(mem_over.mean()),
            mem_worst_node=float(mem_over.mean(axis=1).max()),
            mem_sold=float(self.mem_sold[:, counted].mean()),
            reported=float(np.nanmean(reported)) if np.isfinite(reported).any() else math.nan,
            wait_5=waits[0],
            wait_10=waits[1],
            wait_20=waits[2],
        )
