"""Scrapes all nodes, each in a loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp

from ..common.logs import ProblemLog
from ..samples import ScrapeSample
from .metrics import AggregatorMetrics
from .scrape_loop import ScrapeLoop
from .scraper import Scraper, open_session
from .settings import AggregatorSettings
from .worker_pool import WorkerPool

LOG = logging.getLogger("scroogevm.aggregator")

#: Scrapes at the same time where all nodes are scraped once; more would delay each other beyond their timeout.
_AT_ONCE = 32

#: Nodes that are scraped at about the same moment: what the next one needs is then in the caches of the CPU. Scrapes
#: that are spread evenly, and wake the process for each node, take 1.4 times as much CPU.
_GROUP = 16

#: Name lookups at the same time.
_LOOKUPS = 128

#: Threads that read pages; more than one, so that a page that takes long does not delay the others.
_READERS = 4

T = TypeVar("T")


async def gather_limited(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run jobs, a limited number at a time; their results in the order of the jobs."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def run(job: Coroutine[Any, Any, T]) -> T:
        async with slots:
            return await job

    return await asyncio.gather(*(run(job) for job in jobs))


class ScrapeManager:
    """Scrapes all nodes.

    Parameters
    ----------
    settings : AggregatorSettings
    put : callable
        Called with each sample in one of several threads; must not block.
    metrics : AggregatorMetrics
    clock : callable
        Monotonic seconds.
    wall_clock : callable
        Unix seconds.
    recall : callable
        The last stored sample of a node, if there is one.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        put: Callable[[ScrapeSample], None],
        metrics: AggregatorMetrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        recall: Callable[[str], ScrapeSample | None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._put = put
        self._metrics = metrics
        self._clock = clock
        self._recall = recall
        self._wall_clock = wall_clock
        self._pool = WorkerPool(_READERS)

    async def run(self, stop: asyncio.Event) -> None:
        """Scrape each node at its interval until stopped."""
        _raise_limits()
        async with self._open_session() as session:
            tasks = [asyncio.create_task(loop.run()) for loop in self.loops(session)]
            await stop.wait()
            # Do not wait for hung scrapes.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._pool.close()

    async def scrape_once(self) -> int:
        """Scrape each node once; the number of nodes that responded."""
        _raise_limits()
        async with self._open_session() as session:
            responded = sum(await gather_limited(loop.scrape() for loop in self.loops(session)))
        self._pool.close()
        return responded

    def _open_session(self) -> aiohttp.ClientSession:
        return open_session(self._settings.timeout_s, self._settings.max_page_bytes)

    def loops(self, session: aiohttp.ClientSession) -> list[ScrapeLoop]:
        """A loop per node, in the order of the settings."""
        settings, problems = self._settings, ProblemLog(LOG, self._clock)
        groups = math.ceil(len(settings.stubs) / _GROUP)
        return [
            ScrapeLoop(
                Scraper(
                    stub, session, settings.timeout_s, settings.max_page_bytes, self._wall_clock, settings.page_limits
                ),
                self._put,
                self._pool,
                self._metrics,
                problems,
                settings.fetch_delay_s,
                groups,
                self._clock,
                self._recall,
            )
            for stub in settings.stubs
        ]


def _raise_limits() -> None:
    """Allow as many connections as the system does, and so many lookups that dead names do not delay others."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # the limit may be fixed
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    # asyncio requires this class; it starts threads only as it needs them.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup"))
