"""Evaluation tasks: one trace each, computed by any worker."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cli.files import json_files_of
from ..common.text import printable
from ..numerics import FloatArray
from ..parallel.work import Work
from ..replay.results import Results
from ..replay.trace import TraceError, read_trace
from ..slices import RESOURCES
from .grid import Histories, Row, Variant, evaluate, labels, row_of


@dataclass(frozen=True, slots=True)
class Task:
    """A trace.

    Attributes
    ----------
    path : str
        Absolute.
    name : str
        Unique in the evaluation.
    stamp : two ints
        Size and modification time (ns) of the file; zeros where it cannot be read.
    """

    path: str
    name: str
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """The same for every trace.

    Attributes
    ----------
    variants : tuple of Variant
    after : int
        Number of slices at the start of a trace that are not scored.
    pictures : bool
        Whether to draw each trace.
    """

    variants: tuple[Variant, ...]
    after: int
    pictures: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task: rows, and a PNG per resource name; or an error of one line."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    error: str = ""


def tasks_of(arguments: Iterable[str]) -> list[Task]:
    """A task per trace file; a folder stands for its ``*.json``. Duplicates are dropped.

    Raises
    ------
    UsageError
        When a file or folder is missing or unreadable, or when a folder has no trace.
    """
    paths = dict.fromkeys(Path(os.path.realpath(path)) for argument in arguments for path in json_files_of(argument))
    stems = Counter(path.stem for path in paths)
    return [_task(path, unique=stems[path.stem] == 1) for path in paths]


def _task(path: Path, unique: bool) -> Task:
    name = path.stem if unique else f"{path.stem}-{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    try:
        status = path.stat()
    except OSError:
        # A dangling link, for example: the evaluation reports the cause and continues with the other traces.
        return Task(str(path), name, (0, 0))
    return Task(str(path), name, (status.st_size, status.st_mtime_ns))


def evaluation_work(plan: EvaluationPlan) -> Work[Task, EvaluationPlan, Outcome]:
    """What workers do with each trace."""
    return Work(_evaluate_file, plan, _failed, verb="evaluated", noun="traces")


def _evaluate_file(task: Task, plan: EvaluationPlan) -> Outcome:
    """Evaluate all variants on one trace, in a worker.

    Errors are part of the outcome and are not raised: one trace must not cost the others.
    """
    try:
        trace = read_trace(task.path)
        histories = evaluate(trace, plan.variants)
        rows = [row_of(task.name, variant, name, one, plan.after) for (variant, name), one in histories.items()]
        epoch = np.array(trace.epoch)
        pictures = _pictures(task.name, trace.config.node_name, epoch, histories) if plan.pictures else {}
    except TraceError as error:
        return Outcome(error=str(error))
    except Exception as error:
        return _failed(task, f"{type(error).__name__}: {printable(str(error))}")
    return Outcome(rows, pictures)


def _failed(task: Task, cause: str) -> Outcome:
    """The outcome of a trace that could not be evaluated."""
    return Outcome(error=f"{printable(task.path)}: {cause}")


def _pictures(name: str, node_name: str, epoch: FloatArray, histories: Histories) -> dict[str, bytes]:
    """A PNG per resource name: what each variant published, slice by slice."""
    from ..replay.figures import png, published_figure

    label_of = labels(list(dict.fromkeys(variant for variant, _ in histories)))
    by_label = {(label_of[variant], resource): history for (variant, resource), history in histories.items()}
    results = Results(name, node_name, epoch, by_label)
    return {resource.name: png(published_figure(results, resource)) for resource in RESOURCES}
