"""Converts Bitbrains files (GWA-T-12: fastStorage, rnd), one per VM."""

from __future__ import annotations

import math
import os
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.tracesources.grid import (
    Conversion,
    ConversionError,
    Grid,
    Machine,
    NodeOptions,
    TraceOptions,
    binned_last,
    binned_means,
    carried_forward,
    fill_gaps,
    put_on_node,
)
from misc.tracesources.textfiles import LARGEST, Columns, lines_of
from model.numerics import FloatArray

_BITBRAINS_COLUMNS = (
    "Timestamp",
    "CPU cores",
    "CPU capacity provisioned",
    "CPU usage",
    "CPU usage",
    "Memory capacity provisioned",
    "Memory usage",
)
#: Sizes in these files are 524288, 2097152, 8388608, 16777216: KB is 1024 bytes.
_BITBRAINS_KB_PER_MB = 1024.0
#: The header has ms, the published files have seconds; 1e11 is 1973 in ms and the year 5138 in seconds.
_MILLISECONDS_FROM = 1e11
#: 1973 to 2286.
_PLAUSIBLE_TIMES_S = (1e8, 1e10)


@dataclass(frozen=True, slots=True)
class BitbrainsOptions:
    """The data to convert.

    Attributes
    ----------
    files : sequence of Path
        Files of VMs, or folders of them.
    vms : int or None
        Convert only so many VMs, picked at random.
    seed : int
        Of the random numbers.
    """

    files: Sequence[Path]
    vms: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of the file of a VM in the order of time; (n,) float64 each, cores and MB."""

    stamp: FloatArray
    cores: FloatArray
    cpu_usage: FloatArray
    mem_config: FloatArray
    mem_usage: FloatArray


def convert_bitbrains(data: BitbrainsOptions, options: TraceOptions, node: NodeOptions) -> Conversion:
    """Convert VMs of Bitbrains files to a trace of one node.

    Raises
    ------
    ConversionError
    """
    paths = _bitbrains_paths(data.files)
    names = sorted(paths)
    if data.vms is not None:
        random.Random(data.seed).shuffle(names)  # noqa: S311 (a repeatable choice, not a secret)
    earliest = -math.inf if options.start is None else options.start
    latest = math.inf if options.end is None else options.end
    files: dict[str, _Rows] = {}
    for name in names:
        rows = _read_bitbrains(paths[name])
        if ((rows.cores > 0) & (rows.stamp >= earliest) & (rows.stamp < latest)).any():
            files[name] = rows
        if len(files) == data.vms:
            break
    if not files or len(files) < (data.vms or 1):
        raise ConversionError(f"{len(files)} of the {len(names)} VMs run in the period")
    first = min(rows.stamp[0] for rows in files.values()) // options.step_s
    last = max(rows.stamp[-1] for rows in files.values()) // options.step_s
    grid = Grid.within(first * options.step_s, (last + 1) * options.step_s, options)
    vms = {name: _bitbrains_vm(rows, grid, options.hold) for name, rows in files.items()}
    meta = {
        "source": "Bitbrains, Grid Workloads Archive, GWA-T-12",
        "terms": "graciously provided by Bitbrains IT Services Inc.; published material must acknowledge the source",
    }
    return put_on_node(vms, grid, options, node, meta)


def _bitbrains_paths(given: Sequence[Path]) -> dict[str, Path]:
    """The files by VM. The name of a VM is the one of its file, after the one of its folder if that is ambiguous."""
    paths: list[Path] = []
    for path in given:
        files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not files:
            raise ConversionError(f"{path}: no .csv file in this folder")
        paths += files
    names = [os.fsencode(path.stem).decode(errors="backslashreplace") for path in paths]
    if len(set(names)) < len(names):
        folders = [os.fsencode(path.resolve().parent.name).decode(errors="backslashreplace") for path in paths]
        names = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    result: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if name in result:
            raise ConversionError(f"{path}: {result[name]} is already VM {name}")
        result[name] = path
    return result


def _read_bitbrains(path: Path) -> _Rows:
    lines = lines_of(path)
    _, header = next(lines, (1, b""))
    titles = header.decode("ascii", "replace").split(";")
    header_columns = tuple(title.partition("[")[0].strip() for title in titles[: len(_BITBRAINS_COLUMNS)])
    if header_columns != _BITBRAINS_COLUMNS:
        raise ConversionError(f"{path}, line 1: not the header of a Bitbrains (GWA-T-12) file")

    columns = Columns(path, titles)
    needed = range(len(_BITBRAINS_COLUMNS))
    table = array("d")
    for line_number, line in lines:
        fields = line.split(b";")
        if len(fields) != len(titles):
            raise ConversionError(
                f"{path}, line {line_number}: {len(fields)} columns where the header has {len(titles)}"
            )
        stamp, cores, capacity, used, _, provisioned, memory = columns.numbers(line_number, fields, needed)
        seconds = stamp / 1000.0 if stamp >= _MILLISECONDS_FROM else stamp
        if not _PLAUSIBLE_TIMES_S[0] <= seconds <= _PLAUSIBLE_TIMES_S[1]:
            raise ConversionError(f"{columns.place(line_number, 0)}: {stamp:.0f} is not a time")
        # A VM without cores or capacity is switched off, whatever the other columns hold.
        if capacity == 0.0:
            cores = 0.0
        cores_used = cores * used / capacity if cores else 0.0
        if cores_used > LARGEST:
            place = columns.place(line_number, 3)
            raise ConversionError(f"{place}: {used:g} MHz of {capacity:g} is not plausible")
        table.extend((seconds, cores, cores_used, provisioned, memory))
    rows = np.array(table).reshape(-1, 5).T
    in_order = rows[:, np.argsort(rows[0], kind="stable")]
    return _Rows(
        stamp=in_order[0],
        cores=in_order[1],
        cpu_usage=in_order[2],
        mem_config=in_order[3] / _BITBRAINS_KB_PER_MB,
        mem_usage=in_order[4] / _BITBRAINS_KB_PER_MB,
    )


def _bitbrains_vm(rows: _Rows, grid: Grid, hold: int) -> Machine:
    """One VM on the grid.

    It runs from its first row to its last one, except where rows have it switched off; where rows are missing, the
    state of the row before holds. Steps with both kinds of rows count as switched on.
    """
    index = grid.index(rows.stamp)
    inside = (index >= 0) & (index < grid.steps)
    running = inside & (rows.cores > 0)
    # A VM that was just switched on may have a sample without memory: that sample is missing.
    measured = running & (rows.mem_config > 0)

    state = binned_last(index[inside], np.zeros(int(inside.sum())), grid.steps)
    state[index[running]] = 1.0
    present = carried_forward(state) == 1.0
    present[max(int(index[-1]) + 1, 0) :] = False
    cpu = binned_means(index[running], rows.cpu_usage[running], grid.steps)
    mem = binned_means(index[measured], rows.mem_usage[measured], grid.steps)
    return Machine(
        present=present,
        cpu_config=binned_last(index[running], rows.cores[running], grid.steps),
        mem_config=binned_last(index[measured], rows.mem_config[measured], grid.steps),
        cpu_usage=fill_gaps(cpu, present, hold),
        mem_usage=fill_gaps(mem, present, hold),
    )
