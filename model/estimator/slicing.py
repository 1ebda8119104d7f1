"""Builds slices from stored samples.

A trace exported from the same samples gives the same slices: it holds the samples and configurations that count here.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..numerics import FloatArray
from ..samples import DomainHistory, LastConfig, Samples
from ..slices import CPU, LARGEST, RESOURCES, Slice, usage_of
from ..store.base import Store
from .bookings import CONFIG_FIELDS, LastConfigs, UsualBookings, book_vms, last_configs, merge
from .coverage import THINNED_FIELDS, SliceCoverage
from .waiting import NODE_WAIT_FIELDS, WAIT_FIELDS, waiting_of

#: Fields that are read from the store, of the node and of its domains.
DOMAIN_FIELDS = (*CONFIG_FIELDS, "cpu_usage", "mem_usage", *THINNED_FIELDS)

#: Of the node alone: the time that a rate covers, ms, and the allocations of all VMs / capacity.
FIELDS = (*DOMAIN_FIELDS, "elapsed_time", "oc_cpu", "oc_mem")

#: All of them, with how long was waited.
SLICE_FIELDS = (*FIELDS, *WAIT_FIELDS, *NODE_WAIT_FIELDS)

#: Nodes that are not read yet keep the figures of the slice before for at most this long after the slice's end.
_LONGEST_GRACE_S = 120.0

_NO_SAMPLES: FloatArray = np.empty(0)


@dataclass(frozen=True, slots=True)
class Calendar:
    """Divides time into slices: slice ``k`` lasts from ``k * slice_s`` to before ``(k + 1) * slice_s``, Unix seconds.

    Attributes
    ----------
    slice_s : float
    positions : int
        S, the slices of a scope.
    """

    slice_s: float
    positions: int

    def last_ended(self, now_s: float) -> int:
        """The number of the last slice that has ended."""
        return math.floor(now_s / self.slice_s) - 1

    def end_s(self, number: int) -> float:
        """The end of a slice."""
        return (number + 1) * self.slice_s

    def bounds_ms(self, number: int) -> tuple[int, int]:
        """The first millisecond of a slice, and the first of the next one."""
        return math.ceil(number * self.slice_s * 1000), math.ceil((number + 1) * self.slice_s * 1000)

    def position(self, number: int) -> int:
        """The index of a slice within its scope."""
        return number % self.positions

    def scope_start(self, number: int) -> int:
        """The first slice of the scope that holds a slice."""
        return number - self.position(number)

    def trace_config(self, node_name: str, historical: int) -> dict[str, Any]:
        """The ``config`` of a trace of a node whose window holds ``historical`` scopes beside the current one."""
        return {
            "node_name": node_name,
            "node_scope": self.slice_s * self.positions,
            "slice_scope": self.slice_s,
            "historical_occurences": historical,
        }


def is_ahead(number: int, due: int) -> bool:
    """Whether a slice is so far in the future that the clock must have been wrong; one slice ahead is waited for."""
    return number - due > 1


class SliceClock:
    """The calendar at the present time.

    Parameters
    ----------
    calendar : Calendar
    settle_s : float
        From the end of a slice until it is due: its last samples have to reach the store.
    clock : callable
        Unix seconds.
    """

    def __init__(self, calendar: Calendar, settle_s: float, clock: Callable[[], float] = time.time) -> None:
        self.calendar = calendar
        self._settle_s = settle_s
        self._clock = clock

    def now_s(self) -> float:
        """Unix seconds."""
        return self._clock()

    def due(self) -> int:
        """The last slice that has ended and settled."""
        return self.calendar.last_ended(self._clock() - self._settle_s)

    def late_s(self, number: int) -> float:
        """Seconds since the end of a slice; negative before it."""
        return self._clock() - self.calendar.end_s(number)

    def until_due_s(self, number: int) -> float:
        """Seconds until a slice is due; negative afterwards."""
        return self._settle_s - self.late_s(number)

    @property
    def grace_s(self) -> float:
        """Seconds after the end of a slice during which the figures of the slice before are still published."""
        return self._settle_s + min(_LONGEST_GRACE_S, self.calendar.slice_s / 4)


@dataclass(frozen=True, slots=True)
class SliceRules:
    """What a slice needs to have figures.

    Attributes
    ----------
    min_samples : int
    vm_hold_s : float
        For how long the last known VMs count after they became unknown.
    """

    min_samples: int = 4
    vm_hold_s: float = 900.0


class SliceReader:
    """Reads the slices of nodes from a store.

    Parameters
    ----------
    store : Store
    calendar : Calendar
    rules : SliceRules
    with_vm_samples : bool
        Whether the samples of the VMs are needed. Their configurations alone are a much smaller query.
    """

    def __init__(self, store: Store, calendar: Calendar, rules: SliceRules, *, with_vm_samples: bool) -> None:
        self._store = store
        self._calendar = calendar
        self._rules = rules
        self._with_vm_samples = with_vm_samples
        self._usual: defaultdict[str, UsualBookings] = defaultdict(UsualBookings)

    def read(self, node: str, number: int, known: LastConfigs) -> Slice:
        """Read one slice of a node; ``known`` is updated.

        Raises
        ------
        StoreUnavailable, StoreRefused
        """
        start_ms, end_ms = self._calendar.bounds_ms(number)
        if self._with_vm_samples:
            period = self._store.read(node, start_ms, end_ms, SLICE_FIELDS)
            history = DomainHistory.of(period)
            vms = period.domains if history is None else history.part(0, period.node.time_ms.size)
            configs, usual = last_configs(vms), self._usual[node]
            return build_slice(number, self._calendar, self._rules, known, period.node, configs, vms, usual)
        period = self._store.read(node, start_ms, end_ms, FIELDS, domains=False)
        configs = self._store.last_configs(node, start_ms, end_ms)
        return build_slice(number, self._calendar, self._rules, known, period.node, configs)

    def newest_ms(self, node: str) -> int | None:
        """Time of the newest sample of a node; None when there is none.

        Raises
        ------
        StoreUnavailable
        """
        last = self._store.last(node)
        return None if last is None else last.time_ms

    def has_samples_from(self, node: str, start_ms: int, now_s: float) -> bool:
        """Whether the store has a sample of a node between a time and the present.

        Raises
        ------
        StoreUnavailable, StoreRefused
        """
        period = self._store.read(node, start_ms, int(now_s * 1000) + 1, ("cpu",), domains=False)
        return period.node.time_ms.size > 0


def build_slice(
    number: int,
    calendar: Calendar,
    rules: SliceRules,
    known: LastConfigs,
    node: Samples,
    vms: Mapping[str, LastConfig],
    vm_samples: Mapping[str, Samples] | None = None,
    usual: UsualBookings | None = None,
) -> Slice:
    """Build a slice that has ended.

    What is not confirmed is missing, and why is noted in the slice: a resource whose samples are too few or cover too
    little, whose capacity is unknown, or whose allocations have been unknown for too long.

    Parameters
    ----------
    number : int
    calendar : Calendar
    rules : SliceRules
    known : LastConfigs
        Updated in place.
    node : Samples
        With the fields :data:`FIELDS`.
    vms : mapping of name to LastConfig
        A VM without ``cpu`` and ``mem`` was absent.
    vm_samples : mapping of name to Samples, optional
        Usage of the VMs, if it is needed.
    usual : UsualBookings, optional
        Makes slices that are like the one before them faster.
    """
    end_s = calendar.end_s(number)
    # The smallest size counts: a larger one is believed once it lasts for a slice.
    known.node = merge(known.node, [_smallest(valid_node_config(node.fields[field])) for field in CONFIG_FIELDS])
    bookings = book_vms(known, node, vms, end_s, rules.vm_hold_s, usual)
    names = bookings.names
    coverage = SliceCoverage(node, *calendar.bounds_ms(number), rules.min_samples, known.interval_s * 1000.0)
    known.interval_s = coverage.interval_ms / 1000.0
    waiting = waiting_of(coverage, node, names, vm_samples)
    usages = []
    for i, resource in enumerate(RESOURCES):
        samples = valid_samples(node.fields[f"{resource.name}_usage"])
        counted = coverage.count_node(resource, samples, known.node[i], waiting.on_node if resource is CPU else None)
        missing = counted.missing or bookings.problems[i]
        if node.time_ms.size and math.isnan(known.node[i]):
            missing = "the capacity of the node is unknown"
        vm_usage, vm_demand = coverage.count_vms(resource, names, vm_samples)
        usage = usage_of(
            known.node[i],
            _NO_SAMPLES if missing else counted.values,
            bookings.sizes[i],
            vm_usage,
            bookings.alive,
            node_demand=None if missing else counted.demand,
            vm_demand=vm_demand,
            missing=missing if node.time_ms.size else "",
        )
        usages.append(usage)
    cpu, mem = usages
    return Slice(end_s, calendar.position(number), names, cpu, mem, waiting.waits)


def valid_samples(values: FloatArray) -> FloatArray:
    """Samples, with NaN in place of values beyond any machine."""
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def valid_node_config(values: FloatArray) -> FloatArray:
    """Configurations of a node, with NaN in place of impossible values: every node has cores and memory."""
    return np.where((values > 0) & (values <= LARGEST), values, np.nan)


def _smallest(values: FloatArray) -> float:
    present = values[~np.isnan(values)]
    return float(present.min()) if present.size else math.nan
