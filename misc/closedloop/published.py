"""What a scheduler reads of the status file: how much it may book on each node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.publishers.status_file import PublishedNode, read_status


@dataclass(frozen=True, slots=True)
class PublishedCpu:
    """The CPU of a node as it is published.

    Attributes
    ----------
    strategy, state : str
    slice_end_s, valid_until_s : float
        Unix seconds; NaN before the first figures.
    free, booked_now : float
        Cores.
    closed : bool
        Whether the node takes nothing, not even in place of VMs that leave.
    realised_risk : float
        NaN when it is not known.
    """

    strategy: str = ""
    state: str = "unknown"
    slice_end_s: float = math.nan
    valid_until_s: float = math.nan
    free: float = 0.0
    booked_now: float = 0.0
    closed: bool = False
    realised_risk: float = math.nan

    def capacity(self, now_s: float) -> float:
        """The vCPUs that may be booked in total; 0 on a node that takes nothing new.

        That is a node whose figures are missing, stale or outdated, and one that is closed.
        """
        valid = self.state == "ok" and now_s <= self.valid_until_s
        return self.booked_now + self.free if valid and not self.closed else 0.0


UNKNOWN = PublishedCpu()


def read_published(path: Path) -> Mapping[str, PublishedCpu]:
    """Read the CPU of all nodes; nothing is published before there is a file.

    Raises
    ------
    StatusFileError
        When the file cannot be read or is not a status file.
    """
    if not path.exists():
        return {}
    return {name: _published(node) for name, node in read_status(path).items()}


def _published(node: PublishedNode) -> PublishedCpu:
    cpu = node.cpu
    if node.slice_end is None or node.valid_until is None or cpu.booked_now is None:
        return UNKNOWN
    return PublishedCpu(
        strategy=node.strategy,
        state=cpu.state,
        slice_end_s=node.slice_end,
        valid_until_s=node.valid_until,
        free=node.free_cpu,
        booked_now=cpu.booked_now,
        closed=cpu.closed,
        realised_risk=math.nan if cpu.violation_rate is None else cpu.violation_rate,
    )
