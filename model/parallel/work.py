"""What workers do with each of many tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .source import SOURCE_DIGEST

TaskT = TypeVar("TaskT")
PlanT = TypeVar("PlanT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Work(Generic[TaskT, PlanT, ResultT]):
    """A function that workers apply to tasks. It is created in the module of the function, see :func:`run_task`.

    Attributes
    ----------
    run : callable
        Computes the result of a task from the task and the plan. A function of a module, so that it can be sent to a
        worker. It raises no error: a fault is part of the result.
    plan : object
        The same for every task. Large arrays in it reach each worker once.
    failed : callable
        The result of a task whose worker failed, from the task and a cause of a few words.
    verb, noun : str
        What is done with a task, and what finished tasks are, in messages: ``evaluated`` and ``traces``.
    """

    run: Callable[[TaskT, PlanT], ResultT]
    plan: PlanT
    failed: Callable[[TaskT, str], ResultT]
    verb: str
    noun: str


def run_task(
    run: Callable[[TaskT, PlanT], ResultT],
    failed: Callable[[TaskT, str], ResultT],
    task: TaskT,
    plan: PlanT,
    source_digest: str,
) -> tuple[TaskT, ResultT]:
    """Run one task, in a worker.

    The digest is that of the code which this process imported with the function: where a worker has imported an older
    version, newer modules may come from the files that it receives.
    """
    if source_digest != SOURCE_DIGEST:
        return task, failed(task, "a new worker has another version of ScroogeVM; restart it")
    return task, run(task, plan)
