"""The modes that run once behind a proxy that fails and lies: one line, exit code 1, and no figure that is too high."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import strict_json
from tests.support.prometheus import prometheus_server
from tests.support.prometheus_faults import MISSING, UNAVAILABLE, behind_url
from tests.support.prometheus_fleet import AFTER_S, BEFORE_S, NODES, history, run
from tests.support.prometheus_proxy import SECRET, Asked, Fault, Forward, Proxy, Reply

MODES = {"once": ("--once",), "check": ("--check", "--json"), "scan": ("--scan", "--json", "--days=0.01", "--jobs=1")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    now = int(time.time())
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), history(now - BEFORE_S, now + AFTER_S)) as url:
        yield url


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


#: With nodes in the settings, the estimator has to read them; without, it does not find any.
FOUND, SET = {}, {"SCHED_NODES": '["w1", "w3"]'}
OLD = "old answers of a cache"
#: The daemon meets all of them.
CHOSEN = (
    "slow",
    "truncated body",
    "HTML",
    "every query too large",
    "warnings",
    "no number",
    "redirect",
    "unauthorized",
)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [*((name, SET) for name in CHOSEN), ("slow", FOUND), ("HTML", FOUND), ("overloaded", FOUND)],
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
