"""Scrapes one node at its own interval."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.lifecycle import Pace, jitter
from ..common.logs import ProblemLog
from ..samples import Scrape, ScrapeSample
from .metrics import AggregatorMetrics
from .node_clock import ClockBehind, skew_ms
from .rates import NodeRates
from .scraper import ScrapeError, Scraper
from .unconfirmed_report import UnconfirmedReport

LOG = logging.getLogger("scroogevm.aggregator")

#: Interval until a page reports the delay of its probe.
_FIRST_INTERVAL_S = 5.0

#: Delays of a probe outside these limits are ignored.
_SHORTEST_INTERVAL_S = 0.1
_LONGEST_INTERVAL_S = 3600.0

#: A page is stale when it has not changed for this number of delays of the probe, and for at least this time.
_STALE_DELAYS = 3
_STALE_S = 15.0


@dataclass(slots=True)
class ScrapeLoop:
    """Scrapes a node, computes rates, and detects a stale page.

    Parameters
    ----------
    scraper : Scraper
    put : callable
        Called with each sample; must not block.
    metrics : AggregatorMetrics
    problems : ProblemLog
    interval_s : float
        0 uses the delay of the probe.
    clock : callable
        Monotonic seconds.
    """

    scraper: Scraper
    put: Callable[[ScrapeSample], None]
    metrics: AggregatorMetrics
    problems: ProblemLog
    interval_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _rates: NodeRates = field(init=False)
    _unconfirmed: UnconfirmedReport = field(init=False)
    _probe_delay_s: float = field(init=False, default=_FIRST_INTERVAL_S)
    _epoch_ms: float | None = field(init=False, default=None)
    _changed_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._rates = NodeRates(self.node)
        self._unconfirmed = UnconfirmedReport(self.node, self.metrics, self.problems, self.clock)

    @property
    def node(self) -> str:
        """Name of the node."""
        return self.scraper.stub.node

    @property
    def current_interval_s(self) -> float:
        """Seconds between two scrapes: the configured interval, else the delay of the probe."""
        return self.interval_s or self._probe_delay_s

    async def run(self, stop: asyncio.Event) -> None:
        """Scrape at the interval until stopped; scrapes that are too late are skipped."""
        pace = Pace(jitter(self.node) * self.current_interval_s, self.clock)
        while await pace.wait(stop):
            await self.scrape()
            missed = pace.advance(self.current_interval_s)
            if missed:
                self.metrics.missed.labels(self.node).inc(missed)

    async def scrape(self) -> bool:
        """Scrape the node once; whether that succeeded. An error is logged and counted, not raised."""
        start_s = self.clock()
        succeeded = False
        try:
            scrape = await self.scraper.scrape()
            self._process(scrape)
            self._refuse_stale_page(scrape)
            self.problems.resolve(self.node)
            # Metrics of the node alone are stored, but the scrape is not complete.
            succeeded = scrape.domains is not None
            if not succeeded:
                self.metrics.failures.labels(self.node, "vms").inc()
        except ScrapeError as error:
            self.metrics.failures.labels(self.node, error.reason).inc()
            self.problems.report(self.node, str(error))
        except Exception:
            # A defect must not affect the other nodes.
            LOG.exception("%s: the scrape failed", self.node)
            self.metrics.failures.labels(self.node, "internal").inc()
        self.metrics.scrapes.labels(self.node).inc()
        self.metrics.duration.labels(self.node).observe(self.clock() - start_s)
        self.metrics.up.labels(self.node).set(succeeded)
        self.metrics.bad_lines.labels(self.node).set(self.scraper.bad_lines)
        return succeeded

    def _process(self, scrape: Scrape) -> None:
        delay_s = scrape.node.get("probe_delay", 0.0) / 1000.0
        if _SHORTEST_INTERVAL_S <= delay_s <= _LONGEST_INTERVAL_S:
            self._probe_delay_s = delay_s
        self.metrics.skew.labels(self.node).set(skew_ms(scrape) / 1000.0)
        try:
            sample, problems = self._rates.update(scrape)
        except ClockBehind as error:
            raise ScrapeError("clock", str(error)) from None
        if sample is not None:
            self._unconfirmed.report(problems)
            self.put(sample)

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
