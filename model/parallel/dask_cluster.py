"""Tasks on a Dask cluster."""

from __future__ import annotations

import asyncio
import itertools
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Generic

from ..common.errors import UsageError
from ..common.text import printable
from .source import SOURCE_DIGEST, source_files
from .work import PlanT, ResultT, TaskT, Work, run_task

#: Timeout of the scheduler's answer and of the first worker's connection.
WAIT_S = 10.0
#: Tasks that the scheduler has at one time, for each thread of a worker and at least: enough for each to find the next
#: one at hand.
_TASKS_PER_THREAD = 8
_LEAST_TASKS = 64


def finish_on_cluster(
    work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT], address: str
) -> Iterator[tuple[TaskT, ResultT]]:
    """Run tasks on a Dask cluster; yield each task when it is done.

    This package is sent to the workers. Its libraries must be installed there, and files that tasks name must be
    available under the same paths.

    Raises
    ------
    UsageError
        When there is no usable cluster at that address, or when it is lost.
    """
    client = _connect(address)
    with client, tempfile.TemporaryDirectory() as folder:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
            client.upload_file(str(_write_package(Path(folder))))
            _check_workers(client.run(_source_digest, on_error="return"))
            window = _Window(client, work, tasks)
            window.refill()
        except (OSError, RuntimeError) as error:
            cause = "it has no workers" if isinstance(error, TimeoutError) else str(error)
            raise _cluster_error(address, cause) from None
        yield from window.finish(address)


class _Window(Generic[TaskT, PlanT, ResultT]):
    """The tasks that the scheduler has at one time, so that its memory and the workers' depends on no number of tasks.

    A worker keeps a result until the client drops its future, and the scheduler each task that it was given.
    """

    def __init__(self, client: Any, work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT]) -> None:
        from distributed import as_completed

        self._client = client
        self._work = work
        self._waiting = iter(tasks)
        self._task_of: dict[Any, TaskT] = {}
        with warnings.catch_warnings():
            # The plan may have many MB. As a task of its own it reaches each worker once, and outlives a worker.
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            self._plan = client.submit(_unchanged, work.plan, pure=False)
        # Else any of the tasks that wait for it would be the first.
        next(as_completed([self._plan], loop=client.loop))
        self._completed = as_completed(loop=client.loop)
        self._size = 0

    def refill(self) -> None:
        """Submit tasks when half of the window is empty: many at once cost the scheduler less than one by one."""
        if len(self._task_of) > self._size // 2:
            return
        # Workers may have come or gone since the last time.
        threads = sum(self._client.nthreads().values())
        self._size = max(_LEAST_TASKS, _TASKS_PER_THREAD * threads)
        tasks = list(itertools.islice(self._waiting, self._size - len(self._task_of)))
        if not tasks:
            return
        count, work = len(tasks), self._work
        same = ([value] * count for value in (work.run, work.failed))
        futures = self._client.map(
            *(run_task, *same, tasks, [self._plan] * count, [SOURCE_DIGEST] * count), pure=False, batch_size=count
        )
        self._task_of |= zip(futures, tasks, strict=True)
        self._completed.update(futures)

    def finish(self, address: str) -> Iterator[tuple[TaskT, ResultT]]:
        """Yield each task with its result when it is done, and drop it."""
        while self._task_of:
            batch = self._completed.next_batch()
            finished = [future for future in batch if future.status == "finished"]
            for future in batch:
                task = self._task_of.pop(future)
                if future.status == "error":
                    fault = future.exception()
                    yield task, self._work.failed(task, f"{type(fault).__name__}: {printable(str(fault))}")
                elif future.status != "finished":
                    raise self._lost(address)
            try:
                # One request to each worker.
                results = self._client.gather(finished)
                self.refill()
            except (OSError, RuntimeError, asyncio.CancelledError, CancelledError):
                raise self._lost(address) from None
            yield from results

    def _lost(self, address: str) -> UsageError:
        return _cluster_error(address, f"lost the scheduler; finished {self._work.noun} are kept")


def _unchanged(plan: PlanT) -> PlanT:
    return plan


def _connect(address: str) -> Any:
    """A client of the scheduler, a ``distributed.Client``."""
    from distributed import Client

    # Dask logs each failure with a traceback, and asyncio each that Dask leaves in a future, as after a lost worker;
    # the errors raised here have one line.
    for name in ["asyncio", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed"))]:
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    try:
        asyncio.run(_identify_scheduler(address))
        return Client(address, timeout=WAIT_S, set_as_default=False)
    except Exception as error:
        # The peer may be no scheduler at all, and decoding its bytes raises any exception.
        timed_out = isinstance(error, asyncio.TimeoutError)
        cause = f"no Dask scheduler answered within {WAIT_S:g} s" if timed_out else str(error)
        raise _cluster_error(address, cause) from None


async def _identify_scheduler(address: str) -> None:
    """Send one request to the scheduler: a client that cannot connect takes minutes to fail."""
    from distributed import rpc

    async with rpc(address) as scheduler:
        await asyncio.wait_for(scheduler.identity(), WAIT_S)


def _source_digest() -> str:
    return SOURCE_DIGEST


def _check_workers(digests: Mapping[str, object]) -> None:
    """Refuse a worker with another version of this package; workers that join later check each task."""
    for worker, digest in digests.items():
        if isinstance(digest, BaseException):
            raise UsageError(f"--dask: worker {worker}: {type(digest).__name__}: {printable(str(digest))}")
        if digest != SOURCE_DIGEST:
            raise UsageError(f"--dask: worker {worker} has imported another version of ScroogeVM; restart it")


def _write_package(folder: Path) -> Path:
    """Write this package as a zip file that a worker can import."""
    path = folder / f"scroogevm-{SOURCE_DIGEST[:16]}.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in source_files():
            file.writestr(name, text)
    return path


def _cluster_error(address: str, cause: str) -> UsageError:
    return UsageError(f"--dask: {printable(address)}: {printable(cause)}")
