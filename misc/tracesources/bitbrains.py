"""Bitbrains VM files (GWA-T-12: fastStorage, rnd), one per VM."""

from __future__ import annotations

import argparse
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
    binned_last,
    binned_means,
    carried_forward,
    fill_holes,
    grouped,
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
#: The header says ms, the published files hold seconds; 1e11 is 1973 in ms and the year 5138 in seconds.
_MILLISECONDS_FROM = 1e11
#: 1973 to 2286.
_PLAUSIBLE_STAMPS_S = (1e8, 1e10)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one VM's file in time order; (n,) float64 each, cores and MB."""

    stamp: FloatArray
    cores: FloatArray
    cpu_usage: FloatArray
    mem_config: FloatArray
    mem_usage: FloatArray


def convert_bitbrains(args: argparse.Namespace) -> Conversion:
    """The VMs of the files given, or some of them, on the node given."""
    paths = _bitbrains_paths(args.files)
    names = sorted(paths)
    if args.vms is not None:
        random.Random(args.seed).shuffle(names)  # noqa: S311 (a choice to repeat, not a secret)
    earliest = -math.inf if args.start is None else args.start
    latest = math.inf if args.end is None else args.end
    files: dict[str, _Rows] = {}
    for name in names:
        rows = _read_bitbrains(paths[name])
        if ((rows.cores > 0) & (rows.stamp >= earliest) & (rows.stamp < latest)).any():
            files[name] = rows
        if len(files) == args.vms:
            break
    if not files or len(files) < (args.vms or 1):
        raise ConversionError(f"{len(files)} of the {len(names)} VMs are ever switched on in the period asked for")
    first = min(rows.stamp[0] for rows in files.values()) // args.step_s
    last = max(rows.stamp[-1] for rows in files.values()) // args.step_s
    grid = Grid.within(first * args.step_s, (last + 1) * args.step_s, args)
    vms = {name: _bitbrains_vm(rows, grid, args.hold) for name, rows in files.items()}
    meta = {
        "source": "Bitbrains, Grid Workloads Archive, GWA-T-12",
        "terms": "graciously provided by Bitbrains IT Services Inc.; published material must acknowledge the source",
    }
    return grouped(vms, grid, args, meta)


def _bitbrains_paths(given: Sequence[Path]) -> dict[str, Path]:
    """The files by the name of their VM: the file's, with its folder's before it if that is ambiguous."""
    paths: list[Path] = []
    for path in given:
        found = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not found:
            raise ConversionError(f"{path}: no .csv file in this folder")
        paths += found
    short = [os.fsencode(path.stem).decode(errors="backslashreplace") for path in paths]
    if len(set(short)) < len(short):
        folders = [os.fsencode(path.resolve().parent.name).decode(errors="backslashreplace") for path in paths]
        short = [f"{folder}/{name}" for folder, name in zip(folders, short, strict=True)]
    result: dict[str, Path] = {}
    for name, path in zip(short, paths, strict=True):
        if name in result:
            raise ConversionError(f"{path}: {result[name]} is already VM {name}")
        result[name] = path
    return result


def _read_bitbrains(path: Path) -> _Rows:
    lines = lines_of(path)
    _, header = next(lines, (1, b""))
    titles = header.decode("ascii", "replace").split(";")
    found = tuple(title.partition("[")[0].strip() for title in titles[: len(_BITBRAINS_COLUMNS)])
    if found != _BITBRAINS_COLUMNS:
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
        if not _PLAUSIBLE_STAMPS_S[0] <= seconds <= _PLAUSIBLE_STAMPS_S[1]:
            raise ConversionError(f"{columns.place(line_number, 0)}: {stamp:.0f} is no time")
        # Switched off: no cores or no capacity, whatever the other columns still say.
        if capacity == 0.0:
            cores = 0.0
        cores_used = cores * used / capacity if cores else 0.0
        if cores_used > LARGEST:
            place = columns.place(line_number, 3)
            raise ConversionError(f"{place}: {used:g} MHz of {capacity:g} makes no sense")
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

    It is there from its first row to its last one unless a row says that it is switched off; where rows are
    missing, what the row before said still holds. Steps with both kinds of rows count as switched on.
    """
    index = grid.index(rows.stamp)
    inside = (index >= 0) & (index < grid.steps)
    running = inside & (rows.cores > 0)
    # A VM that has just been switched on may be without memory for a sample: nothing is known of it then.
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
        cpu_usage=fill_holes(cpu, present, hold),
        mem_usage=fill_holes(mem, present, hold),
    )
