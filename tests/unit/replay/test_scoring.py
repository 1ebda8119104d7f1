"""The scores, with the arithmetic shown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.replay.scoring import (
    SUMMARY_COLUMNS,
    History,
    published_terms,
    replay_terms,
    score,
    summary_csv,
)

NAN = math.nan


def history(*, peak, free, booked=None, published=None, config=10.0, lag=1) -> History:  # type: ignore[no-untyped-def]
    count = len(peak)
    array = lambda values: np.array(values, dtype=float)  # noqa: E731
    return History(
        config=array([config] * count),
        booked=array(booked or [0.0] * count),
        peak=array(peak),
        free=array(free),
        published=array(published or free),
        lag=lag,
    )


def test_replay_score_compares_with_the_predecessor() -> None:
    # truth 10 - peak = 7, 4; predictions free(t-1) = 6, 6: off by 1 and 2, the second a violation of 2.
    # decrease: prediction - free(t) = 6 - 6 and 6 - 5.
    row = score("x", "cpu", history(peak=[2, 3, 6], free=[6, 6, 5]))
    assert row.misprediction == pytest.approx(0.3)
    assert row.violation == pytest.approx(0.2)
    assert row.violation_frequency == pytest.approx(0.5)
    assert row.decrease == pytest.approx(0.1)
    assert row.free_share == pytest.approx((6 + 6 + 5) / 30)


def test_replay_score_takes_growth_of_booking_off_the_prediction() -> None:
    # booked grows by 2: prediction 6 - 2 = 4 against truth 4.
    assert replay_terms(history(peak=[2, 6], free=[6, 6], booked=[5, 7])).prediction[1] == 4
    # less is booked: the growth of the peak, 6 - 2 = 4, is taken off instead.
    assert replay_terms(history(peak=[2, 6], free=[6, 6], booked=[7, 5])).prediction[1] == 2


def test_replay_score_compares_with_the_same_position() -> None:
    terms = replay_terms(history(peak=[1, 2, 3, 4], free=[9, 8, 7, 6], lag=2))
    np.testing.assert_array_equal(terms.prediction, [NAN, NAN, 9, 8])


def test_published_score_compares_with_the_slice_that_followed() -> None:
    # left 5 and 4, unused 10 - 6 = 4 and 10 - 6 = 4: violated by 1, not violated.
    row = score("x", "cpu", history(peak=[1, 6, 6], free=[9, 9, 9], published=[5, 4, 3], lag=1))
    assert row.published_misprediction == pytest.approx(0.1)
    assert row.published_violation == pytest.approx(0.1)
    assert row.published_violation_frequency == pytest.approx(0.5)
    assert row.published_free_share == pytest.approx((5 + 4 + 3) / 30)


def test_published_score_takes_only_growth_of_booking_off() -> None:
    terms = published_terms(history(peak=[1, 1, 1], free=[5, 5, 5], booked=[4, 6, 3]))
    np.testing.assert_array_equal(terms.prediction, [NAN, 3, 5])


def test_published_score_ignores_the_length_of_a_scope() -> None:
    terms = published_terms(history(peak=[1, 1, 1], free=[5, 4, 3], lag=3))
    np.testing.assert_array_equal(terms.prediction, [NAN, 5, 4])


def test_slice_without_data_is_left_out_on_both_sides() -> None:
    gap = history(peak=[1, NAN, 2, 3], free=[5, NAN, 5, 5], published=[5, 0, 5, 5])
    for terms in (replay_terms(gap), published_terms(gap)):
        assert np.flatnonzero(~np.isnan(terms.misprediction)).tolist() == [3]
    assert score("x", "cpu", gap).published_free_share == pytest.approx(0.5)


def test_rounding_error_is_not_a_violation() -> None:
    assert score("x", "cpu", history(peak=[1, 0.1 + 0.2], free=[9.7, 9.7])).violation_frequency == 0


def test_nothing_to_score_is_not_zero() -> None:
    row = score("x", "cpu", history(peak=[1], free=[9]))
    assert math.isnan(row.misprediction)
    assert summary_csv([row]).splitlines()[1] == "x,cpu,,,,,0.9,,,,0.9"


def test_summary_has_the_columns_of_the_contract() -> None:
    assert ",".join(SUMMARY_COLUMNS) == (
        "strategy,resource,misprediction,violation,violation_frequency,decrease,free_share,"
        "published_misprediction,published_violation,published_violation_frequency,published_free_share"
    )
    assert summary_csv([]).splitlines() == [",".join(SUMMARY_COLUMNS)]
