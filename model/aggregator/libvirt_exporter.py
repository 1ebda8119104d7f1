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

_NODE_FIELDS = {
    "node_memory_MemTotal_bytes": "memory_total",
    "node_memory_MemAvailable_bytes": "memory_available",
    "node_time_seconds": "time",
}

_NODE_NAMES = {"node_cpu_seconds_total", *_NODE_FIELDS}

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


_LIBVIRT_PAGE, _NODE_PAGE = _Metrics(_LIBVIRT_NAMES), _Metrics(_NODE_NAMES)


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
        self._cores: frozenset[str] | None = None

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
        epoch_ms = node.pop("time") * 1000.0 if "time" in node else node_ms
        domains = None
        if libvirt_page is not None and (not libvirt_page or libvirt_page.endswith(b"\n")):
            domains, problem = self._read_domains(libvirt_page)
        elif libvirt_page:
            problem = "the page is truncated in the middle of a line"
        problem = f"the libvirt exporter does not report them: {problem}" if problem else ""
        return Scrape(float(round(epoch_ms)), node, domains, node_ms, libvirt_ms, problem)

    def _read_node(self, page: bytes) -> dict[str, float]:
        modes: dict[str, dict[str, float]] = {}
        metrics: dict[str, float] = {}
        for name, labels, value in self._samples(page, _NODE_PAGE):
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
        up: float | None = None
        for name, labels, value in self._samples(page, _LIBVIRT_PAGE):
            if name == "libvirt_up":
                up = value
            elif "domain" in labels:
                of_domain = by_domain[labels["domain"]]
                # Two domains with one name: neither has a value.
                of_domain[name] = math.nan if name in of_domain else value
        self._vms.check(by_domain.keys())
        # An exporter that fails at one domain omits the following ones and reports libvirt_up 0.
        if up == 0.0:
            return None, "libvirt_up is 0"
        if up is None and not by_domain:
            return None, "no metric of libvirt on its page"
        return {domain: _convert(metrics) for domain, metrics in by_domain.items() if _is_running(metrics)}, ""

    def _samples(self, page: bytes, metrics: _Metrics) -> Iterator[Sample]:
        """The samples of some metrics; NaN where a value is invalid or not finite."""
        self._limits.check_series(page, metrics.encoded)
        matched = 0
        for name, labels, text in metrics.usual.findall(page):
            matched += 1
            try:
                pairs = _parse_labels(labels)
            except ValueError:
                self.bad_lines += 1
                continue
            try:
                value = float(text)
            except ValueError:
                self.bad_lines += 1
                value = math.nan
            yield name.decode(), pairs, value if math.isfinite(value) else math.nan
        if matched < len(metrics.starts.findall(page)):
            yield from self._unusual_samples(page, metrics)

    def _unusual_samples(self, page: bytes, metrics: _Metrics) -> Iterator[Sample]:
        """The samples of lines that the regular expression does not match."""
        unusual_lines = UnusualLines()
        for match in metrics.starts.finditer(page):
            line = page[match.start() : page.find(b"\n", match.start())]
            if metrics.usual.match(line):
                continue
            samples = [sample for sample in unusual_lines.parse(line) if sample[0] in metrics.names]
            self.bad_lines += not samples
            for name, labels, value in samples:
                yield name, labels, value if math.isfinite(value) else math.nan


def _parse_labels(labels: bytes) -> dict[str, str]:
    """Names and texts of the labels of a line; raises ValueError when they are not UTF-8."""
    pairs = {key.decode(): text.decode("utf-8") for key, text in _LABEL.findall(labels)}
    if b"\\" in labels:
        return {key: _ESCAPE.sub(_unescape, text) for key, text in pairs.items()}
    return pairs


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


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
