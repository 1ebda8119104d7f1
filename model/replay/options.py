"""What the command line asks of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..slices import RESOURCES


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of one replay.

    Attributes
    ----------
    trace : Path or str
        The file to replay.
    strategies : tuple of str
    node_name : str or None
        Replaces the name of the node in the trace.
    output : Path or None
        Folder for dumps, ``summary.csv`` and report. None: the working directory gets the dump of a single strategy.
    report : bool
        Whether to write ``report.html``; needs ``output``.
    debug : int
        2 and more: pictures of the tiers.
    json : bool
        Print one JSON object instead of the tables.
    risk : float
        The target risk of both resources.
    model : Any
        The model options: ``strategy, cpu, mem, aggreg, risk, risk_cpu, risk_mem, stability``.
    """

    trace: Path | str
    strategies: tuple[str, ...]
    node_name: str | None
    output: Path | None
    report: bool
    debug: int
    json: bool
    risk: float
    model: Any

    @property
    def target_risks(self) -> Mapping[str, float]:
        """By resource name: the risk set for the resource alone, or that of both."""
        own = {resource.name: getattr(self.model, f"risk_{resource.name}", None) for resource in RESOURCES}
        return {name: self.risk if risk is None else risk for name, risk in own.items()}
