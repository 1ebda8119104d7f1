"""Samples as exporters, the store and the models exchange them.

A missing value is an absent key in a scrape and NaN in an array, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .numerics import FloatArray

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class VcpuTimes:
    """Counters of the vCPUs of a domain, s; NaN where the page contradicts itself.

    Attributes
    ----------
    source : str
        The page.
    at_ms : float
        Its time, Unix milliseconds of a clock that depends on the source.
    wait : mapping of vCPU to float
        How long it was ready to run and waited in the queue of a CPU.
    run : mapping of vCPU to float
        How long it ran; empty when the page does not have it.
    """

    source: str
    at_ms: float
    wait: Metrics
    run: Metrics


@dataclass(frozen=True, slots=True)
class Contention:
    """Counters that tell how long a node and its vCPUs waited; NaN where the page contradicts itself.

    Attributes
    ----------
    at_ms : float
        Time of the page of the node, Unix milliseconds.
    node : mapping of field name to value
        ``psi_cpu`` and ``psi_memory``, s; ``swap_in``, pages; ``oom_kills``.
    queue : mapping of CPU to float
        How long tasks waited in the queue of each CPU, s.
    vcpus : mapping of domain name to VcpuTimes
    """

    at_ms: float
    node: Metrics
    queue: Metrics
    vcpus: Mapping[str, VcpuTimes]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The metrics of one scrape of a node, with the names and units of vmprobe (``cpu_cputime``, ns; memory KiB).

    Attributes
    ----------
    epoch_ms : float
        When the metrics were measured, Unix milliseconds of the clock of the page.
    node : mapping of metric name to value
    domains : mapping of domain name to mapping of metric name to value, or None
        None when the domains are unknown; an empty mapping when the node has none.
    received_ms : float or None
        The middle of request and answer, Unix milliseconds of the clock of this host; None if there was no request.
    domains_ms : float or None
        When the metrics of the domains were measured, if they have a page of their own; Unix milliseconds of any clock.
    problem : str
        Why the domains are unknown.
    contention : Contention or None
        None when no page has such counters.
    """

    epoch_ms: float
    node: Metrics
    domains: Mapping[str, Metrics] | None
    received_ms: float | None = None
    domains_ms: float | None = None
    problem: str = ""
    contention: Contention | None = None


@dataclass(frozen=True, slots=True)
class ScrapeSample:
    """The stored fields of one scrape: a row for the node and a row for each of its domains.

    Attributes
    ----------
    node : str
        URL of the node.
    time_ms : int
        Unix milliseconds.
    fields : mapping of field name to value
        Fields of the node; memory in MB, CPU in cores.
    domains : mapping of domain name to mapping of field name to value
    """

    node: str
    time_ms: int
    fields: Metrics
    domains: Mapping[str, Metrics]


@dataclass(frozen=True, slots=True)
class Samples:
    """Stored samples of a node or domain, in time order.

    Attributes
    ----------
    time_ms : (n,) int64
        Unix milliseconds.
    fields : mapping of field name to (n,) float64
        NaN where a sample lacks the field.
    """

    time_ms: NDArray[np.int64]
    fields: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class LastConfig:
    """The configuration of a domain in a period.

    Attributes
    ----------
    fields : mapping of field name to value
        The last ``cpu`` and ``mem``; a field without a value in the period is missing.
    time_ms : int
        Time of the newest of these values, Unix milliseconds.
    """

    fields: Metrics
    time_ms: int


@dataclass(frozen=True, slots=True)
class Period:
    """Samples of a node and its domains in a period; each domain has its own times."""

    node: Samples
    domains: Mapping[str, Samples]
