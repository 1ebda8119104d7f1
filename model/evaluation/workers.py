"""Evaluation in worker processes of this machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from ..common.text import printable
from .source import SOURCE_DIGEST
from .tasks import EvaluationPlan, Outcome, Task, evaluate_file


def evaluate_in_processes(
    tasks: Sequence[Task], plan: EvaluationPlan, jobs: int | None
) -> Iterator[tuple[Task, Outcome]]:
    """Evaluate in ``jobs`` worker processes, by default one per core; yield each trace when it is done."""
    from joblib import cpu_count

    jobs = jobs or cpu_count()
    pending = dict.fromkeys(tasks)

    def run(batch: Sequence[Task], workers: int, started: list[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task, outcome in _run_pool(batch, plan, workers, started):
            del pending[task]
            yield task, outcome

    while pending:
        started: list[Task] = []
        try:
            yield from run(list(pending), jobs, started)
        except BrokenProcessPool:
            # One of the started tasks ended its worker, and the pool with it. Run alone, each shows whether it did.
            for suspect in [task for task in started if task in pending]:
                try:
                    yield from run([suspect], 1, [])
                except BrokenProcessPool:
                    del pending[suspect]
                    cause = "the process that evaluated it was killed; out of memory?"
                    yield suspect, Outcome(error=f"{printable(suspect.path)}: {cause}")


def _run_pool(
    tasks: Sequence[Task], plan: EvaluationPlan, workers: int, started: list[Task]
) -> Iterator[tuple[Task, Outcome]]:
    from joblib import Parallel, delayed

    def calls() -> Iterator[object]:
        for task in tasks:
            started.append(task)
            yield delayed(evaluate_file)(task, plan, SOURCE_DIGEST)

    # After an interruption it is clear that unfinished tasks are lost.
    warnings.filterwarnings("ignore", ".* tasks which were still being processed", UserWarning)
    # With one job joblib evaluates in this process, which a trace could then end.
    pool = Parallel(n_jobs=max(workers, 2), pre_dispatch=workers, batch_size=1, return_as="generator_unordered")
    yield from pool(calls())
