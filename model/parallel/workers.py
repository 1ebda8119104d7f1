"""Runs tasks, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .work import PlanT, ResultT, TaskT, Work


def finish(
    work: Work[TaskT, PlanT, ResultT], tasks: Sequence[TaskT], jobs: int | None, dask: str | None
) -> Iterator[tuple[TaskT, ResultT]]:
    """Yield each task with its result when it is done.

    Parameters
    ----------
    work : Work
    tasks : sequence
        Hashable; they begin in this order.
    jobs : int or None
        Worker processes; None for one per core.
    dask : str or None
        Address of a Dask scheduler; None for processes of this machine.

    Raises
    ------
    UsageError
        When the cluster is not usable, or lost.
    """
    if not tasks:
        return
    if dask is not None:
        from .dask_cluster import finish_on_cluster

        yield from finish_on_cluster(work, tasks, dask)
    else:
        from .processes import finish_in_processes

        yield from finish_in_processes(work, tasks, jobs)
