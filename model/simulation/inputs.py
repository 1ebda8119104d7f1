"""From the inputs of a command line to sources of workloads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ..cli.files import json_files_of
from ..common.errors import UsageError
from ..replay.trace import Trace, TraceError, read_trace
from .arrivals import ArrivalList, arrivals_between
from .draw import Arrivals
from .options import SimulationOptions
from .sources import DrawnSource, GivenSource, ListedSource, Source, VmPool
from .trace_workload import replayed_workload, sampled_vms
from .workload import Workload
from .workload_file import WorkloadError, read_workload

#: Seconds of a step of the workloads that are made of traces.
STEP_S = 300.0
_DAY_S = 86400.0


@dataclass(slots=True)
class Inputs:
    """What was read.

    Attributes
    ----------
    workloads : dict of name to Workload
    traces : list of Trace
    notes : list of str
        Lines about data that is not used.
    errors : list of str
        A line for each file that is not usable.
    """

    workloads: dict[str, Workload] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Outline(msgspec.Struct):
    """The keys that only a workload file has."""

    step_s: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    series: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def files_of(arguments: Sequence[str]) -> list[Path]:
    """The files that arguments name; a folder stands for its ``*.json``. Duplicates are dropped.

    Raises
    ------
    UsageError
        When a file or folder is missing or unreadable, or when a folder has no such file.
    """
    files = [path for argument in arguments for path in json_files_of(argument)]
    return list({os.path.realpath(path): path for path in files}.values())


def read_inputs(files: Sequence[Path], advance: Callable[[], None]) -> Inputs:
    """Read files; ``advance`` is called after each of them."""
    inputs = Inputs()
    for path in files:
        try:
            if _is_workload(path):
                inputs.workloads[_free_name(path.stem, inputs.workloads)] = read_workload(path)
            else:
                inputs.traces.append(read_trace(path))
        except (TraceError, WorkloadError) as error:
            inputs.errors.append(str(error))
        advance()
    return inputs


def _is_workload(path: Path) -> bool:
    """Whether a file is meant as a workload; what is neither is left to the reader of traces."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    try:
        outline = msgspec.json.decode(data, type=_Outline)
    except msgspec.DecodeError:
        return b'"step_s"' in data and b'"series"' in data
    return outline.step_s is not msgspec.UNSET or outline.series is not msgspec.UNSET


def _free_name(stem: str, taken: dict[str, Workload]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def sources_of(inputs: Inputs, options: SimulationOptions) -> list[Source]:
    """The sources of workloads: those that are given, then those of traces.

    Raises
    ------
    UsageError
        When there is none, or when traces do not fit together.
    """
    finite = bool(options.hosts_needed)
    sources: list[Source] = [GivenSource(name, finite, workload) for name, workload in inputs.workloads.items()]
    try:
        if options.arrival_list is not None:
            sources.append(_of_list(options.arrival_list, inputs, options))
        if inputs.traces and (options.arrival_list is None or options.arrivals):
            sources += _of_traces(inputs, options)
    except WorkloadError as error:
        raise UsageError(str(error)) from None
    if not sources:
        raise UsageError("no input could be used")
    return sources


def _of_traces(inputs: Inputs, options: SimulationOptions) -> Iterator[Source]:
    kinds = options.arrivals
    if not kinds or "replay" in kinds:
        replayed = _replayed(inputs, asked=bool(kinds))
        if replayed is not None:
            yield GivenSource(_free_name("replay", inputs.workloads), bool(options.hosts_needed), replayed)
            if not kinds:
                return
        elif kinds:
            raise UsageError("--arrivals: replay, but in these traces no VM arrives or leaves")
    drawn: list[Arrivals] = [kind for kind in kinds or ("flood", "finite") if kind != "replay"]
    if drawn:
        pool = _pool(inputs)
        draw = replace(options.draw, nodes=options.size.nodes)
        if options.days is not None:
            draw = replace(draw, days=options.days)
        for kind in drawn:
            finite = kind == "finite" if options.hosts_needed is None else options.hosts_needed
            name = _free_name(kind, inputs.workloads)
            yield DrawnSource(name, finite, pool, STEP_S, replace(draw, arrivals=kind))


def _replayed(inputs: Inputs, *, asked: bool) -> Workload | None:
    """The VMs of traces as they came and went; None when none did, or unasked for different times."""
    try:
        return replayed_workload(inputs.traces, STEP_S, inputs.notes.append)
    except WorkloadError as error:
        if asked:
            raise
        inputs.notes.append(f"{error}; workloads are drawn of their VMs")
        return None


def _of_list(arrivals: ArrivalList, inputs: Inputs, options: SimulationOptions) -> Source:
    inputs.notes += arrivals.notes
    start_s = options.from_day * _DAY_S
    end_s = math.inf if options.days is None else start_s + options.days * _DAY_S
    chosen = arrivals_between(arrivals, start_s, end_s)
    if not inputs.traces and (chosen.usage is None or any(usage is None for usage in chosen.usage)):
        raise UsageError(
            "--arrival-list: it does not say what its VMs use; name traces as INPUT, from which that is drawn"
        )
    name = _free_name("arrivals", inputs.workloads)
    pool = _pool(inputs) if inputs.traces else None
    return ListedSource(name, bool(options.hosts_needed), chosen, pool, STEP_S, options.days)


def _pool(inputs: Inputs) -> VmPool:
    return VmPool.of(sampled_vms(inputs.traces, STEP_S, inputs.notes.append))
