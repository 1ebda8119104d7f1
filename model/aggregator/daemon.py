"""``vmaggreg.py``: settings in; a store, a spool, an aggregator and its metrics, wired and run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import threading
import time

from prometheus_client import CollectorRegistry

from ..cli.tables import print_checks
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.http_server import serve_metrics
from ..common.lifecycle import stop_on_signals
from ..common.logs import set_up_logging
from ..store.base import Store, StoreRefused, StoreUnavailable
from ..store.factory import ask_store, open_store, store_name
from ..store.sqlite import SqliteStore
from .metrics import AggregatorMetrics
from .scrape_manager import ScrapeManager, gather_limited
from .scraper import ScrapeError, Scraper, open_session
from .settings import AggregatorSettings, aggregator_settings
from .write_queue import WriteQueue

LOG = logging.getLogger("scroogevm.aggregator")

#: How long the last ticks may take at the end.
_FLUSH_S = 10.0
_EXPIRE_EVERY_S = 600.0
#: By how much a page's time may differ from ours, at least; and how many of the probe's delays.
_OLD_S = 60.0
_OLD_DELAYS = 3


def run(args: argparse.Namespace) -> int:
    """Run what the command line asks for; the exit code.

    Raises
    ------
    UsageError
        When settings or store can't be used.
    """
    set_up_logging(args.debug > 0)
    try:
        settings = aggregator_settings(environment())
        store = open_store(settings.store)
    except (SettingsError, StoreRefused) as error:
        raise UsageError(str(error)) from None
    with contextlib.closing(store):
        if args.check:
            return asyncio.run(_check(settings, store))
        return _aggregate(settings, store, once=args.once)


def _aggregate(settings: AggregatorSettings, store: Store, *, once: bool) -> int:
    registry = CollectorRegistry()
    metrics = AggregatorMetrics(registry)
    write_queue = WriteQueue(store, settings.queue_bytes)
    metrics.watch(write_queue, registry)
    aggregator = ScrapeManager(settings, write_queue.put, metrics)
    stopped = threading.Event()
    try:
        if once:
            answered = asyncio.run(aggregator.once())
            LOG.info("%d of %d nodes answered", answered, len(settings.stubs))
        else:
            if settings.metrics_port:
                serve_metrics("AGGREG_METRICS_PORT", settings.metrics_port, settings.metrics_address, registry)
            if isinstance(store, SqliteStore):
                threading.Thread(target=_expire, args=(store, stopped), daemon=True).start()
            asyncio.run(_until_stopped(aggregator))
            answered = len(settings.stubs)
    finally:
        stopped.set()
        flushed = write_queue.close(_FLUSH_S)
    lost = write_queue.counts().dropped + write_queue.counts().refused
    return 0 if flushed and answered == len(settings.stubs) and not (once and lost) else 1


async def _until_stopped(aggregator: ScrapeManager) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await aggregator.run(stop)


def _expire(store: SqliteStore, stopped: threading.Event) -> None:
    """Delete what is too old, from time to time."""
    while not stopped.is_set():
        try:
            deleted = store.expire()
            LOG.info("deleted %d ticks older than %g s", deleted, store.retention_s)
        except StoreUnavailable as error:
            LOG.warning("old ticks could not be deleted: %s", error)
        stopped.wait(_EXPIRE_EVERY_S)


async def _check(settings: AggregatorSettings, store: Store) -> int:
    """Ask every target and the store once, and print what they said."""
    async with open_session(settings.timeout_s) as session:
        scrapers = [Scraper(stub, session, settings.timeout_s, settings.max_page_bytes) for stub in settings.stubs]
        answers = await gather_limited(_ask(scraper) for scraper in scrapers)
    rows = [(stub.node, *answer) for stub, answer in zip(settings.stubs, answers, strict=True)]
    rows.append((store_name(settings.store), *ask_store(store)))
    return 0 if print_checks(rows) else 1


async def _ask(scraper: Scraper) -> tuple[bool, str]:
    start = time.monotonic()
    try:
        scrape = await scraper.scrape()
    except ScrapeError as error:
        return False, str(error)
    took = f"{(time.monotonic() - start) * 1000:.0f} ms"
    cores, memory = scrape.node.get("cpu_total", 0), scrape.node.get("memory_total", 0) / 2**20
    if scrape.domains is None:
        return False, f"{cores:g} cores, {memory:.0f} GB, but nothing is known of its VMs ({took})"
    old_s = time.time() - scrape.epoch_ms / 1000
    if abs(old_s) > max(_OLD_S, _OLD_DELAYS * scrape.node.get("probe_delay", 0.0) / 1000):
        when = "old: the probe has stopped" if old_s > 0 else "ahead"
        return False, f"the page is {abs(old_s):.0f} s {when}, or the clocks differ ({took})"
    missing = ""
    for metric, words in (("cpu_cputime", "CPU time"), ("memory_unused", "guest memory")):
        silent = sum(metric not in domain for domain in scrape.domains.values())
        missing += f", {silent} of them without {words}" if silent else ""
    return True, f"{cores:g} cores, {memory:.0f} GB, {len(scrape.domains)} VMs{missing} ({took})"
