"""The nodes of a scan, each computed by any worker."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..common.text import printable
from ..estimator.bookings import LastConfigs, UsualBookings, last_configs
from ..estimator.slicing import SLICE_FIELDS, Calendar, SliceRules, build_slice
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES
from ..parallel.work import Work
from ..replay.trace import TraceError, read_trace
from ..samples import DomainHistory, Period, Samples
from ..slices import RESOURCES, Slice
from ..stability import STABILITY_DETECTORS
from ..store.base import Store, StoreRefused, StoreUnavailable
from ..store.factory import open_store
from ..store.prometheus import PrometheusStore
from ..store.settings import StoreSettings
from .finding import NodeFinding, with_display_names
from .scanner import NodeScan
from .vm_series import VmSeries, fits_steps

#: How much of a history is read at once.
_READ_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class ScanTask:
    """Some nodes of the store, or a trace.

    Attributes
    ----------
    nodes : tuple of str
    trace : str
        Absolute path; empty for nodes of the store.
    """

    nodes: tuple[str, ...]
    trace: str = ""


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """The same for every node.

    Attributes
    ----------
    model : ModelSettings
    stability : str
        Name of the stability detector.
    store : StoreSettings or None
        None for traces.
    calendar : Calendar
    rules : SliceRules
    first, last : int
        Numbers of the slices.
    vms_per_node : int
        So many VMs of each node are kept for a simulation.
    """

    model: ModelSettings
    stability: str
    store: StoreSettings | None
    calendar: Calendar
    rules: SliceRules
    first: int
    last: int
    vms_per_node: int = 0


class _History(NamedTuple):
    """The slices of a node, their length, those of a scope, and h."""

    slices: Iterator[Slice]
    slice_s: float
    positions: int
    historical: int


def scan_work(plan: ScanPlan) -> Work[ScanTask, ScanPlan, tuple[NodeFinding, ...]]:
    """What workers do with each task."""
    return Work(_scan, plan, _failed, verb="scanned", noun="nodes")


def _scan(task: ScanTask, plan: ScanPlan) -> tuple[NodeFinding, ...]:
    """Scan the nodes of a task, in a worker. A fault of one is part of its finding, and harms no other."""
    if task.trace:
        return (_scan_trace(task, plan),)
    assert plan.store is not None  # noqa: S101  # only traces have none
    try:
        store = open_store(plan.store)
    except (StoreUnavailable, StoreRefused) as error:
        return _failed(task, str(error))
    with contextlib.closing(store):
        if isinstance(store, PrometheusStore):
            return tuple(_scan_history(task.nodes, store, plan))
        return tuple(_scan_node(node, store, plan) for node in task.nodes)


def _failed(task: ScanTask, cause: str) -> tuple[NodeFinding, ...]:
    return tuple(NodeFinding(node, error=printable(cause)) for node in task.nodes)


def _scan_trace(task: ScanTask, plan: ScanPlan) -> NodeFinding:
    def history() -> _History:
        trace = read_trace(task.trace)
        config = trace.config
        return _History(trace.slices(), config.slice_scope, config.positions, config.historical)

    (name,) = task.nodes
    return _run(name, history, plan)


def _scan_node(node: str, store: Store, plan: ScanPlan) -> NodeFinding:
    return _run(node, partial(_with_settings, _stored_slices(node, store, plan), plan), plan)


def _with_settings(slices: Iterator[Slice], plan: ScanPlan) -> _History:
    return _History(slices, plan.calendar.slice_s, plan.calendar.positions, plan.model.historical)


def _scan_history(nodes: Sequence[str], store: PrometheusStore, plan: ScanPlan) -> Iterator[NodeFinding]:
    """Scan nodes that are read together; when they cannot be, each alone."""
    calendar, found = plan.calendar, set()
    bounds = calendar.bounds_ms(plan.first)[0], calendar.bounds_ms(plan.last)[1]
    try:
        for node, period in store.history(nodes, *bounds, calendar.slice_s):
            found.add(node)
            slices = _read_slices(period, plan)
            finding = _run(node, partial(_with_settings, slices, plan), plan)
            with contextlib.suppress(StoreUnavailable):
                finding = with_display_names(finding, store.display_names(node))
            yield finding
    except StoreUnavailable as error:
        left = [node for node in nodes if node not in found]
        if len(nodes) == 1:
            yield NodeFinding(nodes[0], error=printable(str(error)))
        else:
            for node in left:
                yield from _scan_history((node,), store, plan)
        return
    yield from (NodeFinding(node, error="not found on the server") for node in nodes if node not in found)


def _read_slices(period: Period, plan: ScanPlan) -> Iterator[Slice]:
    """The slices of a whole history, from the first one with a sample on."""
    if not period.node.time_ms.size:
        return
    first = max(plan.first, plan.calendar.last_ended(int(period.node.time_ms[0]) / 1000) + 1)
    yield from slices_of(period, range(first, plan.last + 1), plan, LastConfigs())


def _run(node: str, read: Callable[[], _History], plan: ScanPlan) -> NodeFinding:
    """Scan a node."""
    by_stability = any("stability" in STRATEGIES[name].parameters for name in plan.model.strategies)
    detector = STABILITY_DETECTORS[plan.stability] if by_stability else None
    detectors = {resource.name: detector for resource in RESOURCES}
    try:
        history = read()
        settings = replace(plan.model, positions=history.positions, historical=history.historical)
        scan = NodeScan(node, settings, detectors)
        vms = VmSeries(history.slice_s) if plan.vms_per_node and fits_steps(history.slice_s) else None
        for finished in history.slices:
            scan.update(finished)
            if vms is not None:
                vms.note(finished)
        finding = scan.finding()
        return finding if vms is None else replace(finding, sampled=vms.vms(plan.vms_per_node))
    except (TraceError, StoreUnavailable, StoreRefused) as error:
        return NodeFinding(node, error=printable(str(error)))
    except Exception as error:  # one node must not cost the others
        return NodeFinding(node, error=f"{type(error).__name__}: {printable(str(error))}")


def _stored_slices(node: str, store: Store, plan: ScanPlan) -> Iterator[Slice]:
    """The slices of a node, read in pieces that fit into memory."""
    calendar = plan.calendar
    begins_ms = store.begins_ms(node, calendar.bounds_ms(plan.first)[0], calendar.bounds_ms(plan.last)[1])
    if begins_ms is None:
        return
    first, known = max(plan.first, calendar.last_ended(begins_ms / 1000) + 1), LastConfigs()
    at_once = max(1, math.floor(_READ_S / calendar.slice_s))
    for start in range(first, plan.last + 1, at_once):
        numbers = range(start, min(start + at_once, plan.last + 1))
        bounds = calendar.bounds_ms(numbers[0])[0], calendar.bounds_ms(numbers[-1])[1]
        yield from slices_of(store.read(node, *bounds, SLICE_FIELDS), numbers, plan, known)


def slices_of(period: Period, numbers: Sequence[int], plan: ScanPlan, known: LastConfigs) -> Iterator[Slice]:
    """The slices of a period of a node; ``known`` is updated.

    Parameters
    ----------
    period : Period
    numbers : sequence of int
        Of the slices.
    plan : ScanPlan
    known : LastConfigs
    """
    calendar = plan.calendar
    bounds = [*(calendar.bounds_ms(number)[0] for number in numbers), calendar.bounds_ms(numbers[-1])[1]]
    cuts: list[int] = np.searchsorted(period.node.time_ms, bounds).tolist()
    domains, usual = DomainHistory.of(period), UsualBookings()
    for i, number in enumerate(numbers):
        node = period.node.part(cuts[i], cuts[i + 1])
        vms = _cut(period, bounds[i : i + 2]) if domains is None else domains.part(cuts[i], cuts[i + 1])
        yield build_slice(number, calendar, plan.rules, known, node, last_configs(vms), vms, usual)


def _cut(period: Period, bounds_ms: Sequence[int]) -> dict[str, Samples]:
    """The samples of domains in a part of a period."""
    parts = {}
    for name, samples in period.domains.items():
        start, end = np.searchsorted(samples.time_ms, bounds_ms).tolist()
        if start < end:
            parts[name] = samples.part(start, end)
    return parts
