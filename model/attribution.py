"""Compares what the VMs of a node use with what the node uses.

The part of the node's usage that no VM accounts for is its own. It changes little when VMs leave or become idle, for
then the node uses less as well. When VMs vanish from the page, or their counters stop, while the node goes on as
before, its own part grows by what they used: then the page is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from statistics import median_low
from typing import NamedTuple

#: On a node that is busier than this, other load takes what VMs leave: its own part may grow by that.
_SATURATED = 0.95

#: The own part of a node may grow by this share of its capacity at any time.
_MARGIN = 0.02

#: The own part is the median of so many comparisons, of two the lower one: node and VMs are not read at the same time.
#: A single one that is too low would contradict all that follow, and one that is too high would hide what vanishes.
_OWNS = 3


#: Usage of VMs that is too small to be missed, cores and MB, and the share of it by which the node's own part may grow:
#: a VM leaves the memory that it shares with others.
CPU_LOSS = (0.1, 0.5)
MEMORY_LOSS = (256.0, 0.9)


@dataclass(slots=True)
class Attribution:
    """One resource of a node: its own part, and the usage of each VM, when both agreed last.

    Parameters
    ----------
    noise : float
        Smaller losses are not looked at, in the unit of the usage.
    share : float
        The own part may grow by this share of what VMs lost.
    """

    noise: float
    share: float
    _owns: tuple[float, ...] = ()
    _usage: dict[str, float] = field(default_factory=dict)

    def lacks(self, usage: Mapping[str, float | None]) -> bool:
        """Whether a VM is missing that used something when both agreed last."""
        if self._usage.keys() <= usage.keys():
            return False
        return any(name not in usage and used > self.noise for name, used in self._usage.items())

    def agrees(self, node: float | None, usage: Mapping[str, float | None], capacity: float) -> bool | None:
        """Whether the node uses less by what its VMs no longer use; None if that cannot be seen.

        Parameters
        ----------
        node : float or None
            Usage of the node; None if it is unknown.
        usage : mapping of VM to float or None
            Usage of each VM on the page; None if it is unknown.
        capacity : float
            Of the node.
        """
        now = self._now(usage)
        lost = sum([before - used for name, before in self._usage.items() if (used := now.get(name, 0.0)) < before])
        if lost <= self.noise:
            return True
        if node is None or node > _SATURATED * capacity:
            return None
        if not self._owns:
            return True
        growth = node - sum(now.values()) - median_low(self._owns)
        return growth <= max(self.share * lost, _MARGIN * capacity + self.noise)

    def accept(self, node: float | None, usage: Mapping[str, float | None]) -> None:
        """Compare with this state from now on; nothing happens while the usage of the node is unknown."""
        if node is not None:
            self._usage = self._now(usage)
            self._owns = (*self._owns[1 - _OWNS :], node - sum(self._usage.values()))

    def _now(self, usage: Mapping[str, float | None]) -> dict[str, float]:
        """The usage of the VMs on the page; one that is unknown is taken to be as before."""
        return {name: self._usage.get(name, 0.0) if used is None else used for name, used in usage.items()}


class ResourceUsage(NamedTuple):
    """What a node and its VMs use of one resource, in the unit of the resource; None where it is unknown.

    Attributes
    ----------
    node : float or None
    vms : mapping of VM to float or None
        The VMs on the page.
    capacity : float
        Of the node.
    """

    node: float | None
    vms: Mapping[str, float | None]
    capacity: float


class Unknown(Enum):
    """What a page leaves unknown because the usage of the node contradicts it."""

    NOTHING = auto()
    #: A VM has vanished that the node still runs.
    VMS = auto()
    #: The CPU time of a VM has stopped, that of the node has not.
    VMS_CPU = auto()


@dataclass(slots=True)
class NodeAttribution:
    """Both resources of a node."""

    cpu: Attribution = field(default_factory=lambda: Attribution(*CPU_LOSS))
    memory: Attribution = field(default_factory=lambda: Attribution(*MEMORY_LOSS))

    def copy(self) -> NodeAttribution:
        """One that accepts other states from now on."""
        return NodeAttribution(replace(self.cpu), replace(self.memory))

    def accept(self, cpu: ResourceUsage, memory: ResourceUsage) -> None:
        """Compare with this state from now on."""
        self.cpu.accept(cpu.node, cpu.vms)
        self.memory.accept(memory.node, memory.vms)

    def compare(self, cpu: ResourceUsage, memory: ResourceUsage) -> Unknown:
        """What a page leaves unknown; what it does not leave unknown is compared with from now on.

        A VM that used CPU time or memory has left when the node uses less of it. One resource alone does not show that
        where both were used: the CPU time of small VMs is within the changes of the node's own part.
        """
        cpu_agrees, cpu_lacks = self.cpu.agrees(*cpu), self.cpu.lacks(cpu.vms)
        if self.memory.lacks(memory.vms):
            memory_agrees = self.memory.agrees(*memory)
            # Where the memory shows nothing, as with huge pages, the CPU time must.
            gone = memory_agrees is not False if cpu_lacks and cpu_agrees else memory_agrees and not cpu_lacks
        else:
            gone = cpu_agrees or not cpu_lacks
        if not gone:
            return Unknown.VMS
        self.memory.accept(memory.node, memory.vms)
        if cpu_agrees is False:
            return Unknown.VMS_CPU
        self.cpu.accept(cpu.node, cpu.vms)
        return Unknown.NOTHING
