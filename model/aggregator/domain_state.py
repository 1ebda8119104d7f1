"""What the rates of a domain are computed from: its state between two scrapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..samples import Metrics
from .sizes import AcceptedAllocation

#: How long after a change of its size a guest may report a different reserve before that is its new reserve, ms.
_SETTLING_MS = 60_000.0

#: Largest difference between the reserves of a guest at two sizes, as a fraction of its memory.
_RESERVE_TOLERANCE = 0.01

#: Allocations beyond this multiple of the node's own size are errors of the exporter.
LARGEST_ALLOCATION = 4.0

#: By which factor an allocation may fall at once: memory with its balloon, vCPUs not at all.
_VCPUS_FALL = 1.0
_MEMORY_FALLS = 4.0

#: A VM has at least this share of the vCPUs that it used.
USED = 0.8

#: No VM uses more than this multiple of the node.
MOST_USAGE = 1.5

#: A VM that used more was busy, cores.
BUSY_CORES = 0.05


@dataclass(slots=True)
class Balloon:
    """State of a domain's balloon; KiB, Unix milliseconds.

    Attributes
    ----------
    alloc : float
    changed_after_ms : float
        Time of the last scrape before ``alloc`` changed.
    settled : bool
        Whether the statistics of the guest are of the current size.
    reserve : float or None
        Memory that the guest's kernel reserves for itself: alloc - available, while settled.
    """

    alloc: float
    changed_after_ms: float = float("-inf")
    settled: bool = True
    reserve: float | None = None

    def usage(self, now: Metrics, epoch_ms: float, last_ms: float) -> float | None:
        """Memory that a guest uses, alloc - unused, KiB; None while it is unknown.

        The statistics are as old as the guest's last report. After the balloon has moved they are of the size before,
        or of a size in between while it was moving. They are of the current size once the guest has reported after
        the change and the guest's kernel has the same reserve as before.

        Parameters
        ----------
        now : mapping of metric name to value
        epoch_ms, last_ms : float
            Time of this scrape, and of the one before.
        """
        alloc, unused = now["memory_alloc"], now.get("memory_unused")
        if self.alloc != alloc:
            self.alloc, self.settled, self.changed_after_ms = alloc, False, last_ms
        if unused is None or not 0 <= unused <= alloc:
            return None
        # The time of the statistics is in whole seconds.
        updated_ms = now.get("memory_last_update", epoch_ms / 1000.0) * 1000.0 + 999.0
        reserve = alloc - now["memory_available"] if "memory_available" in now else None
        if not self.settled:
            agree = (
                reserve is None
                or self.reserve is None
                or abs(reserve - self.reserve) <= _RESERVE_TOLERANCE * alloc
                or updated_ms > self.changed_after_ms + _SETTLING_MS
            )
            self.settled = updated_ms >= self.changed_after_ms and agree
        if not self.settled:
            return None
        self.reserve = reserve
        return alloc - unused


@dataclass(slots=True)
class Domain:
    """State of a domain between scrapes.

    Attributes
    ----------
    before : mapping of metric name to value, or None
        The metrics from which its next rates are computed; None before the first scrape.
    before_ms : float
        Their time.
    usage : float
        Its last known CPU usage, cores.
    """

    before: Metrics | None = None
    before_ms: float = 0.0
    usage: float = 0.0
    vcpus: AcceptedAllocation = field(default_factory=lambda: AcceptedAllocation(_VCPUS_FALL))
    memory: AcceptedAllocation = field(default_factory=lambda: AcceptedAllocation(_MEMORY_FALLS))
    balloon: Balloon | None = None
