"""``scroogevm.py`` without a trace: wires store, checkpoints, scheduler and publishers, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from .. import __version__
from ..common.environment import SettingsError
from ..common.errors import PassingFault, UsageError
from ..common.lifecycle import DaemonControl, run_daemon
from ..common.logs import EVENT, set_up_logging
from ..publishers.prometheus import EstimatorCounts
from ..store.base import Store, StoreRefused
from ..store.factory import open_store, store_name
from .checkpoints import CheckpointFile, CheckpointRefused
from .configuration import RunConfiguration, load_configuration
from .dump_writer import DumpWriter
from .found_nodes import FoundNodes
from .options import EstimatorOptions
from .outputs import open_publishers, page_address
from .scheduler import Scheduler, build_scheduler
from .settings import EstimatorSettings

LOG = logging.getLogger("scroogevm.estimator")


def run(options: EstimatorOptions) -> int:
    """Estimate until stopped, or once; the exit code.

    Raises
    ------
    UsageError
        When the settings cannot be used at the start.
    PassingFault
        When something cannot be opened now that ``--once`` needs.
    """
    set_up_logging(options.debug > 0)
    try:
        if options.once:
            return _run_once(options, load_configuration(options))
        found = FoundNodes()
        return run_daemon(
            lambda: load_configuration(options),
            lambda configuration, control: _run_until_stopped(options, configuration, control, found),
        )
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _run_once(options: EstimatorOptions, configuration: RunConfiguration) -> int:
    """Compute and publish the slices that have ended; 1 if a node could not be read or a publisher failed."""
    with _opened(options, configuration, FoundNodes()) as (scheduler, _, _):
        unread = asyncio.run(scheduler.once())
        return 1 if unread or scheduler.counts.publication_failures else 0


def _run_until_stopped(
    options: EstimatorOptions, configuration: RunConfiguration, control: DaemonControl, found: FoundNodes
) -> int:
    async def run_scheduler(scheduler: Scheduler) -> None:
        async with control.watched():
            await scheduler.run(control.as_asyncio_event())

    def join() -> None:
        """Start again with the nodes that were found meanwhile, as after SIGHUP."""
        control.reload = True
        control.set()

    with _opened(options, configuration, found) as (scheduler, settings, store):
        control.report_ready()
        _log_start(configuration, settings)
        with found.watched(configuration.settings, store, join):
            asyncio.run(run_scheduler(scheduler))
    return 0


@contextlib.contextmanager
def _opened(
    options: EstimatorOptions, configuration: RunConfiguration, found: FoundNodes
) -> Iterator[tuple[Scheduler, EstimatorSettings, Store]]:
    """Open everything that a run needs, and close it at the end; the settings have the nodes of the run.

    Raises
    ------
    UsageError, PassingFault
        When something cannot be used, or not now; nothing is left open then.
    """
    settings, model = configuration.settings, configuration.model
    with contextlib.ExitStack() as opened:
        try:
            store = open_store(settings.store)
            close_store = opened.enter_context(contextlib.ExitStack())
            close_store.callback(store.close)
            settings = found.complete(settings, store)
            configuration = replace(configuration, settings=settings)
            checkpoints = CheckpointFile(
                settings.checkpoint_path,
                configuration.of_checkpoints,
                kept=settings.historical + 1,
                kept_figures=settings.dump_slices,
            )
            opened.enter_context(checkpoints)
        except StoreRefused as error:
            raise UsageError(str(error)) from None
        except CheckpointRefused as error:
            raise PassingFault(str(error)) from None
        counts = EstimatorCounts()
        publishers = open_publishers(settings, counts, opened, with_page=not options.once)
        dump = DumpWriter(options, configuration, checkpoints) if options.debug else None
        if dump is not None:
            opened.callback(dump.write_all)
        scheduler = build_scheduler(
            *(settings, model, configuration.detectors, store, checkpoints, publishers),
            recorded=dump is not None,
            on_slice=dump.on_slice if dump else lambda *_: None,
            counts=counts,
        )
        try:
            yield scheduler, settings, store
        finally:
            if not scheduler.close():
                # A thread hangs in the store and still uses its connections; they end with the process.
                close_store.pop_all()


def _log_start(configuration: RunConfiguration, settings: EstimatorSettings) -> None:
    page = page_address(settings)
    LOG.info(
        "started: version=%s, %s, nodes=%d, strategies=%s, status_file=%s, %s",
        *(__version__, store_name(settings.store), len(settings.nodes), ",".join(configuration.model.strategies)),
        *(settings.status.path, f"page={page}" if page else "no metrics port"),
        extra=EVENT,
    )
