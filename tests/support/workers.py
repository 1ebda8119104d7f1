"""Runs of command lines whose work is done in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from model.parallel import processes
from model.parallel.work import PlanT, ResultT, TaskT, Work


@dataclass(frozen=True)
class Finished:
    """The end of a run."""

    code: int
    out: str
    err: str


def run_here(
    program: ModuleType, arguments: Sequence[str | Path], prepare: Callable[[pytest.MonkeyPatch], None]
) -> Finished:
    """Run a program of ``misc/`` in this process, without signal handlers and worker processes."""

    def finish_here(
        work: Work[TaskT, PlanT, ResultT], pending: Sequence[TaskT], jobs: int | None
    ) -> Iterator[tuple[TaskT, ResultT]]:
        return ((task, work.run(task, work.plan)) for task in pending)

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run_interruptible", lambda job, when_interrupted: job())
        patch.setattr(processes, "finish_in_processes", finish_here)
        prepare(patch)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = program.main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = int(end.code or 0)
    return Finished(code, out.getvalue(), err.getvalue())
