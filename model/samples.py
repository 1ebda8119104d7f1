"""Samples between the exporters, the store and the models.

A missing figure is an absent key in a scrape and NaN in an array, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .numerics import FloatArray

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one scrape of a node told, in the words and units of vmprobe (``cpu_cputime``, ns; memory KiB).

    Attributes
    ----------
    epoch_ms : float
        When the figures were taken, Unix milliseconds.
    node : mapping of metric name to value
    domains : mapping of domain name to such a mapping, or None
        None when nothing is known of the domains, which is not to say that there are none.
    """

    epoch_ms: float
    node: Metrics
    domains: Mapping[str, Metrics] | None


@dataclass(frozen=True, slots=True)
class ScrapeSample:
    """What is stored of one scrape: a row for the node, a row for each of its domains.

    Attributes
    ----------
    node : str
        Its URL.
    time_ms : int
    fields : mapping of field name to value
        Of the node; memory in MB, CPU in cores.
    domains : mapping of domain name to such a mapping
    """

    node: str
    time_ms: int
    fields: Metrics
    domains: Mapping[str, Metrics]


@dataclass(frozen=True, slots=True)
class Samples:
    """Stored samples of a machine, in time order.

    Attributes
    ----------
    time_ms : (n,) int64
        Unix milliseconds.
    fields : mapping of field name to (n,) float64
        NaN where a sample does not have the field.
    """

    time_ms: NDArray[np.int64]
    fields: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Period:
    """What a store knows of a node and its domains in a period; a domain has its own times."""

    node: Samples
    domains: Mapping[str, Samples]
