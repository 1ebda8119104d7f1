"""Options of the live commands of ``scroogevm.py``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.targets import is_url, node_name
from .settings import parse_nodes


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
    model : object
        The model options, with the attributes ``strategy``, ``cpu``, ``mem``, ``aggreg``, ``risk``, ``risk_cpu``,
        ``risk_mem`` and ``stability``.
    """

    nodes: tuple[str, ...]
    output: Path | None
    debug: int
    once: bool
    model: Any


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
    """Options of ``--status`` and ``--watch``."""

    watch: bool
    json: bool


def parse_url_option(text: str | None) -> tuple[str, ...]:
    """The nodes that ``--url`` names: a URL, or a JSON list of URLs.

    Raises
    ------
    UsageError
    """
    if text is None:
        return ()
    if is_url(text) and not re.search(r",\s*https?://", text):
        return (node_name(text),)
    try:
        return parse_nodes(json.loads(text))
    except (json.JSONDecodeError, RecursionError):
        message = 'is neither a URL nor a list of URLs such as ["http://node:9100/metrics"]'
    except ValueError as error:
        message = str(error)
    raise UsageError(f"--url: {message}")
