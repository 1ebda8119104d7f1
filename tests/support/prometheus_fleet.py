"""A fleet on a Prometheus server, and estimators that read it as real programs with slices of seconds."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.prometheus import OpenMetrics, Value
from tests.support.prometheus_pages import GB, constant
from tests.support.servers import fetch, free_port

SLICE_S = 4
NODES = ("w1", "w2", "w3")
#: Seconds of history before and after the start of the tests: the programs do not look into the future.
BEFORE_S, AFTER_S = 600, 1500
STRATEGIES = "borg,percentile,rclike,clt"
PROGRAM = [sys.executable, str(ROOT / "scroogevm.py")]

#: Cores of each VM, and the mean of what it uses.
VMS = {"a": (8, 2.0), "b": (4, 1.0), "c": (4, 0.5), "d": (2, 0.25)}
CORES, OWN = 16, 0.5


def used(rate: float, start_s: float, phase: float) -> Value:
    """The counter of a usage that swings by a quarter around a rate, in 20 s."""
    angle = 2 * math.pi / 20

    def value(at_s: float) -> float:
        t = at_s - start_s
        return 1000 + rate * t + 0.25 * rate / angle * (1 - math.cos(angle * t + phase))

    return value


def history(start_s: int, end_s: int, nodes: Sequence[str] = NODES) -> str:
    """Scrapes of each second."""
    page = OpenMetrics(range(start_s, end_s))
    for k, name in enumerate(nodes):
        node, libvirt = {"instance": f"{name}:9100"}, {"instance": f"{name}:9177"}
        busy = [used(rate, start_s, k) for _, rate in VMS.values()]

        def of_node(at_s: float, busy: list[Value] = busy) -> float:
            return sum(value(at_s) or 0.0 for value in busy) + OWN * (at_s - start_s)

        page.add("node_uname_info", node, constant(1))
        for cpu in range(CORES):
            modes: Mapping[str, Value] = {
                "user": lambda at_s, of=of_node: 0.75 * of(at_s) / CORES,
                "system": lambda at_s, of=of_node: 0.25 * of(at_s) / CORES,
                "idle": lambda at_s, of=of_node: at_s - start_s + 5000 - of(at_s) / CORES,
            }
            for mode, value in modes.items():
                page.add("node_cpu_seconds_total", {**node, "cpu": str(cpu), "mode": mode}, value)
        page.add("node_memory_MemTotal_bytes", node, constant(64 * GB))
        page.add("node_memory_MemAvailable_bytes", node, constant(30 * GB))
        page.add("libvirt_up", libvirt, constant(1))
        for (domain, (vcpus, _)), value in zip(VMS.items(), busy, strict=True):
            labels = {**libvirt, "domain": domain}
            page.add("libvirt_domain_info_virtual_cpus", labels, constant(vcpus))
            page.add("libvirt_domain_info_maximum_memory_bytes", labels, constant(8 * GB))
            page.add("libvirt_domain_info_cpu_time_seconds_total", labels, value)
            page.add("libvirt_domain_memory_stats_unused_bytes", labels, constant(2 * GB))
            page.add("libvirt_domain_memory_stats_rss_bytes", labels, constant(7 * GB))
    return page.text()


def guest_memory(
    allocated_mb: float, used_mb: float | None, resident_mb: float | None, name: str = "test", until_s: int = 120
) -> str:
    """Scrapes of node w1 with one guest, until some seconds from now."""
    now = int(time.time())
    page = OpenMetrics(range(now - 300, now + until_s, 5))
    node, libvirt = {"instance": "w1:9100"}, {"instance": "w1:9177"}
    labels = {**libvirt, "domain": name}
    unused_mb = None if used_mb is None else allocated_mb - used_mb
    page.add("node_memory_MemTotal_bytes", node, constant(64 * GB))
    page.add("node_memory_MemAvailable_bytes", node, constant(30 * GB))
    page.add("libvirt_up", libvirt, constant(1))
    page.add("libvirt_domain_info_virtual_cpus", labels, constant(2))
    for metric, amount_mb in {
        "info_maximum_memory": allocated_mb,
        "memory_stats_unused": unused_mb,
        "memory_stats_rss": resident_mb,
    }.items():
        if amount_mb is not None:
            page.add(f"libvirt_domain_{metric}_bytes", labels, constant(amount_mb * 2**20))
    return page.text()


def environment(folder: Path, url: str, **more: str) -> dict[str, str]:
    return {
        **bare_environment(),
        "PROMETHEUS_URL": url,
        "PROMETHEUS_TIMEOUT_S": "2",
        "SCHED_SCOPE_S": str(SLICE_S),
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        # Windows without a slice that was lost would have other figures.
        "SCHED_SCOPE_HISTORICAL": "0",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "8",
        "SCHED_SETTLE_S": "1",
        "SCHED_MIN_SAMPLES": "2",
        "SCHED_STRATEGY": STRATEGIES,
        # The figures of the strategies themselves: guards could hide a false one.
        "SCHED_GUARDS": "0",
        "SCHED_CONTENTION_CHECK_S": "0",
        "STATE_ENDPOINT": str(folder / "status.json"),
        **more,
    }


_END = re.compile(r'scroogevm_node_slice_end_timestamp_seconds\{node="([^"]+)"\} (\S+)')
_SLICES = re.compile(r"^scroogevm_slices_total (\S+)", re.MULTILINE)
_OK = re.compile(r'scroogevm_node_state\{node="([^"]+)",state="ok"\} 1\.0')
_FREE = re.compile(r'scroogevm_node_strategy_free_(cpu|memory)_\w+\{node="([^"]+)",strategy="(\w+)"\} (\S+)')


class Figures:
    """The figures that a daemon has published on its page of metrics.

    Attributes
    ----------
    highest : dict
        The highest value by node, end of the slice, and kind: within a slice figures fall and do not rise.
    known : set
        Node and end of the slices in which the node was not stale.
    newest : dict
        End of the present slice by node.
    computed : float
        Slices, those of all nodes together.
    """

    def __init__(self, port: int) -> None:
        self.highest: dict[tuple[str, float, str], float] = {}
        self.known: set[tuple[str, float]] = set()
        self.newest: dict[str, float] = {}
        self.computed = 0.0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Figures:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _poll(self) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(OSError):
                self._take(fetch(self._url)[1].decode())

    def _take(self, page: str) -> None:
        ends = {node: float(end_s) for node, end_s in _END.findall(page)}
        for resource, node, strategy, value in _FREE.findall(page):
            if node in ends:
                key = (node, ends[node], f"{resource} of {strategy}")
                self.highest[key] = max(float(value), self.highest.get(key, 0.0))
        self.known |= {(node, ends[node]) for node in _OK.findall(page) if node in ends}
        self.newest = ends
        self.computed = max(self.computed, *map(float, _SLICES.findall(page)))


class Daemon:
    """A daemon with its status file, its log and its figures."""

    def __init__(self, folder: Path, url: str, program: Sequence[str] = PROGRAM, **more: str) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.env = environment(folder, url, SCHED_METRICS_PORT=str(self.port), **more)
        self.figures = Figures(self.port)
        self._folder, self._program = folder, program

    def __enter__(self) -> Daemon:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._program, env=self.env, cwd=self._folder, stderr=log)
        self.figures.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures.__exit__()
        self.process.kill()
        self.process.wait(30)

    @property
    def _log(self) -> Path:
        return self._folder / "stderr"

    def log(self) -> str:
        return self._log.read_text()

    def nodes(self) -> dict[str, Any]:
        path = Path(self.env["STATE_ENDPOINT"])
        return dict(strict_json(path.read_bytes())) if path.exists() else {}

    def states(self) -> set[str]:
        return {node[resource]["state"] for node in self.nodes().values() for resource in ("cpu", "mem")}

    def is_fresh(self, since_s: float, names: Sequence[str] = NODES) -> bool:
        """Whether these nodes have figures of a slice that began after a time, and there are no others."""
        nodes = self.nodes()
        return (
            sorted(nodes) == sorted(names)
            and self.states() == {"ok"}
            and all(node["slice_end"] - SLICE_S >= since_s for node in nodes.values())
        )


def run(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(folder, url, **more)
    return subprocess.run(
        [*PROGRAM, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


#: Share of CPU that clt may offer more, because it learns from fewer slices than the healthy one.
LEARNT = 0.05 * CORES


def compared(healthy: Daemon, other: Daemon, since_s: float, margins: Mapping[str, float] | None = None) -> set[str]:
    """Compare what both have published of slices that ended since a time; the nodes of these slices.

    Parameters
    ----------
    margins : mapping of kind to float, optional
        By how much figures may be higher; by default the rounding of CPU, and what clt has not learnt.
    """
    margins = {"cpu of clt": LEARNT} if margins is None else margins
    known = set(healthy.figures.known)
    expected = {key: value for key, value in list(healthy.figures.highest.items()) if key[:2] in known}
    given = {key: value for key, value in list(other.figures.highest.items()) if key in expected and key[1] >= since_s}
    higher = {key: value for key, value in given.items() if value > expected[key] + margins.get(key[2], 0.1)}
    assert {key: (value, expected[key]) for key, value in higher.items()} == {}
    return {node for node, _, _ in given}
