"""Is this slice like the ones before? The question that ``greedy`` and ``scroogevm`` ask."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .numerics import FloatArray


class StabilityDetector(Protocol):
    """Judges one resource of one node."""

    def __call__(self, older: FloatArray, new: FloatArray, /) -> bool:
        """Whether the new slice resembles its past.

        Parameters
        ----------
        older : (n,) float64
            Pooled samples of the h + 1 slices before the new one, in shares of the node.
        new : (m,) float64
            Samples of the slice that ended, in shares of the node.
        """


#: What a threshold may be off by without an operator minding, share of the node.
_RANGE_SLACK = 0.02


def mean_predictor(older: FloatArray, new: FloatArray) -> bool:
    """Stable when the mean of the past errs on the new slice as much as on the past, within 1 %.

    The error is the root mean square one. The original asked a small recurrent network, trained anew at
    every slice; this predictor gives its flag in nine cases of ten.

    >>> import numpy as np
    >>> mean_predictor(np.array([0.2, 0.4]), np.array([0.4, 0.2]))
    True
    >>> mean_predictor(np.array([0.2, 0.2]), np.array([0.2, 0.9]))
    False
    """
    expected = older.mean()
    error_older = np.sqrt(((older - expected) ** 2).mean())
    error_new = np.sqrt(((new - expected) ** 2).mean())
    return bool(abs(error_older - error_new) < 0.01)


def within_range(older: FloatArray, new: FloatArray) -> bool:
    """Stable when no sample of the new slice is outside the range of the older ones by more than 2 % of the node.

    The extremes of what was seen, as limits of what is to come, are the distribution-free tolerance limits of Wilks,
    "Determination of sample sizes for setting tolerance limits", Ann. Math. Statist. 12, 1941; the 2 % are ours.
    ``misc/benchmarks/bench_stability.py`` compares it with the mean predictor.

    >>> import numpy as np
    >>> within_range(np.array([0.2, 0.4]), np.array([0.42, 0.18]))
    True
    >>> within_range(np.array([0.2, 0.2]), np.array([0.2, 0.3]))
    False
    """
    # Three digits are told, so that 0.4 + 0.02 is as good as 0.42.
    slack = _RANGE_SLACK + 1e-9
    return bool(new.max() <= older.max() + slack and new.min() >= older.min() - slack)


def always(_older: FloatArray, _new: FloatArray) -> bool:
    """Every slice counts as stable."""
    return True


def never(_older: FloatArray, _new: FloatArray) -> bool:
    """No slice counts as stable."""
    return False


#: ``--stability NAME``
STABILITY_DETECTORS: dict[str, StabilityDetector] = {
    "mean": mean_predictor,
    "range": within_range,
    "always": always,
    "never": never,
}


def is_stable(detector: StabilityDetector, older: FloatArray, new: FloatArray, config: float) -> bool:
    """Put the samples of two periods before a judge, as shares of the node.

    Parameters
    ----------
    older, new : (n,), (m,) float64
        Usage, cores or MB.
    config : float
        What the node has now, same unit.
    """
    return detector(np.round(older / config, 3), np.round(new / config, 3))
