"""Each lie of an exporter, served to the real aggregator and estimator: nothing is published that is not free."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from misc.fakeworkers.lies import LIES
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.servers import wait_for

SLICE_S, DELAY_S = 8, 1
#: Slices that are watched while the nodes lie.
WATCHED = 3
#: Of the capacity: what the counters may lack, 5 % and 50 ms of a second.
MARGIN = 0.10
STRATEGIES = ("percentile", "borg")
#: How often the log repeats a problem that comes and goes.
MOST_BEGINNINGS = 4


@contextlib.contextmanager
def daemon(program: str, *arguments: str, log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, ROOT / program, *arguments], env=env, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Fleet:
    """Simulated workers, a lie for each, and an honest one at the end."""

    def __init__(self, fakes: FakeWorkers) -> None:
        self.fakes = fakes
        self.names = [*LIES, "none"]
        self.urls = [stub["node"] if isinstance(stub, dict) else stub[0] for stub in fakes.stubs()]

    def lie(self) -> None:
        for index, name in enumerate(self.names[:-1]):
            self.fakes.inject(index, name)

    def free_at_most(self, index: int, strategy: str, end_s: float) -> float:
        """Cores of a worker that may be published at the end of a slice, without the margin."""
        worker = self.fakes.workers[index]
        if strategy == "borg":
            return worker.cores - int(worker.vcpus.sum()) / 1.1
        times_ms = [int((end_s - SLICE_S + step) * 1000) for step in range(SLICE_S + 1)]
        counted = [worker.counted_ns(time_ms) for time_ms in times_ms]
        return worker.cores - min(after - before for before, after in itertools.pairwise(counted)) / 1e9


@pytest.fixture(params=["vmprobe", "labels"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    plan = Plan(workers=len(LIES) + 1, vms=4, format=request.param, dialect="tinkoff", probe_delay_ms=0)
    with in_thread(plan) as fakes:
        yield Fleet(fakes)


def test_real_daemons_publish_nothing_that_is_not_free(fleet: Fleet, tmp_path: Path) -> None:
    """All lies begin after a slice of truth; each slice that ends meanwhile is checked for two strategies."""
    env = {
        **bare_environment(),
        "AGGREG_STUB_LIST": json.dumps(fleet.fakes.stubs()),
        "AGGREG_FETCH_DELAY": str(DELAY_S),
        "SCHED_SCOPE_S": str(SLICE_S),
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        "SCHED_SCOPE_HISTORICAL": "0",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "0",
        "SCHED_SETTLE_S": "1",
        # Guards could hide a false figure.
        "SCHED_GUARDS": "0",
        "SCHED_RISK": "0.05",
        "SCHED_RISK_MEM": "0.05",
        "SCHED_VM_HOLD_S": str(SLICE_S),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }
    paths = {name: tmp_path / name / "status.json" for name in STRATEGIES}
    published: dict[tuple[str, int, float], dict[str, Any]] = {}

    def read() -> None:
        for name, path in paths.items():
            for index, url in enumerate(fleet.urls):
                node = strict_json(path.read_bytes())[url]
                published[name, index, node["slice_end"]] = node

    with contextlib.ExitStack() as started:
        log = tmp_path / "vmaggreg.log"
        started.enter_context(daemon("vmaggreg.py", log=log, env=env))
        for name, path in paths.items():
            path.parent.mkdir()
            own = {**env, "STATE_ENDPOINT": str(path), "SCHED_CHECKPOINT_PATH": str(path.with_name("models.sqlite"))}
            started.enter_context(daemon("scroogevm.py", "-s", name, log=tmp_path / f"{name}.log", env=own))

        def all_ok() -> bool:
            statuses = [strict_json(path.read_bytes()) if path.exists() else {} for path in paths.values()]
            return all(nodes and {node["cpu"]["state"] for node in nodes.values()} == {"ok"} for nodes in statuses)

        wait_for(all_ok, 90)
        fleet.lie()
        until_s = time.time() + (WATCHED + 1) * SLICE_S
        while time.time() < until_s:
            read()
            time.sleep(0.5)
    wrong = [
        f"{fleet.names[index]} {name}: {node['free_cpu']:g} of at most {allowed:.1f} cores"
        for (name, index, end_s), node in published.items()
        if end_s is not None
        and node["free_cpu"]
        > (allowed := fleet.free_at_most(index, name, end_s)) + MARGIN * fleet.fakes.workers[index].cores
    ]
    assert wrong == []
    honest = [node["state"] for (_, index, _), node in published.items() if index == len(LIES)]
    # On a busy machine a slice may lack its last scrape.
    assert honest.count("ok") >= WATCHED * len(STRATEGIES) - 1
    stale = {fleet.names[index] for (_, index, _), node in published.items() if node["cpu"]["state"] == "stale"}
    assert stale >= {"cpu-still", "mode-missing", "mode-nan", "idle-missing", "merged-names", "alloc-absurd"}
    warnings = re.findall(r" WARNING scroogevm\.\w+: (\S+): (.*)", log.read_text())
    lines = collections.Counter((node, re.sub(r"\d+(\.\d+)?", "#", cause)) for node, cause in warnings)
    assert max(lines.values()) <= MOST_BEGINNINGS + 1, "a problem that comes and goes is one problem after a few times"
