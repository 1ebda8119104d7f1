"""Traces and runs of ``misc/evaluate.py``."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from misc import evaluate, tracegen
from model.evaluation import command, tasks
from model.parallel import processes
from model.parallel.work import PlanT, ResultT, TaskT, Work

TABLES = ("results.csv", "pooled.csv")
#: Stands for a picture where none is drawn.
NO_PICTURE = b"no picture"


@dataclass(frozen=True)
class Finished:
    """The end of a run."""

    code: int
    out: str
    err: str


def write_traces(folder: Path, mixes: Sequence[str]) -> Path:
    """A trace of a small node per mix; the last one is the smallest."""
    for seed, mix in enumerate(mixes):
        shape = ["--vms=4", f"--scopes={40 - seed}", "--samples=6", "--cores=16", "--memory-mb=65536"]
        assert tracegen.main([f"--mix={mix}", *shape, f"--seed={seed}", str(folder / f"{mix}.json")]) == 0
    return folder


def run_main(*arguments: str | Path, draw: bool = False) -> Finished:
    """Run the command line in this process: without signal handlers and worker processes, by default without pictures."""

    def finish_here(
        work: Work[TaskT, PlanT, ResultT], pending: Sequence[TaskT], jobs: int | None
    ) -> Iterator[tuple[TaskT, ResultT]]:
        return ((task, work.run(task, work.plan)) for task in pending)

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "run_interruptible", lambda job, when_interrupted: job())
        patch.setattr(processes, "finish_in_processes", finish_here)
        if not draw:
            patch.setattr(command, "_pareto_png", lambda points: NO_PICTURE)
            patch.setattr(tasks, "_pictures", lambda *_: {"cpu": NO_PICTURE, "mem": NO_PICTURE})
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = evaluate.main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = int(end.code or 0)
    return Finished(code, out.getvalue(), err.getvalue())


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def same_tables(one: Path, other: Path) -> bool:
    """Whether two result folders have the same tables, byte by byte."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TABLES)
