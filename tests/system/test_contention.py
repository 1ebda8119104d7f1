"""Contention as an operator meets it: settings, the published file, the table and a replay, through real programs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from model.samples import ScrapeSample
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.unit.estimator.support import NODES, SLICE_S, scrapes, waiting

PROGRAM = [sys.executable, str(ROOT / "scroogevm.py")]


def recent() -> range:
    """The last 26 minutes, in slices of a minute."""
    last = math.floor(time.time() / SLICE_S) - 2
    return range(last - 25, last + 1)


Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    store = SqliteStore(tmp_path / "store.sqlite", 86400)
    store.write([store.encode(sample) for sample in waiting(scrapes(NODES[0], recent()))])
    store.close()
    return {
        **bare_environment(),
        "SCHED_NODES": json.dumps(NODES[:1]),
        "SCHED_SCOPE_S": "180",
        "SCHED_SCOPE_SLICE_S": "60",
        "SCHED_SCOPE_HISTORICAL": "1",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "9",
        "SCHED_SETTLE_S": "0.2",
        # As of a replay.
        "SCHED_RISK": "0.05",
        "SCHED_RISK_MEM": "0.05",
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


def run(env: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def column(dump: Any, key: str, epoch: list[float]) -> list[Any]:
    at = {end: k for k, end in enumerate(dump["epoch"])}
    return [dump["model"][key][at[end]] for end in epoch]


def test_replay_of_an_export_with_waits_gives_what_was_published(env: Environment, tmp_path: Path) -> None:
    strategies = "percentile,clt,conformal,nsigma"
    done = run(env, "--once", "-s", strategies, "-d", "1", "-o", str(tmp_path / "live"))
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "live").glob("dump-*.json")
    live = strict_json(path.read_bytes())
    epoch, out = live["epoch"], tmp_path / "trace.json"
    done = run(env, f"--export={out}", f"--since={epoch[0] - SLICE_S}", f"--until={epoch[-1]}")
    assert done.returncode == 0, done.stderr
    trace = strict_json(out.read_bytes())
    assert sum("psi_cpu" in raw for raw in trace["node"]["raw_data"]) > 15
    done = run(env, f"--load={out}", "-s", strategies, "--guards", "-o", str(tmp_path / "replay"))
    assert (done.returncode, done.stderr) == (0, "")
    for name in strategies.split(","):
        model = live["model"] if name == "percentile" else live["others"][name]
        replayed = strict_json((tmp_path / "replay" / f"dump-{name}.json").read_bytes())
        assert len(epoch) > 20
        for key in ("published", "unguarded", "violated"):
            for resource in ("cpu", "mem"):
                assert column(replayed, f"{key}_{resource}", epoch) == model[f"{key}_{resource}"], (name, key, resource)


# --- settings -----------------------------------------------------------------------------------------

NAMES = ("VM_SOME", "VM_HIGH", "SAMPLES", "PSI_CPU", "PSI_MEMORY", "SWAP_IN", "SLICES", "WINDOW", "CAPPED", "CHECK_S")


def checked(**values: str) -> subprocess.CompletedProcess[str]:
    env = {**bare_environment(), "SCHED_NODES": '["http://w1"]'}
    return run(env | {f"SCHED_CONTENTION_{name}": value for name, value in values.items()}, "--check-config")


def of_all(*values: str) -> dict[str, str]:
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        of_all("0", "0", "0", "0", "0", "0", "1", "1", "[]", "0"),
        of_all("1", "1", "0.99", "1", "1", "1e9", "1000", "1000", '["instance-*", "?", "[ab]"]', "1e6"),
        of_all("", "", "", "", "", "", "", "", "", ""),
    ],
)
def test_settings_at_their_limits_are_accepted(values: dict[str, str]) -> None:
    done = checked(**values)
    assert (done.returncode, done.stdout, done.stderr) == (0, "settings ok\n", "")


@pytest.mark.parametrize(
    "values",
    [
        of_all("-0.1", "1.1", "1", "nan", "x", "1e10", "0", "1001", "instance-*", "-1"),
        of_all("1.01", "-1", "-0.1", "inf", "-0.1", "-1", "1.5", "0", "[1]", "1e7"),
        of_all("no", "[]", "2", "2", "1.5", "many", "-1", "no", '[""]', "soon"),
    ],
)
def test_wrong_settings_are_all_reported_by_name(values: dict[str, str]) -> None:
    done = checked(**values)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.partition("SCHED_CONTENTION_")[2].partition(":")[0] for line in lines] == list(NAMES)
    assert all(line.startswith("scroogevm.py: ") for line in lines)


@pytest.mark.parametrize("value", ["null", '"a"', '{"a": 1}', '["a", null]'])
def test_patterns_are_a_list_of_texts(value: str) -> None:
    done = checked(CAPPED=value)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "SCHED_CONTENTION_CAPPED" in line) == (2, True)
    assert line.endswith('is not a list of patterns such as ["instance-0000*"]')


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"VM_SOME": "0.3", "VM_HIGH": "0.2"}, "VM_SOME: 0.3 is above SCHED_CONTENTION_VM_HIGH, 0.2"),
        # Against the default of the other one.
        ({"VM_HIGH": "0.04"}, "VM_SOME: 0.05 is above SCHED_CONTENTION_VM_HIGH, 0.04"),
        ({"SLICES": "3", "WINDOW": "2"}, "SLICES: 3 is above SCHED_CONTENTION_WINDOW, 2"),
        ({"WINDOW": "1"}, "SLICES: 2 is above SCHED_CONTENTION_WINDOW, 1"),
    ],
)
def test_contradictions_are_refused(values: dict[str, str], message: str) -> None:
    done = checked(**values)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.endswith(f"SCHED_CONTENTION_{message}")


def test_contradiction_with_a_wrong_value_is_not_reported_twice() -> None:
    done = checked(VM_SOME="0.3", VM_HIGH="x", SLICES="no", WINDOW="1")
    assert len(done.stderr.splitlines()) == 2


def steady(env: Environment, **figures: float) -> None:
    """Samples of a node that uses all of its CPU, two of whose VMs wait."""
    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    vm = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": 1.0, "mem_usage": 500.0, "cpu_wait": 0.25, "cpu_wait_share": 0.2}
    node = {"cpu": 16.0, "mem": 65536.0, "cpu_usage": 15.0, "mem_usage": 1e4, "elapsed_time": 7500.0}
    node |= {"oc_cpu": 0.5, "oc_mem": 2048.0 / 65536.0, **figures}
    # Also of the next minutes, so that the slice that has ended has samples, however long a test takes.
    numbers = range(recent()[0], recent()[-1] + 6)
    times = [int((number * SLICE_S + (i + 1) * 7.5) * 1000) - 1 for number in numbers for i in range(8)]
    store.write([store.encode(ScrapeSample(NODES[1], time_ms, node, {"a": vm, "b": vm})) for time_ms in times])
    store.close()


def test_settings_reach_the_models(env: Environment, tmp_path: Path) -> None:
    steady(env, swap_in=50.0)
    env["SCHED_NODES"] = json.dumps(NODES[1:])

    def published(**values: str) -> list[str]:
        path = tmp_path / "-".join(["state", *values]) / "status.json"
        settings = {f"SCHED_CONTENTION_{name}": value for name, value in values.items()}
        done = run({**env, **settings, "STATE_ENDPOINT": str(path)}, "--once", "-s", "nsigma")
        assert done.returncode == 0, done.stderr
        node = strict_json(path.read_bytes())[NODES[1]]
        return [node[resource]["contention"]["level"] for resource in ("cpu", "mem")]

    assert published() == ["high", "some"]
    assert published(VM_SOME="0.1", VM_HIGH="0.3", SWAP_IN="40") == ["some", "high"]
    assert published(CAPPED='["a", "b"]', SWAP_IN="1000") == ["none", "none"]
    assert published(VM_HIGH="0.3", SLICES="1000", WINDOW="1000") == ["none", "none"]


def test_contended_node_is_shown(env: Environment, tmp_path: Path) -> None:
    steady(env)
    env["SCHED_NODES"] = json.dumps(NODES[1:])
    assert run(env, "--once", "-s", "nsigma").returncode == 0
    done = run(env, "--status")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert f"{NODES[1]}: CPU contention high: 2 VMs wait for CPU: a 20 %, b 20 %" in text
    assert "CPU high" in text
    shown = json.loads(run(env, "--status", "--json").stdout)[0]["cpu"]
    assert (shown["free"], shown["closed"], shown["contention"]["vms"]) == (0.0, True, {"a": 0.2, "b": 0.2})
