"""Computes samples from the counters of successive scrapes.

An unknown rate is absent, never 0 and never estimated: at the first scrape, after a counter decreased, when no time
has passed, for a VM that was not on the page before, and when other figures of the page do not confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..samples import Metrics, Scrape, ScrapeSample
from .confirmation import TOLERANCE, confirm_cpu
from .domain_rates import DomainRates, DomainUpdate
from .exposition import NS_PER_MS, NS_PER_S
from .fields import DELTAS, FREQUENCIES, add_performance, add_rates, add_sums, copy_fields
from .node_clock import sample_time_ms
from .sizes import NodeSizes
from .unconfirmed import Unconfirmed

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


@dataclass(slots=True)
class NodeRates:
    """Converts successive scrapes of one node to samples.

    Parameters
    ----------
    node : str
        URL of the node.
    """

    node: str
    _epoch_ms: float | None = None
    _before: Metrics | None = None
    _before_ms: float = 0.0
    _sizes: NodeSizes = field(default_factory=NodeSizes)
    _domains: DomainRates = field(default_factory=DomainRates)

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
        follows = self._before_ms == self._epoch_ms
        fields, elapsed_ms = self._node(scrape, problems)
        domains: dict[str, dict[str, float]] = {}
        if scrape.domains is None:
            problems.append(Unconfirmed("vms", scrape.problem or "unknown"))
        elif not scrape.domains and self._domains.vanish(fields.get("cpu_usage")):
            problems.append(Unconfirmed("vms", "unknown: all vanished from the page, the node is as busy as before"))
        else:
            at_ms = scrape.epoch_ms if scrape.domains_ms is None else scrape.domains_ms
            # The counters of the node contradict the time of the page, which is also the time of its VMs.
            rated = scrape.domains_ms is not None or all(problem.reason != "cpu_time" for problem in problems)
            sizes = (self._sizes.cores, self._sizes.memory_kib)
            updated = self._domains.update(scrape.domains, at_ms, *sizes, rated=rated)
            domains = updated.fields
            problems += updated.problems
            if follows and "cpu_usage" in fields:
                self._compare_with_vms(fields, updated, elapsed_ms, problems)
            add_sums(fields, domains)
        self._epoch_ms = scrape.epoch_ms
        return RatesUpdate(ScrapeSample(self.node, time_ms, fields, domains), problems)

    def _node(self, scrape: Scrape, problems: list[Unconfirmed]) -> tuple[dict[str, float], float]:
        """Fields of the node without sums, and the time since the scrape that rates are computed from, ms."""
        now, before = scrape.node, self._before
        elapsed_ms = scrape.epoch_ms - self._before_ms if before is not None else 0.0
        fields: dict[str, float] = {}
        copy_fields(fields, now, FREQUENCIES)
        add_performance(fields, now)
        if "cpu_user" in now and "cpu_kernel" in now:
            fields["cpu_time"] = now["cpu_user"] + now["cpu_kernel"]
        booted = still = False
        if before is not None and elapsed_ms > 0:
            growth = confirm_cpu(now, before, elapsed_ms)
            still = growth.still
            if growth.problem is not None:
                problems.append(growth.problem)
                booted = growth.problem.reason == "cpu_reset"
            if growth.busy_ns is not None:
                add_rates(fields, now, before, elapsed_ms, ("cpu_user", "cpu_kernel"), DELTAS)
            if "cpu_usage" in fields:
                fields["elapsed_time"] = elapsed_ms
        at_ms = scrape.epoch_ms if scrape.received_ms is None else scrape.received_ms
        sizes, size_problems = self._sizes.update(now, at_ms, booted=booted)
        fields |= sizes
        problems += size_problems
        if not still:
            # Counters that a cache repeats continue from the scrape at which they last changed.
            self._before, self._before_ms = now, scrape.epoch_ms
        return fields, elapsed_ms

    def _compare_with_vms(
        self, fields: dict[str, float], updated: DomainUpdate, elapsed_ms: float, problems: list[Unconfirmed]
    ) -> None:
        """Remove the CPU usage of the node when its VMs alone used more: then it is too low."""
        busy_ns = fields["elapsed_cpu_time"]
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
