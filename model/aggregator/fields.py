"""Converts metrics of a machine to stored fields: sizes, levels, rates and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from ..samples import Metrics
from .exposition import NS_PER_MS

#: Counters of a machine; their increase since the last scrape is stored under the same name.
DELTAS = ("sched_runtime", "sched_waittime", "sched_timeslices")

FAULTS = ("stat_minflt", "stat_majflt", "stat_cminflt", "stat_cmajflt")

RATIOS = (
    ("cpi", "perf_hwcpucycles", "perf_hwinstructions"),
    ("bmr", "perf_hwbranchmisses", "perf_hwbranchinstructions"),
    ("cmr", "perf_hwcachemisses", "perf_hwcachereferences"),
)

FREQUENCIES = (("freq", "cpu_freq"), ("minfreq", "cpu_minfreq"), ("maxfreq", "cpu_maxfreq"))

#: Sums over the domains: field, field of a domain, and the size of the node that it is divided by.
_SHARES = (
    ("oc_cpu", "cpu", "cpu"),
    ("oc_mem", "mem", "mem"),
    ("oc_cpu_d", "cpu_usage", "cpu"),
    ("oc_mem_d", "mem_usage", "mem"),
)

_SUMS = (("minflt_sum", "stat_minflt"), ("majflt_sum", "stat_majflt"))

#: How long vCPUs and tasks waited for a CPU, and pressure.
_CONTENTION = ("cpu_wait", "cpu_wait_share", "psi_cpu", "psi_memory", "swap_in", "oom_kills")

#: Fields that are computed; a counter of perf with such a name is not stored.
_RESERVED = {
    *("cpu", "mem", "cpu_time", "cpu_usage", "mem_usage", "mem_rss", "elapsed_time", "elapsed_cpu_time", "sched_busy"),
    *("vm_number", "stat_rss_pages", "stat_rsslim", "stat_vsize"),
    *("samples", "cpu_samples", "mem_samples", "elapsed_min", "elapsed_max"),  # of thinned samples
    *(name for name, *_ in (*RATIOS, *FREQUENCIES, *_SHARES, *_SUMS)),
    *_CONTENTION,
    *DELTAS,
    *FAULTS,
}


def copy_fields(fields: dict[str, float], source: Metrics, names: Iterable[tuple[str, str]]) -> None:
    """Add metrics under the names of fields."""
    for target, name in names:
        if name in source:
            fields[target] = source[name]


def scale_fields(fields: dict[str, float], source: Metrics, names: Iterable[tuple[str, str]], divisor: float) -> None:
    """Add metrics in another unit."""
    for target, name in names:
        if name in source:
            fields[target] = source[name] / divisor


def add_rates(
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
    if cpu and all(name in increases for name in cpu):
        fields["elapsed_cpu_time"] = sum(increases[name] for name in cpu)
        fields["cpu_usage"] = fields["elapsed_cpu_time"] / (elapsed_ms * NS_PER_MS)
    for name in deltas:
        if name in increases:
            fields[name] = increases[name]
    if "sched_waittime" in increases and "sched_runtime" in increases:
        # Without run time there is no wait time.
        runtime = increases["sched_runtime"]
        fields["sched_busy"] = increases["sched_waittime"] / runtime if runtime > 0 else 0.0


@lru_cache(maxsize=1024)
def performance_names(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Metrics of perf that are stored, and their fields: without their section.

    Cached, because the names of machines repeat.
    """
    pairs = ((name, name.removeprefix("perf_")) for name in names if name.startswith("perf_"))
    return tuple((name, short) for name, short in pairs if short not in _RESERVED)


def add_performance(fields: dict[str, float], now: Metrics) -> None:
    """Add the counters of perf, which the probe resets at each read, and their ratios."""
    for name, short in performance_names(tuple(now)):
        fields[short] = now[name]
    for ratio, above, below in RATIOS:
        if above in now and now.get(below, 0.0) > 0:
            fields[ratio] = now[above] / now[below]


def add_sums(fields: dict[str, float], number: int, values_of: Callable[[str], Sequence[float] | None]) -> None:
    """Add sums over the domains; a sum with an unknown part is unknown.

    Parameters
    ----------
    fields : dict of field name to value
    number : int
        Of the domains.
    values_of : callable
        The values of a field of the domains; None when one of them lacks it.
    """
    fields["vm_number"] = float(number)
    for name, source, config in _SHARES:
        values = values_of(source)
        if values is not None and fields.get(config, 0.0) > 0:
            fields[name] = sum(values) / fields[config]
    for name, source in _SUMS:
        values = values_of(source)
        if values is not None:
            fields[name] = sum(values)


def known_values(domains: Mapping[str, Metrics], name: str) -> list[float] | None:
    """The values of a field of the domains; None when one of them lacks it."""
    values = [metrics.get(name) for metrics in domains.values()]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
