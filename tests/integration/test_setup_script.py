"""misc/setup.sh: runs at the same time do not disturb each other, and an interrupted run can be repeated.

The interpreter is a stand-in that creates an environment whose pip only writes a log.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, bare_environment
from tests.support.servers import wait_for

#: Waits, and ends on SIGTERM without leaving a process.
PAUSE = r"""#!/bin/sh
set -e
pause() {
    sleep "$1" &
    trap 'kill $!; exit 143' TERM
    wait $!
}
"""
#: Creates an environment in steps, slowly; a process that removes it in between makes the last step fail.
PYTHON = (
    PAUSE
    + r"""case "$*" in
-c*) exit 0 ;;
"-m venv --clear .venv")
    echo "venv begins" >>log
    rm -rf .venv
    mkdir -p .venv/bin
    cp environment_python .venv/bin/python
    pause "${VENV_S:-0.3}"
    touch .venv/pip
    echo "venv ends" >>log
    ;;
*) exit 64 ;;
esac
"""
)
ENVIRONMENT_PYTHON = (
    PAUSE
    + r"""case "$*" in
"-c import pip") [ -e .venv/pip ] ;;
"-m pip install"*)
    echo "pip begins" >>log
    echo $$ >pip_pid
    pause "${PIP_S:-0.3}"
    [ -e .venv/pip ]
    echo "pip ends" >>log
    ;;
*) exit 64 ;;
esac
"""
)
ONCE = ["venv begins", "venv ends", "pip begins", "pip ends"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the script uses."""
    tree = tmp_path / "my tree"
    (tree / "misc").mkdir(parents=True)
    for name in ("misc/setup.sh", "requirements.txt", "requirements-dev.txt"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    for name, text in (("python", PYTHON), ("environment_python", ENVIRONMENT_PYTHON)):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    (tree / "misc" / "setup.sh").chmod(0o755)
    (tree / "log").touch()
    return tree


def start(tree: Path, what: str = "live", **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [tree / "misc" / "setup.sh", what],
        env={**bare_environment(), "PYTHON": str(tree / "python"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, ""), error
    return error


def log(tree: Path) -> list[str]:
    return (tree / "log").read_text().splitlines()


def test_two_first_runs_at_once_set_up_once(tree: Path) -> None:
    first = start(tree)
    wait_for(lambda: log(tree))
    others = [start(tree), start(tree, "offline")]
    finish(first)
    for other in others:
        assert finish(other) == "setup: waiting for another set-up\n"
    assert log(tree) == ONCE


def test_runs_with_different_packages_follow_each_other(tree: Path) -> None:
    first = start(tree, "offline")
    wait_for(lambda: log(tree))
    assert "installing Python packages: live" in finish(start(tree, "live"))
    finish(first)
    assert log(tree) == [*ONCE, "pip begins", "pip ends"]


def test_completed_set_up_does_nothing_and_needs_no_lock(tree: Path) -> None:
    finish(start(tree))
    (tree / ".venv.lock").unlink()
    tree.chmod(0o555)
    try:
        assert finish(start(tree)) == ""
        assert finish(start(tree, "offline")) == ""
    finally:
        tree.chmod(0o755)
    assert log(tree) == ONCE
    assert not (tree / ".venv.lock").exists()


def test_changed_requirements_are_installed(tree: Path) -> None:
    finish(start(tree))
    with (tree / "requirements.txt").open("a") as requirements:
        requirements.write("# changed\n")
    finish(start(tree))
    assert log(tree) == [*ONCE, "pip begins", "pip ends"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda sent: sent.name)
def test_set_up_interrupted_in_pip_leaves_no_process_and_is_completed_by_the_next(
    tree: Path, sent: signal.Signals
) -> None:
    process = start(tree, PIP_S="30")
    wait_for(lambda: "pip begins" in log(tree) and (tree / "pip_pid").read_text())
    process.send_signal(sent)
    process.wait(10)
    pip = int((tree / "pip_pid").read_text())
    wait_for(lambda: not running(pip), 5)
    finish(start(tree, PIP_S="0"))
    assert log(tree) == ["venv begins", "venv ends", "pip begins", "pip begins", "pip ends"]
    communicated(process)


def test_environment_whose_creation_was_interrupted_is_created_again(tree: Path) -> None:
    process = start(tree, VENV_S="30")
    wait_for((tree / ".venv" / "bin" / "python").exists)
    process.kill()
    process.wait(10)
    finish(start(tree, VENV_S="0"))
    assert log(tree) == ["venv begins", *ONCE]
    communicated(process)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def communicated(process: subprocess.Popen[str]) -> None:
    """Close the pipes; a child that is killed too late would keep them open."""
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
