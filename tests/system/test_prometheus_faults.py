"""The whole programs behind a proxy that fails and lies: no figure is higher than with the healthy server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import strict_json
from tests.support import prometheus_proxy as faults
from tests.support.prometheus import prometheus_server
from tests.support.prometheus_fleet import AFTER_S, BEFORE_S, NODES, SLICE_S, Daemon, compared, history, run
from tests.support.prometheus_proxy import SECRET, Asked, Fault, Forward, Proxy, Reply
from tests.support.servers import wait_for


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
    assert compared(healthy, behind, began_s) == set(NODES)
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
    with prometheus_server(tmp_path / "empty") as empty:
        proxy.upstream = empty
        wait_for(lambda: behind.states() == {"stale"}, 60)
        assert sorted(behind.nodes()) == list(NODES)
        done = run(tmp_path, proxy.url, "--once")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "none of its 0 nodes can be used" in done.stderr
        proxy.upstream = server
    wait_for(lambda: behind.is_fresh(time.time() - 3 * SLICE_S), 60)
    assert compared(healthy, behind, began_s) == set(NODES)


# --- modes that run once --------------------------------------------------------------------------------

MODES = {"once": ("--once",), "check": ("--check", "--json"), "scan": ("--scan", "--json", "--days=0.01", "--jobs=1")}


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
