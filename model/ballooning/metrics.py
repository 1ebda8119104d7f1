"""Prometheus metrics of the ballooning daemon."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .host_controller import BallooningCounts
from .journal import Journal


class BallooningMetrics(Collector):
    """What the daemon tells of itself to a Prometheus server."""

    def __init__(self, counts: BallooningCounts, journal: Journal) -> None:
        self._counts = counts
        self._journal = journal

    def collect(self) -> Iterable[Metric]:
        """All metrics, as they are now."""
        counts = self._counts
        for name, words, value in (
            ("balloon_sessions", "Pressure sessions that were begun.", counts.sessions),
            ("balloon_reclaimed_bytes", "Fewer resident at the end of sessions.", counts.reclaimed_mb * 2**20),
            ("balloon_restores", "Times that memory was given back.", counts.restores),
            ("balloon_give_ups", "Those of them because something was wrong.", counts.gave_up),
        ):
            yield CounterMetricFamily(f"scroogevm_{name}", words, value=value)
        squeezed = len(self._journal.sessions())
        yield GaugeMetricFamily("scroogevm_balloon_squeezed_vms", "VMs that are squeezed now.", value=squeezed)
        errors = CounterMetricFamily("scroogevm_balloon_errors", "Calls to a host that failed.", labels=["host"])
        for host, number in dict(counts.errors).items():
            errors.add_metric([host], number)
        up = GaugeMetricFamily("scroogevm_balloon_host_up", "1 if the host answered last time.", labels=["host"])
        for host, answers in dict(counts.up).items():
            up.add_metric([host], float(answers))
        yield from (errors, up)
