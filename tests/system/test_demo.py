"""misc/demo.sh: what a newcomer sees, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, bare_environment
from tests.support.servers import wait_for

SCRIPT = ROOT / "misc" / "demo.sh"
WAIT_S = 240


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Its folder is below ours; settings of a real installation are there, and must not get in."""
    place = tmp_path / "tmp"
    place.mkdir()
    return {
        **bare_environment(),
        "TMPDIR": str(place),
        "STORE_PATH": "/nowhere/store",
        "PLACEMENT_PROVIDERS": "nonsense",
    }


def demo(environ: dict[str, str], *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False, **more
    )  # type: ignore[call-overload]


def alive(folder: Path) -> dict[int, str]:
    """Processes that work in a folder or below, even one that is gone; the demo's all do."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
    return found


def pids(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"runs \(pid (\d+)\)", output)]


def nothing_stays(environ: dict[str, str], output: str) -> None:
    place = Path(environ["TMPDIR"])
    assert alive(place) == {}
    assert not [pid for pid in pids(output) if Path(f"/proc/{pid}").exists()]
    assert list(place.iterdir()) == []


def rows(output: str) -> list[list[str]]:
    """Rows of the tables of what is free: node, then four figures of CPU and four of memory."""
    found = [line.split() for line in output.splitlines() if re.match(r" http://node\d\s.*\bscroogevm$", line)]
    assert found
    return found


def test_a_newcomer_sees_everything_and_nothing_stays(environ: dict[str, str]) -> None:
    done = demo(environ, "--seconds", "12")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    shown = done.stdout
    # The table, whole from the beginning, and again.
    assert shown.count("What may be placed on each node") >= 2
    found = rows(shown)
    assert {row[0] for row in found} == {f"http://node{i}" for i in range(3)}
    for row in found:
        free_cpu, booked, of, ratio = map(float, row[1:5])
        assert 0 < free_cpu < of
        assert ratio == pytest.approx((booked + free_cpu) / of, abs=0.01)
    assert len({tuple(row[1:9]) for row in found}) > 3, "no figure has moved"
    # The status file of one node.
    status = json.loads(shown[shown.index("\n{") : shown.index("\n}") + 2])
    (node,) = status.values()
    assert node["state"] == "ok"
    assert node["free_cpu"] == pytest.approx(node["cpu"]["config"] - node["cpu"]["tier0"], abs=16)
    # Metrics, plan, replay.
    assert re.search(r'^  scroogevm_scrapes_total\{node="http://node\d"\} [1-9]', shown, re.M)
    assert '  scroogevm_node_state{node="http://node0",state="ok"} 1.0' in shown
    if importable("libvirt"):
        assert "  scroogevm_balloon_sessions_total 0.0" in shown
        assert "\ntest:///default  test  skip  no mem_usage is stored of it\n" in shown
        assert len(pids(shown)) == 4
    else:
        assert "vmballooning.py is left out" in shown
    for strategy in ("scroogevm", "greedy", "borg"):
        assert re.search(rf"^ {strategy} .*%", shown, re.M)
    assert "at a risk of 5%: " in shown or "Most careful" in shown
    nothing_stays(environ, shown)


def importable(name: str) -> bool:
    return (
        subprocess.run([ROOT / ".venv/bin/python", "-c", f"import {name}"], capture_output=True, check=False).returncode
        == 0
    )


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_it_leaves_nothing(
    sent: signal.Signals, code: int, environ: dict[str, str], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    # A shell can't trap what was ignored when it began, as SIGHUP is under nohup.
    before = signal.signal(sent, signal.SIG_DFL)
    try:
        with said.open("w") as output:
            process = subprocess.Popen([SCRIPT, "--seconds=120"], env=environ, stdout=output, stderr=output)
    finally:
        signal.signal(sent, before)
    try:
        wait_for(lambda: "What may be placed" in said.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, said.read_text()
        assert len(alive(Path(environ["TMPDIR"]))) >= 3
        process.send_signal(sent)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()
    nothing_stays(environ, said.read_text())


def test_killed_it_leaves_no_process(environ: dict[str, str], tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen([SCRIPT, "--seconds=120"], env=environ, stdout=output, stderr=output)
    wait_for(lambda: "scroogevm runs" in said.read_text(), 120)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(Path(environ["TMPDIR"])), 60)


def test_a_daemon_that_ends_is_told_and_ends_it(environ: dict[str, str], tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen([SCRIPT, "--seconds=120"], env=environ, stdout=output, stderr=output)
    try:
        found = wait_for(lambda: re.search(r"vmaggreg runs \(pid (\d+)\)", said.read_text()), 120)
        os.kill(int(found[1]), signal.SIGKILL)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
    assert "demo: vmaggreg has ended" in said.read_text()
    nothing_stays(environ, said.read_text())


def test_kept_folder_can_be_looked_at_and_is_not_used_twice(environ: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "my demo"
    done = demo(environ, "--seconds=10", f"--keep={kept}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert alive(kept) == {}
    for name in (".env", "store.sqlite", "status.json", "scroogevm.log", "trace.json", "replay/report.html"):
        assert (kept / name).is_file(), name
    again = demo(environ, f"--keep={kept}")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fast"], "unknown: --fast"),
        (["now"], "unknown: now"),
        (["--seconds"], "--seconds needs a value"),
        (["--seconds", "soon"], "--seconds: 'soon'"),
        (["--seconds=3"], "--seconds: '3'"),
        (["--keep", ""], "--keep needs a value"),
    ],
)
def test_bad_option_is_one_line_with_the_usage(arguments: list[str], told: str, environ: dict[str, str]) -> None:
    begun = time.monotonic()
    done = demo(environ, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"demo: {told}")
    assert "usage: misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb]" in done.stderr
    assert time.monotonic() - begun < 10
    nothing_stays(environ, "")


@pytest.mark.skipif(shutil.which("influxd") is None, reason="influxd is not on PATH")
def test_the_same_runs_on_influxdb(environ: dict[str, str]) -> None:
    done = demo(environ, "--seconds=10", "--influxdb")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    assert re.search(r"^ store http://127\.0\.0\.1:\d+ +ok +InfluxDB \S+, bucket scroogevm", done.stdout, re.M)
    assert {row[0] for row in rows(done.stdout)} == {f"http://node{i}" for i in range(3)}
    assert "at a risk of 5%: " in done.stdout or "Most careful" in done.stdout
    nothing_stays(environ, done.stdout)


def test_influxdb_that_cannot_be_had_is_one_line(environ: dict[str, str], tmp_path: Path) -> None:
    """With a PATH of the ordinary tools alone: neither influxd, nor docker, nor podman."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for tool in Path(folder).iterdir():
            if tool.name not in {"influxd", "docker", "podman"} and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    done = demo({**environ, "PATH": str(tools)}, "--influxdb")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("demo: --influxdb: none can be had: ")
    nothing_stays(environ, done.stdout)


def test_influxdb_that_does_not_answer_is_told(environ: dict[str, str]) -> None:
    environ |= {"INFLUXDB_URL": "http://127.0.0.1:1", "INFLUXDB_TOKEN": "s3cr3t"}
    done = demo(environ, "--influxdb")
    assert done.returncode == 2
    assert "demo: --influxdb: InfluxDB at http://127.0.0.1:1 can't be used" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    nothing_stays(environ, done.stdout)


@pytest.mark.parametrize("name", ["demo.sh", "setup.sh"])
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(ROOT / ".venv" / "bin"))
    if command is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([command, ROOT / "misc" / name], capture_output=True, text=True, check=False)
    assert done.stdout == ""
