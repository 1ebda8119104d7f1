"""Workloads, policies and a plain implementation of the closed loop, for its tests; runs of ``misc/simulate.py``."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from misc import simulate
from model.simulation import report
from model.simulation.policies import Capacities, FleetSlice, Policy
from model.simulation.simulation import SimulationSettings
from model.simulation.workload import SeriesPool, Workload
from tests.support.workers import Finished, run_here

STEP = 300.0
#: Stands for a picture where none is drawn.
NO_PICTURE = b"no picture"


@dataclass(frozen=True)
class Vm:
    """A VM: steps in which it exists, size, and shares of its size that it uses, one per step from step 0 on."""

    first: int
    end: float = math.inf
    vcpu: float = 1.0
    memory_mb: float = 1000.0
    cpu: Sequence[float] = (0.0,)
    mem: Sequence[float] = (0.0,)


def workload_of(vms: Sequence[Vm], steps: int) -> Workload:
    """The workload of some VMs, which are given in the order of their arrival."""
    return Workload(
        step_s=STEP,
        duration_s=steps * STEP,
        names=[f"vm{i}" for i in range(len(vms))],
        create_s=np.array([vm.first * STEP for vm in vms]),
        delete_s=np.array([vm.end * STEP for vm in vms]),
        vcpu=np.array([float(vm.vcpu) for vm in vms]),
        memory_mb=np.array([float(vm.memory_mb) for vm in vms]),
        series=np.arange(len(vms)),
        offset=np.zeros(len(vms), np.intp),
        cpu=SeriesPool([np.array(vm.cpu) for vm in vms]),
        mem=SeriesPool([np.array(vm.mem) for vm in vms]),
    )


class Scripted(Policy):
    """Publishes given capacities, (slices, n) cores and MB, and keeps what it sees."""

    def __init__(self, cpu: Sequence[Sequence[float]], mem: Sequence[Sequence[float]] | None = None) -> None:
        self._cpu, self._mem = cpu, mem
        self.seen: list[FleetSlice] = []
        self.placed: dict[int, int] = {}

    def note_placed(self, vm: int, node: int, step: int) -> None:
        self.placed[vm] = node

    def update(self, ended: FleetSlice) -> Capacities:
        self.seen.append(ended)
        mem = None if self._mem is None else np.array(self._mem[ended.number], float)
        return Capacities(np.array(self._cpu[ended.number], float), mem)


@dataclass
class Expected:
    """The result of the plain implementation."""

    placed: dict[int, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def plain_simulation(  # noqa: PLR0912, PLR0915
    vms: Sequence[Vm],
    steps: int,
    settings: SimulationSettings,
    cpu: Sequence[Sequence[float]],
    mem: Sequence[Sequence[float]] | None,
) -> Expected:
    """The rules of the closed loop, one VM, node and step at a time."""
    size, per_slice = settings.size, round(settings.slice_s / STEP)
    nodes = range(size.nodes)
    capacity, mem_capacity = [size.cores] * size.nodes, [size.memory_mb] * size.nodes
    here: list[list[int]] = [[] for _ in nodes]
    warm_up = round(settings.warm_up_s / settings.slice_s)
    slices = steps // per_slice
    warm_up = min(warm_up, slices - 1)
    result = Expected()
    asked: list[tuple[int, bool]] = []
    sold, hosted, used, over, mem_over, mem_sold = ([] for _ in range(6))  # type: list[Any]
    demands: list[float] = []
    unserved = 0.0
    lacking: list[float] = []  # of each VM in each step, the share of its demand that it does not get

    def share(series: Sequence[float], step: int) -> float:
        return float(np.float32(series[step % len(series)]))

    def left(node: int) -> tuple[float, float]:
        booked = sum(vms[i].vcpu for i in here[node]), sum(vms[i].memory_mb for i in here[node])
        return capacity[node] - booked[0], mem_capacity[node] - booked[1]

    def leave(step: int) -> None:
        for node in nodes:
            here[node] = [i for i in here[node] if vms[i].end > step]

    for number in range(slices):
        demand, mem_demand = [[[0.0] * per_slice for _ in nodes] for _ in range(2)]
        counts: list[tuple[int, int, int]] = []  # node, step of the slice, running VMs
        for k in range(per_slice):
            step = number * per_slice + k
            leave(step)
            for i, vm in enumerate(vms):
                if vm.first != step:
                    continue
                free = {node: left(node) for node in nodes}
                fit = [n for n in nodes if free[n][0] >= vm.vcpu - 1e-6 and free[n][1] >= vm.memory_mb - 1e-6]
                weight = {n: free[n][0] for n in fit}
                if settings.publish_memory:
                    weight = dict.fromkeys(fit, 0.0)
                    for j in (0, 1):
                        low, high = (pick((free[n][j] for n in fit), default=0.0) for pick in (min, max))
                        for n in fit:
                            weight[n] += (free[n][j] - low) / (high - low) if high > low else 0.0
                chosen = None
                for n in fit:
                    if chosen is None or (
                        weight[n] > weight[chosen] if settings.weigher == "spread" else weight[n] < weight[chosen]
                    ):
                        chosen = n
                if number >= warm_up:
                    asked.append((i, chosen is not None))
                if chosen is not None:
                    here[chosen].append(i)
                    result.placed[i] = chosen
            for node in nodes:
                demand[node][k] = 0.5 + 1.01 * sum(vms[i].vcpu * share(vms[i].cpu, step) for i in here[node])
                counts.append((node, k, len(here[node])))
                mem_demand[node][k] = 4096 + sum(128 + vms[i].memory_mb * share(vms[i].mem, step) for i in here[node])
        leave((number + 1) * per_slice)
        if number >= warm_up:
            sold.append([sum(vms[i].vcpu for i in here[n]) / size.cores for n in nodes])
            mem_sold.append([sum(vms[i].memory_mb for i in here[n]) / size.memory_mb for n in nodes])
            hosted.append(sum(map(len, here)))
            used.append([np.mean([min(d, size.cores) for d in demand[n]]) / size.cores for n in nodes])
            over.append([np.percentile(demand[n], 99) > size.cores * (1 + 1e-6) for n in nodes])
            mem_over.append([max(mem_demand[n]) > size.memory_mb * (1 + 1e-6) for n in nodes])
            flat = [d for n in nodes for d in demand[n]]
            demands += flat
            unserved += sum(max(0.0, d - size.cores) for d in flat)
            for node, k, running in counts:
                lacks = 1.0 - min(1.0, (size.cores - 0.5) / max(demand[node][k] - 0.5, 1e-9))
                lacking += [lacks] * running
        capacity = [min(max(c, size.cores), 16 * size.cores) for c in cpu[number]]
        if settings.publish_memory and mem is not None:
            mem_capacity = [min(max(m, size.memory_mb), 16 * size.memory_mb) for m in mem[number]]

    def accepted(weights: Sequence[float]) -> float:
        total = sum(weights[i] for i, _ in asked)
        return sum(weights[i] for i, found in asked if found) / total if total else math.nan

    result.figures = {
        "sold": float(np.mean(sold)),
        "hosted": float(np.mean(hosted)),
        "accepted": accepted([1.0] * len(vms)),
        "accepted_vcpu": accepted([vm.vcpu for vm in vms]),
        "accepted_large": accepted([float(vm.vcpu >= 8) for vm in vms]),
        "used": float(np.mean(used)),
        "over": float(np.mean(over)),
        "worst_node": float(np.mean(over, axis=0).max()),
        "unserved": unserved / sum(demands),
        "p999": float(np.percentile(demands, 99.9)) / size.cores,
        "mem_over": float(np.mean(mem_over)),
        "mem_worst_node": float(np.mean(mem_over, axis=0).max()),
        "mem_sold": float(np.mean(mem_sold)),
        **{
            f"wait_{percent}": float(np.mean([lacks > percent / 100 for lacks in lacking])) if lacking else 0.0
            for percent in (5, 10, 20)
        },
    }
    return result


# --- the command line ---------------------------------------------------------------------------------


def run_simulate(*arguments: str | Path, draw: bool = False) -> Finished:
    """Run the command line in this process; by default without pictures."""

    def prepare(patch: pytest.MonkeyPatch) -> None:
        if not draw:
            patch.setattr(report, "pictures_of", lambda result: {"front": NO_PICTURE})

    return run_here(simulate, arguments, prepare)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))
