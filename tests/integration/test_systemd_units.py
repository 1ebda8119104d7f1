"""misc/systemd: systemd accepts each unit, and each can be reloaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNITS = sorted((ROOT / "misc" / "systemd").glob("*.service"))
each_unit = pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])


def test_every_daemon_has_a_unit() -> None:
    programs = {
        Path(line.split()[-1]).name for unit in UNITS for line in unit.read_text().splitlines() if "ExecStart=" in line
    }
    assert programs == {"vmaggreg.py", "scroogevm.py", "vmballooning.py"}


@each_unit
def test_reload_sends_sighup_to_the_daemon(unit: Path) -> None:
    assert unit.read_text().splitlines().count("ExecReload=/bin/kill -HUP $MAINPID") == 1


@each_unit
def test_daemon_is_watched_and_started_however_often_it_fails(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for line in ("Type=notify", "NotifyAccess=main", "WatchdogSec=60", "Restart=on-failure", "StartLimitIntervalSec=0"):
        assert lines.count(line) == 1, line
    # A restart does not mend settings, and nothing else ends with this code.
    assert lines.count("RestartPreventExitStatus=2") == 1


@each_unit
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The interpreter of the unit has to exist, and no other unit can be looked up here.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/scroogevm/.venv/bin/python", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
