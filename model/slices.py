"""One slice of a node and its VMs, and the window of slices that a strategy uses.

Missing data is resolved before a slice is built: a missing sample is NaN in the row of a VM and absent from the array
of the node; an unknown configuration is NaN. The models never see ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .lazy import computed_once
from .numerics import BoolArray, FloatArray, aggregate, known_sum, mean_of, percentile_of, ranks, std_of

#: A node is full when the 99th percentile of its samples reaches this share of its capacity.
FULL_SHARE = 0.999
#: Of each VM, a slice keeps as many of its largest samples as a percentile of its window needs while no slice of the
#: window has more samples than this multiple of its own.
_MORE_SAMPLES = 1.25
#: Larger than any machine, and small enough that sums of squares do not overflow.
LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class Resource:
    """The properties in which CPU and memory differ, so that one function computes both."""

    name: str
    unit: str
    resolution: float
    """The step of thresholds: 0.1 core, 1 MB."""
    vm_peak_percentile: float
    """The percentile that is used as the peak of a VM: for memory, which cannot be queued for, the maximum."""
    vm_peak_capped: bool
    """Whether the peak of a VM is capped at its configuration (CPU readings overshoot, memory does not)."""
    title: str
    """The name in headings and sentences."""
    display_unit: str
    display_scale: float
    """Units of the models in one display unit: memory is computed in MB and shown in GB of 2^30 bytes."""

    def tier0(self, threshold: float) -> float:
        """Round a threshold as it is published: CPU to one decimal, memory truncated to an integer."""
        return round(threshold, 1) if self.resolution < 1 else float(math.trunc(threshold))


CPU = Resource("cpu", "cores", 0.1, 99.0, True, title="CPU", display_unit="cores", display_scale=1.0)
MEMORY = Resource("mem", "MB", 1.0, 100.0, False, title="memory", display_unit="GB", display_scale=1024.0)

RESOURCES: tuple[Resource, ...] = (CPU, MEMORY)


class SampleSums(NamedTuple):
    """The samples of each VM in a slice.

    Attributes
    ----------
    number : (v,) int
        Samples.
    mean, square : (v,) float64
        Mean, and mean square; 0 without samples.
    """

    number: NDArray[np.intp]
    mean: FloatArray
    square: FloatArray

    @property
    def means(self) -> FloatArray:
        """(v,) float64: NaN without samples."""
        return np.where(self.number > 0, self.mean, np.nan)


def sums_of(samples: FloatArray) -> SampleSums:
    """Sum up samples, (v, m) float64; NaN where there is none."""
    size, total = samples.shape[1], np.add.reduce(samples, axis=1)
    if size and not np.isnan(total).any():
        return SampleSums(np.full(total.size, size), total / size, np.add.reduce(samples * samples, axis=1) / size)
    present = ~np.isnan(samples)
    number = np.add.reduce(present, axis=1, dtype=np.intp)
    filled = np.where(present, samples, 0.0)
    divisor = np.maximum(number, 1)
    return SampleSums(number, np.add.reduce(filled, axis=1) / divisor, np.add.reduce(filled * filled, axis=1) / divisor)


@dataclass(frozen=True)
class Usage:
    """One resource of a node and its VMs during one slice.

    Figures that several strategies use are computed once, on first use.

    Attributes
    ----------
    config : float
        The capacity of the node, cores or MB; NaN if unknown.
    node : (n,) float64
        Usage samples of the node, without NaN; empty if there are none.
    vm_config : (v,) float64
        The allocation of each VM; NaN if unknown.
    vm_usage : (v, m) float64
        Usage samples of each VM; short rows are padded with NaN.
    missing : str
        Why there are no samples of the node although it was scraped; empty if there are some, or if it was not.
    vm_alive : (v,) bool, optional
        Whether each VM is alive at the end of the slice; None: all of them are.
    node_demand : (n,) float64, optional
        What the VMs of the node wanted at the samples of ``node``: what they used, and what they waited for. None when
        it is not known how long they waited.
    vm_demand : (v, m) float64, optional
        The same for each VM, at the samples of ``vm_usage``.
    vm_number : (v,) int, optional
        The number of samples that each VM had, where ``vm_usage`` has only the largest of them.
    """

    config: float
    node: FloatArray
    vm_config: FloatArray
    vm_usage: FloatArray
    missing: str = ""
    vm_alive: BoolArray | None = None
    node_demand: FloatArray | None = None
    vm_demand: FloatArray | None = None
    vm_number: NDArray[np.intp] | None = None

    @computed_once
    def booked(self) -> float:
        """The sum of the allocations of the VMs; unknown ones count as 0."""
        return known_sum(self.vm_config)

    @computed_once
    def booked_now(self) -> float:
        """The sum of the allocations of the VMs that are alive at the end of the slice; unknown ones count as 0."""
        return self.booked if self.vm_alive is None else known_sum(self.vm_config[self.vm_alive])

    @property
    def measured(self) -> bool:
        """Whether free resources can be computed: there are samples and a capacity."""
        return self.node.size > 0 and not math.isnan(self.config)

    @computed_once
    def peak(self) -> float:
        """99th percentile of the samples of the node; NaN without samples."""
        return percentile_of(self.node, 99.0) if self.node.size else math.nan

    @computed_once
    def mean(self) -> float:
        """Mean of the samples of the node; NaN without samples."""
        return mean_of(self.node) if self.node.size else math.nan

    @computed_once
    def std(self) -> float:
        """Population standard deviation of the samples of the node; NaN without samples."""
        return std_of(self.node, self.mean) if self.node.size else math.nan

    @computed_once
    def vm_sums(self) -> SampleSums:
        """Number, mean and mean square of the samples of each VM."""
        return sums_of(self.vm_usage)

    @property
    def demand(self) -> Usage:
        """The same with demand in place of usage, as far as it is known: usage is cut at the size of the node."""
        if self.node_demand is None and self.vm_demand is None:
            return self
        node = self.node if self.node_demand is None else self.node_demand
        vm_usage = self.vm_usage if self.vm_demand is None else self.vm_demand
        return replace(self, node=node, vm_usage=vm_usage, node_demand=None, vm_demand=None)

    def without_vms(self) -> Usage:
        """What later slices need of this one, when no strategy reads the samples of VMs in it."""
        vm_usage = np.empty((self.vm_config.size, 0))
        return replace(self, vm_usage=vm_usage, node_demand=None, vm_demand=None, vm_number=None)

    def with_largest(self, percent: float, slices: int) -> Usage:
        """What later slices need of this one, when a strategy reads a percentile of the samples of each VM.

        Parameters
        ----------
        percent : float
            0 to 100.
        slices : int
            In a window.
        """
        key = f"{percent} {slices}"
        if key in self._largest:
            return self._largest[key]
        largest = self._with_largest(percent, slices)
        # A reference to itself would keep it in memory until the next garbage collection.
        if largest is not self:
            self._largest[key] = largest
        return largest

    @computed_once
    def _largest(self) -> dict[str, Usage]:
        return {}

    def _with_largest(self, percent: float, slices: int) -> Usage:
        size = self.vm_usage.shape[1]
        most = math.ceil(_MORE_SAMPLES * size * slices)
        number = most - ranks(most, percent)[0]
        if self.vm_number is not None or number >= size:
            has_demand = self.node_demand is not None or self.vm_demand is not None
            return replace(self, node_demand=None, vm_demand=None) if has_demand else self
        # NaN last.
        largest = -np.partition(-self.vm_usage, number - 1, axis=1)[:, :number]
        return replace(self, vm_usage=largest, vm_number=self.vm_sums.number, node_demand=None, vm_demand=None)

    def without_waits(self, rows: BoolArray) -> Usage:
        """The same where some VMs want what they use: what they wait for, the node cannot give them.

        Parameters
        ----------
        rows : (v,) bool
            Those VMs.
        """
        if self.vm_demand is None or not rows.any():
            return self
        node_demand = self.node_demand
        if node_demand is not None:
            for waits in (self.vm_demand - self.vm_usage)[rows]:
                known = waits[~np.isnan(waits)]
                # Samples that are not those of the node: the least that it waited in any of them.
                node_demand = node_demand - (known if known.size == node_demand.size else min(known, default=0.0))
            node_demand = np.maximum(node_demand, self.node)
        vm_demand = np.where(rows[:, None], self.vm_usage, self.vm_demand)
        return replace(self, node_demand=node_demand, vm_demand=vm_demand)


def is_full(peak: float, config: float) -> bool:
    """Whether a node is full: its usage is cut at the capacity, so the demand may be larger.

    Parameters
    ----------
    peak, config : float
        99th percentile of the samples, and capacity; cores or MB.
    """
    return peak >= FULL_SHARE * config


def usage_of(
    config: float,
    node: FloatArray,
    vm_config: Sequence[float] | FloatArray,
    vm_usage: Sequence[FloatArray] | FloatArray,
    vm_alive: BoolArray | None = None,
    *,
    node_demand: FloatArray | None = None,
    vm_demand: Sequence[FloatArray] | None = None,
    missing: str = "",
) -> Usage:
    """Build one resource of a slice from samples with gaps.

    Parameters
    ----------
    config : float
    node : (n,) float64
        NaN for a missing sample.
    vm_config : sequence of v floats
    vm_usage : sequence of v arrays
        Of any lengths; or (v, m) float64.
    vm_alive : (v,) bool, optional
        None: all VMs are alive at the end of the slice.
    node_demand : (n,) float64, optional
    vm_demand : sequence of v arrays, optional
        As long as those of ``vm_usage``.
    missing : str
    """
    known = ~np.isnan(node)
    return Usage(
        config,
        node[known],
        np.array(vm_config, dtype=np.float64),
        vm_usage if isinstance(vm_usage, np.ndarray) else padded(vm_usage),
        missing=missing,
        vm_alive=vm_alive,
        node_demand=None if node_demand is None else node_demand[known],
        vm_demand=None if vm_demand is None else padded(vm_demand),
    )


def padded(rows: Sequence[FloatArray]) -> FloatArray:
    """Rows of any lengths as a matrix, (v, m) float64; NaN behind the end of a row."""
    sizes = [row.size for row in rows]
    if sizes and min(sizes) == max(sizes):
        return np.array(rows, dtype=np.float64)
    matrix = np.full((len(rows), max(sizes, default=0)), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : row.size] = row
    return matrix


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the VMs and the tasks of a node waited in a slice.

    Attributes
    ----------
    vm_share : (v, w) float64
        Samples of each VM: its wait for CPU / (wait + run), 0 to 1; NaN where it is unknown.
    vm_wait : (v, w) float64
        The same samples in cores: seconds of waiting per second, over its vCPUs.
    of_node : mapping of field to (n,) float64
        ``psi_cpu`` and ``psi_memory``: share of time in which tasks waited for CPU, and in which all were stalled for
        memory. ``swap_in``: pages per second. ``oom_kills``: killed processes since the sample before. NaN where it is
        unknown, no field where it is not measured.
    """

    vm_share: FloatArray
    vm_wait: FloatArray
    of_node: Mapping[str, FloatArray] = field(default_factory=dict)

    def node(self, name: str) -> FloatArray:
        """The known samples of a field of the node; empty if there are none."""
        values = self.of_node.get(name, np.empty(0))
        return values[~np.isnan(values)]


@dataclass(frozen=True)
class Slice:
    """One finished slice of a node.

    Attributes
    ----------
    end_s : float
        Its end, Unix seconds.
    position : int
        The index of the slice within its scope.
    vms : tuple of str
        The VMs present, sorted, in the order of the rows of ``cpu`` and ``mem``.
    cpu, mem : Usage
        Both have the same ``vm_alive``.
    waits : Waits, optional
        None when it was not measured how long VMs waited.
    """

    end_s: float
    position: int
    vms: tuple[str, ...]
    cpu: Usage
    mem: Usage
    waits: Waits | None = None

    def usage(self, resource: Resource) -> Usage:
        """The usage of one resource."""
        return self.cpu if resource is CPU else self.mem

    @computed_once
    def alive(self) -> tuple[str, ...]:
        """The VMs that are alive at the end of the slice, sorted."""
        if self.cpu.vm_alive is None or self.cpu.vm_alive.all():
            return self.vms
        return tuple(name for name, alive in zip(self.vms, self.cpu.vm_alive.tolist(), strict=True) if alive)


def previous_rows(before: Sequence[str], now: Sequence[str]) -> NDArray[np.intp]:
    """The row that each VM had before, (v,) int; -1 for a new one.

    Parameters
    ----------
    before, now : sequences of str
        Names in the order of the rows.
    """
    rows = {name: i for i, name in enumerate(before)}
    return np.fromiter((rows.get(name, -1) for name in now), np.intp, len(now))


class PresentUsage:
    """One resource of a slice, with the names of the VMs in the order of its rows.

    A slice is part of several windows; figures that are used repeatedly are computed once.
    """

    __slots__ = ("_peaks", "usage", "vms")

    def __init__(self, vms: tuple[str, ...], usage: Usage, peaks: dict[tuple[float, int], float] | None = None) -> None:
        self.vms = vms
        self.usage = usage
        self._peaks = {} if peaks is None else peaks

    def peak(self, percentile: float, aggregation: int) -> float:
        """A percentile of the samples of the node, averaged in groups; NaN if there are none."""
        key = (percentile, aggregation)
        if key not in self._peaks:
            samples = aggregate(self.usage.node, aggregation)
            self._peaks[key] = percentile_of(samples, percentile) if samples.size else math.nan
        return self._peaks[key]

    def reduced(self, usage: Usage) -> PresentUsage:
        """The same with a part of the usage."""
        return PresentUsage(self.vms, usage, self._peaks)

    @property
    def number(self) -> NDArray[np.intp]:
        """(v,) int: how many samples each VM had."""
        return self.usage.vm_sums.number if self.usage.vm_number is None else self.usage.vm_number


class Window:
    """The current slice of one resource and the slices before it at the same position, oldest first.

    Figures that several strategies use are computed once, on first use.
    """

    def __init__(self, slices: Sequence[PresentUsage], full_length: int) -> None:
        self.slices = slices
        self.full_length = full_length
        self._vm_percentiles: dict[float, FloatArray] = {}

    @property
    def current(self) -> Usage:
        """The slice that ended."""
        return self.slices[-1].usage

    @computed_once
    def pooled(self) -> FloatArray:
        """(n,) float64: the raw node samples of all slices."""
        return np.concatenate([present.usage.node for present in self.slices])

    @computed_once
    def mean(self) -> float:
        """Mean of the pooled samples."""
        return mean_of(self.pooled)

    @computed_once
    def std(self) -> float:
        """Population standard deviation of the pooled samples."""
        return std_of(self.pooled, self.mean)

    def vm_percentile(self, percentile: float) -> FloatArray:
        """A percentile of each present VM's samples in the window.

        Returns
        -------
        (v,) float64
            NaN for a VM whose window is incomplete: it is absent from one of the slices, or has no sample of this
            resource in one of them.
        """
        if percentile not in self._vm_percentiles:
            self._vm_percentiles[percentile] = self._vm_percentile(percentile)
        return self._vm_percentiles[percentile]

    def _vm_percentile(self, percentile: float) -> FloatArray:
        names = self.slices[-1].vms
        result = np.full(len(names), np.nan)
        if len(self.slices) < self.full_length or not names:
            return result
        # None: the same VMs in the same order, as in most windows.
        rows = [None if present.vms == names else previous_rows(present.vms, names) for present in self.slices]
        # Row -1 takes the zero behind the last VM.
        numbers = np.array(
            [
                of.number if row is None else np.append(of.number, 0)[row]
                for of, row in zip(self.slices, rows, strict=True)
            ]
        )
        is_full = np.logical_and.reduce(numbers > 0, axis=0)
        if not np.logical_or.reduce(is_full):
            return result
        reduced = [present.usage.with_largest(percentile, self.full_length).vm_usage for present in self.slices]
        chosen = [values[is_full if row is None else row[is_full]] for values, row in zip(reduced, rows, strict=True)]
        sizes = np.array([values.shape[1] for values in reduced])
        pooled = np.concatenate(chosen, axis=1)
        result[is_full] = _percentile_of_largest(pooled, numbers[:, is_full], sizes, percentile)
        return result


def _percentile_of_largest(
    pooled: FloatArray, numbers: NDArray[np.intp], sizes: NDArray[np.intp], percent: float
) -> FloatArray:
    """A percentile of the samples of VMs of which the largest are held; (f,) float64, NaN where these do not suffice.

    Parameters
    ----------
    pooled : (f, k) float64
        The largest samples of all slices.
    numbers : (s, f) int
        How many samples each VM had in each slice.
    sizes : (s,) int
        How many of the largest are held of each slice.
    percent : float
        0 to 100.
    """
    if percent == 100.0:
        return np.fmax.reduce(pooled, axis=1)
    count = np.add.reduce(numbers, axis=0)
    last = count - 1
    rank = last * (percent / 100.0)
    below = np.floor(rank).astype(np.intp)
    above = np.minimum(below + 1, last)
    held = sizes[:, None]
    suffices = np.logical_and.reduce((numbers <= held) | (count - below <= held), axis=0)
    descending = -pooled
    descending.sort(axis=1)
    rows, end = np.arange(count.size), pooled.shape[1] - 1
    low, high = (-descending[rows, np.minimum(last - at, end)] for at in (below, above))
    weight, step = rank - below, high - low
    # As in numpy: exact at both ends and monotonic in between.
    return np.where(suffices, np.where(weight < 0.5, low + step * weight, high - step * (1.0 - weight)), np.nan)
