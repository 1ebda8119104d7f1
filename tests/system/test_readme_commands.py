"""The commands of README, CONTRIBUTING and docs, run page by page in a copy of the project, as a reader would."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import in_thread
from tests.conftest import ROOT, bare_environment
from tests.support.markdown import PAGES, Page
from tests.support.servers import wait_for

MASTER = "needs root and changes the machine"
WORKER = "runs on a worker, as root"
SSH = "needs a remote host"

WAIT_S = 120.0

#: Commands that are not run, by their beginning, and why.
NOT_RUN = {
    "./launchallfromjson.sh": "test_launchall.py runs it",
    "./tests/run.sh": "is what runs this test",
    "misc/demo.sh": "test_demo.py runs it",
    "misc/setup.sh live && .venv/bin/python scroogevm.py --scan": "needs that server; test_prometheus_source.py scans one",
    "misc/setup.sh": "installs into the environment of this test; every other test needs what it installs",
    "misc/influxdb.sh": "needs a container engine; test_influxdb_script.py runs it with a fake one",
    "python3 -m venv scroogevm-env": "test_install.py installs the package",
    "scroogevm-env/bin/pip install": "test_install.py installs the package",
    ".venv/bin/python -m pytest": "would run unit tests a second time",
    ".venv/bin/python misc/traceconvert.py bitbrains": "the data set is not here; test_convert_bitbrains.py reads files of its format",
    ".venv/bin/python scroogevm.py --scan --simulate": "needs a day of history; test_scan_command.py has two",
    ".venv/bin/jupyter notebook": "opens a browser; test_report.py runs the notebook",
    ".venv/bin/dask": "needs a fixed port; test_evaluate_cluster.py runs a cluster",
    ".venv/bin/python misc/evaluate.py traces": "needs that cluster",
    "git clone": "needs the network",
    "git pull": "needs the network",
    "cd /opt/scroogevm": MASTER,
    "useradd": MASTER,
    "install": MASTER,
    "systemctl": MASTER,
    "journalctl": MASTER,
    "apt install": WORKER,
    "adduser": WORKER,
    "cmake": WORKER,
    "make": WORKER,
    "ssh-keygen": SSH,
    "ssh-copy-id": SSH,
    "virsh": SSH,
    "promtool": "test_alert_rules.py runs it",
    "vcpu-delay.sh": "test_vcpu_delay_script.py and test_real_exporters.py run it",
}
#: Options that are added to commands, by their beginning, and why.
SHORTENED = {
    ".venv/bin/python misc/benchmarks/": (" -h", "benchmarks take minutes"),
    ".venv/bin/python misc/doc_pictures.py": (" -h", "needs Chromium"),
}

#: The text block of its page is the beginning of its output.
SHOWN = ".venv/bin/python scroogevm.py --load=decreasing-workload.json"

#: Files that the commands of a page leave, relative to the copy.
LEFT = {
    "docs/replay.md": ("results/report.html", "results/summary.csv", "results/dump-greedy.json", "trace.json"),
    "docs/scan.md": ("results-scan/scan.html", "results-scan/scan.json", "results-scan/scan.csv"),
    "docs/simulation.md": ("results-simulation/simulation.csv", "results-simulation/report.html"),
    "docs/evaluation.md": ("results-evaluation/pareto.png", "results-evaluation/pooled.csv"),
    "docs/estimator.md": ("week.json", "results-week/report.html"),
}


@dataclass
class Checkout:
    """A copy of the project with its own settings, beside simulated workers."""

    folder: Path
    url: str
    env: dict[str, str]
    ready_s: float = field(default=0.0)

    @property
    def status(self) -> Path:
        return Path(self.env["STATE_ENDPOINT"])

    def point_to_worker(self) -> None:
        """Names the simulated worker in ``.env``, as a reader edits it."""
        path = self.folder / ".env"
        path.write_text(path.read_text().replace("http://worker1:9100/metrics", self.url))

    def run(self, command: str) -> str:
        """Run a command to its end, or a daemon until it works; its output."""
        line = command.replace("http://worker1:9100/metrics", self.url)
        line += next((options for start, (options, _) in SHORTENED.items() if command.startswith(start)), "")
        works = next((works for pattern, works in DAEMONS.items() if re.search(pattern, line)), None)
        begun = time.time()
        with self._started(line) as (process, output):
            if works is not None:
                try:
                    wait_for(lambda: process.poll() is not None or works(self, output, begun), WAIT_S)
                except AssertionError:
                    pytest.fail(f"does not work within {WAIT_S:g} s: {line}\n{output.read_text()}")
                assert process.poll() is None, (line, output.read_text())
                process.send_signal(signal.SIGINT)
            process.wait(timeout=WAIT_S)
        assert process.returncode in exit_codes(line), (line, output.read_text())
        return output.read_text()

    @contextlib.contextmanager
    def _started(self, line: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        output = self.folder.parent / "output.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                shlex.split(line), cwd=self.folder, env=self.env, stdout=stream, stderr=subprocess.STDOUT
            )
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def exit_codes(line: str) -> set[int]:
    """No daemon publishes while ``--status`` runs, so a node may be outdated."""
    return {0, 1} if "--status" in line else {0}


def has_published(checkout: Checkout, _: Path, begun: float) -> bool:
    return checkout.status.stat().st_mtime > begun


def has_started(_: Checkout, output: Path, begun: float) -> bool:
    return " started" in output.read_text()


def has_printed(_: Checkout, output: Path, begun: float) -> bool:
    return output.stat().st_size > 0


#: Commands that run until they are stopped, and how to see that they work.
DAEMONS: dict[str, Callable[[Checkout, Path, float], bool]] = {
    r"vmaggreg\.py$": has_started,
    r"scroogevm\.py --strategy=\S+$": has_published,
    r"scroogevm\.py --watch$": has_printed,
    r"vmballooning\.py --debug=1$": has_started,
    r"misc/fakeworkers": has_printed,
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """Its aggregator runs for as long as the tests of this module."""
    base = tmp_path_factory.mktemp("readme")
    here = base / "scroogevm"
    for name in project_files():
        if (ROOT / name).is_file():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, here / name)
    (here / ".venv").symlink_to(ROOT / ".venv")
    shutil.copy(here / "dotenv", here / ".env")
    (base / "state").mkdir()
    with in_thread(Plan(workers=1, vms=4, probe_delay_ms=200)) as workers:
        url = workers.stubs()[0][0]
        env = {
            **bare_environment(),
            "PYTHONUNBUFFERED": "1",
            "AGGREG_FETCH_DELAY": "0.2",
            "STATE_ENDPOINT": str(base / "state" / "status.json"),
            "SCHED_SCOPE_S": "4",
            "SCHED_SCOPE_SLICE_S": "2",
            "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "30",
            "LIBVIRT_NODES": json.dumps({url: "test:///default"}),
            "BALLOONING_STATS_AGE_S": "2",
        }
        made = Checkout(here, url, env)
        made.point_to_worker()
        log = base / "aggregator.log"
        with log.open("wb") as stream:
            aggregator = subprocess.Popen([".venv/bin/python", "vmaggreg.py"], cwd=here, env=env, stderr=stream)
        try:
            wait_for(lambda: aggregator.poll() is not None or any(made.status.parent.glob("store.sqlite*")))
            assert aggregator.poll() is None, log.read_text()
            # Three slices later there is something to estimate and to export.
            made.ready_s = time.monotonic() + 6
            yield made
        finally:
            aggregator.terminate()
            aggregator.wait(timeout=30)


@pytest.mark.parametrize("page", [page for page in PAGES if page.commands], ids=str)
def test_commands_of_a_page_succeed(checkout: Checkout, page: Page) -> None:
    commands = [command for command in page.commands if reason_not_to_run(command) is None]
    if any(re.search(r"scroogevm\.py(?! (--load|-h|--check-config))", command) for command in commands):
        time.sleep(max(0.0, checkout.ready_s - time.monotonic()))
        if not checkout.status.exists():
            checkout.run(".venv/bin/python scroogevm.py --once")
    for command in commands:
        if "vmballooning" in command and not has_libvirt():
            continue
        output = checkout.run(command)
        if command == SHOWN:
            lines = [line.rstrip() for line in output.splitlines()]
            assert "\n".join(lines).startswith(page.blocks("text")[0])
        if command == "cp dotenv .env":
            checkout.point_to_worker()
    for name in LEFT.get(str(page), ()):
        assert (checkout.folder / name).stat().st_size > 100, name
    if page.path.name == "estimator.md":
        assert json.loads(checkout.status.read_text())[checkout.url]["state"] in {"ok", "stale"}


def test_every_exception_is_of_a_command() -> None:
    commands = [command for page in PAGES for command in page.commands]
    assert [start for start in NOT_RUN if not any(starts_with(command, start) for command in commands)] == []
    assert sum(reason_not_to_run(command) is None for command in commands) >= 25


def reason_not_to_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if starts_with(command, start)), None)


def starts_with(command: str, start: str) -> bool:
    """By whole words."""
    return f"{command} ".startswith(f"{start} ")


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
