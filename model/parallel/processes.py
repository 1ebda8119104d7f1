"""Tasks in worker processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

from .source import SOURCE_DIGEST
from .work import PlanT, ResultT, TaskT, Work, run_task


def finish_in_processes(
    work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT], jobs: int | None
) -> Iterator[tuple[TaskT, ResultT]]:
    """Run tasks in ``jobs`` worker processes, by default one per core; yield each task when it is done."""
    from joblib import cpu_count

    jobs = jobs or cpu_count()
    pending = dict.fromkeys(tasks)

    def run(batch: Sequence[TaskT], workers: int, started: list[TaskT]) -> Iterator[tuple[TaskT, ResultT]]:
        for task, result in _run_pool(work, batch, workers, started):
            del pending[task]
            yield task, result

    while pending:
        started: list[TaskT] = []
        try:
            yield from run(list(pending), jobs, started)
        except BrokenProcessPool:
            # One of the started tasks ended its worker, and the pool with it. Run alone, each shows whether it did.
            for suspect in [task for task in started if task in pending]:
                try:
                    yield from run([suspect], 1, [])
                except BrokenProcessPool:
                    del pending[suspect]
                    yield suspect, work.failed(suspect, f"the process that {work.verb} it was killed; out of memory?")


def _run_pool(
    work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT], workers: int, started: list[TaskT]
) -> Iterator[tuple[TaskT, ResultT]]:
    from joblib import Parallel, delayed

    def calls() -> Iterator[object]:
        for task in tasks:
            started.append(task)
            yield delayed(run_task)(work.run, work.failed, task, work.plan, SOURCE_DIGEST)

    # For the workers: what one of their threads frees, the others can use.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # For joblib's process that removes what an interruption leaves: it would warn that something was left.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    # After an interruption it is clear that unfinished tasks are lost.
    warnings.filterwarnings("ignore", ".* tasks which were still being processed", UserWarning)
    # With one job joblib runs tasks in this process, which a task could then end.
    pool = Parallel(
        n_jobs=max(min(workers, len(tasks)), 2), pre_dispatch=workers, batch_size=1, return_as="generator_unordered"
    )
    with _interrupts_blocked():
        results = pool(calls())
    yield from results


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM for what this thread starts meanwhile; for itself they wait until the end.

    Both may reach every process of a group (Ctrl-C does). Workers leave them to this process, which ends them: an idle
    one would print a traceback, one that starts would leave semaphores behind.
    """
    # Its start, once per process, unblocks them in Python before 3.12.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
