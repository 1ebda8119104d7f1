"""Reads the usage of VMs in a thread; guests are restored whether the store can be read or not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from ..common.logs import ProblemLog
from ..common.threads import run_periodically, start_thread
from ..store.base import Store, StoreRefused, StoreUnavailable
from ..store.factory import open_store
from ..store.settings import StoreSettings
from .guests import GuestUsage
from .usage_cache import UsageCache

#: Time limit for a read of the store that runs when the daemon stops.
_LAST_READ_S = 2.0


class UsageReader:
    """Opens the store as soon as that is possible, and keeps the usage of all VMs up to date.

    Parameters
    ----------
    settings : StoreSettings
    nodes : sequence of str
    scope_s : float
        Length of the window.
    sleep_s : float
        Pause between two reads.
    problems : ProblemLog
    """

    def __init__(
        self, settings: StoreSettings, nodes: Sequence[str], scope_s: float, sleep_s: float, problems: ProblemLog
    ) -> None:
        self._settings = settings
        self._nodes = nodes
        self._scope_s = scope_s
        self._sleep_s = sleep_s
        self._problems = problems
        self._stop = threading.Event()
        self._store: Store | None = None
        self._cache: UsageCache | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Start the thread; whether the store could be opened at once."""
        opened = self._open()
        self._thread = start_thread("usage-reader", run_periodically, self._refresh, self._sleep_s, self._stop)
        return opened

    def usage(self, node: str, now_s: float) -> Mapping[str, GuestUsage] | None:
        """Usage of the VMs of a node by stored name; None until the node was read for the first time."""
        cache = self._cache
        return cache.usage(node, now_s) if cache is not None else None

    def close(self) -> None:
        """End the thread and close the store, unless a read hangs."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LAST_READ_S)
            if self._store is not None and not self._thread.is_alive():
                self._store.close()

    def _open(self) -> bool:
        try:
            self._store = open_store(self._settings)
        except (StoreRefused, StoreUnavailable) as error:
            self._problems.report("store", f"{error}; no session starts", logging.ERROR)
            return False
        self._problems.resolve("store")
        self._cache = UsageCache(self._store, self._scope_s)
        return True

    def _refresh(self) -> None:
        if self._cache is None:
            self._open()
        if self._cache is not None:
            self._cache.refresh(self._nodes, time.time())
