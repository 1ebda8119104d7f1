#!/usr/bin/env python3
"""Measures the stability detectors: precision and recall on labelled slices, and the cost of a call.

Cases are drawn from processes with and without a change and, with --traces, taken from real nodes and labelled by eye.
The rule of the labels is in stability_cases.py. Nothing is asserted.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries, run_cli, run_interruptible
from model.cli.parser import Parser, whole_number
from model.common.errors import UsageError

with require_libraries("offline"):
    import numpy as np
    from numpy.typing import NDArray

    from misc.benchmarks.stability_cases import Case, draw_cases, labelled_cases
    from model.numerics import FloatArray
    from model.replay.trace import TraceError
    from model.stability import STABILITY_DETECTORS, StabilityDetector


#: Samples of the older slices and of the new one, for slices of an hour: a scrape every 5 minutes, and every 10 s.
_SIZES = ((48, 12), (1440, 360))
_HEADER = f"{'':10} {'precision':>9} {'recall':>7} {'F':>6} {'F changed':>10} {'found stable':>12}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_stability.py", description=__doc__)
    add = parser.add_argument
    add("--cases", type=whole_number(2), default=4000, metavar="N", help="number of drawn cases (default: 4000)")
    add("--seed", type=whole_number(0), default=1, metavar="N", help="seed of the drawn cases (default: 1)")
    add("--traces", type=Path, metavar="FOLDER", help="folder of the traces whose slices were labelled by eye")
    args = parser.parse_args(argv)
    return run_interruptible(lambda: run_cli(parser, lambda: _run(args.cases, args.seed, args.traces)), lambda: 130)


def _run(count: int, seed: int, folder: Path | None) -> int:
    try:
        real = labelled_cases(folder) if folder else []
    except (OSError, TraceError) as error:
        raise UsageError(f"--traces: {error}") from None
    _print_scores("drawn", list(draw_cases(seed, count)))
    if real:
        _print_scores("real, labelled by eye", real)
        # Labels are a matter of opinion where the past slices differ among themselves.
        _print_scores("the same without a restless past", [case for case in real if case.kind != "restless"])
    _print_costs()
    return 0


def _print_scores(title: str, cases: Sequence[Case]) -> None:
    truth = np.array([case.like for case in cases])
    print(f"{title}: {len(cases)} cases, {truth.sum()} of them like their past\n{_HEADER}")
    for name, detector in STABILITY_DETECTORS.items():
        stable = np.array([detector(case.older, case.new) for case in cases])
        precision, recall, f_stable = scores(truth, stable)
        _, _, f_changed = scores(~truth, ~stable)
        print(f"{name:10} {precision:9.2f} {recall:7.2f} {f_stable:6.2f} {f_changed:10.2f} {stable.mean():12.0%}")
    print()


def scores(truth: NDArray[np.bool_], detected: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Precision, recall and F (their harmonic mean); 0 where the denominator is 0."""
    correct = float((truth & detected).sum())
    precision, recall = (correct / total if (total := float(one.sum())) else 0.0 for one in (detected, truth))
    return precision, recall, 2 * precision * recall / (precision + recall) if correct else 0.0


def _print_costs() -> None:
    random = np.random.default_rng(1)
    print("microseconds per call, and as a multiple of the mean predictor")
    for older, new in _SIZES:
        samples = random.random(older), random.random(new)
        costs = {name: _microseconds(detector, *samples) for name, detector in STABILITY_DETECTORS.items()}
        figures = ", ".join(f"{name} {cost:.1f} ({cost / costs['mean']:.2f})" for name, cost in costs.items())
        print(f"  {older} samples and {new}: {figures}")


def _microseconds(detector: StabilityDetector, older: FloatArray, new: FloatArray) -> float:
    """The minimum of several rounds: other load only adds to it."""
    return min(timeit.repeat(lambda: detector(older, new), number=500, repeat=15)) / 500 * 1e6


if __name__ == "__main__":
    sys.exit(main())
