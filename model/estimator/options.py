"""Options of the live commands of ``scroogevm.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class EstimatorOptions:
    """Options of the daemon.

    Attributes
    ----------
    nodes : tuple of str
        Instead of those of the settings, if not empty.
    output : Path or None
        The folder of the dumps; None for the working directory.
    debug : int
        1 for informational log lines and dumps, 2 for pictures too.
    once : bool
        Compute and publish the slices that have ended, and exit.
    model : mapping of str to object
        The model options of the command line by name, which override the settings
        (:func:`model.cli.model_options.given_model_options`).
    """

    nodes: tuple[str, ...]
    output: Path | None
    debug: int
    once: bool
    model: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of ``--check``."""

    nodes: tuple[str, ...]
    debug: int
    json: bool


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of ``--export``.

    Attributes
    ----------
    path : Path
        Of the trace.
    nodes : tuple of str
    since_s : float
        Unix seconds.
    until_s : float or None
        Unix seconds; None for the present.
    debug : int
    """

    path: Path
    nodes: tuple[str, ...]
    since_s: float
    until_s: float | None
    debug: int


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """Options of ``--status`` and ``--watch``.

    Attributes
    ----------
    watch, json : bool
    sources : tuple of str
        Status files, and URLs of status pages; empty for the file of the settings.
    """

    watch: bool
    json: bool
    sources: tuple[str, ...] = ()
