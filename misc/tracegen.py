#!/usr/bin/env python3
"""Generates the trace of a simulated node: the same command writes the same file.

Sizes, levels and courses of usage of the VMs are drawn from a seed. The node uses the sum of its VMs and a small
overhead, capped at its capacity.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.cli.main import require_libraries
from model.cli.parser import Parser, number, whole_number

with require_libraries("offline"):
    import msgspec
    import numpy as np

    from model.common.atomic_files import staged
    from model.numerics import FloatArray


MIXES = {
    "increasing": "VMs arrive one after another, from a quarter of them to all",
    "decreasing": "VMs leave one after another, from all of them to a quarter",
    "steady": "usage varies little around a level of each VM",
    "diurnal": "usage follows the day, most VMs in office hours",
    "bursty": "low usage with bursts of a few minutes, up to all that the VM has",
}

#: vCPUs of a VM and how many VMs in a hundred have them, similar to public traces of clouds.
_SIZES = ((1, 30), (2, 35), (4, 20), (8, 12), (16, 3))
_MEMORY_PER_VCPU_MB = (1024, 2048, 4096)
_NODE_OVERHEAD_CORES = 0.5
_NODE_OVERHEAD_MB = 2048.0
_VM_OVERHEAD_MB = 64.0
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of the command line; times in seconds, memory in MB."""

    mix: str
    seed: int
    vms: int
    cores: float
    memory_mb: float
    scopes: int
    scope_s: int
    slice_s: int
    samples: int
    historical: int
    start: int
    arrivals: int
    departures: int
    extra_fields: int
    node_name: str

    @property
    def slices(self) -> int:
        """Number of slices of the trace."""
        return self.scopes * (self.scope_s // self.slice_s)


@dataclass(frozen=True, slots=True)
class _Vm:
    """A VM and its slices: from ``first`` up to, but not including, ``last``."""

    name: str
    vcpus: int
    memory_mb: int
    first: int
    last: int


def generate(plan: Plan) -> Iterator[bytes]:
    """Generate the trace as pieces of JSON text, one VM at a time, to limit the memory of large traces.

    Raises
    ------
    ValueError
        If options contradict each other.
    """
    _check(plan)
    root = np.random.SeedSequence(plan.seed)
    fleet_seed, *vm_seeds = root.spawn(plan.vms + 1)
    fleet = _fleet(plan, np.random.default_rng(fleet_seed))
    node_cpu = np.full((plan.slices, plan.samples), _NODE_OVERHEAD_CORES)
    node_mem = np.full((plan.slices, plan.samples), _NODE_OVERHEAD_MB)
    time = _times(plan)

    yield b'{"vm":{'
    for i, (vm, seed) in enumerate(zip(fleet, vm_seeds, strict=True)):
        random = np.random.default_rng(seed)
        cpu = np.round(_cpu_usage(plan, vm, time, random), 3)
        mem = np.round(_memory_usage(plan, vm, random), 1)
        stay = slice(vm.first, vm.last)
        node_cpu[stay] += 1.01 * cpu[stay]
        node_mem[stay] += mem[stay] + _VM_OVERHEAD_MB
        raw_data = [
            {
                **_lists(time[k], vm.vcpus, vm.memory_mb, cpu[k], mem[k]),
                "mem_rss": np.round(mem[k] * 1.05, 1).tolist(),
                **_extra(plan, random),
            }
            if vm.first <= k < vm.last
            else {}
            for k in range(plan.slices)
        ]
        yield (b"," if i else b"") + msgspec.json.encode(vm.name) + b":" + msgspec.json.encode({"raw_data": raw_data})

    node_cpu = np.round(np.minimum(node_cpu, plan.cores), 3)
    node_mem = np.round(np.minimum(node_mem, plan.memory_mb), 1)
    node = [
        {
            **_lists(time[k], plan.cores, plan.memory_mb, node_cpu[k], node_mem[k]),
            "vm": [vm.name for vm in fleet if vm.first <= k < vm.last],
        }
        for k in range(plan.slices)
    ]
    config = {
        "node_name": plan.node_name,
        "node_scope": plan.scope_s,
        "slice_scope": plan.slice_s,
        "historical_occurences": plan.historical,
    }
    epoch = [plan.start + (k + 1) * plan.slice_s for k in range(plan.slices)]
    rest = {"node": {"raw_data": node}, "epoch": epoch, "config": config}
    yield b"}," + msgspec.json.encode(rest)[1:]


def _check(plan: Plan) -> None:
    if plan.scope_s % plan.slice_s:
        raise ValueError(f"--scope-s: {plan.scope_s} is not a multiple of --slice-s, {plan.slice_s}")
    if plan.start % plan.scope_s:
        raise ValueError(f"--start: {plan.start} is not a multiple of --scope-s, {plan.scope_s}")
    if plan.arrivals + plan.departures > plan.vms:
        raise ValueError("--arrivals and --departures: more than --vms in total")


def _times(plan: Plan) -> FloatArray:
    step = plan.slice_s / plan.samples
    offsets = np.arange(plan.slices)[:, None] * plan.slice_s + (np.arange(plan.samples) + 1) * step
    return np.round(plan.start + offsets, 3)


def _fleet(plan: Plan, random: np.random.Generator) -> list[_Vm]:
    vcpus = [vcpus for vcpus, share in _SIZES for _ in range(share)]
    sizes = random.choice(vcpus, size=plan.vms)
    memory = sizes * random.choice(_MEMORY_PER_VCPU_MB, size=plan.vms)
    first, last = _stays(plan, random)
    width = len(str(plan.vms - 1)) if plan.vms else 1
    return [
        _Vm(f"vm{i:0{width}d}", int(sizes[i]), int(memory[i]), int(first[i]), int(last[i])) for i in range(plan.vms)
    ]


def _stays(plan: Plan, random: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
    """The first slice of each VM, and the one after its last."""
    first, last = np.zeros(plan.vms, dtype=int), np.full(plan.vms, plan.slices)
    order = random.permutation(plan.vms)
    moving = order[plan.vms // 4 :]
    # In the middle of the trace; start and end are without changes.
    moments = np.linspace(0.1, 0.9, moving.size) * plan.slices
    if plan.mix == "increasing":
        first[moving] = np.clip(moments.astype(int), min(1, plan.slices - 1), None)
    elif plan.mix == "decreasing":
        last[moving] = np.clip(moments.astype(int) + 1, 1, max(plan.slices - 1, 1))
    coming, going = order[: plan.arrivals], order[plan.arrivals : plan.arrivals + plan.departures]
    if plan.slices > 1:
        first[coming] = np.maximum(first[coming], random.integers(1, plan.slices, size=coming.size))
        last[going] = np.minimum(last[going], random.integers(1, plan.slices, size=going.size))
    return first.tolist(), np.maximum(last, first + 1).tolist()


def _cpu_usage(plan: Plan, vm: _Vm, time: FloatArray, random: np.random.Generator) -> FloatArray:
    """(slices, samples) float64: cores used."""
    level = random.beta(2, 6)
    noise = _autoregressive(random, time.size, coefficient=0.95) * 0.25
    if plan.mix == "diurnal":
        hour = (time.ravel() % _DAY_S) / _DAY_S * 24
        peak = random.normal(14, 1.5) if random.random() < 0.8 else random.uniform(0, 24)
        shape = 0.35 + 1.3 * np.exp(2.5 * (np.cos((hour - peak) * np.pi / 12) - 1))
    elif plan.mix == "bursty":
        shape = 0.4 + _bursts(random, time.size, plan) * random.uniform(1, 4)
    else:
        shape = np.ones(time.size)
    share = np.clip(level * shape * np.exp(noise), 0.002, 1.0)
    return (share * vm.vcpus).reshape(time.shape)


def _bursts(random: np.random.Generator, size: int, plan: Plan) -> FloatArray:
    """On for about five minutes, off for about an hour."""
    step = plan.slice_s / plan.samples
    bursting = np.zeros(size)
    at = 0.0
    while at < size:
        at += 1 + random.exponential(3600 / step)
        length = 1 + random.exponential(300 / step)
        bursting[int(at) : int(at + length) + 1] = random.uniform(0.5, 1.5)
        at += length
    return bursting


def _memory_usage(plan: Plan, vm: _Vm, random: np.random.Generator) -> FloatArray:
    """(slices, samples) float64: MB used; memory changes slowly."""
    series = _autoregressive(random, plan.slices * plan.samples, coefficient=0.999) * 0.12
    share = np.clip(random.beta(4, 4) * np.exp(series), 0.05, 0.97)
    return (share * vm.memory_mb).reshape(plan.slices, plan.samples)


def _autoregressive(random: np.random.Generator, size: int, coefficient: float) -> FloatArray:
    """A first-order autoregressive series of variance 1."""
    steps = random.normal(0, np.sqrt(1 - coefficient**2), size)
    value, series = random.normal(), np.empty(size)
    for i, step in enumerate(steps.tolist()):
        value = coefficient * value + step
        series[i] = value
    return series


def _lists(time: FloatArray, cpu: float, mem: float, cpu_usage: FloatArray, mem_usage: FloatArray) -> dict[str, Any]:
    return {
        "time": time.tolist(),
        "cpu": [float(cpu)] * time.size,
        "mem": [float(mem)] * time.size,
        "cpu_usage": cpu_usage.tolist(),
        "mem_usage": mem_usage.tolist(),
    }


def _extra(plan: Plan, random: np.random.Generator) -> dict[str, Any]:
    """Further metrics, like those in the trace of a live node that no strategy reads."""
    if not plan.extra_fields:
        return {}
    values = random.gamma(2, 500, (plan.extra_fields, plan.samples)).round(4)
    return {f"metric_{i:02d}": row.tolist() for i, row in enumerate(values)}


def build_parser() -> Parser:
    """Build the parser of the command line."""
    mixes = "\n".join(f"  {name:12} {meaning}" for name, meaning in MIXES.items())
    parser = Parser(prog="tracegen.py", description=__doc__, epilog=f"mixes:\n{mixes}")
    parser.add_argument("output", help="the trace to write")
    parser.add_argument("--mix", choices=tuple(MIXES), default="steady", help="course of the load (default: steady)")
    for flag, kind, default, meaning in (
        ("--seed", whole_number(0), 1, "seed of the random numbers"),
        ("--vms", whole_number(0), 40, "number of VMs"),
        ("--cores", number(0.001, 1e12), 256.0, "cores of the node"),
        ("--memory-mb", number(0.001, 1e12), 1048576.0, "memory of the node, MB of 2^20 bytes"),
        ("--scopes", whole_number(1), 30, "number of scopes"),
        ("--scope-s", whole_number(1), 1800, "length of a scope, seconds"),
        ("--slice-s", whole_number(1), 1800, "length of a slice, seconds"),
        ("--samples", whole_number(1), 60, "samples in a slice"),
        ("--historical", whole_number(0), 3, "earlier scopes in the window"),
        ("--start", whole_number(0), 1704067200, "start, Unix seconds, a multiple of the scope"),
        ("--arrivals", whole_number(0), 0, "further VMs that arrive at a random slice"),
        ("--departures", whole_number(0), 0, "further VMs that leave at a random slice"),
        (
            "--extra-fields",
            whole_number(0),
            0,
            "further lists in each slice of a VM, for a file as large as that of a live node",
        ),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--node-name", default="http://node.example:9100/metrics", help="name of the node")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the trace; returns the exit code."""
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    output = Path(args.pop("output"))
    plan = Plan(**args)
    try:
        with staged() as files:
            files.write_pieces(output, generate(plan))
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{output}: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
