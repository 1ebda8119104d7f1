"""Allocation ratios from what is booked now and what is free. Pure functions."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...status import NodeStatus, ResourceStatus

#: Four decimals. MySQL stores a ratio as FLOAT and returns six digits, so that ratios below 100 come back unchanged.
_STEPS = 10_000

#: Relative error of a ratio that was stored in single precision.
_SINGLE_PRECISION = 1e-7

#: A sum of amounts may lack a last bit.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node's provider shall offer, to future and to present VMs.

    Attributes
    ----------
    node : str
    free_cpu : float or None
        Cores; None leaves the ratio unchanged.
    free_mem : float or None
        MB of 2**20 bytes, likewise.
    booked_now_cpu, booked_now_mem : float
        What the present VMs may keep: their allocations as they were measured; of a closed node no more than it has.
    """

    node: str
    free_cpu: float | None
    free_mem: float | None
    booked_now_cpu: float = 0.0
    booked_now_mem: float = 0.0


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
    notes : mapping of resource class to str
        Why a ratio is limited or left unchanged; empty where it is exact.
    """

    inventories: Mapping[str, Mapping[str, Any]]
    changed: bool
    notes: Mapping[str, str]


def capacities_of(statuses: Iterable[NodeStatus]) -> list[NodeCapacity]:
    """The capacity of each node.

    A stale node has nothing free. A resource that was never measured has no capacity (None).
    """
    return [
        NodeCapacity(
            status.node,
            *(_free(status.cpu), _free(status.mem)),
            *(_booked_now(status.cpu), _booked_now(status.mem)),
        )
        for status in statuses
    ]


def _free(status: ResourceStatus) -> float | None:
    return None if status.last is None else status.free


def _booked_now(status: ResourceStatus) -> float:
    return 0.0 if status.last is None else status.capacity - status.free


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


def limited_ratio(amount: float, record: Mapping[str, Any] | None, limits: RatioLimits) -> tuple[float, str]:
    """The ratio for a capacity within the limits, and a note for the operator if it is limited.

    Parameters
    ----------
    amount : float
        The capacity, in units of the inventory.
    record : mapping or None
        The inventory; None when the provider has none of the resource class.

    Raises
    ------
    ValueError
        When there is no ratio; the message says why.

    Examples
    --------
    >>> limited_ratio(80.0, {"total": 10, "reserved": 2}, RatioLimits(1.0, 4.0))
    (4.0, 'ratio 10 is limited to 4')
    """
    if record is None:
        raise ValueError("the provider has no such inventory")
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
    usages: Mapping[str, float],
    capacity: NodeCapacity,
    limits: RatioLimits,
) -> InventoryUpdate:
    """Inventories with the ratios for a capacity; every other field is left as it is.

    What is booked now counts up to what Placement has allocated: Placement has freed what a VM had that is deleted
    meanwhile, and a capacity that still contained it would be offered once more.

    Parameters
    ----------
    inventories : mapping of resource class to record
    usages : mapping of resource class to the amount that is allocated
    capacity : NodeCapacity
    limits : RatioLimits
    """
    updated = dict(inventories)
    changed, notes = False, {}
    for resource, free, booked_now in (
        ("VCPU", capacity.free_cpu, capacity.booked_now_cpu),
        ("MEMORY_MB", capacity.free_mem, capacity.booked_now_mem),
    ):
        if free is None:
            continue
        amount = min(booked_now, usages.get(resource, 0.0)) + free
        try:
            ratio, notes[resource] = limited_ratio(amount, inventories.get(resource), limits)
        except ValueError as error:
            notes[resource] = str(error)
            continue
        if not math.isclose(ratio, inventories[resource]["allocation_ratio"], rel_tol=_SINGLE_PRECISION):
            updated[resource] = {**inventories[resource], "allocation_ratio": ratio}
            changed = True
    return InventoryUpdate(updated, changed, notes)
