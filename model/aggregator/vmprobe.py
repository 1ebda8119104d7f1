"""Reads the pages of a vmprobe: fast path, else parser and completeness check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..machine_table import MachineTable
from ..samples import Contention, Metrics, Scrape
from .contention_metrics import ContentionReader, names_of_probe
from .exposition import PageError, require_complete_lines
from .limits import PageLimits, VmLimit
from .vmprobe_completeness import CompletenessCheck
from .vmprobe_layout import PageLayout, page_layout
from .vmprobe_names import NameCache, PageNames, Place, UsedMetrics
from .vmprobe_page import ParsedPage, parse_page

#: Metrics that each page has; a page without them is truncated.
_NODE_METRICS = ("probe_epoch", "cpu_total", "cpu_user", "cpu_kernel", "memory_total", "memory_available")

#: A domain without any of these has just started, and libvirt does not report it yet.
_DOMAIN_METRICS = {"cpu_alloc", "cpu_cputime", "memory_alloc"}

#: Valid times of a probe, Unix milliseconds: 1970 to 2100.
_EARLIEST_MS, _LATEST_MS = 0.0, 4.1e12


class VmprobeReader:
    """Reads successive pages of one vmprobe.

    Parameters
    ----------
    prefix : str
        Prefix of all metric names.
    limits : PageLimits
    """

    def __init__(self, prefix: str, limits: PageLimits = PageLimits()) -> None:  # noqa: B008  # frozen
        self.prefix = prefix
        self._bad_lines = 0
        self._contention = ContentionReader(limits)
        self._limits = limits
        self._vms = VmLimit(limits.vms)
        self._names = NameCache(f"{prefix}_".encode())
        self._metrics = UsedMetrics()
        self._completeness = CompletenessCheck(f"{prefix}_".encode())
        self._layout: PageLayout | None = None

    @property
    def bad_lines(self) -> int:
        """Lines of used metrics that could not be parsed so far."""
        return self._bad_lines + self._contention.bad_lines

    def read(self, page: bytes, received_ms: float | None = None) -> Scrape:
        """The metrics of a page.

        Parameters
        ----------
        page : bytes
        received_ms : float, optional
            The middle of request and answer, Unix milliseconds.

        Raises
        ------
        PageError
            When the page is empty, truncated, too large or not a page of vmprobe.
        """
        layout = self._layout
        metrics = None if layout is None else layout.parse(page)
        if layout is None or metrics is None or not _is_time(metrics.node["probe_epoch"]):
            return self._read_with_parser(page, received_ms)
        self._completeness.accept()
        contention = None
        if not layout.is_plain:
            contention = self._read_contention(page, metrics.node["probe_epoch"], received_ms)
        return Scrape(metrics.node["probe_epoch"], *metrics, received_ms, contention=contention)

    def _read_with_parser(self, page: bytes, received_ms: float | None) -> Scrape:
        self._limits.check_series(page, [f"{self.prefix}_".encode()])
        parsed = parse_page(page, self.prefix)
        self._bad_lines += parsed.bad_lines
        if not parsed.values:
            found = "has one valid value" if parsed.unreadable else "on the page"
            raise PageError(f"no metric of prefix {self.prefix!r} {found}")
        require_complete_lines(page)
        all_places = self._names.split((*parsed.values, *parsed.unreadable))
        places = self._metrics.select(all_places)
        self._vms.check({place[0] for place in places.values() if place is not None and place[0] is not None})
        packed = self._names.before if places == all_places else None
        self._completeness.check(places, parsed.values.get(b"global_probe_epoch", 0.0), packed)
        machines = _group(parsed, places)
        node = machines[None]
        for name in _NODE_METRICS:
            if name not in node:
                raise PageError(f"the page is truncated: global_{name} is missing")
        if not _is_time(node["probe_epoch"]):
            raise PageError(f"the clock of the probe shows {node['probe_epoch']:g}, which is not a valid time")
        domains: Mapping[str, Metrics] = {name: metrics for name, metrics in machines.items() if name is not None}
        names = list(parsed.values)
        of_names = map(places.__getitem__, names)
        text = self._names.before.text if isinstance(self._names.before, PageNames) else b""
        self._layout = None if parsed.unreadable else page_layout(page, self.prefix, names, of_names, domains, text)
        metrics = None if self._layout is None else self._layout.parse(page)
        if metrics is not None:
            # The same in less memory.
            domains = MachineTable(metrics.domains.layout, metrics.domains.array, tuple(domains))
        contention = self._read_contention(page, node["probe_epoch"], received_ms)
        return Scrape(node["probe_epoch"], node, domains, received_ms, contention=contention)

    def _read_contention(self, page: bytes, epoch_ms: float, received_ms: float | None) -> Contention | None:
        """Waits and pressure that are on the page beside the metrics of the probe; None if there are none."""
        others = _without_probe(page, f"{self.prefix}_".encode())
        found = self._contention.read_node_page(others, epoch_ms if received_ms is None else received_ms)
        vcpus = names_of_probe(found.vcpus)
        return replace(found, vcpus=vcpus) if vcpus or found.node or found.queue else None


def _group(parsed: ParsedPage, places: dict[bytes, Place | None]) -> dict[str | None, dict[str, float]]:
    """Finite values by machine, without domains that have just started.

    A domain runs even when the value of the metric that shows it is invalid, or when all of its values are.
    """
    machines: dict[str | None, dict[str, float]] = {None: {}}
    running: dict[str | None, None] = {None: None}
    values = parsed.values
    for name, place in places.items():
        if place is None:
            continue
        domain, metric = place
        if metric in _DOMAIN_METRICS:
            running[domain] = None
        value = values.get(name, math.nan)
        if math.isfinite(value):
            machines.setdefault(domain, {})[metric] = value
    return {domain: machines.get(domain, {}) for domain in running}


def _without_probe(page: bytes, start: bytes) -> bytes:
    """A page without what is between the first and the last metric of the probe: most of it, as pages are sorted."""
    first, last = page.find(b"\n" + start) + 1, page.rfind(b"\n" + start) + 1
    return page[:first] + page[page.find(b"\n", last) + 1 :]


def _is_time(epoch_ms: float) -> bool:
    return _EARLIEST_MS < epoch_ms < _LATEST_MS
