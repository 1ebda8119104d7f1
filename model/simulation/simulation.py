"""The loop: arrivals, placement, a slice of usage, new capacities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..slices import CPU, MEMORY
from .fleet import Fleet, FleetSize
from .harm import Harm
from .policies import FleetSlice, Policy
from .scheduler import PlacementScheduler, Weigher
from .workload import Workload


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """Settings of a run.

    Attributes
    ----------
    size : FleetSize
    slice_s : float
        A multiple of the workload's step.
    weigher : str
    publish_memory : bool
        Whether the capacity for memory is published too; otherwise it is what the node has.
    least_ratio, most_ratio : float
        Limits of a capacity, in sizes of the node.
    warm_up_s : float
        Slices that end before are not counted.
    """

    size: FleetSize = field(default_factory=FleetSize)
    slice_s: float = 3600.0
    weigher: Weigher = "spread"
    publish_memory: bool = False
    least_ratio: float = 1.0
    most_ratio: float = 16.0
    warm_up_s: float = 4 * 86400.0


def simulate(workload: Workload, policy: Policy, settings: SimulationSettings) -> Harm:
    """Run a workload through a fleet whose capacities a policy sets."""
    *_, harm = _slices(workload, policy, settings)
    return harm


def refuses_at_most(vcpu: float, workload: Workload, policy: Policy, settings: SimulationSettings) -> bool:
    """Whether a fleet refuses at most so many vCPUs of a workload; a run ends when it has refused more."""
    return all(harm.refused_vcpu <= vcpu + 1e-6 for harm in _slices(workload, policy, settings))


def _slices(workload: Workload, policy: Policy, settings: SimulationSettings) -> Iterator[Harm]:
    """The figures so far, at the end of each slice; the same object every time."""
    size = settings.size
    fleet = Fleet(size, workload)
    scheduler = PlacementScheduler(fleet, settings.weigher, by_memory=settings.publish_memory)
    steps = round(settings.slice_s / workload.step_s)
    slices = workload.steps // steps
    harm = Harm(size, slices, steps, warm_up=round(settings.warm_up_s / settings.slice_s))
    arrivals = np.searchsorted(workload.first_step, np.arange(slices * steps + 1)).tolist()
    vcpu, memory = workload.vcpu.tolist(), workload.memory_mb.tolist()
    for number in range(slices):
        for step in range(number * steps, (number + 1) * steps):
            fleet.remove_ended(step)
            scheduler.begin_step()
            for vm in range(arrivals[step], arrivals[step + 1]):
                if not scheduler.may_fit(vcpu[vm], memory[vm]):
                    continue
                node = scheduler.choose(vcpu[vm], memory[vm], policy.allowed(vm, step))
                if node is not None:
                    fleet.place(vm, node)
                    scheduler.note_placed(node)
                    policy.note_placed(vm, node, step)
        end = (number + 1) * steps
        arrived = slice(arrivals[end - steps], arrivals[end])
        harm.add_arrivals(number, workload.vcpu[arrived], fleet.node_of[arrived] >= 0)
        usage = fleet.run_slice(number * steps, steps)
        ended = FleetSlice(
            number, fleet, fleet.vms, fleet.bounds, fleet.alive(end), usage[CPU.name], usage[MEMORY.name]
        )
        fleet.remove_ended(end)
        capacities = policy.update(ended)
        harm.add_slice(number, ended, capacities)
        least, most = settings.least_ratio, settings.most_ratio
        scheduler.set_capacities(
            np.clip(capacities.cpu, least * size.cores, most * size.cores),
            np.clip(capacities.mem, least * size.memory_mb, most * size.memory_mb)
            if settings.publish_memory and capacities.mem is not None
            else None,
        )
        yield harm
