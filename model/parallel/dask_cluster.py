"""Tasks on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.text import printable
from .source import SOURCE_DIGEST, source_files
from .work import PlanT, ResultT, TaskT, Work, run_task

#: Timeout of the scheduler's answer and of the first worker's connection.
WAIT_S = 10.0


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
    from distributed import as_completed

    client = _connect(address)
    with client, tempfile.TemporaryDirectory() as folder:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
            client.upload_file(str(_write_package(Path(folder))))
            _check_workers(client.run(_source_digest, on_error="return"))
            futures = _submit(client, work, tasks)
        except (OSError, RuntimeError) as error:
            cause = "it has no workers" if isinstance(error, TimeoutError) else str(error)
            raise _cluster_error(address, cause) from None
        for future in as_completed(list(futures), loop=client.loop):
            if future.status == "finished":
                yield future.result()
            elif future.status == "error":
                task, fault = futures[future], future.exception()
                yield task, work.failed(task, f"{type(fault).__name__}: {printable(str(fault))}")
            else:
                raise _cluster_error(address, f"lost the scheduler; finished {work.noun} are kept")


def _submit(client: Any, work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT]) -> dict[Any, TaskT]:
    from distributed import as_completed

    with warnings.catch_warnings():
        # The plan may have many MB. As a task of its own it reaches each worker once, and outlives a worker.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        plan = client.submit(_unchanged, work.plan, pure=False)
    # Else any of the tasks that wait for it would be the first.
    next(as_completed([plan], loop=client.loop))
    return {
        client.submit(run_task, work.run, work.failed, task, plan, SOURCE_DIGEST, pure=False): task for task in tasks
    }


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
