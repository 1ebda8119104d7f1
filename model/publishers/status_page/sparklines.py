"""Small SVG pictures of what was published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...numerics import FloatArray
from ...slices import CPU, MEMORY, Resource

#: A slice is so wide in the coordinates of a picture, and the picture so high; on the screen it is so many pixels wide.
STEP, HEIGHT, WIDTH = 2, 32, 150

#: By resource: its heading, and how many of our units are one of the page's.
DISPLAY = {CPU: ("CPU", "cores", 1.0), MEMORY: ("memory", "GB", 1024.0)}


@dataclass(frozen=True, slots=True)
class Sparkline:
    """The course of a resource: paths of SVG, and what they show in words."""

    sold: str
    booked: str
    config: str
    words: str


def draw_sparkline(resource: Resource, free: FloatArray, booked: FloatArray, config: FloatArray) -> Sparkline:
    """The picture of one resource over the last slices."""
    sold = free + booked
    top = float(np.nan_to_num([*sold, *config]).max(initial=0.0))
    name, unit, scale = DISPLAY[resource]
    there = ~np.isnan(sold)
    if not there.any() or not top > 0:
        return Sparkline("", "", _path(_heights(config, top), closed=False), f"{name}: nothing is known")
    whole = there & (config > 0)
    ratios = sold[whole] / config[whole]
    words = f"{name}: free {_span(free[there] / scale, 1)}, booked {_span(booked[there] / scale, 1)} {unit}"
    if ratios.size:
        words += f", ratio {_span(ratios, 2)}"
    missing = np.count_nonzero(~there[np.argmax(there) :])
    if missing:
        words += f"; {missing} slices without figures"
    return Sparkline(
        _path(_heights(sold, top), closed=True),
        _path(_heights(booked, top), closed=True),
        _path(_heights(config, top), closed=False),
        words,
    )


def _span(values: FloatArray, digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _heights(values: FloatArray, top: float) -> list[int | None]:
    """Pixels from the upper edge; a pixel is left for the line."""
    scaled = 1 + np.rint((HEIGHT - 1) * (1 - values / top)) if top > 0 else np.full(len(values), np.nan)
    return [None if math.isnan(height) else int(height) for height in scaled.tolist()]


def _path(heights: Sequence[int | None], *, closed: bool) -> str:
    """Steps, down to the lower edge where they are closed; a new stroke after each gap."""
    pieces: list[str] = []
    last: int | None = None
    for i, height in enumerate([*heights, None]):
        if height == last:
            continue
        x = STEP * i
        if last is None:
            pieces.append(f"M{x} {HEIGHT}V{height}" if closed else f"M{x} {height}")
        elif height is None:
            pieces.append(f"H{x}V{HEIGHT}Z" if closed else f"H{x}")
        else:
            pieces.append(f"H{x}V{height}")
        last = height
    return "".join(pieces)
