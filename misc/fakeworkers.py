#!/usr/bin/env python3
"""Plays many workers on one port: exporter pages of VMs that never existed, and every fault that a scraper must bear.

The same seed and time give the same page, whatever was asked before, for usage is looked up rather than advanced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.adapters.commandline import Parser, libraries, number, whole_number

with libraries("live"):
    import numpy as np
    import numpy.typing as npt
    from aiohttp import web


IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

FORMATS = ("vmprobe", "vmprobe-textfile", "labels")
DIALECTS = ("kumina", "tinkoff", "inovex")

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
_JIFFY_NS = 10_000_000
_UNLIMITED = 2**64 - 1
_EXPOSITION = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
_BOMB_MB = 256
_LONG_LINE_BYTES = 10_000_000


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
    layouts: dict[str, _Layout] = field(default_factory=dict)

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
    visible = _visible_kib(worker)
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
        "memory_available": _visible_kib(worker).tolist(),
        "memory_hugetlb_pgfail": none,
        "memory_hugetlbpgalloc": none,
        "memory_swapin": none,
        "memory_swapout": none,
        "stat_cmajflt": none,
        "stat_cminflt": none,
        "stat_rsslim": [_UNLIMITED] * worker.vcpus.size,
        "stat_vsize": (worker.memory_kib * 1024 + 1_400_000_000).tolist(),
    }


def _visible_kib(worker: Worker) -> IntArray:
    """What a guest's kernel leaves of its memory."""
    return worker.memory_kib - worker.memory_kib // 64 - 36_000


def _resident_kib(worker: Worker, at_ms: int) -> IntArray:
    visible = _visible_kib(worker)
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
        "cpu_idle": idle // _JIFFY_NS * _JIFFY_NS,
        "cpu_iowait": iowait // _JIFFY_NS * _JIFFY_NS,
        "cpu_kernel": kernel // _JIFFY_NS * _JIFFY_NS,
        "cpu_maxfreq": 3_500_000,
        "cpu_minfreq": 800_000,
        "cpu_total": worker.cores,
        "cpu_user": (busy - kernel) // _JIFFY_NS * _JIFFY_NS,
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


# From there to text.


@dataclass(frozen=True, slots=True)
class _Layout:
    """A page without its values: the text before each of them and the text at the end; where each value is found."""

    texts: tuple[str, ...]
    places: tuple[int, ...]

    def fill(self, values: Sequence[float], write: Callable[[Any], str]) -> bytes:
        parts = [""] * (2 * len(self.places) + 1)
        parts[0::2] = self.texts
        parts[1::2] = map(write, map(values.__getitem__, self.places))
        return "".join(parts).encode()


def _layout(lines: Iterable[tuple[str, int | str]]) -> _Layout:
    """Lay out lines of a text, and a value's place or what stands there for good."""
    texts, places, text = [], [], ""
    for head, value in lines:
        text += head
        if isinstance(value, str):
            text += value + "\n"
        else:
            texts.append(text)
            places.append(value)
            text = "\n"
    return _Layout((*texts, text), tuple(places))


def go_number(value: float) -> str:
    """As Go writes a float64 in the fewest digits: with an exponent from a million on.

    >>> [go_number(v) for v in (0, 857.16, 999999.0, 14099215000, 2**64 - 1)]
    ['0', '857.16', '999999', '1.4099215e+10', '1.8446744073709552e+19']
    """
    if isinstance(value, int) and abs(value) < 2**53:
        digits = str(value)
        if value < 1_000_000:
            return digits
        exponent, digits = len(digits) - 1, digits.rstrip("0")
    else:
        whole, _, fraction = repr(float(value)).partition(".")
        if "e" in whole + fraction:
            return f"{whole}.{fraction}" if fraction else whole
        if value < 1_000_000:
            return whole if fraction == "0" else f"{whole}.{fraction}"
        exponent, digits = len(whole) - 1, (whole + fraction).rstrip("0")
    return f"{digits[0]}.{digits[1:]}e+{exponent:02d}" if len(digits) > 1 else f"{digits}e+{exponent:02d}"


def render_vmprobe(worker: Worker, epoch_ms: int) -> bytes:
    """The page of a worker whose probe looked at ``epoch_ms``, bare or as node_exporter serves it.

    Raises
    ------
    ValueError
        When that is before the worker, or one of its VMs, was started.
    """
    _check(worker, epoch_ms)
    domains, node = domain_metrics(worker, epoch_ms), node_metrics(worker, epoch_ms)
    layout = worker.layouts.get("metrics")
    if layout is None:
        layout = worker.layouts["metrics"] = _vmprobe_layout(worker, list(domains), list(node))
    return layout.fill(_flat(domains, node), str if worker.plan.format == "vmprobe" else go_number)


def _check(worker: Worker, at_ms: int) -> None:
    if at_ms < max(worker.boot_ms, int(worker.started_ms.max(initial=0))):
        raise ValueError(f"at {at_ms} ms worker {worker.index} was not there yet")


def _flat(rows: Mapping[str, IntArray], others: Mapping[str, float]) -> list[float]:
    values: list[float] = np.stack(list(rows.values())).ravel().tolist()
    values.extend(others.values())
    return values


def _vmprobe_layout(worker: Worker, domain_names: Sequence[str], node_names: Sequence[str]) -> _Layout:
    plan, n = worker.plan, worker.vcpus.size
    constants = domain_constants(worker)
    lines: list[tuple[str, int | str]] = []
    write = str if plan.format == "vmprobe" else go_number
    for j in np.flatnonzero(~worker.away).tolist():
        start = f"{plan.prefix}_domain_{worker.names[j].replace('-', '')}_"
        lines += [(start + name, i * n + j) for i, name in enumerate(domain_names)]
        lines += [(start + name, write(values[j])) for name, values in constants.items()]
    lines += [(f"{plan.prefix}_global_{name}", len(domain_names) * n + i) for i, name in enumerate(node_names)]
    if plan.format == "vmprobe":
        # The probe keeps them in a hash map, and writes them as they come.
        order = np.random.default_rng(plan.seed).permutation(len(lines)).tolist()
        return _layout((f"{lines[i][0]} ", lines[i][1]) for i in order)
    head = "# HELP {0} Metric read from vmprobe.prom\n# TYPE {0} untyped\n{0} "
    named = [(head.format(name), value) for name, value in sorted(lines)]
    named[0] = (_other_metrics(plan.seed, plan.other_metrics) + named[0][0], named[0][1])
    return _layout(named)


_OTHERS = (
    ("node_disk_io_time_seconds_total", "counter", "Seconds spent with I/O.", 'device="sd{}"'),
    ("node_disk_read_bytes_total", "counter", "Bytes read.", 'device="sd{}"'),
    ("node_filesystem_avail_bytes", "gauge", "Room left.", 'device="/dev/sd{0}1",fstype="ext4",mountpoint="/srv/{0}"'),
    ("node_hwmon_temp_celsius", "gauge", "Temperature.", 'chip="platform_coretemp_0",sensor="temp{}"'),
    (
        "node_interrupts_total",
        "counter",
        "Interrupts.",
        'cpu="{0}",devices="timer, \\"{0}\\"",info="IO-APIC",type="{0}"',
    ),
    ("node_network_receive_bytes_total", "counter", "Bytes received.", 'device="tap{}"'),
    ("node_network_transmit_drop_total", "counter", "Packets dropped.", 'device="tap{}"'),
    ("node_scrape_collector_duration_seconds", "gauge", "Duration of a collector.", 'collector="c{}"'),
    ("node_softnet_processed_total", "counter", "Packets handled.", 'cpu="{}"'),
    ("node_systemd_unit_state", "gauge", "State of a unit.", 'name="unit-{}.service",state="active",type="simple"'),
)


@cache
def _other_metrics(seed: int, count: int) -> str:
    """What node_exporter tells beside; nobody here looks at it, so that it need not change."""
    draw = np.random.default_rng(seed)
    text = []
    for i, (name, kind, meaning, labels) in enumerate(_OTHERS):
        series = range(i, count, len(_OTHERS))
        if not series:
            continue
        text.append(f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n")
        values = [go_number(value) for value in np.round(draw.lognormal(6, 5, len(series)), 3).tolist()]
        if name == "node_hwmon_temp_celsius":
            values[:2] = ["NaN", "+Inf"][: len(values)]
        text += [f"{name}{{{labels.format(j)}}} {value}\n" for j, value in enumerate(values)]
    return "".join(text)


def render_node(worker: Worker, at_ms: int) -> bytes:
    """The page of a worker's node_exporter."""
    _check(worker, at_ms)
    node, cores = node_metrics(worker, at_ms), worker.cores
    guest = min(worker.counted_ns(at_ms), node["cpu_user"])
    modes = {"idle": node["cpu_idle"], "iowait": node["cpu_iowait"], "system": node["cpu_kernel"]}
    modes |= {"user": node["cpu_user"], "guest": guest}
    # Shared evenly by the CPUs, and nothing lost: the hundredths that are over go to the last ones.
    values: list[float] = [(ns // _JIFFY_NS + cpu) // cores / 100 for ns in modes.values() for cpu in range(cores)]
    values += [node[f"memory_{name}"] * 1024 for name in _NODE_MEMORY.values()]
    values += [worker.boot_ms / 1000, at_ms / 1000]
    layout = worker.layouts.get("node")
    if layout is None:
        layout = worker.layouts["node"] = _layout(_node_lines(worker, list(modes)))
    return layout.fill(values, go_number)


_NODE_MEMORY = {
    "MemAvailable": "available",
    "MemTotal": "total",
    "MemFree": "free",
    "Buffers": "buffers",
    "Cached": "cached",
}


def _node_lines(worker: Worker, modes: Sequence[str]) -> Iterator[tuple[str, int | str]]:
    cores = worker.cores
    yield _other_metrics(worker.plan.seed, worker.plan.other_metrics), ""
    head = (
        "# HELP node_cpu_guest_seconds_total Seconds spent for guests.\n# TYPE node_cpu_guest_seconds_total counter\n"
    )
    for cpu in range(cores):
        yield f'{head}node_cpu_guest_seconds_total{{cpu="{cpu}",mode="nice"}} ', "0"
        yield f'node_cpu_guest_seconds_total{{cpu="{cpu}",mode="user"}} ', modes.index("guest") * cores + cpu
        head = ""
    head = "# HELP node_cpu_seconds_total Seconds spent in each mode.\n# TYPE node_cpu_seconds_total counter\n"
    for cpu in range(cores):
        for mode in ("idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"):
            place = modes.index(mode) * cores + cpu if mode in modes else "0"
            yield f'{head}node_cpu_seconds_total{{cpu="{cpu}",mode="{mode}"}} ', place
            head = ""
    gauges = [f"node_memory_{name}_bytes" for name in _NODE_MEMORY]
    for i, name in enumerate([*gauges, "node_boot_time_seconds", "node_time_seconds"]):
        yield f"# HELP {name} As the kernel tells it.\n# TYPE {name} gauge\n{name} ", len(modes) * cores + i


#: Metric of a dialect -> (kind, the row that it shows).
_INFO = {
    "libvirt_domain_info_cpu_time_seconds_total": ("counter", "cpu_seconds"),
    "libvirt_domain_info_maximum_memory_bytes": ("gauge", "maximum"),
    "libvirt_domain_info_memory_usage_bytes": ("gauge", "balloon"),
    "libvirt_domain_info_virtual_cpus": ("gauge", "vcpus"),
}
_STATS = {
    f"libvirt_domain_memory_stats_{name}_bytes": ("gauge", name) for name in ("available", "rss", "unused", "usable")
} | {f"libvirt_domain_memory_stats_{name}_fault_total": ("counter", f"{name}fault") for name in ("major", "minor")}
_LIBVIRT: dict[str, dict[str, tuple[str, str]]] = {
    "kumina": {**_INFO, "libvirt_domain_state_code": ("gauge", "state")},
    "tinkoff": {
        **_INFO,
        **_STATS,
        "libvirt_domain_info_vstate": ("gauge", "state"),
        "libvirt_domain_memory_stats_actual_balloon_bytes": ("gauge", "balloon"),
    },
    "inovex": {
        **_INFO,
        **_STATS,
        "libvirt_domain_info_state": ("gauge", "state"),
        "libvirt_domain_memory_stats_current_balloon_bytes": ("gauge", "balloon"),
        "libvirt_domain_memory_stats_swap_in_bytes": ("gauge", "none"),
        "libvirt_domain_memory_stats_swap_out_bytes": ("gauge", "none"),
    },
}


def render_libvirt(worker: Worker, at_ms: int) -> bytes:
    """The page of a worker's libvirt exporter; Tinkoff's lists VMs that are shut off, with zeros."""
    _check(worker, at_ms)
    told, n = domain_metrics(worker, at_ms), worker.vcpus.size
    there = (~worker.away).astype(np.int64)
    rows: dict[str, npt.NDArray[Any]] = {
        "vcpus": worker.vcpus,
        "maximum": worker.memory_kib * 1024,
        "state": np.where(worker.away, 5, 1),
        "none": there * 0,
        "balloon": there * worker.memory_kib * 1024,
        "available": there * _visible_kib(worker) * 1024,
    }
    rows |= {name: there * told[f"memory_{name}"] * 1024 for name in ("rss", "unused", "usable")}
    rows |= {name: there * told[f"memory_{name}"] for name in ("majorfault", "minorfault")}
    rows["cpu_seconds"] = there * told["cpu_cputime"] / 1e9
    layout = worker.layouts.get("libvirt")
    if layout is None:
        place = {name: i * n for i, name in enumerate(rows)}
        layout = worker.layouts["libvirt"] = _layout(_libvirt_lines(worker, place))
    return layout.fill([value for row in rows.values() for value in row.tolist()], go_number)


def _libvirt_lines(worker: Worker, place: Mapping[str, int]) -> Iterator[tuple[str, int | str]]:
    dialect = worker.plan.dialect
    listed = range(worker.vcpus.size) if dialect == "tinkoff" else np.flatnonzero(~worker.away).tolist()
    for metric, (kind, row) in sorted(_LIBVIRT[dialect].items()):
        head = f"# HELP {metric} As libvirt tells it.\n# TYPE {metric} {kind}\n"
        for j in listed:
            labels = f'domain="{worker.names[j]}"'
            if dialect == "kumina":
                labels += f',uuid="{worker.uuids[j]}"'
            elif metric == "libvirt_domain_info_state":
                labels += ',state_desc="the domain is running"'
            yield f"{head}{metric}{{{labels}}} ", place[row] + j
            head = ""
    if dialect == "tinkoff":
        head = "# HELP libvirt_domain_info_meta Who a domain is.\n# TYPE libvirt_domain_info_meta gauge\n"
        for j in listed:
            yield f'{head}libvirt_domain_info_meta{{domain="{worker.names[j]}",uuid="{worker.uuids[j]}"}} ', "1"
            head = ""
    if dialect == "kumina":
        name = "libvirt_domains_number"
        yield f"# HELP {name} Number of domains.\n# TYPE {name} gauge\n{name} ", str(len(listed))
    yield "# HELP libvirt_up Whether libvirt answered.\n# TYPE libvirt_up gauge\nlibvirt_up ", "1"


_RENDER: dict[str, Callable[[Worker, int], bytes]] = {
    "metrics": render_vmprobe,
    "node": render_node,
    "libvirt": render_libvirt,
}


# Faults: what a request gets instead of its page, or what happens to a worker.


@dataclass(slots=True)
class _Fault:
    """A fault in the way of a worker's pages, until a time, for so many more requests, or until it is taken away."""

    name: str
    delay_s: float
    until_s: float | None
    left: int | None
    held: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request in trouble."""

    request: web.Request
    fault: _Fault
    page: bytes
    random: np.random.Generator


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, headers=_EXPOSITION)


async def _slow(asked: _Asked) -> web.StreamResponse:
    await asyncio.sleep(asked.fault.delay_s)
    return _answer(asked.page)


async def _hang(_: _Asked) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _error(_: _Asked) -> web.StreamResponse:
    return web.Response(status=500, text="An error has occurred while serving metrics:\n\nas asked for\n")


async def _empty(_: _Asked) -> web.StreamResponse:
    return _answer(b"")


async def _partial(asked: _Asked) -> web.StreamResponse:
    lines = asked.page.splitlines(keepends=True)
    return _answer(b"".join(lines[: asked.random.integers(1, len(lines))]))


async def _cut(asked: _Asked) -> web.StreamResponse:
    lines = asked.page.splitlines(keepends=True)
    kept = asked.random.integers(1, len(lines))
    return _answer(b"".join(lines[:kept]) + lines[kept][: asked.random.integers(1, len(lines[kept]) - 1)])


async def _truncated_body(asked: _Asked) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.content_length = len(asked.page)
    response.force_close()
    await response.prepare(asked.request)
    await response.write(asked.page[: len(asked.page) // 2])
    await response.write_eof()
    return response


async def _stale(asked: _Asked) -> web.StreamResponse:
    return _answer(asked.fault.held[asked.request.match_info["endpoint"]])


async def _endless(asked: _Asked) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.force_close()
    await response.prepare(asked.request)
    piece = asked.page or b"\n"
    with contextlib.suppress(ConnectionResetError):
        while True:
            await response.write(piece)
            # Quick enough to fill any buffer, slow enough to leave the CPU to who is tested.
            await asyncio.sleep(0.005)
    return response


async def _redirect(asked: _Asked) -> web.StreamResponse:
    hop = int(asked.request.query.get("hop", "0")) + 1
    return web.Response(status=302, headers={"Location": f"{asked.request.path}?hop={hop}"})


async def _gzip_bomb(_: _Asked) -> web.StreamResponse:
    body = await asyncio.get_running_loop().run_in_executor(None, zeros_compressed)
    return web.Response(body=body, headers={**_EXPOSITION, "Content-Encoding": "gzip"})


@cache
def zeros_compressed() -> bytes:
    """The page of a ``gzip-bomb``; packing it the first time takes a second or more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(_BOMB_MB)) + packer.flush()


async def _long_line(asked: _Asked) -> web.StreamResponse:
    first, newline, rest = asked.page.partition(b"\n")
    return _answer(first + newline + b"x" * (_LONG_LINE_BYTES - 2) + b" 1\n" + rest)


async def _html(_: _Asked) -> web.StreamResponse:
    page = "<!DOCTYPE html>\n<html><head><title>Log in</title></head>\n<body><p>Please log in.</p></body></html>\n"
    return web.Response(text=page, content_type="text/html")


async def _garbage(asked: _Asked) -> web.StreamResponse:
    return _answer(asked.random.bytes(65536))


#: What a request gets instead of its page. A new one is a function and a line here.
ANSWERS: dict[str, tuple[str, Callable[[_Asked], Awaitable[web.StreamResponse]]]] = {
    "slow": ("the page comes late: after delay_s, else --slow-s", _slow),
    "hang": ("no answer, ever", _hang),
    "500": ("an HTTP error", _error),
    "empty": ("200 without a body", _empty),
    "partial": ("the page ends after some line", _partial),
    "cut": ("the page ends within a line", _cut),
    "truncated-body": ("half of what Content-Length says, then the connection closes", _truncated_body),
    "stale": ("the page of the moment when the fault began", _stale),
    "endless": ("the page over and over, without end", _endless),
    "redirect": ("a redirect to a redirect to ...", _redirect),
    "gzip-bomb": (f"{_BOMB_MB} MB of zero bytes, compressed to less than a thousandth", _gzip_bomb),
    "long-line": (f"a line of {_LONG_LINE_BYTES} bytes as the second one of the page", _long_line),
    "html": ("200 with an HTML page", _html),
    "garbage": ("200 with random bytes", _garbage),
}
#: What happens to a worker, once.
EVENTS = {
    "reset": "the worker boots: all of its counters start again",
    "vm-restart": "the counters of a VM start again",
    "vm-leaves": "a VM is shut off",
    "vm-returns": "a VM that was shut off is started",
}
#: What ends the fault of a worker.
NO_FAULT = "none"


class FakeWorkers:
    """The workers of a plan behind one HTTP server.

    Parameters
    ----------
    plan : Plan
    host : str
        Where to listen.
    port : int
        0 = any free one; ``base_url`` tells which.
    clock : callable
        Unix seconds.
    """

    def __init__(
        self, plan: Plan, host: str = "127.0.0.1", port: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.plan = plan
        self.base_url = ""
        self.requests = 0
        shapes = Shapes(plan.seed)
        self.workers = [build_worker(plan, shapes, index) for index in range(plan.workers)]
        self._host, self._port, self._clock = host, port, clock
        self._faults: dict[int, _Fault] = {}
        self._pages: dict[tuple[int, str], tuple[int, bytes]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; OSError when that can't be done."""
        app = web.Application()
        app.router.add_get(r"/worker-{index:\d{5}}/{endpoint}", self._serve)
        app.router.add_get("/control", self._tell)
        app.router.add_post("/control", self._control)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Drop all connections; harmless when stopped already."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def url(self, index: int, endpoint: str | None = None) -> str:
        """Where a worker's page is; its first one unless told otherwise."""
        return f"{self.base_url}/worker-{index:05d}/{endpoint or self.plan.endpoints[0]}"

    def stubs(self) -> list[Any]:
        """All workers, as ``AGGREG_STUB_LIST`` names them."""
        if self.plan.format != "labels":
            return [[self.url(i), self.plan.prefix] for i in range(self.plan.workers)]
        return [
            {
                "node": self.url(i, "node"),
                "node_exporter": self.url(i, "node"),
                "libvirt_exporter": self.url(i, "libvirt"),
            }
            for i in range(self.plan.workers)
        ]

    def page(self, index: int, endpoint: str) -> bytes:
        """The page of now, as it is without a fault."""
        worker = self.workers[index]
        epoch = worker.epoch_ms(self._now_ms())
        known = self._pages.get((index, endpoint))
        if known is None or known[0] != epoch:
            known = self._pages[index, endpoint] = (epoch, _RENDER[endpoint](worker, epoch))
        return known[1]

    def inject(
        self,
        worker: int | Literal["all"],
        fault: str,
        *,
        seconds: float | None = None,
        count: int | None = None,
        delay_s: float | None = None,
        vm: int | None = None,
    ) -> None:
        """Put a fault in the way of a worker, for ``seconds`` or ``count`` requests or until ``"none"`` is put there.

        What happens to a VM happens to ``vm`` (its number), else to the first one that it can happen to.
        From a thread other than the server's, use the control endpoint.

        Raises
        ------
        ValueError
            When there is no such worker, fault or VM.
        """
        indices = self._indices(worker)
        if fault in EVENTS:
            if seconds is not None or count is not None or delay_s is not None:
                raise ValueError(f"{fault}: happens once, and takes no seconds, count or delay_s")
            for index in indices:
                self._happen(self.workers[index], fault, vm)
            return
        if fault not in ANSWERS and fault != NO_FAULT:
            raise ValueError(f"fault: {fault!r} is none of {', '.join([*ANSWERS, *EVENTS, NO_FAULT])}")
        if vm is not None:
            raise ValueError(f"vm: {fault} is a fault of the whole worker")
        for index in indices:
            self._faults.pop(index, None)
            if fault != NO_FAULT:
                held = {name: self.page(index, name) for name in self.plan.endpoints} if fault == "stale" else {}
                until = self._clock() + seconds if seconds is not None else None
                delay = self.plan.slow_s if delay_s is None else delay_s
                self._faults[index] = _Fault(fault, delay, until, count, held)

    def state(self) -> dict[str, Any]:
        """What is served, which faults are in the way of whom, and who is away."""
        now = self._clock()
        faults = {index: fault for index in list(self._faults) if (fault := self._current(index)) is not None}
        return {
            "workers": self.plan.workers,
            "vms": self.plan.vms,
            "format": self.plan.format,
            "requests": self.requests,
            "faults": {
                str(index): {
                    "fault": fault.name,
                    "seconds_left": None if fault.until_s is None else round(fault.until_s - now, 3),
                    "count_left": fault.left,
                }
                for index, fault in sorted(faults.items())
            },
            "away": {
                str(worker.index): [worker.names[j] for j in np.flatnonzero(worker.away).tolist()]
                for worker in self.workers
                if worker.away.any()
            },
        }

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _indices(self, worker: int | str) -> range:
        if worker == "all":
            return range(self.plan.workers)
        if isinstance(worker, bool) or not isinstance(worker, int) or not 0 <= worker < self.plan.workers:
            raise ValueError(f"worker: {worker!r} is neither 0 to {self.plan.workers - 1} nor 'all'")
        return range(worker, worker + 1)

    def _happen(self, worker: Worker, event: str, vm: int | None) -> None:
        at_ms = worker.epoch_ms(self._now_ms())
        if event == "reset":
            if vm is not None:
                raise ValueError("vm: reset is a matter of the whole worker")
            worker.reset(at_ms)
            return
        able = np.flatnonzero(worker.away if event == "vm-returns" else ~worker.away).tolist()
        if vm is None and able:
            vm = able[0]
        if vm is None or vm not in able:
            which = "" if vm is None else f" number {vm}"
            raise ValueError(f"vm: worker {worker.index} has no VM{which} that {event} can happen to")
        {"vm-restart": worker.restart, "vm-leaves": worker.leave, "vm-returns": worker.come_back}[event](vm, at_ms)

    def _current(self, index: int) -> _Fault | None:
        fault = self._faults.get(index)
        if fault is not None and (fault.left == 0 or (fault.until_s is not None and self._clock() >= fault.until_s)):
            del self._faults[index]
            return None
        return fault

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        index, endpoint = int(request.match_info["index"]), request.match_info["endpoint"]
        if index >= self.plan.workers or endpoint not in self.plan.endpoints:
            raise web.HTTPNotFound
        self.requests += 1
        fault, page = self._current(index), self.page(index, endpoint)
        if fault is None:
            return _answer(page)
        if fault.left is not None:
            fault.left -= 1
        chance = np.random.default_rng([self.plan.seed, index, self._pages[index, endpoint][0]])
        return await ANSWERS[fault.name][1](_Asked(request, fault, page, chance))

    async def _tell(self, _: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _control(self, request: web.Request) -> web.Response:
        try:
            self.inject(**_order(await request.read()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.state())


def _order(text: bytes) -> dict[str, Any]:
    """What a POST to the control endpoint asks for; ValueError when it can't be understood."""
    try:
        order = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(order, dict) or not {"worker", "fault"} <= order.keys():
        raise ValueError('not an object like {"worker": 3, "fault": "slow", "seconds": 10}')
    limits = {"seconds": (int, float), "count": (int,), "delay_s": (int, float), "vm": (int,)}
    unknown = order.keys() - limits.keys() - {"worker", "fault"}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    if not isinstance(order["fault"], str):
        raise ValueError("fault: not a name")
    for name, kinds in limits.items():
        value = order.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < 1e9):
            raise ValueError(f"{name}: {value!r} is not a {'whole ' if kinds == (int,) else ''}number of at least 0")
    return order


@contextlib.contextmanager
def in_thread(
    plan: Plan, host: str = "127.0.0.1", port: int = 0, clock: Callable[[], float] = time.time
) -> Iterator[FakeWorkers]:
    """The workers, served by a thread of their own while the block runs: for tests that know no event loop."""
    fakes = FakeWorkers(plan, host, port, clock)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fakeworkers", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fakes.start(), loop).result(30)
        yield fakes
    finally:
        asyncio.run_coroutine_threadsafe(fakes.stop(), loop).result(30)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def build_parser() -> Parser:
    """The command line."""
    faults = {name: meaning for name, (meaning, _) in ANSWERS.items()} | EVENTS
    meanings = "\n".join(f"  {name:15} {meaning}" for name, meaning in faults.items())
    epilog = f"""faults:
{meanings}

POST /control {{"worker": 3, "fault": "slow", "seconds": 10}} puts one there ("worker": "all"; "count": requests instead
of seconds; "delay_s" for slow; "vm": number of the VM; fault "none" ends it). GET /control tells how things stand."""
    parser = Parser(prog="fakeworkers.py", description=__doc__, epilog=epilog)
    default = Plan()
    parser.add_argument("--format", choices=FORMATS, default=default.format, help="default: %(default)s")
    parser.add_argument("--dialect", choices=DIALECTS, default=default.dialect, help="of --format=labels")
    parser.add_argument("--prefix", default=default.prefix, help="of vmprobe's metrics (default: %(default)s)")
    for flag, kind, value, meaning in (
        ("--workers", whole_number(1), default.workers, "number of workers"),
        ("--vms", whole_number(0), default.vms, "VMs of each worker"),
        ("--seed", whole_number(0), default.seed, "another seed, other workers"),
        ("--other-metrics", whole_number(0), default.other_metrics, "node_exporter's own, where it is played"),
        ("--probe-delay-ms", whole_number(0), default.probe_delay_ms, "vmprobe looks so often; 0 = at each request"),
        ("--stats-period", whole_number(0), default.stats_period_s, "guests tell their memory so often, s; 0 = always"),
        ("--slow-s", number(0), default.slow_s, "how late a slow worker is"),
        ("--port", whole_number(0), 9900, "0 = any free one"),
    ):
        parser.add_argument(flag, type=kind, default=value, metavar="N", help=f"{meaning} (default: {value:g})")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--fault", action="append", default=[], metavar="WORKER:NAME", help="a fault from the start on")
    parser.add_argument("--print-stubs", action="store_true", help="print AGGREG_STUB_LIST of all workers, and serve")
    parser.add_argument("--duration", type=number(0), metavar="S", help="stop after so many seconds")
    return parser


async def _run(fakes: FakeWorkers, print_stubs: bool, duration_s: float | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number_ in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number_, stop.set)
    await fakes.start()
    plan = fakes.plan
    print(f"serving {plan.workers} workers with {plan.vms} VMs at {fakes.url(0)} ...", flush=True)
    if print_stubs:
        print(json.dumps(fakes.stubs()), flush=True)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.wait(), duration_s)
    await fakes.stop()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    host, port, duration = args.pop("host"), args.pop("port"), args.pop("duration")
    print_stubs, faults = args.pop("print_stubs"), args.pop("fault")
    if port > 65535:
        parser.error(f"argument --port: {port} is above 65535")
    if args["workers"] > 100_000:
        parser.error(f"argument --workers: {args['workers']} is above 100000")
    plan = Plan(stats_period_s=args.pop("stats_period"), **args)
    fakes = FakeWorkers(plan, host, port)
    for text in faults:
        worker, _, name = text.partition(":")
        try:
            fakes.inject(int(worker) if worker.isdecimal() else worker, name)
        except ValueError as error:
            parser.error(f"argument --fault: {text!r}: {error}")
    try:
        asyncio.run(_run(fakes, print_stubs, duration))
    except OSError as error:
        parser.error(f"{host}:{port}: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
