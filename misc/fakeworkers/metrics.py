"""The metrics of simulated machines, with the names and units of vmprobe."""

from __future__ import annotations

import numpy as np

from misc.fakeworkers.machines import OVERHEAD, IntArray, Worker

#: The kernel counts CPU time in hundredths of a second.
JIFFY_NS = 10_000_000

_UNLIMITED = 2**64 - 1


def domain_metrics(worker: Worker, at_ms: int) -> dict[str, IntArray]:
    """Compute the metrics of all VMs that change.

    Returns
    -------
    dict of (vms,) int64
        By name; memory as of the last statistics of the guest.
    """
    total = worker.cpu_ns(at_ms)
    used = total - worker.base
    cpu = used // 1000 * 1000
    kernel = cpu // 1000 * worker.kernel_permille
    # The main thread of the VM's process, which is all that the probe reads of it.
    runtime, waittime = used // 8, (worker.wait_ns(at_ms) - worker.wait_base) // 8
    period_ms = worker.plan.stats_period_s * 1000
    age_ms = (at_ms - worker.stats_phase_ms) % period_ms if period_ms else 0
    stats_ms = np.maximum(at_ms - age_ms, worker.started_ms)
    stats_used = worker.cpu_ns(stats_ms) - worker.base
    visible = visible_kib(worker)
    share = worker.memory_share(stats_ms)
    unused = visible - (visible * share).astype(np.int64)
    pages = _resident_kib(worker, at_ms) // 4
    microcores = worker.microcores(at_ms)
    instructions = microcores * 2000
    return {
        "cpu_cputime": cpu,
        "cpu_systemtime": kernel,
        "cpu_usertime": cpu - kernel,
        "memory_diskcaches": (visible * share * 0.1).astype(np.int64),
        "memory_last_update": stats_ms // 1000,
        "memory_majorfault": 20 + stats_used // 10**13,
        "memory_minorfault": 1000 + stats_used // 10**7,
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
        "sched_waittime": waittime,
        "stat_majflt": 6 + used // 10**13,
        "stat_minflt": 12_000 + used // 2_000_000,
        "stat_rss": pages,
    }


def domain_constants(worker: Worker) -> dict[str, list[int]]:
    """Metrics of all VMs that are constant, a value for each VM."""
    zeros = [0] * worker.vcpus.size
    return {
        "cpu_alloc": worker.vcpus.tolist(),
        "memory_alloc": worker.memory_kib.tolist(),
        "memory_available": visible_kib(worker).tolist(),
        "memory_hugetlb_pgfail": zeros,
        "memory_hugetlbpgalloc": zeros,
        "memory_swapin": zeros,
        "memory_swapout": zeros,
        "stat_cmajflt": zeros,
        "stat_cminflt": zeros,
        "stat_rsslim": [_UNLIMITED] * worker.vcpus.size,
        "stat_vsize": (worker.memory_kib * 1024 + 1_400_000_000).tolist(),
    }


def visible_kib(worker: Worker) -> IntArray:
    """Memory of each guest without what its kernel takes, KiB."""
    return worker.memory_kib - worker.memory_kib // 64 - 36_000


def _resident_kib(worker: Worker, at_ms: int) -> IntArray:
    """Memory of each VM that is resident on the host, KiB: all that the guest's kernel takes, and a share."""
    visible = visible_kib(worker)
    resident = (visible * worker.resident_share(at_ms)).astype(np.int64)
    return worker.memory_kib - visible + resident


def node_metrics(worker: Worker, at_ms: int) -> dict[str, int]:
    """Compute the metrics of the host, by name."""
    elapsed_ms = at_ms - worker.boot_ms
    busy = worker.counted_ns(at_ms) + elapsed_ms * OVERHEAD
    iowait = worker.iowait_ns(at_ms)
    idle = elapsed_ms * 1_000_000 * worker.cores - busy - iowait
    kernel = busy * 3 // 20
    total = worker.memory_total_kib
    resident = sum(np.where(worker.away, 0, _resident_kib(worker, at_ms)).tolist())
    load = worker.loads.current(at_ms)
    if load is not None and load.name == "memory-pressure":
        available = total // 100
    else:
        available = max(total - resident - (2 << 20), 0)
    cached = min(3 << 20, available)
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
        "sched_waittime": worker.node_load(at_ms).wait_ns,
    }
