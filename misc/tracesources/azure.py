"""The VM traces of the Azure Public Dataset, V1 (2017) and V2 (2019)."""

from __future__ import annotations

import argparse
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.tracesources.grid import Conversion, ConversionError, Grid, Machine, binned_means, fill_holes, grouped
from misc.tracesources.textfiles import Columns, lines_of, parsed_number

#: Where the trace's 0 is put by default: 2017-01-05T00:00:00Z. Neither data set says when it was recorded;
#: this is a whole number of weeks after the Unix epoch, so that days and weeks of slices stay aligned.
AZURE_EPOCH_START = 1_483_574_400
_AZURE_TABLE = (
    "vmid",
    "subscriptionid",
    "deploymentid",
    "vmcreated",
    "vmdeleted",
    "maxcpu",
    "avgcpu",
    "p95maxcpu",
    "vmcategory",
    "vmcorecount",
    "vmmemory",
)
_AZURE_READINGS = ("timestamp", "vmid", "mincpu", "maxcpu", "avgcpu")
#: The data sets span 30 days each.
_AZURE_LATEST_S = 366 * 86400


@dataclass(frozen=True, slots=True)
class _AzureVm:
    """A row of the VM table; times already in Unix seconds, ``places`` those of name, cores and memory."""

    places: tuple[str, str, str]
    name: str
    deployment: bytes
    created_s: float
    deleted_s: float
    cores: str
    memory_gb: str


def convert_azure(args: argparse.Namespace) -> Conversion:
    """The VMs chosen from the table, with their readings, on the node given."""
    chosen = _chosen_azure_vms(args)
    sizes = {
        vm.name: (
            _bucket(vm.cores, args.cores_above, "--cores-above", vm.places[1]),
            _bucket(vm.memory_gb, args.memory_above, "--memory-above", vm.places[2]),
        )
        for vm in chosen
    }
    column = _AZURE_READINGS.index(f"{args.scrape}cpu")
    readings = _read_azure_readings(args.readings, [vm.name for vm in chosen], column)
    stamps = {name: np.array(read[0]) + args.epoch_start for name, read in readings.items()}
    known = [stamp for stamp in stamps.values() if stamp.size]
    if not known:
        raise ConversionError(f"{args.readings[0]}: no reading of the {len(chosen)} chosen VMs in these files")
    first = min(stamp.min() for stamp in known) // args.step_s
    last = max(stamp.max() for stamp in known) // args.step_s
    grid = Grid.within(first * args.step_s, (last + 1) * args.step_s, args)

    vms: dict[str, Machine] = {}
    for vm in chosen:
        cores, memory_gb = sizes[vm.name]
        # The step of its deletion still has a reading, as has the last one of the VMs that outlive the data.
        born, gone = grid.index(np.array([vm.created_s, vm.deleted_s]))
        steps = np.arange(grid.steps)
        present = (steps >= born) & (steps <= gone)
        index = grid.index(stamps[vm.name])
        inside = (index >= 0) & (index < grid.steps)
        percent = binned_means(index[inside], np.array(readings[vm.name][1])[inside], grid.steps)
        memory = np.full(grid.steps, memory_gb * 1024.0)
        share = args.memory_usage_share
        vms[vm.name] = Machine(
            present=present,
            cpu_config=np.full(grid.steps, cores),
            mem_config=memory,
            cpu_usage=fill_holes(percent / 100.0 * cores, present, args.hold),
            mem_usage=None if share is None else np.where(present, memory * share, np.nan),
        )
    meta = {
        "source": "Azure Public Dataset, VM traces",
        "terms": "CC BY 4.0, Microsoft; E. Cortez et al., Resource Central, SOSP 2017",
        "reading": args.scrape,
        "epoch_start": args.epoch_start,
        "memory_usage_share": args.memory_usage_share,
    }
    return grouped(vms, grid, args, meta)


def _chosen_azure_vms(args: argparse.Namespace) -> list[_AzureVm]:
    table = _azure_table(args.vmtable, args.epoch_start)
    if args.vm is not None:
        wanted = set(args.vm)
        chosen = [vm for vm in table if vm.name in wanted]
        missing = sorted(wanted - {vm.name for vm in chosen})
        if missing:
            raise ConversionError(f"{args.vmtable}: no VM {missing[0]}")
    elif args.deployment is not None:
        deployment = args.deployment.encode()
        chosen = [vm for vm in table if vm.deployment == deployment]
        if not chosen:
            raise ConversionError(f"{args.vmtable}: no VM of deployment {args.deployment}")
    else:
        earliest = -math.inf if args.start is None else args.start
        latest = math.inf if args.end is None else args.end
        alive = (vm for vm in table if vm.deleted_s >= earliest and vm.created_s < latest)
        chosen = _picked(alive, args.vms, args.seed)
        if len(chosen) < args.vms:
            raise ConversionError(f"{args.vmtable}: {len(chosen)} VMs in the period asked for, --vms wants {args.vms}")
    names: set[str] = set()
    for vm in chosen:
        if vm.name in names:
            raise ConversionError(f"{vm.places[0]}: VM {vm.name} stands here again")
        names.add(vm.name)
    return chosen


def _picked(vms: Iterable[_AzureVm], count: int, seed: int) -> list[_AzureVm]:
    """A random sample of rows too many to keep (reservoir sampling)."""
    generator = random.Random(seed)  # noqa: S311 (a choice to repeat, not a secret)
    kept: list[_AzureVm] = []
    for seen, vm in enumerate(vms):
        if seen < count:
            kept.append(vm)
            continue
        place = generator.randrange(seen + 1)
        if place < count:
            kept[place] = vm
    return kept


def _azure_table(path: Path, epoch_start: float) -> Iterator[_AzureVm]:
    columns = Columns(path, _AZURE_TABLE)
    for line_number, fields in _azure_rows(columns, numeric=(3, 4, 5, 6, 7)):
        created, deleted = columns.numbers(line_number, fields, (3, 4))
        yield _AzureVm(
            places=(columns.place(line_number, 0), columns.place(line_number, 9), columns.place(line_number, 10)),
            name=fields[0].decode(errors="backslashreplace"),
            deployment=fields[2],
            created_s=created + epoch_start,
            deleted_s=deleted + epoch_start,
            cores=_unquoted(fields[9]),
            memory_gb=_unquoted(fields[10]),
        )


def _unquoted(field: bytes) -> str:
    return field.decode("ascii", "backslashreplace").strip(" \"'")


def _bucket(text: str, above: float | None, option: str, place: str) -> float:
    """What a size of the VM table counts as: itself, or what the user says of an open bucket."""
    size = parsed_number(text.removeprefix(">"), place)
    if not text.startswith(">"):
        if size == 0.0:
            raise ConversionError(f"{place}: a VM of size 0")
        return size
    if above is None:
        raise ConversionError(f"{place}: {text!r} is an open bucket; {option} says what it counts as")
    if above <= size:
        raise ConversionError(f"{place}: {option} {above:g} is not in the bucket {text!r}")
    return above


def _read_azure_readings(
    paths: Sequence[Path], names: Sequence[str], column: int
) -> dict[str, tuple[array[float], array[float]]]:
    """Stamps and percentages of the chosen VMs; everything else is passed over row by row."""
    result = {name: (array("d"), array("d")) for name in names}
    chosen = {name.encode(): series for name, series in result.items()}
    for path in paths:
        columns = Columns(path, _AZURE_READINGS)
        for line_number, fields in _azure_rows(columns, numeric=(0, 2, 3, 4)):
            series = chosen.get(fields[1])
            if series is None:
                continue
            stamp, percent = columns.numbers(line_number, fields, (0, column))
            if stamp > _AZURE_LATEST_S:
                place = columns.place(line_number, 0)
                raise ConversionError(f"{place}: {stamp:.0f} s is beyond the 30 days of the data")
            series[0].append(stamp)
            series[1].append(percent)
    return result


def _azure_rows(columns: Columns, numeric: Sequence[int]) -> Iterator[tuple[int, list[bytes]]]:
    """The rows and their line numbers; a first line without any number is a header, which the originals lack."""
    titles = columns.titles
    for line_number, line in lines_of(columns.path):
        fields = line.split(b",")
        if len(fields) != len(titles):
            raise ConversionError(
                f"{columns.path}, line {line_number}: {len(fields)} columns instead of the {len(titles)} of"
                f" {titles[0]}, {titles[1]} ... {titles[-1]}"
            )
        if line_number > 1 or any(_looks_numeric(fields[i]) for i in numeric):
            yield line_number, fields


def _looks_numeric(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
