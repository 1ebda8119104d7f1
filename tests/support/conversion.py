"""Runs misc/traceconvert.py in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from misc import traceconvert
from model.replay.trace import Trace, read_trace
from model.slices import Slice
from tests.conftest import DATA, strict_json

BITBRAINS = DATA / "bitbrains"
AZURE = DATA / "azure"
HOUR = ["--slice-s", "3600", "--scope-s", "3600"]
PERIOD = ["--start", "1704067200", "--end", "1704074400"]
NODE = ["--node-name", "n1", "--node-cores", "32", "--node-memory-mb", "131072"]


class Converter:
    """Runs the tool and keeps its messages."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.output = folder / "out" / "trace.json"
        self.output.parent.mkdir()
        self.messages = ""
        self._capsys = capsys

    def code(self, *arguments: str | Path) -> int:
        try:
            code = traceconvert.main([*map(str, arguments), "--output", str(self.output)])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        self.messages = self._capsys.readouterr().err
        return code

    def trace(self, *arguments: str | Path) -> Trace:
        assert self.code(*arguments) == 0, self.messages
        return read_trace(self.output)

    def json(self, *arguments: str | Path) -> Any:
        assert self.code(*arguments) == 0, self.messages
        return strict_json(self.output.read_bytes())

    def error(self, *arguments: str | Path) -> str:
        """The one line about invalid input; no file is left, not even a temporary one."""
        self.output.unlink(missing_ok=True)
        assert self.code(*arguments) == 2
        assert list(self.output.parent.iterdir()) == []
        assert self.messages.count("\n") == 1
        assert self.messages.endswith("\n")
        return self.messages.rstrip()


def row_of(period: Slice, vm: str) -> tuple[list[float], list[float]]:
    """CPU and memory samples of a VM; NaN where one is missing."""
    i = period.vms.index(vm)
    return period.cpu.vm_usage[i].tolist(), period.mem.vm_usage[i].tolist()


def prometheus_arguments(url: str) -> list[str]:
    return ["prometheus", "--server", url, "--node-instance", "w1:9100", *HOUR, *PERIOD]
