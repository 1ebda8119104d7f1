"""The estimator's figures for a Prometheus server, in base units: cores, bytes, seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..slices import CPU, MEMORY, Resource
from ..status import NodeStatus, State

if TYPE_CHECKING:
    from .placement.reconciler import PlacementCounts


@dataclass(slots=True)
class EstimatorCounts:
    """What the estimator tells of itself."""

    slices: int = 0
    failures: int = 0
    publications: int = 0
    publication_failures: int = 0
    lateness_s: float = 0.0
    """From the end of the last slice until all nodes that could be read had been."""


_STATES: tuple[State, ...] = ("ok", "stale", "unknown")

#: By resource: its name and its unit in a metric's name, its name in a sentence, how many base units one of ours is.
_WORDS = {CPU: ("cpu", "cores", "CPU", 1.0), MEMORY: ("memory", "bytes", "memory", 2.0**20)}


class EstimatorMetrics(Collector):
    """What was published last, and how the estimator fares.

    Parameters
    ----------
    registry : CollectorRegistry
    counts : EstimatorCounts
    placement : callable, optional
        Tells how OpenStack Placement is kept up to date, where it is.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        counts: EstimatorCounts,
        placement: Callable[[], PlacementCounts] | None = None,
    ) -> None:
        self._statuses: Sequence[NodeStatus] = ()
        self._counts = counts
        self._placement = placement
        registry.register(self)

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Show these from now on."""
        self._statuses = tuple(statuses)

    def collect(self) -> Iterable[Metric]:
        """All metrics, as they are now."""
        yield from self._states()
        for resource in (CPU, MEMORY):
            yield from self._figures(resource)
        yield from self._own()
        if self._placement is not None:
            yield from _of_placement(self._placement())

    def _states(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "scroogevm_node_state",
            "1 for the state of a node's figures: ok, stale or unknown.",
            labels=["node", "state"],
        )
        end = GaugeMetricFamily(
            "scroogevm_node_slice_end_timestamp_seconds", "End of the slice that the figures are of.", labels=["node"]
        )
        for status in self._statuses:
            for name in _STATES:
                state.add_metric([status.node, name], float(status.state == name))
            if not math.isnan(status.slice_end_s):
                end.add_metric([status.node], status.slice_end_s)
        yield from (state, end)

    def _figures(self, resource: Resource) -> Iterator[Metric]:
        name, units, called, unit = _WORDS[resource]
        words, what = f"{name}_{units}", f"{called} in {units}"
        free, config, booked, tier, other, ratio, aim, violation_rate = (
            GaugeMetricFamily(f"scroogevm_node_{kind}", text, labels=["node", *labels])
            for kind, text, labels in (
                (f"free_{words}", f"Published as free, {what}.", []),
                (f"config_{words}", f"What the node has, {what}.", []),
                (f"booked_{words}", f"Promised to its VMs, {what}.", []),
                (f"tier_{words}", f"0 used, 1 between, 2 free, {what}.", ["tier"]),
                (f"strategy_free_{words}", f"What each strategy would publish, {what}.", ["strategy"]),
                (f"{name}_oversubscription_ratio", f"(booked + free) / config, {called}.", []),
                (f"{name}_risk_target_ratio", f"Share of promises that may be broken, {called}.", []),
                (f"{name}_risk_realised_ratio", f"Share of the last 100 promises that was broken, {called}.", []),
            )
        )
        for status in self._statuses:
            said = status.of(resource)
            free.add_metric([status.node], said.free * unit)
            for strategy, amount in said.others.items():
                other.add_metric([status.node, strategy], amount * unit)
            if said.last is None:
                continue
            config.add_metric([status.node], said.last.config * unit)
            booked.add_metric([status.node], said.last.booked * unit)
            ratio.add_metric([status.node], said.ratio)
            for family, share in ((aim, said.last.risk), (violation_rate, said.last.violation_rate)):
                if share is not None:
                    family.add_metric([status.node], share)
            if said.state == "ok":
                for i, amount in enumerate((said.last.tier0, said.last.tier1, said.last.tier2)):
                    tier.add_metric([status.node, str(i)], amount * unit)
        yield from (free, config, booked, tier, other, ratio, aim, violation_rate)

    def _own(self) -> Iterator[Metric]:
        for name, text, value in (
            ("slices", "Slices of single nodes that were estimated.", self._counts.slices),
            ("slice_failures", "Attempts at a node that brought nothing.", self._counts.failures),
            ("publications", "Publications to status file, metrics and Placement.", self._counts.publications),
            ("publication_failures", "Publications that failed.", self._counts.publication_failures),
        ):
            yield CounterMetricFamily(f"scroogevm_{name}", text, value=value)
        yield GaugeMetricFamily(
            "scroogevm_slice_lateness_seconds",
            "From the end of the last slice until all nodes that could be read were published.",
            value=self._counts.lateness_s,
        )


def _of_placement(counts: PlacementCounts) -> Iterator[Metric]:
    yield CounterMetricFamily("scroogevm_placement_updates", "Inventories written.", value=counts.updates)
    yield CounterMetricFamily(
        "scroogevm_placement_conflicts", "Writes that came too late and were tried again.", value=counts.conflicts
    )
    failures = CounterMetricFamily(
        "scroogevm_placement_failures", "Nodes that were not brought up to date.", labels=["reason"]
    )
    for reason, number in counts.failures.items():
        failures.add_metric([reason], number)
    yield failures
