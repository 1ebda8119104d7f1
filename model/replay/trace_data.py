"""A trace after decoding: what the node and its VMs used, slice by slice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ..numerics import BoolArray, FloatArray
from ..slices import CPU, MEMORY, Resource, Slice, Usage, usage_of


class TraceError(ValueError):
    """The trace is not usable; the message is one line that names the place."""


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The ``config`` object of a trace (``historical_occurences`` is h)."""

    node_name: str
    node_scope: float
    slice_scope: float
    historical_occurences: float
    vm_cpu_unit: Literal["cores", "share"] = "cores"

    @property
    def historical(self) -> int:
        """h: how many predecessors at the same position the window holds."""
        return int(self.historical_occurences)

    @property
    def positions(self) -> int:
        """S: slices of a scope."""
        return round(self.node_scope / self.slice_scope)


@dataclass(frozen=True, slots=True)
class Period:
    """What a trace holds of a node or a VM in one slice.

    Attributes
    ----------
    time, cpu_usage, mem_usage : (n,) float64
        Of any lengths; empty or NaN where data is missing.
    cpu_config, mem_config : float
        The last known configuration, cores or MB; NaN when there is none.
    has_data : bool
        Whether the slice itself holds a configuration or a sample.
    """

    time: FloatArray
    cpu_config: float
    mem_config: float
    cpu_usage: FloatArray
    mem_usage: FloatArray
    has_data: bool

    def repeats(self, earlier: Period) -> bool:
        """Whether all samples equal those of the earlier period, their times included."""
        return (
            self.time.size > 0
            and _same(self.time, earlier.time)
            and _same(self.cpu_usage, earlier.cpu_usage)
            and _same(self.mem_usage, earlier.mem_usage)
            and self.cpu_config == earlier.cpu_config
            and self.mem_config == earlier.mem_config
        )

    def config(self, resource: Resource) -> float:
        """The configuration of one resource."""
        return self.cpu_config if resource is CPU else self.mem_config

    def usage(self, resource: Resource) -> FloatArray:
        """The samples of one resource."""
        return self.cpu_usage if resource is CPU else self.mem_usage


def _same(a: FloatArray, b: FloatArray) -> bool:
    # Compared as bytes: NaN equals NaN, at a tenth of the cost of comparing elements.
    return a is b or (a.size == b.size and a.tobytes() == b.tobytes())


class Trace:
    """A checked and decoded trace.

    Attributes
    ----------
    config : TraceConfig
    config_fields : dict
        The ``config`` object of the file, unknown keys included.
    epoch : list of float
        The end of each slice, Unix seconds.
    vms : tuple of str
        The names of all VMs, sorted.
    """

    def __init__(
        self,
        *,
        config: TraceConfig,
        config_fields: dict[str, Any],
        epoch: list[float],
        node: Sequence[Period],
        listed: Sequence[frozenset[str] | None],
        alive: Sequence[frozenset[str] | None],
        vms: Mapping[str, Sequence[Period]],
    ) -> None:
        self.config = config
        self.config_fields = config_fields
        self.epoch = epoch
        self.vms = tuple(sorted(vms))
        self._node = node
        self._listed = listed
        self._alive = alive
        self._vm_periods = [vms[name] for name in self.vms]

    def __len__(self) -> int:
        return len(self.epoch)

    def slices(self) -> Iterator[Slice]:
        """The slices, one by one, in time order."""
        positions = self.config.positions
        for k, end_s in enumerate(self.epoch):
            present = [
                (name, periods[k])
                for name, periods in zip(self.vms, self._vm_periods, strict=True)
                if self._is_present(name, periods, k, positions)
            ]
            names, vms = [name for name, _ in present], [period for _, period in present]
            alive = _alive_at_end(self._node[k].time, names, vms, self._alive[k])
            yield Slice(
                end_s=end_s,
                position=k % positions,
                vms=tuple(names),
                cpu=_usage(CPU, self._node[k], vms, alive),
                mem=_usage(MEMORY, self._node[k], vms, alive),
            )

    @property
    def node_periods(self) -> Sequence[Period]:
        """The slices of the node."""
        return self._node

    def vm_periods(self) -> Iterator[tuple[str, list[Period | None]]]:
        """Name and slices of each VM; None for a slice in which it is not present."""
        positions = self.config.positions
        for name, periods in zip(self.vms, self._vm_periods, strict=True):
            present = (self._is_present(name, periods, k, positions) for k in range(len(periods)))
            yield name, [period if here else None for period, here in zip(periods, present, strict=True)]

    def _is_present(self, name: str, periods: Sequence[Period], k: int, positions: int) -> bool:
        listed = self._listed[k]
        if not periods[k].has_data or (listed is not None and name not in listed):
            return False
        # A departure in the original's dumps: the last slice at that position is repeated.
        return k < positions or not periods[k].repeats(periods[k - positions])


def _alive_at_end(
    node_time: FloatArray, names: Sequence[str], vms: Sequence[Period], listed: frozenset[str] | None
) -> BoolArray:
    """Which VMs are alive at the end of a slice.

    Those that the trace lists as ``alive``. Without that list all VMs but those whose last time is earlier than the
    node's by more than half of the usual time between two samples of the node.
    """
    if listed is not None:
        return np.array([name in listed for name in names], dtype=bool)
    times = node_time[~np.isnan(node_time)]
    earliest = float(times[-1] - np.median(np.diff(times)) / 2) if times.size > 1 else -math.inf
    # Most VMs share the list of the node.
    return np.array([vm.time is node_time or not _last(vm.time) < earliest for vm in vms], dtype=bool)


def _last(values: FloatArray) -> float:
    """The last value that is not missing; NaN if there is none."""
    if values.size and not math.isnan(values[-1]):
        return float(values[-1])
    present = values[~np.isnan(values)]
    return float(present[-1]) if present.size else math.nan


def _usage(resource: Resource, node: Period, vms: Sequence[Period], alive: BoolArray) -> Usage:
    return usage_of(
        node.config(resource),
        node.usage(resource),
        [vm.config(resource) for vm in vms],
        [vm.usage(resource) for vm in vms],
        alive,
    )
