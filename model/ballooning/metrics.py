"""Prometheus metrics of the ballooning daemon."""

from __future__ import annotations

from collections.abc import Iterable

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
    """

    def __init__(self, counts: BallooningCounts, journal: Journal) -> None:
        self._counts = counts
        self._journal = journal

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
        squeezed = sum(not session.restored_s for session in self._journal.sessions().values())
        yield GaugeMetricFamily("scroogevm_balloon_squeezed_vms", "VMs squeezed now.", value=squeezed)
        errors = CounterMetricFamily("scroogevm_balloon_errors", "Failed calls to a host.", labels=["host"])
        for host, number in dict(counts.errors).items():
            errors.add_metric([host], number)
        up = GaugeMetricFamily("scroogevm_balloon_host_up", "1 if the host answered the last call.", labels=["host"])
        for host, answered in dict(counts.up).items():
            up.add_metric([host], float(answered))
        yield from (errors, up)
