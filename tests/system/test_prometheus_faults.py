"""The whole programs behind a proxy that fails and lies: no figure is higher than with the healthy server."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, bare_environment, strict_json
from tests.support import prometheus_proxy as faults
from tests.support.prometheus import OpenMetrics, Value, prometheus_server
from tests.support.prometheus_pages import GB, constant
from tests.support.prometheus_proxy import SECRET, Asked, Fault, Forward, Proxy, Reply
from tests.support.servers import fetch, free_port, wait_for

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


def history(start_s: int, end_s: int) -> str:
    page = OpenMetrics(range(start_s, end_s))
    for k, name in enumerate(NODES):
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


_END = re.compile(r'scroogevm_node_slice_end_timestamp_seconds\{node="(\w+)"\} (\S+)')
_FREE = re.compile(r'scroogevm_node_strategy_free_(cpu|memory)_\w+\{node="(\w+)",strategy="(\w+)"\} (\S+)')


class Figures:
    """The figures that a daemon has published on its page of metrics, by node, end of the slice, and kind.

    The highest of each is kept: within a slice figures fall and do not rise.
    """

    def __init__(self, port: int) -> None:
        self.highest: dict[tuple[str, float, str], float] = {}
        self.newest: dict[str, float] = {}
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
        self.newest = ends


class Daemon:
    """A daemon with its status file, its log and its figures."""

    def __init__(self, folder: Path, url: str, **more: str) -> None:
        folder.mkdir(exist_ok=True)
        port = free_port()
        self.env = environment(folder, url, SCHED_METRICS_PORT=str(port), **more)
        self.figures = Figures(port)
        self._folder = folder

    def __enter__(self) -> Daemon:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(PROGRAM, env=self.env, cwd=self._folder, stderr=log)
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

    def is_fresh(self, since_s: float) -> bool:
        """Whether all nodes have figures of a slice that began after a time."""
        nodes = self.nodes()
        return (
            sorted(nodes) == list(NODES)
            and self.states() == {"ok"}
            and all(node["slice_end"] - SLICE_S >= since_s for node in nodes.values())
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    now = int(time.time())
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), history(now - BEFORE_S, now + AFTER_S)) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture(scope="module")
def daemons(server: str, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """A daemon on the server, and one behind the proxy."""
    url = behind_url(proxy)
    folder = tmp_path_factory.mktemp("daemons")
    with Daemon(folder / "healthy", server) as healthy, Daemon(folder / "behind", url) as behind:
        wait_for(lambda: healthy.is_fresh(0) and behind.is_fresh(0), 90)
        yield healthy, behind


#: CPU that clt may offer more, because it learns from fewer slices than the healthy one; of memory there is no change.
LEARNT = 0.05 * CORES


def compared(healthy: Daemon, behind: Daemon, since_s: float) -> int:
    """Compare what both have published of slices that ended since a time; how many figures that are."""
    expected = dict(healthy.figures.highest)
    given = {key: value for key, value in behind.figures.highest.items() if key in expected and key[1] >= since_s}
    margin = {"cpu of clt": LEARNT}
    wrong = {
        key: (value, expected[key]) for key, value in given.items() if value > expected[key] + margin.get(key[2], 0.1)
    }
    assert wrong == {}
    return len(given)


UNAVAILABLE: dict[str, Fault] = {
    "slow": faults.slow(30),
    "connection closed within the body": faults.cut_off,
    "truncated body": faults.truncated,
    "HTML": faults.html(200),
    "bad gateway": faults.html(502),
    "too many requests": faults.refused(429, "slow down", Retry_After="1"),
    "overloaded": faults.refused(503, "overloaded", Retry_After="1"),
    "every query too large": faults.refused(422, "query processing would load too many samples into memory"),
    "warnings": faults.noted(warnings=["store 7 did not respond"]),
    "partial": faults.noted(isPartial=True),
    "old answers of a cache": faults.of_earlier(120, stamped=False),
    "no number": faults.valued("abc"),
    "redirect": faults.redirected(f"http://user:{SECRET}@elsewhere.invalid/"),
    "unauthorized": faults.html(401),
}

#: The server is answered with, and the nodes have no figures.
MISSING: dict[str, Fault] = {
    "not a number": faults.valued("NaN"),
    "infinite": faults.valued("+Inf"),
    "too large for a float": faults.valued("1e999"),
    "old answers with new times": faults.of_earlier(120, stamped=True),
    "nothing": faults.without(lambda _labels, _i: True),
}

#: Some of the figures may be there.
PARTIAL: dict[str, Fault] = {
    "queries for two nodes too large": faults.too_large(1),
    "every second series dropped": faults.without(lambda _labels, i: i % 2 == 1),
    "the other series dropped": faults.without(lambda _labels, i: i % 2 == 0),
    "half of the VMs dropped": faults.without(lambda labels, _: labels.get("domain") in {"a", "c"}),
    "half of the modes dropped": faults.without(lambda labels, _: labels.get("mode") == "system"),
    "a node dropped": faults.without(lambda labels, _: labels.get("instance", "").startswith("w2")),
}


@pytest.mark.parametrize("name", [*UNAVAILABLE, *MISSING, *PARTIAL])
def test_daemon_publishes_nothing_higher_and_recovers(name: str, proxy: Proxy, daemons: tuple[Daemon, Daemon]) -> None:
    healthy, behind = daemons
    fault = {**UNAVAILABLE, **MISSING, **PARTIAL}[name]
    logged, known = len(behind.log()), dict(behind.nodes())
    with proxy.failing(fault):
        began_s = time.time()
        if name in PARTIAL:
            # Two whole slices that are read while the fault lasts.
            wait_for(lambda: min(behind.figures.newest.values()) >= began_s + 2 * SLICE_S, 60)
        else:
            wait_for(lambda: behind.states() == {"stale"}, 60)
            if name in UNAVAILABLE:
                wait_for(lambda: " WARNING scroogevm.estimator: store: " in behind.log()[logged:])
            for node, one in behind.nodes().items():
                assert (one["free_cpu"], one["free_mem"]) == (0, 0)
                assert one["last_known"]["cpu"]["slice_end"] >= known[node]["slice_end"]
        assert proxy.failed
        assert behind.process.poll() is None
    ended_s = time.time()
    wait_for(lambda: behind.is_fresh(ended_s), 60)
    wait_for(lambda: healthy.is_fresh(ended_s), 60)
    assert compared(healthy, behind, began_s) >= 48
    log = behind.log()[logged:]
    for text in ("Traceback", SECRET, "internal error"):
        assert text not in log
        assert text not in Path(behind.env["STATE_ENDPOINT"]).read_text()
    assert len(log.splitlines()) <= 12, log


def test_server_that_is_replaced_by_an_empty_one_makes_nodes_stale_and_none_is_forgotten(
    server: str, proxy: Proxy, daemons: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    healthy, behind = daemons
    began_s = time.time()
    with prometheus_server(tmp_path / "empty") as proxy.upstream:
        wait_for(lambda: behind.states() == {"stale"}, 60)
        assert sorted(behind.nodes()) == list(NODES)
        done = run(tmp_path, proxy.url, "--once")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "none of its 0 nodes can be used" in done.stderr
        proxy.upstream = server
    wait_for(lambda: behind.is_fresh(time.time() - 3 * SLICE_S), 60)
    assert compared(healthy, behind, began_s) > 0


# --- modes that run once --------------------------------------------------------------------------------

MODES = {"once": ("--once",), "check": ("--check", "--json"), "scan": ("--scan", "--json", "--days=0.01", "--jobs=1")}


def run(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(folder, url, **more)
    return subprocess.run(
        [*PROGRAM, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def run_modes(folder: Path, url: str, **more: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """All modes that run once, at the same time."""
    with ThreadPoolExecutor(len(MODES)) as threads:
        runs = {name: threads.submit(run, folder / name, url, *words, **more) for name, words in MODES.items()}
        done = {name: one.result() for name, one in runs.items()}
    for name, one in done.items():
        for text in (SECRET, "Traceback", "internal error"):
            assert text not in one.stdout + one.stderr, (name, one)
    return done


@pytest.fixture
def broken(server: str) -> Iterator[Proxy]:
    """A proxy of the test alone."""
    with Proxy(server) as running:
        yield running


def behind_url(proxy: Proxy) -> str:
    return proxy.url.replace("//", f"//user:{SECRET}@")


#: With nodes in the settings, the estimator has to read them; without, it does not find any.
FOUND, SET = {}, {"SCHED_NODES": '["w1", "w3"]'}
OLD = "old answers of a cache"


@pytest.mark.parametrize(
    ("name", "nodes"),
    [*((name, SET) for name in UNAVAILABLE if name != OLD), ("slow", FOUND), ("HTML", FOUND), ("overloaded", FOUND)],
)
def test_modes_that_run_once_end_with_a_line_and_exit_code_1(
    name: str, nodes: dict[str, str], broken: Proxy, tmp_path: Path
) -> None:
    with broken.failing(UNAVAILABLE[name]):
        done = run_modes(tmp_path, behind_url(broken), **nodes)
    assert {mode: one.returncode for mode, one in done.items()} == dict.fromkeys(MODES, 1), done
    rows = {row["target"]: row["ok"] for row in json.loads(done["check"].stdout)}
    if name == "no number":
        # Those are numbers of ranges: the nodes are found.
        assert rows == {"w1": False, "w3": False, f"store {broken.url}": True}
    else:
        assert rows == {f"store {broken.url}": False}
    for mode in ("once", "scan"):
        assert broken.url in done[mode].stderr + done[mode].stdout
        assert done[mode].stderr.count("\n") <= 3, done[mode]
    status = tmp_path / "once" / "status.json"
    if nodes:
        published = strict_json(status.read_bytes())
        assert [(one["state"], one["free_cpu"]) for one in published.values()] == [("unknown", 0)] * 2
    else:
        assert not status.exists()


def for_node(node: str, fault: Fault) -> Fault:
    """A fault of the range queries that ask for a node alone, or for several with it."""

    def chosen(asked: Asked, forward: Forward) -> Reply:
        is_hit = asked.path.endswith("/query_range") and f"{node}:9" in asked.promql.replace("\\", "")
        return fault(asked, forward) if is_hit else forward(asked)

    return chosen


@pytest.mark.parametrize("name", ["bad gateway", "every query too large", "truncated body", "warnings", "no number"])
def test_scan_names_the_nodes_that_are_missing_and_has_the_others(name: str, broken: Proxy, tmp_path: Path) -> None:
    with broken.failing(for_node("w2", UNAVAILABLE[name])):
        done = run(tmp_path, behind_url(broken), *MODES["scan"])
    assert (done.returncode, done.stderr) == (1, "")
    nodes = {node["node"]: node for node in strict_json(done.stdout)["nodes"]}
    assert sorted(nodes) == list(NODES)
    assert broken.url in nodes["w2"]["error"]
    assert SECRET not in done.stdout
    for one in ("w1", "w3"):
        assert not nodes[one]["error"]
        assert nodes[one]["cpu"]["slices"] > 50


@pytest.mark.parametrize("name", [*MISSING, OLD])
def test_values_that_are_none_or_old_give_no_figures(name: str, broken: Proxy, tmp_path: Path) -> None:
    with broken.failing({**MISSING, **UNAVAILABLE}[name]):
        done = run_modes(tmp_path, behind_url(broken))
    assert {one.returncode for one in done.values()} <= {0, 1}
    published = strict_json((tmp_path / "once" / "status.json").read_bytes())
    assert sorted(published) == list(NODES)
    assert {(one["free_cpu"], one["free_mem"]) for one in published.values()} == {(0, 0)}
    scanned = strict_json(done["scan"].stdout)["nodes"]
    assert len(scanned) == 3
    assert {node["cpu"] and node["cpu"]["free"] for node in scanned} <= {None, 0}


def test_server_that_refuses_large_queries_gives_the_figures_of_one_that_does_not(server: str, tmp_path: Path) -> None:
    now = int(time.time())
    text = history(now - BEFORE_S, now + 300)
    with prometheus_server(tmp_path / "small", text, options=["--query.max-samples=2500"]) as small:
        # The history is another one, but what is booked is the same.
        modes = {name: run_modes(tmp_path / name, url) for name, url in (("small", small), ("large", server))}
        assert [[one.returncode for one in done.values()] for done in modes.values()] == [[0, 0, 0]] * 2, modes
        published = [strict_json((tmp_path / name / "once" / "status.json").read_bytes()) for name in modes]
        scanned = [strict_json(done["scan"].stdout)["nodes"] for done in modes.values()]
    for node in NODES:
        one, other = (nodes[node] for nodes in published)
        assert (one["cpu"]["booked"], one["mem"]["booked"]) == (other["cpu"]["booked"], other["mem"]["booked"])
        assert one["free_cpu"] == other["free_cpu"]
        assert one["free_mem"] == other["free_mem"] > 0
    assert [len(nodes) for nodes in scanned] == [3, 3]
