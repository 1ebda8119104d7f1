"""Options of ``scroogevm.py --scan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What is scanned, and how it is shown.

    Attributes
    ----------
    traces : str or None
        A trace or a folder of traces, instead of a store.
    prometheus : str or None
        URL of a Prometheus server, instead of the store of the settings.
    nodes : tuple of str
        Instead of those of the settings, if not empty.
    node : str or None
        The node that is explained.
    since_s, until_s : float or None
        The period, Unix seconds; None for the longest, and for the present.
    days : float
        The longest period.
    output : Path or None
        Folder of ``scan.html``, ``scan.json`` and ``scan.csv``.
    simulate : bool
        Whether a scheduler is simulated that fills what is published.
    json, csv : bool
        What is printed instead of a table.
    jobs : int or None
        Worker processes; None for one per core.
    dask : str or None
        Address of a Dask scheduler; None for processes of this machine.
    debug : int
    model : mapping of str to object
        The model options of the command line by name.
    """

    traces: str | None
    prometheus: str | None
    nodes: tuple[str, ...]
    node: str | None
    since_s: float | None
    until_s: float | None
    days: float
    output: Path | None
    simulate: bool
    json: bool
    csv: bool
    jobs: int | None
    dask: str | None
    debug: int
    model: Mapping[str, Any]
