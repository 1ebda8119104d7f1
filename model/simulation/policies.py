"""What sets the capacity of the nodes: a fixed ratio, an oracle, or a strategy behind the node model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..feedback import Feedback, FleetModel
from ..nodemodel import ModelSettings, NodeModel
from ..numerics import FloatArray
from ..slices import CPU, MEMORY, Resource, Slice, Usage, Waits
from .fleet import HOST_CORES, HOST_CPU_SHARE, Fleet, FleetSize, FleetUsage
from .workload import IntArray, Workload


@dataclass(frozen=True, slots=True)
class FleetSlice:
    """What is measured of a fleet in a slice that ended.

    Attributes
    ----------
    number : int
        Index of the slice, from 0.
    fleet : Fleet
        What is booked now.
    vms : (v,) int
        The VMs that ran in the slice, by node.
    bounds : (n + 1,) int
        Bounds of the rows of each node.
    alive : (v,) bool
        Which of them exist at the end of the slice.
    cpu, mem : FleetUsage
    """

    number: int
    fleet: Fleet
    vms: IntArray
    bounds: IntArray
    alive: NDArray[np.bool_]
    cpu: FleetUsage
    mem: FleetUsage


@dataclass(frozen=True, slots=True)
class Capacities:
    """What a scheduler may book on each node, (n,) float64, cores and MB; None leaves the size of the node.

    Attributes
    ----------
    violated : (n,) float64 or None
        What the policy itself counts for the slice that ended: 1 where its figure was violated, 0, or NaN.
    """

    cpu: FloatArray
    mem: FloatArray | None = None
    violated: FloatArray | None = None


class Policy(ABC):
    """Sets the capacities at the end of each slice."""

    def allowed(self, vm: int, step: int) -> NDArray[np.bool_] | None:  # noqa: ARG002  # most admit by size alone
        """Nodes that may take a VM, beside what its size says; None for all."""
        return None

    def note_placed(self, vm: int, node: int, step: int) -> None:  # noqa: B027  # most need no account of their own
        """Note that a VM was placed."""

    @abstractmethod
    def update(self, ended: FleetSlice) -> Capacities:
        """The capacities until the end of the next slice."""


class FixedRatio(Policy):
    """A constant allocation ratio for CPU."""

    def __init__(self, size: FleetSize, ratio: float) -> None:
        self._capacities = Capacities(np.full(size.nodes, ratio * size.cores))

    def update(self, ended: FleetSlice) -> Capacities:  # noqa: ARG002
        """The same capacities every time."""
        return self._capacities


class Oracle(Policy):
    """Admits a VM where, for as long as it lives, no step will exceed the CPU of the node: an upper bound."""

    def __init__(self, size: FleetSize, workload: Workload) -> None:
        self._workload = workload
        self._size = size
        self._demand = np.full((size.nodes, workload.steps), HOST_CORES)
        self._need = np.empty(0)

    def allowed(self, vm: int, step: int) -> NDArray[np.bool_]:
        """The nodes whose demand stays within their size."""
        end = min(int(self._workload.end_step[vm]), self._workload.steps)
        workload = self._workload
        shares = workload.cpu.one(int(workload.series[vm]), int(workload.offset[vm]), step, end - step)
        self._need = (1.0 + HOST_CPU_SHARE) * workload.vcpu[vm] * shares.astype(np.float64)
        fits: NDArray[np.bool_] = (self._demand[:, step:end] + self._need).max(axis=1) <= self._size.cores
        return fits

    def note_placed(self, vm: int, node: int, step: int) -> None:  # noqa: ARG002
        """Add the demand of the VM that was asked for last."""
        self._demand[node, step : step + self._need.size] += self._need

    def update(self, ended: FleetSlice) -> Capacities:  # noqa: ARG002
        """No bound: admission is decided VM by VM."""
        return Capacities(np.full(self._size.nodes, math.inf))


class StrategyPolicy(Policy):
    """Publishes what a strategy computes: the same node model as live, one for each node of the fleet.

    Parameters
    ----------
    workload : Workload
    size : FleetSize
    settings : ModelSettings
        The first strategy is published.
    slice_s : float
    publish_memory : bool
        Whether the usage of memory is given to the models, and their figure for it published.
    with_waits : bool
        Whether the models get how long VMs wait, as exporters measure it.
    """

    def __init__(
        self,
        workload: Workload,
        size: FleetSize,
        settings: ModelSettings,
        slice_s: float,
        *,
        publish_memory: bool = False,
        with_waits: bool = False,
    ) -> None:
        self._workload = workload
        self._size = size
        self._strategy = settings.strategies[0]
        self._positions = settings.positions
        self._slice_s = slice_s
        self._publish_memory = publish_memory
        self._with_waits = with_waits
        self._models = [NodeModel(settings, phase=node) for node in range(size.nodes)]
        self._fleet = FleetModel(settings.cpu.risk, settings.mem.risk)
        self._feedback = Feedback()
        self._names = np.array(workload.names)

    def update(self, ended: FleetSlice) -> Capacities:
        """Update the model of each node."""
        n, fleet = self._size.nodes, ended.fleet
        cpu, mem, violated = np.zeros(n), np.zeros(n), np.full(n, math.nan)
        counts = []
        for node, model in enumerate(self._models):
            estimate = model.update(self._slice(ended, node), self._feedback)
            counts.append(estimate.counts)
            of_cpu, of_mem = (one.by_strategy[self._strategy] for one in (estimate.cpu, estimate.mem))
            cpu[node] = of_cpu.capacity(fleet.booked_cpu[node], self._size.cores)
            mem[node] = of_mem.capacity(fleet.booked_mem[node], self._size.memory_mb)
            violated[node] = of_cpu.violated
        self._feedback = self._fleet.update(counts)
        return Capacities(cpu, mem if self._publish_memory else None, violated)

    def _slice(self, ended: FleetSlice, node: int) -> Slice:
        rows = slice(int(ended.bounds[node]), int(ended.bounds[node + 1]))
        vms = ended.vms[rows]
        cpu = self._usage(ended, CPU, ended.cpu, node, rows)
        mem = self._usage(ended, MEMORY, ended.mem, node, rows) if self._publish_memory else _NOTHING
        end_s = (ended.number + 1) * self._slice_s
        waits = None
        if self._with_waits:
            cpu, waits = self._waits(ended.cpu, node, cpu)
        return Slice(end_s, ended.number % self._positions, tuple(self._names[vms].tolist()), cpu, mem, waits)

    def _waits(self, usage: FleetUsage, node: int, cpu: Usage) -> tuple[Usage, Waits]:
        """The usage with demand, and how long the VMs of a node waited; all wait alike."""
        measured = cpu.vm_usage
        if usage.served is None or usage.served[node].min() == 1.0:
            nobody = np.broadcast_to(0.0, measured.shape)
            return cpu, Waits(nobody, nobody)
        wanted = measured / usage.served[node]
        share = np.where(np.isnan(measured), np.nan, 1.0 - usage.served[node])
        return replace(cpu, node_demand=usage.demand[node], vm_demand=wanted), Waits(share, wanted - measured)

    def _usage(self, ended: FleetSlice, resource: Resource, usage: FleetUsage, node: int, rows: slice) -> Usage:
        sizes = self._workload.sizes(resource)[ended.vms[rows]]
        capacity = self._size.capacity(resource)
        return Usage(capacity, usage.node[node], sizes, usage.vm[rows], vm_alive=ended.alive[rows])


_NONE: FloatArray = np.empty(0)
_NOTHING = Usage(math.nan, _NONE, _NONE, np.empty((0, 0)))
