"""Scrapes one node at its own interval."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.lifecycle import Pace, jitter
from ..common.logs import ProblemLog
from ..samples import Scrape, ScrapeSample
from .metrics import AggregatorMetrics
from .node_clock import ClockBehind, skew_ms
from .rates import NodeRates
from .scraper import Pages, ScrapeError, Scraper
from .throttle import CPU_SHARE, Throttle
from .unconfirmed_report import UnconfirmedReport
from .worker_pool import WorkerPool

LOG = logging.getLogger("scroogevm.aggregator")

#: Interval until a page reports the delay of its probe.
_FIRST_INTERVAL_S = 5.0

#: Shortest interval that a page chooses, and the longest delay of a probe that is believed.
_SHORTEST_INTERVAL_S = 1.0
_LONGEST_INTERVAL_S = 3600.0

#: A page is stale when it has not changed for this number of delays of the probe, and for at least this time.
_STALE_DELAYS = 3
_STALE_S = 15.0

#: Pages of a node are cheap while none took longer, each counting less with every one that follows; and are small.
_CHEAP_S, _UNKNOWN_COST_S = 0.005, 0.01
_REMEMBERED = 0.5
_CHEAP_BYTES = 2**18


@dataclass(slots=True)
class ScrapeLoop:
    """Scrapes a node, computes rates, detects a stale page, and scrapes a node less often that costs too much.

    Pages are read and samples are encoded a scrape at a time, so that the state of the node needs no lock: in the pool,
    or at once where that is cheap.

    Parameters
    ----------
    scraper : Scraper
    put : callable
        Called with each sample, in a thread of the pool or in the event loop; must not block.
    pool : WorkerPool
    metrics : AggregatorMetrics
    problems : ProblemLog
    interval_s : float
        0 uses the delay of the probe.
    groups : int
        Groups of nodes that begin at different times of the interval.
    clock : callable
        Monotonic seconds.
    recall : callable
        The last stored sample of a node, if there is one; called in a thread of the pool.
    """

    scraper: Scraper
    put: Callable[[ScrapeSample], None]
    pool: WorkerPool
    metrics: AggregatorMetrics
    problems: ProblemLog
    interval_s: float = 0.0
    groups: int = 1
    clock: Callable[[], float] = time.monotonic
    recall: Callable[[str], ScrapeSample | None] = lambda _: None
    _rates: NodeRates = field(init=False)
    _unconfirmed: UnconfirmedReport = field(init=False)
    _probe_delay_s: float = field(init=False, default=_FIRST_INTERVAL_S)
    _epoch_ms: float | None = field(init=False, default=None)
    _changed_s: float = field(init=False, default=0.0)
    _throttle: Throttle = field(init=False)
    _pause_s: float = field(init=False, default=0.0)
    _cpu_s: float = field(init=False, default=0.0)
    _recent_s: float = field(init=False, default=_UNKNOWN_COST_S)

    def __post_init__(self) -> None:
        self._rates = NodeRates(self.node, lambda: self.recall(self.node))
        self._unconfirmed = UnconfirmedReport(self.node, self.metrics, self.problems)
        self._throttle = Throttle(self.clock)

    @property
    def node(self) -> str:
        """Name of the node."""
        return self.scraper.stub.node

    @property
    def current_interval_s(self) -> float:
        """Seconds between two scrapes: the configured interval, else the delay of the probe."""
        return self.interval_s or max(self._probe_delay_s, _SHORTEST_INTERVAL_S)

    @property
    def current_intervals(self) -> int:
        """Intervals until the next scrape: more than one when the node costs too much."""
        return max(1, math.ceil(self._pause_s / self.current_interval_s))

    async def run(self) -> None:
        """Scrape at the interval until cancelled; scrapes that are too late are skipped."""
        pace = Pace(jitter(self.node, self.groups) * self.current_interval_s, self.clock)
        while True:
            await pace.wait()
            await self.scrape()
            intervals = self.current_intervals
            missed = pace.advance(intervals * self.current_interval_s)
            if intervals > 1:
                self.metrics.throttled.labels(self.node).inc(intervals - 1)
            if missed:
                self.metrics.missed.labels(self.node).inc(missed)

    async def scrape(self) -> bool:
        """Scrape the node once; whether that succeeded. An error is logged and counted, not raised."""
        start_s = self.clock()
        start_cpu_s = self._cpu_s + self.scraper.received_s
        succeeded = flooded = False
        try:
            pages = await self.scraper.request()
            flooded = pages.flooded
            scrape = (
                self._measure(pages) if self._is_cheap(pages) else await self.pool.run(lambda: self._measure(pages))
            )
            self._follow_delay(scrape)
            self._refuse_stale_page(scrape)
            self.problems.resolve(self.node)
            # Metrics of the node alone are stored, but the scrape is not complete.
            succeeded = scrape.domains is not None
            if not succeeded:
                self.metrics.failures.labels(self.node, "vms").inc()
        except ScrapeError as error:
            flooded = error.flooded
            self.metrics.failures.labels(self.node, error.reason).inc()
            self.problems.report(self.node, str(error))
        except Exception as error:
            # A defect must not affect the other nodes.
            cause = f"the scrape failed: {type(error).__name__}"
            self.problems.report(self.node, cause, logging.ERROR, error=error)
            self.metrics.failures.labels(self.node, "internal").inc()
        self.metrics.scrapes.labels(self.node).inc()
        self.metrics.duration.labels(self.node).observe(self.clock() - start_s)
        self.metrics.up.labels(self.node).set(succeeded)
        self.metrics.bad_lines.labels(self.node).set(self.scraper.bad_lines)
        self._charge(self._cpu_s + self.scraper.received_s - start_cpu_s, flooded)
        return succeeded

    def _is_cheap(self, pages: Pages) -> bool:
        """Whether pages are processed at once: to hand them to another thread costs a fifth of what cheap ones cost.

        They are small, and no recent ones of the node took long. So a node that sends a costly page after cheap ones
        delays the others once.
        """
        return self._recent_s < _CHEAP_S and pages.size <= _CHEAP_BYTES

    def _measure(self, pages: Pages) -> Scrape:
        """Process pages in this thread, and add its CPU time to that of the node."""
        start_s = time.thread_time()
        try:
            return self._process(pages)
        finally:
            cost_s = time.thread_time() - start_s
            self._cpu_s += cost_s
            self._recent_s = max(cost_s, _REMEMBERED * self._recent_s)

    def _process(self, pages: Pages) -> Scrape:
        scrape = self.scraper.read(pages)
        self.metrics.skew.labels(self.node).set(skew_ms(scrape) / 1000.0)
        try:
            sample, problems = self._rates.update(scrape)
        except ClockBehind as error:
            raise ScrapeError("clock", str(error)) from None
        if sample is not None:
            self._unconfirmed.report(problems)
            self.put(sample)
        return scrape

    def _charge(self, cost_s: float, flooded: bool) -> None:
        """Charge the node with the CPU time of a scrape, and set the pause until the next one."""
        self._pause_s = self._throttle.charge(cost_s, flooded=flooded)
        self.metrics.cpu.labels(self.node).inc(cost_s)
        self.metrics.interval.labels(self.node).set(self.current_intervals * self.current_interval_s)
        subject = f"{self.node}: cost of its pages"
        if self._throttle.is_overdrawn:
            self.problems.report(
                subject,
                f"the last scrape took {cost_s:.3f} s, the node is scraped less often than every "
                f"{self.current_interval_s:g} s, so that it takes {CPU_SHARE:.0%} of a core",
            )
        elif self._throttle.is_idle:
            self.problems.resolve(subject)

    def _follow_delay(self, scrape: Scrape) -> None:
        delay_s = scrape.node.get("probe_delay", 0.0) / 1000.0
        if 0 < delay_s <= _LONGEST_INTERVAL_S:
            self._probe_delay_s = delay_s

    def _refuse_stale_page(self, scrape: Scrape) -> None:
        """Refuse the page of a probe that has stopped, which its exporter continues to serve.

        Raises
        ------
        ScrapeError
            When the page has not changed for too long.
        """
        now_s = self.clock()
        if scrape.epoch_ms != self._epoch_ms:
            self._epoch_ms, self._changed_s = scrape.epoch_ms, now_s
        unchanged_s = now_s - self._changed_s
        if unchanged_s > max(_STALE_S, _STALE_DELAYS * self._probe_delay_s):
            raise ScrapeError("stale", f"the page has not changed for {unchanged_s:.0f} s: its probe has stopped")
