"""``scroogevm.py --check``: asks the store for every node, and OpenStack Placement for every provider."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

from ..cli.tables import print_checks
from ..common.environment import SettingsError, environment
from ..common.errors import PassingFault, UsageError
from ..common.logs import set_up_logging
from ..publishers.settings import PlacementSettings
from ..publishers.status_file import PublishedNode, StatusFileError, read_status
from ..store.base import Store, StoreRefused, StoreUnavailable
from ..store.factory import ask_store, open_store, store_name
from .found_nodes import FoundNodes
from .options import CheckOptions
from .settings import EstimatorSettings, estimator_settings

#: Target, whether it can be used, message.
Check = tuple[str, bool, str]


def run_check(options: CheckOptions) -> int:
    """Print a row per target, as a table or as JSON; the exit code is 1 if one cannot be used. No file is created.

    Raises
    ------
    UsageError
        When the settings or the store cannot be used.
    """
    set_up_logging(options.debug > 0)
    try:
        settings = estimator_settings(environment(), options.nodes)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    checks, settings = _check_store(settings)
    if settings.placement:
        checks.extend(_check_placement(settings, settings.placement))
    return 0 if print_checks(checks, json=options.json) else 1


def _check_store(settings: EstimatorSettings) -> tuple[list[Check], EstimatorSettings]:
    """A row per node, if the store can be read, and one for the store; the settings with the nodes."""
    name = store_name(settings.store)
    if settings.store.is_embedded and not settings.store.path.expanduser().exists():
        return [(name, False, "does not exist yet; vmaggreg.py creates it")], settings
    try:
        store = open_store(settings.store)
    except StoreRefused as error:
        raise UsageError(str(error)) from None
    with contextlib.closing(store):
        ok, message = ask_store(store)
        if ok:
            try:
                settings = FoundNodes().complete(settings, store)
            except PassingFault as error:
                ok, message = False, str(error)
        nodes = [(node, *_check_node(store, node, settings)) for node in settings.nodes] if ok else []
    return [*nodes, (name, ok, message)], settings


def _check_node(store: Store, node: str, settings: EstimatorSettings) -> tuple[bool, str]:
    try:
        last = store.last(node)
    except (StoreUnavailable, StoreRefused) as error:
        return False, str(error)
    if last is None:
        if settings.store.prometheus is not None:
            return False, _why_missing(store, node)
        return False, "no samples stored; does vmaggreg.py use the same URL?"
    age_s = time.time() - last.time_ms / 1000
    cores, mem_gb = last.fields.get("cpu", math.nan), last.fields.get("mem", math.nan) / 1024
    return True, f"{cores:g} cores, {mem_gb:.0f} GB, {len(last.domains)} VMs, last sample {age_s:.0f} s ago"


def _why_missing(store: Store, node: str) -> str:
    """Why a Prometheus server has no samples of a node."""
    try:
        found = store.nodes()
    except StoreUnavailable as error:
        return str(error)
    if node in found:
        return "no samples in 30 days"
    return f"not found on the server; it has {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}"


def _check_placement(settings: EstimatorSettings, placement: PlacementSettings) -> Iterator[Check]:
    from ..publishers.placement.check import check_placement

    published: Mapping[str, PublishedNode] = {}
    # Without it, the size and the bookings of the nodes are not shown.
    with contextlib.suppress(StatusFileError):
        published = read_status(settings.status.path)
    return check_placement(placement, settings.nodes, published)
