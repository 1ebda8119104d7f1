"""Finds what was stored last of a node, so that a restart of the aggregator forgets nothing that confirms a page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from ..samples import Samples, ScrapeSample
from ..store.base import Store, StoreRefused, StoreUnavailable

#: Older samples do not confirm a page.
_OLDEST_MS = 900_000

#: A store that is unavailable is not asked again for this time: each attempt may take as long as its timeout.
_PAUSE_S = 60.0

_FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss", "oc_cpu")


class Recall:
    """Reads the last complete sample of nodes. Safe to use from any thread.

    Parameters
    ----------
    store : Store
    clock : callable
        Monotonic seconds.
    wall_clock : callable
        Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._paused_until_s = -np.inf

    def __call__(self, node: str) -> ScrapeSample | None:
        """The last stored sample in which VMs and usage are known; None when there is none, or no store."""
        with self._lock:
            if self._clock() < self._paused_until_s:
                return None
        try:
            sample = last_complete(self._store, node)
            is_old = sample is not None and sample.time_ms < self._wall_clock() * 1000 - _OLDEST_MS
            return None if is_old else sample
        except (StoreUnavailable, StoreRefused):
            with self._lock:
                self._paused_until_s = self._clock() + _PAUSE_S
            return None


def last_complete(store: Store, node: str) -> ScrapeSample | None:
    """The last sample of a node in which the usage of node and VMs is known, else the last one with known VMs.

    Raises
    ------
    StoreUnavailable, StoreRefused
    """
    newest = store.last(node)
    if newest is None or _is_complete(newest):
        return newest
    period = store.read(node, newest.time_ms - _OLDEST_MS, newest.time_ms + 1, _FIELDS)
    best: ScrapeSample | None = None
    for i in reversed(range(period.node.time_ms.size)):
        time_ms = int(period.node.time_ms[i])
        vms = {name: fields for name, samples in period.domains.items() if (fields := _at(samples, time_ms))}
        sample = ScrapeSample(node, time_ms, _at(period.node, time_ms), vms)
        if _is_complete(sample):
            return sample
        if best is None and "oc_cpu" in sample.fields:
            best = sample
    return best


def _is_complete(sample: ScrapeSample) -> bool:
    return {"oc_cpu", "cpu_usage"} <= sample.fields.keys() and all("cpu_usage" in vm for vm in sample.domains.values())


def _at(samples: Samples, time_ms: int) -> Mapping[str, float]:
    """The known fields at a time."""
    i = int(np.searchsorted(samples.time_ms, time_ms))
    if i >= samples.time_ms.size or samples.time_ms[i] != time_ms:
        return {}
    return {name: float(values[i]) for name, values in samples.fields.items() if not np.isnan(values[i])}
