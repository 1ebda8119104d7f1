"""Evaluation on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..common.errors import UsageError
from ..common.text import printable
from .tasks import SOURCE, Outcome, Plan, Task, evaluate_file, source_files

#: How long the scheduler may take to answer, and the first worker to connect.
WAIT_S = 10.0


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
        client = Client(address, timeout=WAIT_S, set_as_default=False)
    except Exception as error:
        # Who is asked may be no scheduler at all, and what its bytes are taken for raises anything.
        late = isinstance(error, asyncio.TimeoutError)
        why = f"no Dask scheduler has answered for {WAIT_S:g} s" if late else str(error)
        raise UsageError(f"--dask: {printable(address)}: {printable(why)}") from None
    with client, tempfile.TemporaryDirectory() as folder:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
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
        await asyncio.wait_for(scheduler.identity(), WAIT_S)


def _zipped(folder: Path) -> Path:
    """Our package as a file that a worker can import."""
    path = folder / f"scroogevm-{SOURCE[:16]}.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in source_files():
            file.writestr(name, text)
    return path
