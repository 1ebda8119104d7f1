"""``scroogevm.py --export``: writes a stored period of a node as a trace."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from datetime import datetime, timezone

from ..cli.progress import ProgressBar
from ..common.atomic_files import staged
from ..common.environment import SettingsError, environment
from ..common.errors import PassingFault, UsageError
from ..common.logs import set_up_logging
from ..store.base import StoreRefused, StoreUnavailable
from ..store.factory import open_store
from .options import ExportOptions
from .settings import EstimatorSettings, estimator_settings
from .trace_export import NothingStored, export

LOG = logging.getLogger("scroogevm")


def run_export(options: ExportOptions) -> int:
    """Write the trace; the exit code.

    Raises
    ------
    UsageError, PassingFault
        When nothing can be exported, or not now; nothing has been written then.
    """
    set_up_logging(options.debug > 0)
    try:
        settings = estimator_settings(environment(), options.nodes)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    if settings.nodes_are_found:
        raise UsageError("--url: a trace is of one node; name it")
    if len(settings.nodes) > 1:
        raise UsageError(f"--url: {len(settings.nodes)} nodes, but a trace is of one; name it")
    # From the slice in which the period begins to the last whole one.
    first = settings.calendar.last_ended(options.since_s) + 1
    last = settings.calendar.last_ended(time.time() if options.until_s is None else options.until_s)
    if last < first:
        raise UsageError("--since: no slice has ended between it and --until")
    try:
        _export(options, settings, first, last)
    except NothingStored:
        node = settings.nodes[0]
        raise UsageError(f"--url: nothing is stored of {node} in this period; nothing was written") from None
    except StoreRefused as error:
        raise UsageError(f"{error}; nothing was written") from None
    except StoreUnavailable as error:
        raise PassingFault(f"{error}; nothing was written") from None
    except OSError as error:
        place = error.filename or options.path
        fault = PassingFault if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO} else UsageError
        raise fault(f"--export: {place}: {error.strerror}; nothing was written") from None
    return 0


def _export(options: ExportOptions, settings: EstimatorSettings, first: int, last: int) -> None:
    calendar, node = settings.calendar, settings.nodes[0]
    with contextlib.closing(open_store(settings.store)) as store, staged() as files:
        # Years may lie between the start of the period and the first sample.
        begins_ms = store.begins_ms(node, calendar.bounds_ms(first)[0], calendar.bounds_ms(last)[1])
        if begins_ms is None:
            raise NothingStored
        first = max(first, calendar.last_ended(begins_ms / 1000) + 1)
        resolution = store.resolution(node, calendar.bounds_ms(first)[0], calendar.bounds_ms(last)[1])
        if resolution is not None:
            before = datetime.fromtimestamp(resolution.before_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
            LOG.warning("of the samples before %s one per %g s is kept", before, resolution.step_ms / 1000)
        with ProgressBar().counted("exporting", last - first + 1) as step:
            files.write_pieces(options.path, export(store, settings, node, first, last, step))
