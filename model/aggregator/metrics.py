"""Prometheus metrics of the aggregator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary

from .write_queue import WriteQueue


class AggregatorMetrics:
    """Counters and gauges of scrapes, by node.

    Parameters
    ----------
    registry : CollectorRegistry
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        node = ["node"]
        self.scrapes = Counter("scroogevm_scrapes", "Scrapes of a node.", node, registry=registry)
        self.failures = Counter(
            "scroogevm_scrape_failures", "Scrapes that failed, by reason.", ["node", "reason"], registry=registry
        )
        self.missed = Counter(
            "scroogevm_scrapes_missed", "Scrapes skipped because the one before took too long.", node, registry=registry
        )
        self.throttled = Counter(
            "scroogevm_scrapes_throttled",
            "Scrapes skipped because the node took too much CPU time or sent too much.",
            node,
            registry=registry,
        )
        self.interval = Gauge(
            "scroogevm_scrape_interval_seconds", "Time to the next scrape of a node.", node, registry=registry
        )
        self.cpu = Counter(
            "scroogevm_scrape_cpu_seconds", "CPU time of the scrapes of a node.", node, registry=registry
        )
        self.duration = Summary(
            "scroogevm_scrape_duration_seconds", "Duration of a scrape, failed ones included.", node, registry=registry
        )
        self.unconfirmed = Counter(
            "scroogevm_samples_unconfirmed",
            "Samples without a value that other values of the page do not confirm, by reason.",
            ["node", "reason"],
            registry=registry,
        )
        self.skew = Gauge(
            "scroogevm_node_clock_skew_seconds",
            "Time of the last page minus time of its arrival: the skew of the node's clock, minus the age of the page.",
            node,
            registry=registry,
        )
        self.up = Gauge(
            "scroogevm_node_up",
            "1 if the last scrape succeeded, its page was not stale and the VMs are known, else 0.",
            node,
            registry=registry,
        )
        self.bad_lines = Gauge(
            "scroogevm_page_bad_lines", "Lines of the pages that could not be parsed so far.", node, registry=registry
        )

    def watch(self, write_queue: WriteQueue, registry: CollectorRegistry) -> None:
        """Register gauges of the write queue."""
        for name, documentation, read in (
            ("written", "Points stored.", lambda: write_queue.counts().written),
            (
                "dropped",
                "Points dropped because queue or spool were full or damaged.",
                lambda: write_queue.counts().dropped,
            ),
            ("refused", "Points rejected by the store.", lambda: write_queue.counts().refused),
            ("queued", "Points waiting for the store in RAM.", lambda: write_queue.counts().queued),
            ("spooled", "Points waiting for the store on disk.", lambda: write_queue.counts().spooled),
        ):
            Gauge(f"scroogevm_points_{name}", documentation, registry=registry).set_function(read)
        for name, documentation, read_figure in (
            ("queue_bytes", "Size of what waits in RAM.", lambda: write_queue.counts().queued_bytes),
            ("queue_limit_bytes", "Size beyond which points in RAM are dropped.", lambda: write_queue.most_bytes),
            ("spool_bytes", "Size of what waits on disk.", lambda: write_queue.counts().spooled_bytes),
            (
                "spool_limit_bytes",
                "Size beyond which points on disk are dropped; 0 without a spool.",
                lambda: write_queue.most_spooled_bytes,
            ),
            (
                "backlog_age_seconds",
                "How long the oldest sample has waited for the store; 0 when none waits.",
                lambda: write_queue.backlog_age_s,
            ),
        ):
            Gauge(f"scroogevm_{name}", documentation, registry=registry).set_function(read_figure)
