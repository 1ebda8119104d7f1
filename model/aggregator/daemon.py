"""``vmaggreg.py``: scrapes nodes until it is stopped, or once, or checks targets and settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from .. import __version__
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.http_server import Server, serve_metrics
from ..common.lifecycle import DaemonControl, run_daemon
from ..common.logs import EVENT, set_up_logging
from ..store.base import StoreRefused
from ..store.factory import store_name
from .check import check
from .metrics import AggregatorMetrics
from .scrape_manager import ScrapeManager
from .settings import AggregatorSettings, aggregator_settings
from .store_writer import StoreWriter, open_writer, writer_settings
from .write_queue import WriteQueue

LOG = logging.getLogger("scroogevm.aggregator")


@dataclass(frozen=True, slots=True)
class AggregatorOptions:
    """Options of the command line.

    Attributes
    ----------
    once : bool
        Scrape each node once.
    check : bool
        Check targets and store.
    debug : int
        0 logs warnings and errors, 1 also informational records.
    json : bool
        Print the results of ``check`` as JSON.
    """

    once: bool
    check: bool
    debug: int
    json: bool = False


def run(options: AggregatorOptions) -> int:
    """Run the mode that the options select; the exit code.

    Raises
    ------
    UsageError
        When settings or store are not usable.
    """
    set_up_logging(options.debug > 0)
    try:
        if options.check:
            return check(_read_settings(), as_json=options.json)
        if options.once:
            return _scrape_once(_read_settings())
        return AggregatorDaemon(_read_settings).run()
    except (SettingsError, StoreRefused) as error:
        raise UsageError(str(error)) from None


def _read_settings() -> AggregatorSettings:
    return aggregator_settings(environment())


def _scrape_once(settings: AggregatorSettings) -> int:
    writer = open_writer(settings)
    metrics = AggregatorMetrics(CollectorRegistry())
    responded, flushed = 0, False
    try:
        writer.start(expire=False)
        responded = asyncio.run(ScrapeManager(settings, writer.queue.put, metrics).scrape_once())
        LOG.info("scraped once: nodes=%d responded=%d", len(settings.stubs), responded)
    finally:
        flushed = writer.close()
    counts = writer.queue.counts()
    stored = flushed and not counts.spooled and not counts.dropped and not counts.refused
    return 0 if stored and responded == len(settings.stubs) else 1


class _Run(NamedTuple):
    """What is needed to scrape from one reload to the next."""

    settings: AggregatorSettings
    writer: StoreWriter


class AggregatorDaemon:
    """Scrapes until it is stopped; SIGHUP reloads the settings.

    A reload keeps store and queue unless their settings change, so that it loses no sample that waits for the store.

    Parameters
    ----------
    read_settings : callable
        Raises a SettingsError when the settings are not valid.
    """

    def __init__(self, read_settings: Callable[[], AggregatorSettings]) -> None:
        self._read_settings = read_settings
        self._writer: StoreWriter | None = None
        self._started = False

    def run(self) -> int:
        """Run until stopped; the exit code."""
        flushed = True
        try:
            code = run_daemon(self._load, self._serve)
        finally:
            if self._writer is not None:
                flushed = self._writer.close()
        return code if flushed else 1

    def _load(self) -> _Run:
        """Read the settings and open the store if its settings are new.

        Raises
        ------
        SettingsError
            Also when the store cannot be opened; the store before stays open.
        """
        settings = self._read_settings()
        if self._writer is not None and self._writer.settings == writer_settings(settings):
            return _Run(settings, self._writer)
        try:
            writer = open_writer(settings)
        except StoreRefused as error:
            raise SettingsError([str(error)]) from None
        if self._writer is not None:
            self._writer.close()
        self._writer = writer
        writer.start(expire=True)
        return _Run(settings, writer)

    def _serve(self, run: _Run, control: DaemonControl) -> int:
        """Scrape until a stop or a reload is requested."""
        registry = CollectorRegistry()
        metrics = AggregatorMetrics(registry)
        metrics.watch(run.writer.queue, registry)
        manager = ScrapeManager(run.settings, run.writer.queue.put, metrics, recall=run.writer.recall)
        server = _open_metrics(run.settings, registry)
        try:
            control.report_ready()
            self._log_start(run.settings, server)
            asyncio.run(_scrape_until(manager, run.writer.queue, control))
        finally:
            if server is not None:
                server.close()
        return 0

    def _log_start(self, settings: AggregatorSettings, server: Server | None) -> None:
        """Log what runs: once at the start, and after each reload."""
        LOG.info(
            "%s: version=%s store=%s nodes=%d metrics=%s",
            "running" if self._started else "started",
            __version__,
            store_name(settings.store).removeprefix("store "),
            len(settings.stubs),
            _metrics_url(settings) if server is not None and server.is_serving else "none",
            extra=EVENT,
        )
        self._started = True


async def _scrape_until(manager: ScrapeManager, queue: WriteQueue, control: DaemonControl) -> None:
    def status() -> str:
        return f"running, waiting for the store: {queue.store_problem}" if queue.store_problem else "running"

    async with control.watched(status):
        await manager.run(control.as_asyncio_event())


def _open_metrics(settings: AggregatorSettings, registry: CollectorRegistry) -> Server | None:
    """Serve the metrics, if a port is configured.

    Raises
    ------
    UsageError
        When address or port can never be used.
    """
    if not settings.metrics_port:
        return None
    return serve_metrics("AGGREG_METRICS_PORT", settings.metrics_port, settings.metrics_address, registry)


def _metrics_url(settings: AggregatorSettings) -> str:
    address = settings.metrics_address
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{settings.metrics_port}/metrics"
