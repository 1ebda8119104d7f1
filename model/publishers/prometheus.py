"""The estimator's metrics for Prometheus, in base units: cores, bytes, seconds, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..slices import CPU, MEMORY, RESOURCES, Resource
from ..status import NodeStatus, ResourceStatus, State

if TYPE_CHECKING:
    from .placement.reconciler import PlacementCounts


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """What the nodes have learnt from each other, by name of the resource.

    Attributes
    ----------
    level : mapping of str to float
        Caution, standard deviations.
    common : mapping of str to float
        Correlation of the VMs.
    full_share : mapping of str to float
        Share of full nodes in the slice that was closed last; without the resources of which nothing was measured.
    """

    level: Mapping[str, float]
    common: Mapping[str, float]
    full_share: Mapping[str, float]


@dataclass(slots=True)
class EstimatorCounts:
    """Totals of the estimator since its start."""

    slices: int = 0
    failures: int = 0
    publications: int = 0
    publication_failures: int = 0
    lateness_s: float = 0.0
    """From the end of the last slice until every readable node was estimated."""
    fleet: FleetFigures | None = None
    """None when the nodes are no fleet."""


@dataclass(frozen=True, slots=True)
class _BaseUnit:
    """A resource in metrics: its part of the name, its base unit, and base units in one unit of the models."""

    name: str
    unit: str
    scale: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """A value of a node, with the value of the metric's own label if it has one."""

    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class _NodeMetric:
    """A metric per node and resource.

    Attributes
    ----------
    name : str
        After ``scroogevm_node_``; ``{name}`` and ``{unit}`` stand for those of the resource.
    help : str
        ``{title}`` and ``{unit}`` stand for those of the resource.
    samples : callable
        Of a resource; amounts in units of the models.
    label : str
        Beside ``node``; empty for none.
    is_amount : bool
        Whether values are amounts, which are converted to base units, and not ratios.
    """

    name: str
    help: str
    samples: Callable[[ResourceStatus], Iterable[_Sample]]
    label: str = ""
    is_amount: bool = True


def _free(status: ResourceStatus) -> Iterator[_Sample]:
    yield _Sample(status.free)


def _config(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None:
        yield _Sample(status.last.config)


def _booked(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None:
        yield _Sample(status.last.booked)


def _booked_now(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None:
        yield _Sample(status.last.booked_now)


def _tiers(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.state == "ok":
        for i, amount in enumerate((status.last.tier0, status.last.tier1, status.last.tier2)):
            yield _Sample(amount, str(i))


def _by_strategy(status: ResourceStatus) -> Iterator[_Sample]:
    for strategy, amount in status.others.items():
        yield _Sample(amount, strategy)


def _oversubscription(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None:
        yield _Sample(status.ratio)


def _target_risk(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.last.risk is not None:
        yield _Sample(status.last.risk)


def _violation_rate(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.last.violation_rate is not None:
        yield _Sample(status.last.violation_rate)


def _forecast_violation_rate(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.last.forecast_violation_rate is not None:
        yield _Sample(status.last.forecast_violation_rate)


def _unguarded(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.last.unguarded is not None and status.state == "ok":
        yield _Sample(status.last.unguarded)


def _limits(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None and status.state == "ok":
        for guard, left in status.last.limits.items():
            yield _Sample(max(left, 0.0), guard)


def _closed(status: ResourceStatus) -> Iterator[_Sample]:
    if status.last is not None:
        yield _Sample(float(status.last.closed))


_STATES: tuple[State, ...] = ("ok", "stale", "unknown")

_BASE_UNITS = {CPU: _BaseUnit("cpu", "cores", 1.0), MEMORY: _BaseUnit("memory", "bytes", 2.0**20)}

_VIOLATION_RATE = (
    "Violation rate of the last 100 slices: share in which the node was full or more was used than was left, {title}."
)

_NODE_METRICS = (
    _NodeMetric("free_{name}_{unit}", "Published free, {title} in {unit}.", _free),
    _NodeMetric("config_{name}_{unit}", "Configuration of the node, {title} in {unit}.", _config),
    _NodeMetric("booked_{name}_{unit}", "Allocated to the VMs of the slice, {title} in {unit}.", _booked),
    _NodeMetric(
        "booked_now_{name}_{unit}", "Allocated to the VMs at the end of the slice, {title} in {unit}.", _booked_now
    ),
    _NodeMetric("tier_{name}_{unit}", "Tiers: 0 used, 1 between, 2 free, {title} in {unit}.", _tiers, "tier"),
    _NodeMetric(
        "strategy_free_{name}_{unit}",
        "What each strategy computes as free, {title} in {unit}.",
        _by_strategy,
        "strategy",
    ),
    _NodeMetric(
        "{name}_oversubscription_ratio", "(booked now + free) / config, {title}.", _oversubscription, is_amount=False
    ),
    _NodeMetric(
        "{name}_risk_target_ratio",
        "Target risk: share of slices in which more than published may be used, {title}.",
        _target_risk,
        is_amount=False,
    ),
    # The former name of the next one.
    _NodeMetric("{name}_risk_realised_ratio", _VIOLATION_RATE, _violation_rate, is_amount=False),
    _NodeMetric("{name}_violation_ratio", _VIOLATION_RATE, _violation_rate, is_amount=False),
    _NodeMetric(
        "{name}_forecast_violation_ratio",
        "Share of the last 100 slices in which the strategy's own figure was exceeded, {title}.",
        _forecast_violation_rate,
        is_amount=False,
    ),
    _NodeMetric(
        "unguarded_free_{name}_{unit}", "What would be published without guards, {title} in {unit}.", _unguarded
    ),
    _NodeMetric(
        "guard_left_{name}_{unit}",
        "What a guard that lowered the figure left of it, {title} in {unit}.",
        _limits,
        "guard",
    ),
    _NodeMetric(
        "{name}_closed",
        "1 while what VMs leave is not offered again, because the node has less than nothing free: {title}.",
        _closed,
        is_amount=False,
    ),
)


class EstimatorMetrics(Collector):
    """Publishes the status of all nodes, and the estimator's own counts, as metrics.

    Parameters
    ----------
    registry : CollectorRegistry
    counts : EstimatorCounts
    placement : callable, optional
        Returns the counts of OpenStack Placement, if it is in use.
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
        """Replace the statuses."""
        self._statuses = tuple(statuses)

    def collect(self) -> Iterable[Metric]:
        """All metrics with their present values."""
        statuses = self._statuses
        yield from _state_metrics(statuses)
        yield from _contention_metrics(statuses)
        for resource in RESOURCES:
            for metric in _NODE_METRICS:
                yield _node_metric(metric, resource, statuses)
        yield from _estimator_metrics(self._counts)
        if self._counts.fleet is not None:
            yield from _fleet_metrics(self._counts.fleet)
        if self._placement is not None:
            yield from _placement_metrics(self._placement())


def _state_metrics(statuses: Sequence[NodeStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "scroogevm_node_state", "1 for the present state of the node: ok, stale or unknown.", labels=["node", "state"]
    )
    end = GaugeMetricFamily(
        "scroogevm_node_slice_end_timestamp_seconds", "End of the slice of the published figures.", labels=["node"]
    )
    for status in statuses:
        for name in _STATES:
            state.add_metric([status.node, name], float(status.state == name))
        if not math.isnan(status.slice_end_s):
            end.add_metric([status.node], status.slice_end_s)
    yield from (state, end)


def _contention_metrics(statuses: Sequence[NodeStatus]) -> Iterator[Metric]:
    level = GaugeMetricFamily(
        "scroogevm_contention_level",
        "How much the VMs of the node suffer from the lack of a resource: 0 not, 1 some, 2 high.",
        labels=["node", "resource"],
    )
    waiting = GaugeMetricFamily(
        "scroogevm_waiting_vms", "VMs of the node that wait for CPU longer than the threshold.", labels=["node"]
    )
    worst = GaugeMetricFamily(
        "scroogevm_vm_wait_share_max",
        "The largest share of its runnable time that a VM of the node waits for CPU; 0 below the threshold.",
        labels=["node"],
    )
    for status in statuses:
        for resource in RESOURCES:
            if status.of(resource).state == "ok":
                labels = [status.node, _BASE_UNITS[resource].name]
                level.add_metric(labels, float(status.of(resource).contention.level))
        if status.cpu.state == "ok":
            waiting.add_metric([status.node], float(status.cpu.contention.waiting))
            worst.add_metric([status.node], status.cpu.contention.worst)
    yield from (level, waiting, worst)


def _node_metric(metric: _NodeMetric, resource: Resource, statuses: Sequence[NodeStatus]) -> Metric:
    base = _BASE_UNITS[resource]
    family = GaugeMetricFamily(
        "scroogevm_node_" + metric.name.format(name=base.name, unit=base.unit),
        metric.help.format(title=resource.title, unit=base.unit),
        labels=["node", metric.label] if metric.label else ["node"],
    )
    scale = base.scale if metric.is_amount else 1.0
    for status in statuses:
        for sample in metric.samples(status.of(resource)):
            labels = [status.node, sample.label] if metric.label else [status.node]
            family.add_metric(labels, sample.value * scale)
    return family


def _estimator_metrics(counts: EstimatorCounts) -> Iterator[Metric]:
    for name, text, value in (
        ("slices", "Slices estimated, summed over all nodes.", counts.slices),
        ("slice_failures", "Failed attempts to estimate a node.", counts.failures),
        ("publications", "Publications to the status file, the metrics and Placement.", counts.publications),
        ("publication_failures", "Failed publications.", counts.publication_failures),
    ):
        yield CounterMetricFamily(f"scroogevm_{name}", text, value=value)
    yield GaugeMetricFamily(
        "scroogevm_slice_lateness_seconds",
        "From the end of the last slice until every readable node was published.",
        value=counts.lateness_s,
    )


def _fleet_metrics(figures: FleetFigures) -> Iterator[Metric]:
    for name, text, by_resource in (
        ("level", "Caution of the fleet, standard deviations; above 0 where nodes are full too often.", figures.level),
        ("full_share", "Share of the nodes that were full in the last closed slice.", figures.full_share),
        ("common", "By which share VMs together use more than the sum of their means.", figures.common),
    ):
        family = GaugeMetricFamily(f"scroogevm_fleet_{name}", text, labels=["resource"])
        for resource in RESOURCES:
            if resource.name in by_resource:
                family.add_metric([_BASE_UNITS[resource].name], by_resource[resource.name])
        yield family


def _placement_metrics(counts: PlacementCounts) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "scroogevm_placement_updates", "Inventories written to OpenStack Placement.", value=counts.updates
    )
    yield CounterMetricFamily(
        "scroogevm_placement_conflicts",
        "Writes repeated because the resource provider had changed.",
        value=counts.conflicts,
    )
    failures = CounterMetricFamily(
        "scroogevm_placement_failures", "Failed updates of a node's resource provider.", labels=["reason"]
    )
    for reason, number in counts.failures.items():
        failures.add_metric([reason], number)
    yield failures
    yield CounterMetricFamily(
        "scroogevm_placement_foreign_writes",
        "Ratios that another process had written over those of ScroogeVM.",
        value=counts.foreign_writes,
    )
    nodes = GaugeMetricFamily(
        "scroogevm_placement_nodes",
        "Nodes whose ratio is kept, that are left alone, and whose last update failed.",
        labels=["state"],
    )
    for state, number in counts.nodes.items():
        nodes.add_metric([state], number)
    yield nodes
