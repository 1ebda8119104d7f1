"""Many traces through the same variants: in worker processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from ..common.text import printable
from .tasks import SOURCE, Outcome, Plan, Task, evaluate_file

# --- where it runs ----------------------------------------------------------------------------------


def in_processes(tasks: Sequence[Task], plan: Plan, jobs: int | None) -> Iterator[tuple[Task, Outcome]]:
    """Evaluate in so many worker processes, or one per core; each trace as soon as it is done."""
    from joblib import cpu_count

    jobs = jobs or cpu_count()
    waiting = dict.fromkeys(tasks)

    def run(some: Sequence[Task], at_once: int, begun: list[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task, outcome in _in_pool(some, plan, at_once, begun):
            del waiting[task]
            yield task, outcome

    while waiting:
        begun: list[Task] = []
        try:
            yield from run(list(waiting), jobs, begun)
        except BrokenProcessPool:
            # One of these has ended its worker, and the pool with it. Alone, it shows which.
            for suspect in [task for task in begun if task in waiting]:
                try:
                    yield from run([suspect], 1, [])
                except BrokenProcessPool:
                    del waiting[suspect]
                    why = "the process that evaluated it was killed; out of memory?"
                    yield suspect, Outcome(error=f"{printable(suspect.path)}: {why}")


def _in_pool(tasks: Sequence[Task], plan: Plan, jobs: int, begun: list[Task]) -> Iterator[tuple[Task, Outcome]]:
    from joblib import Parallel, delayed

    def calls() -> Iterator[object]:
        for task in tasks:
            begun.append(task)
            yield delayed(evaluate_file)(task, plan, SOURCE)

    # Who breaks off knows that what was under way is lost.
    warnings.filterwarnings("ignore", ".* tasks which were still being processed", UserWarning)
    # With one job joblib would work in this process, which then ends with what it evaluates.
    pool = Parallel(n_jobs=max(jobs, 2), pre_dispatch=jobs, batch_size=1, return_as="generator_unordered")
    yield from pool(calls())
