"""Detectors of stability: does a slice resemble the slices before it?

The strategies ``greedy`` and ``scroogevm`` lower their thresholds in stable slices only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .numerics import FloatArray, mean_of, std_of


class StabilityDetector(Protocol):
    """Compares a slice of one resource of one node with its past."""

    def __call__(self, older: FloatArray, new: FloatArray, /) -> bool:
        """Whether the new slice resembles its past.

        Parameters
        ----------
        older : (n,) float64
            Pooled samples of the h + 1 slices before the new one, in shares of the node.
        new : (m,) float64
            Samples of the finished slice, in shares of the node.
        """


@dataclass(frozen=True, slots=True)
class RegisteredDetector:
    """A detector of the command line.

    Attributes
    ----------
    summary : str
        One line for help texts and documentation.
    detect : StabilityDetector
    """

    summary: str
    detect: StabilityDetector

    def __call__(self, older: FloatArray, new: FloatArray, /) -> bool:
        """Whether the new slice resembles its past, see :class:`StabilityDetector`."""
        return self.detect(older, new)


#: How far a threshold may be off without consequence for an operator, share of the node.
_RANGE_SLACK = 0.02


def mean_predictor(older: FloatArray, new: FloatArray) -> bool:
    """Stable when the mean of the past has the same error on the new slice as on the past, within 1 % of the node.

    The error is the root mean square error. The original trains a small recurrent network at every slice instead; both
    agree in nine cases of ten.

    >>> import numpy as np
    >>> mean_predictor(np.array([0.2, 0.4]), np.array([0.4, 0.2]))
    True
    >>> mean_predictor(np.array([0.2, 0.2]), np.array([0.2, 0.9]))
    False
    """
    expected = mean_of(older)
    return abs(std_of(older, expected) - std_of(new, expected)) < 0.01


def within_range(older: FloatArray, new: FloatArray) -> bool:
    """Stable when no sample of the new slice exceeds the range of the older ones by more than 2 % of the node.

    The extremes of past samples as limits of future ones are the distribution-free tolerance limits of Wilks,
    "Determination of sample sizes for setting tolerance limits", Ann. Math. Statist. 12, 1941. The 2 % are ours.
    ``misc/benchmarks/bench_stability.py`` compares this detector with the mean predictor.

    >>> import numpy as np
    >>> within_range(np.array([0.2, 0.4]), np.array([0.42, 0.18]))
    True
    >>> within_range(np.array([0.2, 0.2]), np.array([0.2, 0.3]))
    False
    """
    # Samples have three digits: binary fractions must not separate 0.4 + 0.02 from 0.42.
    slack = _RANGE_SLACK + 1e-9
    return bool(new.max() <= older.max() + slack and new.min() >= older.min() - slack)


def always(_older: FloatArray, _new: FloatArray) -> bool:
    """Every slice counts as stable."""
    return True


def never(_older: FloatArray, _new: FloatArray) -> bool:
    """No slice counts as stable."""
    return False


#: ``--stability NAME``
STABILITY_DETECTORS: dict[str, RegisteredDetector] = {
    "mean": RegisteredDetector("the past mean has the same error on the slice as on the past", mean_predictor),
    "range": RegisteredDetector("no sample is outside the past range by more than 2 % of the node", within_range),
    "always": RegisteredDetector("every slice is stable", always),
    "never": RegisteredDetector("no slice is stable", never),
}


def is_stable(detector: StabilityDetector, older: FloatArray, new: FloatArray, config: float) -> bool:
    """Apply a detector to usage in absolute units.

    Parameters
    ----------
    older, new : (n,), (m,) float64
        Usage, cores or MB.
    config : float
        Present capacity of the node, same unit.
    """
    return detector(np.round(older / config, 3), np.round(new / config, 3))
