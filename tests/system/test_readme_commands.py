"""The commands of the README, run one after the other as a newcomer would.

Some are somebody else's: the set-up and the tests are CI itself, launching and the demo have test files of their own, and
the Bitbrains data set is not here (its files are read in test_traceconvert.py).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from tests.conftest import ROOT, bare_environment
from tests.unit.test_documentation import COMMANDS

ELSEWHERE = ("./launchallfromjson.sh", "./tests/run.sh", "misc/demo.sh", "misc/setup.sh", "bitbrains")
#: These run until they are told to stop.
DAEMONS = (
    r"vmaggreg\.py$",
    r"scroogevm\.py --strategy=\S+$",
    r"scroogevm\.py --watch$",
    r"vmballooning\.py --debug=1$",
    r"fakeworkers\.py",
)


@pytest.fixture
def workers() -> Iterator[FakeWorkers]:
    with in_thread(Plan(workers=1, vms=4, probe_delay_ms=200)) as running:
        yield running


def test_every_command_does_what_it_says(workers: FakeWorkers, tmp_path: Path) -> None:
    here = tmp_path / "scroogevm"
    for name in project_files():
        if (ROOT / name).is_file():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, here / name)
    (here / ".venv").symlink_to(ROOT / ".venv")
    url = workers.stubs()[0][0]
    env = {
        **bare_environment(),
        "AGGREG_FETCH_DELAY": "0.2",
        "STATE_ENDPOINT": str(tmp_path / "state" / "status.json"),
        "SCHED_SCOPE_S": "4",
        "SCHED_SCOPE_SLICE_S": "2",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "30",
        "LIBVIRT_NODES": json.dumps({url: "test:///default"}),
        "BALLOONING_STATS_AGE_S": "2",
    }
    ran = 0
    for command in COMMANDS:
        if any(word in command for word in ELSEWHERE):
            continue
        if "vmballooning" in command and not has_libvirt():
            continue
        meant = command.replace("http://worker1:9100/metrics", url).replace("2026-01-05", str(time.time() - 60))
        run(meant, here, env)
        ran += 1
        if command == "cp dotenv .env":
            (here / ".env").write_text((here / ".env").read_text().replace("http://worker1:9100/metrics", url))
    assert ran >= 12
    for left in (
        "results/report.html",
        "results/dump-greedy.json",
        "trace.json",
        "week.json",
        "results-week/report.html",
        "results-evaluation/pareto.png",
    ):
        assert (here / left).stat().st_size > 1000, left
    assert json.loads((tmp_path / "state" / "status.json").read_text())[url]["state"] in {"ok", "stale"}


def project_files() -> list[str]:
    """What git tracks; without git, or outside a checkout, all but what a test run leaves."""
    if shutil.which("git"):
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
        if tracked.returncode == 0:
            return tracked.stdout.split("\0")[:-1]
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in paths if not any(part.startswith((".", "__")) for part in path.parts[:-1])]


def has_libvirt() -> bool:
    try:
        import libvirt  # noqa: F401
    except ImportError:
        return False
    return True


def run(command: str, here: Path, env: dict[str, str]) -> None:
    process = subprocess.Popen(
        shlex.split(command), cwd=here, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if any(re.search(daemon, command) for daemon in DAEMONS):
            time.sleep(6 if "vmaggreg" in command or "--strategy" in command else 3)
            assert process.poll() is None, (command, process.communicate())
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, (command, stderr)
