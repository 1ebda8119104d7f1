"""Reads from any page how long tasks and vCPUs waited: metrics of node_exporter, libvirt exporters and KubeVirt.

The metrics are few lines of a long page, and node_exporter sorts its page. The lines are found by their first text,
and only the part of the page between the first and the last of them is parsed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ..samples import Contention, VcpuTimes
from .exposition import Sample, UnusualLines
from .label_lines import LabelledMetrics, LabelLines
from .limits import PageLimits

_TIME = "node_time_seconds"

#: Counters of the node: their names here.
_NODE = {
    "node_pressure_cpu_waiting_seconds_total": "psi_cpu",
    "node_pressure_memory_stalled_seconds_total": "psi_memory",
    "node_vmstat_pswpin": "swap_in",
    "node_vmstat_oom_kill": "oom_kills",
}
_QUEUE = "node_schedstat_waiting_seconds_total"

_LIBVIRT_WAIT, _LIBVIRT_RUN = "libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total"
_KUBEVIRT_WAIT, _KUBEVIRT_RUN = "kubevirt_vmi_vcpu_delay_seconds_total", "kubevirt_vmi_vcpu_seconds_total"

#: Names by the text with which they begin.
_Groups = Mapping[bytes, LabelledMetrics]
_NODE_GROUPS: _Groups = {
    b"node_pressure_": LabelledMetrics({name for name in _NODE if "pressure" in name}),
    b"node_schedstat_waiting": LabelledMetrics({_QUEUE}),
    b"node_time_": LabelledMetrics({_TIME}),
    b"node_vmstat_": LabelledMetrics({name for name in _NODE if "vmstat" in name}),
}
_LIBVIRT_GROUPS: _Groups = {b"libvirt_domain_vcpu_": LabelledMetrics({_LIBVIRT_WAIT, _LIBVIRT_RUN})}
_KUBEVIRT_GROUPS: _Groups = {b"kubevirt_vmi_vcpu_": LabelledMetrics({_KUBEVIRT_WAIT, _KUBEVIRT_RUN})}


class ContentionReader:
    """Reads the metrics of contention from successive pages of one node.

    Parameters
    ----------
    limits : PageLimits

    Attributes
    ----------
    bad_lines : int
        Lines of these metrics that could not be parsed so far.
    """

    def __init__(self, limits: PageLimits) -> None:
        self._lines = LabelLines(limits)

    @property
    def bad_lines(self) -> int:
        """Lines of these metrics that could not be parsed so far."""
        return self._lines.bad_lines

    def read_node_page(self, page: bytes, otherwise_ms: float) -> Contention:
        """The metrics on a page of node_exporter, those that a textfile adds included.

        Parameters
        ----------
        page : bytes
        otherwise_ms : float
            Time of the page if it does not have its own, Unix milliseconds.

        Raises
        ------
        LimitError
        """
        counters: dict[str, float] = {}
        queue: dict[str, float] = {}
        for name, labels, value in self._samples(page, _NODE_GROUPS):
            # A series that is on the page twice has no value.
            if name == _QUEUE:
                cpu = labels.get("cpu", "")
                queue[cpu] = math.nan if cpu in queue else value
            else:
                counters[name] = math.nan if name in counters else value
        time_s = counters.pop(_TIME, math.nan)
        at_ms = otherwise_ms if math.isnan(time_s) else time_s * 1000.0
        node = {_NODE[name]: value for name, value in counters.items()}
        return Contention(at_ms, node, queue, self.read_vcpus(page, at_ms, "node_exporter"))

    def read_vcpus(self, page: bytes, at_ms: float, source: str) -> dict[str, VcpuTimes]:
        """The times of vCPUs by domain, as libvirt reports them.

        Parameters
        ----------
        page : bytes
            Of a libvirt exporter or of node_exporter.
        at_ms : float
            Time of the page, Unix milliseconds.
        source : str
            Name of the page.

        Raises
        ------
        LimitError
        """
        samples = (
            (name == _LIBVIRT_WAIT, labels["domain"], labels["vcpu"], value)
            for name, labels, value in self._samples(page, _LIBVIRT_GROUPS)
            if "domain" in labels and "vcpu" in labels
        )
        return _by_domain(samples, at_ms, source)

    def read_kubevirt(self, page: bytes, at_ms: float) -> dict[str, VcpuTimes]:
        """The times of vCPUs on a page of KubeVirt's virt-handler, by the names that libvirt uses for the domains.

        Raises
        ------
        LimitError
        """
        samples = (
            (name == _KUBEVIRT_WAIT, f"{labels['namespace']}_{labels['name']}", labels["id"], value)
            for name, labels, value in self._samples(page, _KUBEVIRT_GROUPS)
            if "namespace" in labels and "name" in labels and "id" in labels
        )
        return _by_domain(samples, at_ms, "virt-handler")

    def _samples(self, page: bytes, groups: _Groups) -> Iterator[Sample]:
        unusual_lines = UnusualLines()
        for start, metrics in groups.items():
            part = _part(page, start)
            if part:
                yield from self._lines.samples(part, metrics, unusual_lines)


def names_of_probe(vcpus: Mapping[str, VcpuTimes]) -> dict[str, VcpuTimes]:
    """The times of vCPUs by the names that vmprobe gives to the domains; without those that share a name.

    The probe deletes "-" from names.
    """
    by_name: defaultdict[str, list[VcpuTimes]] = defaultdict(list)
    for domain, times in vcpus.items():
        by_name[domain.replace("-", "")].append(times)
    return {name: found[0] for name, found in by_name.items() if len(found) == 1}


def _part(page: bytes, start: bytes) -> bytes:
    """The lines from the first to the last one that begins with a text; empty if there is none."""
    first = 0 if page.startswith(start) else page.find(b"\n" + start) + 1
    if not first and not page.startswith(start):
        return b""
    last = max(page.rfind(b"\n" + start), 0)
    return page[first : page.find(b"\n", last + 1) + 1]


def _by_domain(samples: Iterator[tuple[bool, str, str, float]], at_ms: float, source: str) -> dict[str, VcpuTimes]:
    """Collect samples of (waits, domain, vCPU, seconds); a series that is on the page twice has no value."""
    waits: defaultdict[str, dict[str, float]] = defaultdict(dict)
    runs: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for is_wait, domain, vcpu, seconds in samples:
        of_domain = (waits if is_wait else runs)[domain]
        of_domain[vcpu] = math.nan if vcpu in of_domain else seconds
    return {domain: VcpuTimes(source, at_ms, wait, runs.get(domain, {})) for domain, wait in waits.items()}
