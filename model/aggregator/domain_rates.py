"""Computes the fields of the domains of one node from successive scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..machine_table import MachineTable
from ..samples import Metrics
from .domain_columns import DomainColumns
from .domain_state import BUSY_CORES, LARGEST_ALLOCATION, MOST_USAGE, USED, Balloon, Domain
from .exposition import KIB_PER_MB, MB
from .fields import DELTAS, FAULTS, add_performance, add_rates, copy_fields, scale_fields
from .steady_domains import SteadyDomains
from .unconfirmed import Unconfirmed


class DomainUpdate(NamedTuple):
    """The domains of one scrape.

    Attributes
    ----------
    fields : DomainColumns or dict of domain name to dict of field name to value
        Columns where the fast path was possible.
    problems : list of Unconfirmed
    cpu_ns : float
        CPU time of all domains since the scrape before, as far as it is known, ns.
    """

    fields: DomainColumns | dict[str, dict[str, float]]
    problems: list[Unconfirmed]
    cpu_ns: float


@dataclass(slots=True)
class DomainRates:
    """Converts the metrics of the domains of one node to fields."""

    _domains: dict[str, Domain] = field(default_factory=dict)
    _last_ms: float | None = None
    _steady: SteadyDomains | None = None

    def start(self, stored: Mapping[str, Metrics]) -> None:
        """Start with the allocations that were stored last, cores and MB."""
        for name, fields in stored.items():
            domain = self._domains[name] = Domain()
            domain.vcpus.value = fields.get("cpu")
            domain.memory.value = fields["mem"] * KIB_PER_MB if "mem" in fields else None

    def update(
        self,
        metrics: Mapping[str, Metrics],
        epoch_ms: float,
        cores: float | None,
        memory_kib: float | None,
        *,
        rated: bool = True,
    ) -> DomainUpdate:
        """The fields of each domain, and what is missing because it is not confirmed.

        Parameters
        ----------
        metrics : mapping of domain name to mapping of metric name to value
        epoch_ms : float
            When they were measured.
        cores, memory_kib : float or None
            Size of the node; None if it is unknown.
        rated : bool
            False when the time since the scrape before is not confirmed.
        """
        if self._steady is not None:
            update = None
            if rated and cores is not None and memory_kib is not None and isinstance(metrics, MachineTable):
                update = self._steady.update(metrics, epoch_ms, cores, memory_kib)
            if update is not None:
                self._last_ms = epoch_ms
                return DomainUpdate(update.fields, [], update.cpu_ns)
            self._domains, self._steady = self._steady.domains(), None
        rows = metrics.to_dict() if isinstance(metrics, MachineTable) else metrics
        update_of_rows = self._update_each(rows, epoch_ms, cores, memory_kib, rated=rated)
        if isinstance(metrics, MachineTable) and SteadyDomains.fits(metrics, self._domains, epoch_ms):
            self._steady, self._domains = SteadyDomains(metrics, self._domains, epoch_ms), {}
        return update_of_rows

    def _update_each(
        self,
        metrics: Mapping[str, Metrics],
        epoch_ms: float,
        cores: float | None,
        memory_kib: float | None,
        *,
        rated: bool,
    ) -> DomainUpdate:
        # A domain missing from the page is gone; if it returns, start fresh.
        self._domains = {name: self._domains.get(name) or Domain() for name in metrics}
        problems: list[Unconfirmed] = []
        still = self._stand_still(metrics)
        if still:
            problems.append(Unconfirmed("vms_still", f"usage is unknown: {still} VMs stopped at the same time"))
        fields: dict[str, dict[str, float]] = {}
        wrong_size = wrong_memory = 0
        cpu_ns = 0.0
        for name, now in metrics.items():
            domain = self._domains[name]
            fields[name] = _levels(now)
            wrong_size += not _add_sizes(fields[name], domain, now, epoch_ms, cores, memory_kib)
            wrong_memory += not self._add_memory_usage(fields[name], domain, now, epoch_ms)
            if still:
                continue
            if rated and domain.before is not None and epoch_ms > domain.before_ms:
                counters = (("cpu_cputime",), (*DELTAS, *FAULTS))
                add_rates(fields[name], now, domain.before, epoch_ms - domain.before_ms, *counters)
                if cores is not None and fields[name].get("cpu_usage", 0.0) > MOST_USAGE * cores:
                    del fields[name]["cpu_usage"], fields[name]["elapsed_cpu_time"]
                domain.usage = fields[name].get("cpu_usage", 0.0)
                if domain.before_ms == self._last_ms:
                    cpu_ns += fields[name].get("elapsed_cpu_time", 0.0)
            domain.before, domain.before_ms = now, epoch_ms
        self._last_ms = epoch_ms
        if wrong_size:
            text = "missing, impossible, or changed too much to be believed at once"
            problems.append(Unconfirmed("vm_size", f"the allocation of {wrong_size} VMs is {text}"))
        if wrong_memory:
            problems.append(Unconfirmed("vm_memory", f"memory statistics of {wrong_memory} VMs are impossible"))
        return DomainUpdate(fields, problems, cpu_ns)

    def _stand_still(self, metrics: Mapping[str, Metrics]) -> int:
        """Number of domains that stopped at once: all of them, or all that were busy.

        Their exporter repeats old values then. One domain alone may be paused.
        """
        times = [
            (now["cpu_cputime"] == domain.before["cpu_cputime"], domain.usage > BUSY_CORES)
            for now, domain in ((now, self._domains[name]) for name, now in metrics.items())
            if domain.before is not None and "cpu_cputime" in now and "cpu_cputime" in domain.before
        ]
        for stopped in ([still for still, _ in times], [still for still, busy in times if busy]):
            if len(stopped) > 1 and all(stopped):
                return len(stopped)
        return 0

    def _add_memory_usage(self, fields: dict[str, float], domain: Domain, now: Metrics, epoch_ms: float) -> bool:
        """Add the memory that a guest uses, if it is known; False when its statistics are impossible."""
        alloc, unused = now.get("memory_alloc"), now.get("memory_unused")
        if alloc is None or not alloc > 0:
            return True
        if domain.balloon is None:
            domain.balloon = Balloon(alloc)
        # The clock of the node may have been far ahead at the scrape before.
        last_ms = epoch_ms if self._last_ms is None else min(self._last_ms, epoch_ms)
        usage = domain.balloon.usage(now, epoch_ms, last_ms)
        if usage is not None:
            fields["mem_usage"] = usage / KIB_PER_MB
        return unused is None or unused >= 0


def _levels(now: Metrics) -> dict[str, float]:
    """Fields that need one scrape, without the sizes."""
    fields: dict[str, float] = {}
    copy_fields(fields, now, (("cpu_time", "cpu_cputime"), ("stat_rss_pages", "stat_rss")))
    scale_fields(fields, now, (("mem_rss", "memory_rss"),), KIB_PER_MB)
    scale_fields(fields, now, (("stat_rsslim", "stat_rsslim"), ("stat_vsize", "stat_vsize")), MB)
    add_performance(fields, now)
    return fields


def _add_sizes(
    fields: dict[str, float],
    domain: Domain,
    now: Metrics,
    epoch_ms: float,
    cores: float | None,
    memory_kib: float | None,
) -> bool:
    """Add the allocation of a VM as far as it is believed; whether the page's own was believed."""
    believed = True
    for name, metric, accepted, size, unit, least in (
        ("cpu", "cpu_alloc", domain.vcpus, cores, 1.0, USED * domain.usage),
        ("mem", "memory_alloc", domain.memory, memory_kib, KIB_PER_MB, 0.0),
    ):
        largest = float("inf") if size is None else LARGEST_ALLOCATION * size
        value = now.get(metric)
        accepts = value is not None and accepted.update(value, largest, epoch_ms, least)
        believed = believed and accepts
        # A change that is not believed yet leaves the size before; a missing or impossible one is unknown.
        if value is not None and accepted.value is not None and (accepts or 0 < value <= largest):
            fields[name] = accepted.value / unit
    return believed
