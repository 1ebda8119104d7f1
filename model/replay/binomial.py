"""Exact confidence intervals of a rate."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

#: Halvings of 0..1 until neighbouring floats are reached.
_BISECTIONS = 60


@functools.lru_cache(maxsize=1024)  # strategies have many counts in common
def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval of a success probability.

    The lower bound is the probability p at which ``successes`` or more have the chance (1 - confidence) / 2, the upper
    bound the one at which ``successes`` or fewer have it. The interval covers the true rate at least as often as
    ``confidence`` says, whatever the rate, if the trials are independent.

    Parameters
    ----------
    successes, trials : int
        0 <= successes <= trials.
    confidence : float
        Above 0, below 1.

    Returns
    -------
    tuple of float
        Lower and upper bound; 0 and 1 without trials.

    Raises
    ------
    ValueError
        When the counts contradict each other.

    References
    ----------
    C. Clopper, E. Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial.
    Biometrika 26 (1934).

    Examples
    --------
    >>> lower, upper = binomial_interval(3, 28)
    >>> f"{lower:.4f} {upper:.4f}"
    '0.0227 0.2823'
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    tail = (1 - confidence) / 2
    # A lower bound is 1 less the upper bound of the failures.
    return 1.0 - _upper(trials - successes, trials, tail), _upper(successes, trials, tail)


def _upper(successes: int, trials: int, tail: float) -> float:
    """The p at which ``successes`` or fewer have the chance ``tail``."""
    if successes == trials:
        return 1.0
    chance = _cdf(successes, trials)
    return _bisect(lambda p: chance(p) > tail)


def _bisect(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _cdf(successes: int, trials: int) -> Callable[[float], float]:
    """The chance of at most ``successes`` in independent trials, as a function of their probability p, 0 < p < 1."""
    k = np.arange(1, successes + 1)
    # log C(n, k) = sum of log((n - i + 1) / i) for i = 1..k
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - k + 1) / k))])
    counts = np.arange(successes + 1)
    others = trials - counts
    return lambda p: float(np.exp(log_choose + counts * np.log(p) + others * np.log1p(-p)).sum())
