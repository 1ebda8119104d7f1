"""The counts of several masters, exchanged through the store.

Each master writes the sums of its own nodes at the end of a slice, under its name, and reads those of the others when
the next slice is due. What has not arrived by then counts nothing. All access is in threads of its own: a store that
hangs, cannot be written or refuses the counts costs the master nothing but the feedback of the others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from ..common.logs import ProblemLog
from ..common.threads import LatestValue
from ..feedback import ResourceCounts, SliceCounts
from ..slices import LARGEST, RESOURCES
from ..store.base import FleetRow, Store, StoreRefused, StoreUnavailable
from ..vmmoments import SIZE_CLASSES
from .slicing import Calendar

LOG = logging.getLogger("scroogevm.estimator")

#: Fields of the counts with a value per size class.
_BY_CLASS = ("observations", "shares", "squares")
_SLICE_S = "slice_s"
#: Sums of shares may exceed the number of observations by rounding.
_ROUNDING = 1e-9
#: How long the end of a run waits for counts that are being written.
_END_S = 2.0


def fields_of(counts: SliceCounts, slice_s: float) -> dict[str, float]:
    """The counts as fields of a store, such as ``cpu_nodes`` and ``mem_shares_3``."""
    named = {_SLICE_S: slice_s}
    for resource in RESOURCES:
        one = counts.of(resource)
        for name in (field.name for field in fields(ResourceCounts)):
            value = getattr(one, name)
            if name in _BY_CLASS:
                named |= {f"{resource.name}_{name}_{i}": value[i] for i in range(SIZE_CLASSES)}
            else:
                named[f"{resource.name}_{name}"] = value
    return named


def counts_of(named: Mapping[str, float], slice_s: float) -> SliceCounts | None:
    """The counts that another master wrote; None when some are missing or impossible, or its slices are not ours."""
    try:
        if named[_SLICE_S] != slice_s:
            return None
        counts = [_resource_counts(named, resource.name) for resource in RESOURCES]
    except KeyError:
        return None
    return SliceCounts(*counts) if all(_is_possible(one) for one in counts) else None


def _resource_counts(named: Mapping[str, float], resource: str) -> ResourceCounts:
    single = [field.name for field in fields(ResourceCounts) if field.name not in _BY_CLASS]
    values = {name: named[f"{resource}_{name}"] for name in single}
    by_class = {name: tuple(named[f"{resource}_{name}_{i}"] for i in range(SIZE_CLASSES)) for name in _BY_CLASS}
    return ResourceCounts(**values, **by_class)  # type: ignore[arg-type]


def _is_possible(counts: ResourceCounts) -> bool:
    by_class = (*counts.observations, *counts.shares, *counts.squares)
    values = (counts.nodes, counts.full, counts.largest, counts.expected, counts.used, *by_class)
    if not all(math.isfinite(value) and 0.0 <= value <= LARGEST for value in values):
        return False
    bounded = zip(counts.shares + counts.squares, counts.observations * 2, strict=True)
    return counts.full <= counts.nodes and all(one <= most * (1.0 + _ROUNDING) for one, most in bounded)


class StorePeers:
    """The masters that write to the same store.

    Parameters
    ----------
    store : Store
    master : str
        The name of this one.
    calendar : Calendar
    wait_s : float
        For how long the counts of the others are waited for.
    monotonic : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        master: str,
        calendar: Calendar,
        wait_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._master = master
        self._calendar = calendar
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._problems = ProblemLog(LOG)
        self._writes = LatestValue(self._write, "fleet-write")
        self._reads = LatestValue(self._read, "fleet-read")
        self._lock = threading.Lock()
        self._number: int | None = None
        self._others: Sequence[SliceCounts] | None = None
        self._asked_at = 0.0
        self._closed = False

    def share(self, number: int, counts: SliceCounts) -> None:
        """Write the sums of the own nodes in the background; they replace those that still wait."""
        row = FleetRow(self._master, self._time_ms(number), fields_of(counts, self._calendar.slice_s))
        self._writes.put(row)

    def counts(self, number: int, wake: Callable[[], object]) -> Sequence[SliceCounts] | None:
        """The counts of the others, in the order of their names; none when they cannot be read in time."""
        with self._lock:
            if self._number != number:
                self._number, self._others, self._asked_at = number, None, self._monotonic()
                self._reads.put((number, wake))
            elif self._others is None and self._monotonic() - self._asked_at >= self._wait_s:
                self._others = ()
                self._problems.report("counts of other masters", "cannot be read: no response in time")
            return self._others

    def close(self) -> None:
        """Write what waits, if that is possible in time."""
        self._writes.close(_END_S)
        self._closed = True
        self._reads.close(0.0)

    def _time_ms(self, number: int) -> int:
        return self._calendar.bounds_ms(number)[1]

    def _write(self, row: FleetRow) -> None:
        self._try("counts of the fleet", "cannot be written", lambda: self._store.write_fleet(row))

    def _read(self, asked: tuple[int, Callable[[], object]]) -> None:
        number, wake = asked
        time_ms = self._time_ms(number)
        found: list[SliceCounts] = []

        def read() -> None:
            for row in self._store.read_fleet(time_ms, time_ms + 1):
                counts = counts_of(row.counts, self._calendar.slice_s)
                if row.master != self._master and counts is not None:
                    found.append(counts)

        self._try("counts of other masters", "cannot be read", read)
        with self._lock:
            if number == self._number and self._others is None:
                self._others = tuple(found)
        wake()

    def _try(self, subject: str, failure: str, job: Callable[[], object]) -> None:
        """Run a job; its failure is logged once."""
        try:
            job()
        except (StoreUnavailable, StoreRefused) as error:
            self._problems.report(subject, f"{failure}: {error}")
        except Exception as error:
            # A defect, or unexpected data, must not end the thread.
            if not self._closed:
                self._problems.report(subject, f"{failure}: {error!r}", logging.ERROR, error=error)
        else:
            self._problems.resolve(subject)
