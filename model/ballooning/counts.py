"""Counters of the ballooning daemon."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class BallooningCounts:
    """Counters since the daemon started.

    Attributes
    ----------
    sessions, restores, gave_up, killed : int
        Sessions started; restores begun; those of them that ended a failed session; failed sessions in which the guest
        probably killed a process.
    reclaimed_mb : float
        Decrease of resident memory over all sessions.
    errors, restore_failures : Counter of host
        Failed calls; those of them that should have restored a guest.
    up : dict of host to bool
        Whether the host answered the last call.
    """

    sessions: int = 0
    reclaimed_mb: float = 0.0
    restores: int = 0
    gave_up: int = 0
    killed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    restore_failures: Counter[str] = field(default_factory=Counter)
    up: dict[str, bool] = field(default_factory=dict)
