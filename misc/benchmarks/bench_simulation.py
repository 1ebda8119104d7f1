#!/usr/bin/env python3
"""Measures the closed loop: CPU seconds of a run per policy, compared with a fixed ratio, which is the floor.

The workload is drawn of generated VMs, or of traces that are named. A fixed ratio costs arrivals, placement, usage of
the VMs and figures; what a strategy costs more is its own. Policies are timed in alternation; figures are medians.
Nothing is asserted.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# As the command lines do: a thread per core for small matrices would count as CPU time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from model.cli.parser import Parser, list_of, name_in, number, whole_number
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.trace import read_trace
from model.simulation.draw import DrawSettings, SampledVm, draw_workload
from model.simulation.fleet import FleetSize
from model.simulation.policies import FixedRatio, Oracle, Policy, StrategyPolicy
from model.simulation.simulation import SimulationSettings, simulate
from model.simulation.trace_workload import sampled_vms
from model.simulation.workload import Workload

STEP_S, DAY = 300.0, 288
_RATIO = 4.0


def generated_vms(count: int, days: int) -> list[SampledVm]:
    """VMs that use a tenth of their size on average, with a course over the day and short peaks."""
    rng = np.random.default_rng(1)
    clock = np.arange(days * DAY)
    vms = []
    for size in rng.choice([1.0, 2.0, 4.0, 8.0, 16.0], count, p=[0.35, 0.25, 0.2, 0.15, 0.05]):
        level, phase = rng.lognormal(np.log(0.06), 1.0), rng.random()
        course = level * (1 + 0.6 * np.sin(2 * np.pi * (clock / DAY + phase))) * rng.lognormal(0.0, 0.5, clock.size)
        peaks = np.where(rng.random(clock.size) < 0.01, rng.random(clock.size), 0.0)
        cpu = np.clip(course + peaks, 0.0, 1.0).astype(np.float32)
        mem = np.full(clock.size, rng.uniform(0.2, 0.9), np.float32)
        vms.append(SampledVm(float(size), float(size * 4096), cpu, mem))
    return vms


def policies_of(
    workload: Workload, settings: SimulationSettings, strategies: list[str]
) -> dict[str, Callable[[], Policy]]:
    """The policies by name; each call gives a new one."""
    size = settings.size
    result: dict[str, Callable[[], Policy]] = {
        f"ratio {_RATIO:g} (floor)": lambda: FixedRatio(size, _RATIO),
        "oracle": lambda: Oracle(size, workload),
    }
    for strategy in strategies:
        for guarded in (False, True):
            model = ModelSettings(3, (strategy,), positions=24, guarded=guarded)
            result[f"{strategy}{', guards' if guarded else ''}"] = lambda model=model: StrategyPolicy(  # type: ignore[misc]
                workload, size, model, settings.slice_s, publish_memory=settings.publish_memory
            )
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_simulation.py", description=__doc__)
    add = parser.add_argument
    add("traces", nargs="*", metavar="TRACE", help="traces whose VMs are used instead of generated ones")
    add(
        "--strategy",
        type=list_of(name_in((*STRATEGIES, "all"))),
        default=["conformal", "nsigma"],
        metavar="NAME[,NAME...]|all",
        help="(default: conformal,nsigma)",
    )
    for flag, default in (("--nodes", 20), ("--days", 14), ("--vms", 900), ("--rounds", 3)):
        add(flag, type=whole_number(1), default=default, metavar="N", help=f"(default: {default})")
    add("--per-node-hour", type=number(0.001), default=6.0, metavar="N", help="VMs that arrive (default: 6)")
    add("--memory", action="store_true", help="publish memory, too")
    args = parser.parse_args(argv)
    vms = sampled_vms([read_trace(path) for path in args.traces]) if args.traces else generated_vms(args.vms, 28)
    draw = DrawSettings(nodes=args.nodes, days=args.days, per_node_hour=args.per_node_hour)
    settings = SimulationSettings(FleetSize(args.nodes), publish_memory=args.memory)
    begun = time.process_time()
    workload = draw_workload(vms, STEP_S, draw, 1)
    print(
        f"{args.nodes} nodes, {args.days} days, {len(workload)} arrivals of {len(vms)} VMs; drawn in "
        f"{time.process_time() - begun:.2f} s CPU; medians of {args.rounds}",
        flush=True,
    )
    strategies = list(STRATEGIES) if "all" in args.strategy else args.strategy
    policies = policies_of(workload, settings, strategies)
    costs: dict[str, list[float]] = {name: [] for name in policies}
    sold = {}
    for _ in range(args.rounds):
        for name, policy in policies.items():
            begun = time.process_time()
            figures = simulate(workload, policy(), settings).figures()
            costs[name].append(time.process_time() - begun)
            sold[name] = figures
    floor = statistics.median(next(iter(costs.values())))
    for name, own in costs.items():
        cost, figures = statistics.median(own), sold[name]
        print(
            f"{name:24} {cost:7.2f} s CPU   x{cost / floor:5.2f}   {figures.hosted:6.0f} VMs   "
            f"sold {figures.sold:5.2f} at {figures.over:.2%} over"
        )
    print(f"\npeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
