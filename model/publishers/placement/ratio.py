"""Allocation ratios from what is booked now and what is free. Pure functions."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ...status import NodeStatus, ResourceStatus

VCPU, PCPU, MEMORY_MB = "VCPU", "PCPU", "MEMORY_MB"

#: The resource classes whose ratios are kept.
RESOURCE_CLASSES = (VCPU, MEMORY_MB)

#: The memory that a kernel has is a little less than the one that the machine has.
_SIZE_TOLERANCE = 0.02

#: Four decimals. MySQL stores a ratio as FLOAT and returns six digits, so that ratios below 100 come back unchanged.
_STEPS = 10_000

#: Relative error of a ratio that was stored in single precision.
_SINGLE_PRECISION = 1e-7

#: A sum of amounts may lack a last bit.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class ResourceCapacity:
    """What is known of one resource of a node, cores or MB of 2**20 bytes.

    Attributes
    ----------
    free : float
        What may be added.
    booked_now : float
        What the present VMs may keep: their allocations as they were measured; of a closed node no more than it has.
    config : float
        The capacity of the node.
    own : float
        The least that the node uses beside its VMs.
    figures_s : float
        End of the slice of these figures, Unix seconds.
    """

    free: float
    booked_now: float
    config: float
    own: float = 0.0
    figures_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node's provider shall offer, to future and to present VMs.

    Attributes
    ----------
    node : str
    cpu, mem : ResourceCapacity or None
        None leaves the ratio unchanged.
    """

    node: str
    cpu: ResourceCapacity | None
    mem: ResourceCapacity | None

    def of(self, resource_class: str) -> ResourceCapacity | None:
        """The capacity of a resource class."""
        return self.cpu if resource_class == VCPU else self.mem

    def is_lower_than(self, other: NodeCapacity) -> bool:
        """Whether less is free of a resource."""
        pairs = ((self.cpu, other.cpu), (self.mem, other.mem))
        return any(one is not None and before is not None and one.free < before.free for one, before in pairs)


@dataclass(frozen=True, slots=True)
class RatioLimits:
    """The least and the largest ratio that may be written."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class InventoryUpdate:
    """New inventories of a provider.

    Attributes
    ----------
    inventories : mapping of resource class to record
    changed : bool
        Whether a ratio differs from the one that was read.
    ratios : mapping of resource class to float
        The ratios that are ours, changed or not.
    notes : mapping of resource class to str
        Why a ratio is limited or left unchanged; empty where it is exact.
    """

    inventories: Mapping[str, Mapping[str, Any]]
    changed: bool
    ratios: Mapping[str, float]
    notes: Mapping[str, str]


class PartUnknown(ValueError):
    """It is not known which part of the node an inventory is."""


def capacities_of(statuses: Iterable[NodeStatus]) -> list[NodeCapacity]:
    """The capacity of each node.

    A stale node has nothing free. A resource that was never measured has no capacity (None).
    """
    return [NodeCapacity(status.node, _capacity(status.cpu), _capacity(status.mem)) for status in statuses]


def _capacity(status: ResourceStatus) -> ResourceCapacity | None:
    last = status.last
    if last is None:
        return None
    return ResourceCapacity(
        free=status.free,
        booked_now=status.capacity - status.free,
        config=last.config,
        own=last.own,
        figures_s=last.slice_end_s,
    )


def free_of_part(capacity: ResourceCapacity, record: Mapping[str, Any], dedicated: Mapping[str, Any] | None) -> float:
    """What is free of the part of a node that an inventory describes: not what is outside of it, or reserved.

    Usage is measured for the node as a whole. All of it may fall on the part that VMs share, so what is free there is
    what is free on the node less the dedicated CPUs. CPUs and memory that belong to neither, and what is reserved, are
    the node's own; what the node uses of them is in its usage.

    Parameters
    ----------
    capacity : ResourceCapacity
        Of the node.
    record : mapping
        The inventory, with ``total`` and ``reserved``.
    dedicated : mapping or None
        The inventory of dedicated CPUs of the same provider, see :func:`dedicated_of`.

    Returns
    -------
    float
        Below 0 where usage may exceed the part.

    Raises
    ------
    PartUnknown
        When the inventories have more than the node.
    """
    shared, dedicated_total = record["total"], dedicated["total"] if dedicated else 0
    if shared + dedicated_total > capacity.config * (1.0 + _SIZE_TOLERANCE):
        has = f"{shared:g} and {dedicated_total:g} dedicated" if dedicated_total else f"{shared:g}"
        raise PartUnknown(f"the inventory has {has}, the node {capacity.config:.6g}; the ratio is not kept")
    outside = max(0.0, capacity.config - shared - dedicated_total)
    return capacity.free - dedicated_total - max(0.0, outside + record["reserved"] - capacity.own)


def allocation_ratio(amount: float, usable: int) -> float:
    """The ratio with four decimals whose capacity is the whole part of an amount, or else the next lower one.

    Placement compares the usage, an integer, with ``(total - reserved) * ratio``: 3 cores with a ratio of 2.6666
    accept no eighth vCPU, with 2.6667 they accept it, and no ninth.

    Parameters
    ----------
    amount : float
        The capacity, in units of the inventory.
    usable : int
        The inventory's total minus what is reserved, at least 1.

    Examples
    --------
    >>> allocation_ratio(12.9, 8), allocation_ratio(8.0, 3), allocation_ratio(300000.0, 257_000)
    (1.5, 2.6667, 1.1673)
    """
    target = math.floor(amount + _ROUNDING)
    steps = target * _STEPS // usable
    for ratio in (steps / _STEPS, (steps + 1) / _STEPS, (steps + 2) / _STEPS):
        # In double precision, as with SQLite or PostgreSQL, and in single precision, as with MySQL.
        capacities = usable * ratio, usable * struct.unpack("f", struct.pack("f", ratio))[0]
        if min(capacities) >= target and max(capacities) < target + 1:
            return ratio
    return steps / _STEPS


def limited_ratio(amount: float, record: Mapping[str, Any], limits: RatioLimits) -> tuple[float, str]:
    """The ratio for a capacity within the limits, and a note for the operator if it is limited.

    Parameters
    ----------
    amount : float
        The capacity, in units of the inventory.
    record : mapping
        The inventory.

    Raises
    ------
    ValueError
        When there is no ratio; the message says why.

    Examples
    --------
    >>> limited_ratio(80.0, {"total": 10, "reserved": 2}, RatioLimits(1.0, 4.0))
    (4.0, 'ratio 10 is limited to 4')
    """
    usable = record["total"] - record["reserved"]
    if usable <= 0:
        raise ValueError("the inventory is reserved entirely")
    if not 0 <= amount < math.inf:
        raise ValueError(f"{amount:g} is not a capacity")
    if amount > usable * limits.most:
        return limits.most, f"ratio {amount / usable:g} is limited to {limits.most:g}"
    return max(allocation_ratio(amount, usable), limits.least), ""


def update_inventories(
    inventories: Mapping[str, Mapping[str, Any]],
    booked: Mapping[str, float],
    capacity: NodeCapacity,
    limits: RatioLimits,
    written: Mapping[str, float] = MappingProxyType({}),
) -> InventoryUpdate:
    """Inventories with the ratios for a capacity; every other field is left as it is.

    Parameters
    ----------
    inventories : mapping of resource class to record
    booked : mapping of resource class to float
        What of the present VMs counts, see :class:`~.bookings.CountedBookings`.
    capacity : NodeCapacity
    limits : RatioLimits
    written : mapping of resource class to float, optional
        The ratios that were written before.
    """
    updated = dict(inventories)
    ratios, notes = dict[str, float](), dict[str, str]()
    for resource in RESOURCE_CLASSES:
        node = capacity.of(resource)
        if node is None:
            continue
        record = inventories.get(resource)
        if record is None:
            notes[resource] = "the provider has no such inventory"
            continue
        dedicated = dedicated_of(resource, inventories)
        try:
            ratios[resource], notes[resource] = _ratio(node, record, dedicated, booked.get(resource, 0.0), limits)
        except PartUnknown as unknown:
            notes[resource] = str(unknown)
            # A ratio that is not ours is the operator's. Ours may be from a time when it was known.
            if not same_ratio(record["allocation_ratio"], written.get(resource)):
                continue
            least, _ = limited_ratio(booked.get(resource, 0.0), record, limits)
            ratios[resource] = min(record["allocation_ratio"], least)
        except ValueError as error:
            notes[resource] = str(error)
            continue
        if not same_ratio(ratios[resource], record["allocation_ratio"]):
            updated[resource] = {**record, "allocation_ratio": ratios[resource]}
    return InventoryUpdate(updated, updated != dict(inventories), ratios, notes)


def same_ratio(one: float, other: float | None) -> bool:
    """Whether two ratios differ by single precision at most."""
    return other is not None and math.isclose(one, other, rel_tol=_SINGLE_PRECISION)


def dedicated_of(resource: str, inventories: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The inventory of dedicated CPUs beside one of a resource class; None where there is none."""
    return inventories.get(PCPU) if resource == VCPU else None


def _ratio(
    node: ResourceCapacity,
    record: Mapping[str, Any],
    dedicated: Mapping[str, Any] | None,
    booked: float,
    limits: RatioLimits,
) -> tuple[float, str]:
    if not 0 <= node.free < math.inf:
        raise ValueError(f"{node.free:g} is not a capacity")
    free = free_of_part(node, record, dedicated)
    if free < 0:
        # As on a closed node: what VMs leave is not offered again.
        return limited_ratio(min(booked, float(record["total"] - record["reserved"])), record, limits)
    return limited_ratio(booked + free, record, limits)
