"""The evaluation of many traces: from options to tables and pictures on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli.progress import ProgressBar
from ..common.atomic_files import staged
from ..common.errors import UsageError
from ..parallel.workers import finish
from .grid import Pooled, Row, Variant, pooled, table_csv
from .result_cache import ResultCache
from .tables import print_pooled
from .tasks import EvaluationPlan, Task, evaluation_work, tasks_of


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """The options of an evaluation.

    Attributes
    ----------
    traces : tuple of str
        Files, and folders of them.
    output : Path
        Folder of the results.
    variants : tuple of Variant
        The strategies with the values of their parameters.
    after : int
        Number of slices at the start of a trace that are not scored.
    jobs : int or None
        Worker processes; None for one per core.
    dask : str or None
        Address of a Dask scheduler; None for processes of this machine.
    pictures : bool
        Whether to draw each trace.
    """

    traces: tuple[str, ...]
    output: Path
    variants: tuple[Variant, ...]
    after: int = 10
    jobs: int | None = None
    dask: str | None = None
    pictures: bool = False


def run_evaluation(options: EvaluationOptions) -> int:
    """Evaluate all traces and write the results.

    Returns
    -------
    int
        Exit code: 2 when a trace could not be evaluated.

    Raises
    ------
    UsageError
        When no trace could be evaluated, a path is unusable, or the cluster is lost.
    """
    plan = EvaluationPlan(options.variants, options.after, options.pictures)
    tasks = tasks_of(options.traces)
    folder = options.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows, errors = _evaluate_all(options, tasks, plan, ResultCache(folder, plan))
        if rows:
            _write_results(folder, rows)
    except OSError as error:
        place = error.filename or folder
        raise UsageError(f"{place}: {error.strerror or error}; finished traces are kept") from None
    if not rows:
        raise UsageError("no trace could be evaluated")
    return 2 if errors else 0


def _evaluate_all(
    options: EvaluationOptions, tasks: Sequence[Task], plan: EvaluationPlan, cache: ResultCache
) -> tuple[list[Row], list[str]]:
    """The rows of all traces, in the order of the traces, and the errors of those that have none."""
    rows_of = {task: rows for task in tasks if (rows := cache.load(task)) is not None}
    if rows_of:
        _report(f"{len(rows_of)} of {len(tasks)} traces are already done")
    # The largest first, so that the last worker does not run long after the others.
    pending = sorted((task for task in tasks if task not in rows_of), key=lambda task: task.stamp, reverse=True)
    work = evaluation_work(plan)
    errors: list[str] = []
    try:
        with ProgressBar().counted("evaluating", len(pending)) as advance:
            for task, outcome in finish(work, pending, options.jobs, options.dask):
                if outcome.error:
                    errors.append(outcome.error)
                else:
                    cache.save(task, outcome)
                    rows_of[task] = outcome.rows
                advance()
    finally:
        for error in sorted(errors):
            _report(error)
    return [row for task in tasks for row in rows_of.get(task, ())], errors


def _write_results(folder: Path, rows: Sequence[Row]) -> None:
    points = pooled(rows)
    with staged() as files:
        files.write(folder / "results.csv", table_csv(rows, Row).encode())
        files.write(folder / "pooled.csv", table_csv(points, Pooled).encode())
        files.write(folder / "pareto.png", _pareto_png(points))
    print_pooled(points)


def _pareto_png(points: Sequence[Pooled]) -> bytes:
    from ..replay.figures import png
    from .figures import pareto_figure

    return png(pareto_figure(points))


def _report(line: str) -> None:
    print(f"evaluate.py: {line}", file=sys.stderr)
