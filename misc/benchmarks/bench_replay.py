#!/usr/bin/env python3
"""Measures the replay of a large trace with all strategies, and compares it with the minimum cost of reading the trace.

The floor is a process that reads the file and decodes the fields that the strategies need with msgspec. Whole processes
are timed, including their start, in alternation with those they are compared with; figures are medians. Nothing is
asserted.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.parser import Parser, whole_number

FLOOR = """
import sys
import msgspec

class Period(msgspec.Struct):
    time: list[float] = []
    cpu: list[float] = []
    mem: list[float] = []
    cpu_usage: list[float] = []
    mem_usage: list[float] = []

class NodePeriod(Period):
    vm: list[str] = []

class Node(msgspec.Struct):
    raw_data: list[NodePeriod]

class Vm(msgspec.Struct):
    raw_data: list[Period]

class Trace(msgspec.Struct):
    config: dict
    epoch: list[float]
    node: Node
    vm: dict[str, Vm]

with open(sys.argv[1], "rb") as file:
    trace = msgspec.json.decode(file.read(), type=Trace)
"""

#: CPU seconds of the original for such a trace: one earlier measurement on a machine of this kind.
ORIGINAL_SIMPLE_STRATEGY_S = 32.0
ORIGINAL_FIVE_STRATEGIES_S = 600.0


PROGRAM: tuple[str | Path, ...] = (sys.executable, ROOT / "scroogevm.py")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a process: CPU and wall seconds, and its peak of resident memory, MB."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run(command: Sequence[str | Path]) -> Cost:
    """Run a command and measure it.

    Raises
    ------
    subprocess.CalledProcessError
        When it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def median_of(costs: Sequence[Cost]) -> Cost:
    """The medians of each figure."""
    columns = ((cost.cpu_s, cost.wall_s, cost.peak_mb) for cost in costs)
    return Cost(*(statistics.median(column) for column in zip(*columns, strict=True)))


def alternate(commands: Sequence[Sequence[str | Path]], rounds: int) -> list[Cost]:
    """The median cost of each command, in alternating rounds after one warm-up round."""
    costs: list[list[Cost]] = [[] for _ in commands]
    for i in range(rounds + 1):
        for command_costs, command in zip(costs, commands, strict=True):
            cost = run(command)
            if i:
                command_costs.append(cost)
    return [median_of(command_costs) for command_costs in costs]


def print_cost(name: str, cost: Cost, floor: Cost | None = None) -> None:
    """Print one line, with ratios to the floor if given."""
    line = f"{name:44} {cost.cpu_s:8.3f} s CPU {cost.wall_s:8.3f} s wall {cost.peak_mb:7.0f} MB"
    if floor is not None:
        line += f"   x{cost.cpu_s / floor.cpu_s:.2f} CPU, x{cost.peak_mb / floor.peak_mb:.2f} memory"
    print(line, flush=True)


def generate(path: Path, *, vms: int, samples: int, scopes: int, fields: int) -> None:
    """Write a trace of a given size; every trace has six of the fields."""
    options = {"vms": vms, "samples": samples, "scopes": scopes, "extra-fields": max(fields - 6, 0)}
    flags = [f"--{key}={value}" for key, value in options.items()]
    run([sys.executable, ROOT / "misc" / "tracegen.py", *flags, path])


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_replay.py", description=__doc__)
    for flag, default in (("--vms", 120), ("--samples", 360), ("--scopes", 30), ("--fields", 30), ("--rounds", 5)):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"(default: {default})")
    args = parser.parse_args(argv)
    size = {"scopes": args.scopes, "fields": args.fields}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace.json"
        generate(trace, vms=args.vms, samples=args.samples, **size)
        print(
            f"{trace.stat().st_size / 1e6:.0f} MB: {args.scopes} scopes x {args.samples} samples x {args.vms} VMs x "
            f"{args.fields} fields; medians of {args.rounds}"
        )
        floor_code = folder / "floor.py"
        floor_code.write_text(FLOOR)
        everything = [*PROGRAM, f"--load={trace}", "--strategy=all", f"--output={folder / 'out'}"]
        floor, replayed, one = alternate(
            [[sys.executable, floor_code, trace], everything, [*everything, "--strategy=percentile"]], args.rounds
        )
        print_cost("floor: decode the required fields", floor)
        print_cost("replay, all strategies, dumps written", replayed, floor)
        print_cost("replay, one strategy", one, floor)
        print(
            f"the original: {ORIGINAL_SIMPLE_STRATEGY_S:.0f} s for a simple strategy, "
            f"x{ORIGINAL_SIMPLE_STRATEGY_S / one.cpu_s:.0f}; {ORIGINAL_FIVE_STRATEGIES_S:.0f} s for its five, "
            f"x{ORIGINAL_FIVE_STRATEGIES_S / replayed.cpu_s:.0f}\n"
        )
        _print_growth(folder, (args.vms, args.samples), size, args.rounds)
        helped, numpy = alternate([[*PROGRAM, "-h"], [sys.executable, "-c", "import numpy"]], args.rounds)
        print_cost("python -c 'import numpy'", numpy)
        print_cost("scroogevm.py -h", helped, numpy)
    print(f"\npeak memory of the benchmark itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


def _print_growth(folder: Path, largest: tuple[int, int], size: dict[str, int], rounds: int) -> None:
    """Double the VMs twice, then the samples: at linear cost the second doubling adds twice as much as the first."""
    vms, samples = largest
    for dimension, sizes in (
        ("VMs", [(vms // 4, samples), (vms // 2, samples), (vms, samples)]),
        ("samples", [(vms, samples // 4), (vms, samples // 2), (vms, samples)]),
    ):
        commands = []
        for vm_count, sample_count in sizes:
            path = folder / f"{vm_count}-{sample_count}.json"
            generate(path, vms=vm_count, samples=sample_count, **size)
            commands.append([*PROGRAM, f"--load={path}", f"--output={folder / 'out'}"])
        costs = alternate(commands, min(rounds, 3))
        for (vm_count, sample_count), cost in zip(sizes, costs, strict=True):
            print_cost(f"{vm_count} VMs x {sample_count} samples", cost)
        rise = (costs[2].cpu_s - costs[1].cpu_s) / max(costs[1].cpu_s - costs[0].cpu_s, 1e-9)
        print(
            f"twice the {dimension}: the second doubling added x{rise:.2f} what the first did (linear: x2)\n",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
