"""Samples of machines on a grid of steps, and the trace made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.numerics import FloatArray

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.int64]

#: More than nine years of five minutes: a wrong time stamp.
_MOST_STEPS = 1_000_000


class ConversionError(ValueError):
    """Data that cannot be converted; the message is one line that names the place."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """The trace to write.

    Attributes
    ----------
    node_name : str
    slice_s, scope_s, step_s : int
        Length of a slice, of a scope in whole slices, and of a step of the grid.
    historical : int
        Number of earlier scopes in the window.
    hold : int
        Gaps of at most so many steps are filled with the last sample.
    start, end : float or None
        Part of the data to convert, Unix seconds.
    """

    node_name: str
    slice_s: int
    scope_s: int
    historical: int
    step_s: int
    hold: int
    start: float | None
    end: float | None


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """A node that is not part of the data.

    Attributes
    ----------
    cores, memory_mb : float
        Its capacity.
    cpu_overhead, memory_overhead_mb : float
        Usage of the node itself, cores and MB.
    least_known : float
        Share of the allocation, 0 to 1, whose VMs must have a sample at a step; otherwise the usage of the node at
        this step is missing. The sum of a few VMs would look like an idle node.
    """

    cores: float
    memory_mb: float
    cpu_overhead: float
    memory_overhead_mb: float
    least_known: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps to which samples are aligned, and the slices made of them.

    Attributes
    ----------
    start_s : int
        Start of the first slice, Unix seconds; a multiple of ``slice_s``.
    slices : int
        Number of slices.
    slice_s, step_s : int
        Length of a slice and of a step.
    """

    start_s: int
    slices: int
    slice_s: int
    step_s: int

    @property
    def steps(self) -> int:
        """Number of steps of all slices."""
        return self.slices * self.steps_per_slice

    @property
    def steps_per_slice(self) -> int:
        """Number of steps of a slice."""
        return self.slice_s // self.step_s

    @property
    def end_s(self) -> int:
        """End of the last slice, Unix seconds."""
        return self.start_s + self.slices * self.slice_s

    @classmethod
    def within(cls, start_s: float, end_s: float, options: TraceOptions) -> Grid:
        """The whole slices of a period, which ``start`` and ``end`` of the options may narrow.

        Raises
        ------
        ConversionError
            If there is none, or too many.
        """
        start_s = start_s if options.start is None else max(start_s, options.start)
        end_s = end_s if options.end is None else min(end_s, options.end)
        first = math.ceil(start_s / options.slice_s)
        slices = math.floor(end_s / options.slice_s) - first
        if slices < 1:
            if end_s <= start_s:
                raise ConversionError("the data has nothing between --start and --end")
            raise ConversionError(f"no whole slice of {options.slice_s} s between {utc(start_s)} and {utc(end_s)}")
        if slices * (options.slice_s // options.step_s) > _MOST_STEPS:
            raise ConversionError(
                f"more than {_MOST_STEPS} steps of {options.step_s} s between {utc(start_s)} and {utc(end_s)}:"
                " is a time stamp wrong? --start and --end select a part"
            )
        return cls(first * options.slice_s, slices, options.slice_s, options.step_s)

    def index(self, stamps: FloatArray) -> IndexArray:
        """(n,) int: the step of each time; negative before the first one."""
        return np.floor((stamps - self.start_s) / self.step_s).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Machine:
    """The node or a VM, a value for each step; NaN where it is missing.

    Attributes
    ----------
    present : (n,) bool
        Whether it was running.
    cpu_config, cpu_usage : (n,) float64
        Cores.
    mem_config, mem_usage, mem_rss : (n,) float64
        MB; None if the source does not have it.
    contention : mapping of field name to (n,) float64
        How long it waited, as the aggregator stores it.
    """

    present: BoolArray
    cpu_config: FloatArray
    mem_config: FloatArray
    cpu_usage: FloatArray
    mem_usage: FloatArray | None
    mem_rss: FloatArray | None = None
    contention: Mapping[str, FloatArray] = field(default_factory=dict)

    def periods(self, grid: Grid, times: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
        """Build the slices of a trace; the object of a slice without the machine is empty."""
        usages = {
            name: np.round(usage, digits)
            for name, usage, digits in (
                ("cpu_usage", self.cpu_usage, 6),
                ("mem_usage", self.mem_usage, 3),
                ("mem_rss", self.mem_rss, 3),
                *((name, values, 6) for name, values in self.contention.items()),
            )
            if usage is not None and not np.isnan(usage).all()
        }
        configs = {"cpu": carried_forward(self.cpu_config), "mem": carried_forward(self.mem_config)}
        result: list[dict[str, Any]] = []
        for k, time_list in enumerate(times):
            steps = slice(k * grid.steps_per_slice, (k + 1) * grid.steps_per_slice)
            running = np.flatnonzero(self.present[steps])
            period: dict[str, Any] = {}
            if running.size:
                period["time"] = time_list
                for name, config in configs.items():
                    last = float(config[steps][running[-1]])
                    if not math.isnan(last):
                        period[name] = [last]
                for name, usage in usages.items():
                    period[name] = usage[steps].tolist()
            result.append(period)
        return result


@dataclass(frozen=True, slots=True)
class Conversion:
    """The content of a trace.

    Attributes
    ----------
    config, meta : dict
        Objects of the trace; the reader ignores ``meta``.
    grid : Grid
    stamp_s : int
        Time of a sample, seconds after the start of its step.
    node : Machine
    vms : mapping of str to Machine
        VMs that run at some time.
    notes : list of str
        Messages for the user, a line each.
    """

    config: dict[str, Any]
    meta: dict[str, Any]
    grid: Grid
    stamp_s: int
    node: Machine
    vms: Mapping[str, Machine]
    notes: list[str]

    def encode(self) -> bytes:
        """Encode the trace as strict JSON."""
        grid = self.grid
        starts = range(grid.start_s, grid.end_s, grid.slice_s)
        times = [
            msgspec.Raw(
                msgspec.json.encode(list(range(start + self.stamp_s, start + grid.slice_s + self.stamp_s, grid.step_s)))
            )
            for start in starts
        ]
        node = self.node.periods(grid, times)
        for period in node:
            period["vm"] = []
        vms: dict[str, msgspec.Raw] = {}
        for name in sorted(self.vms):
            periods = self.vms[name].periods(grid, times)
            for k, period in enumerate(periods):
                if period:
                    node[k]["vm"].append(name)
            vms[name] = msgspec.Raw(msgspec.json.encode({"raw_data": periods}))
        return msgspec.json.encode(
            {
                "config": self.config,
                "meta": self.meta,
                "epoch": [start + grid.slice_s for start in starts],
                "node": {"raw_data": node},
                "vm": vms,
            }
        )


def trace_config(options: TraceOptions) -> dict[str, Any]:
    """Build the ``config`` object of the trace."""
    return {
        "node_name": options.node_name,
        "node_scope": options.scope_s,
        "slice_scope": options.slice_s,
        "historical_occurences": options.historical,
        "vm_cpu_unit": "cores",
    }


def carried_forward(values: FloatArray) -> FloatArray:
    """(n,) float64: every NaN replaced by the last number before it, if there is one."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(values.size)))
    return values[last]


def fill_gaps(samples: FloatArray, present: BoolArray, longest: int) -> FloatArray:
    """Fill short gaps with the sample before them, and drop the samples of a machine that does not run.

    A gap longer than ``longest`` steps stays empty from its first step: it is unknown how long the last sample
    was valid. A sample is never carried over a time when the machine did not run.
    """
    valid = ~np.isnan(samples) & present
    if not valid.any():
        return np.full(samples.size, np.nan)
    steps = np.arange(samples.size)
    ends = valid | ~present
    before = np.maximum.accumulate(np.where(ends, steps, -1))
    after = np.minimum.accumulate(np.where(ends, steps, samples.size)[::-1])[::-1]
    short = ~ends & (after - before - 1 <= longest) & (before >= 0) & valid[before]
    return np.where(valid, samples, np.where(short, samples[before], np.nan))


def binned_means(index: IndexArray, samples: FloatArray, steps: int) -> FloatArray:
    """(steps,) float64: the mean of the samples of each step, NaN where there is none."""
    sums = np.bincount(index, weights=samples, minlength=steps)
    counts = np.bincount(index, minlength=steps)
    with np.errstate(invalid="ignore"):
        return sums / np.where(counts > 0, counts, np.nan)


def binned_last(index: IndexArray, samples: FloatArray, steps: int) -> FloatArray:
    """(steps,) float64: the last sample of each step, NaN where there is none."""
    result = np.full(steps, np.nan)
    result[index] = samples
    return result


def _node_from_vms(vms: Sequence[Machine], grid: Grid, node: NodeOptions) -> tuple[Machine, list[str]]:
    """The node with the usage of its VMs plus its overhead, and messages for the user."""
    cpu = _summed([(vm.present, vm.cpu_config, vm.cpu_usage) for vm in vms], node.cpu_overhead, node.least_known)
    memories = [(vm.present, vm.mem_config, vm.mem_usage) for vm in vms if vm.mem_usage is not None]
    mem = _summed(memories, node.memory_overhead_mb, node.least_known) if memories else None
    over_cpu = int((cpu > node.cores).sum())
    over_mem = 0 if mem is None else int((mem > node.memory_mb).sum())
    notes = []
    if over_cpu or over_mem:
        notes.append(
            f"the VMs used more than the node has in {over_cpu} (CPU) and {over_mem} (memory) of {grid.steps} steps;"
            " the usage of the node is capped in these"
        )
    machine = Machine(
        present=np.full(grid.steps, True),
        cpu_config=np.full(grid.steps, node.cores),
        mem_config=np.full(grid.steps, node.memory_mb),
        cpu_usage=np.minimum(cpu, node.cores),
        mem_usage=None if mem is None else np.minimum(mem, node.memory_mb),
    )
    return machine, notes


def _summed(
    parts: Sequence[tuple[BoolArray, FloatArray, FloatArray]], overhead: float, least_known: float
) -> FloatArray:
    """(n,) float64: overhead plus the known usages, NaN where too little is known.

    Parameters
    ----------
    parts : sequence of (present, config, usage), each (n,)
    overhead : float
    least_known : float
        See :class:`NodeOptions`. A VM without any sample does not count.
    """
    steps = parts[0][0].size
    total, configured, sampled = np.full(steps, overhead), np.zeros(steps), np.zeros(steps)
    for present, config, usage in parts:
        if np.isnan(usage).all():
            continue
        size = np.where(present, np.nan_to_num(carried_forward(config)), 0.0)
        configured, sampled = configured + size, sampled + np.where(np.isnan(usage), 0.0, size)
        total += np.nan_to_num(usage)
    return np.where(sampled < least_known * configured, np.nan, total)


def put_on_node(
    vms: Mapping[str, Machine], grid: Grid, options: TraceOptions, node_options: NodeOptions, meta: dict[str, Any]
) -> Conversion:
    """Put VMs on one node, whose usage is the sum of theirs and its overhead."""
    running = {name: vm for name, vm in vms.items() if vm.present.any()}
    if not running:
        raise ConversionError(f"no VM runs between {utc(grid.start_s)} and {utc(grid.end_s)}")
    node, notes = _node_from_vms(list(running.values()), grid, node_options)
    unsampled = sum(bool(np.isnan(vm.cpu_usage).all()) for vm in running.values())
    if unsampled:
        notes.append(f"{unsampled} of {len(running)} VMs have no CPU sample: they count as booked with no usage")
    incomplete: BoolArray = np.any([vm.present & np.isnan(vm.cpu_usage) for vm in running.values()], axis=0)
    meta |= {
        "assigned": "the grouping on one node, the node's size and its overhead",
        "node_cpu_overhead": node_options.cpu_overhead,
        "node_memory_overhead_mb": node_options.memory_overhead_mb,
        "step_s": options.step_s,
        "hold": options.hold,
        "steps": grid.steps,
        "steps_where_cpu_of_a_vm_is_unknown": int(incomplete.sum()),
        "notes": notes,
    }
    return Conversion(trace_config(options), meta, grid, 0, node, running, notes)


def utc(stamp_s: float) -> str:
    """A time as ISO 8601, for messages."""
    return datetime.fromtimestamp(stamp_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
