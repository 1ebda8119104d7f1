"""What the command line asks of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cli.model_options import ModelOptions
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
    model : ModelOptions
    compact : bool
        Whether one dump holds all strategies; needs ``output``.
    """

    trace: Path | str
    strategies: tuple[str, ...]
    node_name: str | None
    output: Path | None
    report: bool
    debug: int
    json: bool
    model: ModelOptions
    compact: bool = False

    @property
    def target_risks(self) -> Mapping[str, float]:
        """The target risk of each resource, by its name."""
        return {resource.name: self.model.risk_of(resource.name) for resource in RESOURCES}
