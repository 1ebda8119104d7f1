"""The loop: what is published decides where VMs start; what they use is measured, and decides what is published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from misc.closedloop.published import UNKNOWN, PublishedCpu, read_published
from misc.fakeworkers.hosts import Host, Wanted
from model.numerics import FloatArray
from model.simulation.fleet import Fleet, FleetSize, FleetUsage
from model.simulation.harm import Figures, Harm
from model.simulation.policies import Capacities, FixedRatio, FleetSlice
from model.simulation.scheduler import PlacementScheduler
from model.simulation.simulation import SimulationSettings, simulate
from model.simulation.workload import Workload
from model.slices import CPU, MEMORY

#: As PLACEMENT_MAX_RATIO.
_MOST_RATIO = 16.0

Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class SliceSummary:
    """A slice that ended.

    Attributes
    ----------
    number : int
        From 1 on.
    vms : int
        VMs that run.
    sold, used : float
        vCPUs booked and cores used, per core.
    over : int
        Nodes whose 99th percentile of demand exceeded their cores.
    free : float
        vCPUs that may still be booked on all nodes.
    refused : int
        VMs that found no place in the slice.
    """

    number: int
    vms: int
    sold: float
    used: float
    over: int
    free: float
    refused: int


class ClosedLoop:
    """Starts and stops the VMs of a workload on simulated workers.

    Parameters
    ----------
    workload : Workload
        In real time.
    hosts : sequence of Host
    names : sequence of str
        The nodes as they are named in the status file, in the order of the hosts.
    size : FleetSize
        That of the hosts.
    status_path : Path
    slices, slice_steps, warm_up : int
        Slices of the run; steps of a slice; slices that the figures leave out.
    log : callable
        Receives each event.
    """

    def __init__(
        self,
        workload: Workload,
        hosts: Sequence[Host],
        names: Sequence[str],
        size: FleetSize,
        status_path: Path,
        *,
        slices: int,
        slice_steps: int,
        warm_up: int,
        log: Log,
    ) -> None:
        self.workload, self.size = workload, size
        self.slices, self.slice_steps = slices, slice_steps
        self.published: list[PublishedCpu] = [UNKNOWN] * len(names)
        self._hosts, self._names, self._path, self._log = hosts, names, status_path, log
        self._fleet = Fleet(size, workload)
        self._scheduler = PlacementScheduler(self._fleet)
        self._harm = Harm(size, slices, slice_steps, warm_up)
        self._arrivals = np.searchsorted(workload.first_step, np.arange(slices * slice_steps + 1)).tolist()
        self._capacity: FloatArray = np.zeros(len(names))
        self._running: list[int] = []
        self._cpu: list[FleetUsage] = []
        self._mem: list[FleetUsage] = []

    @property
    def warm_up(self) -> int:
        """Slices that the figures leave out."""
        return self._harm.warm_up

    def read_status(self, now_s: float) -> bool:
        """Read what is published; whether every node may take VMs.

        Raises
        ------
        StatusFileError
        """
        nodes = read_published(self._path)
        capacity = []
        for i, name in enumerate(self._names):
            before, self.published[i] = self.published[i], nodes.get(name, UNKNOWN)
            capacity.append(min(self.published[i].capacity(now_s), _MOST_RATIO * self.size.cores))
            if self.published[i] != before or capacity[i] != self._capacity[i]:
                self._log_published(name, self.published[i], capacity[i])
        self._capacity = np.array(capacity)
        return bool((self._capacity > 0).all())

    def _log_published(self, name: str, one: PublishedCpu, capacity: float) -> None:
        if one is UNKNOWN:
            self._log({"event": "published", "node": name, "state": one.state, "capacity": 0.0})
            return
        figures = {"slice_end": one.slice_end_s, "free": one.free, "booked_now": one.booked_now, "closed": one.closed}
        self._log({"event": "published", "node": name, "state": one.state, **figures, "capacity": capacity})

    def run_step(self, step: int, begin_ms: int, end_ms: int, now_s: float) -> None:
        """Stop the VMs whose time is over, start those that arrive, and let all of them run until the next step.

        Raises
        ------
        StatusFileError
        """
        self._remove_ended(step)
        self.read_status(now_s)
        self._scheduler.set_capacities(self._capacity, None)
        self._scheduler.begin_step()
        for vm in range(self._arrivals[step], self._arrivals[step + 1]):
            self._place(vm, step)
        usage = self._fleet.run_slice(step, 1)
        self._cpu.append(usage[CPU.name])
        self._mem.append(usage[MEMORY.name])
        self._run_hosts(step, begin_ms, end_ms)

    def _remove_ended(self, step: int) -> None:
        ended = [vm for vm in self._running if self.workload.end_step[vm] <= step]
        booked = self._fleet.booked_cpu.copy()
        self._fleet.remove_ended(step)
        for vm in ended:
            node = int(self._fleet.node_of[vm])
            self._running.remove(vm)
            self._hosts[node].remove_vm(vm_name(vm))
            booked[node] -= self.workload.vcpu[vm]
            self._log_vm("stop", vm, step, node, booked[node])

    def _place(self, vm: int, step: int) -> None:
        vcpu, memory_mb = float(self.workload.vcpu[vm]), float(self.workload.memory_mb[vm])
        node = self._scheduler.choose(vcpu, memory_mb)
        if node is None:
            self._log({"event": "refuse", "step": step, "vm": vm_name(vm), "vcpu": vcpu})
            return
        self._fleet.place(vm, node)
        self._scheduler.note_placed(node)
        self._running.append(vm)
        self._hosts[node].add_vm(vm_name(vm), int(vcpu), int(memory_mb * 1024))
        self._log_vm("start", vm, step, node, self._fleet.booked_cpu[node])

    def _log_vm(self, event: str, vm: int, step: int, node: int, booked: float) -> None:
        figures = {"vcpu": float(self.workload.vcpu[vm]), "booked": float(booked)}
        self._log({"event": event, "step": step, "vm": vm_name(vm), "node": self._names[node], **figures})

    def _run_hosts(self, step: int, begin_ms: int, end_ms: int) -> None:
        vms = np.array(self._running, np.intp)
        cores = self.workload.wanted(CPU, vms, step, 1)[:, 0]
        memory = self.workload.mem.at(self.workload.series[vms], self.workload.offset[vms], step, 1)[:, 0]
        wanted: list[dict[str, Wanted]] = [{} for _ in self._hosts]
        for vm, one in zip(self._running, zip(cores.tolist(), memory.tolist(), strict=True), strict=True):
            wanted[int(self._fleet.node_of[vm])][vm_name(vm)] = Wanted(*one)
        for host, of_host in zip(self._hosts, wanted, strict=True):
            host.run_step(begin_ms, end_ms, of_host)

    def end_slice(self, number: int) -> SliceSummary:
        """Count a slice after its last step."""
        end = (number + 1) * self.slice_steps
        fleet, cpu, mem = self._fleet, _joined(self._cpu), _joined(self._mem)
        self._cpu.clear()
        self._mem.clear()
        ended = FleetSlice(number, fleet, fleet.vms, fleet.bounds, fleet.alive(end), cpu, mem)
        self._remove_ended(end)
        arrived = slice(self._arrivals[end - self.slice_steps], self._arrivals[end])
        accepted = fleet.node_of[arrived] >= 0
        self._harm.add_arrivals(number, self.workload.vcpu[arrived], accepted)
        self._harm.add_slice(number, ended, Capacities(self._capacity))
        over = self._harm.over[:, number]
        self._log(
            {"event": "slice", "number": number + 1, "over": [self._names[i] for i in np.flatnonzero(over).tolist()]}
        )
        return SliceSummary(
            number=number + 1,
            vms=len(self._running),
            sold=float(self._harm.sold[:, number].mean()),
            used=float(self._harm.used[:, number].mean()),
            over=int(over.sum()),
            free=float(np.maximum(self._capacity - fleet.booked_cpu, 0.0).sum()),
            refused=int((~accepted).sum()),
        )

    def figures(self) -> Figures:
        """The figures of all slices after the warm-up; ``reported`` is what the status file has."""
        return self._harm.figures()

    def reported(self) -> float:
        """The realised risk in the status file, mean over the nodes that have one; NaN if none has."""
        risks = [one.realised_risk for one in self.published if not math.isnan(one.realised_risk)]
        return float(np.mean(risks)) if risks else math.nan

    def figures_of_ratio(self, ratio: float) -> Figures:
        """The figures of the same arrivals at a fixed ratio, simulated."""
        slice_s = self.slice_steps * self.workload.step_s
        settings = SimulationSettings(self.size, slice_s, most_ratio=math.inf, warm_up_s=self.warm_up * slice_s)
        return simulate(self.workload, FixedRatio(self.size, ratio), settings).figures()


def vm_name(vm: int) -> str:
    """The name of a VM on the pages of the workers."""
    return f"instance-{vm:08x}"


def _joined(steps: Sequence[FleetUsage]) -> FleetUsage:
    """The usage of nodes in successive steps; that of single VMs is left out."""

    def joined(parts: Iterable[FloatArray | None]) -> FloatArray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known, axis=1) if known else None

    demand, node = (
        np.concatenate(parts, axis=1) for parts in zip(*((one.demand, one.node) for one in steps), strict=True)
    )
    served, running = (joined(parts) for parts in zip(*((one.served, one.running) for one in steps), strict=True))
    return FleetUsage(demand, node, np.empty((0, demand.shape[1])), served, running)


def log_to(write: Callable[[str], object]) -> Log:
    """A log of one line of JSON per event."""

    def log(event: Mapping[str, Any]) -> None:
        write(json.dumps(event) + "\n")

    return log
