"""Computes the fields of the domains of one node from successive scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..samples import Metrics
from .exposition import KIB_PER_MB, MB
from .fields import DELTAS, FAULTS, add_performance, add_rates, copy_fields, scale_fields
from .sizes import AcceptedAllocation
from .unconfirmed import Unconfirmed

#: How long after a change of its size a guest may report a different reserve before that is its new reserve, ms.
_SETTLING_MS = 60_000.0

#: Largest difference between the reserves of a guest at two sizes, as a fraction of its memory.
_RESERVE_TOLERANCE = 0.01

#: Allocations beyond this multiple of the node's own size are errors of the exporter.
_LARGEST_ALLOCATION = 4.0

#: By which factor an allocation may fall at once: memory with its balloon, vCPUs not at all.
_VCPUS_FALL = 1.0
_MEMORY_FALLS = 4.0

#: A VM has at least this share of the vCPUs that it used.
_USED = 0.8

#: No VM uses more than this multiple of the node.
_MOST_USAGE = 1.5

#: A VM that used more was busy, cores.
_BUSY_CORES = 0.05


@dataclass(slots=True)
class _Balloon:
    """State of a domain's balloon; KiB, Unix milliseconds.

    Attributes
    ----------
    alloc : float
    changed_after_ms : float
        Time of the last scrape before ``alloc`` changed.
    settled : bool
        Whether the statistics of the guest are of the current size.
    reserve : float or None
        Memory that the guest's kernel reserves for itself: alloc - available, while settled.
    """

    alloc: float
    changed_after_ms: float = float("-inf")
    settled: bool = True
    reserve: float | None = None

    def usage(self, now: Metrics, epoch_ms: float, last_ms: float) -> float | None:
        """Memory that a guest uses, alloc - unused, KiB; None while it is unknown.

        The statistics are as old as the guest's last report. After the balloon has moved they are of the size before,
        or of a size in between while it was moving. They are of the current size once the guest has reported after
        the change and the guest's kernel has the same reserve as before.

        Parameters
        ----------
        now : mapping of metric name to value
        epoch_ms, last_ms : float
            Time of this scrape, and of the one before.
        """
        alloc, unused = now["memory_alloc"], now.get("memory_unused")
        if self.alloc != alloc:
            self.alloc, self.settled, self.changed_after_ms = alloc, False, last_ms
        if unused is None or not 0 <= unused <= alloc:
            return None
        # The time of the statistics is in whole seconds.
        updated_ms = now.get("memory_last_update", epoch_ms / 1000.0) * 1000.0 + 999.0
        reserve = alloc - now["memory_available"] if "memory_available" in now else None
        if not self.settled:
            agree = (
                reserve is None
                or self.reserve is None
                or abs(reserve - self.reserve) <= _RESERVE_TOLERANCE * alloc
                or updated_ms > self.changed_after_ms + _SETTLING_MS
            )
            self.settled = updated_ms >= self.changed_after_ms and agree
        if not self.settled:
            return None
        self.reserve = reserve
        return alloc - unused


@dataclass(slots=True)
class _Domain:
    """State of a domain between scrapes.

    Attributes
    ----------
    before : mapping of metric name to value, or None
        The metrics from which its next rates are computed; None before the first scrape.
    before_ms : float
        Their time.
    usage : float
        Its last known CPU usage, cores.
    """

    before: Metrics | None = None
    before_ms: float = 0.0
    usage: float = 0.0
    vcpus: AcceptedAllocation = field(default_factory=lambda: AcceptedAllocation(_VCPUS_FALL))
    memory: AcceptedAllocation = field(default_factory=lambda: AcceptedAllocation(_MEMORY_FALLS))
    balloon: _Balloon | None = None


class DomainUpdate(NamedTuple):
    """The domains of one scrape.

    Attributes
    ----------
    fields : dict of domain name to dict of field name to value
    problems : list of Unconfirmed
    cpu_ns : float
        CPU time of all domains since the scrape before, as far as it is known, ns.
    """

    fields: dict[str, dict[str, float]]
    problems: list[Unconfirmed]
    cpu_ns: float


@dataclass(slots=True)
class DomainRates:
    """Converts the metrics of the domains of one node to fields."""

    _domains: dict[str, _Domain] = field(default_factory=dict)
    _last_ms: float | None = None

    def start(self, stored: Mapping[str, Metrics]) -> None:
        """Start with the allocations that were stored last, cores and MB."""
        for name, fields in stored.items():
            domain = self._domains[name] = _Domain()
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
        # A domain missing from the page is gone; if it returns, start fresh.
        self._domains = {name: self._domains.get(name) or _Domain() for name in metrics}
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
                if cores is not None and fields[name].get("cpu_usage", 0.0) > _MOST_USAGE * cores:
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
            (now["cpu_cputime"] == domain.before["cpu_cputime"], domain.usage > _BUSY_CORES)
            for now, domain in ((now, self._domains[name]) for name, now in metrics.items())
            if domain.before is not None and "cpu_cputime" in now and "cpu_cputime" in domain.before
        ]
        for stopped in ([still for still, _ in times], [still for still, busy in times if busy]):
            if len(stopped) > 1 and all(stopped):
                return len(stopped)
        return 0

    def _add_memory_usage(self, fields: dict[str, float], domain: _Domain, now: Metrics, epoch_ms: float) -> bool:
        """Add the memory that a guest uses, if it is known; False when its statistics are impossible."""
        alloc, unused = now.get("memory_alloc"), now.get("memory_unused")
        if alloc is None or not alloc > 0:
            return True
        if domain.balloon is None:
            domain.balloon = _Balloon(alloc)
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
    domain: _Domain,
    now: Metrics,
    epoch_ms: float,
    cores: float | None,
    memory_kib: float | None,
) -> bool:
    """Add the allocation of a VM as far as it is believed; whether the page's own was believed."""
    believed = True
    for name, metric, accepted, size, unit, least in (
        ("cpu", "cpu_alloc", domain.vcpus, cores, 1.0, _USED * domain.usage),
        ("mem", "memory_alloc", domain.memory, memory_kib, KIB_PER_MB, 0.0),
    ):
        largest = float("inf") if size is None else _LARGEST_ALLOCATION * size
        value = now.get(metric)
        accepts = value is not None and accepted.update(value, largest, epoch_ms, least)
        believed = believed and accepts
        # A change that is not believed yet leaves the size before; a missing or impossible one is unknown.
        if value is not None and accepted.value is not None and (accepts or 0 < value <= largest):
            fields[name] = accepted.value / unit
    return believed
