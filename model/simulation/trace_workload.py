"""Makes usage series and workloads of traces.

Samples are averaged over steps, which start at multiples of their length since 1970. A VM runs from its first sample
to its last one. A slice in which it is not present ends it, unless the whole node is silent in that slice.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.text import printable
from ..numerics import FloatArray
from ..replay.trace import Trace
from ..replay.trace_data import Period
from ..slices import CPU, MEMORY, Resource
from .arrivals import steps_of_day, unique_names
from .draw import SampledVm
from .workload import IntArray, SeriesPool, Workload
from .workload_file import WorkloadError

logger = logging.getLogger(__name__)

#: Share of the steps of a VM in which its sample may be missing.
_MOST_GAPS = 0.1
#: More than nine years of five minutes: a wrong time stamp.
_MOST_STEPS = 1_000_000

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Axis:
    """The slices of a trace in time.

    Attributes
    ----------
    starts_s : (k,) float64
        Unix seconds.
    low, high : (k,) int
        First and last step of each slice; steps are numbered since 1970.
    """

    starts_s: FloatArray
    slice_s: float
    step_s: float
    low: IntArray
    high: IntArray

    @property
    def first(self) -> int:
        """The first step."""
        return int(self.low[0])

    @property
    def end(self) -> int:
        """The step after the last one."""
        return int(self.high[-1]) + 1


@dataclass(frozen=True, slots=True)
class _Stay:
    """A VM from its arrival to its end.

    Attributes
    ----------
    first, end : int
        Its first step, and the first one without it.
    arrives, leaves : bool
        Whether it came after the start of the trace, and left before the end.
    vcpu, memory_mb : float
        Its last sizes.
    cpu, mem : (end - first,) float64
        Shares of them, 0 to 1; gaps are held.
    gaps : int
        Steps whose sample of CPU usage is missing.
    mem_known : bool
        Whether there is a sample of memory usage.
    """

    name: str
    first: int
    end: int
    arrives: bool
    leaves: bool
    vcpu: float
    memory_mb: float
    cpu: FloatArray
    mem: FloatArray
    gaps: int
    mem_known: bool


@dataclass(slots=True)
class _Tally:
    """Counts the VMs that are used and those that are left out."""

    used: int = 0
    without_memory: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def use(self, stay: _Stay) -> None:
        """Count a VM that is used."""
        self.used += 1
        self.without_memory += not stay.mem_known

    def report(self, note: Note) -> None:
        """Give a line for each count that is not 0."""
        total = self.used + self.left_out.total()
        for reason, count in self.left_out.items():
            note(f"{count} of {total} VMs left out: {reason}")
        if self.without_memory:
            note(f"{self.without_memory} of {total} VMs without samples of memory usage: all of it counts as used")


def sampled_vms(traces: Sequence[Trace], step_s: float = 300.0, note: Note = logger.warning) -> list[SampledVm]:
    """Usage series of the VMs of traces.

    A series has whole days, and its first element is that of a midnight (UTC). VMs that ran for less than a day, and
    those of which a tenth of the samples is missing, are left out.

    Parameters
    ----------
    traces : sequence of Trace
        Of any sampling.
    step_s : float
        A part of a day.
    note : callable
        Called with a line for each reason for which VMs are left out.

    Raises
    ------
    WorkloadError
        When no VM remains.
    """
    day = steps_of_day(step_s)
    tally = _Tally()
    result = []
    for trace in traces:
        axis = _axis(trace, step_s)
        midnight = axis.first // day * day
        for stay in _stays(trace, axis, tally):
            length = (stay.end - stay.first) // day * day
            if not length:
                tally.left_out["they ran for less than a day"] += 1
            elif stay.gaps > _MOST_GAPS * (stay.end - stay.first):
                tally.left_out[f"more than {_MOST_GAPS:.0%} of their samples are missing"] += 1
            else:
                tally.use(stay)
                # Element i is a step s with s % length == i, so that all VMs keep the clock of the trace.
                turn = (stay.first - midnight) % length
                cpu, mem = (np.roll(one[:length], turn).astype(np.float32) for one in (stay.cpu, stay.mem))
                result.append(SampledVm(stay.vcpu, stay.memory_mb, cpu, mem))
    tally.report(note)
    if not result:
        raise WorkloadError("no VM of these traces can be used")
    return result


def replayed_workload(traces: Sequence[Trace], step_s: float = 300.0, note: Note = logger.warning) -> Workload | None:
    """The VMs of traces as they came and went, or None when none came or left.

    The workload starts with the first slice of the earliest trace; the VMs that are there at first arrive in step 0.

    Parameters
    ----------
    traces : sequence of Trace
        Of nodes at the same time.
    step_s : float
        A part of a day.
    note : callable
        Called with a line for each reason for which VMs are left out.

    Raises
    ------
    WorkloadError
        When the traces are not of the same time.
    """
    steps_of_day(step_s)
    tally = _Tally()
    axes = [_axis(trace, step_s) for trace in traces]
    first, end = _common_period(traces, axes)
    stays = [stay for trace, axis in zip(traces, axes, strict=True) for stay in _stays(trace, axis, tally)]
    for stay in stays:
        tally.use(stay)
    tally.report(note)
    if not any(stay.arrives or stay.leaves for stay in stays):
        return None
    stays.sort(key=lambda stay: stay.first)
    begins = np.array([stay.first - first for stay in stays], np.intp)
    lengths = np.array([stay.cpu.size for stay in stays], np.intp)
    return Workload(
        step_s=step_s,
        duration_s=(end - first) * step_s,
        names=unique_names([stay.name for stay in stays]),
        create_s=begins.astype(np.float64) * step_s,
        delete_s=np.array([(stay.end - first) * step_s if stay.leaves else math.inf for stay in stays]),
        vcpu=np.array([stay.vcpu for stay in stays]),
        memory_mb=np.array([stay.memory_mb for stay in stays]),
        series=np.arange(len(stays)),
        offset=-begins % lengths,
        cpu=SeriesPool([stay.cpu for stay in stays]),
        mem=SeriesPool([stay.mem for stay in stays]),
    )


def _common_period(traces: Sequence[Trace], axes: Sequence[_Axis]) -> tuple[int, int]:
    """First step and end of traces that overlap."""
    order = sorted(range(len(axes)), key=lambda i: axes[i].first)
    last = order[0]
    for i in order[1:]:
        if axes[i].first >= axes[last].end:
            names = [printable(traces[k].config.node_name) for k in (last, i)]
            raise WorkloadError(f"the traces are not of the same time: {names[0]} ends before {names[1]} starts")
        last = max(last, i, key=lambda k: axes[k].end)
    return axes[order[0]].first, axes[last].end


def _axis(trace: Trace, step_s: float) -> _Axis:
    """Places the slices by the times of the samples; ``epoch`` of published traces may count from 0."""
    slice_s = trace.config.slice_scope
    starts = np.array(trace.epoch) - slice_s
    shifts = []
    for start, period in zip(starts.tolist(), trace.node_periods, strict=True):
        known = period.time[~np.isnan(period.time)]
        if known.size:
            shifts.append((known.min() + known.max() - slice_s) / 2 - start)
    if shifts:
        starts += round(float(np.median(shifts)) / slice_s) * slice_s
    low = np.floor(starts / step_s).astype(np.intp)
    high = np.maximum(np.ceil((starts + slice_s) / step_s).astype(np.intp) - 1, low)
    if high[-1] - low[0] >= _MOST_STEPS:
        name = printable(trace.config.node_name)
        raise WorkloadError(f"{name}: more than {_MOST_STEPS} steps of {step_s:g} s: is a time of epoch wrong?")
    return _Axis(starts, slice_s, step_s, low, high)


def _stays(trace: Trace, axis: _Axis, tally: _Tally) -> Iterator[_Stay]:
    vms = list(trace.vm_periods())
    present = {name: np.array([period is not None for period in periods]) for name, periods in vms}
    with_data = np.array([period.has_data for period in trace.node_periods])
    for one in present.values():
        with_data |= one
    # Numbers the slices without those in which the whole node is silent.
    number = np.cumsum(with_data)
    for name, periods in vms:
        at = np.flatnonzero(present[name])
        for run in np.split(at, np.flatnonzero(np.diff(number[at]) > 1) + 1):
            if run.size:
                arrives, leaves = bool(number[run[0]] > 1), bool(number[run[-1]] < number[-1])
                there = [period for k in run.tolist() if (period := periods[k]) is not None]
                stay = _stay(name, axis, run, there, arrives=arrives, leaves=leaves)
                if stay is None:
                    tally.left_out["their size or their CPU usage is missing"] += 1
                else:
                    yield stay


def _stay(
    name: str, axis: _Axis, slices: IntArray, periods: Sequence[Period], *, arrives: bool, leaves: bool
) -> _Stay | None:
    vcpu, memory_mb = periods[-1].cpu_config, periods[-1].mem_config
    cpu_steps, cpu = _samples(axis, slices, periods, CPU)
    mem_steps, mem = _samples(axis, slices, periods, MEMORY)
    if not (vcpu > 0 and memory_mb > 0 and cpu.size):
        return None
    known, both = np.unique(cpu_steps), np.concatenate([cpu_steps, mem_steps])
    # The usual distance of two samples is no gap.
    usual = round(float(np.median(np.diff(known)))) if known.size > 1 else 1
    first = int(both.min()) if arrives else axis.first
    end = min(int(both.max()) + usual, int(axis.high[slices[-1]]) + 1) if leaves else axis.end
    gaps = known[0] - first + np.maximum(np.diff(known, append=end) - usual, 0).sum()
    return _Stay(
        name=name,
        first=first,
        end=end,
        arrives=arrives,
        leaves=leaves,
        vcpu=vcpu,
        memory_mb=memory_mb,
        cpu=_shares(cpu_steps - first, cpu / vcpu, end - first),
        mem=_shares(mem_steps - first, mem / memory_mb, end - first) if mem.size else np.ones(end - first),
        gaps=int(gaps),
        mem_known=bool(mem.size),
    )


def _samples(
    axis: _Axis, slices: IntArray, periods: Sequence[Period], resource: Resource
) -> tuple[IntArray, FloatArray]:
    """Step and value of each sample; samples without a time are spread over their slice."""
    lists = [period.usage(resource) for period in periods]
    sizes = np.array([one.size for one in lists])
    values = np.concatenate(lists)
    stamps = np.concatenate(
        [
            period.time if period.time.size == one.size else np.full(one.size, np.nan)
            for period, one in zip(periods, lists, strict=True)
        ]
    )
    number = np.arange(values.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts = np.repeat(axis.starts_s[slices], sizes)
    stamps = np.where(np.isnan(stamps), starts + (number + 0.5) / np.repeat(sizes, sizes) * axis.slice_s, stamps)
    low, high = (np.repeat(bound[slices], sizes) for bound in (axis.low, axis.high))
    steps = np.clip(np.floor(stamps / axis.step_s), low, high).astype(np.intp)
    known = ~np.isnan(values)
    return steps[known], values[known]


def _shares(steps: IntArray, shares: FloatArray, length: int) -> FloatArray:
    """(length,) float64: the mean share of each step; a step without a sample holds the last one, or the first."""
    count: NDArray[np.intp] = np.bincount(steps, minlength=length)
    known = count > 0
    means = np.clip(np.bincount(steps, shares, minlength=length) / np.maximum(count, 1), 0.0, 1.0)
    last = np.maximum.accumulate(np.where(known, np.arange(length), known.argmax()))
    return means[last]
