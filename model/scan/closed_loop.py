"""Simulates a scheduler that fills what is published, with the VMs of a scanned fleet."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..common.errors import UsageError
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES
from ..simulation.command import compare
from ..simulation.draw import DrawSettings, SampledVm
from ..simulation.fleet import FleetSize
from ..simulation.grid import FIXED_RATIO, Setting
from ..simulation.options import SimulationOptions
from ..simulation.sources import DrawnSource, VmPool
from ..simulation.summary import Comparison
from .finding import NodeFinding
from .vm_series import STEP_S

#: VMs of all nodes that are kept.
MOST_VMS = 2000
#: The fleet that is simulated has the nodes of the scanned one, but not more.
_MOST_NODES = 20
_DAYS = 14.0
#: VMs of the size of a node arrive in so many hours: more than fits.
_HOURS_PER_NODE = 4.0


def simulate_fleet(
    vms: Sequence[SampledVm], findings: Sequence[NodeFinding], model: ModelSettings, jobs: int | None, dask: str | None
) -> tuple[Comparison, list[str]]:
    """Compare the strategies of a scan, the ratio that the fleet has now, and the best fixed ratio.

    Parameters
    ----------
    vms : sequence of SampledVm
    findings : sequence of NodeFinding
        Their median node is simulated.
    model : ModelSettings
    jobs, dask
        As of a scan.

    Returns
    -------
    comparison : Comparison
    errors : list of str
        A line for each run that failed.

    Raises
    ------
    UsageError
        When there is no VM to simulate with, no run succeeds, or the cluster is lost.
    """
    sizes = [(one.cpu.config, one.mem.config, one.cpu.ratio_now) for one in findings if one.cpu and one.mem]
    if not vms or not sizes:
        raise UsageError("--simulate: no VM has a day of history")
    cores, memory_mb, ratio = (statistics.median(column) for column in zip(*sizes, strict=True))
    size = FleetSize(min(len(sizes), _MOST_NODES), cores, memory_mb)
    each_vcpu = statistics.fmean(vm.vcpu for vm in vms)
    draw = DrawSettings(nodes=size.nodes, days=_DAYS, per_node_hour=cores / (each_vcpu * _HOURS_PER_NODE))
    risk = model.cpu.risk
    strategies = [
        Setting(name, risk=risk if "risk" in STRATEGIES[name].parameters else None, guards=model.guarded)
        for name in model.strategies
    ]
    options = SimulationOptions(
        inputs=(),
        settings=(*strategies, Setting(FIXED_RATIO, ratio=max(0.1, round(ratio, 1)))),
        size=size,
        memory_risk=model.mem.risk,
        harm=risk,
        jobs=jobs,
        dask=dask,
    )
    results, errors = compare(options, [DrawnSource("fleet", False, VmPool.of(vms), STEP_S, draw)])
    if not results:
        raise UsageError(f"--simulate: {errors[0] if errors else 'no run succeeded'}")
    return results[0].comparison, errors
