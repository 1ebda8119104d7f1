"""Capacities of nodes as the reconciler of Placement takes them."""

from __future__ import annotations

from dataclasses import replace

from model.publishers.placement.ratio import NodeCapacity, ResourceCapacity

#: Larger than any inventory of the tests, and entirely in use: nothing of it is outside of an inventory.
_LARGE = 2.0**40


def resource_capacity(
    free: float,
    booked_now: float = 0.0,
    *,
    config: float = _LARGE,
    own: float = _LARGE,
    figures_s: float = 60.0,
) -> ResourceCapacity:
    """One resource of a node whose size does not matter, unless it is given."""
    return ResourceCapacity(free, booked_now, config, own, figures_s)


def capacity_of(
    node: str,
    free_cpu: float | None,
    free_mem: float | None,
    booked_cpu: float = 0.0,
    booked_mem: float = 0.0,
    figures_s: float = 60.0,
) -> NodeCapacity:
    """A node whose size does not matter; None for a resource that was never measured."""
    pairs = ((free_cpu, booked_cpu), (free_mem, booked_mem))
    cpu, mem = (
        None if free is None else resource_capacity(free, booked, figures_s=figures_s) for free, booked in pairs
    )
    return NodeCapacity(node, cpu, mem)


def at(capacity: NodeCapacity, figures_s: float) -> NodeCapacity:
    """The same figures, at the end of another slice."""
    cpu, mem = (one and replace(one, figures_s=figures_s) for one in (capacity.cpu, capacity.mem))
    return NodeCapacity(capacity.node, cpu, mem)
