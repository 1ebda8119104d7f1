"""Converts the VM traces of the Azure Public Dataset, V1 (2017) and V2 (2019)."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
    binned_means,
    fill_gaps,
    put_on_node,
)
from misc.tracesources.textfiles import Columns, lines_of, parsed_number

#: Default time of second 0: 2017-01-05T00:00:00Z. The time of the recording is not published; this is a whole number
#: of weeks after the Unix epoch, so that days and weeks of slices stay aligned.
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
class AzureOptions:
    """The data to convert, and assumptions about it.

    Attributes
    ----------
    vmtable : Path
    readings : sequence of Path
    vm : sequence of str or None
        Names of the VMs to convert; otherwise those of ``deployment``, otherwise ``vms`` random ones with ``seed``.
    reading : {"avg", "max"}
        Which reading is the usage.
    cores_above, memory_above : float or None
        Values of the open buckets of the VM table, cores and GB.
    epoch_start : float
        Time of second 0, Unix seconds.
    memory_usage_share : float or None
        Share of a VM's memory to assume as used, 0 to 1; None = memory usage is missing.
    """

    vmtable: Path
    readings: Sequence[Path]
    vm: Sequence[str] | None
    deployment: str | None
    vms: int | None
    seed: int
    reading: str
    cores_above: float | None
    memory_above: float | None
    epoch_start: float
    memory_usage_share: float | None


@dataclass(frozen=True, slots=True)
class _AzureVm:
    """A row of the VM table; times in Unix seconds, ``places`` of name, cores and memory for messages."""

    places: tuple[str, str, str]
    name: str
    deployment: bytes
    created_s: float
    deleted_s: float
    cores: str
    memory_gb: str


def convert_azure(data: AzureOptions, options: TraceOptions, node: NodeOptions) -> Conversion:
    """Convert selected VMs of the table and their readings to a trace of one node.

    Raises
    ------
    ConversionError
    """
    selected = _select_vms(data, options)
    sizes = {
        vm.name: (
            _bucket(vm.cores, data.cores_above, "--cores-above", vm.places[1]),
            _bucket(vm.memory_gb, data.memory_above, "--memory-above", vm.places[2]),
        )
        for vm in selected
    }
    column = _AZURE_READINGS.index(f"{data.reading}cpu")
    readings = _read_azure_readings(data.readings, [vm.name for vm in selected], column)
    times = {name: np.array(read[0]) + data.epoch_start for name, read in readings.items()}
    sampled = [series for series in times.values() if series.size]
    if not sampled:
        raise ConversionError(f"{data.readings[0]}: no reading of the {len(selected)} selected VMs in these files")
    first = min(series.min() for series in sampled) // options.step_s
    last = max(series.max() for series in sampled) // options.step_s
    grid = Grid.within(first * options.step_s, (last + 1) * options.step_s, options)

    vms: dict[str, Machine] = {}
    for vm in selected:
        cores, memory_gb = sizes[vm.name]
        # The step of the deletion has a reading, and so has the last step of VMs that outlive the data.
        first_step, last_step = grid.index(np.array([vm.created_s, vm.deleted_s]))
        steps = np.arange(grid.steps)
        present = (steps >= first_step) & (steps <= last_step)
        index = grid.index(times[vm.name])
        inside = (index >= 0) & (index < grid.steps)
        percent = binned_means(index[inside], np.array(readings[vm.name][1])[inside], grid.steps)
        memory = np.full(grid.steps, memory_gb * 1024.0)
        share = data.memory_usage_share
        vms[vm.name] = Machine(
            present=present,
            cpu_config=np.full(grid.steps, cores),
            mem_config=memory,
            cpu_usage=fill_gaps(percent / 100.0 * cores, present, options.hold),
            mem_usage=None if share is None else np.where(present, memory * share, np.nan),
        )
    meta = {
        "source": "Azure Public Dataset, VM traces",
        "terms": "CC BY 4.0, Microsoft; E. Cortez et al., Resource Central, SOSP 2017",
        "reading": data.reading,
        "epoch_start": data.epoch_start,
        "memory_usage_share": data.memory_usage_share,
    }
    return put_on_node(vms, grid, options, node, meta)


def _select_vms(data: AzureOptions, options: TraceOptions) -> list[_AzureVm]:
    table = _azure_table(data.vmtable, data.epoch_start)
    if data.vm is not None:
        names = set(data.vm)
        selected = [vm for vm in table if vm.name in names]
        missing = sorted(names - {vm.name for vm in selected})
        if missing:
            raise ConversionError(f"{data.vmtable}: no VM {missing[0]}")
    elif data.deployment is not None:
        deployment = data.deployment.encode()
        selected = [vm for vm in table if vm.deployment == deployment]
        if not selected:
            raise ConversionError(f"{data.vmtable}: no VM of deployment {data.deployment}")
    else:
        earliest = -math.inf if options.start is None else options.start
        latest = math.inf if options.end is None else options.end
        alive = (vm for vm in table if vm.deleted_s >= earliest and vm.created_s < latest)
        count = data.vms or 0
        selected = _pick(alive, count, data.seed)
        if len(selected) < count:
            raise ConversionError(f"{data.vmtable}: {len(selected)} VMs in the period, --vms is {count}")
    seen: set[str] = set()
    for vm in selected:
        if vm.name in seen:
            raise ConversionError(f"{vm.places[0]}: VM {vm.name} occurs twice")
        seen.add(vm.name)
    return selected


def _pick(vms: Iterable[_AzureVm], count: int, seed: int) -> list[_AzureVm]:
    """Pick a random sample from an iterator (reservoir sampling)."""
    generator = random.Random(seed)  # noqa: S311 (a repeatable choice, not a secret)
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
    """The size in a field of the VM table; the one of an open bucket is set by an option."""
    size = parsed_number(text.removeprefix(">"), place)
    if not text.startswith(">"):
        if size == 0.0:
            raise ConversionError(f"{place}: a VM of size 0")
        return size
    if above is None:
        raise ConversionError(f"{place}: {text!r} is an open bucket; set its value with {option}")
    if above <= size:
        raise ConversionError(f"{place}: {option} {above:g} is not in the bucket {text!r}")
    return above


def _read_azure_readings(
    paths: Sequence[Path], names: Sequence[str], column: int
) -> dict[str, tuple[array[float], array[float]]]:
    """Read times and percentages of some VMs; rows of other VMs are skipped."""
    result = {name: (array("d"), array("d")) for name in names}
    by_name = {name.encode(): series for name, series in result.items()}
    for path in paths:
        columns = Columns(path, _AZURE_READINGS)
        for line_number, fields in _azure_rows(columns, numeric=(0, 2, 3, 4)):
            series = by_name.get(fields[1])
            if series is None:
                continue
            stamp, percent = columns.numbers(line_number, fields, (0, column))
            if stamp > _AZURE_LATEST_S:
                place = columns.place(line_number, 0)
                raise ConversionError(f"{place}: {stamp:.0f} s is after the 30 days of the data")
            series[0].append(stamp)
            series[1].append(percent)
    return result


def _azure_rows(columns: Columns, numeric: Sequence[int]) -> Iterator[tuple[int, list[bytes]]]:
    """Iterate over the rows with their line numbers; skip a header, which the originals do not have."""
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
