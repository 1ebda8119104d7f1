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

    Attributes
    ----------
    cpu, mem : (n,) float64
        The capacities, cores and MB.
    """

    def __init__(self, fleet: Fleet, weigher: Weigher = "spread", *, by_memory: bool = False) -> None:
        self._fleet = fleet
        self._sign = 1.0 if weigher == "spread" else -1.0
        self._by_memory = by_memory
        self.cpu: FloatArray = np.full(fleet.size.nodes, fleet.size.cores)
        self.mem: FloatArray = np.full(fleet.size.nodes, fleet.size.memory_mb)

    def fitting(self, vcpu: float, memory_mb: float) -> tuple[FloatArray, FloatArray]:
        """What would be left of both capacities on each node, (n,) float64."""
        return self.cpu - self._fleet.booked_cpu - vcpu, self.mem - self._fleet.booked_mem - memory_mb

    def choose(self, vcpu: float, memory_mb: float, allowed: np.ndarray | None = None) -> int | None:
        """The node for a VM, or None when it fits nowhere.

        Parameters
        ----------
        vcpu, memory_mb : float
        allowed : (n,) bool, optional
            Nodes to choose from.
        """
        free_cpu, free_mem = self.fitting(vcpu, memory_mb)
        fits = (free_cpu >= -_TOLERANCE) & (free_mem >= -_TOLERANCE)
        if allowed is not None:
            fits &= allowed
        if not fits.any():
            return None
        weight = free_cpu
        if self._by_memory:
            weight = _scaled(free_cpu, fits) + _scaled(free_mem, fits)
        return int(np.where(fits, self._sign * weight, -np.inf).argmax())


def _scaled(amount: FloatArray, fits: np.ndarray) -> FloatArray:
    low, high = amount[fits].min(), amount[fits].max()
    return (amount - low) / (high - low) if high > low else np.zeros_like(amount)
