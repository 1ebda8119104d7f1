"""launchallfromjson.sh: the command that replays a trace with every strategy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.oversubscriptioncomputation import STRATEGIES
from tests.conftest import DATA, ROOT

SCRIPT = ROOT / "launchallfromjson.sh"
TINY = DATA / "goldens" / "traces" / "tiny.json"


def launch(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_every_strategy_summary_and_report_are_left_in_the_folder(tmp_path: Path) -> None:
    done = launch(TINY, "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {*(f"dump-{name}.json" for name in STRATEGIES), "summary.csv", "report.html"}
    assert done.stdout.count("what was published as free") == 2
    assert done.stdout.splitlines()[-1] == "results/report.html"


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["missing.json", "out"], [".", "out"]])
def test_wrong_arguments_give_the_usage(arguments: list[str], tmp_path: Path) -> None:
    done = launch(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: launchallfromjson.sh TRACE.json OUTPUT_FOLDER" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = launch(TINY, "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "out exists already" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_malformed_trace_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    done = launch("bad.json", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "bad.json: not JSON" in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_with_blanks_and_dashes_are_names(tmp_path: Path) -> None:
    (tmp_path / "-my trace.json").write_bytes(TINY.read_bytes())
    assert launch("-my trace.json", "-o u t", cwd=tmp_path).returncode == 0
    assert (tmp_path / "-o u t" / "summary.csv").exists()


def test_offline_packages_are_those_of_the_requirements() -> None:
    """The packages of the replay have the version ranges of requirements.txt, so each must be listed there."""
    names = re.search(r"OFFLINE=\((.*?)\)", (ROOT / "misc" / "setup.sh").read_text())
    assert names is not None
    ranges = {re.split(r"[<>=~]", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(names[1].split()) <= ranges
    assert "libvirt-python" not in names[1]


def test_replay_runs_with_the_offline_packages_alone(tmp_path: Path) -> None:
    """The imports of the offline mode, pictures included, are in that set."""
    code = (
        "import sys, runpy\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['scroogevm.py', '-l', {str(TINY)!r}, '-o', 'out', '--report']\n"
        "class Gone:\n"
        "    def find_spec(self, name, *rest):\n"
        "        gone = {'influxdb_client', 'jupyter', 'libvirt', 'prometheus_client', 'pytest', 'requests'}\n"
        "        if name.partition('.')[0] in gone: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from model.commands import scroogevm\n"
        "sys.exit(scroogevm.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
