"""Places VMs as nova does over Placement: a VM fits where what is booked plus its size is within the capacity."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..numerics import FloatArray
from .fleet import Fleet

Weigher = Literal["spread", "pack"]

#: Rounding of sums of sizes, cores or MB.
_TOLERANCE = 1e-6


class PlacementScheduler:
    """Chooses a node for each VM.

    Parameters
    ----------
    fleet : Fleet
    weigher : str
        ``spread`` takes the freest node that fits, ``pack`` the fullest; ties go to the lowest index.
    by_memory : bool
        Whether memory counts in the choice as well: then free CPU and free memory are scaled to 0..1 over the nodes
        that fit, and added.

    """

    def __init__(self, fleet: Fleet, weigher: Weigher = "spread", *, by_memory: bool = False) -> None:
        self._fleet = fleet
        self._sign = 1.0 if weigher == "spread" else -1.0
        self._by_memory = by_memory
        self._cpu: FloatArray = np.full(fleet.size.nodes, fleet.size.cores)
        self._mem: FloatArray = np.full(fleet.size.nodes, fleet.size.memory_mb)
        self._free_cpu, self._free_mem = self._cpu, self._mem
        # No node has more free: most VMs that a full fleet refuses are refused by a look at these.
        self._most_cpu = self._most_mem = np.inf

    def set_capacities(self, cpu: FloatArray | None, mem: FloatArray | None) -> None:
        """Set the capacities, (n,) cores and MB, from now on; None leaves them."""
        self._cpu = self._cpu if cpu is None else cpu
        self._mem = self._mem if mem is None else mem

    def begin_step(self) -> None:
        """Take into account which VMs have left, and new capacities."""
        self._free_cpu = self._cpu - self._fleet.booked_cpu
        self._free_mem = self._mem - self._fleet.booked_mem
        self._note_most()

    def note_placed(self, node: int) -> None:
        """Take into account that a VM was placed on a node."""
        self._free_cpu[node] = self._cpu[node] - self._fleet.booked_cpu[node]
        self._free_mem[node] = self._mem[node] - self._fleet.booked_mem[node]

    def _note_most(self) -> None:
        self._most_cpu = float(self._free_cpu.max()) + _TOLERANCE
        self._most_mem = float(self._free_mem.max()) + _TOLERANCE

    def may_fit(self, vcpu: float, memory_mb: float) -> bool:
        """Whether a VM may fit on some node, by a quick look; it does not where this is False."""
        return vcpu <= self._most_cpu and memory_mb <= self._most_mem

    def choose(self, vcpu: float, memory_mb: float, allowed: np.ndarray | None = None) -> int | None:
        """The node for a VM, or None when it fits nowhere.

        Parameters
        ----------
        vcpu, memory_mb : float
        allowed : (n,) bool, optional
            Nodes to choose from.
        """
        if not self.may_fit(vcpu, memory_mb):
            return None
        fits = self._free_cpu >= vcpu - _TOLERANCE
        fits &= self._free_mem >= memory_mb - _TOLERANCE
        if allowed is not None:
            fits &= allowed
        if not fits.any():
            self._note_most()
            return None
        weight = self._free_cpu
        if self._by_memory:
            weight = _scaled(self._free_cpu, fits) + _scaled(self._free_mem, fits)
        return int(np.where(fits, self._sign * weight, -np.inf).argmax())


def _scaled(amount: FloatArray, fits: np.ndarray) -> FloatArray:
    low, high = amount[fits].min(), amount[fits].max()
    return (amount - low) / (high - low) if high > low else np.zeros_like(amount)
