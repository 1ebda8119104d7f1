"""Prometheus metrics of the ballooning daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .counts import BallooningCounts
from .journal import Journal


class BallooningMetrics(Collector):
    """Collects the metrics of the daemon at each scrape.

    Parameters
    ----------
    counts : BallooningCounts
    journal : Journal
    wall_clock : callable
        Unix seconds.
    """

    def __init__(self, counts: BallooningCounts, journal: Journal, wall_clock: Callable[[], float] = time.time) -> None:
        self._counts = counts
        self._journal = journal
        self._wall_clock = wall_clock

    def collect(self) -> Iterable[Metric]:
        """All metrics with their current values."""
        counts = self._counts
        for name, description, value in (
            ("balloon_sessions", "Pressure sessions started.", counts.sessions),
            (
                "balloon_reclaimed_bytes",
                "Decrease of resident memory at the end of sessions.",
                counts.reclaimed_mb * 2**20,
            ),
            ("balloon_restores", "Guests restored.", counts.restores),
            ("balloon_give_ups", "Guests restored because their session failed.", counts.gave_up),
            (
                "balloon_probable_kills",
                "Sessions in which the guest probably killed a process for lack of memory.",
                counts.killed,
            ),
        ):
            yield CounterMetricFamily(f"scroogevm_{name}", description, value=value)
        # A session whose guest has its memory again waits for the guest's last report.
        squeezed = [session for session in self._journal.sessions().values() if not session.restored_s]
        yield GaugeMetricFamily("scroogevm_balloon_squeezed_vms", "VMs squeezed now.", value=len(squeezed))
        up = {host: float(answered) for host, answered in dict(counts.up).items()}
        # Hosts without an error have a 0, so that Prometheus sees the first one as an increase.
        none = dict.fromkeys(up, 0.0)
        now_s = self._wall_clock()
        overdue = none | dict.fromkeys((session.host for session in squeezed), 0.0)
        for session in squeezed:
            overdue[session.host] = max(overdue[session.host], now_s - session.until_s)
        yield from (
            _by_host(CounterMetricFamily, "errors", "Failed calls to a host.", none | dict(counts.errors)),
            _by_host(
                CounterMetricFamily,
                "restore_failures",
                "Failed calls that should have restored a guest.",
                none | dict(counts.restore_failures),
            ),
            _by_host(
                GaugeMetricFamily,
                "overdue_seconds",
                "Time since the latest end of a session whose guest is still squeezed, the largest of a host.",
                overdue,
            ),
            _by_host(GaugeMetricFamily, "host_up", "1 if the host answered the last call.", up),
        )


def _by_host(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, text: str, values: Mapping[str, float]
) -> Metric:
    family = kind(f"scroogevm_balloon_{name}", text, labels=["host"])
    for host, value in values.items():
        family.add_metric([host], value)
    return family
