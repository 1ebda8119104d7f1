"""How much of what the present VMs of a node have booked counts, beside what Placement has allocated. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .ratio import MEMORY_MB, PCPU, RESOURCE_CLASSES, VCPU, NodeCapacity

#: Slices for which what only the node has stays out of the count. A VM that was created is heard of before.
_SLICES = 8


class CountedBookings:
    """What the present VMs of a provider may keep; only falls between the figures of two slices.

    Placement lets VMs in up to the capacity less what it has allocated. So a VM that only the node has must not count:
    what is booked for it would be offered to others. Nor must one that only Placement has: it was created since the
    figures were measured, and what it will use is not in them yet. The smaller one of both sums does that while not
    both kinds are there at once. For that case what the node had more than Placement is held for some slices more, less
    what has left the node since.

    After the figures were measured, every fall of what is allocated lowers the count, and nothing raises it again: what
    a VM leaves is not free before its absence was measured, also when others were created before it was deleted.
    """

    def __init__(self) -> None:
        self._classes = {resource: _ClassBookings() for resource in RESOURCE_CLASSES}

    def count(self, capacity: NodeCapacity, allocated: Mapping[str, float]) -> dict[str, float]:
        """The amounts that count, by resource class.

        Parameters
        ----------
        capacity : NodeCapacity
        allocated : mapping of resource class to float
            What Placement has allocated on the provider now.
        """
        counted = {}
        for resource, bookings in self._classes.items():
            if (of_node := capacity.of(resource)) is not None:
                dedicated = allocated.get(PCPU, 0.0) if resource == VCPU else 0.0
                booked = max(0.0, of_node.booked_now - dedicated)
                counted[resource] = bookings.count(of_node.figures_s, booked, allocated.get(resource, 0.0))
        return counted

    def state(self) -> dict[str, Any]:
        """The state, which JSON can hold."""
        return {resource: bookings.state() for resource, bookings in self._classes.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        LookupError, TypeError, ValueError
            When it is not such a state.
        """
        for resource, bookings in self._classes.items():
            bookings.restore(state[resource])


class _ClassBookings:
    """One resource class."""

    def __init__(self) -> None:
        self.figures_s = -math.inf
        self.counted = 0.0
        self.allocated = 0.0
        self.booked = 0.0
        self.only_node: tuple[float, ...] = ()

    def count(self, figures_s: float, booked: float, allocated: float) -> float:
        if figures_s != self.figures_s:
            self.figures_s, self.counted, self.allocated = figures_s, allocated, allocated
            left = max(0.0, self.booked - booked)
            held = (max(0.0, amount - left) for amount in self.only_node)
            self.only_node = (*held, max(0.0, booked - allocated))[-_SLICES:]
            self.booked = booked
        fallen = max(0.0, self.allocated - allocated)
        self.counted = max(0.0, min(self.counted - fallen, booked - max(self.only_node), allocated))
        self.allocated = allocated
        return self.counted

    def state(self) -> list[Any]:
        return (
            [self.figures_s, self.counted, self.allocated, self.booked, list(self.only_node)] if self.only_node else []
        )

    def restore(self, state: list[Any]) -> None:
        if state:
            *numbers, only_node = state
            self.figures_s, self.counted, self.allocated, self.booked = (float(number) for number in numbers)
            self.only_node = tuple(float(amount) for amount in only_node)


assert RESOURCE_CLASSES == (VCPU, MEMORY_MB)  # noqa: S101  # NodeCapacity.of distinguishes these two
