"""Collects what the VMs of a node used, so that a closed loop can be simulated with them. Pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from ..numerics import FloatArray
from ..simulation.draw import SampledVm
from ..slices import Slice, Usage

#: Seconds of a step of the series.
STEP_S = 300.0

_DAY = round(86400 / STEP_S)
#: Share of the slices of a VM in which it may be missing.
_MOST_GAPS = 0.1


def fits_steps(slice_s: float) -> bool:
    """Whether slices of this length consist of whole steps."""
    return slice_s % STEP_S == 0


@dataclass(slots=True)
class _Series:
    """A VM: its first slice, by number, what it used in each, by number, and its last sizes."""

    first: int
    cpu: dict[int, FloatArray] = field(default_factory=dict)
    mem: dict[int, FloatArray] = field(default_factory=dict)
    vcpu: float = 0.0
    memory_mb: float = 0.0


class VmSeries:
    """The usage of the VMs of one node, slice by slice.

    Parameters
    ----------
    slice_s : float
        A multiple of :data:`STEP_S`.
    """

    def __init__(self, slice_s: float) -> None:
        self._slice_s = slice_s
        self._steps = round(slice_s / STEP_S)
        self._vms: dict[str, _Series] = {}

    def note(self, finished: Slice) -> None:
        """Take the next slice."""
        number = round(finished.end_s / self._slice_s) - 1
        for i, name in enumerate(finished.vms):
            cpu, mem = (_steps_of(usage, i, self._steps) for usage in (finished.cpu, finished.mem))
            if cpu is None or not finished.cpu.vm_config[i] > 0 or not finished.mem.vm_config[i] > 0:
                continue
            one = self._vms.setdefault(name, _Series(number))
            one.vcpu, one.memory_mb = float(finished.cpu.vm_config[i]), float(finished.mem.vm_config[i])
            one.cpu[number] = np.clip(cpu / one.vcpu, 0.0, 1.0)
            # All of the memory counts as used where it is not measured.
            one.mem[number] = np.ones(self._steps) if mem is None else np.clip(mem / one.memory_mb, 0.0, 1.0)

    def vms(self, most: int) -> tuple[SampledVm, ...]:
        """Series of whole days of some VMs, chosen by a hash of their names; of those that are known well enough."""
        names = sorted(self._vms, key=lambda name: zlib.crc32(name.encode()))
        found = (sampled for name in names if (sampled := self._sampled(self._vms[name])) is not None)
        return tuple(sampled for sampled, _ in zip(found, range(most), strict=False))

    def _sampled(self, one: _Series) -> SampledVm | None:
        numbers = range(one.first, max(one.cpu) + 1)
        length = len(numbers) * self._steps // _DAY * _DAY
        if not length or len(one.cpu) < (1 - _MOST_GAPS) * len(numbers):
            return None
        # Element i is a step s since 1970 with s % length == i, so that all VMs keep their clock.
        turn = one.first * self._steps % length
        cpu, mem = (np.roll(_held(numbers, of)[:length], turn).astype(np.float32) for of in (one.cpu, one.mem))
        return SampledVm(one.vcpu, one.memory_mb, cpu, mem)


def _held(numbers: range, of: dict[int, FloatArray]) -> FloatArray:
    """The slices one after the other; one that is missing is like the one before."""
    parts, last = [], of[numbers.start]
    for number in numbers:
        last = of.get(number, last)
        parts.append(last)
    return np.concatenate(parts)


def _steps_of(usage: Usage, row: int, steps: int) -> FloatArray | None:
    """The means of a VM in equal parts of a slice; None without samples."""
    samples = usage.vm_usage[row]
    samples = samples[~np.isnan(samples)]
    if not samples.size:
        return None
    starts = np.arange(steps) * samples.size // steps
    # Fewer samples than parts: a part without one has the one before.
    counts = np.maximum(np.diff(starts, append=samples.size), 1)
    result: FloatArray = np.add.reduceat(samples, starts) / counts
    return result
