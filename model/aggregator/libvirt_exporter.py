"""Reads the pages of node_exporter and of a libvirt exporter, whose metrics have labels."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set

from ..samples import Scrape
from .exposition import (
    KIB,
    NS_PER_S,
    VALUE_PATTERN,
    PageError,
    Sample,
    UnusualLines,
    require_complete_lines,
)
from .limits import PageLimits, VmLimit

_USER_MODES = {"user", "nice"}

#: Modes in which a core is idle, and the time of guests, which "user" contains.
_OMITTED_MODES = {"idle", "iowait", "guest", "guest_nice"}

#: States of libvirt of a defined domain that does not run: "shut off" and "crashed".
_OFF = {5.0, 6.0}

_STATES = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")

_MEMORY_STATS = "libvirt_domain_memory_stats"

#: Metrics of vmprobe: the factor to its unit, and the names that exporters use; the first one that exists counts.
_DOMAIN_METRICS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "cpu_alloc": (1.0, ("libvirt_domain_info_virtual_cpus",)),
    "cpu_cputime": (NS_PER_S, ("libvirt_domain_info_cpu_time_seconds_total",)),
    "memory_alloc": (
        1 / KIB,
        (
            f"{_MEMORY_STATS}_actual_balloon_bytes",
            f"{_MEMORY_STATS}_current_balloon_bytes",
            "libvirt_domain_info_memory_usage_bytes",
            "libvirt_domain_info_maximum_memory_bytes",
        ),
    ),
    **{
        f"memory_{name}": (1 / KIB, (f"{_MEMORY_STATS}_{name}_bytes", f"libvirt_domain_stat_memory_{name}_bytes"))
        for name in ("rss", "unused", "available", "usable")
    },
}

_LIBVIRT_NAMES = {"libvirt_up", *_STATES, *(name for _, names in _DOMAIN_METRICS.values() for name in names)}

_NODE_NAMES = {"node_cpu_seconds_total", "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"}

#: Text of a label with its escapes: each character has one way to match, so that the time is linear. The numbers of
#: escapes and of labels limit the memory of the search.
_TEXT = rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*){0,256}'

_LABELS = rb'\{((?:[a-zA-Z_][a-zA-Z0-9_]*="%b",?){0,64})\}' % _TEXT

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="(%b)"' % _TEXT)

_ESCAPE = re.compile(r'\\([\\n"])')


class _Metrics:
    """Metrics to read from a page, and the patterns of their lines.

    Attributes
    ----------
    names : set of str
    encoded : sequence of bytes
    usual : re.Pattern
        Name, labels and value of a line of the usual form.
    starts : re.Pattern
        Start of any line of these metrics.
    """

    def __init__(self, names: Set[str]) -> None:
        self.names = names
        self.encoded = sorted(name.encode() for name in names)
        either = b"|".join(self.encoded)
        self.usual = re.compile(rb"^(%b)(?:%b)? (%b)$" % (either, _LABELS, VALUE_PATTERN), re.MULTILINE)
        self.starts = re.compile(rb"^(?:%b)\b" % either, re.MULTILINE)


_LIBVIRT_METRICS, _NODE_METRICS = _Metrics(_LIBVIRT_NAMES), _Metrics(_NODE_NAMES)


class LabelReader:
    """Reads successive pages of node_exporter and of a libvirt exporter: kumina's (Debian), Tinkoff's or inovex'.

    Parameters
    ----------
    limits : PageLimits

    Attributes
    ----------
    bad_lines : int
        Lines of used metrics that could not be parsed so far.
    """

    def __init__(self, limits: PageLimits = PageLimits()) -> None:  # noqa: B008  # frozen
        self.bad_lines = 0
        self._limits = limits
        self._vms = VmLimit(limits.vms)
        self._cpu_series: frozenset[tuple[str, str]] | None = None

    def read(self, node_page: bytes, libvirt_page: bytes | None, epoch_ms: float) -> Scrape:
        """The metrics of both pages, with the names and units of vmprobe.

        Parameters
        ----------
        node_page : bytes
        libvirt_page : bytes or None
            None when the libvirt exporter did not respond; the domains are unknown then.
        epoch_ms : float
            Time of the requests, Unix milliseconds.

        Raises
        ------
        PageError
            When the page of the node is truncated or not a page of node_exporter, or one of them is too large.
        """
        require_complete_lines(node_page)
        node = self._read_node(node_page)
        truncated = libvirt_page and not libvirt_page.endswith(b"\n")
        domains = None if libvirt_page is None or truncated else self._read_domains(libvirt_page)
        return Scrape(epoch_ms, node, domains)

    def _read_node(self, page: bytes) -> dict[str, float]:
        series: set[tuple[str, str]] = set()
        memory: dict[str, float] = {}
        busy = {"cpu_user": 0.0, "cpu_kernel": 0.0}
        for name, labels, value in self._samples(page, _NODE_METRICS):
            if name == "node_cpu_seconds_total":
                mode = labels.get("mode", "")
                series.add((labels.get("cpu", ""), mode))
                if mode not in _OMITTED_MODES:
                    busy["cpu_user" if mode in _USER_MODES else "cpu_kernel"] += value * NS_PER_S
            else:
                memory["memory_total" if name == "node_memory_MemTotal_bytes" else "memory_available"] = value / KIB
        if not series or "memory_total" not in memory:
            raise PageError("not a page of node_exporter: no node_cpu_seconds_total or node_memory_MemTotal_bytes")
        # Sums over other cores than on the page before have no rate.
        comparable = self._cpu_series is None or self._cpu_series == series
        self._cpu_series = frozenset(series)
        cores = {cpu for cpu, _ in series}
        return {"cpu_total": float(len(cores)), **(busy if comparable else {}), **memory}

    def _read_domains(self, page: bytes) -> dict[str, dict[str, float]] | None:
        """Metrics of the running domains; None when the exporter could not read them."""
        by_domain: defaultdict[str, dict[str, float]] = defaultdict(dict)
        up: float | None = None
        for name, labels, value in self._samples(page, _LIBVIRT_METRICS):
            if name == "libvirt_up":
                up = value
            elif "domain" in labels:
                by_domain[labels["domain"]][name] = value
        self._vms.check(by_domain.keys())
        # An exporter that fails at one domain omits the following ones and reports libvirt_up 0.
        if up == 0.0 or (up is None and not by_domain):
            return None
        return {domain: _convert(metrics) for domain, metrics in by_domain.items() if _is_running(metrics)}

    def _samples(self, page: bytes, metrics: _Metrics) -> Iterator[Sample]:
        """The finite samples of some metrics."""
        self._limits.check_series(page, metrics.encoded)
        matched = 0
        for name, labels, text in metrics.usual.findall(page):
            matched += 1
            try:
                value = float(text)
                pairs = _parse_labels(labels)
            except ValueError:
                self.bad_lines += 1
                continue
            if math.isfinite(value):
                yield name.decode(), pairs, value
        if matched < len(metrics.starts.findall(page)):
            yield from self._unusual_samples(page, metrics)

    def _unusual_samples(self, page: bytes, metrics: _Metrics) -> Iterator[Sample]:
        """The finite samples of lines that the regular expression does not match."""
        unusual_lines = UnusualLines()
        for match in metrics.starts.finditer(page):
            line = page[match.start() : page.find(b"\n", match.start())]
            if metrics.usual.match(line):
                continue
            samples = [sample for sample in unusual_lines.parse(line) if sample[0] in metrics.names]
            self.bad_lines += not samples
            yield from (sample for sample in samples if math.isfinite(sample[2]))


def _parse_labels(labels: bytes) -> dict[str, str]:
    """Names and texts of the labels of a line; raises ValueError when they are not UTF-8."""
    pairs = {key.decode(): text.decode("utf-8") for key, text in _LABEL.findall(labels)}
    if b"\\" in labels:
        return {key: _ESCAPE.sub(_unescape, text) for key, text in pairs.items()}
    return pairs


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def _is_running(metrics: Mapping[str, float]) -> bool:
    return "libvirt_domain_info_virtual_cpus" in metrics and not any(metrics.get(state) in _OFF for state in _STATES)


def _convert(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an exporter with the names and units of vmprobe."""
    converted: dict[str, float] = {}
    for metric, (factor, names) in _DOMAIN_METRICS.items():
        for name in names:
            value = metrics.get(name)
            # 0 bytes: the guest does not report this statistic.
            if value is not None and (value > 0 or not metric.startswith("memory")):
                converted[metric] = value * factor
                break
    return converted
