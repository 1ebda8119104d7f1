"""Small SVG area charts of free amounts and of what is booked now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...numerics import FloatArray
from ...slices import Resource

#: Width of a slice and height of the chart in SVG units; width of the chart on the screen in pixels.
STEP, HEIGHT, WIDTH = 2, 32, 150


@dataclass(frozen=True, slots=True)
class Sparkline:
    """SVG paths of a chart, empty where there is no data, and their description.

    Attributes
    ----------
    total, booked_now : str
        Areas: booked now + free, and booked now, which covers the lower part.
    config : str
        A line.
    description : str
    """

    total: str
    booked_now: str
    config: str
    description: str


def draw_sparkline(resource: Resource, free: FloatArray, booked_now: FloatArray, config: FloatArray) -> Sparkline:
    """The chart of one resource; arrays of (slices,) float64, NaN where a slice is missing."""
    total = free + booked_now
    top = float(np.nan_to_num([*total, *config]).max(initial=0.0))
    present = ~np.isnan(total)
    if not present.any() or not top > 0:
        return Sparkline("", "", _path(_heights(config, top), closed=False), f"{resource.title}: no data")
    return Sparkline(
        _path(_heights(total, top), closed=True),
        _path(_heights(booked_now, top), closed=True),
        _path(_heights(config, top), closed=False),
        _description(resource, free, booked_now, config),
    )


def _description(resource: Resource, free: FloatArray, booked_now: FloatArray, config: FloatArray) -> str:
    total, scale = free + booked_now, resource.display_scale
    present = ~np.isnan(total)
    text = (
        f"{resource.title}: free {_range(free[present] / scale, 1)}, "
        f"booked now {_range(booked_now[present] / scale, 1)} {resource.display_unit}"
    )
    divisible = present & (config > 0)
    if divisible.any():
        text += f", ratio {_range(total[divisible] / config[divisible], 2)}"
    missing = np.count_nonzero(~present[np.argmax(present) :])
    if missing:
        text += f"; {missing} slice{'s' if missing > 1 else ''} without data"
    return text


def _range(values: FloatArray, digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _heights(values: FloatArray, top: float) -> list[int | None]:
    """Distances from the upper edge, one unit of which is left for the line; None where a value is missing."""
    scaled = 1 + np.rint((HEIGHT - 1) * (1 - values / top)) if top > 0 else np.full(len(values), np.nan)
    return [None if math.isnan(height) else int(height) for height in scaled.tolist()]


def _path(heights: Sequence[int | None], *, closed: bool) -> str:
    """A step function, as a line or closed along the lower edge; a gap begins a new stroke."""
    commands: list[str] = []
    previous: int | None = None
    for i, height in enumerate([*heights, None]):
        if height == previous:
            continue
        x = STEP * i
        if previous is None:
            commands.append(f"M{x} {HEIGHT}V{height}" if closed else f"M{x} {height}")
        elif height is None:
            commands.append(f"H{x}V{HEIGHT}Z" if closed else f"H{x}")
        else:
            commands.append(f"H{x}V{height}")
        previous = height
    return "".join(commands)
