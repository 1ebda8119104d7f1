"""Where the workloads of a simulation come from: they are given, drawn, or listed arrivals joined with usage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..numerics import FloatArray
from .arrivals import ArrivalList, join_usage
from .draw import DrawSettings, SampledVm, draw_workload
from .workload import SeriesPool, Workload

_DAY_S = 86400.0


class Source(Protocol):
    """One workload, or one for each seed.

    Attributes
    ----------
    name : str
        Unique in a simulation; part of file names.
    finite : bool
        Whether to search for the smallest fleet that takes nearly all of it.
    seeded : bool
        Whether the workload depends on the seed.
    step_s, duration_s : float
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def finite(self) -> bool: ...  # noqa: D102
    @property
    def seeded(self) -> bool: ...  # noqa: D102
    @property
    def step_s(self) -> float: ...  # noqa: D102
    @property
    def duration_s(self) -> float: ...  # noqa: D102

    def workload(self, seed: int | None) -> Workload:
        """The workload of a seed."""

    def digest(self) -> str:
        """Identifies the content."""


@dataclass(frozen=True, slots=True)
class VmPool:
    """The VMs that workloads are drawn from, in few large arrays, which reach each worker once.

    Attributes
    ----------
    vcpu, memory_mb : (v,) float64
    cpu, mem : SeriesPool
    """

    vcpu: FloatArray
    memory_mb: FloatArray
    cpu: SeriesPool
    mem: SeriesPool

    @classmethod
    def of(cls, vms: Sequence[SampledVm]) -> VmPool:
        """Put VMs, at least one, together."""
        return cls(
            np.array([vm.vcpu for vm in vms]),
            np.array([vm.memory_mb for vm in vms]),
            SeriesPool([vm.cpu for vm in vms]),
            SeriesPool([vm.mem for vm in vms]),
        )

    def vms(self) -> list[SampledVm]:
        """The VMs, whose series are views."""
        sizes = zip(self.vcpu.tolist(), self.memory_mb.tolist(), strict=True)
        return [SampledVm(*size, self.cpu[i], self.mem[i]) for i, size in enumerate(sizes)]

    def parts(self) -> tuple[object, ...]:
        """Its content."""
        return self.vcpu, self.memory_mb, self.cpu.lengths, self.cpu.shares, self.mem.lengths, self.mem.shares


@dataclass(frozen=True, slots=True)
class GivenSource:
    """A workload file, or the VMs of traces as they came and went."""

    name: str
    finite: bool
    given: Workload

    @property
    def seeded(self) -> bool:
        """It does not depend on a seed."""
        return False

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.given.step_s

    @property
    def duration_s(self) -> float:
        """Seconds of the whole."""
        return self.given.duration_s

    def workload(self, seed: int | None) -> Workload:  # noqa: ARG002  # the same for all
        """The workload."""
        return self.given

    def digest(self) -> str:
        """Identifies the content."""
        one = self.given
        pool = VmPool(one.vcpu, one.memory_mb, one.cpu, one.mem)
        lives = (one.create_s, one.delete_s, one.series, one.offset)
        return _digest(one.step_s, one.duration_s, list(one.names), *lives, *pool.parts())


@dataclass(frozen=True, slots=True)
class DrawnSource:
    """Arrivals, ends and usage that are drawn."""

    name: str
    finite: bool
    pool: VmPool
    step_s: float
    draw: DrawSettings

    @property
    def seeded(self) -> bool:
        """All of it depends on the seed."""
        return True

    @property
    def duration_s(self) -> float:
        """Seconds of the whole."""
        return self.draw.days * _DAY_S

    def workload(self, seed: int | None) -> Workload:
        """The workload of a seed."""
        return draw_workload(self.pool.vms(), self.step_s, self.draw, seed or 0)

    def digest(self) -> str:
        """Identifies the content."""
        return _digest(self.step_s, self.draw, *self.pool.parts())


@dataclass(frozen=True, slots=True)
class ListedSource:
    """Arrivals and ends of a list, with usage that is drawn where the list has none.

    Attributes
    ----------
    pool : VmPool or None
        None when the list has the usage of each VM.
    days : float or None
        None for the whole list.
    """

    name: str
    finite: bool
    arrivals: ArrivalList
    pool: VmPool | None
    step_s: float
    days: float | None = None

    @property
    def seeded(self) -> bool:
        """Whether there are VMs whose usage is drawn."""
        return self.arrivals.usage is None or any(usage is None for usage in self.arrivals.usage)

    @property
    def duration_s(self) -> float:
        """Seconds of the whole."""
        return self.workload(None).duration_s

    def workload(self, seed: int | None) -> Workload:
        """The workload of a seed."""
        vms = [] if self.pool is None else self.pool.vms()
        duration_s = None if self.days is None else self.days * _DAY_S
        return join_usage(self.arrivals, vms, self.step_s, seed or 0, duration_s)

    def digest(self) -> str:
        """Identifies the content."""
        one = self.arrivals
        lists = (list(one.names), one.create_s, one.delete_s, one.vcpu, one.memory_mb, one.usage_step_s)
        usage = [np.empty(0) if usage is None else usage for usage in one.usage or ()]
        return _digest(self.step_s, self.days, *lists, *usage, *(() if self.pool is None else self.pool.parts()))


def _digest(*parts: Any) -> str:
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode())
        content.update(b"\0")
    return content.hexdigest()
