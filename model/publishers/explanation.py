"""Why a published figure is what it is, in one line for operators."""

from __future__ import annotations

from collections.abc import Mapping

from ..slices import Resource


def explain_limits(resource: Resource, free: float, unguarded: float | None, limits: Mapping[str, float]) -> str:
    """Why a figure is what it is, such as ``7.5 of 30.1: horizon 10.2, ramp 7.5``; empty if no guard lowered it.

    Parameters
    ----------
    resource : Resource
    free, unguarded : float
        What is published, and what would be published without guards, cores or MB.
    limits : mapping of guard to float
        What was left by each guard that lowered the figure. Less than nothing is shown as 0.
    """
    if unguarded is None or not limits:
        return ""
    left = ", ".join(f"{guard} {_amount(resource, max(amount, 0.0))}" for guard, amount in limits.items())
    return f"{_amount(resource, free)} of {_amount(resource, unguarded)}: {left}"


def _amount(resource: Resource, amount: float) -> str:
    return f"{amount / resource.display_scale:.1f}"
