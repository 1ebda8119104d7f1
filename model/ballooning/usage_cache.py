"""What the store says of each VM's memory over the last scope, read piece by piece."""

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
#: The percentile that stands for what a VM uses.
_USAGE_PERCENTILE = 90.0


class _Vm:
    """The samples of a VM in the scope."""

    def __init__(self) -> None:
        self.pieces: deque[tuple[FloatArray, FloatArray]] = deque()  # seconds, MB used
        self.rss_mb = math.nan
        self._rss_s = -math.inf

    def add(self, times_s: FloatArray, usage_mb: FloatArray, rss_mb: FloatArray) -> None:
        plan_lines = ~np.isnan(usage_mb)
        if plan_lines.any():
            self.pieces.append((times_s[plan_lines], usage_mb[plan_lines]))
        resident = np.flatnonzero(~np.isnan(rss_mb))
        if resident.size:
            self.rss_mb, self._rss_s = float(rss_mb[resident[-1]]), float(times_s[resident[-1]])

    def forget(self, before_s: float) -> None:
        while self.pieces and self.pieces[0][0][-1] < before_s:
            self.pieces.popleft()
        if self._rss_s < before_s:
            self.rss_mb = math.nan

    def metrics(self, since_s: float, now_s: float) -> GuestUsage:
        if not self.pieces:
            return GuestUsage(math.nan, self.rss_mb, math.inf)
        times_s = np.concatenate([times for times, _ in self.pieces])
        usage_mb = np.concatenate([usage for _, usage in self.pieces])[times_s >= since_s]
        if not usage_mb.size:
            return GuestUsage(math.nan, self.rss_mb, math.inf)
        return GuestUsage(float(np.percentile(usage_mb, _USAGE_PERCENTILE)), self.rss_mb, now_s - float(times_s[-1]))


class UsageCache:
    """Keeps the samples of the last scope of all nodes; what is known already is not read again.

    Parameters
    ----------
    store : Store
    scope_s : float
    """

    def __init__(self, store: Store, scope_s: float) -> None:
        self._store = store
        self._scope_s = scope_s
        self._lock = threading.Lock()
        self._vms: dict[str, dict[str, _Vm]] = {}
        self._read_to_ms: dict[str, int] = {}
        self._problems = ProblemLog(LOG)

    def refresh(self, nodes: Sequence[str], now_s: float) -> None:
        """Read what is new of each node; one that can't be read keeps what was known of it."""
        for node in nodes:
            try:
                self._refresh(node, now_s)
                self._problems.resolve(f"metrics of {node}")
            except (StoreUnavailable, StoreRefused) as error:
                self._problems.report(f"metrics of {node}", str(error))

    def _refresh(self, node: str, now_s: float) -> None:
        since_s = now_s - self._scope_s
        start_ms = max(self._read_to_ms.get(node, 0), int(since_s * 1000))
        period = self._store.read(node, start_ms, int(now_s * 1000) + 1, _FIELDS)
        with self._lock:
            vms = self._vms.setdefault(node, {})
            for name, samples in period.domains.items():
                if samples.time_ms.size:
                    vms.setdefault(name, _Vm()).add(
                        samples.time_ms / 1000, samples.fields["mem_usage"], samples.fields["mem_rss"]
                    )
                    self._read_to_ms[node] = max(self._read_to_ms.get(node, 0), int(samples.time_ms[-1]) + 1)
            for name, vm in list(vms.items()):
                vm.forget(since_s)
                if not vm.pieces and name not in period.domains:
                    del vms[name]

    def of(self, node: str, now_s: float) -> Mapping[str, GuestUsage] | None:
        """The VMs of a node by the names under which they are stored; None as long as it was not read."""
        with self._lock:
            if node not in self._vms:
                return None
            return {
                name: vm.metrics(now_s - self._scope_s, now_s) for name, vm in sorted(self._vms.get(node, {}).items())
            }
