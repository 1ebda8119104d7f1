"""Allocation ratios from booked and free amounts."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ...status import NodeStatus, ResourceStatus

#: MySQL keeps a ratio as a FLOAT and gives back six digits: those below 100 with four decimals come back as they were.
_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node's provider shall offer, to VMs that are there and to those that may come.

    Attributes
    ----------
    node : str
    cpu : float or None
        Cores, booked and free; None leaves the resource as it is.
    mem : float or None
        MB of 2**20 bytes, likewise.
    """

    node: str
    cpu: float | None
    mem: float | None


def capacities_of(statuses: Iterable[NodeStatus]) -> list[NodeCapacity]:
    """What nodes promise: nothing but what is booked where no fresh figure is free, nothing new where none ever was."""
    return [NodeCapacity(status.node, _promised(status.cpu), _promised(status.mem)) for status in statuses]


def _promised(said: ResourceStatus) -> float | None:
    return None if said.last is None else said.last.booked + said.free


def allocation_ratio(amount: float, usable: int) -> float:
    """The ratio of four decimals whose capacity is the whole part of an amount, or else the next lower one.

    Placement compares what is used, a whole number, with ``(total - reserved) * ratio``: 3 cores with a ratio of
    2.6666 take no eighth vCPU, with 2.6667 they take it, and no ninth.

    Parameters
    ----------
    amount : float
        What is promised, in units of the inventory.
    usable : int
        Its total without what is reserved, at least 1.

    Examples
    --------
    >>> allocation_ratio(12.9, 8), allocation_ratio(8.0, 3), allocation_ratio(300000.0, 257_000)
    (1.5, 2.6667, 1.1673)
    """
    # A sum of booked and free may lack a last bit.
    target = math.floor(amount + 1e-6)
    steps = target * _STEPS // usable
    for ratio in (steps / _STEPS, (steps + 1) / _STEPS, (steps + 2) / _STEPS):
        # As a server with SQLite or PostgreSQL reckons, and as one with MySQL does.
        capacities = usable * ratio, usable * struct.unpack("f", struct.pack("f", ratio))[0]
        if min(capacities) >= target and max(capacities) < target + 1:
            return ratio
    return steps / _STEPS
