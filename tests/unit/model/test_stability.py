"""Judges of stability, and the cases on which they are judged themselves."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misc.benchmarks.bench_stability import scores
from misc.benchmarks.stability_cases import KINDS, LABELS, Case, draw_cases, labelled_cases
from model.numerics import FloatArray
from model.stability import STABILITY_DETECTORS, mean_predictor, within_range
from tests.conftest import ROOT, SHARED

TRACES = SHARED / "traces"
SHARES = arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 1000).map(lambda n: n / 1000))


# --- the judge by range ---------------------------------------------------------------------------------


@given(SHARES, SHARES)
def test_slice_within_the_range_of_the_older_ones_is_stable(older: FloatArray, new: FloatArray) -> None:
    assert within_range(older, np.clip(new, older.min(), older.max()))


@given(SHARES, SHARES, st.integers(-30, 30).filter(lambda n: abs(n) != 20))
def test_two_percent_of_the_node_beyond_it_are_the_limit(older: FloatArray, new: FloatArray, off: int) -> None:
    inside = np.clip(new, older.min(), older.max())
    inside[0] = (older.max() if off > 0 else older.min()) + off / 1000
    assert within_range(older, inside) is (abs(off) < 20)


@pytest.mark.parametrize("thousandths", range(0, 981, 7))
def test_two_percent_exactly_are_stable_whatever_binary_fractions_make_of_them(thousandths: int) -> None:
    low, high = thousandths / 1000, (thousandths + 20) / 1000
    assert within_range(np.array([low]), np.array([high]))
    assert within_range(np.array([high]), np.array([low]))


def test_order_of_samples_does_not_matter() -> None:
    case = next(draw_cases(5, 1))
    turned = case.older[::-1], case.new[::-1]
    assert within_range(*turned) == within_range(case.older, case.new)


# --- the cases ------------------------------------------------------------------------------------------


def test_same_seed_draws_the_same_cases_and_another_seed_others() -> None:
    def bytes_of(seed: int) -> list[bytes]:
        return [case.older.tobytes() + case.new.tobytes() for case in draw_cases(seed, 20)]

    assert bytes_of(1) == bytes_of(1)
    assert not set(bytes_of(1)) & set(bytes_of(2))


def test_every_other_case_is_like_its_past_and_every_kind_is_drawn() -> None:
    cases = list(draw_cases(1, 1000))
    assert sum(case.like for case in cases) == 500
    kinds = Counter((case.like, case.kind) for case in cases)
    assert {kind for like, kind in kinds if like} == {
        "same",
        "small level",
        "small burst",
        "few outliers",
        "other order",
    }
    assert {kind for like, kind in kinds if not like} == {
        *("level", "trend", "more spread", "less spread", "burst", "outliers", "shape")
    }
    assert all(
        case.older.min() >= 0 and case.older.max() <= 1 and case.older.size == 4 * case.new.size for case in cases
    )


def test_changed_level_is_far_from_that_of_every_older_slice() -> None:
    """By the rule: 2 % of the node at least."""
    for case in draw_cases(3, 1500):
        if case.kind == "level":
            levels = np.median(case.older.reshape(4, -1), axis=1)
            # Three digits are kept of each sample.
            assert np.abs(levels - np.median(case.new)).min() >= 0.02 - 0.001


def test_bursts_and_outliers_exceed_all_that_was_seen() -> None:
    for case in draw_cases(4, 1500):
        if case.kind in ("burst", "outliers") and case.new.size < 100:
            assert case.new.max() > np.percentile(case.older, 99)


def test_labels_name_each_case_once() -> None:
    with LABELS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"like", "unlike"}
    places = [(row["trace"], row["resource"], row["slice"]) for row in rows]
    assert len(set(places)) == len(places) > 100


@pytest.fixture(scope="module")
def real_cases() -> list[Case]:
    if not TRACES.is_dir():
        pytest.skip("the shared folder with real traces is not here")
    return labelled_cases(TRACES)


def test_labelled_slices_are_those_of_the_traces(real_cases: list[Case]) -> None:
    for case in real_cases:
        assert 0 <= case.new.min() <= case.new.max() <= 1.01
        assert 3 <= case.older.size / case.new.size <= 5


# --- who is right ---------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    """Four are stable, three are said to be, two of them rightly: 2/3, 1/2, and 4/7 for both."""
    truth = np.array([True, True, True, True, False, False])
    said = np.array([True, True, False, False, True, False])
    assert scores(truth, said) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))
    assert scores(truth, np.zeros(6, dtype=bool)) == (0.0, 0.0, 0.0)


def both_f(name: str, cases: list[Case]) -> tuple[float, float]:
    """F of "stable" and of "changed"."""
    truth = np.array([case.like for case in cases])
    said = np.array([STABILITY_DETECTORS[name](case.older, case.new) for case in cases])
    return scores(truth, said)[2], scores(~truth, ~said)[2]


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_range_is_right_more_often_than_the_mean_predictor(seed: int) -> None:
    cases = list(draw_cases(seed, 2000))
    ours, theirs = both_f("range", cases), both_f("mean", cases)
    assert ours[0] > theirs[0] + 0.03
    assert ours[1] > theirs[1] + 0.02


def test_range_is_right_more_often_about_real_slices(real_cases: list[Case]) -> None:
    for cases in (real_cases, [case for case in real_cases if case.kind != "restless"]):
        ours, theirs = both_f("range", cases), both_f("mean", cases)
        assert ours[0] > theirs[0]
        assert ours[1] > theirs[1]


def test_judges_answer_with_a_plain_truth_value() -> None:
    for detector in STABILITY_DETECTORS.values():
        assert isinstance(detector(np.array([0.1, 0.2]), np.array([0.1])), bool)
    assert mean_predictor(np.array([0.2, 0.4]), np.array([0.4, 0.2]))


# --- the benchmark --------------------------------------------------------------------------------------


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "misc" / "benchmarks" / "bench_stability.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_benchmark_tells_every_judge_on_every_kind_of_case() -> None:
    done = bench("--cases=40", *(["--traces", TRACES] if TRACES.is_dir() else []))
    assert (done.returncode, done.stderr) == (0, "")
    tables = 3 if TRACES.is_dir() else 1
    for name in STABILITY_DETECTORS:
        assert sum(line.startswith(name) for line in done.stdout.splitlines()) == tables
    assert "(1.00)" in done.stdout


def test_benchmark_without_the_traces_it_is_told_of_says_so_in_a_line(tmp_path: Path) -> None:
    done = bench("--traces", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
