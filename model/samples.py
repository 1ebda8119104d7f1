"""Samples as exporters, the store and the models exchange them.

A missing value is an absent key in a scrape and NaN in an array, never 0.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
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

    def part(self, start: int, end: int) -> Samples:
        """Some of the samples, by their indices."""
        return Samples(self.time_ms[start:end], {name: values[start:end] for name, values in self.fields.items()})


class SampleTable(Mapping[str, Samples]):
    """Samples of several domains at the same times: arrays for all of them, where a loop would take much longer.

    Parameters
    ----------
    names : tuple of v str
        Sorted.
    time_ms : (n,) int64
        Unix milliseconds.
    fields : mapping of field name to (v, n) float64
        NaN where a sample lacks the field.
    """

    __slots__ = ("fields", "names", "time_ms")

    def __init__(self, names: tuple[str, ...], time_ms: NDArray[np.int64], fields: Mapping[str, FloatArray]) -> None:
        self.names = names
        self.time_ms = time_ms
        self.fields = fields

    def __getitem__(self, name: str) -> Samples:
        at = row_of(self.names, name)
        return Samples(self.time_ms, {field: values[at] for field, values in self.fields.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


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


class DomainHistory(Mapping[str, Samples]):
    """Samples of the domains of a node at its times, of which parts are taken.

    Parameters
    ----------
    names : tuple of d str
        Sorted.
    time_ms : (n,) int64
        Unix milliseconds.
    present : (d, n) bool
        Whether a domain has a sample.
    fields : mapping of field name to (d, n) float64
        NaN where a sample lacks the field, and where there is none.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        time_ms: NDArray[np.int64],
        present: NDArray[np.bool_],
        fields: Mapping[str, FloatArray],
    ) -> None:
        self.names = names
        self.time_ms = time_ms
        self._present = present
        self._fields = fields
        # Times at which a domain is missing, before each time.
        self._gaps = np.concatenate([[0], np.cumsum(~present.all(axis=0))])

    @classmethod
    def of(cls, period: Period) -> DomainHistory | None:
        """The domains of a period; None when any has a sample at a time at which the node has none."""
        if isinstance(period.domains, cls):
            return period.domains
        domains, times = dict(sorted(period.domains.items())), period.node.time_ms
        shape = len(domains), times.size
        names = {name for samples in domains.values() for name in samples.fields}
        if all(np.array_equal(of.time_ms, times) and of.fields.keys() == names for of in domains.values()):
            # The usual case, in a tenth of the time.
            whole = {name: np.array([of.fields[name] for of in domains.values()]) for name in sorted(names)}
            return cls(tuple(domains), times, np.ones(shape, dtype=bool), whole)
        present, fields = np.zeros(shape, dtype=bool), {name: np.full(shape, np.nan) for name in sorted(names)}
        for row, samples in enumerate(domains.values()):
            columns = np.searchsorted(times, samples.time_ms)
            if columns.size and (columns[-1] == times.size or not (times[columns] == samples.time_ms).all()):
                return None
            present[row, columns] = True
            for name, values in samples.fields.items():
                fields[name][row, columns] = values
        return cls(tuple(domains), times, present, fields)

    def __getitem__(self, name: str) -> Samples:
        return self._samples(row_of(self.names, name), 0, self.time_ms.size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, end: int) -> Mapping[str, Samples]:
        """The domains that have samples in a part of the period, by the indices of its times."""
        if self.names and start < end and self._gaps[start] == self._gaps[end]:
            whole = {name: values[:, start:end] for name, values in self._fields.items()}
            return SampleTable(self.names, self.time_ms[start:end], whole)
        number = np.count_nonzero(self._present[:, start:end], axis=1)
        rows = np.flatnonzero(number)
        names = tuple(self.names[row] for row in rows.tolist())
        if not rows.size or (number[rows] != end - start).any():
            return {name: self._samples(row, start, end) for name, row in zip(names, rows.tolist(), strict=True)}
        fields = {name: values[rows, start:end] for name, values in self._fields.items()}
        return SampleTable(names, self.time_ms[start:end], fields)

    def _samples(self, row: int, start: int, end: int) -> Samples:
        own = np.flatnonzero(self._present[row, start:end]) + start
        return Samples(self.time_ms[own], {name: values[row, own] for name, values in self._fields.items()})


def row_of(names: tuple[str, ...], name: str) -> int:
    """The index of a name among sorted ones.

    Raises
    ------
    KeyError
    """
    at = bisect.bisect_left(names, name)
    if at == len(names) or names[at] != name:
        raise KeyError(name)
    return at
