"""Evaluation tasks: one trace each, computed by any worker."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import UsageError
from ..common.text import printable
from ..replay.results import Results
from ..replay.trace import TraceError, read_trace
from ..slices import RESOURCES
from .grid import Row, Variant, evaluate, labels, row_of

if TYPE_CHECKING:
    from importlib.abc import Traversable


#: The root package: ``model`` in a checkout, ``scroogevm`` where it is installed.
ROOT_PACKAGE = __name__.partition(".")[0]


def source_files() -> Iterator[tuple[str, bytes]]:
    """Name and text of every module of this package, which may be within a zip file."""
    return _modules(importlib.resources.files(ROOT_PACKAGE), ROOT_PACKAGE)


def _modules(folder: Traversable, under: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{under}/{entry.name}"
        if entry.is_dir():
            yield from _modules(entry, name)
        elif name.endswith(".py"):
            yield name, entry.read_bytes()


def _digest() -> str:
    digest = hashlib.sha256()
    for name, text in source_files():
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


#: Tells our code from other versions of it: of what is done already, and in workers that have imported an older one.
SOURCE = _digest()


@dataclass(frozen=True, slots=True)
class Task:
    """A trace.

    Attributes
    ----------
    path : str
        Absolute.
    name : str
        What to call it; no other trace of the evaluation is called so.
    stamp : two ints
        Size and time of the file.
    """

    path: str
    name: str
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with every trace.

    Attributes
    ----------
    variants : tuple of Variant
    after : int
        How many slices the strategies have to learn before their promises count.
    pictures : bool
    """

    variants: tuple[Variant, ...]
    after: int
    pictures: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trace: its rows, and a PNG per resource name; or one line on why nothing did."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    error: str = ""


def tasks_of(arguments: Iterable[str]) -> list[Task]:
    """The traces that files and folders (their ``*.json``) stand for, each once.

    Raises
    ------
    UsageError
        When one of them is not there, or when a folder has no trace.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        traces = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not traces or not path.exists():
            why = "no *.json in it" if path.is_dir() else "no such file or folder"
            raise UsageError(f"{printable(argument)}: {why}")
        found |= dict.fromkeys(trace.resolve() for trace in traces)
    stems = Counter(path.stem for path in found)
    return [_task(path, alone=stems[path.stem] == 1) for path in found]


def _task(path: Path, alone: bool) -> Task:
    name = path.stem if alone else f"{path.stem}-{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    file = path.stat()
    return Task(str(path), name, (file.st_size, file.st_mtime_ns))


def evaluate_file(task: Task, plan: Plan, source: str) -> tuple[Task, Outcome]:
    """What a worker does: one trace, all variants. Whatever is wrong with it is told, not raised."""
    if source != SOURCE:
        why = "a new worker has another version of ScroogeVM; start it anew"
        return task, Outcome(error=f"{printable(task.path)}: {why}")
    try:
        trace = read_trace(task.path)
        histories = evaluate(trace, plan.variants)
        rows = [row_of(task.name, variant, name, one, plan.after) for (variant, name), one in histories.items()]
        pictures: dict[str, bytes] = {}
        if plan.pictures:
            from ..replay.figures import png, published_figure

            called = labels(plan.variants)
            by_label = {(called[variant], name): history for (variant, name), history in histories.items()}
            results = Results(task.name, trace.config.node_name, np.array(trace.epoch), by_label)
            pictures = {resource.name: png(published_figure(results, resource)) for resource in RESOURCES}
    except TraceError as error:
        return task, Outcome(error=str(error))
    except Exception as error:
        # A fault of ours must not cost the other traces.
        return task, Outcome(error=f"{printable(task.path)}: {type(error).__name__}: {printable(str(error))}")
    return task, Outcome(rows, pictures)
