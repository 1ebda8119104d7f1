"""The clocks of a host controller; tests replace them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall clock and monotonic clock.

    Attributes
    ----------
    wall, monotonic : callable
        Return seconds: Unix time, and a time that never goes back.
    """

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
