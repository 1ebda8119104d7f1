"""A real Prometheus that scrapes pages meanwhile: nodes that join, exporters that fail; and the ballooning daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from tests.conftest import ROOT
from tests.support import prometheus_proxy as faults
from tests.support.prometheus import prometheus_server
from tests.support.prometheus_fleet import SLICE_S, Daemon, environment, guest_memory
from tests.support.prometheus_proxy import SECRET, Proxy
from tests.support.servers import wait_for

#: The estimator, which looks for nodes each second instead of every five minutes.
EAGER = [
    sys.executable,
    "-c",
    "import model.store.prometheus_nodes as nodes, model.estimator.found_nodes as found\n"
    "from model.commands.scroogevm import main\n"
    "nodes._FOUND_S = 1.0\n"
    "found.FoundNodes.watched.__wrapped__.__defaults__ = (1.0,)\n"
    "raise SystemExit(main([]))\n",
]


class Targets:
    """The exporters that a Prometheus scrapes each second; it reads them again when they change."""

    def __init__(self, fakes: FakeWorkers, path: Path) -> None:
        self._address = fakes.base_url.removeprefix("http://")
        self._path = path
        self._pages: dict[str, Mapping[str, str]] = {}

    def scrape(self, index: int, **pages: str) -> None:
        """Scrape these pages of a worker; the exporter of a page that does not exist responds with an error."""
        self._pages[f"w{index}"] = {"node": "node", "libvirt": "libvirt", **pages}
        entries = [
            {
                "targets": [self._address],
                "labels": {
                    "instance": f"{name}:{port}",
                    "__metrics_path__": f"/worker-{int(name[1:]):05d}/{pages[kind]}",
                },
            }
            for name, pages in self._pages.items()
            for kind, port in (("node", 9100), ("libvirt", 9177))
        ]
        # Replaced as a whole: the server reads it at any moment.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._path)

    def config(self) -> Any:
        sources = [{"files": [str(self._path)], "refresh_interval": "1s"}]
        return {"job_name": "all", "scrape_interval": "1s", "scrape_timeout": "1s", "file_sd_configs": sources}


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[Targets]:
    plan = Plan(workers=4, vms=4, format="labels", dialect="tinkoff", other_metrics=10, probe_delay_ms=0, cores=48)
    with in_thread(plan) as fakes:
        yield Targets(fakes, tmp_path / "targets.json")


def test_nodes_join_and_become_stale_while_the_daemon_runs(targets: Targets, tmp_path: Path) -> None:
    for index in range(3):
        targets.scrape(index)
    with (
        prometheus_server(tmp_path / "prometheus", scrape_configs=[targets.config()]) as url,
        Daemon(tmp_path / "daemon", url, EAGER, PYTHONPATH=str(ROOT), SCHED_VM_HOLD_S=str(SLICE_S)) as daemon,
    ):
        wait_for(lambda: daemon.is_fresh(0, ["w0", "w1", "w2"]), 90)
        targets.scrape(1, node="nothing")
        targets.scrape(2, libvirt="nothing")
        targets.scrape(3)

        def state(node: str) -> str:
            return str(daemon.nodes().get(node, {}).get("cpu", {}).get("state"))

        wait_for(lambda: (state("w1"), state("w2")) == ("stale", "stale"), 60)
        nodes = daemon.nodes()
        for name in ("w1", "w2"):
            assert (nodes[name]["free_cpu"], nodes[name]["free_mem"]) == (0, 0)
            assert nodes[name]["last_known"]["cpu"]["booked"] > 0
        # The VMs of w2 are unknown, not gone; of w1 there is nothing at all.
        wait_for(lambda: "samples of w2: the allocations of its VMs are unknown" in daemon.log())
        assert "samples of w1: none in the slice" in daemon.log()
        assert nodes["w2"]["cpu"]["booked"] == nodes["w2"]["last_known"]["cpu"]["booked"]
        wait_for(lambda: state("w3") == "ok", 60)
        assert state("w0") == "ok"
        for index in (1, 2):
            targets.scrape(index)
        began_s = time.time()
        wait_for(lambda: daemon.is_fresh(began_s, ["w0", "w1", "w2", "w3"]), 90)
        log = daemon.log()
    assert "found on the store: w3" in log
    assert "Traceback" not in log
    # What is booked is the same all the time, so that only a VM that was missed would raise this figure.
    free = {key: value for key, value in daemon.figures.highest.items() if key[2] == "cpu of borg"}
    for name in ("w0", "w1", "w2", "w3"):
        values = {value for (node, _, _), value in free.items() if node == name and value > 0}
        assert len(values) == 1, (name, values)


# --- vmballooning.py ------------------------------------------------------------------------------------


FAULTS = {"bad gateway": faults.html(502), "truncated body": faults.truncated}


def ballooning(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder, url, LIBVIRT_NODES='{"w1": "test:///default"}', BALLOONING_SCOPE_S="250", **more)
    env |= {"BALLOONING_STATS_AGE_S": "2", "BALLOONING_SCOPE_SLEEP_S": "1"}
    command = [sys.executable, str(ROOT / "vmballooning.py"), *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("used_mb", "resident_mb", "until_s", "reason"),
    [
        # libvirt's test driver has statistics that never change: all that the store has to show is there.
        (70, 450, 120, "its balloon statistics do not change"),
        (70, None, 120, "the store has no mem_rss for it"),
        (None, 450, 120, "the store has no mem_usage for it"),
        (70, 450, -95, "its last stored sample is 1"),
    ],
)
def test_ballooning_plans_with_the_memory_usage_on_the_server(
    used_mb: float | None, resident_mb: float | None, until_s: int, reason: str, tmp_path: Path
) -> None:
    pytest.importorskip("libvirt", reason="libvirt-python could not be built here")
    history = guest_memory(512, used_mb, resident_mb, until_s=until_s)
    with prometheus_server(tmp_path / "prometheus", history) as url:
        checked = ballooning(tmp_path, url, "--check", "--json")
        rows = {row["target"]: row["message"] for row in json.loads(checked.stdout)}
        done = ballooning(tmp_path, url, "--dry-run", "--once", "--json")
    assert checked.returncode == 0
    assert rows[f"store {url}"].endswith("1 nodes, read only")
    assert (done.returncode, done.stderr) == (0, "")
    (plan,) = (json.loads(line) for line in done.stdout.splitlines())
    assert (plan["vm"], plan["action"]) == ("test", "skip")
    assert plan["reason"].startswith(reason)


@pytest.mark.parametrize("name", ["bad gateway", "truncated body"])
def test_ballooning_makes_no_plan_while_the_server_fails(name: str, tmp_path: Path) -> None:
    pytest.importorskip("libvirt", reason="libvirt-python could not be built here")
    with (
        prometheus_server(tmp_path / "prometheus", guest_memory(512, 70, 450)) as server,
        Proxy(server) as proxy,
        proxy.failing(FAULTS[name]),
    ):
        done = ballooning(tmp_path, proxy.url.replace("//", f"//user:{SECRET}@"), "--dry-run", "--once")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"metrics of w1: {proxy.url}: " in done.stderr
    assert done.stderr.endswith("test:///default: no plan: the store could not be read\n")
    for text in (SECRET, "Traceback"):
        assert text not in done.stderr


def test_guest_that_a_server_hides_has_no_plan(tmp_path: Path) -> None:
    pytest.importorskip("libvirt", reason="libvirt-python could not be built here")
    with (
        prometheus_server(tmp_path / "prometheus", guest_memory(512, 70, 450)) as server,
        Proxy(server) as proxy,
        proxy.failing(faults.without(lambda labels, _: "domain" in labels)),
    ):
        done = ballooning(tmp_path, proxy.url, "--dry-run", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "test:///default  test  skip  the store has no mem_usage for it\n"
