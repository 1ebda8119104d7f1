"""A trace after decoding: what the node and its VMs used, slice by slice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from ..numerics import BoolArray, FloatArray
from ..slices import CPU, MEMORY, Resource, Slice, Usage, Waits, padded, usage_of

#: Lists that show contention of the node.
_NODE_LISTS = ("psi_cpu", "psi_memory", "swap_in", "oom_kills")

_EMPTY: FloatArray = np.empty(0)


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


class Period(msgspec.Struct, frozen=True, eq=False):
    """What a trace holds of a node or a VM in one slice.

    Attributes
    ----------
    time, cpu_usage, mem_usage : (n,) float64
        Of any lengths; empty or NaN where data is missing.
    cpu_config, mem_config : float
        The last known configuration, cores or MB; NaN when there is none.
    has_data : bool
        Whether the slice itself holds a configuration or a sample.
    waits : mapping of name to (n,) float64
        The optional lists that the slice holds: ``cpu_demand`` and ``cpu_wait``, cores, of a VM also
        ``cpu_wait_share``; of the node also ``psi_cpu``, ``psi_memory``, ``swap_in`` and ``oom_kills``.
    """

    time: FloatArray
    cpu_config: float
    mem_config: float
    cpu_usage: FloatArray
    mem_usage: FloatArray
    has_data: bool
    waits: Mapping[str, FloatArray] = msgspec.field(default_factory=dict)

    @property
    def demand(self) -> FloatArray | None:
        """What was wanted at the samples of ``cpu_usage``, cores; None when the slice does not hold it."""
        usage = self.cpu_usage
        if (demand := self.waits.get("cpu_demand", _EMPTY)).size == usage.size > 0:
            # At least what was used; that alone where the demand is unknown.
            return np.where(np.isnan(usage), np.nan, np.fmax(usage, demand))
        waits = _not_negative(self.waits.get("cpu_wait", _EMPTY))
        if waits.size == usage.size > 0 and not np.isnan(waits).all():
            return usage + np.nan_to_num(waits)
        return None

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
                waits=_waits(self._node[k], vms),
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
    earliest = float(times[-1]) - _median(np.diff(times)) / 2 if times.size > 1 else -math.inf
    # Most VMs share the list of the node.
    return np.array([vm.time is node_time or not _last(vm.time) < earliest for vm in vms], dtype=bool)


def _median(values: FloatArray) -> float:
    """The median of at least one value, none of which is missing; np.median imports numpy.ma, 25 ms."""
    middle = (values.size - 1) // 2
    parts = np.partition(values, (middle, values.size // 2))
    return float(parts[middle] if values.size % 2 else (parts[middle] + parts[middle + 1]) / 2)


def _last(values: FloatArray) -> float:
    """The last value that is not missing; NaN if there is none."""
    if values.size and not math.isnan(values[-1]):
        return float(values[-1])
    present = values[~np.isnan(values)]
    return float(present[-1]) if present.size else math.nan


def _usage(resource: Resource, node: Period, vms: Sequence[Period], alive: BoolArray) -> Usage:
    demands = [vm.demand for vm in vms] if resource is CPU and any(vm.waits for vm in vms) else []
    usages = [vm.usage(resource) for vm in vms]
    wanted = [usage if demand is None else demand for usage, demand in zip(usages, demands, strict=False)]
    return usage_of(
        node.config(resource),
        node.usage(resource),
        [vm.config(resource) for vm in vms],
        usages,
        alive,
        node_demand=node.demand if resource is CPU and node.waits else None,
        vm_demand=wanted if any(demand is not None for demand in demands) else None,
    )


def _waits(node: Period, vms: Sequence[Period]) -> Waits | None:
    """How long was waited; None when the slice does not hold it."""
    of_node = {name: _not_negative(node.waits[name]) for name in _NODE_LISTS if name in node.waits}
    shares = [vm.waits.get("cpu_wait_share", _EMPTY) for vm in vms]
    if not of_node and not any(share.size for share in shares):
        return None
    # Without an amount, the share alone counts.
    amounts = [vm.waits.get("cpu_wait", _EMPTY) for vm in vms]
    of_vms = [
        (share, amount if amount.size == share.size else np.full(share.size, np.nan))
        for share, amount in zip(shares, amounts, strict=True)
    ]
    return Waits(
        padded([np.where((share >= 0) & (share <= 1), share, np.nan) for share, _ in of_vms]),
        padded([_not_negative(amount) for _, amount in of_vms]),
        of_node,
    )


def _not_negative(values: FloatArray) -> FloatArray:
    return np.where(values >= 0, values, np.nan)
