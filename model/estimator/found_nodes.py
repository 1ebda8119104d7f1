"""The nodes of a store on which they are found: those of a Prometheus server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..common.errors import PassingFault
from ..common.logs import EVENT
from ..common.threads import run_periodically, start_thread
from ..store.base import Store, StoreUnavailable
from ..store.factory import store_name
from .settings import EstimatorSettings

LOG = logging.getLogger("scroogevm.estimator")

#: How often the store is asked for its nodes; it looks for them less often.
_EVERY_S = 60.0


class FoundNodes:
    """Takes the nodes from the store where the settings name none.

    A node that has vanished is kept over reloads: it becomes stale.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def complete(self, settings: EstimatorSettings, store: Store) -> EstimatorSettings:
        """The settings with the nodes of the store, unless they have their own.

        Raises
        ------
        PassingFault
            When the store cannot be asked at the moment, or has no nodes yet.
        """
        if not settings.nodes_are_found:
            return settings
        try:
            self._known.update(store.nodes())
        except StoreUnavailable as error:
            raise PassingFault(f"{store_name(settings.store)}: {error}") from None
        fleet = tuple(sorted(self._known))
        nodes = settings.shard.select(fleet)
        if not nodes:
            raise PassingFault(f"{store_name(settings.store)}: none of its {len(fleet)} nodes can be used")
        return replace(settings, nodes=nodes, fleet=fleet)

    @contextmanager
    def watched(
        self, settings: EstimatorSettings, store: Store, join: Callable[[], object], every_s: float = _EVERY_S
    ) -> Iterator[None]:
        """Look for further nodes during the block.

        Parameters
        ----------
        settings : EstimatorSettings
        store : Store
        join : callable
            Called once when there are some.
        every_s : float
        """
        if not settings.nodes_are_found:
            yield
            return
        stop = threading.Event()

        def look() -> None:
            try:
                new = {node for node in store.nodes() if settings.shard.has(node)} - self._known
            except StoreUnavailable:
                return  # every read of a slice fails as well, and that is logged
            if new and not stop.is_set():
                stop.set()
                LOG.info("found on the store: %s", ", ".join(sorted(new)[:5]), extra=EVENT)
                join()

        start_thread("node-finder", run_periodically, look, every_s, stop)
        try:
            yield
        finally:
            stop.set()
