"""Is this slice like the ones before? The question that ``greedy`` and ``scroogevm`` ask."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from model.series import FloatArray


class Stability(Protocol):
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


def always(_older: FloatArray, _new: FloatArray) -> bool:
    """Every slice counts as stable."""
    return True


def never(_older: FloatArray, _new: FloatArray) -> bool:
    """No slice counts as stable."""
    return False


#: ``--stability NAME``
STABILITIES: dict[str, Stability] = {"mean": mean_predictor, "always": always, "never": never}


def assess(judge: Stability, older: FloatArray, new: FloatArray, config: float) -> bool:
    """Put the samples of two periods before a judge, as shares of the node.

    Parameters
    ----------
    older, new : (n,), (m,) float64
        Usage, cores or MB.
    config : float
        What the node has now, same unit.
    """
    return judge(np.round(older / config, 3), np.round(new / config, 3))
