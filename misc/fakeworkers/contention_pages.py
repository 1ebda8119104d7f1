"""Lines of node_exporter and of libvirt exporters that show how long tasks and vCPUs waited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from misc.fakeworkers.machines import OVERHEAD, Worker

#: Metrics of the node: name, type.
_NODE = (
    ("node_pressure_cpu_waiting_seconds_total", "counter"),
    ("node_pressure_memory_stalled_seconds_total", "counter"),
    ("node_pressure_memory_waiting_seconds_total", "counter"),
    ("node_vmstat_oom_kill", "untyped"),
    ("node_vmstat_pswpin", "untyped"),
)

#: Metrics of each CPU.
_CPU = ("node_schedstat_running_seconds_total", "node_schedstat_waiting_seconds_total")

#: Name, label of a vCPU and unit of the metrics of libvirt exporters: times of waiting and of running.
VCPU_NAMES = ("libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total")


def node_contention_values(worker: Worker, at_ms: int) -> list[float]:
    """The values of :func:`node_contention_lines`, in their order."""
    load, cores = worker.node_load(at_ms), worker.cores
    busy_ns = worker.counted_ns(at_ms) + (at_ms - worker.boot_ms) * OVERHEAD
    stalled_s = load.memory_pressure_ns / 1e9
    values = [load.cpu_pressure_ns / 1e9, stalled_s, 1.5 * stalled_s, load.killed, load.swapped_in]
    return values + [(ns + cpu) // cores / 1e9 for ns in (busy_ns, load.wait_ns) for cpu in range(cores)]


def node_contention_lines(worker: Worker, first: int) -> Iterator[tuple[str, int | str]]:
    """Lines of node_exporter; ``first`` is the place of their first value."""
    for i, (name, kind) in enumerate(_NODE):
        yield f"{_head(name, kind)}{name} ", first + i
    for i, name in enumerate(_CPU):
        head = _head(name, "counter")
        for cpu in range(worker.cores):
            yield f'{head}{name}{{cpu="{cpu}"}} ', first + len(_NODE) + i * worker.cores + cpu
            head = ""


def vcpu_values(worker: Worker, at_ms: int) -> list[float]:
    """How long each vCPU of each VM waited, then how long each ran, s."""
    waited, used = worker.wait_ns(at_ms) - worker.wait_base, worker.cpu_ns(at_ms) - worker.base
    # The vCPUs of a VM share the time evenly.
    return [
        (total + vcpu) // vcpus / 1e9
        for totals in (waited.tolist(), used.tolist())
        for total, vcpus in zip(totals, worker.vcpus.tolist(), strict=True)
        for vcpu in range(vcpus)
    ]


def vcpu_lines(
    worker: Worker,
    first: int,
    listed: Sequence[int],
    names: Sequence[str] = VCPU_NAMES,
    labels: str = 'domain="{name}",vcpu="{vcpu}"',
) -> Iterator[tuple[str, int | str]]:
    """Lines of the vCPUs of some VMs.

    Parameters
    ----------
    worker : Worker
    first : int
        Place of the first value.
    listed : sequence of int
        Numbers of the VMs.
    names : sequence of str
        Metrics of waiting and of running.
    labels : str
        Format of the labels, with the name of the VM and the number of the vCPU.
    """
    vcpus = worker.vcpus.tolist()
    starts = [sum(vcpus[:j]) for j in range(len(vcpus))]
    for i, name in enumerate(names):
        head = _head(name, "counter")
        for j in listed:
            for vcpu in range(vcpus[j]):
                place = first + i * sum(vcpus) + starts[j] + vcpu
                yield f"{head}{name}{{{labels.format(name=worker.names[j], vcpu=vcpu)}}} ", place
                head = ""


def _head(name: str, kind: str) -> str:
    return f"# HELP {name} As reported by the kernel.\n# TYPE {name} {kind}\n"
