"""Computes samples from the counters of successive scrapes.

An unknown rate is absent, never 0 and never estimated: at the first scrape, after a counter decreased, when no time
has passed, for a VM that was not on the page before, and when other figures of the page do not confirm it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ..attribution import NodeAttribution, ResourceUsage, Unknown
from ..machine_table import TableLayout
from ..samples import Contention, Metrics, Scrape, ScrapeSample
from .confirmation import TOLERANCE, CpuGrowth, confirm_cpu
from .domain_columns import DomainColumns
from .domain_rates import DomainRates, DomainUpdate
from .exposition import NS_PER_MS, NS_PER_S
from .fields import DELTAS, FREQUENCIES, add_performance, add_rates, add_sums, copy_fields, known_values
from .node_clock import sample_time_ms
from .sizes import NodeSizes
from .unconfirmed import Unconfirmed
from .waits import DomainWaits, add_node_contention, add_probe_wait

#: By how much the CPU time of the VMs may exceed the busy time of their node: they are not read at the same time.
_VMS_TOLERANCE = 0.1
_VMS_READ_S = 0.1


class RatesUpdate(NamedTuple):
    """The outcome of one scrape.

    Attributes
    ----------
    sample : ScrapeSample or None
        None when the page is the same as the last one.
    problems : list of Unconfirmed
        What the sample lacks although the page has it.
    """

    sample: ScrapeSample | None
    problems: list[Unconfirmed]


#: Fields of the domains of a scrape.
_DomainFields = DomainColumns | dict[str, dict[str, float]]


class _Page(NamedTuple):
    """Metrics of a node, and their time."""

    metrics: Metrics
    epoch_ms: float
    contention: Contention | None = None


@dataclass(slots=True)
class NodeRates:
    """Converts successive scrapes of one node to samples.

    Parameters
    ----------
    node : str
        URL of the node.
    recall : callable
        The last stored sample of the node in which its VMs are known, if there is one. Called with the first page.
    """

    node: str
    recall: Callable[[], ScrapeSample | None] = lambda: None
    _epoch_ms: float | None = None
    _confirmed: _Page | None = None
    _latest: _Page | None = None
    _sizes: NodeSizes = field(default_factory=NodeSizes)
    _domains: DomainRates = field(default_factory=DomainRates)
    _waits: DomainWaits = field(default_factory=DomainWaits)
    _attribution: NodeAttribution = field(default_factory=NodeAttribution)
    _layout: TableLayout | None = None

    def update(self, scrape: Scrape) -> RatesUpdate:
        """The sample of a scrape.

        Raises
        ------
        ClockBehind
            When the page is too old to be used.
        """
        if self._epoch_ms == scrape.epoch_ms:
            return RatesUpdate(None, [])
        time_ms, clock_problem = sample_time_ms(scrape)
        problems = [] if clock_problem is None else [clock_problem]
        if self._epoch_ms is None:
            self._start_from(self.recall())
        last_ms = self._epoch_ms
        fields, before = self._node(scrape, problems)
        domains: Mapping[str, Metrics] = {}
        if scrape.domains is None:
            problems.append(Unconfirmed("vms", scrape.problem or "unknown"))
        else:
            at_ms = scrape.epoch_ms if scrape.domains_ms is None else scrape.domains_ms
            # The counters of the node contradict the time of the page, which is also the time of its VMs.
            rated = scrape.domains_ms is not None or all(problem.reason != "cpu_time" for problem in problems)
            sizes = (self._sizes.cores, self._sizes.memory_kib)
            updated = self._domains.update(scrape.domains, at_ms, *sizes, rated=rated)
            problems += updated.problems
            vcpus = {} if scrape.contention is None else scrape.contention.vcpus
            problems += self._waits.add(updated.fields, scrape.domains, vcpus, at_ms)
            if before is not None and before.epoch_ms == last_ms and "cpu_usage" in fields:
                self._compare_with_vms(fields, updated, problems)
            if self._attribute(fields, updated.fields, problems):
                domains = self._add_sums(fields, updated.fields)
        if before is not None and "cpu_usage" in fields:
            problems += _add_contention(fields, scrape, before)
        self._epoch_ms = scrape.epoch_ms
        return RatesUpdate(ScrapeSample(self.node, time_ms, fields, domains), problems)

    def _node(self, scrape: Scrape, problems: list[Unconfirmed]) -> tuple[dict[str, float], _Page | None]:
        """Fields of the node without sums and contention, and the page from which its rates are computed."""
        now = scrape.node
        fields: dict[str, float] = {}
        copy_fields(fields, now, FREQUENCIES)
        add_performance(fields, now)
        if "cpu_user" in now and "cpu_kernel" in now:
            fields["cpu_time"] = now["cpu_user"] + now["cpu_kernel"]
        before, growth = self._grow(scrape)
        if growth.problem is not None:
            problems.append(growth.problem)
        if before is not None and growth.busy_ns is not None:
            elapsed_ms = scrape.epoch_ms - before.epoch_ms
            add_rates(fields, now, before.metrics, elapsed_ms, ("cpu_user", "cpu_kernel"), DELTAS)
            if "cpu_usage" in fields:
                fields["elapsed_time"] = elapsed_ms
        booted = growth.problem is not None and growth.problem.reason == "cpu_reset"
        at_ms = scrape.epoch_ms if scrape.received_ms is None else scrape.received_ms
        sizes, size_problems = self._sizes.update(now, at_ms, booted=booted)
        problems += size_problems
        return fields | sizes, before

    def _grow(self, scrape: Scrape) -> tuple[_Page | None, CpuGrowth]:
        """The growth of the counters since the last page that was confirmed, else since the latest page.

        After pages that are not confirmed, the rate covers the time since the page before them.
        """
        page = _Page(scrape.node, scrape.epoch_ms, scrape.contention)
        latest, self._latest = self._latest, page
        growth = CpuGrowth(None)
        for before in (self._confirmed, latest):
            if before is None or before.epoch_ms >= page.epoch_ms:
                continue
            growth = confirm_cpu(page.metrics, before.metrics, page.epoch_ms - before.epoch_ms)
            if growth.still:
                # Counters that a cache repeats continue from the scrape at which they last changed.
                self._latest = latest
                return before, growth
            if growth.busy_ns is not None:
                self._confirmed = page
                return before, growth
            if growth.problem is not None and growth.problem.reason == "cpu_reset":
                break
        if growth.problem is None or growth.problem.reason == "cpu_reset":
            # The first page, or the first one after a boot.
            self._confirmed = page
        return None, growth

    def _start_from(self, sample: ScrapeSample | None) -> None:
        """Continue from the last stored sample: a page may have become wrong while nothing was scraped."""
        if sample is not None:
            self._domains.start(sample.domains)
            self._attribution.accept(*_usages(sample.fields, sample.domains))

    def _add_sums(self, fields: dict[str, float], vms: _DomainFields) -> Mapping[str, Metrics]:
        """Add the sums over the VMs; the fields of the VMs as they are stored."""
        if isinstance(vms, DomainColumns):
            add_sums(fields, len(vms.machines), vms.values)
            table = vms.table(self._layout)
            self._layout = table.layout
            return table
        add_sums(fields, len(vms), partial(known_values, vms))
        return vms

    def _attribute(self, fields: dict[str, float], vms: _DomainFields, problems: list[Unconfirmed]) -> bool:
        """Compare the usage of the VMs with that of the node; False when the VMs are unknown.

        The usage of VMs that stopped while the node did not is removed.
        """
        unknown = self._attribution.compare(*_usages(fields, vms))
        if unknown is Unknown.VMS:
            problems.append(Unconfirmed("vms", "unknown: some vanished from the page, the node uses as much as before"))
            return False
        if unknown is Unknown.VMS_CPU:
            _remove(vms, ("cpu_usage", "elapsed_cpu_time", "cpu_wait", "cpu_wait_share"))
            problems.append(Unconfirmed("vms_cpu", "unknown: it fell, the node is as busy as before"))
        return True

    def _compare_with_vms(self, fields: dict[str, float], updated: DomainUpdate, problems: list[Unconfirmed]) -> None:
        """Remove the CPU usage of the node when its VMs alone used more: then it is too low."""
        busy_ns, elapsed_ms = fields["elapsed_cpu_time"], fields["elapsed_time"]
        cores = self._sizes.cores or 0.0
        margin_ns = cores * (TOLERANCE * elapsed_ms * NS_PER_MS + _VMS_READ_S * NS_PER_S)
        if updated.cpu_ns > (1 + _VMS_TOLERANCE) * busy_ns + margin_ns:
            del fields["cpu_usage"], fields["elapsed_cpu_time"], fields["elapsed_time"]
            seconds = elapsed_ms / 1000
            message = (
                f"the VMs used {updated.cpu_ns / NS_PER_S / seconds:.1f} cores, the node only "
                f"{busy_ns / NS_PER_S / seconds:.1f}: its usage is unknown"
            )
            problems.append(Unconfirmed("cpu_vms", message))


def _usages(fields: Metrics, vms: DomainColumns | Mapping[str, Metrics]) -> tuple[ResourceUsage, ResourceUsage]:
    """What a node and its VMs use of CPU and memory."""
    return (
        ResourceUsage(fields.get("cpu_usage"), _known(vms, "cpu_usage"), fields.get("cpu", 0.0)),
        ResourceUsage(fields.get("mem_usage"), _known(vms, "mem_rss"), fields.get("mem", 0.0)),
    )


def _known(vms: DomainColumns | Mapping[str, Metrics], field_name: str) -> Mapping[str, float | None]:
    """A field of the VMs by name; None where it is unknown."""
    if isinstance(vms, DomainColumns):
        return vms.known(field_name)
    return {name: vm.get(field_name) for name, vm in vms.items()}


def _remove(vms: _DomainFields, names: Sequence[str]) -> None:
    """Remove fields of all VMs."""
    if isinstance(vms, DomainColumns):
        vms.remove(names)
        return
    for vm in vms.values():
        for name in names:
            vm.pop(name, None)


def _add_contention(fields: dict[str, float], scrape: Scrape, before: _Page) -> list[Unconfirmed]:
    """Add how long the tasks of a node waited, from the pages that give its CPU usage."""
    problems: list[Unconfirmed] = []
    contention = scrape.contention
    if contention is not None and before.contention is not None:
        delay_s = scrape.node.get("probe_delay", 0.0) / 1000.0
        problems += add_node_contention(fields, contention, before.contention, delay_s)
    if contention is None or not contention.queue:
        problems += add_probe_wait(fields, scrape.node, before.metrics)
    return problems
