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

from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.unit.estimator.support import NODES, SLICE_S, scrapes, waiting

PROGRAM = [sys.executable, str(ROOT / "scroogevm.py")]
#: The last 26 minutes, in slices of a minute.
LAST = math.floor(time.time() / SLICE_S) - 2
NUMBERS = range(LAST - 25, LAST + 1)

Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    store = SqliteStore(tmp_path / "store.sqlite", 86400)
    store.write([store.encode(sample) for sample in waiting(scrapes(NODES[0], NUMBERS))])
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
