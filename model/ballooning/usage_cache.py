"""Memory usage of each VM in the window, read from the store incrementally."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.logs import ProblemLog
from ..numerics import FloatArray
from ..store.base import Store, StoreRefused, StoreUnavailable
from .guests import GuestUsage

LOG = logging.getLogger("scroogevm.ballooning")

_FIELDS = ("mem_usage", "mem_rss")
#: The percentile of ``mem_usage`` that is taken as the usage of a VM.
_USAGE_PERCENTILE = 90.0


class _VmSamples:
    """Samples of a VM in the window."""

    def __init__(self) -> None:
        self.chunks: deque[tuple[FloatArray, FloatArray]] = deque()  # seconds, MB
        self._rss_mb = math.nan
        self._rss_s = -math.inf

    def add(self, times_s: FloatArray, usage_mb: FloatArray, rss_mb: FloatArray) -> None:
        """Add samples, arrays of one length in order of time; NaN is missing."""
        present = ~np.isnan(usage_mb)
        if present.any():
            self.chunks.append((times_s[present], usage_mb[present]))
        resident = np.flatnonzero(~np.isnan(rss_mb))
        if resident.size:
            self._rss_mb, self._rss_s = float(rss_mb[resident[-1]]), float(times_s[resident[-1]])

    def drop_before(self, since_s: float) -> None:
        """Drop chunks that are entirely older than the window."""
        while self.chunks and self.chunks[0][0][-1] < since_s:
            self.chunks.popleft()
        if self._rss_s < since_s:
            self._rss_mb = math.nan

    def usage(self, since_s: float, now_s: float) -> GuestUsage:
        """The usage in the window."""
        if not self.chunks:
            return GuestUsage(math.nan, self._rss_mb, math.inf)
        times_s = np.concatenate([times for times, _ in self.chunks])
        usage_mb = np.concatenate([usage for _, usage in self.chunks])[times_s >= since_s]
        if not usage_mb.size:
            return GuestUsage(math.nan, self._rss_mb, math.inf)
        percentile_mb = float(np.percentile(usage_mb, _USAGE_PERCENTILE))
        return GuestUsage(percentile_mb, self._rss_mb, now_s - float(times_s[-1]))


class UsageCache:
    """Samples of all nodes in the window; each sample is read from the store once.

    Parameters
    ----------
    store : Store
    scope_s : float
        Length of the window.
    """

    def __init__(self, store: Store, scope_s: float) -> None:
        self._store = store
        self._scope_s = scope_s
        self._lock = threading.Lock()
        self._nodes: dict[str, dict[str, _VmSamples]] = {}
        self._read_to_ms: dict[str, int] = {}
        self._problems = ProblemLog(LOG)

    def refresh(self, nodes: Sequence[str], now_s: float) -> None:
        """Read new samples of each node; a node that cannot be read keeps the samples that it has."""
        for node in nodes:
            try:
                self._refresh_node(node, now_s)
                self._problems.resolve(f"metrics of {node}")
            except (StoreUnavailable, StoreRefused) as error:
                self._problems.report(f"metrics of {node}", str(error))

    def _refresh_node(self, node: str, now_s: float) -> None:
        since_s = now_s - self._scope_s
        start_ms = max(self._read_to_ms.get(node, 0), int(since_s * 1000))
        period = self._store.read(node, start_ms, int(now_s * 1000) + 1, _FIELDS)
        with self._lock:
            vms = self._nodes.setdefault(node, {})
            for name, samples in period.domains.items():
                if samples.time_ms.size:
                    vms.setdefault(name, _VmSamples()).add(
                        samples.time_ms / 1000, samples.fields["mem_usage"], samples.fields["mem_rss"]
                    )
                    self._read_to_ms[node] = max(self._read_to_ms.get(node, 0), int(samples.time_ms[-1]) + 1)
            for name, vm in list(vms.items()):
                vm.drop_before(since_s)
                if not vm.chunks and name not in period.domains:
                    del vms[name]

    def usage(self, node: str, now_s: float) -> Mapping[str, GuestUsage] | None:
        """Usage of the VMs of a node by stored name; None until the node was read for the first time."""
        with self._lock:
            if node not in self._nodes:
                return None
            since_s = now_s - self._scope_s
            return {name: vm.usage(since_s, now_s) for name, vm in sorted(self._nodes[node].items())}
