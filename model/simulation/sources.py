"""Where the workloads of a simulation come from: they are given, or drawn from the usage of VMs, by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..numerics import FloatArray
from .draw import DrawSettings, SampledVm, draw_workload
from .workload import SeriesPool, Workload


@dataclass(frozen=True, slots=True)
class VmPool:
    """The VMs that workloads are drawn from, in few large arrays, which workers share.

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
        """Put VMs together."""
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


@dataclass(frozen=True, slots=True)
class Source:
    """One workload for each seed.

    Attributes
    ----------
    name : str
        Unique in a simulation; part of file names.
    finite : bool
        Whether arrivals end well before the workload does, so that a fleet can take them all.
    given : Workload or None
        The workload, whatever the seed.
    pool : VmPool or None
        Otherwise, what workloads are drawn from.
    step_s : float
    draw : DrawSettings
    """

    name: str
    finite: bool
    given: Workload | None = None
    pool: VmPool | None = None
    step_s: float = 300.0
    draw: DrawSettings = field(default_factory=DrawSettings)

    @property
    def drawn(self) -> bool:
        """Whether the workload depends on the seed."""
        return self.given is None

    def workload(self, seed: int | None) -> Workload:
        """The workload of a seed."""
        if self.given is not None:
            return self.given
        assert self.pool is not None  # noqa: S101  # one of the two is given
        return draw_workload(self.pool.vms(), self.step_s, self.draw, seed or 0)

    def digest(self) -> str:
        """Identifies the content."""
        content = hashlib.blake2b(repr((self.finite, self.step_s, self.draw)).encode(), digest_size=16)
        for pool in (self.given, self.pool):
            if pool is not None:
                for array in (pool.vcpu, pool.memory_mb, pool.cpu.lengths, pool.cpu.shares, pool.mem.shares):
                    content.update(np.ascontiguousarray(array).data)
        if self.given is not None:
            one = self.given
            content.update(repr((one.step_s, one.duration_s, list(one.names))).encode())
            for array in (one.create_s, one.delete_s, one.series, one.offset):
                content.update(np.ascontiguousarray(array).data)
        return content.hexdigest()
