"""Counters to rates: what an exporter told twice becomes what was used in between.

A rate that can't be known is absent, never 0 and never guessed: at a first sample, after a counter went
backwards, when no time has passed, and for a VM that was not on the page before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ..samples import Metrics, Scrape, ScrapeSample

#: Bytes and kibibytes of a MB.
_MB = 2.0**20

_KIB_PER_MB = 1024.0

_NS_PER_MS = 1e6

#: Counters of a machine: their increase since the last sample is stored under the same name.
_DELTAS = ("sched_runtime", "sched_waittime", "sched_timeslices")

_FAULTS = ("stat_minflt", "stat_majflt", "stat_cminflt", "stat_cmajflt")

_RATIOS = (
    ("cpi", "perf_hwcpucycles", "perf_hwinstructions"),
    ("bmr", "perf_hwbranchmisses", "perf_hwbranchinstructions"),
    ("cmr", "perf_hwcachemisses", "perf_hwcachereferences"),
)

_FREQUENCIES = (("freq", "cpu_freq"), ("minfreq", "cpu_minfreq"), ("maxfreq", "cpu_maxfreq"))

#: How long a guest may take to tell statistics of its new size before the old way of telling is given up, ms.
_SETTLING_MS = 60_000.0

#: How much more than it has a node may seem to have used: clocks and counters are not read at one moment.
_MOST_USAGE = 1.5

#: By how much of a VM's memory what its kernel keeps for itself may differ from one size to another.
_RESERVE_TOLERANCE = 0.01


@dataclass(slots=True)
class _Balloon:
    """What is known of a domain's balloon; KiB, Unix milliseconds."""

    alloc: float
    changed_after_ms: float = float("-inf")
    settled: bool = True
    reserve: float | None = None
    """What the guest's kernel keeps for itself, alloc less available, once statistics and size agreed."""


@dataclass(slots=True)
class NodeRates:
    """Turns the readings of one node, in the order of their arrival, into ticks.

    Parameters
    ----------
    node : str
        Its URL.
    """

    node: str
    _last: Scrape | None = None
    _balloons: dict[str, _Balloon] = field(default_factory=dict)

    def update(self, scrape: Scrape) -> ScrapeSample | None:
        """What is to be stored of a reading; None when it is the last one over again."""
        last = self._last
        if last is not None and last.epoch_ms == scrape.epoch_ms:
            return None
        elapsed_ms = scrape.epoch_ms - last.epoch_ms if last is not None else 0.0
        fields = _node_fields(scrape.node, last.node if last is not None else None, elapsed_ms)
        if fields.get("cpu_usage", 0.0) > _MOST_USAGE * fields.get("cpu", math.inf):
            # More than the node has: its clock was set, and no rate of any machine is known.
            elapsed_ms = 0.0
            fields = _node_fields(scrape.node, None, elapsed_ms)
        domains: dict[str, dict[str, float]] = {}
        for name, metrics in (scrape.domains or {}).items():
            before = (last.domains or {}).get(name) if last is not None else None
            domains[name] = self._domain(name, metrics, before, scrape.epoch_ms, elapsed_ms)
        if scrape.domains is not None:
            _add_sums(fields, domains)
            # Who is not on the page has left: should he return, nothing is known of him.
            self._balloons = {name: self._balloons[name] for name in domains if name in self._balloons}
        self._last = scrape
        return ScrapeSample(self.node, int(scrape.epoch_ms), fields, domains)

    def _domain(
        self, name: str, now: Metrics, before: Metrics | None, epoch_ms: float, elapsed_ms: float
    ) -> dict[str, float]:
        fields: dict[str, float] = {}
        _copy(fields, now, (("cpu", "cpu_alloc"), ("cpu_time", "cpu_cputime")))
        _scaled(fields, now, (("mem", "memory_alloc"), ("mem_rss", "memory_rss")), _KIB_PER_MB)
        usage = self._memory_usage(name, now, epoch_ms)
        if usage is not None:
            fields["mem_usage"] = usage / _KIB_PER_MB
        _copy(fields, now, (("stat_rss_pages", "stat_rss"),))
        _scaled(fields, now, (("stat_rsslim", "stat_rsslim"), ("stat_vsize", "stat_vsize")), _MB)
        _add_performance(fields, now)
        if before is not None and elapsed_ms > 0:
            _add_rates(fields, now, before, elapsed_ms, ("cpu_cputime",), (*_DELTAS, *_FAULTS))
        return fields

    def _memory_usage(self, name: str, now: Metrics, epoch_ms: float) -> float | None:
        """Memory that a guest uses, KiB, or None while nobody knows.

        What is allocated is as of now, what is unused as old as the guest's last statistics: while a balloon
        moves, their difference is of two moments. The statistics are of the new size when they are not older
        than the change and the guest's kernel keeps for itself what it kept before.
        """
        alloc, unused = now.get("memory_alloc"), now.get("memory_unused")
        if alloc is None:
            return None
        balloon = self._balloons.setdefault(name, _Balloon(alloc))
        if balloon.alloc != alloc:
            balloon.alloc, balloon.settled = alloc, False
            balloon.changed_after_ms = self._last.epoch_ms if self._last is not None else epoch_ms
        if unused is None or unused > alloc:
            return None
        # The statistics' stamp has no fractions of a second.
        told_ms = now.get("memory_last_update", epoch_ms / 1000.0) * 1000.0 + 999.0
        reserve = alloc - now["memory_available"] if "memory_available" in now else None
        if not balloon.settled:
            agree = (
                reserve is None
                or balloon.reserve is None
                or abs(reserve - balloon.reserve) <= _RESERVE_TOLERANCE * alloc
                or told_ms > balloon.changed_after_ms + _SETTLING_MS
            )
            balloon.settled = told_ms >= balloon.changed_after_ms and agree
        if not balloon.settled:
            return None
        balloon.reserve = reserve
        return alloc - unused


def _node_fields(now: Metrics, before: Metrics | None, elapsed_ms: float) -> dict[str, float]:
    fields: dict[str, float] = {}
    _copy(fields, now, (("cpu", "cpu_total"), *_FREQUENCIES))
    _scaled(fields, now, (("mem", "memory_total"),), _KIB_PER_MB)
    user, kernel = now.get("cpu_user"), now.get("cpu_kernel")
    if user is not None and kernel is not None:
        fields["cpu_time"] = user + kernel
    total, available = now.get("memory_total"), now.get("memory_available")
    if total is not None and available is not None:
        fields["mem_usage"] = (total - available) / _KIB_PER_MB
    _add_performance(fields, now)
    if before is not None and elapsed_ms > 0:
        fields["elapsed_time"] = elapsed_ms
        _add_rates(fields, now, before, elapsed_ms, ("cpu_user", "cpu_kernel"), _DELTAS)
    return fields


def _add_rates(
    fields: dict[str, float],
    now: Metrics,
    before: Metrics,
    elapsed_ms: float,
    cpu: Iterable[str],
    others: Iterable[str],
) -> None:
    """Add what grew since the last sample; nothing at all when any counter went backwards."""
    grown = {name: now[name] - before[name] for name in (*cpu, *others) if name in now and name in before}
    if any(growth < 0 for growth in grown.values()):
        return
    if all(name in grown for name in cpu):
        fields["elapsed_cpu_time"] = sum(grown[name] for name in cpu)
        fields["cpu_usage"] = fields["elapsed_cpu_time"] / (elapsed_ms * _NS_PER_MS)
    for name in others:
        if name in grown:
            fields[name] = grown[name]
    if "sched_waittime" in grown and "sched_runtime" in grown:
        # Nothing ran: nothing waited for its turn.
        runtime = grown["sched_runtime"]
        fields["sched_busy"] = grown["sched_waittime"] / runtime if runtime > 0 else 0.0


@lru_cache(maxsize=1024)
def _performance_names(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of perf, with and without their section; machines tell the same names over and over."""
    return tuple((name, name.removeprefix("perf_")) for name in names if name.startswith("perf_"))


def _add_performance(fields: dict[str, float], now: Metrics) -> None:
    """The raw counters of perf, which start anew with each of the probe's reads, and their ratios."""
    for name, short in _performance_names(tuple(now)):
        fields[short] = now[name]
    for ratio, above, below in _RATIOS:
        if above in now and now.get(below, 0.0) > 0:
            fields[ratio] = now[above] / now[below]


def _add_sums(fields: dict[str, float], domains: Mapping[str, Metrics]) -> None:
    """What the domains come to together; a sum of which a part is not known is not known."""
    fields["vm_number"] = float(len(domains))
    for name, source, config in (
        ("oc_cpu", "cpu", "cpu"),
        ("oc_mem", "mem", "mem"),
        ("oc_cpu_d", "cpu_usage", "cpu"),
        ("oc_mem_d", "mem_usage", "mem"),
    ):
        total = _sum(domains, source)
        if total is not None and fields.get(config, 0.0) > 0:
            fields[name] = total / fields[config]
    for name, source in (("minflt_sum", "stat_minflt"), ("majflt_sum", "stat_majflt")):
        total = _sum(domains, source)
        if total is not None:
            fields[name] = total


def _sum(domains: Mapping[str, Metrics], name: str) -> float | None:
    values = [metrics.get(name) for metrics in domains.values()]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _copy(fields: dict[str, float], source: Metrics, names: Iterable[tuple[str, str]]) -> None:
    for target, name in names:
        if name in source:
            fields[target] = source[name]


def _scaled(fields: dict[str, float], source: Metrics, names: Iterable[tuple[str, str]], divisor: float) -> None:
    for target, name in names:
        if name in source:
            fields[target] = source[name] / divisor
