"""Prometheus metrics of the aggregator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary

from .write_queue import WriteQueue


class AggregatorMetrics:
    """What the aggregator tells of itself to a Prometheus server.

    Parameters
    ----------
    registry : CollectorRegistry
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scrapes = Counter("scroogevm_scrapes", "Scrapes of a node.", ["node"], registry=registry)
        self.failures = Counter(
            "scroogevm_scrape_failures", "Scrapes that brought nothing.", ["node", "reason"], registry=registry
        )
        self.missed = Counter("scroogevm_scrapes_missed", "Scrapes left out: too late.", ["node"], registry=registry)
        self.duration = Summary("scroogevm_scrape_duration_seconds", "Time it took.", ["node"], registry=registry)
        self.up = Gauge("scroogevm_node_up", "1 if the last scrape brought news.", ["node"], registry=registry)
        self.bad_lines = Gauge("scroogevm_page_bad_lines", "Lines that made no sense.", ["node"], registry=registry)

    def watch(self, write_queue: WriteQueue, registry: CollectorRegistry) -> None:
        """Tell of the spool too."""
        for name, words, read in (
            ("written", "Points that the store keeps.", lambda: write_queue.counts().written),
            ("dropped", "Points given up because the queue was full.", lambda: write_queue.counts().dropped),
            ("refused", "Points that the store refused for good.", lambda: write_queue.counts().refused),
            ("queued", "Points that wait for the store.", lambda: write_queue.counts().queued),
        ):
            Gauge(f"scroogevm_points_{name}", words, registry=registry).set_function(read)
