"""Traces and runs of ``misc/evaluate.py``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from misc import evaluate, tracegen
from model.evaluation import command, tasks
from tests.support.workers import Finished, run_here

__all__ = ["NO_PICTURE", "Finished", "run_main", "same_tables", "table", "write_traces"]

TABLES = ("results.csv", "pooled.csv")
#: Stands for a picture where none is drawn.
NO_PICTURE = b"no picture"


def write_traces(folder: Path, mixes: Sequence[str]) -> Path:
    """A trace of a small node per mix; the last one is the smallest."""
    for seed, mix in enumerate(mixes):
        shape = ["--vms=4", f"--scopes={40 - seed}", "--samples=6", "--cores=16", "--memory-mb=65536"]
        assert tracegen.main([f"--mix={mix}", *shape, f"--seed={seed}", str(folder / f"{mix}.json")]) == 0
    return folder


def run_main(*arguments: str | Path, draw: bool = False) -> Finished:
    """Run the command line in this process: without signal handlers and worker processes, by default without pictures."""

    def prepare(patch: pytest.MonkeyPatch) -> None:
        if not draw:
            patch.setattr(command, "_pareto_png", lambda points: NO_PICTURE)
            patch.setattr(tasks, "_pictures", lambda *_: {"cpu": NO_PICTURE, "mem": NO_PICTURE})

    return run_here(evaluate, arguments, prepare)


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def same_tables(one: Path, other: Path) -> bool:
    """Whether two result folders have the same tables, byte by byte."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TABLES)
