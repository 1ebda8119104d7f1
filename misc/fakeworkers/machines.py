"""The simulated machines: workers, their VMs, and the usage of both at any time."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from misc.fakeworkers import loads
from misc.fakeworkers.layout import PageLayout
from misc.fakeworkers.loads import CALM_WAIT, Effect, Loads, NodeLoad

IntArray = npt.NDArray[np.int64]

FloatArray = npt.NDArray[np.float32]

#: Start of 2024, Unix ms: no counter is older. Hosts boot within a month from here, VMs within a month from the boot.
_ORIGIN_MS = 1_704_067_200_000

_MONTH_MS = 30 * 86_400_000

#: Usage changes in steps of 5 s and repeats after 45.5 hours, so that two days of a VM differ.
_STEP_MS = 5000

_STEPS = 2**15

_SHAPES = 32

#: vCPUs of a VM, and how many VMs in a hundred have them.
_SIZES = ((1, 30), (2, 35), (4, 20), (8, 12), (16, 3))

#: CPU time of the host itself and of waiting for disks, ns per ms.
OVERHEAD, _IOWAIT = 500_000, 20_000

_MEMORY_PER_VCPU_KIB = (1 << 20, 2 << 20, 4 << 20)

FORMATS = ("vmprobe", "vmprobe-textfile", "labels")


@dataclass(frozen=True, slots=True)
class Plan:
    """The workers to simulate.

    Attributes
    ----------
    workers, vms : int
        Number of workers, and of VMs on each of them.
    seed : int
    format : str
        One of ``FORMATS``.
    dialect : str
        Libvirt exporter of the format ``labels``.
    prefix : str
        Of the metrics of vmprobe.
    other_metrics : int
        Number of series of node_exporter that the aggregator ignores.
    probe_delay_ms : int
        Period of vmprobe; 0 = probe at each request.
    stats_period_s : int
        Period of the guests' memory statistics; 0 = always current.
    slow_s : float
        Delay of a slow worker.
    cores : int
        CPUs of each worker; 0 = enough for all vCPUs. With fewer, the VMs regularly use less.
    vcpu_delay : bool
        Whether node_exporter serves what ``misc/vcpu-delay.sh`` writes.
    """

    workers: int = 10
    vms: int = 40
    seed: int = 1
    format: str = "vmprobe"
    dialect: str = "kumina"
    prefix: str = "vmprobe"
    other_metrics: int = 300
    probe_delay_ms: int = 5000
    stats_period_s: int = 10
    slow_s: float = 3.0
    cores: int = 0
    vcpu_delay: bool = False

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The pages of each worker."""
        return ("node", "libvirt") if self.format == "labels" else ("metrics",)


class Shapes:
    """Periodic series of usage; each VM uses one of them from its own offset.

    CPU is a first-order autoregressive series around a level, memory another one that changes slowly. Resident memory
    is the maximum of the guest's usage in the last 42 minutes.

    Attributes
    ----------
    time_ns : (shapes, steps + 1) int64
        CPU time per vCPU since the start of the series, at the start of each step and at the end, ns.
    memory, resident : (shapes, steps) float32
        Shares of the memory of a VM, 0 to 1.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        level = draw.beta(2, 6, (_SHAPES, 1))
        cpu = np.clip(level * np.exp(0.4 * _autoregressive(draw, 0.95)), 0.002, 1.0)
        self.time_ns: IntArray = np.zeros((_SHAPES, _STEPS + 1), dtype=np.int64)
        np.cumsum((cpu * 1e6).astype(np.int64) * _STEP_MS, axis=1, out=self.time_ns[:, 1:])
        memory = np.clip(draw.beta(4, 4, (_SHAPES, 1)) * np.exp(0.12 * _autoregressive(draw, 0.999)), 0.05, 0.97)
        resident = memory
        for steps in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            resident = np.maximum(resident, np.roll(resident, steps, axis=1))
        self.memory: FloatArray = memory.astype(np.float32)
        self.resident: FloatArray = resident.astype(np.float32)


@cache
def shapes_of(seed: int) -> Shapes:
    """The shapes of a seed; they are expensive, and never change."""
    return Shapes(seed)


def _autoregressive(draw: np.random.Generator, coefficient: float) -> npt.NDArray[np.float64]:
    """(shapes, steps) float64: periodic first-order autoregressive series of variance 1."""
    noise = np.fft.rfft(draw.normal(0, math.sqrt(1 - coefficient**2), (_SHAPES, _STEPS)))
    turns = np.exp(-2j * np.pi * np.arange(noise.shape[1]) / _STEPS)
    return np.fft.irfft(noise / (1 - coefficient * turns), _STEPS)


@dataclass(slots=True)
class Worker:
    """A host and its VMs: the state that events change. All usage is computed from the shapes.

    The CPU counter of a VM is its CPU time since 2024 - ``base``, and that of its waits likewise with ``wait_base``.
    The host has counted CPU time since 2024 + ``shift`` of a running VM, and ``shift`` of a VM that is shut off
    (``away``).

    Attributes
    ----------
    layouts : dict of str to PageLayout
        Layouts of the pages by endpoint; valid until a VM comes or goes.
    loads : Loads
        What it does at times instead of its regular usage.
    """

    #: Whether the events of the control endpoint may happen to it.
    takes_events: ClassVar[bool] = True

    index: int
    plan: Plan
    shapes: Shapes
    names: tuple[str, ...]
    uuids: tuple[str, ...]
    vcpus: IntArray
    memory_kib: IntArray
    shape: IntArray
    offset_ms: IntArray
    stats_phase_ms: IntArray
    kernel_permille: IntArray
    probe_phase_ms: int
    boot_ms: int
    started_ms: IntArray
    loads: Loads = field(init=False)
    base: IntArray = field(init=False)
    wait_base: IntArray = field(init=False)
    shift: IntArray = field(init=False)
    away: npt.NDArray[np.bool_] = field(init=False)
    node_base: int = 0
    layouts: dict[str, PageLayout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loads = Loads(self._regular_ns)
        self.base = self.cpu_ns(self.started_ms)
        self.wait_base = self.wait_ns(self.started_ms)
        self.shift = -self.base
        self.away = np.zeros(self.vcpus.size, dtype=bool)

    @property
    def cores(self) -> int:
        """CPUs of the host: those of the plan, or enough for all vCPUs, in multiples of 8."""
        return self.plan.cores or 8 * (int(self.vcpus.sum()) // 8 + 1)

    @property
    def memory_total_kib(self) -> int:
        """Memory of the host: enough for all VMs, 64 MiB for each VM and 8 GiB, in multiples of 16 GiB."""
        needed = int(self.memory_kib.sum()) + self.vcpus.size * (64 << 10) + (8 << 20)
        return -(-needed // (16 << 20)) * (16 << 20)

    @property
    def _free(self) -> int:
        """What the host has for its VMs, ns per ms."""
        return self.cores * 1_000_000 - OVERHEAD - _IOWAIT

    def cpu_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: CPU time of each VM since 2024, as if it had always been running, ns."""
        return self.loads.cpu_ns(at_ms)

    def wait_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: time since 2024 in which each VM waited for a CPU, ns."""
        return self.loads.wait_ns(at_ms)

    def node_load(self, at_ms: int) -> NodeLoad:
        """Waits and pressure of the host since it booted."""
        load = self.loads.node(self.boot_ms, at_ms)
        used = self.counted_ns(at_ms) + (at_ms - self.boot_ms) * OVERHEAD
        return load._replace(wait_ns=load.wait_ns + used // CALM_WAIT)

    def _regular_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: CPU time of each VM without loads, ns."""
        lap, step, rest = self._place(at_ms)
        series = self.shapes.time_ns
        start = series[self.shape, step]
        per_vcpu = lap * series[self.shape, -1] + start
        per_vcpu += (series[self.shape, step + 1] - start) // _STEP_MS * rest
        return self._fit(per_vcpu) * self.vcpus

    def microcores(self, at_ms: int) -> IntArray:
        """(vms,) int64: CPU usage of each VM, millionths of a core."""
        _, step, _ = self._place(at_ms)
        series = self.shapes.time_ns
        usage = self._fit((series[self.shape, step + 1] - series[self.shape, step]) // _STEP_MS) * self.vcpus
        load = self.loads.current(at_ms)
        return usage if load is None else np.where(load.effect.affected, load.effect.usage, usage)

    def _fit(self, per_vcpu: IntArray) -> IntArray:
        """Usage per vCPU, less on a host with fewer CPUs than vCPUs, so that all VMs together find enough."""
        vcpus = int(self.vcpus.sum())
        if vcpus * 1_000_000 <= self._free:
            return per_vcpu
        return per_vcpu // 1000 * (self._free // (vcpus * 1000))

    def iowait_ns(self, at_ms: int) -> int:
        """Time that the CPUs waited for disks since the host booted, ns."""
        return (at_ms - self.boot_ms) * _IOWAIT

    def memory_share(self, at_ms: int | IntArray) -> npt.NDArray[np.float64]:
        """(vms,) float64: share of its memory that each guest uses, 0 to 1."""
        return self._share(self.shapes.memory, at_ms)

    def resident_share(self, at_ms: int | IntArray) -> npt.NDArray[np.float64]:
        """(vms,) float64: share of each guest's memory that is resident on the host, 0 to 1."""
        return self._share(self.shapes.resident, at_ms)

    def _share(self, series: FloatArray, at_ms: int | IntArray) -> npt.NDArray[np.float64]:
        """(vms,) float64: a memory series of the shapes for each VM, 0 to 1."""
        _, step, rest = self._place(at_ms)
        start, end = series[self.shape, step], series[self.shape, (step + 1) % _STEPS]
        return start + (end - start) * (rest / _STEP_MS)

    def _place(self, at_ms: int | IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Repetition of the series, step in it, and ms since the start of the step, for each VM."""
        steps, rest = np.divmod(at_ms - _ORIGIN_MS + self.offset_ms, _STEP_MS)
        lap, step = np.divmod(steps, _STEPS)
        return lap, step, rest

    def counted_ns(self, at_ms: int) -> int:
        """CPU time of the VMs that the host has counted since it booted, ns."""
        counted = self.shift + np.where(self.away, 0, self.cpu_ns(at_ms))
        return sum(counted.tolist()) - self.node_base

    def epoch_ms(self, now_ms: int) -> int:
        """Time of the last probe, Unix ms."""
        delay = 0 if self.plan.format == "labels" else self.plan.probe_delay_ms
        return now_ms if delay == 0 else now_ms - (now_ms - self.probe_phase_ms) % delay

    def reboot(self, at_ms: int) -> None:
        """Boot the host and all running VMs."""
        self.node_base += self.counted_ns(at_ms)
        self.boot_ms = at_ms
        for vm in np.flatnonzero(~self.away).tolist():
            self.restart_vm(vm, at_ms)

    def restart_vm(self, vm: int, at_ms: int) -> None:
        """Reset the counters of a VM; those of the host go on."""
        self.base[vm], self.wait_base[vm] = self.cpu_ns(at_ms)[vm], self.wait_ns(at_ms)[vm]
        self.started_ms[vm] = at_ms

    def stop_vm(self, vm: int, at_ms: int) -> None:
        """Shut a VM off."""
        self.shift[vm] += self.cpu_ns(at_ms)[vm]
        self.away[vm] = True
        self._renew_load(at_ms)
        self.layouts.clear()

    def start_vm(self, vm: int, at_ms: int) -> None:
        """Start a VM that was shut off."""
        self.shift[vm] -= self.cpu_ns(at_ms)[vm]
        self.away[vm] = False
        self._renew_load(at_ms)
        self.restart_vm(vm, at_ms)
        self.layouts.clear()

    def begin_load(self, name: str, at_ms: int, end_ms: int | None, vm: int | None = None) -> None:
        """Begin a load instead of the current one.

        Parameters
        ----------
        name : str
            Key of ``LOADS``.
        at_ms : int
        end_ms : int or None
            None = until :meth:`end_load`.
        vm : int, optional
            Number of the VM of a quota; default: the first one that runs.

        Raises
        ------
        ValueError
            When it is not possible on this worker.
        """
        effect = self.effect_of(name, vm)
        self.loads.end(at_ms)
        self.loads.begin(name, effect, at_ms, end_ms)

    def end_load(self, at_ms: int) -> None:
        """End the current load, if there is one."""
        self.loads.end(at_ms)

    def effect_of(self, name: str, vm: int | None = None) -> Effect:
        """What a load would change; see :meth:`begin_load`."""
        if name == "contention":
            return loads.contention(self.vcpus, self.away, self._free)
        if name == "memory-pressure":
            return loads.lack_of_memory(self.vcpus.size)
        running = np.flatnonzero(~self.away).tolist()
        if not running or (vm is not None and vm not in running):
            raise ValueError(f"vm: worker {self.index} has no VM{'' if vm is None else f' number {vm}'} for {name}")
        return loads.quota(self.vcpus, running[0] if vm is None else vm)

    def _renew_load(self, at_ms: int) -> None:
        """Share the CPUs among the VMs that run now."""
        load = self.loads.current(at_ms)
        if load is not None and load.name == "contention":
            self.loads.end(at_ms)
            try:
                self.begin_load(load.name, at_ms, load.end_ms)
            except ValueError:
                return  # the others find enough


def build_worker(plan: Plan, shapes: Shapes, index: int) -> Worker:
    """Build a worker; it depends on the seed and its number only, not on the number of workers."""
    draw = np.random.default_rng([plan.seed, index])
    n = plan.vms
    vcpus = draw.choice([vcpus for vcpus, share in _SIZES for _ in range(share)], size=n).astype(np.int64)
    boot_ms = _ORIGIN_MS + int(draw.integers(_MONTH_MS))
    return Worker(
        index=index,
        plan=plan,
        shapes=shapes,
        names=tuple(f"instance-{index * n + j:08x}" for j in range(n)),
        uuids=tuple(str(uuid.UUID(bytes=draw.bytes(16), version=4)) for _ in range(n)),
        vcpus=vcpus,
        memory_kib=vcpus * draw.choice(_MEMORY_PER_VCPU_KIB, size=n),
        shape=draw.integers(_SHAPES, size=n),
        offset_ms=draw.integers(_STEPS * _STEP_MS, size=n),
        stats_phase_ms=draw.integers(max(plan.stats_period_s, 1), size=n) * 1000,
        kernel_permille=draw.integers(100, 400, size=n),
        probe_phase_ms=int(draw.integers(max(plan.probe_delay_ms, 1))),
        boot_ms=boot_ms,
        started_ms=boot_ms + draw.integers(_MONTH_MS, size=n),
    )


def build_workers(plan: Plan) -> list[Worker]:
    """Build all workers of a plan."""
    shapes = shapes_of(plan.seed)
    return [build_worker(plan, shapes, index) for index in range(plan.workers)]
