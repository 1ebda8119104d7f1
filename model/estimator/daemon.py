"""``scroogevm.py`` without a trace: settings in; a store, a memory, an estimator and its outlets, wired and run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from ..cli.model_options import chosen_detectors, given_model_options, model_settings
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.http_server import serve
from ..common.lifecycle import stop_on_signals
from ..common.logs import set_up_logging
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES
from ..publishers.base import BackgroundPublisher, Publisher
from ..publishers.prometheus import EstimatorMetrics
from ..publishers.settings import PlacementSettings
from ..publishers.status_file import StatusFile
from ..store.base import StoreRefused
from ..store.factory import open_store
from .checkpoints import CheckpointFile, CheckpointRefused
from .dump_writer import DumpWriter
from .scheduler import Estimator
from .settings import EstimatorSettings, estimator_settings, parse_nodes

if TYPE_CHECKING:
    from ..publishers.placement.reconciler import Placement, PlacementCounts


LOG = logging.getLogger("scroogevm.estimator")

#: How long the end waits for the last publication to OpenStack Placement.
_END_S = 10.0


def run(args: argparse.Namespace) -> int:
    """Estimate until told to stop; the exit code.

    Raises
    ------
    UsageError
        When settings, store or memory can't be used.
    """
    set_up_logging(args.debug > 0)
    settings = load_settings(args)
    model = model_settings(settings.model, settings.strategies, settings.historical)
    with contextlib.ExitStack() as opened:
        try:
            store = opened.enter_context(contextlib.closing(open_store(settings.store)))
            memory = CheckpointFile(
                settings.checkpoint_path,
                _configuration(settings, model),
                kept=settings.historical + 1,
                kept_figures=settings.dump_slices,
            )
            opened.enter_context(contextlib.closing(memory))
        except (StoreRefused, CheckpointRefused) as error:
            raise UsageError(str(error)) from None
        publishers: dict[str, Publisher] = {}
        dump = DumpWriter(args, settings, model, memory) if args.debug else None
        estimator = Estimator(
            settings,
            model,
            chosen_detectors(settings.model),
            store,
            memory,
            publishers,
            recorded=dump is not None,
            on_slice=dump.on_slice if dump else lambda *_: None,
        )
        registry = CollectorRegistry()
        valid_s = settings.calendar.slice_s + estimator.patience_s
        publishers["status file"] = StatusFile(settings.status, valid_s)
        counts = _keep_placement(settings.placement, publishers, opened) if settings.placement else None
        publishers["metrics"] = EstimatorMetrics(registry, estimator.counts, counts)
        if settings.metrics_port and not args.once:
            publishers["status page"] = _serve_page(settings, registry, valid_s)
        try:
            silent = asyncio.run(estimator.once() if args.once else _until_stopped(estimator))
        finally:
            if not estimator.close():
                # A thread that hangs may not have its connections closed under it; they end with the process.
                opened.pop_all()
        if dump:
            dump.write_all()
    return 1 if args.once and (silent or estimator.counts.publication_failures) else 0


def _serve_page(settings: EstimatorSettings, registry: CollectorRegistry, valid_s: float) -> Publisher:
    """Serve the status page, and the metrics beside it."""
    # Templates, only for those who want them.
    from ..publishers.status_page.history import History
    from ..publishers.status_page.wsgi import application

    history = History()
    pages = application(history, registry, settings.calendar.slice_s, valid_s)
    serve("SCHED_METRICS_PORT", settings.metrics_port, settings.metrics_address, pages)
    return history


def _keep_placement(
    settings: PlacementSettings, publishers: dict[str, Publisher], opened: contextlib.ExitStack
) -> Callable[[], PlacementCounts]:
    """Publish to OpenStack Placement too; what tells how it goes."""
    # An HTTP client and its login, only for those who want it.
    from ..publishers.placement.ratio import capacities_of

    placement = open_placement(settings)
    background = BackgroundPublisher(lambda statuses: placement.publish(capacities_of(statuses)))
    publishers["placement"] = background
    opened.callback(background.close, _END_S)
    return placement.counts


def open_placement(settings: PlacementSettings) -> Placement:
    """The client of OpenStack Placement."""
    from ..publishers.placement.client import PlacementError
    from ..publishers.placement.reconciler import Placement

    try:
        return Placement(settings)
    except PlacementError as error:
        raise UsageError(f"OpenStack Placement: {error}") from None


async def _until_stopped(estimator: Estimator) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await estimator.run(stop)
    return 0


def load_settings(args: argparse.Namespace) -> EstimatorSettings:
    """The settings, with the nodes of the command line."""
    try:
        nodes = () if args.url is None else parse_nodes(json.loads(args.url))
    except (ValueError, RecursionError) as error:
        words = "is not JSON" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)
        raise UsageError(f"--url: {words}") from None
    try:
        return estimator_settings(environment(), nodes, given_model_options(args))
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _configuration(settings: EstimatorSettings, model: ModelSettings) -> dict[str, object]:
    """What the models' memory depends on."""
    return {
        "slice_s": settings.calendar.slice_s,
        "positions": settings.calendar.positions,
        "historical": model.historical,
        "strategies": {name: STRATEGIES[name].state_fields for name in model.strategies},
        "published": model.strategies[0],
        "percentiles": [model.cpu.percentile, model.mem.percentile],
        "aggregation": model.cpu.aggregation,
        "risks": [model.cpu.risk, model.mem.risk],
        "stability": settings.model.stability,
    }
