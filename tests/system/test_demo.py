"""misc/demo.sh: what it shows, and that no process and no file of it stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT, bare_environment
from tests.support.servers import fetch, free_port, wait_for

SCRIPT = ROOT / "misc" / "demo.sh"
WAIT_S = 240
#: A variable of the environment by which processes of one demo are found, wherever they work.
MARK = "SCROOGEVM_TEST_DEMO"


@contextlib.contextmanager
def default_hangup() -> Iterator[None]:
    """A shell cannot trap a signal that is ignored when it starts, as SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@dataclass
class Demo:
    """A demo with its own folder for temporary files, in the environment of a real installation."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.output_path = self.folder / "output"
        self.environment = {
            **bare_environment(),
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "STORE_PATH": "/nowhere/store",
            "PLACEMENT_PROVIDERS": "nonsense",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A demo in the background whose output goes to a file."""
        with self.output_path.open("wb") as output, default_hangup():
            process = subprocess.Popen(
                [SCRIPT, *arguments], env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def wait_until_shown(self, text: str, process: subprocess.Popen[bytes]) -> None:
        wait_for(lambda: text in self.output or process.poll() is not None, 120)
        assert process.poll() is None, self.output

    def slow_down_starts(self) -> None:
        """Delay each setpriv, as a loaded machine does."""
        tools = self.folder / "tools"
        tools.mkdir()
        script = tools / "setpriv"
        script.write_text(f'#!/bin/sh\nenv -u {MARK} sleep 0.3\nexec {shutil.which("setpriv")} "$@"\n')
        script.chmod(0o755)
        self.environment["PATH"] = f"{tools}:{self.environment['PATH']}"

    def processes(self) -> dict[int, str]:
        """Command lines of the processes of this demo by process id."""
        running = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    running[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        return running

    def assert_nothing_stays(self) -> None:
        assert self.processes() == {}
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    for pid in demo.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def rows(output: str) -> list[list[str]]:
    """Rows of the tables of published figures: node, four figures of CPU, four of memory."""
    # Without target risks and violation rates, "1% (0%)", and without what the guards left.
    lines = [re.sub(r"\S+ \((\S+%|-)\)", "", line) for line in output.splitlines()]
    found = [re.match(r" (http://node\d\s.*\bscroogevm)\b", line) for line in lines]
    nodes = [[word for word in match[1].split() if word != "-"] for match in found if match]
    assert nodes
    return nodes


def importable(name: str) -> bool:
    command = [ROOT / ".venv/bin/python", "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# --- one demo from start to end ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A demo that has ended by itself, and the status page that it had."""

    demo: Demo
    kept: Path
    code: int
    output: str
    status_page: bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    demo, kept = Demo(folder), folder / "my demo"
    with demo.started("--seconds=30", f"--keep={kept}") as process:
        demo.wait_until_shown("Free resources of each node", process)
        (url,) = re.findall(
            r"^The same figures are on the status page .*: (http://127\.0\.0\.1:\d+/)$", demo.output, re.M
        )
        status, page = fetch(url)
        assert status == 200
        code = process.wait(WAIT_S)
    return Finished(demo, kept, code, demo.output, page)


def test_demo_succeeds_and_leaves_no_process(finished: Finished) -> None:
    assert finished.code == 0, finished.output
    finished.demo.assert_nothing_stays()


def test_table_shows_figures_of_each_node_that_change(finished: Finished) -> None:
    assert finished.output.count("Free resources of each node") >= 2
    nodes = rows(finished.output)
    assert {row[0] for row in nodes} == {f"http://node{i}" for i in range(3)}
    # One fails for some slices, another is closed in the end.
    for row in nodes:
        if row[1] != "ok" or row[2] == "closed":
            continue
        free_cpu, _, ratio, booked, of = map(float, row[2:7])
        assert 0 < free_cpu < of
        assert ratio == pytest.approx((booked + free_cpu) / of, abs=0.01)
    assert len({tuple(row[2:10]) for row in nodes}) > 3, "no figure has changed"


def test_node_whose_exporters_fail_is_stale_and_one_whose_vms_wait_is_closed(finished: Finished) -> None:
    assert {row[0] for row in rows(finished.output) if row[1] == "stale"} == {"http://node1"}
    assert "http://node0" in {row[0] for row in rows(finished.output) if row[2] == "closed"}
    assert re.search(r"^http://node0: CPU contention high: \d VMs wait for CPU: instance-", finished.output, re.M)


def test_status_page_has_all_nodes(finished: Finished) -> None:
    for i in range(3):
        assert f"http://node{i}".encode() in finished.status_page


def test_status_file_of_a_node_is_shown(finished: Finished) -> None:
    shown = finished.output
    status = json.loads(shown[shown.index("\n{") : shown.index("\n}") + 2])
    (node,) = status.values()
    assert node["state"] == "ok"
    assert node["cpu"]["unguarded"] == pytest.approx(max(0, node["cpu"]["config"] - node["cpu"]["tier0"]), abs=16)
    assert 0 <= node["free_cpu"] <= node["cpu"]["unguarded"]


def test_metrics_of_each_daemon_and_the_ballooning_plan_are_shown(finished: Finished) -> None:
    shown = finished.output
    assert re.search(r'^  scroogevm_scrapes_total\{node="http://node\d"\} [1-9]', shown, re.M)
    assert '  scroogevm_node_state{node="http://node0",state="ok"} 1.0' in shown
    daemons = re.findall(r"^  (\w+) runs \(pid \d+\)$", shown, re.M)
    if importable("libvirt"):
        assert "  scroogevm_balloon_sessions_total 0.0" in shown
        assert re.search(r"\ntest:///default  test  skip  .*mem_usage", shown)
        assert daemons == ["fakeworkers", "vmaggreg", "scroogevm", "vmballooning"]
    else:
        assert "vmballooning.py does not run" in shown
        assert daemons == ["fakeworkers", "vmaggreg", "scroogevm"]


def test_replay_of_the_exported_trace_is_shown(finished: Finished) -> None:
    for strategy in ("scroogevm", "greedy", "borg"):
        assert re.search(rf"^ {strategy} .*%", finished.output, re.M)
    assert re.search(r"target risk of 5%|Too few slices to tell", finished.output)


def test_kept_folder_has_all_files_and_is_not_used_twice(finished: Finished, demo: Demo) -> None:
    for name in (".env", "store.sqlite", "status.json", "scroogevm.log", "trace.json", "replay/report.html"):
        assert (finished.kept / name).is_file(), name
    assert f"the report is {finished.kept}/replay/report.html" in finished.output
    again = demo.run(f"--keep={finished.kept}")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr


# --- a scheduler in the loop ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("scheduled")
    demo, kept = Demo(folder), folder / "kept"
    with demo.started("--scheduler", "--seconds=30", "--ratio=2", f"--keep={kept}") as process:
        code = process.wait(WAIT_S)
    return Finished(demo, kept, code, demo.output, b"")


def test_demo_with_a_scheduler_succeeds_and_leaves_no_process(scheduled: Finished) -> None:
    assert scheduled.code == 0, scheduled.output
    scheduled.demo.assert_nothing_stays()
    daemons = re.findall(r"^  (\w+) runs \(pid \d+\)$", scheduled.output, re.M)
    assert daemons == ["scheduler", "vmaggreg", "scroogevm"]


def test_vms_are_placed_within_what_was_published(scheduled: Finished) -> None:
    """The log alone: what a node may hold follows from the figures read last, what it holds from starts and stops."""
    capacity, booked = dict[str, float](), dict[str, float]()
    history: dict[str, set[float]] = {}
    starts, confirmed = 0, 0
    for line in (scheduled.kept / "scheduler.jsonl").read_text().splitlines():
        event = json.loads(line)
        node = event.get("node")
        if event["event"] == "published":
            capacity[node] = event["capacity"]
            if event["capacity"] > 0:
                assert event["state"] == "ok"
                assert not event["closed"]
                assert event["capacity"] == pytest.approx(event["booked_now"] + event["free"])
                # Through pages, store and status file, the scheduler reads what it has itself booked.
                confirmed += event["booked_now"] > 0 and round(event["booked_now"], 3) in history[node]
        elif event["event"] in {"start", "stop"}:
            sign = 1 if event["event"] == "start" else -1
            booked[node] = booked.get(node, 0.0) + sign * event["vcpu"]
            assert event["booked"] == pytest.approx(booked[node])
            if event["event"] == "start":
                starts += 1
                assert booked[node] <= capacity[node] + 1e-6
        if node is not None:
            history.setdefault(node, set()).add(round(booked.get(node, 0.0), 3))
    assert set(booked) == {f"http://node{i}" for i in range(3)}
    assert starts >= 5
    assert confirmed > 0


def test_each_slice_and_the_figures_are_shown(scheduled: Finished) -> None:
    slices = re.findall(r"^ +(\d+) +\d+ +(\d+\.\d\d) +\d+% +\d +\d+\.\d +\d+$", scheduled.output, re.M)
    assert [int(number) for number, _ in slices] == list(range(1, 11))
    figures = json.loads((scheduled.kept / "figures.json").read_text())
    assert list(figures["rows"]) == ["clt, published", "ratio 2, simulated"]
    for name, row in figures["rows"].items():
        assert re.search(rf"^  {name} +{row['sold']:.2f} +{row['over']:.2%} ", scheduled.output, re.M)
    sold = [float(sold) for _, sold in slices[figures["warm_up"] :]]
    assert figures["rows"]["clt, published"]["sold"] == pytest.approx(sum(sold) / len(sold), abs=0.01)
    # More arrives than fits.
    assert 1.5 < figures["rows"]["ratio 2, simulated"]["sold"] <= 2


def test_settings_make_a_virtual_day_of_24_slices(scheduled: Finished) -> None:
    settings = (scheduled.kept / ".env").read_text().splitlines()
    assert {"SCHED_SCOPE_S=72", "SCHED_SCOPE_SLICE_S=3"} <= set(settings)
    assert not any(line.startswith("SCHED_GUARDS") for line in settings)


def test_interrupted_demo_with_a_scheduler_leaves_nothing(demo: Demo) -> None:
    kept = demo.folder / "kept"
    with demo.started("--scheduler", "--no-guards", "--seconds=600", f"--keep={kept}") as process:
        demo.wait_until_shown("slice   VMs   sold", process)
        assert "SCHED_GUARDS=0" in (kept / ".env").read_text().splitlines()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    demo.assert_nothing_stays()


def test_killed_demo_with_a_scheduler_leaves_no_process(demo: Demo) -> None:
    with demo.started("--scheduler", "--seconds=600") as process:
        demo.wait_until_shown("scroogevm runs", process)
        process.kill()
        process.wait()
        wait_for(lambda: not demo.processes(), 10)


def test_demo_ends_with_a_scheduler_that_fails(demo: Demo) -> None:
    with demo.started("--scheduler", "--seconds=600") as process:
        pid = wait_for(lambda: re.search(r"scheduler runs \(pid (\d+)\)", demo.output), 120)[1]
        os.kill(int(pid), signal.SIGKILL)
        assert process.wait(60) == 1
    assert "demo: scheduler has ended; its last log lines are above\n" in demo.output
    demo.assert_nothing_stays()


def test_invalid_workload_file_is_one_line(demo: Demo) -> None:
    file = demo.folder / "workload.json"
    file.write_text('{"step_s": 300, "duration_s": 300, "series": [], "vms": []}')
    done = demo.run("--scheduler", f"--workload={file}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{file}: series: is empty" in done.stderr
    demo.assert_nothing_stays()


# --- demos that are interrupted -----------------------------------------------------------------------------

#: What the demo has shown at the moment of the signal, and whether it is starting its next process then.
STARTING = ("fakeworkers runs", "vmaggreg runs", "scroogevm runs")


@pytest.mark.parametrize(
    ("sent", "code", "shown"),
    [
        (signal.SIGINT, 130, "Free resources of each node"),
        (signal.SIGTERM, 143, "scroogevm runs"),
        (signal.SIGHUP, 129, "fakeworkers runs"),
    ],
    ids=["SIGINT-shown", "SIGTERM-starting", "SIGHUP-starting"],
)
def test_interrupted_demo_leaves_nothing(sent: signal.Signals, code: int, shown: str, demo: Demo) -> None:
    if shown in STARTING:
        demo.slow_down_starts()
    with demo.started("--seconds=120") as process:
        demo.wait_until_shown(shown, process)
        if shown not in STARTING:
            assert len(demo.processes()) >= 4
        process.send_signal(sent)
        assert process.wait(60) == code
    demo.assert_nothing_stays()


@pytest.mark.parametrize("shown", ["", *STARTING])
def test_killed_demo_leaves_no_process(shown: str, demo: Demo) -> None:
    """Each kill meets a process that has not yet been tied to the life of the demo."""
    demo.slow_down_starts()
    with demo.started("--seconds=120") as process:
        demo.wait_until_shown(shown, process)
        wait_for(lambda: len(demo.processes()) > 1)
        process.kill()
        process.wait()
        wait_for(lambda: not demo.processes(), 10)


def test_closed_terminal_leaves_nothing(demo: Demo) -> None:
    terminal, inside = os.openpty()
    with default_hangup():
        process = subprocess.Popen(
            ["setsid", "--ctty", SCRIPT, "--seconds=120"],
            env={**demo.environment, "TERM": "dumb"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
    os.close(inside)
    try:
        output = b""
        while b"vmaggreg runs" not in output:
            output += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    demo.assert_nothing_stays()


def test_demo_ends_with_a_daemon_that_fails(demo: Demo) -> None:
    with demo.started("--seconds=120") as process:
        pid = wait_for(lambda: re.search(r"vmaggreg runs \(pid (\d+)\)", demo.output), 120)[1]
        os.kill(int(pid), signal.SIGKILL)
        assert process.wait(60) == 1
    assert "demo: vmaggreg has ended; its last log lines are above\n" in demo.output
    demo.assert_nothing_stays()


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unknown option: --fast"),
        (["now"], "unknown option: now"),
        (["--seconds"], "--seconds needs a value"),
        (["--seconds", "soon"], "--seconds: 'soon'"),
        (["--seconds=3"], "--seconds: '3'"),
        (["--keep", ""], "--keep needs a value"),
        (["--ratio=2"], "--ratio, --workload, --strategy and --no-guards need --scheduler"),
        (["--scheduler", "--ratio=0.0"], "--ratio: '0.0'"),
        (["--scheduler", "--ratio=high"], "--ratio: 'high'"),
        (["--scheduler", "--workload=/nowhere.json"], "--workload: /nowhere.json"),
        (["--scheduler", "--workload"], "--workload needs a value"),
    ],
)
def test_invalid_option_is_one_line_with_the_usage(arguments: list[str], message: str, demo: Demo) -> None:
    start = time.monotonic()
    done = demo.run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"demo: {message}")
    assert "usage: misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb]" in done.stderr
    assert time.monotonic() - start < 10
    demo.assert_nothing_stays()


@pytest.mark.parametrize("name", ["demo.sh", "setup.sh"])
def test_shellcheck_reports_nothing(name: str) -> None:
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(ROOT / ".venv" / "bin"))
    if command is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([command, ROOT / "misc" / name], capture_output=True, text=True, check=False)
    assert done.stdout == ""


# --- InfluxDB -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("influxd") is None, reason="influxd is not on PATH")
def test_demo_runs_on_influxdb_and_removes_its_folder(demo: Demo) -> None:
    done = demo.run("--seconds=10", "--influxdb")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    assert re.search(r"^ store http://127\.0\.0\.1:\d+ +ok +InfluxDB \S+, bucket scroogevm", done.stdout, re.M)
    assert {row[0] for row in rows(done.stdout)} == {f"http://node{i}" for i in range(3)}
    assert re.search(r"target risk of 5%|Too few slices to tell", done.stdout)
    demo.assert_nothing_stays()


def test_missing_influxdb_is_one_line(demo: Demo) -> None:
    """PATH has the ordinary tools only: no influxd, no docker, no podman."""
    tools = demo.folder / "tools"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for tool in Path(folder).iterdir():
            if tool.name not in {"influxd", "docker", "podman"} and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    demo.environment["PATH"] = str(tools)
    done = demo.run("--influxdb")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("demo: --influxdb: no server: ")
    demo.assert_nothing_stays()


def test_influxdb_that_does_not_respond_is_reported(demo: Demo) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    demo.environment |= {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": "s3cr3t"}
    done = demo.run("--influxdb")
    assert done.returncode == 2
    assert f"demo: --influxdb: InfluxDB at {url} cannot be used" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    demo.assert_nothing_stays()
