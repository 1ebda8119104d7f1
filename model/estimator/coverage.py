"""Which samples of a slice count, and how often: by the time that each of them covers.

A CPU rate is the mean since the scrape before it. After a gap, one rate covers many intervals; it counts as often as
the rates that are missing. Otherwise a node that does not respond while it is busy would look idle. A slice of which
too little is covered has no figures.

Of older samples the store may have kept one per step of time, see :mod:`model.store.thinning`. It has the number of
samples that it stands for, and counts as often as they did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from ..samples import Samples, SampleTable
from ..slices import CPU, LARGEST, MEMORY, RESOURCES, Resource

#: Share of a slice that must be covered, beside one interval at its end, which the next slice covers. What is not
#: covered may be the time in which the node was busy.
_COVERED = 0.98

#: Share of the usual number of samples that is needed: a rate over a gap hides the peaks within.
_NUMBER = 0.5

#: The usual interval of a node grows by this factor from slice to slice at most.
_SLOWER = 1.5

#: A level is valid for at most this number of intervals.
_LEVEL_INTERVALS = 3

#: A rate that covers no more intervals than this is not after a longer gap, which covers four or more.
_EVEN_INTERVALS = 3.5

#: The mean interval of the scrapes that a sample stands for is the usual one unless it exceeds the shortest by more.
_REGULAR = 1.1

#: CPU usage beyond this multiple of the capacity is an error; clock and counters are not read at the same time.
_MOST_CPU = 1.5

#: Limits how often a sample is repeated: a slice has at most this number of repeated samples, or thrice its samples.
_MOST_REPEATED = 2000

#: Shortest time between two scrapes, ms: a sample cannot stand for more of them.
_SHORTEST_MS = 100.0

#: Fields of a sample that stands for several scrapes: their numbers, and the shortest and longest times of their rates.
THINNED_FIELDS = ("samples", "cpu_samples", "mem_samples", "elapsed_min", "elapsed_max")

_NO_SAMPLES: FloatArray = np.empty(0)


@dataclass(frozen=True, slots=True)
class Counted:
    """Samples of one resource of a machine.

    Attributes
    ----------
    values : (n,) float64
        Repeated by the time that they cover; empty when they do not suffice.
    missing : str
        Why there are none, although there are samples.
    demand : (n,) float64 or None
        What was wanted at the same samples; None when that is not known.
    """

    values: FloatArray
    missing: str = ""
    demand: FloatArray | None = None


class _Covers(NamedTuple):
    """The time that each sample covers.

    Attributes
    ----------
    each_ms : (n,) float64
    repeats : (n,) int
        How often each counts.
    numbers : (n,) int
        The number of scrapes that each stands for.
    total_ms : float
    any_repeated : bool
    is_thinned : bool
        Whether any stands for several scrapes.
    """

    each_ms: FloatArray
    repeats: NDArray[np.intp]
    numbers: NDArray[np.intp]
    total_ms: float
    any_repeated: bool
    is_thinned: bool

    def of(self, chosen: NDArray[Any]) -> _Covers:
        """Those of some samples, by a mask or by indices."""
        return _covers(self.each_ms[chosen], self.repeats[chosen], self.numbers[chosen])

    def limited_to(self, numbers: NDArray[np.intp]) -> _Covers:
        """The same for a machine that was there in only so many of the scrapes that each stands for."""
        if (numbers >= self.numbers).all():
            return self
        share = np.minimum(numbers / self.numbers, 1.0)
        repeats = np.maximum(1, np.rint(self.repeats * share).astype(np.intp))
        return _covers(self.each_ms * share, repeats, np.minimum(numbers, self.numbers))


def _covers(each_ms: FloatArray, repeats: NDArray[np.intp], numbers: NDArray[np.intp]) -> _Covers:
    is_thinned = bool((numbers > 1).any())
    return _Covers(each_ms, repeats, numbers, float(each_ms.sum()), bool((repeats > 1).any()), is_thinned)


def valid_levels(values: FloatArray) -> FloatArray:
    """Samples, with NaN in place of negative values and of values beyond any machine."""
    return np.where((values >= 0) & (values <= LARGEST), values, np.nan)


def _is_unknown(values: FloatArray | None) -> bool:
    return values is None or bool(np.isnan(values).all())


class SliceCoverage:
    """The times at which a node was scraped in a slice, and the time that each sample covers.

    Parameters
    ----------
    node : Samples
        With ``elapsed_time``, ms, and ``oc_cpu``, which is missing while the VMs are unknown.
    start_ms, end_ms : int
        Bounds of the slice.
    min_samples : int
        Fewer samples do not suffice for a percentile.
    usual_ms : float
        The usual time between two samples, from earlier slices; 0 when it is not known.

    Attributes
    ----------
    interval_ms : float
        The usual time, with this slice; 0 when it is not known.
    """

    def __init__(self, node: Samples, start_ms: int, end_ms: int, min_samples: int, usual_ms: float = 0.0) -> None:
        self._times = node.time_ms
        self._start_ms, self._slice_ms = start_ms, end_ms - start_ms
        (known,) = np.nonzero(~np.isnan(node.fields["oc_cpu"]))
        self._vms_known_ms = int(node.time_ms[known[-1]]) if known.size else start_ms
        gaps = _gaps(node.time_ms, start_ms)
        scrapes = _numbers(node, "samples", gaps)
        intervals = _intervals(node, gaps, scrapes)
        if (scrapes > 1).any():
            intervals = np.repeat(intervals, scrapes)
        intervals = intervals[1:]
        measured_ms = _median(intervals) if intervals.size else float(self._slice_ms)
        expected_ms = min(measured_ms, usual_ms) if usual_ms else measured_ms
        self.interval_ms = usual_ms
        if intervals.size:
            self.interval_ms = min(measured_ms, _SLOWER * usual_ms) if usual_ms else measured_ms
        self._min_samples = min_samples
        self._expected_ms = expected_ms
        elapsed = node.fields["elapsed_time"]
        level = self._level(gaps, scrapes, elapsed, node.fields.get("elapsed_max"))
        # A rate covers the time since the scrape from which it was computed, which may be in an earlier slice.
        rate = np.minimum(np.where(np.isnan(elapsed), level, elapsed), node.time_ms - start_ms)
        numbers = {
            resource: np.minimum(_numbers(node, _number_field(resource), gaps), scrapes) for resource in RESOURCES
        }
        self._covers = {
            CPU: self._repeat(rate, numbers[CPU]),
            MEMORY: self._repeat(level * (numbers[MEMORY] / scrapes), numbers[MEMORY]),
        }

    def _level(
        self, gaps: FloatArray, scrapes: NDArray[np.intp], elapsed: FloatArray, longest: FloatArray | None
    ) -> FloatArray:
        """(n,) float64: the time that each level covers, ms.

        Of the scrapes that a sample stands for, one was after a gap at most: that is the least that they cover. They
        cover all of the time when rates do and no rate covers too much of it.
        """
        level = np.minimum(gaps, (scrapes + _LEVEL_INTERVALS - 1) * self._expected_ms)
        if longest is None or np.isnan(longest).all():
            return level
        even = (longest <= _EVEN_INTERVALS * self._expected_ms) & (elapsed >= gaps - 1.5 * self._expected_ms)
        return np.where(even, gaps, level)

    def _repeat(self, covers: FloatArray, numbers: NDArray[np.intp]) -> _Covers:
        usual_ms = _median(covers) if covers.size else 0.0
        if (numbers > 1).any():
            usual_ms = self._expected_ms
        base_ms = max(usual_ms, self._slice_ms / max(_MOST_REPEATED, 2 * int(numbers.sum())))
        return _covers(covers, np.maximum(numbers, np.rint(covers / base_ms).astype(np.intp)), numbers)

    def count_node(
        self, resource: Resource, values: FloatArray, capacity: float, waits: FloatArray | None = None
    ) -> Counted:
        """The samples of the node that count.

        Parameters
        ----------
        resource : Resource
        values : (n,) float64
            At the times of the node.
        capacity : float
            NaN if it is unknown.
        waits : (n,) float64, optional
            How long its VMs waited, cores; NaN where it is unknown.
        """
        largest = np.inf if np.isnan(capacity) else capacity * (_MOST_CPU if resource is CPU else 1.0) + 1.0
        valid = (values >= 0) & (values <= largest)
        return self._count(values, valid, self._covers[resource], self._slice_ms, waits)

    def at_node_times(self, samples: Samples, name: str) -> FloatArray:
        """(n,) float64: a field of a VM at the times of the node; NaN where the VM has no sample."""
        values = samples.fields[name]
        if self._has_times_of_node(samples):
            return values
        result = np.full(self._times.size, np.nan)
        place, at_same_time = self._place(samples)
        result[place[at_same_time]] = values[at_same_time]
        return result

    def _has_times_of_node(self, samples: Samples | SampleTable) -> bool:
        times = samples.time_ms
        return times.size == self._times.size and bool((times == self._times).all())

    def _place(self, samples: Samples) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The index of each sample among those of the node, and whether it has the same time."""
        place = np.minimum(np.searchsorted(self._times, samples.time_ms), max(self._times.size - 1, 0))
        at_same_time = self._times[place] == samples.time_ms if self._times.size else np.empty(0, dtype=bool)
        return place, at_same_time

    def count_vms(
        self, resource: Resource, names: Sequence[str], vms: Mapping[str, Samples] | None
    ) -> tuple[Sequence[FloatArray] | FloatArray, list[FloatArray] | None]:
        """The samples of each VM that count, and what was wanted at them; None when that is not known of any.

        Parameters
        ----------
        resource : Resource
        names : sequence of v str
        vms : mapping of name to Samples, or None
            None when samples of single VMs are not read.

        Returns
        -------
        tuple of (v, m) float64 or v arrays, and v arrays or None
        """
        if vms is None:
            return [_NO_SAMPLES] * len(names), None
        if isinstance(vms, SampleTable) and names == vms.names:
            values = self._count_together(resource, vms)
            if values is not None:
                return values, None
        counted = [self.count_vm(resource, vms[name]) if name in vms else Counted(_NO_SAMPLES) for name in names]
        rows = [one.values for one in counted]
        if all(one.demand is None for one in counted):
            return rows, None
        return rows, [one.values if one.demand is None else one.demand for one in counted]

    def _count_together(self, resource: Resource, vms: SampleTable) -> FloatArray | None:
        """(v, m) float64: the samples of VMs that have all or no samples, and do not wait; None for other ones.

        Their samples count as often as those of the node.
        """
        covers = self._covers[resource]
        others = vms.fields.get(_number_field(resource)), vms.fields.get("cpu_wait") if resource is CPU else None
        if covers.is_thinned or not all(map(_is_unknown, others)) or not self._has_times_of_node(vms):
            return None
        if not self._times.size or int(self._times[-1]) < self._vms_known_ms:
            return None
        values = vms.fields[f"{resource.name}_usage"]
        valid = (values >= 0) & (values <= LARGEST)
        if not valid.all():
            whole = np.logical_and.reduce(valid, axis=1)
            if (valid & ~whole[:, None]).any():
                return None
            if not whole.any():
                return np.empty((len(vms), 0))
            values = np.where(whole[:, None], values, np.nan)
        if self._lacks(int(covers.numbers.sum()), self._slice_ms) or self._leaves_gaps(covers, self._slice_ms):
            return np.empty((len(vms), 0))
        return np.repeat(values, covers.repeats, axis=1) if covers.any_repeated else values

    def count_vm(self, resource: Resource, samples: Samples) -> Counted:
        """The samples of a VM that count; none when they cover too little, so that its allocation counts instead.

        A VM that has left is covered until then.
        """
        last_ms = int(samples.time_ms[-1]) if samples.time_ms.size else self._start_ms
        required_ms = last_ms - self._start_ms if last_ms < self._vms_known_ms else self._slice_ms
        values = samples.fields[f"{resource.name}_usage"]
        waits = samples.fields.get("cpu_wait") if resource is CPU else None
        covers = self._covers[resource]
        numbers = _numbers(samples, _number_field(resource), _gaps(samples.time_ms, self._start_ms))
        if not self._has_times_of_node(samples):
            place, at_same_time = self._place(samples)
            values, covers = values[at_same_time], covers.of(place[at_same_time])
            waits = None if waits is None else waits[at_same_time]
            numbers = numbers[at_same_time]
        covers = covers.limited_to(numbers)
        return self._count(values, (values >= 0) & (values <= LARGEST), covers, required_ms, waits)

    def _count(
        self,
        values: FloatArray,
        valid: NDArray[np.bool_],
        covers: _Covers,
        required_ms: float,
        waits: FloatArray | None = None,
    ) -> Counted:
        whole = bool(valid.all())
        if lack := self._lacks(int((covers.numbers if whole else covers.numbers[valid]).sum()), required_ms):
            return Counted(_NO_SAMPLES, lack)
        waits = None if waits is None else valid_levels(waits)
        demand = None if waits is None or np.isnan(waits).all() else values + np.nan_to_num(waits)
        if not whole:
            values, covers = values[valid], covers.of(valid)
            demand = None if demand is None else demand[valid]
        if gaps := self._leaves_gaps(covers, required_ms):
            return Counted(_NO_SAMPLES, gaps)
        if covers.any_repeated:
            values = np.repeat(values, covers.repeats)
            demand = None if demand is None else np.repeat(demand, covers.repeats)
        return Counted(values, demand=demand)

    def _lacks(self, number: int, required_ms: float) -> str:
        """Why so many valid samples are too few; empty when they are not."""
        needed = max(self._min_samples, math.ceil(_NUMBER * required_ms / self._expected_ms))
        return f"{number} valid samples, at least {needed} are needed" if number < needed else ""

    def _leaves_gaps(self, covers: _Covers, required_ms: float) -> str:
        """Why what valid samples cover is too little; empty when it is not."""
        if covers.total_ms >= _COVERED * required_ms - self._expected_ms:
            return ""
        return f"valid samples cover {100 * covers.total_ms / self._slice_ms:.0f} % of it"


def _gaps(time_ms: NDArray[np.int64], start_ms: int) -> FloatArray:
    """(n,) float64: the time since the sample before, or since the start of the slice, ms."""
    gaps = np.empty(time_ms.size)
    if time_ms.size:
        gaps[0] = time_ms[0] - start_ms
        np.subtract(time_ms[1:], time_ms[:-1], out=gaps[1:])
    return gaps


def _median(values: FloatArray) -> float:
    """``numpy.median`` of few values, without NaN, in a tenth of the time."""
    ordered, middle = np.sort(values), values.size // 2
    if values.size % 2:
        return float(ordered[middle])
    return float(ordered[middle - 1] + ordered[middle]) / 2.0


def _number_field(resource: Resource) -> str:
    return f"{resource.name}_samples"


def _intervals(node: Samples, gaps: FloatArray, scrapes: NDArray[np.intp]) -> FloatArray:
    """(n,) float64: the usual time between the scrapes that each sample stands for, ms."""
    means: FloatArray = gaps / scrapes
    shortest = node.fields.get("elapsed_min")
    if shortest is None:
        return means
    return np.where((shortest > 0) & (means > _REGULAR * shortest), shortest, means)


def _numbers(samples: Samples, name: str, gaps: FloatArray) -> NDArray[np.intp]:
    """(n,) int: how many scrapes each sample stands for, at least 1.

    Parameters
    ----------
    samples : Samples
    name : str
        Of the field that has the number.
    gaps : (n,) float64
        Since the sample before, ms.
    """
    values = samples.fields.get(name)
    if values is None or np.isnan(values).all():
        return np.ones(samples.time_ms.size, dtype=np.intp)
    most = np.maximum(gaps / _SHORTEST_MS, 1.0)
    numbers: NDArray[np.intp] = np.rint(np.clip(np.nan_to_num(values, nan=1.0), 1.0, most)).astype(np.intp)
    return numbers
