"""Reads the pages of node_exporter and of a libvirt exporter, whose metrics have labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from ..samples import Scrape, VcpuTimes
from .contention_metrics import ContentionReader
from .exposition import KIB, NS_PER_S, PageError, require_complete_lines
from .label_lines import LabelledMetrics, LabelLines
from .limits import PageLimits, VmLimit

#: The modes of a core on Linux, and the counter of vmprobe that contains them.
_MODES = {
    **dict.fromkeys(("user", "nice"), "cpu_user"),
    **dict.fromkeys(("system", "irq", "softirq", "steal"), "cpu_kernel"),
    "idle": "cpu_idle",
    "iowait": "cpu_iowait",
}

#: The time of guests, which "user" contains.
_OMITTED_MODES = {"guest", "guest_nice"}

#: States of libvirt of a defined domain that does not run: "shut off" and "crashed".
_OFF = {5.0, 6.0}

_STATES = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")

_MEMORY_STATS = "libvirt_domain_memory_stats"

#: Metrics of KubeVirt's virt-handler. It has a series per vCPU, and no other metric with their number.
_VCPU = "kubevirt_vmi_vcpu_seconds_total"
_KUBEVIRT_MEMORY = "kubevirt_vmi_memory"
_READY = "kubevirt_virt_handler_ready_status"

#: Versions without that metric have a queue of this name.
_QUEUE, _HANDLER = "kubevirt_workqueue_adds_total", "virt-handler-vm"

#: Metrics of vmprobe: the factor to its unit, and the names that exporters use; the first one that exists counts.
_DOMAIN_METRICS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "cpu_alloc": (1.0, ("libvirt_domain_info_virtual_cpus", _VCPU)),
    "cpu_cputime": (
        NS_PER_S,
        ("libvirt_domain_info_cpu_time_seconds_total", "kubevirt_vmi_cpu_usage_seconds_total"),
    ),
    "memory_alloc": (
        1 / KIB,
        (
            f"{_MEMORY_STATS}_actual_balloon_bytes",
            f"{_MEMORY_STATS}_current_balloon_bytes",
            "libvirt_domain_info_memory_usage_bytes",
            "libvirt_domain_info_maximum_memory_bytes",
            f"{_KUBEVIRT_MEMORY}_actual_balloon_bytes",
            f"{_KUBEVIRT_MEMORY}_domain_bytes",
        ),
    ),
    **{
        f"memory_{name}": (
            1 / KIB,
            (
                f"{_MEMORY_STATS}_{name}_bytes",
                f"libvirt_domain_stat_memory_{name}_bytes",
                f"{_KUBEVIRT_MEMORY}_{'resident' if name == 'rss' else name}_bytes",
            ),
        )
        for name in ("rss", "unused", "available", "usable")
    },
}

#: Whether an exporter reached what it reports.
_UP = ("libvirt_up", _READY)

_DOMAIN_NAMES = {*_UP, _QUEUE, *_STATES, *(name for _, names in _DOMAIN_METRICS.values() for name in names)}

_NODE_FIELDS = {
    "node_memory_MemTotal_bytes": "memory_total",
    "node_memory_MemAvailable_bytes": "memory_available",
    "node_time_seconds": "time",
}

_NODE_NAMES = {"node_cpu_seconds_total", *_NODE_FIELDS}

_KUBEVIRT = "kubevirt_"
_KUBEVIRT_PAGE = LabelledMetrics({name for name in _DOMAIN_NAMES if name.startswith(_KUBEVIRT)})
_LIBVIRT_PAGE = LabelledMetrics(_DOMAIN_NAMES - _KUBEVIRT_PAGE.names)
_NODE_PAGE = LabelledMetrics(_NODE_NAMES)


class LabelReader:
    """Reads successive pages of node_exporter and of a libvirt exporter.

    That is kumina's (Debian), Tinkoff's or inovex', or KubeVirt's virt-handler.

    Parameters
    ----------
    limits : PageLimits
    """

    def __init__(self, limits: PageLimits = PageLimits()) -> None:  # noqa: B008  # frozen
        self._lines = LabelLines(limits)
        self._contention = ContentionReader(limits)
        self._vms = VmLimit(limits.vms)
        self._cores: frozenset[str] | None = None

    @property
    def bad_lines(self) -> int:
        """Lines of used metrics that could not be parsed so far."""
        return self._lines.bad_lines + self._contention.bad_lines

    def read(
        self,
        node_page: bytes,
        node_ms: float,
        libvirt_page: bytes | None = None,
        libvirt_ms: float | None = None,
        *,
        problem: str = "",
    ) -> Scrape:
        """The metrics of both pages, with the names and units of vmprobe.

        Parameters
        ----------
        node_page : bytes
        node_ms : float
            The middle of request and answer, Unix milliseconds.
        libvirt_page : bytes or None
            None when the libvirt exporter did not respond; the domains are unknown then.
        libvirt_ms : float or None
            The middle of request and answer, Unix milliseconds.
        problem : str
            Why there is no page of the libvirt exporter.

        Raises
        ------
        PageError
            When the page of the node is truncated or not a page of node_exporter, or one of them is too large.
        """
        require_complete_lines(node_page)
        node = self._read_node(node_page)
        # The time of the page itself is closer to its counters than the times of request and answer.
        epoch_ms = float(round(node.pop("time") * 1000.0 if "time" in node else node_ms))
        contention = self._contention.read_node_page(node_page, node_ms)
        domains = None
        if libvirt_page is not None and (not libvirt_page or libvirt_page.endswith(b"\n")):
            domains, problem = self._read_domains(libvirt_page)
            vcpus = self._read_vcpus(libvirt_page, node_ms if libvirt_ms is None else libvirt_ms)
            contention = replace(contention, vcpus={**contention.vcpus, **vcpus})
        elif libvirt_page:
            problem = "the page is truncated in the middle of a line"
        problem = f"the libvirt exporter does not report them: {problem}" if problem else ""
        return Scrape(epoch_ms, node, domains, node_ms, libvirt_ms, problem, contention)

    def _read_node(self, page: bytes) -> dict[str, float]:
        modes: dict[str, dict[str, float]] = {}
        metrics: dict[str, float] = {}
        for name, labels, value in self._lines.samples(page, _NODE_PAGE):
            if name == "node_cpu_seconds_total":
                mode, of_core = labels.get("mode", ""), modes.setdefault(labels.get("cpu", ""), {})
                # A series that is on the page twice has no value.
                of_core[mode] = math.nan if mode in of_core else value
            else:
                metrics[_NODE_FIELDS[name]] = math.nan if _NODE_FIELDS[name] in metrics else value
        if not modes or "memory_total" not in metrics:
            raise PageError("not a page of node_exporter: no node_cpu_seconds_total or node_memory_MemTotal_bytes")
        metrics = {name: value if name == "time" else value / KIB for name, value in metrics.items()}
        node = {"cpu_total": float(len(modes)), **self._sum_modes(modes), **metrics}
        return {name: value for name, value in node.items() if math.isfinite(value)}

    def _sum_modes(self, modes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """CPU counters of the node, ns; none when a core lacks a mode, or when there are other cores than before."""
        cores = frozenset(modes)
        comparable = self._cores is None or self._cores == cores
        self._cores = cores
        if not comparable or any(_MODES.keys() - of_core.keys() for of_core in modes.values()):
            return {}
        sums = dict.fromkeys(_MODES.values(), 0.0)
        for of_core in modes.values():
            for mode, seconds in of_core.items():
                if mode not in _OMITTED_MODES:
                    sums[_MODES.get(mode, "cpu_kernel")] += seconds * NS_PER_S
        return sums if all(map(math.isfinite, sums.values())) else {}

    def _read_domains(self, page: bytes) -> tuple[dict[str, dict[str, float]] | None, str]:
        """Metrics of the running domains; None, and why, when the exporter could not read them."""
        by_domain: defaultdict[str, dict[str, float]] = defaultdict(dict)
        vcpus: defaultdict[str, set[str]] = defaultdict(set)
        up: dict[str, float] = {}
        # One pattern for the names of both would be slower.
        is_kubevirt = page.startswith(_KUBEVIRT.encode()) or f"\n{_KUBEVIRT}".encode() in page
        pages = (_LIBVIRT_PAGE, _KUBEVIRT_PAGE) if is_kubevirt else (_LIBVIRT_PAGE,)
        for name, labels, value in chain.from_iterable(self._lines.samples(page, metrics) for metrics in pages):
            if name in _UP:
                up[name] = value
            elif name == _QUEUE:
                if labels.get("name") == _HANDLER:
                    up.setdefault(name, 1.0)
            elif (domain := _domain_of(name, labels)) is not None:
                of_domain = by_domain[domain]
                if name == _VCPU:
                    vcpus[domain].add(labels.get("id", ""))
                else:
                    # Two domains with one name: neither has a value.
                    of_domain[name] = math.nan if name in of_domain else value
        for domain, ids in vcpus.items():
            by_domain[domain][_VCPU] = float(len(ids))
        self._vms.check(by_domain.keys())
        # An exporter that fails at one domain omits the following ones and reports libvirt_up 0.
        for name, value in up.items():
            if value == 0.0:
                return None, f"{name} is 0"
        if not up and not by_domain:
            return None, "no metric of libvirt on its page"
        return {domain: _convert(metrics) for domain, metrics in by_domain.items() if _is_running(metrics)}, ""

    def _read_vcpus(self, page: bytes, at_ms: float) -> dict[str, VcpuTimes]:
        kubevirt = self._contention.read_kubevirt(page, at_ms)
        return {**kubevirt, **self._contention.read_vcpus(page, at_ms, "libvirt exporter")}


def _domain_of(name: str, labels: Mapping[str, str]) -> str | None:
    """The name that libvirt uses for the domain of a line; None for a line without one."""
    if not name.startswith(_KUBEVIRT):
        return labels.get("domain")
    if "namespace" in labels and "name" in labels:
        return f"{labels['namespace']}_{labels['name']}"
    return None


def _is_running(metrics: Mapping[str, float]) -> bool:
    """Whether a domain is on the page and not off; it may lack any metric."""
    return not any(metrics.get(state) in _OFF for state in _STATES)


def _convert(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an exporter with the names and units of vmprobe."""
    converted: dict[str, float] = {}
    for metric, (factor, names) in _DOMAIN_METRICS.items():
        for name in names:
            value = metrics.get(name)
            # 0 bytes: the guest does not report this statistic.
            if value is not None and math.isfinite(value) and (value > 0 or not metric.startswith("memory")):
                converted[metric] = value * factor
                break
    return converted
