#!/usr/bin/env python3
"""Measures replays with all strategies, and compares them with the minimum cost of reading the trace.

The floor is a process that reads the file and decodes the lists that a replay decodes with msgspec: the usage and the
configuration of node and VMs, and the times of the node, which the VMs share. Whole processes are timed, including
their start, in alternation with those they are compared with, with compiled modules as in an installation; figures are
medians, CPU seconds first, for wall seconds depend on what else runs. A large synthetic trace is replayed, and the
traces that are named, such as recorded ones of a week and of a month. Nothing is asserted.
"""

from __future__ import annotations

import os
import resource
import shutil
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
    cpu: list[float] = []
    mem: list[float] = []
    cpu_usage: list[float] = []
    mem_usage: list[float] = []

class NodePeriod(Period):
    time: list[float] = []
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

PROGRAM: tuple[str | Path, ...] = (sys.executable, ROOT / "scroogevm.py")
EVALUATE: tuple[str | Path, ...] = (sys.executable, ROOT / "misc" / "evaluate.py")
#: Runs a script without the results of the round before in the folder that is named first.
FRESH = """
import os, shutil, sys
shutil.rmtree(sys.argv[1], ignore_errors=True)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
#: Traces of a short and of a long evaluation, whose difference is the cost of further ones.
FEW, MANY = 2, 6


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a process: CPU and wall seconds, and its peak of resident memory, MB."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run(command: Sequence[str | Path]) -> Cost:
    """Run a command and measure it and its children.

    Raises
    ------
    subprocess.CalledProcessError
        When it fails.
    """
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, env=environment)
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
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE.json", help="recorded traces to replay as well")
    for flag, default in (("--vms", 120), ("--samples", 120), ("--scopes", 30), ("--fields", 30), ("--rounds", 5)):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"(default: {default})")
    args = parser.parse_args(argv)
    size = {"scopes": args.scopes, "fields": args.fields}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not into the checkout; the warm-up round compiles.
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        (folder / "floor.py").write_text(FLOOR)
        trace = folder / "trace.json"
        generate(trace, vms=args.vms, samples=args.samples, **size)
        print(f"{args.scopes} scopes x {args.samples} samples x {args.vms} VMs x {args.fields} fields:")
        for path in (trace, *args.traces):
            _print_replays(folder, path, args.rounds)
        _print_growth(folder, (args.vms, args.samples), size, args.rounds)
        _print_evaluation(folder, args.rounds)
        helped, numpy = alternate([[*PROGRAM, "-h"], [sys.executable, "-c", "import numpy"]], args.rounds)
        print_cost("python -c 'import numpy'", numpy)
        print_cost("scroogevm.py -h", helped, numpy)
    print(f"\npeak memory of the benchmark itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


def _print_replays(folder: Path, trace: Path, rounds: int) -> None:
    """The costs of one trace, and the sizes of its dumps."""
    print(f"{trace.stem}, {trace.stat().st_size / 1e6:.1f} MB, medians of {rounds}")
    compared = [*PROGRAM, f"--load={trace}", "--strategy=all"]
    commands: dict[str, list[str | Path]] = {
        "floor: decode the required fields": [sys.executable, folder / "floor.py", trace],
        "all strategies, a dump each": [*compared, f"--output={folder / 'out'}"],
        "all strategies, one compact dump": [*compared, f"--output={folder / 'compact'}", "--compact"],
        "all strategies, compact dump and report": [
            *compared,
            f"--output={folder / 'compact'}",
            "--compact",
            "--report",
        ],
        "all strategies, without dumps": compared,
        "two strategies, without dumps, as JSON": [*PROGRAM, f"--load={trace}", "--strategy=percentile,clt", "--json"],
    }
    costs = alternate(list(commands.values()), rounds)
    for name, cost in zip(commands, costs, strict=True):
        print_cost(name, cost, costs[0])
    for name in ("out", "compact"):
        sizes = [path.stat().st_size for path in (folder / name).glob("dump-*.json")]
        print(f"{'dumps' if name == 'out' else 'compact dump':44} {sum(sizes) / 1e6:8.1f} MB in {len(sizes)} files")
    print(flush=True)


def _print_evaluation(folder: Path, rounds: int) -> None:
    """What a further trace costs in an evaluation, without and with pictures."""
    generate(folder / "small.json", vms=60, samples=24, scopes=40, fields=6)
    for flag in ("--no-pictures", "--pictures"):
        commands: list[list[str | Path]] = []
        for count in (FEW, MANY):
            traces = folder / f"traces-{count}"
            traces.mkdir(exist_ok=True)
            for i in range(count):
                if not (traces / f"{i}.json").exists():
                    shutil.copy(folder / "small.json", traces / f"{i}.json")
            output = folder / f"results-{count}{flag}"
            commands.append([sys.executable, "-c", FRESH, output, *EVALUATE[1:], traces, f"--output={output}", flag])
        few, many = alternate(commands, rounds)
        print_cost(f"evaluate.py {flag}, {MANY} traces", many)
        print(f"{'per further trace':44} {(many.cpu_s - few.cpu_s) / (MANY - FEW):8.3f} s CPU\n", flush=True)


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
        costs = alternate(commands, rounds)
        for (vm_count, sample_count), cost in zip(sizes, costs, strict=True):
            print_cost(f"{vm_count} VMs x {sample_count} samples", cost)
        rise = (costs[2].cpu_s - costs[1].cpu_s) / max(costs[1].cpu_s - costs[0].cpu_s, 1e-9)
        print(
            f"twice the {dimension}: the second doubling added x{rise:.2f} what the first did (linear: x2)\n",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
