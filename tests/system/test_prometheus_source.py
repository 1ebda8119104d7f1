"""The estimator on a real Prometheus server, through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.prometheus import OpenMetrics, prometheus_server
from tests.support.prometheus_pages import add_domain, add_node, constant
from tests.support.servers import free_port

STEP_S = 15
SLICE_S = 600


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two hours of two nodes until now; each uses 2.5 of 4 cores, a VM has two vCPUs."""
    now = int(time.time()) // STEP_S * STEP_S
    page = OpenMetrics(range(now - 7200, now + 1, STEP_S))
    for host in ("w1", "w2"):
        add_node(page, f"{host}:9100")
        page.add("libvirt_up", {"instance": f"{host}:9177"}, constant(1))
        add_domain(page, f"{host}:9177", "a")
    meta = {"instance": "w2:9177", "domain": "a", "instance_name": "web \x1b[31m1"}
    page.add("libvirt_domain_info_meta", meta, constant(1))
    add_node(page, "alone:9100")
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), page.text()) as address:
        yield address


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **bare_environment(),
        "STATE_ENDPOINT": str(folder / "status.json"),
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        "SCHED_SCOPE_S": str(SLICE_S),
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "6",
        "SCHED_CONTENTION_CHECK_S": "0",
        **settings,
    }
    command = [sys.executable, str(ROOT / "scroogevm.py"), *arguments]
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_found_nodes_are_checked(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--check", "--json", PROMETHEUS_URL=url)
    assert done.returncode == 0, done.stderr
    rows = {row["target"]: row["message"] for row in json.loads(done.stdout)}
    assert list(rows) == ["w1", "w2", f"store {url}"]
    assert rows["w1"].startswith("4 cores, 16 GB, 1 VMs, last sample ")
    assert "2 nodes, 1 hosts left out, read only" in rows[f"store {url}"]


def test_figures_of_found_nodes_are_published(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--once", "--strategy=percentile", "--no-guards", PROMETHEUS_URL=url)
    assert done.returncode == 0, done.stderr
    nodes = strict_json((tmp_path / "status.json").read_bytes())
    assert sorted(nodes) == ["w1", "w2"]
    for node in nodes.values():
        assert node["cpu"]["config"] == 4.0
        assert node["free_cpu"] == pytest.approx(1.5, abs=0.01)
        assert node["free_mem"] == pytest.approx(12288, abs=1)


def test_nodes_of_the_settings_restrict_the_found_ones(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--check", "--json", PROMETHEUS_URL=url, SCHED_NODES='["w2", "w9"]')
    rows = {row["target"]: row["message"] for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert rows["w9"] == "not found on the server; it has w1, w2"
    assert rows["w2"].startswith("4 cores")


def test_fleet_of_a_server_is_scanned(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--scan", f"--prometheus={url}", "--json", "--jobs=1", INFLUXDB_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert [node["node"] for node in json.loads(done.stdout)["nodes"]] == ["w1", "w2"]


def test_row_of_a_node_names_its_vms_as_their_users_do(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--scan", f"--prometheus={url}", "--node=w2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("w2: unsure")
    assert "0.5 of 2.0 cores  a (web " in done.stdout
    assert "\x1b" not in done.stdout


def test_server_that_is_down_is_one_clear_line(tmp_path: Path) -> None:
    url = f"http://user:secret@127.0.0.1:{free_port()}"
    for arguments in (("--check",), ("--once",), ("--scan",)):
        done = run(tmp_path, *arguments, PROMETHEUS_URL=url)
        assert done.returncode in {1, 2}
        assert "Connection refused" in done.stdout + done.stderr
        assert "secret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "status.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"INFLUXDB_URL": "http://h"}, "PROMETHEUS_URL: INFLUXDB_URL is set too"),
        ({"PROMETHEUS_TOKEN": "t", "PROMETHEUS_USER": "u"}, "PROMETHEUS_TOKEN: PROMETHEUS_USER is set too"),
        ({"PROMETHEUS_PASSWORD": "p"}, "PROMETHEUS_USER: is not set; PROMETHEUS_PASSWORD requires it"),
        ({"PROMETHEUS_CA": "/nowhere"}, "PROMETHEUS_CA: /nowhere is not a file"),
        ({"PROMETHEUS_HEADERS": '["a"]'}, "PROMETHEUS_HEADERS: is not an object"),
        ({"PROMETHEUS_MATCH": 'a="b"} or up{c="'}, 'PROMETHEUS_MATCH: \'a="b"} or up{c="\' is not a matcher'),
        ({"PROMETHEUS_NODE_LABEL": "a-b"}, "PROMETHEUS_NODE_LABEL: 'a-b' is not the name of a label"),
        ({"PROMETHEUS_NODES": '{"a": 1}'}, "PROMETHEUS_NODES: a: is not an object such as"),
        ({"PROMETHEUS_STEP_S": "x"}, "PROMETHEUS_STEP_S: 'x' is not a whole number"),
        ({"PROMETHEUS_TIMEOUT_S": "0"}, "PROMETHEUS_TIMEOUT_S: '0' is not a number"),
        ({"PROMETHEUS_MAX_SAMPLES": "1"}, "PROMETHEUS_MAX_SAMPLES: '1' is not a whole number"),
        ({"PROMETHEUS_QUERIES_AT_ONCE": "0"}, "PROMETHEUS_QUERIES_AT_ONCE: '0' is not a whole number"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--check", **{"PROMETHEUS_URL": "http://127.0.0.1:9", **settings})
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_reach_the_server(url: str, tmp_path: Path) -> None:
    settings = {
        "PROMETHEUS_TOKEN": "t",
        "PROMETHEUS_HEADERS": '{"X-Scope-OrgID": "cloud"}',
        "PROMETHEUS_MATCH": 'instance=~"w1:.*"',
        "PROMETHEUS_STEP_S": "30",
        "PROMETHEUS_TIMEOUT_S": "20",
        "PROMETHEUS_MAX_SAMPLES": "2000",
        "PROMETHEUS_QUERIES_AT_ONCE": "1",
    }
    done = run(tmp_path, "--once", "--strategy=percentile", "--no-guards", PROMETHEUS_URL=url, **settings)
    assert done.returncode == 0, done.stderr
    nodes = strict_json((tmp_path / "status.json").read_bytes())
    assert list(nodes) == ["w1"]
    assert nodes["w1"]["free_cpu"] == pytest.approx(1.5, abs=0.01)
