"""Finds the nodes on a Prometheus server: hosts with a node exporter and a libvirt exporter."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..common.logs import ProblemLog
from ..common.text import printable
from ..numerics import FloatArray
from .base import StoreUnavailable
from .prometheus_queries import LIBVIRT_SCRAPES, NODE_SCRAPES, DiscoveryQueries
from .prometheus_server import Instant, PrometheusServer
from .settings import PrometheusSettings

LOG = logging.getLogger("scroogevm.prometheus")

#: How long the nodes that were found count before they are looked for again.
_FOUND_S = 300.0
#: The scrape interval is measured over the first of these times, and of an exporter that has too few samples in it over
#: the second.
_WINDOWS_S = (600, 3600)
_LEAST_SCRAPES = 3
#: Of exporters of which nothing is known: a step that is too short costs more points, one that is too long loses peaks.
_DEFAULT_STEP_S = 15
#: Usual intervals; a measured one that is near is taken for it.
_USUAL_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300)
_NEAR = 0.12

#: Metrics whose labels have the display name of a domain, and these labels.
_DISPLAY_NAMES = {
    "libvirt_domain_info_meta": ("instance_name", "name"),
    "libvirt_domain_openstack_info": ("instance_name", "name"),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A node on a server.

    Attributes
    ----------
    name : str
    node, libvirt : str
        Values of the label that names the exporters.
    step_s : int
        Longer one of the intervals at which they are scraped.
    """

    name: str
    node: str
    libvirt: str
    step_s: int = _DEFAULT_STEP_S


class NodeFinder:
    """Finds the nodes, and finds them again while running. Safe to use from any thread.

    A node that vanishes from the server is kept: it becomes stale.

    Parameters
    ----------
    server : PrometheusServer
    settings : PrometheusSettings
    clock, monotonic : callable
        Unix seconds, monotonic seconds.
    """

    def __init__(
        self,
        server: PrometheusServer,
        settings: PrometheusSettings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = settings.node_label or "instance"
        self._server = server
        self._settings = settings
        self._queries = DiscoveryQueries(self.label, settings.match)
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._found_at = -math.inf
        self._problems = ProblemLog(LOG)
        self.left_out: tuple[str, ...] = ()

    def nodes(self) -> Mapping[str, Node]:
        """The nodes by name, sorted.

        Raises
        ------
        StoreUnavailable
            When none has been found yet, and the server cannot be asked.
        """
        with self._lock:
            if self._monotonic() - self._found_at >= _FOUND_S:
                try:
                    found = self._find()
                except StoreUnavailable as error:
                    if not self._nodes:
                        raise
                    self._problems.report("nodes on Prometheus", f"cannot be looked for: {error}")
                else:
                    self._problems.resolve("nodes on Prometheus")
                    self._nodes = dict(sorted({**self._nodes, **found}.items()))
                self._found_at = self._monotonic()
            return self._nodes

    def display_names(self, node: Node) -> dict[str, str]:
        """Names of the domains of a node as their users call them, by domain, where the exporter reports them.

        Raises
        ------
        StoreUnavailable
        """
        names: dict[str, str] = {}
        for metric, labels in _DISPLAY_NAMES.items():
            for series in self._server.query(self._queries.display_names(metric, node.libvirt), self._clock()):
                shown = next((series.labels[label] for label in labels if series.labels.get(label)), "")
                if shown and "domain" in series.labels:
                    names.setdefault(series.labels["domain"], shown)
        return names

    def _find(self) -> dict[str, Node]:
        if self._settings.nodes:
            pairs = self._settings.nodes
            if all(pair.step_s for pair in pairs.values()):
                return {name: Node(name, pair.node, pair.libvirt, pair.step_s) for name, pair in pairs.items()}
            found = {name: Node(name, pair.node, pair.libvirt) for name, pair in pairs.items()}
        else:
            found = self._match()
        intervals = [
            self._intervals(metrics, [getattr(node, kind) for node in found.values()])
            for kind, metrics in (("node", NODE_SCRAPES), ("libvirt", LIBVIRT_SCRAPES))
        ]
        steps = {name: self._step_s(node, *intervals) for name, node in found.items()}
        usual = sorted(step for step in steps.values() if step)
        for name in (name for name, step in steps.items() if not step):
            # Down for long, or new.
            before = self._nodes.get(name)
            steps[name] = before.step_s if before else usual[len(usual) // 2] if usual else _DEFAULT_STEP_S
        return {name: replace(node, step_s=steps[name]) for name, node in found.items()}

    def _match(self) -> dict[str, Node]:
        """The hosts that have one exporter of each kind."""
        now = self._clock()
        nodes = self._by_host(self._server.query(self._queries.nodes, now))
        libvirts = self._by_host(self._server.query(self._queries.libvirts, now))
        found: dict[str, Node] = {}
        alone, ambiguous, odd = [], [], []
        for host, targets in sorted(nodes.items()):
            if not host.isprintable():
                odd.append(host)
            elif host not in libvirts:
                alone.append(host)
            elif len(targets) > 1 or len(libvirts[host]) > 1:
                ambiguous.append(host)
            else:
                found[host] = Node(host, min(targets), min(libvirts[host]))
        self.left_out = (*alone, *ambiguous, *odd)
        self._report("without a libvirt exporter are left out", alone)
        self._report("with several exporters of one kind are left out, see PROMETHEUS_NODES", ambiguous)
        self._report("whose names cannot be printed are left out", odd)
        return found

    def _by_host(self, series: Iterable[Instant]) -> dict[str, set[str]]:
        """The exporters of each host: values of the label, or instances where the label names a node."""
        hosts: defaultdict[str, set[str]] = defaultdict(set)
        for one in series:
            value = one.labels.get(self.label, "")
            if value:
                hosts[value if self._settings.node_label else host_part(value)].add(one.labels.get("instance", value))
        if self._settings.node_label:
            # One exporter that has the label: it is asked for by that, for its instance may change.
            return {host: {host} if len(instances) == 1 else instances for host, instances in hosts.items()}
        return dict(hosts)

    def _report(self, what: str, hosts: list[str]) -> None:
        subject = f"nodes on Prometheus {what}"
        if hosts:
            shown = ", ".join(printable(host)[:80] for host in hosts[:5]) + (" ..." if len(hosts) > 5 else "")
            self._problems.report(subject, f"{len(hosts)}: {shown}")
        else:
            self._problems.resolve(subject)

    def _intervals(self, metrics: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
        """The median scrape interval of each exporter, s; without those of which too few samples are known."""
        intervals: dict[str, float] = {}
        for window_s in _WINDOWS_S:
            for metric in metrics:
                missing = {target for target in targets if target not in intervals}
                # A list of all would be a long query.
                chosen = sorted(missing) if len(missing) < len(targets) else []
                for labels, times_s in self._scrapes(metric, window_s, chosen) if missing else ():
                    name = labels.get(self.label, "")
                    if times_s.size >= _LEAST_SCRAPES and name in missing:
                        median_s = float(np.median(np.diff(times_s)))
                        intervals[name] = min(median_s, intervals.get(name, math.inf))
        return intervals

    def _scrapes(
        self, metric: str, window_s: int, targets: Sequence[str]
    ) -> list[tuple[Mapping[str, str], FloatArray]]:
        return self._server.query_times(self._queries.scrapes(metric, window_s, targets), self._clock())

    def _step_s(self, node: Node, nodes: Mapping[str, float], libvirts: Mapping[str, float]) -> int:
        """The longer interval of both exporters; 0 when none is known."""
        if self._settings.step_s:
            return self._settings.step_s
        known = [of[key] for of, key in ((nodes, node.node), (libvirts, node.libvirt)) if key in of]
        return usual_interval(max(known)) if known else 0


def host_part(instance: str) -> str:
    """The host of a label ``instance``, without the port."""
    return re.sub(r":\d+$", "", instance)


def usual_interval(measured_s: float) -> int:
    """The scrape interval, whole seconds, from a measured one: scrapes are late at times."""
    near = [usual for usual in _USUAL_S if abs(measured_s - usual) <= _NEAR * usual]
    return near[0] if near else max(1, round(measured_s))
