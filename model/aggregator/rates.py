"""Computes rates from the counters of two successive scrapes.

An unknown rate is absent, never 0 and never estimated: at the first scrape, after a counter decreased, when no time
has passed, and for a VM that was not on the page before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ..samples import Metrics, Scrape, ScrapeSample
from .exposition import KIB, NS_PER_S

#: Bytes of a MB.
_MB = 2.0**20

_KIB_PER_MB = _MB / KIB

_NS_PER_MS = NS_PER_S / 1e3

#: Counters of a machine; their increase since the last scrape is stored under the same name.
_DELTAS = ("sched_runtime", "sched_waittime", "sched_timeslices")

_FAULTS = ("stat_minflt", "stat_majflt", "stat_cminflt", "stat_cmajflt")

_RATIOS = (
    ("cpi", "perf_hwcpucycles", "perf_hwinstructions"),
    ("bmr", "perf_hwbranchmisses", "perf_hwbranchinstructions"),
    ("cmr", "perf_hwcachemisses", "perf_hwcachereferences"),
)

_FREQUENCIES = (("freq", "cpu_freq"), ("minfreq", "cpu_minfreq"), ("maxfreq", "cpu_maxfreq"))

#: How long after a change of its size a guest may report a different reserve before that is its new reserve, ms.
_SETTLING_MS = 60_000.0

#: Largest plausible usage of a node per capacity; above 1 because clock and counters are not read at the same time.
_MOST_USAGE = 1.5

#: Largest difference between the reserves of a guest at two sizes, as a fraction of its memory.
_RESERVE_TOLERANCE = 0.01


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


@dataclass(slots=True)
class NodeRates:
    """Converts successive scrapes of one node to samples.

    Parameters
    ----------
    node : str
        URL of the node.
    """

    node: str
    _last: Scrape | None = None
    _balloons: dict[str, _Balloon] = field(default_factory=dict)

    def update(self, scrape: Scrape) -> ScrapeSample | None:
        """The sample of a scrape; None when the page is the same as the last one."""
        last = self._last
        if last is not None and last.epoch_ms == scrape.epoch_ms:
            return None
        elapsed_ms = scrape.epoch_ms - last.epoch_ms if last is not None else 0.0
        fields = _node_fields(scrape.node, last.node if last is not None else None, elapsed_ms)
        if fields.get("cpu_usage", 0.0) > _MOST_USAGE * fields.get("cpu", math.inf):
            # More than the node has: its clock was set, and all rates are unknown.
            elapsed_ms = 0.0
            fields = _node_fields(scrape.node, None, elapsed_ms)
        domains: dict[str, dict[str, float]] = {}
        for name, metrics in (scrape.domains or {}).items():
            before = (last.domains or {}).get(name) if last is not None else None
            domains[name] = self._domain(name, metrics, before, scrape.epoch_ms, elapsed_ms)
        if scrape.domains is not None:
            _add_sums(fields, domains)
            # A domain missing from the page is gone; if it returns, start fresh.
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
        """Memory that a guest uses, alloc - unused, KiB; None while it is unknown.

        The allocation is current, the unused memory is as old as the last statistics of the guest: while a balloon
        moves, their difference is meaningless. The statistics are of the new size when they are not older than
        the change and the guest's kernel has the same reserve as before.
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
        # The time of the statistics is in whole seconds.
        updated_ms = now.get("memory_last_update", epoch_ms / 1000.0) * 1000.0 + 999.0
        reserve = alloc - now["memory_available"] if "memory_available" in now else None
        if not balloon.settled:
            agree = (
                reserve is None
                or balloon.reserve is None
                or abs(reserve - balloon.reserve) <= _RESERVE_TOLERANCE * alloc
                or updated_ms > balloon.changed_after_ms + _SETTLING_MS
            )
            balloon.settled = updated_ms >= balloon.changed_after_ms and agree
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
    deltas: Iterable[str],
) -> None:
    """Add the increases of counters and the CPU usage; nothing when any counter decreased."""
    increases = {name: now[name] - before[name] for name in (*cpu, *deltas) if name in now and name in before}
    if any(increase < 0 for increase in increases.values()):
        return
    if all(name in increases for name in cpu):
        fields["elapsed_cpu_time"] = sum(increases[name] for name in cpu)
        fields["cpu_usage"] = fields["elapsed_cpu_time"] / (elapsed_ms * _NS_PER_MS)
    for name in deltas:
        if name in increases:
            fields[name] = increases[name]
    if "sched_waittime" in increases and "sched_runtime" in increases:
        # Without run time there is no wait time.
        runtime = increases["sched_runtime"]
        fields["sched_busy"] = increases["sched_waittime"] / runtime if runtime > 0 else 0.0


@lru_cache(maxsize=1024)
def _performance_names(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Metrics of perf with and without their section; cached, because the names of machines repeat."""
    return tuple((name, name.removeprefix("perf_")) for name in names if name.startswith("perf_"))


def _add_performance(fields: dict[str, float], now: Metrics) -> None:
    """Add the counters of perf, which the probe resets at each read, and their ratios."""
    for name, short in _performance_names(tuple(now)):
        fields[short] = now[name]
    for ratio, above, below in _RATIOS:
        if above in now and now.get(below, 0.0) > 0:
            fields[ratio] = now[above] / now[below]


def _add_sums(fields: dict[str, float], domains: Mapping[str, Metrics]) -> None:
    """Add sums over the domains; a sum with an unknown part is unknown."""
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
