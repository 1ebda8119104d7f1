"""The cases of the benchmark of stability detectors, and what it finds on them."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misc.benchmarks.bench_stability import scores
from misc.benchmarks.stability_cases import KINDS, LABELS, Case, draw_cases, labelled_cases
from model.stability import STABILITY_DETECTORS
from tests.conftest import ROOT, SHARED

TRACES = SHARED / "traces"
SHARES = arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 1000).map(lambda n: n / 1000))


SEEDS = (21, 22, 23)


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[Case]]:
    """2,000 cases by seed."""
    return {seed: list(draw_cases(seed, 2000)) for seed in SEEDS}


def bytes_of(case: Case) -> bytes:
    return case.older.tobytes() + case.new.tobytes()


def test_same_seed_draws_the_same_cases_and_another_seed_others() -> None:
    first, again, other = ([bytes_of(case) for case in draw_cases(seed, 20)] for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_cases_of_a_seed_are_those_of_the_published_figures() -> None:
    """Figures of the documentation were measured on them: a change in the order of draws would change them all."""
    digest = hashlib.sha256()
    for case in draw_cases(7, 50):
        digest.update(bytes_of(case) + repr((case.like, case.kind)).encode())
    assert digest.hexdigest() == "913566cf30402abfd481add5f9db575d1ecd349c8aaca4384ee1f0d7839454b6"


def test_every_other_case_is_like_its_past_and_every_kind_is_drawn(drawn: dict[int, list[Case]]) -> None:
    for cases in drawn.values():
        assert [case.like for case in cases] == [True, False] * 1000
        kinds = Counter((case.like, case.kind) for case in cases)
        assert set(kinds) == {(True, "same"), *((kind.like, kind.name) for kind in KINDS)}
        for case in cases:
            assert case.older.min() >= 0
            assert case.older.max() <= 1
            assert case.older.size == 4 * case.new.size


def test_changed_level_is_far_from_that_of_every_older_slice(drawn: dict[int, list[Case]]) -> None:
    """By the rule: 2 % of the node at least."""
    for case in (case for cases in drawn.values() for case in cases if case.kind == "level"):
        levels = np.median(case.older.reshape(4, -1), axis=1)
        # Samples have three digits.
        assert np.abs(levels - np.median(case.new)).min() >= 0.02 - 0.001


def test_bursts_and_outliers_exceed_the_older_samples() -> None:
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


# --- comparison -----------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    """Four are stable, three are detected, two of them correctly: 2/3, 1/2, and 4/7 for both."""
    truth = np.array([True, True, True, True, False, False])
    detected = np.array([True, True, False, False, True, False])
    assert scores(truth, detected) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))
    assert scores(truth, np.zeros(6, dtype=bool)) == (0.0, 0.0, 0.0)


def both_f(name: str, cases: list[Case]) -> tuple[float, float]:
    """F of "stable" and of "changed"."""
    truth = np.array([case.like for case in cases])
    stable = np.array([STABILITY_DETECTORS[name](case.older, case.new) for case in cases])
    return scores(truth, stable)[2], scores(~truth, ~stable)[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_range_is_correct_more_often_than_the_mean_predictor(seed: int, drawn: dict[int, list[Case]]) -> None:
    by_range, by_mean = both_f("range", drawn[seed]), both_f("mean", drawn[seed])
    assert by_range[0] > by_mean[0] + 0.03
    assert by_range[1] > by_mean[1] + 0.02


def test_range_is_correct_more_often_on_real_slices(real_cases: list[Case]) -> None:
    for cases in (real_cases, [case for case in real_cases if case.kind != "restless"]):
        by_range, by_mean = both_f("range", cases), both_f("mean", cases)
        assert by_range[0] > by_mean[0]
        assert by_range[1] > by_mean[1]


# --- the benchmark --------------------------------------------------------------------------------------


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "misc" / "benchmarks" / "bench_stability.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_benchmark_compares_every_detector_on_every_set_of_cases() -> None:
    done = bench("--cases=40", *(["--traces", TRACES] if TRACES.is_dir() else []))
    assert (done.returncode, done.stderr) == (0, "")
    tables = 3 if TRACES.is_dir() else 1
    for name in STABILITY_DETECTORS:
        assert sum(line.startswith(name) for line in done.stdout.splitlines()) == tables
    assert "(1.00)" in done.stdout


def test_benchmark_without_its_traces_is_one_line(tmp_path: Path) -> None:
    done = bench("--traces", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
