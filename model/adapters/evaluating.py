"""Many traces through the same variants: in worker processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import json
import logging
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from model.adapters.commandline import UsageError
from model.adapters.files import write_atomically
from model.evaluation import Row, Variant, evaluate, labels, row_of
from model.results import Results
from model.series import RESOURCES
from model.trace import TraceError, printable, read_trace

if TYPE_CHECKING:
    from importlib.abc import Traversable

#: How long a scheduler may take to answer, and its first worker to come.
_PATIENCE_S = 10.0


def _modules(folder: Traversable, under: str) -> Iterator[tuple[str, bytes]]:
    """Name and text of every module below a folder, which may be within a zip file."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{under}/{entry.name}"
        if entry.is_dir():
            yield from _modules(entry, name)
        elif name.endswith(".py"):
            yield name, entry.read_bytes()


def _digest() -> str:
    digest = hashlib.sha256()
    for name, text in _modules(importlib.resources.files("model"), "model"):
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
            from model.adapters.figures import png, published_figure

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


def on_cluster(tasks: Sequence[Task], plan: Plan, address: str) -> Iterator[tuple[Task, Outcome]]:
    """Evaluate on a Dask cluster; each trace as soon as it is done.

    The workers are sent our code. They have to have its libraries, and to find the traces under the same paths.

    Raises
    ------
    UsageError
        When there is no cluster at that address, or no longer.
    """
    from distributed import Client, as_completed

    # What these log with all their calls, we say in one line.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
    try:
        asyncio.run(_hear(address))
        client = Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except Exception as error:
        # Who is asked may be no scheduler at all, and what its bytes are taken for raises anything.
        late = isinstance(error, asyncio.TimeoutError)
        why = f"no Dask scheduler has answered for {_PATIENCE_S:g} s" if late else str(error)
        raise UsageError(f"--dask: {printable(address)}: {printable(why)}") from None
    with client, tempfile.TemporaryDirectory() as folder:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
            client.upload_file(str(_zipped(Path(folder))))
            _check_workers(client.run(_source, on_error="return"))
            futures = {client.submit(evaluate_file, task, plan, SOURCE, pure=False): task for task in tasks}
        except (OSError, RuntimeError) as error:
            why = "it has no workers" if isinstance(error, TimeoutError) else str(error)
            raise UsageError(f"--dask: {printable(address)}: {printable(why)}") from None
        for future in as_completed(list(futures), loop=client.loop):
            if future.status == "finished":
                yield future.result()
            elif future.status == "error":
                task, fault = futures[future], future.exception()
                yield task, Outcome(error=f"{printable(task.path)}: {type(fault).__name__}: {printable(str(fault))}")
            else:
                raise UsageError(f"--dask: {printable(address)}: the scheduler is gone; what is done is kept")


def _source() -> str:
    return SOURCE


def _check_workers(told: Mapping[str, object]) -> None:
    """Whether those that are there now can work for us; who comes later is asked with every trace."""
    for worker, source in told.items():
        if isinstance(source, BaseException):
            raise UsageError(f"--dask: worker {worker}: {type(source).__name__}: {printable(str(source))}")
        if source != SOURCE:
            raise UsageError(f"--dask: worker {worker} has imported another version of ScroogeVM; start it anew")


async def _hear(address: str) -> None:
    """A client that can't connect takes minutes to say so; a question does not."""
    from distributed import rpc

    async with rpc(address) as scheduler:
        await asyncio.wait_for(scheduler.identity(), _PATIENCE_S)


def _zipped(folder: Path) -> Path:
    """Our package as a file that a worker can import."""
    path = folder / f"scroogevm-{SOURCE[:16]}.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in _modules(importlib.resources.files("model"), "model"):
            file.writestr(name, text)
    return path


# --- what is done already ---------------------------------------------------------------------------


class _Done(msgspec.Struct):
    """A file of the folder ``done``."""

    key: str
    rows: list[Row]


class Kept:
    """What of an evaluation is done: kept trace by trace, so that it can be broken off at any time.

    Parameters
    ----------
    folder : Path
        Holds ``done/<trace>.json``, and ``traces/<trace>-<resource>.png`` if there are pictures.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan

    def rows(self, task: Task) -> list[Row] | None:
        """Those of a trace that is done; None when it, its file, the plan or our code is another than then."""
        try:
            done = msgspec.convert(json.loads(self._file(task).read_bytes()), _Done)
            current = done.key == self._key(task)
        except (OSError, ValueError):
            return None
        return done.rows if current and all(path.exists() for path in self._pictures(task).values()) else None

    def keep(self, task: Task, outcome: Outcome) -> None:
        """Write down what came of a trace.

        Raises
        ------
        OSError
        """
        for folder in ("done", "traces") if self._plan.pictures else ("done",):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        for name, path in self._pictures(task).items():
            write_atomically(path, outcome.pictures[name])
        # Not strict JSON: what could not be scored is NaN.
        done = {"key": self._key(task), "rows": [asdict(row) for row in outcome.rows]}
        write_atomically(self._file(task), json.dumps(done).encode())

    def _file(self, task: Task) -> Path:
        return self._folder / "done" / f"{task.name}.json"

    def _pictures(self, task: Task) -> dict[str, Path]:
        if not self._plan.pictures:
            return {}
        return {name: self._folder / "traces" / f"{task.name}-{name}.png" for name in (r.name for r in RESOURCES)}

    def _key(self, task: Task) -> str:
        parts = (task, self._plan.variants, self._plan.after, SOURCE)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
