"""How long a node and its domains waited, from the history of a Prometheus server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from model.numerics import FloatArray

_WAIT, _RUN = "libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total"

#: As in the aggregator: a wait or a share of time may be larger than possible by this much, counters that stand still
#: while so many cores were used are old, and a queue is no longer.
_MOST_WAIT = 1.1
_MOST_SHARE = 1.05
_MOST_RUN = 2.0
_BUSY_CORES = 0.05
_LONGEST_QUEUE = 1000.0

#: Returns series by domain.
Query = Callable[[str], Mapping[str, FloatArray]]


def node_contention(
    query: Callable[[str], FloatArray], label: str, rate_s: int, step_s: int, cpu: FloatArray, usage: FloatArray
) -> dict[str, FloatArray]:
    """Pressure, waits and memory trouble of a node.

    Parameters
    ----------
    query : callable
        Returns (n,) float64: one series.
    label : str
        Matcher of node_exporter.
    rate_s, step_s : int
        Window of rates, and a step.
    cpu, usage : (n,) float64
        Cores of the node and used ones.

    Returns
    -------
    dict of field name to (n,) float64
        ``oom_kills`` is the number per step.
    """

    def rate(metric: str) -> FloatArray:
        return query(f"max(rate({metric}{{{label}}}[{rate_s}s]))")

    fields = {
        "psi_cpu": _share(rate("node_pressure_cpu_waiting_seconds_total")),
        "psi_memory": _share(rate("node_pressure_memory_stalled_seconds_total")),
        "swap_in": rate("node_vmstat_pswpin"),
        "oom_kills": rate("node_vmstat_oom_kill") * step_s,
    }
    wait = query(f"sum(max by (cpu) (rate(node_schedstat_waiting_seconds_total{{{label}}}[{rate_s}s])))")
    is_old = (wait == 0) & (usage > _BUSY_CORES)
    fields["cpu_wait"] = np.where(is_old | (wait > _LONGEST_QUEUE * cpu), np.nan, wait)
    return fields


def _share(rate: FloatArray) -> FloatArray:
    return np.where(rate > _MOST_SHARE, np.nan, np.minimum(rate, 1.0))


@dataclass(frozen=True, slots=True)
class DomainContention:
    """Rates of the vCPUs of domains.

    Attributes
    ----------
    waits, runs, numbers : mapping of domain to (n,) float64
        Sums of waiting and running, cores, and the number of vCPUs that wait.
    """

    waits: Mapping[str, FloatArray]
    runs: Mapping[str, FloatArray]
    numbers: Mapping[str, FloatArray]

    @classmethod
    def read(cls, query: Query, libvirt_label: str, node_label: str, rate_s: int) -> DomainContention:
        """Read the rates from the libvirt exporter, otherwise from node_exporter, which may serve a textfile."""

        def rates(metric: str) -> str:
            by_vcpu = [
                f"max by (domain, vcpu) (rate({metric}{{{label}}}[{rate_s}s]))" for label in (libvirt_label, node_label)
            ]
            return f"by (domain) ({' or '.join(by_vcpu)})"

        return cls(query(f"sum {rates(_WAIT)}"), query(f"sum {rates(_RUN)}"), query(f"count {rates(_WAIT)}"))

    def fields(self, domain: str, vcpus: FloatArray, usage: FloatArray) -> dict[str, FloatArray]:
        """``cpu_wait`` and ``cpu_wait_share`` of a domain; NaN where its figures contradict each other.

        Parameters
        ----------
        domain : str
        vcpus, usage : (n,) float64
            vCPUs of the domain and cores that it used.
        """
        if domain not in self.waits:
            return {}
        wait, run = self.waits[domain], self.runs.get(domain, usage)
        contradicts = (
            (self.numbers[domain] != vcpus)
            | (wait > _MOST_WAIT * vcpus)
            | (run > _MOST_RUN * usage + _BUSY_CORES * vcpus)
            | (((wait == 0) | (run == 0)) & (usage > _BUSY_CORES))
        )
        wait = np.where(contradicts | np.isnan(usage), np.nan, wait)
        with np.errstate(invalid="ignore"):
            share = np.where(wait == 0, 0.0, wait / (wait + run))
        return {"cpu_wait": wait, "cpu_wait_share": share}
