"""The limits that the ballooning plan keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """How ballooning goes about it.

    Attributes
    ----------
    scope_s : float
        Over which a VM's usage is looked at.
    grace_s : float
        From the end of a session until a VM may have another.
    threshold_gain_mb : float
        What there must be to gain, at least.
    min_config_mb : float
        Below which no VM is squeezed.
    headroom_share, headroom_mb : float
        What a guest keeps beside what it uses: a share of that, and at least so much.
    step_share, step_mb : float
        What one step takes, at most: a share of the VM's memory, or so much where that is less.
    session_s : float
        How long a session lasts, at most.
    stuck_s : float
        How long a guest may take to give anything back.
    stats_age_s : float
        How old the guest's own statistics may be.
    quiet_s : float
        How long a guest must not have swapped.
    sessions_per_host : int
    excluded : tuple of str
        Patterns of names that are left alone, such as ``db-*``.
    """

    scope_s: float = 3600.0
    grace_s: float = 3600.0
    threshold_gain_mb: float = 512.0
    min_config_mb: float = 1024.0
    headroom_share: float = 0.2
    headroom_mb: float = 64.0
    step_share: float = 0.05
    step_mb: float = 128.0
    session_s: float = 120.0
    stuck_s: float = 10.0
    stats_age_s: float = 30.0
    quiet_s: float = 60.0
    sessions_per_host: int = 4
    excluded: tuple[str, ...] = ()

    def headroom(self, usage_mb: float) -> float:
        """What a guest keeps beside what it uses."""
        return max(self.headroom_share * usage_mb, self.headroom_mb)

    def goal(self, usage_mb: float) -> float:
        """Down to what a VM may be squeezed, whole MB; of a usage that is not known, inf."""
        wanted_mb = usage_mb + self.headroom(usage_mb)
        # A usage beyond all measure overflows here, and is no more of a goal than one that is not known.
        return float(math.ceil(max(wanted_mb, self.min_config_mb))) if math.isfinite(wanted_mb) else math.inf

    def step(self, memory_mb: float) -> float:
        """How much one step takes from a VM of that size."""
        return max(self.step_mb, self.step_share * memory_mb)
