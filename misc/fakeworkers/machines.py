"""The simulated machines: workers, their VMs, and what both use at any time."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

FloatArray = npt.NDArray[np.float32]

#: No counter is older: start of 2024, Unix milliseconds. Hosts boot in the month after, their VMs in the next.
_ORIGIN_MS = 1_704_067_200_000

_MONTH_MS = 30 * 86_400_000

#: Usage moves in steps of 5 s and repeats after 45.5 hours: no VM's day is like its last.
_STEP_MS = 5000

_STEPS = 2**15

_SHAPES = 32

_SIZES = ((1, 30), (2, 35), (4, 20), (8, 12), (16, 3))

_MEMORY_PER_VCPU_KIB = (1 << 20, 2 << 20, 4 << 20)

#: What the host uses for itself and what it waits for disks, ns of CPU per ms.
_OVERHEAD, _IOWAIT = 500_000, 20_000

JIFFY_NS = 10_000_000

_UNLIMITED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played; ``stats_period_s`` is how often guests tell of their memory, 0 = always as of now."""

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

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The pages of each worker."""
        return ("node", "libvirt") if self.format == "labels" else ("metrics",)


class Shapes:
    """Courses of usage that the VMs share, each from a place of its own.

    CPU is a first-order autoregressive series around a level, memory another one that hardly moves; resident memory
    stays where the guest's use was highest in the last 42 minutes. All of them end where they begin.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        level = draw.beta(2, 6, (_SHAPES, 1))
        cpu = np.clip(level * np.exp(0.4 * _wander(draw, 0.95)), 0.002, 1.0)
        #: ns of CPU time per vCPU since the start of the course, at the start of each step and at its end.
        self.time_ns: IntArray = np.zeros((_SHAPES, _STEPS + 1), dtype=np.int64)
        np.cumsum((cpu * 1e6).astype(np.int64) * _STEP_MS, axis=1, out=self.time_ns[:, 1:])
        memory = np.clip(draw.beta(4, 4, (_SHAPES, 1)) * np.exp(0.12 * _wander(draw, 0.999)), 0.05, 0.97)
        resident = memory
        for steps in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            resident = np.maximum(resident, np.roll(resident, steps, axis=1))
        self.memory: FloatArray = memory.astype(np.float32)
        self.resident: FloatArray = resident.astype(np.float32)


def _wander(draw: np.random.Generator, memory: float) -> npt.NDArray[np.float64]:
    """(shapes, steps): first-order autoregressive series of variance 1, each one a circle."""
    noise = np.fft.rfft(draw.normal(0, math.sqrt(1 - memory**2), (_SHAPES, _STEPS)))
    turns = np.exp(-2j * np.pi * np.arange(noise.shape[1]) / _STEPS)
    return np.fft.irfft(noise / (1 - memory * turns), _STEPS)


@dataclass(slots=True)
class Worker:
    """A host and its VMs; what happens to it (a reboot, a VM that leaves) is kept here, all else is looked up.

    A counter is what its VM has used since 2024 less ``base``; the host has counted that plus ``shift`` of a VM that
    is there, and ``shift`` of one that is away.
    """

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
    base: IntArray = field(init=False)
    shift: IntArray = field(init=False)
    away: npt.NDArray[np.bool_] = field(init=False)
    node_base: int = 0
    layouts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = self.cpu_ns(self.started_ms)
        self.shift = -self.base
        self.away = np.zeros(self.vcpus.size, dtype=bool)

    @property
    def cores(self) -> int:
        """Enough for all VMs at their most, in eights."""
        return 8 * (int(self.vcpus.sum()) // 8 + 1)

    @property
    def memory_total_kib(self) -> int:
        """Enough for all VMs, 64 MiB beside each and 8 GiB for the host, in 16 GiB."""
        needed = int(self.memory_kib.sum()) + self.vcpus.size * (64 << 10) + (8 << 20)
        return -(-needed // (16 << 20)) * (16 << 20)

    def cpu_ns(self, at_ms: int | IntArray) -> IntArray:
        """What each VM's vCPUs have used since the origin, as if it had always been there."""
        lap, step, rest = self._place(at_ms)
        course = self.shapes.time_ns
        begun = course[self.shape, step]
        per_vcpu = lap * course[self.shape, -1] + begun
        per_vcpu += (course[self.shape, step + 1] - begun) // _STEP_MS * rest
        return per_vcpu * self.vcpus

    def microcores(self, at_ms: int) -> IntArray:
        """What each VM uses at a moment, millionths of a core."""
        _, step, _ = self._place(at_ms)
        course = self.shapes.time_ns
        return (course[self.shape, step + 1] - course[self.shape, step]) // _STEP_MS * self.vcpus

    def share(self, course: FloatArray, at_ms: int | IntArray) -> npt.NDArray[np.float64]:
        """A course of memory at a moment, 0 to 1."""
        _, step, rest = self._place(at_ms)
        begun, ended = course[self.shape, step], course[self.shape, (step + 1) % _STEPS]
        return begun + (ended - begun) * (rest / _STEP_MS)

    def _place(self, at_ms: int | IntArray) -> tuple[IntArray, IntArray, IntArray]:
        steps, rest = np.divmod(at_ms - _ORIGIN_MS + self.offset_ms, _STEP_MS)
        lap, step = np.divmod(steps, _STEPS)
        return lap, step, rest

    def counted_ns(self, at_ms: int) -> int:
        """What the host has counted of its VMs since it booted."""
        counted = self.shift + np.where(self.away, 0, self.cpu_ns(at_ms))
        return sum(counted.tolist()) - self.node_base

    def epoch_ms(self, now_ms: int) -> int:
        """When the probe last looked."""
        delay = 0 if self.plan.format == "labels" else self.plan.probe_delay_ms
        return now_ms if delay == 0 else now_ms - (now_ms - self.probe_phase_ms) % delay

    def reset(self, at_ms: int) -> None:
        """The host boots, and all VMs that are there."""
        self.node_base += self.counted_ns(at_ms)
        self.boot_ms = at_ms
        for vm in np.flatnonzero(~self.away).tolist():
            self.restart(vm, at_ms)

    def restart(self, vm: int, at_ms: int) -> None:
        """A VM's counters start again; the host's go on."""
        self.base[vm] = self.cpu_ns(at_ms)[vm]
        self.started_ms[vm] = at_ms

    def leave(self, vm: int, at_ms: int) -> None:
        """A VM is shut off."""
        self.shift[vm] += self.cpu_ns(at_ms)[vm]
        self.away[vm] = True
        self.layouts.clear()

    def come_back(self, vm: int, at_ms: int) -> None:
        """A VM that was shut off is started."""
        self.shift[vm] -= self.cpu_ns(at_ms)[vm]
        self.away[vm] = False
        self.restart(vm, at_ms)
        self.layouts.clear()


def build_worker(plan: Plan, shapes: Shapes, index: int) -> Worker:
    """A worker as its seed and number want it, however many others there are."""
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


# What the exporters would tell, in the words and units of vmprobe.


def domain_metrics(worker: Worker, at_ms: int) -> dict[str, IntArray]:
    """What changes of the VMs, one value for each of them; memory is as old as the guest's last statistics."""
    total = worker.cpu_ns(at_ms)
    used = total - worker.base
    cpu = used // 1000 * 1000
    kernel = cpu // 1000 * worker.kernel_permille
    runtime = used // 8
    period_ms = worker.plan.stats_period_s * 1000
    age_ms = (at_ms - worker.stats_phase_ms) % period_ms if period_ms else 0
    told_ms = np.maximum(at_ms - age_ms, worker.started_ms)
    told_used = worker.cpu_ns(told_ms) - worker.base
    visible = visible_kib(worker)
    share = worker.share(worker.shapes.memory, told_ms)
    unused = visible - (visible * share).astype(np.int64)
    pages = _resident_kib(worker, at_ms) // 4
    microcores = worker.microcores(at_ms)
    instructions = microcores * 2000
    return {
        "cpu_cputime": cpu,
        "cpu_systemtime": kernel,
        "cpu_usertime": cpu - kernel,
        "memory_diskcaches": (visible * share * 0.1).astype(np.int64),
        "memory_last_update": told_ms // 1000,
        "memory_majorfault": 20 + told_used // 10**13,
        "memory_minorfault": 1000 + told_used // 10**7,
        "memory_rss": pages * 4,
        "memory_unused": unused,
        "memory_usable": unused - unused // 400,
        "perf_hwbranchinstructions": instructions // 5,
        "perf_hwbranchmisses": instructions // 400,
        "perf_hwcachemisses": instructions // 600,
        "perf_hwcachereferences": instructions // 60,
        "perf_hwcpucycles": microcores * 2400,
        "perf_hwinstructions": instructions,
        "perf_swcontextswitches": 60 + microcores // 5000,
        "perf_swcpumigrations": microcores // 400_000,
        "perf_swpagefaults": microcores // 300_000,
        "perf_swtaskclock": 7_000_000 + microcores * 4,
        "sched_runtime": runtime,
        "sched_timeslices": runtime // 45_000,
        "sched_waittime": runtime // 6,
        "stat_majflt": 6 + used // 10**13,
        "stat_minflt": 12_000 + used // 2_000_000,
        "stat_rss": pages,
    }


def domain_constants(worker: Worker) -> dict[str, list[int]]:
    """What stays as it is."""
    none = [0] * worker.vcpus.size
    return {
        "cpu_alloc": worker.vcpus.tolist(),
        "memory_alloc": worker.memory_kib.tolist(),
        "memory_available": visible_kib(worker).tolist(),
        "memory_hugetlb_pgfail": none,
        "memory_hugetlbpgalloc": none,
        "memory_swapin": none,
        "memory_swapout": none,
        "stat_cmajflt": none,
        "stat_cminflt": none,
        "stat_rsslim": [_UNLIMITED] * worker.vcpus.size,
        "stat_vsize": (worker.memory_kib * 1024 + 1_400_000_000).tolist(),
    }


def visible_kib(worker: Worker) -> IntArray:
    """What a guest's kernel leaves of its memory."""
    return worker.memory_kib - worker.memory_kib // 64 - 36_000


def _resident_kib(worker: Worker, at_ms: int) -> IntArray:
    visible = visible_kib(worker)
    resident = (visible * worker.share(worker.shapes.resident, at_ms)).astype(np.int64)
    return worker.memory_kib - visible + resident


def node_metrics(worker: Worker, at_ms: int) -> dict[str, int]:
    """What is told of the host."""
    elapsed_ms = at_ms - worker.boot_ms
    busy = worker.counted_ns(at_ms) + elapsed_ms * _OVERHEAD
    iowait = elapsed_ms * _IOWAIT
    idle = elapsed_ms * 1_000_000 * worker.cores - busy - iowait
    kernel = busy * 3 // 20
    total = worker.memory_total_kib
    resident = sum(np.where(worker.away, 0, _resident_kib(worker, at_ms)).tolist())
    available = total - resident - (2 << 20)
    cached = 3 << 20
    microcores = sum(np.where(worker.away, 0, worker.microcores(at_ms)).tolist())
    instructions = microcores * 2000
    return {
        "cpu_freq": 2_000_000 + microcores // worker.cores,
        "cpu_idle": idle // JIFFY_NS * JIFFY_NS,
        "cpu_iowait": iowait // JIFFY_NS * JIFFY_NS,
        "cpu_kernel": kernel // JIFFY_NS * JIFFY_NS,
        "cpu_maxfreq": 3_500_000,
        "cpu_minfreq": 800_000,
        "cpu_total": worker.cores,
        "cpu_user": (busy - kernel) // JIFFY_NS * JIFFY_NS,
        "memory_available": available,
        "memory_buffers": 30_000,
        "memory_cached": cached,
        "memory_free": available - cached,
        "memory_total": total,
        "perf_hwbranchinstructions": instructions // 5,
        "perf_hwbranchmisses": instructions // 400,
        "perf_hwcachemisses": instructions // 600,
        "perf_hwcachereferences": instructions // 60,
        "perf_hwcpucycles": microcores * 2400,
        "perf_hwinstructions": instructions,
        "perf_swcontextswitches": 3000 + microcores // 4000,
        "perf_swcpumigrations": 10 + microcores // 400_000,
        "perf_swpagefaults": 10_000 + microcores // 1000,
        "perf_swtaskclock": worker.cores * 1_000_000_000,
        "probe_delay": worker.plan.probe_delay_ms,
        "probe_epoch": at_ms,
        "sched_runtime": busy,
        "sched_timeslices": busy // 3_000_000,
        "sched_waittime": busy // 25,
    }
