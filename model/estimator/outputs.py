"""Opens the publishers of a run: status file, metrics, status page and OpenStack Placement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from ..common.errors import UsageError
from ..common.http_server import serve
from ..publishers.base import Publisher
from ..publishers.prometheus import EstimatorCounts, EstimatorMetrics
from ..publishers.settings import PlacementSettings
from ..publishers.status_file import StatusFile
from .settings import EstimatorSettings
from .slicing import SliceClock

if TYPE_CHECKING:
    from ..publishers.placement.reconciler import PlacementCounts

#: How long the end of a run waits for the last publication to OpenStack Placement.
_END_S = 10.0


def open_publishers(
    settings: EstimatorSettings, counts: EstimatorCounts, opened: contextlib.ExitStack, *, with_page: bool
) -> dict[str, Publisher]:
    """The publishers that the settings name, by the names that log lines give them.

    Parameters
    ----------
    settings : EstimatorSettings
    counts : EstimatorCounts
        Shown by the metrics.
    opened : ExitStack
        Closes servers and threads.
    with_page : bool
        Whether the metrics port is opened, if there is one.

    Raises
    ------
    UsageError
        When the metrics port or the login of OpenStack Placement cannot be used.
    """
    registry = CollectorRegistry()
    valid_s = settings.calendar.slice_s + SliceClock(settings.calendar, settings.settle_s).grace_s
    publishers: dict[str, Publisher] = {"status file": StatusFile(settings.status, valid_s)}
    placement_counts = None
    if settings.placement is not None:
        publishers["placement"], placement_counts = _open_placement_publisher(settings.placement, opened)
    publishers["metrics"] = EstimatorMetrics(registry, counts, placement_counts)
    if settings.metrics_port and with_page:
        publishers["status page"] = _open_page(settings, registry, valid_s, opened)
    return publishers


def page_address(settings: EstimatorSettings) -> str:
    """The URL of status page and metrics; empty if there is no metrics port."""
    address = settings.metrics_address
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{settings.metrics_port}/" if settings.metrics_port else ""


def _open_page(
    settings: EstimatorSettings, registry: CollectorRegistry, valid_s: float, opened: contextlib.ExitStack
) -> Publisher:
    """Serve the status page and the metrics."""
    from ..publishers.status_page.history import History
    from ..publishers.status_page.wsgi import application

    history = History()
    pages = application(history, registry, settings.calendar.slice_s, valid_s)
    server = serve("SCHED_METRICS_PORT", settings.metrics_port, settings.metrics_address, pages)
    opened.callback(server.close)
    return history


def _open_placement_publisher(
    settings: PlacementSettings, opened: contextlib.ExitStack
) -> tuple[Publisher, Callable[[], PlacementCounts]]:
    from ..publishers.placement.client import PlacementError
    from ..publishers.placement.publisher import PlacementPublisher
    from ..publishers.placement.reconciler import PlacementReconciler

    try:
        reconciler = PlacementReconciler(settings)
    except PlacementError as error:
        raise UsageError(f"OpenStack Placement: {error}") from None
    publisher = PlacementPublisher(reconciler)
    opened.callback(publisher.close, _END_S)
    return publisher, reconciler.counts
