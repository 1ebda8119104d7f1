"""Limits of the ballooning plan."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the ballooning plan.

    Attributes
    ----------
    scope_s : float
        Length of the window over which the usage of a VM is computed.
    grace_s : float
        From the end of a session until the VM may have the next one.
    threshold_gain_mb : float
        A session starts only when the gain exceeds this.
    min_config_mb : float
        No VM is squeezed below this.
    headroom_share, headroom_mb : float
        Memory that a guest keeps in addition to its usage: the larger of a share of the usage and an amount.
    step_share, step_mb : float
        Maximum size of a step: the larger of a share of the VM's memory and an amount.
    session_s : float
        Maximum length of a session.
    stuck_s : float
        A session is given up when the balloon makes no progress for this long.
    stats_age_s : float
        Maximum age of the guest's own statistics.
    quiet_s : float
        A session starts only when the guest has not swapped for this long.
    sessions_per_host : int
        Maximum number of sessions at the same time.
    excluded : tuple of str
        Patterns of VM names that are never squeezed, such as ``db-*``.
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
        """Memory in MB that a guest keeps in addition to its usage."""
        return max(self.headroom_share * usage_mb, self.headroom_mb)

    def goal(self, usage_mb: float) -> float:
        """The size in whole MB down to which a VM may be squeezed; inf when the usage is unknown."""
        goal_mb = usage_mb + self.headroom(usage_mb)
        # The sum of a huge usage overflows to inf, which is unknown too.
        return float(math.ceil(max(goal_mb, self.min_config_mb))) if math.isfinite(goal_mb) else math.inf

    def step(self, memory_mb: float) -> float:
        """Maximum size in MB of a step of a VM with so much memory."""
        return max(self.step_mb, self.step_share * memory_mb)
