"""The tasks of a simulation, computed by any worker: a run, or the search for the nodes that a workload needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..common.text import printable
from ..nodemodel import ModelSettings
from ..numerics import FloatArray
from ..oversubscriptioncomputation import StrategySettings
from ..parallel.work import Work
from .grid import FIXED_RATIO, ORACLE, Setting
from .harm import Figures, Harm
from .policies import FixedRatio, Oracle, Policy, StrategyPolicy
from .simulation import SimulationSettings, refuses_at_most, simulate
from .sources import Source
from .workload import Workload

#: A fleet takes a finite workload when it takes this share of its vCPUs.
TAKEN_SHARE = 0.99
#: The search for the number of nodes ends at so many times what holds all vCPUs of the busiest moment at a ratio of 1.
MOST_FLEETS = 2


@dataclass(frozen=True, slots=True)
class Task:
    """A run, or a search.

    Attributes
    ----------
    source : int
        Index of the source in the plan.
    seed : int or None
        None where nothing is drawn.
    setting : Setting
    find_hosts : bool
        Whether to search for the smallest fleet instead of simulating the given one.
    """

    source: int
    seed: int | None
    setting: Setting
    find_hosts: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The same for every task.

    Attributes
    ----------
    sources : tuple of Source
    simulation : SimulationSettings
    positions, historical : int
        Slices of a scope, and h, of the node models.
    memory_risk : float
        Target risk for memory, 0 to 1.
    """

    sources: tuple[Source, ...]
    simulation: SimulationSettings
    positions: int
    historical: int
    memory_risk: float = 0.001

    def name(self, task: Task) -> str:
        """What a task is about, for messages."""
        seed = "" if task.seed is None else f", seed {task.seed}"
        return f"{printable(self.sources[task.source].name)}{seed}, {task.setting.label}"


@dataclass(frozen=True, slots=True)
class FleetSeries:
    """The fleet slice by slice, (slices,) lists: means over the nodes, shares of their cores.

    Attributes
    ----------
    sold, used, over : list of float
        What is booked and used, and the share of nodes that are over.
    """

    sold: list[float]
    used: list[float]
    over: list[float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task: figures of a run, or a number of nodes; or an error of one line."""

    figures: Figures | None = None
    series: FleetSeries | None = None
    hosts_needed: int | None = None
    error: str = ""


def simulation_work(plan: Plan) -> Work[Task, Plan, Outcome]:
    """What workers do with each task."""
    return Work(_run, plan, _failed, verb="simulated", noun="runs")


def _failed(task: Task, cause: str) -> Outcome:
    return Outcome(error=f"{task.setting.label}{'' if task.seed is None else f', seed {task.seed}'}: {cause}")


def _run(task: Task, plan: Plan) -> Outcome:
    """Run a task, in a worker; errors are part of the outcome: one run must not cost the others."""
    try:
        workload = plan.sources[task.source].workload(task.seed)
        if task.find_hosts:
            return Outcome(hosts_needed=_hosts_needed(workload, task.setting, plan))
        harm = simulate(workload, policy_of(task.setting, workload, plan), plan.simulation)
        return Outcome(harm.figures(), _series(harm))
    except Exception as error:
        return _failed(task, f"{type(error).__name__}: {printable(str(error))}")


def policy_of(setting: Setting, workload: Workload, plan: Plan) -> Policy:
    """A new policy for one run."""
    simulation = plan.simulation
    if setting.strategy == ORACLE:
        return Oracle(simulation.size, workload)
    if setting.strategy == FIXED_RATIO:
        return FixedRatio(simulation.size, setting.ratio or 1.0)
    parameters = StrategySettings() if setting.risk is None else StrategySettings(risk=setting.risk)
    model = ModelSettings(
        historical=plan.historical,
        strategies=(setting.strategy,),
        cpu=parameters,
        mem=StrategySettings(risk=plan.memory_risk),
        positions=plan.positions,
        guarded=bool(setting.guards),
    )
    return StrategyPolicy(
        *(workload, simulation.size, model, simulation.slice_s),
        publish_memory=simulation.publish_memory,
        with_waits=bool(setting.waits),
    )


def _series(harm: Harm) -> FleetSeries:
    def means(rows: FloatArray) -> list[float]:
        return [round(value, 6) for value in rows.mean(axis=0).tolist()]

    return FleetSeries(means(harm.sold), means(harm.used), means(harm.over.astype(np.float64)))


def _hosts_needed(workload: Workload, setting: Setting, plan: Plan) -> int | None:
    """The smallest number of nodes that takes 99 % of the vCPUs; None when not even a large fleet does.

    It takes a larger fleet to accept no less.
    """
    simulation = plan.simulation
    refusable = (1.0 - TAKEN_SHARE) * float(workload.vcpu.sum())

    def suffices(nodes: int) -> bool:
        own = replace(simulation, size=replace(simulation.size, nodes=nodes))
        return refuses_at_most(refusable, workload, policy_of(setting, workload, replace(plan, simulation=own)), own)

    peak, cores = workload.peak_vcpu(), simulation.size.cores
    # Fewer nodes cannot book, at the busiest moment, what they may not refuse.
    low = max(0, math.ceil((peak - refusable) / (simulation.most_ratio * cores) - 1e-9) - 1)
    most = max(MOST_FLEETS * math.ceil(peak / cores), low + 1)
    high = min(max(simulation.size.nodes, low + 1), most)
    while not suffices(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
