"""The cost of the hot paths in multiples of work that cannot be avoided, measured in the same run.

The limits are about three times what was measured: they notice an algorithm of another order, not a slower machine. CPU
time counts, so that other processes matter little. ``misc/benchmarks`` measures what the work takes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from misc.benchmarks.bench_replay import FLOOR, run
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.slices import Slice, Usage

ROOT = Path(__file__).resolve().parents[2]
#: Measured: 47, 0.05 and 2.5.
LIMITS = {"slice": 150.0, "page": 0.2, "replay": 8.0}


def least_cpu_s(job: Callable[[int], object], rounds: int, repeats: int = 5) -> float:
    """CPU seconds of some rounds, the least of several repeats; the job gets the number of the round."""
    times, number = [], 0
    for _ in range(repeats):
        start = process_time()
        for _ in range(rounds):
            job(number)
            number += 1
        times.append(process_time() - start)
    return min(times)


def test_end_of_a_slice_costs_a_bounded_multiple_of_sorting_its_samples() -> None:
    """All strategies with guards, 40 VMs: the time must not grow with the past, as a pass over all slices would."""
    draw, names = np.random.default_rng(1), tuple(f"vm-{i:02}" for i in range(40))

    def usage() -> Usage:
        return Usage(64.0, draw.uniform(0, 40, 120), np.full(40, 4.0), draw.uniform(0, 4, (40, 120)))

    slices = [Slice(1800.0 * (k + 1), k % 24, names, usage(), usage()) for k in range(240)]
    model = NodeModel(ModelSettings(3, tuple(STRATEGIES), positions=24, guarded=True))
    for finished in slices[:120]:
        model.update(finished)
    cost = least_cpu_s(lambda i: model.update(slices[120 + i]), 24)

    def floor(i: int) -> None:
        for of in (slices[i].cpu, slices[i].mem):
            np.sort(of.vm_usage, axis=1)
            np.sort(of.node)

    assert cost < LIMITS["slice"] * least_cpu_s(floor, 24)


def test_page_costs_less_than_with_the_parser_of_the_client_library() -> None:
    plan, times_s = Plan(workers=1, vms=40), iter(range(1_800_000_000, 2_000_000_000, 5))
    fakes = FakeWorkers(plan, clock=lambda: next(times_s))
    pages = [fakes.page(0, plan.endpoints[0]) for _ in range(60)]
    reader, rates = VmprobeReader(plan.prefix), NodeRates("http://w")

    def ours(i: int) -> None:
        rates.update(reader.read(pages[i]))

    def library(i: int) -> None:
        for _ in text_string_to_metric_families(pages[i].decode()):
            pass

    assert least_cpu_s(ours, 10) < LIMITS["page"] * least_cpu_s(library, 3) / 3 * 10


def test_replay_costs_a_bounded_multiple_of_decoding_its_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    command = [sys.executable, ROOT / "misc/tracegen.py", trace, "--scopes=200", "--samples=120"]
    subprocess.run([str(word) for word in command], check=True)
    replay = [sys.executable, ROOT / "scroogevm.py", f"--load={trace}", "--strategy=all", f"--output={tmp_path}"]

    def cost_s(words: Sequence[str | Path]) -> float:
        return statistics.median(run(words).cpu_s for _ in range(3))

    assert cost_s(replay) < LIMITS["replay"] * cost_s([sys.executable, "-c", FLOOR, trace])
