"""Equal nodes, the VMs on them, and what these want and get in a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from ..slices import CPU, MEMORY, Resource
from .workload import IntArray, Workload

#: What the host itself uses: cores, a share of what its VMs use, MB, and MB per VM.
HOST_CORES, HOST_CPU_SHARE = 0.5, 0.01
HOST_MB, HOST_MB_PER_VM = 4096.0, 128.0


#: Rows of VMs that do not exist in some steps, and these steps.
_Absence = tuple[IntArray, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class FleetSize:
    """Number and size of the nodes."""

    nodes: int = 20
    cores: float = 64.0
    memory_mb: float = 4.0e6

    def capacity(self, resource: Resource) -> float:
        """Cores or MB of one node."""
        return self.cores if resource is CPU else self.memory_mb


@dataclass(frozen=True, slots=True)
class FleetUsage:
    """One resource of all nodes in a slice, cores or MB.

    Attributes
    ----------
    demand : (n, m) float64
        What the VMs and the host want, by node and step.
    node : (n, m) float64
        What is measured: at most what the node has.
    vm : (v, m) float64
        What is measured of each VM; NaN in steps without it. The VMs of a full node are slowed alike.
    served : (n, m) float64 or None
        The share of their demand that the VMs of each node get; None for memory, for which nobody waits.
    running : (n, m) float64 or None
        Number of VMs; None where it is not counted.
    """

    demand: FloatArray
    node: FloatArray
    vm: FloatArray
    served: FloatArray | None = None
    running: FloatArray | None = None


class Fleet:
    """The VMs on the nodes of a fleet, and what is booked there.

    Parameters
    ----------
    size : FleetSize
    workload : Workload
    """

    def __init__(self, size: FleetSize, workload: Workload) -> None:
        self.size = size
        self.workload = workload
        self.booked_cpu = np.zeros(size.nodes)
        self.booked_mem = np.zeros(size.nodes)
        self.hosted = np.zeros(size.nodes, np.intp)
        self.node_of: IntArray = np.full(len(workload), -1, np.intp)
        #: VMs that ran in the present slice, by node, then by arrival; row bounds of each node, (n + 1,).
        self.vms: IntArray = np.empty(0, np.intp)
        self.bounds: IntArray = np.zeros(size.nodes + 1, np.intp)
        self._placed: list[int] = []
        self._ends: dict[int, list[int]] = {}

    def place(self, vm: int, node: int) -> None:
        """Start a VM on a node."""
        workload = self.workload
        self.node_of[vm] = node
        self.booked_cpu[node] += workload.vcpu[vm]
        self.booked_mem[node] += workload.memory_mb[vm]
        self.hosted[node] += 1
        self._placed.append(vm)
        self._ends.setdefault(int(workload.end_step[vm]), []).append(vm)

    def remove_ended(self, step: int) -> None:
        """Remove the VMs whose last step was the one before."""
        for vm in self._ends.pop(step, ()):
            node = self.node_of[vm]
            self.booked_cpu[node] -= self.workload.vcpu[vm]
            self.booked_mem[node] -= self.workload.memory_mb[vm]
            self.hosted[node] -= 1

    def run_slice(self, first: int, steps: int) -> dict[str, FleetUsage]:
        """Usage in a slice, by resource name, once its VMs are placed; afterwards the ended VMs are still listed."""
        vms = np.concatenate([self.vms[self.workload.end_step[self.vms] > first], np.array(self._placed, np.intp)])
        self._placed.clear()
        # Arrivals have ascending numbers, so a stable sort by node keeps them in order.
        vms = np.sort(vms)
        self.vms = vms[np.argsort(self.node_of[vms], kind="stable")]
        self.bounds = np.searchsorted(self.node_of[self.vms], np.arange(self.size.nodes + 1))
        absence = self.workload.absence(self.vms, first, steps)
        return {CPU.name: self._cpu(first, steps, absence), MEMORY.name: self._memory(first, steps, absence)}

    def alive(self, step: int) -> NDArray[np.bool_]:
        """(v,) bool: which of ``vms`` exist at the begin of a step."""
        return self.workload.end_step[self.vms] > step

    def _cpu(self, first: int, steps: int, absence: _Absence) -> FleetUsage:
        cores = self.size.cores
        vm = self._wanted(CPU, first, steps, absence)
        vm_demand = (1.0 + HOST_CPU_SHARE) * self.by_node(vm)
        demand = HOST_CORES + vm_demand
        served = np.minimum(1.0, (cores - HOST_CORES) / np.maximum(vm_demand, 1e-9))
        if served.min() < 1.0:
            vm *= served[self.node_of[self.vms]]
        running = self._running(steps, absence)
        return FleetUsage(demand, np.minimum(demand, cores), _with_gaps(vm, absence), served, running)

    def _memory(self, first: int, steps: int, absence: _Absence) -> FleetUsage:
        vm = self._wanted(MEMORY, first, steps, absence)
        demand = HOST_MB + HOST_MB_PER_VM * self._running(steps, absence) + self.by_node(vm)
        return FleetUsage(demand, np.minimum(demand, self.size.memory_mb), _with_gaps(vm, absence))

    def _running(self, steps: int, absence: _Absence) -> FloatArray:
        """(n, steps) float64: number of VMs of each node."""
        rows, absent = absence
        running = np.repeat(np.diff(self.bounds)[:, None], steps, axis=1).astype(np.float64)
        np.subtract.at(running, self.node_of[self.vms[rows]], absent)
        return running

    def _wanted(self, resource: Resource, first: int, steps: int, absence: _Absence) -> FloatArray:
        """(v, steps) float64: what VMs want; 0 in the steps in which they do not exist."""
        wanted = self.workload.wanted(resource, self.vms, first, steps)
        rows, absent = absence
        wanted[rows] = np.where(absent, 0.0, wanted[rows])
        return wanted

    def by_node(self, rows: FloatArray) -> FloatArray:
        """Sums of the rows of ``vms`` of each node, (n, ...) float64."""
        total = np.zeros((self.size.nodes, *rows.shape[1:]))
        begins = self.bounds[:-1]
        filled = np.flatnonzero(begins < self.bounds[1:])
        if filled.size:
            total[filled] = np.add.reduceat(rows, begins[filled], axis=0)
        return total


def _with_gaps(vm: FloatArray, absence: _Absence) -> FloatArray:
    """The usage of VMs, NaN in the steps in which they do not exist; the array itself is changed."""
    rows, absent = absence
    vm[rows] = np.where(absent, np.nan, vm[rows])
    return vm
