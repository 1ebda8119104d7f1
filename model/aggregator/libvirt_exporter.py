"""Parses the pages of node_exporter and of libvirt exporters."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..samples import Scrape
from .exposition import KIB, MOST_UNUSUAL_LINES, NS_PER_S, VALUE_PATTERN, PageError, Sample, parse_line

# --- node_exporter and libvirt exporters ------------------------------------------------------------

_USER_MODES = {"user", "nice"}

#: Idle is not used, waiting for a disk neither, and a guest's time is in user already.
_MODES_LEFT_OUT = {"idle", "iowait", "guest", "guest_nice"}

#: libvirt's "shut off" and "crashed": defined, but not there.
_OFF = {5.0, 6.0}

_STATES = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")

#: How the exporters in use call a figure, and by what it is multiplied to be vmprobe's. The first one found counts.
_DOMAIN_METRICS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "cpu_alloc": (1.0, ("libvirt_domain_info_virtual_cpus",)),
    "cpu_cputime": (NS_PER_S, ("libvirt_domain_info_cpu_time_seconds_total",)),
    "memory_alloc": (
        1 / KIB,
        (
            "libvirt_domain_memory_stats_actual_balloon_bytes",
            "libvirt_domain_memory_stats_current_balloon_bytes",
            "libvirt_domain_info_memory_usage_bytes",
            "libvirt_domain_info_maximum_memory_bytes",
        ),
    ),
    "memory_rss": (1 / KIB, ("libvirt_domain_memory_stats_rss_bytes", "libvirt_domain_stat_memory_rss_bytes")),
    "memory_unused": (
        1 / KIB,
        ("libvirt_domain_memory_stats_unused_bytes", "libvirt_domain_stat_memory_unused_bytes"),
    ),
    "memory_available": (
        1 / KIB,
        ("libvirt_domain_memory_stats_available_bytes", "libvirt_domain_stat_memory_available_bytes"),
    ),
    "memory_usable": (
        1 / KIB,
        ("libvirt_domain_memory_stats_usable_bytes", "libvirt_domain_stat_memory_usable_bytes"),
    ),
}

_LIBVIRT_NAMES = {"libvirt_up", *_STATES, *(name for _, names in _DOMAIN_METRICS.values() for name in names)}

_NODE_NAMES = {"node_cpu_seconds_total", "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"}

_LABELLED = re.compile(
    rb'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*",?)*)\})? (%b)$' % VALUE_PATTERN,
    re.MULTILINE,
)

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"')


@dataclass(slots=True)
class LabelPages:
    """Reads the pages of node_exporter and of a libvirt exporter: kumina's (Debian), Tinkoff's or inovex'.

    Attributes
    ----------
    bad_lines : int
        Lines of interest that could not be read so far.
    """

    bad_lines: int = 0
    _series: frozenset[tuple[str, str]] | None = None

    def read(self, node_page: bytes, libvirt_page: bytes | None, epoch_ms: float) -> Scrape:
        """What the pages of one scrape tell.

        Parameters
        ----------
        node_page : bytes
        libvirt_page : bytes or None
            None when the exporter did not answer: nothing is known of the domains then.
        epoch_ms : float
            When they were asked for, Unix milliseconds.

        Raises
        ------
        PageError
            When the node's page is empty or not node_exporter's.
        """
        if not node_page.endswith(b"\n"):
            raise PageError("the page is cut off in the middle of a line")
        node = self._node(node_page)
        whole = libvirt_page is not None and (libvirt_page.endswith(b"\n") or not libvirt_page)
        domains = self._domains(libvirt_page) if libvirt_page is not None and whole else None
        return Scrape(epoch_ms, node, domains)

    def _node(self, page: bytes) -> dict[str, float]:
        series: set[tuple[str, str]] = set()
        metrics: dict[str, float] = {}
        busy = {"cpu_user": 0.0, "cpu_kernel": 0.0}
        for name, labels, value in self._interesting(page, _NODE_NAMES):
            if name == "node_cpu_seconds_total":
                mode = labels.get("mode", "")
                series.add((labels.get("cpu", ""), mode))
                if mode not in _MODES_LEFT_OUT:
                    busy["cpu_user" if mode in _USER_MODES else "cpu_kernel"] += value * NS_PER_S
            elif name == "node_memory_MemTotal_bytes":
                metrics["memory_total"] = value / KIB
            else:
                metrics["memory_available"] = value / KIB
        if not series or "memory_total" not in metrics:
            raise PageError("not a page of node_exporter: no node_cpu_seconds_total or node_memory_MemTotal_bytes")
        before, self._series = self._series, frozenset(series)
        cores = {cpu for cpu, _ in series}
        if before is not None and before != self._series:
            # A core went or came: sums over others than last time have no rate.
            return {"cpu_total": float(len(cores)), **metrics}
        return {"cpu_total": float(len(cores)), **busy, **metrics}

    def _domains(self, page: bytes) -> dict[str, dict[str, float]] | None:
        """The domains that run, or None when the exporter itself had nothing to tell."""
        figures: dict[str, dict[str, float]] = defaultdict(dict)
        up: float | None = None
        for name, labels, value in self._interesting(page, _LIBVIRT_NAMES):
            if name == "libvirt_up":
                up = value
            elif "domain" in labels:
                figures[labels["domain"]][name] = value
        # An exporter that stops at the first failing domain says so here, and shows the others as gone.
        if up == 0.0 or (up is None and not figures):
            return None
        return {
            domain: _as_vmprobe(found)
            for domain, found in figures.items()
            if "libvirt_domain_info_virtual_cpus" in found and not any(found.get(state) in _OFF for state in _STATES)
        }

    def _interesting(self, page: bytes, names: set[str]) -> Iterator[Sample]:
        """The finite samples of some metrics."""
        wanted = {name.encode() for name in names}
        seen = 0
        for name, labels, text in _LABELLED.findall(page):
            if name in wanted:
                seen += 1
                try:
                    value = float(text)
                    pairs = {key.decode(): label.decode("utf-8") for key, label in _LABEL.findall(labels)}
                except ValueError:
                    self.bad_lines += 1
                    continue
                if math.isfinite(value):
                    yield name.decode(), pairs, value
        starts = re.compile(rb"^(?:%b)\b" % b"|".join(sorted(wanted)), re.MULTILINE)
        if seen < len(starts.findall(page)):
            yield from self._unusual(page, names, starts)

    def _unusual(self, page: bytes, names: set[str], starts: re.Pattern[bytes]) -> Iterator[Sample]:
        looked_at = 0
        for line in page.split(b"\n"):
            if starts.match(line) and not _LABELLED.match(line):
                looked_at += 1
                if looked_at > MOST_UNUSUAL_LINES:
                    self.bad_lines += 1
                    continue
                found = [sample for sample in parse_line(line) if sample[0] in names]
                self.bad_lines += not found
                yield from (sample for sample in found if math.isfinite(sample[2]))


def _as_vmprobe(found: Mapping[str, float]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for metric, (factor, names) in _DOMAIN_METRICS.items():
        for name in names:
            value = found.get(name)
            # 0 bytes stand for statistics that a guest does not give.
            if value is not None and (value > 0 or not metric.startswith("memory")):
                metrics[metric] = value * factor
                break
    return metrics
