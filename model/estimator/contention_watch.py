"""Looks for contention within a slice, so that the published figure falls at once and not at the end of the slice."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..common.text import printable
from ..contention import Contention, ContentionSettings, Level, describe, measure
from ..numerics import FloatArray
from ..samples import Period, Samples
from ..slices import MEMORY, RESOURCES, Slice, usage_of
from ..store.base import Store, StoreRefused, StoreUnavailable
from .bookings import last_configs
from .slicing import SLICE_FIELDS
from .waiting import waits_of

LOG = logging.getLogger("scroogevm.estimator")

#: VMs suffer now when they did in most of the samples of the last minute, at least the last two, and in the share of
#: the samples that a slice needs over the last four minutes: the latter shows whether a VM has reached its quota.
_NEWEST_S, _MOST_OF_THEM = 60.0, 0.5
_WINDOW_S = 240.0
_LEAST_SAMPLES = 2


class ContentionWatch:
    """Contention that began after the last slice of a node. Safe to use from any thread.

    What is found counts until the next slice is computed: within a slice a figure falls, it never rises.

    Parameters
    ----------
    store : Store
    settings : ContentionSettings
    period_s : float
        Seconds between two looks at a node.
    clock : callable
        Unix seconds.
    monotonic : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        settings: ContentionSettings,
        period_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._period_s = period_s
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}
        self._found: dict[str, tuple[int, dict[str, Contention]]] = {}

    def is_due(self, node: str) -> bool:
        """Whether it is time to look at a node again."""
        return self._monotonic() >= self._due.get(node, -math.inf)

    def found(self, node: str, number: int | None) -> Mapping[str, Contention]:
        """What was found since the slice ``number`` ended, by name of the resource."""
        with self._lock:
            at, contentions = self._found.get(node, (None, {}))
            return dict(contentions) if at == number else {}

    def check(self, node: str, number: int) -> None:
        """Look at the newest samples of a node, whose last slice is ``number``. A store that fails shows nothing."""
        self._due[node] = self._monotonic() + self._period_s
        end_s = self._clock()
        start_ms, end_ms = int((end_s - _WINDOW_S) * 1000), int(end_s * 1000) + 1
        try:
            period = self._store.read(node, start_ms, end_ms, SLICE_FIELDS)
        except (StoreUnavailable, StoreRefused):
            return
        found = contention_now(period, int((end_s - _NEWEST_S) * 1000), self._settings)
        with self._lock:
            at, before = self._found.get(node, (number, {}))
            before = before if at == number else {}
            self._found[node] = (number, {**before, **found})
        for name in found.keys() - before.keys():
            text = printable(describe(found[name], math.nan)) or name
            LOG.warning("%s: nothing is free until the slice ends: %s", node, text)


def contention_now(period: Period, newest_ms: int, settings: ContentionSettings) -> dict[str, Contention]:
    """The resources of which the VMs have far too little now, by name.

    Parameters
    ----------
    period : Period
        The last minutes of a node.
    newest_ms : int
        Begin of the newest part, Unix milliseconds; earlier where that has less than two samples.
    settings : ContentionSettings
    """
    newest_ms = min([newest_ms, *period.node.time_ms[-_LEAST_SAMPLES:].tolist()])
    whole, newest = _slice_of(period), _slice_of(_since(period, newest_ms))
    if newest is None or whole is None:
        return {}
    result = {}
    for resource in RESOURCES:
        now = measure(resource, newest, replace(settings, samples=_MOST_OF_THEM)).contention
        over_window = measure(resource, whole, settings)
        confirmed = over_window.contention.level is Level.HIGH and not over_window.undecided
        if now.level is Level.HIGH and confirmed:
            result[resource.name] = now
    return result


def _since(period: Period, start_ms: int) -> Period:
    return Period(
        _samples_since(period.node, start_ms),
        {name: _samples_since(samples, start_ms) for name, samples in period.domains.items()},
    )


def _samples_since(samples: Samples, start_ms: int) -> Samples:
    first = int(np.searchsorted(samples.time_ms, start_ms))
    return Samples(samples.time_ms[first:], {name: values[first:] for name, values in samples.fields.items()})


def _slice_of(period: Period) -> Slice | None:
    """The samples of a period as a slice; None when they are too few."""
    if period.node.time_ms.size < _LEAST_SAMPLES:
        return None
    names = sorted(period.domains)
    configs = last_configs(period.domains)
    usages = []
    for resource in RESOURCES:
        sizes = [configs[name].fields.get(resource.name, math.nan) if name in configs else math.nan for name in names]
        capacity = period.node.fields[resource.name]
        known: FloatArray = capacity[~np.isnan(capacity)]
        usage = period.node.fields[f"{resource.name}_usage"]
        rows: Sequence[FloatArray] = [np.empty(0)] * len(names)
        usages.append(usage_of(float(known.min()) if known.size else math.nan, usage, sizes, rows))
    cpu, mem = usages
    waits = waits_of(period.node, [period.domains[name] for name in names])
    return Slice(period.node.time_ms[-1] / 1000, 0, tuple(names), cpu, mem, waits)


assert RESOURCES[1] is MEMORY  # noqa: S101  # the order above
