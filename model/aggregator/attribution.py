"""Compares what the VMs of a node use with what the node uses.

The part of the node's usage that no VM accounts for is its own. It changes little when VMs leave or become idle, for
then the node uses less as well. When VMs vanish from the page, or their counters stop, while the node goes on as
before, its own part grows by what they used: then the page is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: On a node that is busier than this, other load takes what VMs leave: its own part may grow by that.
_SATURATED = 0.95

#: The own part of a node may grow by this share of its capacity at any time.
_MARGIN = 0.02


@dataclass(slots=True)
class Attribution:
    """One resource of a node: its own part, and the usage of each VM, when they agreed last.

    Parameters
    ----------
    noise : float
        Smaller losses are not looked at, in the unit of the usage.
    """

    noise: float
    _own: float | None = None
    _usage: dict[str, float] = field(default_factory=dict)

    def vanished(self, usage: Mapping[str, float | None]) -> bool:
        """Whether a VM is missing that used something when both agreed last."""
        return any(name not in usage and used > self.noise for name, used in self._usage.items())

    def agrees(self, node: float | None, usage: Mapping[str, float | None], capacity: float) -> bool:
        """Whether the usage of the node explains what its VMs no longer use.

        Parameters
        ----------
        node : float or None
            Usage of the node; None if it is unknown.
        usage : mapping of VM to float or None
            Usage of each VM on the page; None if it is unknown.
        capacity : float
            Of the node.
        """
        # The usage of a VM that is on the page and unknown is taken to be as before.
        now = {name: self._usage.get(name, 0.0) if used is None else used for name, used in usage.items()}
        lost = sum(max(0.0, before - now.get(name, 0.0)) for name, before in self._usage.items())
        if node is None or node > _SATURATED * capacity:
            return lost <= self.noise or not self.vanished(usage)
        own = node - sum(now.values())
        allowed = max(lost / 2, _MARGIN * capacity + self.noise)
        if self._own is not None and lost > self.noise and own - self._own > allowed:
            return False
        self._own, self._usage = own, now
        return True

    def start(self, node: float | None, usage: Mapping[str, float | None]) -> None:
        """Start from an earlier state, unless there is one."""
        if self._own is None and node is not None:
            self._usage = {name: used or 0.0 for name, used in usage.items()}
            self._own = node - sum(self._usage.values())
