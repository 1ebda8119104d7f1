"""Series of exporters with known rates, for :class:`~tests.support.prometheus.OpenMetrics`."""

from __future__ import annotations

from tests.support.prometheus import OpenMetrics, Value

#: 2024-01-01T00:00:00Z
P0 = 1704067200
GB = 2**30


def after(seconds: float, value: Value, other: Value) -> Value:
    return lambda t: value(t) if t < P0 + seconds else other(t)


def without(start: float, end: float, value: Value) -> Value:
    return lambda t: None if P0 + start <= t < P0 + end else value(t)


def constant(value: float) -> Value:
    return lambda _: value


def growing(rate: float, later: float | None = None, reset_at: float | None = None) -> Value:
    """A counter; its rate changes after an hour, and it starts again at a time."""

    def value(t: float) -> float:
        t -= P0
        total = 5000 + rate * min(t, 3600) + (rate if later is None else later) * max(t - 3600, 0)
        return total if reset_at is None or t < reset_at else 10 + rate * (t - reset_at)

    return value


def add_node(
    page: OpenMetrics,
    instance: str,
    missing: tuple[float, float] = (0, 0),
    reset_at: float | None = None,
    later_gb: float = 16,
) -> None:
    """Four CPUs that use 1.5 cores, in the second hour 2.5, of 16 GB with 12 available; another size half an hour later."""
    for job in ("node", "again"):
        labels = {"instance": instance, "job": job}

        def add(
            name: str, value: Value, own: tuple[tuple[str, str], ...] = (), base: tuple[tuple[str, str], ...] = ()
        ) -> None:
            page.add(name, {**dict(base), **dict(own)}, without(*missing, value))

        base = tuple(labels.items())
        for cpu in range(4):
            modes = {"user": (0.25, 0.5), "system": (0.125, 0.125), "iowait": (0.125, 0.125), "idle": (0.5, 0.25)}
            for mode, (rate, later) in modes.items():
                add(
                    "node_cpu_seconds_total",
                    growing(rate, later, reset_at),
                    (("cpu", str(cpu)), ("mode", mode)),
                    base,
                )
            add("node_cpu_seconds_total", growing(9.0), (("cpu", str(cpu)), ("mode", "guest")), base)
        add("node_uname_info", constant(1), (("nodename", "x"),), base)
        add("node_memory_MemTotal_bytes", after(1800, constant(16 * GB), constant(later_gb * GB)), (), base)
        add("node_memory_MemAvailable_bytes", after(1800, constant(12 * GB), constant((later_gb - 4) * GB)), (), base)


def add_domain(
    page: OpenMetrics,
    instance: str,
    name: str,
    missing: tuple[float, float] = (0, 0),
    vcpus: float = 2,
    rate: float = 0.5,
    ends: float = 10**6,
    **more: Value,
) -> None:
    labels = {"instance": instance, "domain": name}
    for metric, value in {
        "info_virtual_cpus": constant(vcpus),
        "info_maximum_memory_bytes": constant(4 * GB),
        "info_cpu_time_seconds_total": growing(rate),
        "info_vstate": constant(1),
        "memory_stats_actual_balloon_bytes": constant(3 * GB),
        "memory_stats_unused_bytes": constant(1 * GB),
        "memory_stats_available_bytes": constant(2.9 * GB),
        "memory_stats_rss_bytes": constant(2 * GB),
        **more,
    }.items():
        page.add(f"libvirt_domain_{metric}", labels, without(ends, 10**6, without(*missing, value)))
