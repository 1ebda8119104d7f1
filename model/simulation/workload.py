"""The workload of a simulation: VMs in the order of their arrival, and the usage that each of them replays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from ..slices import CPU, Resource

IntArray = NDArray[np.intp]
Shares = NDArray[np.float32]


class SeriesPool:
    """Usage series of any lengths in one block, so that the usage of many VMs is one look-up.

    Parameters
    ----------
    series : sequence of (t,) arrays
        Shares of a VM's size, 0 to 1; each has at least one element.
    """

    def __init__(self, series: Sequence[NDArray[np.floating]]) -> None:
        self.lengths: IntArray = np.array([one.size for one in series], dtype=np.intp)
        self.starts: IntArray = np.concatenate([np.zeros(1, np.intp), np.cumsum(self.lengths)[:-1]])
        self.shares: Shares = np.concatenate([np.asarray(one, np.float32) for one in series])

    def __len__(self) -> int:
        return self.lengths.size

    def __getitem__(self, i: int) -> Shares:
        """(t,) float32: one series, a view."""
        return self.shares[self.starts[i] : self.starts[i] + self.lengths[i]]

    def at(self, series: IntArray, offsets: IntArray, first: int, steps: int) -> Shares:
        """The shares of successive steps; a series repeats after its end.

        Parameters
        ----------
        series, offsets : (v,) int
            Index of a series, and the element that belongs to step 0.
        first, steps : int
            First step, and number of steps.

        Returns
        -------
        (v, steps) float32
        """
        length = self.lengths[series]
        begin = (offsets + first) % length
        whole = begin + steps <= length
        if whole.all():
            return self._windows(steps)[self.starts[series] + begin]
        result = np.empty((series.size, steps), np.float32)
        result[whole] = self._windows(steps)[(self.starts[series] + begin)[whole]]
        wraps = np.flatnonzero(~whole)
        at = (begin[wraps, None] + np.arange(steps)) % length[wraps, None]
        result[wraps] = self.shares.take(self.starts[series[wraps]][:, None] + at)
        return result

    def one(self, series: int, offset: int, first: int, steps: int) -> Shares:
        """(steps,) float32: the same of one series."""
        own = self[series]
        begin = (offset + first) % own.size
        if begin + steps <= own.size:
            return own[begin : begin + steps]
        return own[(begin + np.arange(steps)) % own.size]

    def _windows(self, steps: int) -> Shares:
        """A view whose element i has the shares from the i-th on; empty where there are too few."""
        if self.shares.size < steps:
            return np.empty((0, steps), np.float32)
        return np.lib.stride_tricks.sliding_window_view(self.shares, steps)


@dataclass(frozen=True)
class Workload:
    """VMs and their usage.

    Attributes
    ----------
    step_s, duration_s : float
        Seconds of a step, and of the whole.
    names : sequence of n str
    create_s, delete_s : (n,) float64
        Arrival and end, seconds from the start; infinite for a VM that stays. Arrivals are in ascending order.
    vcpu, memory_mb : (n,) float64
        Sizes.
    series, offset : (n,) int
        The series that a VM replays, and the element of it that belongs to step 0.
    cpu, mem : SeriesPool
        Shares of the VM's vCPUs and memory.
    """

    step_s: float
    duration_s: float
    names: Sequence[str]
    create_s: FloatArray
    delete_s: FloatArray
    vcpu: FloatArray
    memory_mb: FloatArray
    series: IntArray
    offset: IntArray
    cpu: SeriesPool
    mem: SeriesPool
    #: (n,) int: the first step of each VM, and the first step without it.
    first_step: IntArray = field(init=False)
    end_step: IntArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_step", np.floor(self.create_s / self.step_s).astype(np.intp))
        last = math.ceil(self.duration_s / self.step_s) + 1
        ends = np.minimum(np.ceil(self.delete_s / self.step_s), last).astype(np.intp)
        object.__setattr__(self, "end_step", np.maximum(ends, self.first_step + 1))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return round(self.duration_s / self.step_s)

    def peak_vcpu(self) -> float:
        """The largest number of vCPUs that exist at once."""
        change = np.zeros(int(self.end_step.max(initial=0)) + 1)
        np.add.at(change, self.first_step, self.vcpu)
        np.subtract.at(change, self.end_step, self.vcpu)
        return float(np.cumsum(change).max())

    def sizes(self, resource: Resource) -> FloatArray:
        """(n,) float64: vCPUs or MB."""
        return self.vcpu if resource is CPU else self.memory_mb

    def wanted(self, resource: Resource, vms: IntArray, first: int, steps: int) -> FloatArray:
        """(v, steps) float64: what VMs want to use in the steps in which they exist, cores or MB."""
        pool = self.cpu if resource is CPU else self.mem
        shares = pool.at(self.series[vms], self.offset[vms], first, steps)
        return np.multiply(shares, self.sizes(resource)[vms, None], dtype=np.float64)

    def absence(self, vms: IntArray, first: int, steps: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """When VMs do not exist.

        Returns
        -------
        rows : (r,) int
            Which of ``vms`` do not exist in some of the steps.
        absent : (r, steps) bool
            The steps in which they do not.
        """
        begin, end = self.first_step[vms], self.end_step[vms]
        rows = np.flatnonzero((begin > first) | (end < first + steps))
        step = np.arange(first, first + steps)
        return rows, (step < begin[rows, None]) | (step >= end[rows, None])

    def usage(self, resource: Resource, vms: IntArray, first: int, steps: int) -> FloatArray:
        """What VMs want to use, cores or MB.

        Returns
        -------
        (v, steps) float64
            NaN in the steps in which a VM does not exist.
        """
        used = self.wanted(resource, vms, first, steps)
        rows, absent = self.absence(vms, first, steps)
        used[rows] = np.where(absent, np.nan, used[rows])
        return used
