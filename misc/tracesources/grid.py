"""Samples on a grid of steps, the machines that they are of, and the trace that they make."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.numerics import FloatArray

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.int64]

#: More than nine years of five minutes: a wrong stamp rather than data.
_MOST_STEPS = 1_000_000


class ConversionError(ValueError):
    """Data that can't be converted; the message is one line that names the place."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps on which samples are aligned, and the slices they make up.

    Attributes
    ----------
    start_s : int
        Where the first slice starts, Unix seconds; a multiple of ``slice_s``.
    slices : int
        How many slices there are.
    slice_s, step_s : int
        Their length and that of a step.
    """

    start_s: int
    slices: int
    slice_s: int
    step_s: int

    @property
    def steps(self) -> int:
        """How many steps all slices have."""
        return self.slices * self.steps_per_slice

    @property
    def steps_per_slice(self) -> int:
        """How many steps each slice has."""
        return self.slice_s // self.step_s

    @property
    def end_s(self) -> int:
        """Where the last slice ends, Unix seconds."""
        return self.start_s + self.slices * self.slice_s

    @classmethod
    def within(cls, start_s: float, end_s: float, args: argparse.Namespace) -> Grid:
        """The whole slices between two times, or between those the user asked for if these are narrower.

        Raises
        ------
        ConversionError
            When there is none, or far too many.
        """
        start_s = start_s if args.start is None else max(start_s, args.start)
        end_s = end_s if args.end is None else min(end_s, args.end)
        first = math.ceil(start_s / args.slice_s)
        slices = math.floor(end_s / args.slice_s) - first
        if slices < 1:
            if end_s <= start_s:
                raise ConversionError("the data has nothing between --start and --end")
            raise ConversionError(f"no whole slice of {args.slice_s} s between {utc(start_s)} and {utc(end_s)}")
        if slices * (args.slice_s // args.step_s) > _MOST_STEPS:
            raise ConversionError(
                f"more than {_MOST_STEPS} steps of {args.step_s} s between {utc(start_s)} and {utc(end_s)}:"
                " is a time stamp wrong? --start and --end keep to a part"
            )
        return cls(first * args.slice_s, slices, args.slice_s, args.step_s)

    def index(self, stamps: FloatArray) -> IndexArray:
        """(n,) int: the step of each stamp; negative before the first one."""
        return np.floor((stamps - self.start_s) / self.step_s).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Machine:
    """The node or a VM, step by step; NaN where nothing is known.

    Attributes
    ----------
    present : (n,) bool
        Whether it was there.
    cpu_config, cpu_usage : (n,) float64
        Cores.
    mem_config, mem_usage, mem_rss : (n,) float64
        MB; None when the source does not have it at all.
    """

    present: BoolArray
    cpu_config: FloatArray
    mem_config: FloatArray
    cpu_usage: FloatArray
    mem_usage: FloatArray | None
    mem_rss: FloatArray | None = None

    def periods(self, grid: Grid, times: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
        """The slices as they stand in a trace: an empty object where the machine was not there."""
        usages = {
            name: np.round(usage, digits)
            for name, usage, digits in (
                ("cpu_usage", self.cpu_usage, 6),
                ("mem_usage", self.mem_usage, 3),
                ("mem_rss", self.mem_rss, 3),
            )
            if usage is not None and not np.isnan(usage).all()
        }
        configs = {"cpu": carried_forward(self.cpu_config), "mem": carried_forward(self.mem_config)}
        result: list[dict[str, Any]] = []
        for k, time_list in enumerate(times):
            steps = slice(k * grid.steps_per_slice, (k + 1) * grid.steps_per_slice)
            there = np.flatnonzero(self.present[steps])
            period: dict[str, Any] = {}
            if there.size:
                period["time"] = time_list
                for name, config in configs.items():
                    last = float(config[steps][there[-1]])
                    if not math.isnan(last):
                        period[name] = [last]
                for name, usage in usages.items():
                    period[name] = usage[steps].tolist()
            result.append(period)
        return result


@dataclass(frozen=True, slots=True)
class Conversion:
    """Everything a trace is made of.

    Attributes
    ----------
    config, meta : dict
        As they are to stand in the trace; the reader ignores ``meta``, people should not.
    grid : Grid
    stamp_s : int
        What a sample's time is, seconds after the start of its step.
    node : Machine
    vms : mapping of str to Machine
        Those that are never there are left out.
    notes : list of str
        What the user should know, one line each.
    """

    config: dict[str, Any]
    meta: dict[str, Any]
    grid: Grid
    stamp_s: int
    node: Machine
    vms: Mapping[str, Machine]
    notes: list[str]

    def encode(self) -> bytes:
        """The trace as strict JSON."""
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


def trace_config(args: argparse.Namespace) -> dict[str, Any]:
    """The ``config`` object of the trace that the command line asks for."""
    return {
        "node_name": args.node_name,
        "node_scope": args.scope_s,
        "slice_scope": args.slice_s,
        "historical_occurences": args.historical,
        "vm_cpu_unit": "cores",
    }


def carried_forward(values: FloatArray) -> FloatArray:
    """Every NaN replaced by the last number before it, where there is one."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(values.size)))
    return values[last]


def fill_holes(samples: FloatArray, present: BoolArray, longest: int) -> FloatArray:
    """Fill short holes with the sample before them, and drop the samples of a machine that is not there.

    A hole longer than ``longest`` steps stays empty from its first step on: nobody knows when the last
    sample ceased to be true. A sample is never carried over a time when the machine was not there.
    """
    known = ~np.isnan(samples) & present
    if not known.any():
        return np.full(samples.size, np.nan)
    steps = np.arange(samples.size)
    ends = known | ~present
    before = np.maximum.accumulate(np.where(ends, steps, -1))
    after = np.minimum.accumulate(np.where(ends, steps, samples.size)[::-1])[::-1]
    short = ~ends & (after - before - 1 <= longest) & (before >= 0) & known[before]
    return np.where(known, samples, np.where(short, samples[before], np.nan))


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


def _node_from_vms(vms: Sequence[Machine], grid: Grid, args: argparse.Namespace) -> tuple[Machine, list[str]]:
    """The node under its VMs: what it needs itself plus what they use, and what the user should know."""
    cpu = _summed([(vm.present, vm.cpu_config, vm.cpu_usage) for vm in vms], args.node_cpu_overhead, args.least_known)
    memories = [(vm.present, vm.mem_config, vm.mem_usage) for vm in vms if vm.mem_usage is not None]
    mem = _summed(memories, args.node_memory_overhead_mb, args.least_known) if memories else None
    over_cpu = int((cpu > args.node_cores).sum())
    over_mem = 0 if mem is None else int((mem > args.node_memory_mb).sum())
    notes = []
    if over_cpu or over_mem:
        notes.append(
            f"the VMs used more than the node has in {over_cpu} (CPU) and {over_mem} (memory) of {grid.steps} steps;"
            " the node's figures are capped there"
        )
    node = Machine(
        present=np.full(grid.steps, True),
        cpu_config=np.full(grid.steps, args.node_cores),
        mem_config=np.full(grid.steps, args.node_memory_mb),
        cpu_usage=np.minimum(cpu, args.node_cores),
        mem_usage=None if mem is None else np.minimum(mem, args.node_memory_mb),
    )
    return node, notes


def _summed(
    parts: Sequence[tuple[BoolArray, FloatArray, FloatArray]], overhead: float, least_known: float
) -> FloatArray:
    """(n,) float64: overhead and the usages that are known, NaN where too little is known.

    Parameters
    ----------
    parts : sequence of (present, config, usage), each (n,)
    overhead : float
    least_known : float
        What share of the configured total the VMs with a sample must hold: the sum of a few VMs while the
        others are silent would pass for an idle node. A VM that never has one is left out of both.
    """
    steps = parts[0][0].size
    total, configured, known = np.full(steps, overhead), np.zeros(steps), np.zeros(steps)
    for present, config, usage in parts:
        if np.isnan(usage).all():
            continue
        size = np.where(present, np.nan_to_num(carried_forward(config)), 0.0)
        configured, known = configured + size, known + np.where(np.isnan(usage), 0.0, size)
        total += np.nan_to_num(usage)
    return np.where(known < least_known * configured, np.nan, total)


def grouped(vms: Mapping[str, Machine], grid: Grid, args: argparse.Namespace, meta: dict[str, Any]) -> Conversion:
    """The VMs on the node that the command line describes, which uses what they use and its overhead."""
    there = {name: vm for name, vm in vms.items() if vm.present.any()}
    if not there:
        raise ConversionError(f"no VM is there between {utc(grid.start_s)} and {utc(grid.end_s)}")
    node, notes = _node_from_vms(list(there.values()), grid, args)
    silent = sum(bool(np.isnan(vm.cpu_usage).all()) for vm in there.values())
    if silent:
        notes.append(f"{silent} of {len(there)} VMs have no CPU sample at all: they are booked and use nothing")
    incomplete: BoolArray = np.any([vm.present & np.isnan(vm.cpu_usage) for vm in there.values()], axis=0)
    meta |= {
        "assigned": "the grouping on one node, the node's size and its overhead",
        "node_cpu_overhead": args.node_cpu_overhead,
        "node_memory_overhead_mb": args.node_memory_overhead_mb,
        "step_s": args.step_s,
        "hold": args.hold,
        "steps": grid.steps,
        "steps_where_cpu_of_a_vm_is_unknown": int(incomplete.sum()),
        "notes": notes,
    }
    return Conversion(trace_config(args), meta, grid, 0, node, there, notes)


def utc(stamp_s: float) -> str:
    """A time as it stands in messages."""
    return datetime.fromtimestamp(stamp_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
