"""Mean and mean square of what each VM of a node uses, over about a scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numerics import BoolArray, FloatArray
from .slices import Resource, Usage, previous_rows

#: Classes of VM sizes: powers of two of the smallest class, cores or MB.
SIZE_CLASSES = 8
_SMALLEST = {"cpu": 1.0, "mem": 512.0}
#: A scope of fewer slices counts as so many: moments cover about a day, not a single slice.
LEAST_SCOPE = 24


def counted_scope(positions: int) -> int:
    """The slices of a scope, at least 24."""
    return max(positions, LEAST_SCOPE)


def size_classes(resource: Resource, sizes: FloatArray) -> NDArray[np.intp]:
    """The class of each VM size, (v,) int; an unknown size is in the first class."""
    known = np.where(sizes > 0, sizes, _SMALLEST[resource.name])
    power = np.rint(np.log2(known / _SMALLEST[resource.name]))
    return np.clip(power, 0, SIZE_CLASSES - 1).astype(np.intp)


@dataclass(frozen=True, slots=True)
class VmFigures:
    """The VMs of a slice, in its order; cores or MB.

    Attributes
    ----------
    alive : (v,) bool
        Whether a VM exists at the end of the slice.
    config : (v,) float64
        Allocations; NaN if unknown.
    ages : (v,) float64
        Slices with samples.
    used : (v,) float64
        Mean of the samples of the slice; NaN without samples.
    means, squares : (v,) float64
        Exponential averages of mean and mean square; 0 for a VM that never had a sample.
    expected : (v,) float64
        ``means`` before this slice; NaN for a VM that is new.
    classes : (v,) int
        Class of the allocation, see :func:`size_classes`.
    """

    alive: BoolArray
    config: FloatArray
    ages: FloatArray
    used: FloatArray
    means: FloatArray
    squares: FloatArray
    expected: FloatArray
    classes: NDArray[np.intp]

    @property
    def variances(self) -> FloatArray:
        """(v,) float64."""
        return np.maximum(self.squares - self.means**2, 0.0)


class VmMoments:
    """Follows the VMs of a node; a VM that was absent in a slice starts afresh.

    A figure is the plain mean over the first slices of a VM, and then an exponential average over a scope.

    Parameters
    ----------
    resource : Resource
    scope : int
        Slices of a scope.
    """

    def __init__(self, resource: Resource, scope: int) -> None:
        self._resource = resource
        self.scope = counted_scope(scope)
        self._names: tuple[str, ...] = ()
        self._ages: FloatArray = np.empty(0)
        self._means: FloatArray = np.empty(0)
        self._squares: FloatArray = np.empty(0)
        self._sizes: FloatArray = np.empty(0)
        self._classes: NDArray[np.intp] = np.empty(0, dtype=np.intp)

    def update(self, vms: tuple[str, ...], usage: Usage) -> VmFigures:
        """Add a slice."""
        if vms != self._names:
            self._reorder(vms)
        number, mean, square = usage.vm_sums
        sampled = number > 0
        expected = np.where(self._ages > 0, self._means, np.nan)
        self._ages = self._ages + sampled
        step = np.where(sampled, np.maximum(1.0 / np.maximum(self._ages, 1.0), 1.0 / self.scope), 0.0)
        self._means = self._means + step * (mean - self._means)
        self._squares = self._squares + step * (square - self._squares)
        alive = np.ones(len(vms), dtype=bool) if usage.vm_alive is None else usage.vm_alive
        used, classes = np.where(sampled, mean, np.nan), self._classes_of(usage.vm_config)
        return VmFigures(alive, usage.vm_config, self._ages, used, self._means, self._squares, expected, classes)

    def _classes_of(self, sizes: FloatArray) -> NDArray[np.intp]:
        # Sizes rarely change.
        if not np.array_equal(sizes, self._sizes):
            self._sizes, self._classes = sizes, size_classes(self._resource, sizes)
        return self._classes

    def _reorder(self, vms: tuple[str, ...]) -> None:
        index = previous_rows(self._names, vms)
        # Index -1 takes the zero behind the last VM.
        self._ages, self._means, self._squares = (
            np.append(values, 0.0)[index] for values in (self._ages, self._means, self._squares)
        )
        self._names = vms

    def state(self) -> dict[str, Any]:
        """The state as lists: three figures per VM."""
        return {
            "names": list(self._names),
            "ages": self._ages.tolist(),
            "means": self._means.tolist(),
            "squares": self._squares.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state` of another instance.

        Raises
        ------
        KeyError
            When a field is missing.
        """
        self._names = tuple(state["names"])
        self._ages, self._means, self._squares = (np.array(state[name], float) for name in ("ages", "means", "squares"))
