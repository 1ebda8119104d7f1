"""Commands of ``scroogevm.py`` that run once: check, export and status."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path

from ..cli.progress import ProgressBar
from ..cli.tables import print_checks
from ..common.atomic_files import staged
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.logs import set_up_logging
from ..publishers.settings import PlacementSettings
from ..store.base import Store, StoreRefused, StoreUnavailable
from ..store.factory import ask_store, open_store, store_name
from ..store.settings import status_path
from .daemon import load_settings, open_placement
from .trace_export import NothingStored, export


def run_check(args: argparse.Namespace) -> int:
    """Ask the store for every node, and Placement, and show what they said; the exit code.

    Raises
    ------
    UsageError
        When settings or store can't be used.
    """
    set_up_logging(args.debug > 0)
    settings = load_settings(args)
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
    from ..publishers.placement.client import PlacementError

    try:
        return True, open_placement(settings).check()
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
    settings = load_settings(args)
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
    from ..publishers.status_table import show_status, watch_status

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
