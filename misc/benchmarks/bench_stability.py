#!/usr/bin/env python3
"""Measures the judges of stability: how often each is right about slices whose truth is known, and what a call costs.

Cases are drawn from processes that change or don't and, with --traces, taken from real nodes and labelled by eye. By
which rule, stability_cases.py says. Nothing is asserted.
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

    from misc.benchmarks.stability_cases import Case, drawn, labelled
    from model.numerics import FloatArray
    from model.replay.trace import TraceError
    from model.stability import STABILITY_DETECTORS, StabilityDetector


#: Samples of the older slices and of the new one: a scrape every 5 minutes, and one every 10 s, in an hour.
_SIZES = ((48, 12), (1440, 360))
_HEADER = f"{'':10} {'precision':>9} {'recall':>7} {'F':>6} {'F changed':>10} {'said stable':>12}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_stability.py", description=__doc__)
    add = parser.add_argument
    add("--cases", type=whole_number(2), default=4000, metavar="N", help="how many are drawn (default: 4000)")
    add("--seed", type=whole_number(0), default=1, metavar="N", help="another seed, other cases (default: 1)")
    add("--traces", type=Path, metavar="FOLDER", help="where the traces are whose slices were labelled by eye")
    args = parser.parse_args(argv)
    return run_interruptible(lambda: run_cli(parser, lambda: _run(args.cases, args.seed, args.traces)), lambda: 130)


def _run(count: int, seed: int, folder: Path | None) -> int:
    try:
        real = labelled(folder) if folder else []
    except (OSError, TraceError) as error:
        raise UsageError(f"--traces: {error}") from None
    _table("drawn", list(drawn(seed, count)))
    if real:
        _table("real, labelled by eye", real)
        # Whether a slice is like a past that is unlike itself is a matter of opinion: they are told apart.
        _table("the same without those whose past is restless", [case for case in real if case.kind != "restless"])
    _costs()
    return 0


def _table(title: str, cases: Sequence[Case]) -> None:
    truth = np.array([case.like for case in cases])
    print(f"{title}: {len(cases)} cases, {truth.sum()} of them like their past\n{_HEADER}")
    for name, detector in STABILITY_DETECTORS.items():
        said = np.array([detector(case.older, case.new) for case in cases])
        precision, recall, f_stable = scores(truth, said)
        _, _, f_changed = scores(~truth, ~said)
        print(f"{name:10} {precision:9.2f} {recall:7.2f} {f_stable:6.2f} {f_changed:10.2f} {said.mean():12.0%}")
    print()


def scores(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Precision, recall and F (their harmonic mean) of what was said; 0 where there is nothing to divide by."""
    right = float((truth & said).sum())
    precision, recall = (right / total if (total := float(one.sum())) else 0.0 for one in (said, truth))
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0


def _costs() -> None:
    draw = np.random.default_rng(1)
    print("microseconds a call, and in times of the mean predictor")
    for older, new in _SIZES:
        samples = draw.random(older), draw.random(new)
        took = {name: _microseconds(detector, *samples) for name, detector in STABILITY_DETECTORS.items()}
        told = ", ".join(f"{name} {one:.1f} ({one / took['mean']:.2f})" for name, one in took.items())
        print(f"  {older} samples and {new}: {told}")


def _microseconds(detector: StabilityDetector, older: FloatArray, new: FloatArray) -> float:
    """The least of several rounds: what else the machine does only adds."""
    return min(timeit.repeat(lambda: detector(older, new), number=500, repeat=15)) / 500 * 1e6


if __name__ == "__main__":
    sys.exit(main())
