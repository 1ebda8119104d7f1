"""``scroogevm.py`` without a trace: settings in; a store, a memory, an estimator and its outlets, wired and run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from model.adapters.choices import chosen_judges, chosen_strategies, model_settings
from model.adapters.commandline import UsageError
from model.adapters.environment import SettingsError, environment
from model.adapters.estimator import Background, Estimator, Outlet
from model.adapters.export import NothingStored, export
from model.adapters.files import staged
from model.adapters.livedump import LiveDump
from model.adapters.memoryfile import MemoryFile, MemoryRefused
from model.adapters.metrics import EstimatorMetrics
from model.adapters.runtime import serve, set_up_logging, stop_on_signals
from model.adapters.settings import EstimatorSettings, PlacementSettings, estimator_settings, parse_nodes, status_path
from model.adapters.statusfile import StatusFile
from model.adapters.store import Store, StoreRefused, StoreUnavailable, ask_store, open_store, store_name
from model.adapters.terminal import ProgressBar, print_checks
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES

if TYPE_CHECKING:
    from model.adapters.placement import Placement, PlacementCounts

LOG = logging.getLogger("scroogevm.estimator")

#: How long the end waits for the last publication to OpenStack Placement.
_END_S = 10.0

#: Computed and published when the command line names none.
_DEFAULT_STRATEGY = "scroogevm"


def run(args: argparse.Namespace) -> int:
    """Estimate until told to stop; the exit code.

    Raises
    ------
    UsageError
        When settings, store or memory can't be used.
    """
    set_up_logging(args.debug > 0)
    settings = _settings(args)
    strategies = chosen_strategies(_DEFAULT_STRATEGY if args.strategy is None else args.strategy)
    model = model_settings(args, strategies, settings.historical)
    with contextlib.ExitStack() as opened:
        try:
            store = opened.enter_context(contextlib.closing(open_store(settings.store)))
            memory = MemoryFile(
                settings.memory_path,
                _configuration(args, settings, model),
                kept=settings.historical + 1,
                kept_figures=settings.dump_slices,
            )
            opened.enter_context(contextlib.closing(memory))
        except (StoreRefused, MemoryRefused) as error:
            raise UsageError(str(error)) from None
        outlets: dict[str, Outlet] = {}
        dump = LiveDump(args, settings, model, memory) if args.debug else None
        estimator = Estimator(
            settings,
            model,
            chosen_judges(args),
            store,
            memory,
            outlets,
            recorded=dump is not None,
            on_slice=dump.on_slice if dump else lambda *_: None,
        )
        registry = CollectorRegistry()
        valid_s = settings.calendar.slice_s + estimator.patience_s
        outlets["status file"] = StatusFile(settings.status, valid_s)
        counts = _keep_placement(settings.placement, outlets, opened) if settings.placement else None
        outlets["metrics"] = EstimatorMetrics(registry, estimator.counts, counts)
        if settings.metrics_port and not args.once:
            outlets["status page"] = _serve_page(settings, registry, valid_s)
        try:
            silent = asyncio.run(estimator.once() if args.once else _until_stopped(estimator))
        finally:
            if not estimator.close():
                # A thread that hangs may not have its connections closed under it; they end with the process.
                opened.pop_all()
        if dump:
            dump.write_all()
    return 1 if args.once and (silent or estimator.counts.publication_failures) else 0


def _serve_page(settings: EstimatorSettings, registry: CollectorRegistry, valid_s: float) -> Outlet:
    """Serve the status page, and the metrics beside it."""
    # Templates, only for those who want them.
    from model.adapters.statuspage import History, application

    history = History()
    pages = application(history, registry, settings.calendar.slice_s, valid_s)
    serve("SCHED_METRICS_PORT", settings.metrics_port, settings.metrics_address, pages)
    return history


def _keep_placement(
    settings: PlacementSettings, outlets: dict[str, Outlet], opened: contextlib.ExitStack
) -> Callable[[], PlacementCounts]:
    """Publish to OpenStack Placement too; what tells how it goes."""
    # An HTTP client and its login, only for those who want it.
    from model.adapters.placement import promises_of

    placement = _placement(settings)
    background = Background(lambda statuses: placement.publish(promises_of(statuses)))
    outlets["placement"] = background
    opened.callback(background.close, _END_S)
    return placement.counts


def _placement(settings: PlacementSettings) -> Placement:
    from model.adapters.placement import Placement, PlacementError

    try:
        return Placement(settings)
    except PlacementError as error:
        raise UsageError(f"OpenStack Placement: {error}") from None


async def _until_stopped(estimator: Estimator) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await estimator.run(stop)
    return 0


def _settings(args: argparse.Namespace) -> EstimatorSettings:
    try:
        nodes = () if args.url is None else parse_nodes(json.loads(args.url))
    except (ValueError, RecursionError) as error:
        words = "is not JSON" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)
        raise UsageError(f"--url: {words}") from None
    try:
        return estimator_settings(environment(), nodes)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _configuration(args: argparse.Namespace, settings: EstimatorSettings, model: ModelSettings) -> dict[str, object]:
    """What the models' memory depends on."""
    return {
        "slice_s": settings.calendar.slice_s,
        "positions": settings.calendar.positions,
        "historical": model.historical,
        "strategies": {name: STRATEGIES[name].remembers for name in model.strategies},
        "published": model.strategies[0],
        "percentiles": [model.cpu.percentile, model.mem.percentile],
        "aggregation": model.cpu.aggregation,
        "risks": [model.cpu.risk, model.mem.risk],
        "stability": args.stability,
    }


def run_check(args: argparse.Namespace) -> int:
    """Ask the store for every node, and Placement, and show what they said; the exit code.

    Raises
    ------
    UsageError
        When settings or store can't be used.
    """
    set_up_logging(args.debug > 0)
    settings = _settings(args)
    try:
        store = open_store(settings.store)
    except StoreRefused as error:
        raise UsageError(str(error)) from None
    with contextlib.closing(store):
        good, words = ask_store(store)
        rows = [(node, *_last_heard(store, node)) for node in settings.nodes] if good else []
        rows.append((store_name(settings.store), good, words))
    if settings.placement:
        rows.append(("placement", *_ask_placement(settings.placement)))
    return 0 if print_checks(rows) else 1


def _last_heard(store: Store, node: str) -> tuple[bool, str]:
    try:
        last = store.last(node)
    except (StoreUnavailable, StoreRefused) as error:
        return False, str(error)
    if last is None:
        return False, "nothing is stored of it: is this the URL that vmaggreg.py has?"
    age_s = time.time() - last.time_ms / 1000
    cores, memory = last.fields.get("cpu", math.nan), last.fields.get("mem", math.nan) / 1024
    return True, f"{cores:g} cores, {memory:.0f} GB, {len(last.domains)} VMs, last sample {age_s:.0f} s ago"


def _ask_placement(settings: PlacementSettings) -> tuple[bool, str]:
    from model.adapters.placement import PlacementError

    try:
        return True, _placement(settings).check()
    except PlacementError as error:
        return False, str(error)


def run_export(args: argparse.Namespace) -> int:
    """Write a stored period of a node as a trace; the exit code.

    Raises
    ------
    UsageError
        When nothing can be exported; nothing has been written then.
    """
    set_up_logging(args.debug > 0)
    settings = _settings(args)
    if len(settings.nodes) > 1:
        raise UsageError(f"--url: {len(settings.nodes)} nodes, but a trace is of one; name it")
    calendar = settings.calendar
    # From the slice in which the period begins to the last whole one.
    first = calendar.last_ended(args.since) + 1
    last = calendar.last_ended(time.time() if args.until is None else args.until)
    if last < first:
        raise UsageError("--since: no slice has ended between it and --until")
    path, node = Path(args.export), settings.nodes[0]
    bar = ProgressBar()
    try:
        with contextlib.closing(open_store(settings.store)) as store, staged() as files:
            # What lies before the first sample may be years.
            begins_ms = store.begins_ms(node, calendar.bounds_ms(first)[0], calendar.bounds_ms(last)[1])
            if begins_ms is None:
                raise NothingStored
            first = max(first, calendar.last_ended(begins_ms / 1000) + 1)
            with bar.counted("exporting", last - first + 1) as step:
                files.write_pieces(path, export(store, settings, node, first, last, step))
    except NothingStored:
        raise UsageError(f"--url: nothing is stored of {node} in this period; nothing was written") from None
    except (StoreUnavailable, StoreRefused) as error:
        raise UsageError(f"{error}; nothing was written") from None
    except OSError as error:
        raise UsageError(f"--export: {error.filename or path}: {error.strerror}; nothing was written") from None
    return 0


def run_status(args: argparse.Namespace) -> int:
    """Show the published status; the exit code.

    Raises
    ------
    UsageError
        When there is none.
    """
    from model.adapters.statustable import show_status, watch_status

    try:
        env = environment()
        path = status_path(env)
        if env.faults:
            raise SettingsError(env.faults)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    if args.watch:
        watch_status(path)
    else:
        show_status(path)
    return 0
