"""The aggregator: every node at its own pace, every tick into the spool."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from ..common.lifecycle import Pace, jitter
from ..common.logs import ProblemLog
from ..samples import Scrape, ScrapeSample
from .metrics import AggregatorMetrics
from .rates import NodeRates
from .scraper import ScrapeError, Scraper, open_session
from .settings import AggregatorSettings

LOG = logging.getLogger("scroogevm.aggregator")

#: Until a probe has told its own delay.
_FIRST_DELAY_S = 5.0

_SHORTEST_DELAY_S = 0.1

_LONGEST_DELAY_S = 3600.0

#: A page that stays the same for so many of the probe's delays, and so long, is one that its probe has left behind.
_STILL_DELAYS = 3

_STILL_S = 15.0

#: Where all nodes are asked one time, and not spread over a period.
_AT_ONCE = 32

#: Names that are looked up at the same time.
_LOOKUPS = 128

T = TypeVar("T")


async def gather_limited(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The answers of all jobs, in their order; so few run at a time that waiting costs none of them its time."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def placed(job: Coroutine[Any, Any, T]) -> T:
        async with places:
            return await job

    return await asyncio.gather(*(placed(job) for job in jobs))


def _make_room() -> None:
    """As many connections as the system allows, and look-ups of dead names that do not keep others waiting."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where a limit may not be moved, it stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup"))


@dataclass(slots=True)
class _Node:
    """A node and what is remembered of it."""

    scraper: Scraper
    rates: NodeRates
    probe_delay_s: float = _FIRST_DELAY_S
    epoch_ms: float | None = None
    changed_at: float = 0.0


class ScrapeManager:
    """Scrapes all nodes for as long as it is told to.

    Parameters
    ----------
    settings : AggregatorSettings
    put : callable
        Takes each tick, and never waits.
    metrics : AggregatorMetrics
    """

    def __init__(
        self, settings: AggregatorSettings, put: Callable[[ScrapeSample], None], metrics: AggregatorMetrics
    ) -> None:
        self._settings = settings
        self._put = put
        self._metrics = metrics
        self._problems = ProblemLog(LOG)

    async def run(self, stop: asyncio.Event) -> None:
        """Scrape every node at its pace until the event is set."""
        _make_room()
        async with open_session(self._settings.timeout_s) as session:
            watchers = [asyncio.create_task(self._watch(node, stop)) for node in self._nodes(session)]
            await stop.wait()
            # Nobody waits for a node that hangs.
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def once(self) -> int:
        """Scrape every node one time; how many of them answered."""
        _make_room()
        async with open_session(self._settings.timeout_s) as session:
            return sum(await gather_limited(self._scrape(node) for node in self._nodes(session)))

    def _nodes(self, session: aiohttp.ClientSession) -> list[_Node]:
        chosen = self._settings
        return [
            _Node(Scraper(stub, session, chosen.timeout_s, chosen.max_page_bytes), NodeRates(stub.node))
            for stub in chosen.stubs
        ]

    def _delay_s(self, node: _Node) -> float:
        return self._settings.fetch_delay_s or node.probe_delay_s

    async def _watch(self, node: _Node, stop: asyncio.Event) -> None:
        """One node, for ever: whatever it does is its own affair."""
        name = node.scraper.stub.node
        pace = Pace(jitter(name) * self._delay_s(node))
        while await pace.wait(stop):
            await self._scrape(node)
            missed = pace.advance(self._delay_s(node))
            if missed:
                self._metrics.missed.labels(name).inc(missed)

    async def _scrape(self, node: _Node) -> bool:
        """Scrape a node and hand on what it told; whether it told anything."""
        name = node.scraper.stub.node
        start = time.monotonic()
        told = False
        try:
            scrape = await node.scraper.scrape()
            self._hand_on(node, scrape)
            self._refuse_what_stands_still(node, scrape)
            self._problems.resolve(name)
            told = True
        except ScrapeError as error:
            self._metrics.failures.labels(name, error.reason).inc()
            self._problems.report(name, str(error))
        except Exception:
            # A fault of ours, which must not cost the other nodes: logged with all that is known.
            LOG.exception("%s: the scrape failed", name)
            self._metrics.failures.labels(name, "internal").inc()
        self._metrics.scrapes.labels(name).inc()
        self._metrics.duration.labels(name).observe(time.monotonic() - start)
        self._metrics.up.labels(name).set(told)
        self._metrics.bad_lines.labels(name).set(node.scraper.bad_lines)
        return told

    def _hand_on(self, node: _Node, scrape: Scrape) -> None:
        delay_s = scrape.node.get("probe_delay", 0.0) / 1000.0
        if _SHORTEST_DELAY_S <= delay_s <= _LONGEST_DELAY_S:
            node.probe_delay_s = delay_s
        sample = node.rates.update(scrape)
        if sample is not None:
            self._put(sample)

    def _refuse_what_stands_still(self, node: _Node, scrape: Scrape) -> None:
        """An exporter goes on showing the file of a probe that has ended.

        Raises
        ------
        ScrapeError
            When the page has been the same for longer than a probe may take.
        """
        now = time.monotonic()
        if scrape.epoch_ms != node.epoch_ms:
            node.epoch_ms, node.changed_at = scrape.epoch_ms, now
        still_s = now - node.changed_at
        if still_s > max(_STILL_S, _STILL_DELAYS * node.probe_delay_s):
            raise ScrapeError("stale", f"the page has been the same for {still_s:.0f} s: its probe has stopped")
