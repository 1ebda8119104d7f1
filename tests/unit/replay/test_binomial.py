"""The exact interval of a rate, against published values and its own definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.replay.binomial import binomial_interval


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    [  # R: binom.test(x, n)$conf.int
        (0, 10, 0.0, 0.3084971),
        (1, 10, 0.002528579, 0.445016117),
        (5, 10, 0.1870860, 0.8129140),
        (10, 10, 0.6915029, 1.0),
        (3, 28, 0.02266509, 0.28226440),
        (10, 100, 0.04900469, 0.17622260),
    ],
)
def test_interval_is_that_of_r(successes: int, trials: int, lower: float, upper: float) -> None:
    assert binomial_interval(successes, trials) == pytest.approx((lower, upper), abs=1e-7)


@pytest.mark.parametrize("trials", [1, 29, 72, 5000])
def test_interval_without_a_success_has_a_closed_form(trials: int) -> None:
    # (1 - p)^n = 0.025
    upper = 1 - 0.025 ** (1 / trials)
    assert binomial_interval(0, trials) == pytest.approx((0, upper), rel=1e-9)
    assert binomial_interval(trials, trials) == pytest.approx((1 - upper, 1), rel=1e-9)


def exact_cdf(successes: int, trials: int, p: float) -> float:
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes + 1))


COUNTS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_bounds_have_the_probability_of_a_tail(counts: tuple[int, int], confidence: float) -> None:
    successes, trials = counts
    lower, upper = binomial_interval(successes, trials, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= lower <= successes / trials <= upper <= 1
    if successes < trials:
        assert exact_cdf(successes, trials, upper) == pytest.approx(tail, rel=1e-6)
    if successes:
        assert 1 - exact_cdf(successes - 1, trials, lower) == pytest.approx(tail, rel=1e-6)


def test_nothing_is_known_without_trials() -> None:
    assert binomial_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, -1)])
def test_contradictory_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes in"):
        binomial_interval(successes, trials)
