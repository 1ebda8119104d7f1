"""``vmaggreg.py --check``: scrapes each target once and checks the store, without writing anything."""

from __future__ import annotations

import asyncio
import time

from ..cli.tables import print_checks
from ..samples import Scrape
from ..store.factory import check_store, store_name
from .scrape_manager import gather_limited
from .scraper import ScrapeError, Scraper, open_session
from .settings import AggregatorSettings

#: Largest difference between the times of a page and of this host: the larger of a time and some delays of the probe.
_OLD_S = 60.0
_OLD_DELAYS = 3

#: Metrics that a domain may lack, and their names in messages.
_OPTIONAL = (("cpu_cputime", "CPU time"), ("memory_unused", "guest memory"))

#: Target, whether it is usable, message.
Row = tuple[str, bool, str]


def check(settings: AggregatorSettings, *, as_json: bool) -> int:
    """Check all targets and the store and print a row for each; the exit code.

    Raises
    ------
    StoreRefused
        When the file of the embedded store is not a store.
    """
    store_row = (store_name(settings.store), *check_store(settings.store))
    rows = [*asyncio.run(_check_targets(settings)), store_row]
    return 0 if print_checks(rows, json=as_json) else 1


async def _check_targets(settings: AggregatorSettings) -> list[Row]:
    async with open_session(settings.timeout_s, settings.max_page_bytes) as session:
        scrapers = [
            Scraper(stub, session, settings.timeout_s, settings.max_page_bytes, limits=settings.page_limits)
            for stub in settings.stubs
        ]
        return await gather_limited(_check_target(scraper) for scraper in scrapers)


async def _check_target(scraper: Scraper) -> Row:
    start_s = time.monotonic()
    try:
        scrape = await scraper.scrape()
    except ScrapeError as error:
        return scraper.stub.node, False, str(error)
    ok, message = describe_scrape(scrape, time.time())
    return scraper.stub.node, ok, f"{message} ({(time.monotonic() - start_s) * 1000:.0f} ms)"


def describe_scrape(scrape: Scrape, now_s: float) -> tuple[bool, str]:
    """Whether a scrape is usable at a time, and its contents or what is wrong with it."""
    size = f"{scrape.node.get('cpu_total', 0):g} cores, {scrape.node.get('memory_total', 0) / 2**20:.0f} GB"
    if scrape.domains is None:
        return False, f"{size}, but its VMs are unknown"
    age_s = now_s - scrape.epoch_ms / 1000
    if abs(age_s) > max(_OLD_S, _OLD_DELAYS * scrape.node.get("probe_delay", 0.0) / 1000):
        problem = "old: the probe has stopped" if age_s > 0 else "ahead"
        return False, f"the page is {abs(age_s):.0f} s {problem}, or the clocks differ"
    missing = ""
    for metric, name in _OPTIONAL:
        number = sum(metric not in domain for domain in scrape.domains.values())
        missing += f", {number} of them without {name}" if number else ""
    return True, f"{size}, {len(scrape.domains)} VMs{missing}"
