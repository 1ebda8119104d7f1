"""The options of ``misc/simulate.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .arrivals import ArrivalList
from .draw import Arrivals, DrawSettings
from .fleet import FleetSize
from .grid import Setting
from .scheduler import Weigher

#: How VMs arrive: as they are drawn, or when they did in the traces.
ArrivalKind = Literal[Arrivals, "replay"]


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The options of a comparison.

    Attributes
    ----------
    inputs : tuple of str
        Workload files, traces, and folders of them.
    settings : tuple of Setting
        What is compared.
    seeds : tuple of int
    size : FleetSize
    weigher : str
    slice_s, scope_s : float
    historical : int
        h of the node models.
    warm_up_s : float or None
        None for four days, and at most a third of the workload.
    publish_memory : bool
    memory_risk : float
        Target risk for memory.
    arrivals : tuple of str
        Kinds of arrivals that are drawn from traces; empty for those that the traces show, or else ``flood`` and
        ``finite``.
    draw : DrawSettings
        How they are drawn; nodes, days and arrivals are set by the other options.
    arrival_list : ArrivalList or None
        VMs that arrive with the usage of those of the traces.
    from_day : float
        Where in that list the workload begins.
    days : float or None
        Length of a workload; None for 14 days of what is drawn, and for the whole list of arrivals.
    harm : float
        The share of node-slices over capacity that is accepted, 0 to 1.
    hosts_needed : bool or None
        Whether to search for the smallest fleet; None for finite streams that are drawn.
    output : Path or None
        Folder of the results.
    save_workload : Path or None
        File for the workload.
    jobs : int or None
        Worker processes; None for one per core.
    dask : str or None
        Address of a Dask scheduler; None for processes of this machine.
    json : bool
        Whether to print JSON.
    """

    inputs: tuple[str, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    size: FleetSize = field(default_factory=FleetSize)
    weigher: Weigher = "spread"
    slice_s: float = 3600.0
    scope_s: float = 86400.0
    historical: int = 3
    warm_up_s: float | None = None
    publish_memory: bool = False
    memory_risk: float = 0.001
    arrivals: tuple[ArrivalKind, ...] = ()
    draw: DrawSettings = field(default_factory=DrawSettings)
    arrival_list: ArrivalList | None = None
    from_day: float = 0.0
    days: float | None = None
    harm: float = 0.01
    hosts_needed: bool | None = None
    output: Path | None = None
    save_workload: Path | None = None
    jobs: int | None = None
    dask: str | None = None
    json: bool = False
