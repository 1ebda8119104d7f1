"""misc/traceconvert.py as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from model.replay.trace import read_trace
from tests.conftest import ROOT
from tests.support.conversion import BITBRAINS, HOUR, NODE


def test_process_reads_files_without_importing_pandas_or_requests(tmp_path: Path) -> None:
    tool = ROOT / "misc" / "traceconvert.py"
    output = tmp_path / "trace.json"
    ran = subprocess.run(
        [sys.executable, "-W", "error", tool, "bitbrains", BITBRAINS, *NODE, *HOUR, "--output", output],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert len(read_trace(output)) == 6
    helped = subprocess.run(
        [sys.executable, "-X", "importtime", tool, "prometheus", "-h"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert helped.returncode == 0
    assert "--node-instance" in helped.stdout
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"pandas", "requests"}
