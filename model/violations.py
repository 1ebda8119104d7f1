"""The realised risk of what was published, whatever strategy computed it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from .slices import Usage, is_full

#: Number of slices over which the rate is computed.
RATE_SLICES = 100
#: A slice is violated from this excess on, a share of the node, as in the published score.
_TOLERANCE = 1e-9


def is_exceeded(published: float, growth: float, config: float, peak: float) -> bool:
    """Whether more was used than was left of a published figure; cores or MB.

    Parameters
    ----------
    published, growth : float
        The figure at the end of the slice before, and what was booked in addition since then, at least 0.
    config, peak : float
        Capacity, and 99th percentile of the samples.
    """
    return published - growth - (config - peak) > _TOLERANCE * config


class ViolationRecord:
    """Counts the slices that violated a published figure.

    A slice is violated when the node was full in it or its VMs suffered, or when more was used than was left: the
    published figure less the growth of what is booked now. A full node cannot show how much its VMs wanted, and where 0
    is published nothing else could be violated.
    """

    def __init__(self) -> None:
        self.published = math.nan
        self.booked = 0.0
        self.flags: deque[int] = deque(maxlen=RATE_SLICES)

    @property
    def rate(self) -> float:
        """Violated share of the last 100 slices, 0 to 1; NaN before the first one."""
        return sum(self.flags) / len(self.flags) if self.flags else math.nan

    def compare(self, usage: Usage, peak: float, *, follows: bool, contended: bool = False) -> float:
        """Compare a slice with the figure before it: 1 when violated, 0 when not, NaN without a figure to compare.

        Parameters
        ----------
        usage : Usage
        peak : float
            99th percentile of the node's samples, demand where it is known; cores or MB.
        follows : bool
            Whether the slice before has samples.
        contended : bool
            Whether the VMs suffered.
        """
        if not follows or math.isnan(self.published):
            return math.nan
        growth = max(0.0, usage.booked_now - self.booked)
        exceeded = is_exceeded(self.published, growth, usage.config, peak)
        violated = int(exceeded or contended or is_full(peak, usage.config))
        self.flags.append(violated)
        return float(violated)

    def note_published(self, free: float, usage: Usage) -> None:
        """Note what is published at the end of a slice."""
        self.published, self.booked = free, usage.booked_now

    def state(self) -> dict[str, Any]:
        """The state as numbers and a list."""
        return {"published": self.published, "booked": self.booked, "flags": list(self.flags)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another record.

        Raises
        ------
        KeyError
        """
        self.published, self.booked = float(state["published"]), float(state["booked"])
        self.flags = deque((int(flag) for flag in state["flags"]), RATE_SLICES)
