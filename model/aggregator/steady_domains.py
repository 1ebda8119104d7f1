"""Fast path for the domains of a node whose pages have the same metrics, and on which nothing happens.

Nothing happens when no VM comes or goes, no counter decreases, no allocation changes, no balloon moves, and every
figure is confirmed. All else is left to :mod:`~model.aggregator.domain_rates`, which computes the same fields one by
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np

from ..machine_table import MachineTable
from ..numerics import BoolArray, FloatArray
from .domain_columns import DomainColumns
from .domain_state import BUSY_CORES, LARGEST_ALLOCATION, MOST_USAGE, USED, Domain
from .exposition import KIB_PER_MB, MB, NS_PER_MS
from .fields import DELTAS, FAULTS, RATIOS, performance_names

#: Metrics that each domain must have.
_REQUIRED = ("cpu_cputime", "cpu_alloc", "memory_alloc")

_COUNTERS = (*DELTAS, *FAULTS)

#: Fields that are metrics in another unit: field, metric, divisor.
_LEVELS = (
    ("cpu_time", "cpu_cputime", 1.0),
    ("stat_rss_pages", "stat_rss", 1.0),
    ("mem_rss", "memory_rss", KIB_PER_MB),
    ("stat_rsslim", "stat_rsslim", MB),
    ("stat_vsize", "stat_vsize", MB),
)


class SteadyUpdate(NamedTuple):
    """The fields of one scrape; ``cpu_ns`` as in :class:`~model.aggregator.domain_rates.DomainUpdate`."""

    fields: DomainColumns
    cpu_ns: float


class SteadyDomains:
    """The state of the domains of a node, in arrays.

    Parameters
    ----------
    table : MachineTable
        Metrics of the last page.
    domains : mapping of domain name to Domain
        The state after it. It is taken over.
    epoch_ms : float
        Time of the page.
    """

    def __init__(self, table: MachineTable, domains: Mapping[str, Domain], epoch_ms: float) -> None:
        layout = table.layout
        self._layout = layout
        self._domains = domains
        self._before = table.array
        self._before_ms = epoch_ms
        states = [domains[name] for name in layout.machines]
        self._usage = np.array([state.usage for state in states])
        self._vcpus = np.array([state.vcpus.value for state in states], dtype=np.float64)
        self._memory = np.array([state.memory.value for state in states], dtype=np.float64)
        reserves = [state.balloon.reserve if state.balloon is not None else None for state in states]
        self._reserve = np.array([math.nan if reserve is None else reserve for reserve in reserves])
        position = layout.position
        self._counters = [name for name in _COUNTERS if name in position]
        self._places = np.array([position[name] for name in ("cpu_cputime", *self._counters)])
        self._performance = performance_names(layout.columns)
        for state in states:
            state.before = None  # the table has it

    @staticmethod
    def fits(table: MachineTable, domains: Mapping[str, Domain], epoch_ms: float) -> bool:
        """Whether nothing is pending after a page."""
        position = table.layout.position
        if not domains or any(name not in position for name in _REQUIRED):
            return False
        return all(
            state.before is not None
            and state.before_ms == epoch_ms
            and state.vcpus.is_settled_at(alloc[0])
            and state.memory.is_settled_at(alloc[1])
            and state.balloon is not None
            and state.balloon.settled
            and state.balloon.alloc == alloc[1]
            for state, alloc in zip(
                (domains[name] for name in table.layout.machines),
                table.array[:, [position["cpu_alloc"], position["memory_alloc"]]].tolist(),
                strict=True,
            )
        )

    def update(self, table: MachineTable, epoch_ms: float, cores: float, memory_kib: float) -> SteadyUpdate | None:
        """The fields of each domain; None, and the state is as before, when something happened."""
        now, before, position = table.array, self._before, self._layout.position
        elapsed_ms = epoch_ms - self._before_ms
        if table.layout is not self._layout or not elapsed_ms > 0:
            return None
        vcpus, memory = now[:, position["cpu_alloc"]], now[:, position["memory_alloc"]]
        increase = now[:, self._places] - before[:, self._places]
        cpu = increase[:, 0]
        usage = cpu / (elapsed_ms * NS_PER_MS)
        # A comparison with NaN is false.
        if not (
            (vcpus == self._vcpus).all()
            and (memory == self._memory).all()
            and (vcpus <= LARGEST_ALLOCATION * cores).all()
            and (vcpus > np.maximum(0.0, USED * self._usage)).all()
            and (memory <= LARGEST_ALLOCATION * memory_kib).all()
            and (usage <= MOST_USAGE * cores).all()
            and not (increase < 0).any()
            and not self._stands_still(cpu == 0)
        ):
            return None
        fields = DomainColumns(self._layout.machines)
        columns = fields.columns
        reserve = self._reserve
        if "memory_unused" in position:
            unused = now[:, position["memory_unused"]]
            valid = (unused >= 0) & (unused <= memory)
            if not (valid | np.isnan(unused)).all():
                return None
            available = now[:, position["memory_available"]] if "memory_available" in position else math.nan
            reserve = np.where(valid, memory - available, reserve)
            columns["mem_usage"] = (memory - unused) / KIB_PER_MB
        self._add_levels(columns, now)
        columns["cpu"], columns["mem"] = vcpus / 1.0, memory / KIB_PER_MB
        columns["elapsed_cpu_time"], columns["cpu_usage"] = cpu, usage
        columns |= {name: increase[:, i] for i, name in enumerate(self._counters, 1)}
        if "sched_waittime" in columns and "sched_runtime" in columns:
            columns["sched_busy"] = _busy(columns["sched_waittime"], columns["sched_runtime"])
        self._before, self._before_ms, self._usage, self._reserve = now, epoch_ms, usage, reserve
        return SteadyUpdate(fields, reduce(add, cpu.tolist(), 0.0))

    def domains(self) -> dict[str, Domain]:
        """The state of each domain after the last page."""
        rows = MachineTable(self._layout, self._before).to_dict()
        states = zip(self._layout.machines, self._usage.tolist(), self._reserve.tolist(), strict=True)
        domains = {}
        for name, usage, reserve in states:
            state = domains[name] = self._domains[name]
            state.before, state.before_ms, state.usage = rows[name], self._before_ms, usage
            if state.balloon is not None:
                state.balloon.reserve = None if math.isnan(reserve) else reserve
        return domains

    def _stands_still(self, stopped: BoolArray) -> bool:
        """Whether more than one domain stopped at once: all of them, or all that were busy."""
        busy = stopped[self._usage > BUSY_CORES]
        return bool((stopped.size > 1 and stopped.all()) or (busy.size > 1 and busy.all()))

    def _add_levels(self, columns: dict[str, FloatArray], now: FloatArray) -> None:
        position = self._layout.position
        for name, metric, divisor in _LEVELS:
            if metric in position:
                columns[name] = now[:, position[metric]] / divisor
        for metric, short in self._performance:
            columns[short] = now[:, position[metric]]
        for ratio, above, below in RATIOS:
            if above in position and below in position:
                divisors = now[:, position[below]]
                columns[ratio] = now[:, position[above]] / np.where(divisors > 0, divisors, math.nan)


def _busy(wait: FloatArray, run: FloatArray) -> FloatArray:
    """Wait for each ns of run time; without run time there is no wait time."""
    ratio = wait / np.where(run > 0, run, math.nan)
    return np.where((run <= 0) & ~np.isnan(wait), 0.0, ratio)
