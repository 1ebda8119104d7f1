"""Renders simulated machines as pages of vmprobe, node_exporter and libvirt exporters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from misc.fakeworkers.contention_pages import (
    VCPU_NAMES,
    node_contention_lines,
    node_contention_values,
    vcpu_lines,
    vcpu_values,
)
from misc.fakeworkers.layout import PageLayout, go_number, lay_out
from misc.fakeworkers.machines import IntArray, Worker
from misc.fakeworkers.metrics import JIFFY_NS, domain_constants, domain_metrics, node_metrics, visible_kib


def render_vmprobe(worker: Worker, epoch_ms: int) -> bytes:
    """Render the page of vmprobe, bare or as served by node_exporter.

    Parameters
    ----------
    worker : Worker
    epoch_ms : int
        Time of the probe, Unix ms.

    Raises
    ------
    ValueError
        At a time before the start of the worker or of one of its VMs.
    """
    _check_time(worker, epoch_ms)
    domains, node = domain_metrics(worker, epoch_ms), node_metrics(worker, epoch_ms)
    layout = worker.layouts.get("metrics")
    if layout is None:
        layout = worker.layouts["metrics"] = _vmprobe_layout(worker, list(domains), list(node))
    values = _flat(domains, node)
    if worker.plan.format == "vmprobe":
        return layout.fill(values, str)
    return layout.fill(values + _exporter_values(worker, epoch_ms), go_number)


def _check_time(worker: Worker, at_ms: int) -> None:
    if at_ms < max(worker.boot_ms, int(worker.started_ms.max(initial=0))):
        raise ValueError(f"at {at_ms} ms worker {worker.index} is not started yet")


def _flat(rows: Mapping[str, IntArray], others: Mapping[str, float]) -> list[float]:
    values: list[float] = np.stack(list(rows.values())).ravel().tolist()
    values.extend(others.values())
    return values


def _vmprobe_layout(worker: Worker, domain_names: Sequence[str], node_names: Sequence[str]) -> PageLayout:
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
        # The probe writes its hash map in arbitrary order.
        order = np.random.default_rng(plan.seed).permutation(len(lines)).tolist()
        return lay_out((f"{lines[i][0]} ", lines[i][1]) for i in order)
    head = "# HELP {0} Metric read from vmprobe.prom\n# TYPE {0} untyped\n{0} "
    first = len(domain_names) * n + len(node_names)
    named = [*_exporter_lines(worker, first), *((head.format(name), value) for name, value in sorted(lines))]
    named[0] = (_other_metrics(plan.seed, plan.other_metrics) + named[0][0], named[0][1])
    return lay_out(named)


def _exporter_values(worker: Worker, at_ms: int) -> list[float]:
    """The values of :func:`_exporter_lines`, in their order."""
    vcpus = vcpu_values(worker, at_ms) if worker.plan.vcpu_delay else []
    return [at_ms / 1000, *node_contention_values(worker, at_ms), *vcpus]


def _exporter_lines(worker: Worker, first: int) -> Iterator[tuple[str, int | str]]:
    """Lines of node_exporter beside CPU and memory, and of a textfile; ``first`` is the place of their first value."""
    name = "node_time_seconds"
    yield f"# HELP {name} As reported by the kernel.\n# TYPE {name} gauge\n{name} ", first
    contention = list(node_contention_lines(worker, first + 1))
    yield from contention
    if worker.plan.vcpu_delay:
        yield from vcpu_lines(worker, first + 1 + len(contention), np.flatnonzero(~worker.away).tolist())


#: Name, type, help text and labels of series that the aggregator ignores.
_OTHERS = (
    ("node_disk_io_time_seconds_total", "counter", "Seconds spent with I/O.", 'device="sd{}"'),
    ("node_disk_read_bytes_total", "counter", "Bytes read.", 'device="sd{}"'),
    ("node_filesystem_avail_bytes", "gauge", "Space left.", 'device="/dev/sd{0}1",fstype="ext4",mountpoint="/srv/{0}"'),
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
    """Series of node_exporter that the aggregator ignores; they are constant."""
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
    """Render the page of node_exporter."""
    _check_time(worker, at_ms)
    node, cores = node_metrics(worker, at_ms), worker.cores
    guest = min(worker.counted_ns(at_ms), node["cpu_user"])
    modes = {"idle": node["cpu_idle"], "iowait": node["cpu_iowait"], "system": node["cpu_kernel"]}
    modes |= {"user": node["cpu_user"], "guest": guest}
    # The CPUs share the time evenly; the last ones get the remaining hundredths.
    values: list[float] = [(ns // JIFFY_NS + cpu) // cores / 100 for ns in modes.values() for cpu in range(cores)]
    values += [node[f"memory_{name}"] * 1024 for name in _NODE_MEMORY.values()]
    values += [worker.boot_ms / 1000, *_exporter_values(worker, at_ms)]
    layout = worker.layouts.get("node")
    if layout is None:
        layout = worker.layouts["node"] = lay_out(_node_lines(worker, list(modes)))
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
    gauges.append("node_boot_time_seconds")
    for i, name in enumerate(gauges):
        yield f"# HELP {name} As reported by the kernel.\n# TYPE {name} gauge\n{name} ", len(modes) * cores + i
    yield from _exporter_lines(worker, len(modes) * cores + len(gauges))


#: Metric of a dialect -> (type, row of values).
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
        "libvirt_domain_memory_stats_swap_in_bytes": ("gauge", "zero"),
        "libvirt_domain_memory_stats_swap_out_bytes": ("gauge", "zero"),
    },
    "kubevirt": {
        "kubevirt_vmi_cpu_usage_seconds_total": ("counter", "cpu_seconds"),
        "kubevirt_vmi_memory_actual_balloon_bytes": ("gauge", "balloon"),
        "kubevirt_vmi_memory_available_bytes": ("gauge", "available"),
        "kubevirt_vmi_memory_domain_bytes": ("gauge", "maximum"),
        "kubevirt_vmi_memory_resident_bytes": ("gauge", "rss"),
        "kubevirt_vmi_memory_unused_bytes": ("gauge", "unused"),
        "kubevirt_vmi_memory_usable_bytes": ("gauge", "usable"),
    },
}

#: Metrics of the vCPUs, waiting and running, and their labels; kumina's exporter has none.
_VCPUS: dict[str, tuple[tuple[str, str], str]] = {
    **dict.fromkeys(("tinkoff", "inovex"), (VCPU_NAMES, 'domain="{name}",vcpu="{vcpu}"')),
    "kubevirt": (
        ("kubevirt_vmi_vcpu_delay_seconds_total", "kubevirt_vmi_vcpu_seconds_total"),
        'id="{vcpu}",name="{name}",namespace="default",node="worker"',
    ),
}


def render_libvirt(worker: Worker, at_ms: int) -> bytes:
    """Render the page of a libvirt exporter or of KubeVirt's virt-handler.

    Tinkoff's exporter lists VMs that are shut off, with zeros.
    """
    _check_time(worker, at_ms)
    metrics, n = domain_metrics(worker, at_ms), worker.vcpus.size
    running = (~worker.away).astype(np.int64)
    rows: dict[str, npt.NDArray[Any]] = {
        "vcpus": worker.vcpus,
        "maximum": worker.memory_kib * 1024,
        "state": np.where(worker.away, 5, 1),
        "zero": running * 0,
        "balloon": running * worker.memory_kib * 1024,
        "available": running * visible_kib(worker) * 1024,
    }
    rows |= {name: running * metrics[f"memory_{name}"] * 1024 for name in ("rss", "unused", "usable")}
    rows |= {name: running * metrics[f"memory_{name}"] for name in ("majorfault", "minorfault")}
    rows["cpu_seconds"] = running * metrics["cpu_cputime"] / 1e9
    layout = worker.layouts.get("libvirt")
    if layout is None:
        place = {name: i * n for i, name in enumerate(rows)}
        layout = worker.layouts["libvirt"] = lay_out(_libvirt_lines(worker, place))
    values = [value for row in rows.values() for value in row.tolist()]
    return layout.fill(values + vcpu_values(worker, at_ms), go_number)


def _libvirt_lines(worker: Worker, place: Mapping[str, int]) -> Iterator[tuple[str, int | str]]:
    dialect = worker.plan.dialect
    listed = range(worker.vcpus.size) if dialect == "tinkoff" else np.flatnonzero(~worker.away).tolist()
    for metric, (kind, row) in sorted(_LIBVIRT[dialect].items()):
        head = f"# HELP {metric} As reported by libvirt.\n# TYPE {metric} {kind}\n"
        for j in listed:
            labels = f'domain="{worker.names[j]}"'
            if dialect == "kubevirt":
                labels = f'name="{worker.names[j]}",namespace="default",node="worker"'
            elif dialect == "kumina":
                labels += f',uuid="{worker.uuids[j]}"'
            elif metric == "libvirt_domain_info_state":
                labels += ',state_desc="the domain is running"'
            yield f"{head}{metric}{{{labels}}} ", place[row] + j
            head = ""
    if dialect == "tinkoff":
        head = "# HELP libvirt_domain_info_meta Name and UUID of a domain.\n# TYPE libvirt_domain_info_meta gauge\n"
        for j in listed:
            yield f'{head}libvirt_domain_info_meta{{domain="{worker.names[j]}",uuid="{worker.uuids[j]}"}} ', "1"
            head = ""
    if dialect == "kumina":
        name = "libvirt_domains_number"
        yield f"# HELP {name} Number of domains.\n# TYPE {name} gauge\n{name} ", str(len(listed))
    if dialect in _VCPUS:
        names, labels = _VCPUS[dialect]
        running = np.flatnonzero(~worker.away).tolist()
        yield from vcpu_lines(worker, len(place) * worker.vcpus.size, running, names, labels)
    up = "kubevirt_virt_handler_ready_status" if dialect == "kubevirt" else "libvirt_up"
    yield f"# HELP {up} Whether libvirt responded.\n# TYPE {up} gauge\n{up} ", "1"


DIALECTS = tuple(_LIBVIRT)

#: By endpoint.
RENDERERS: dict[str, Callable[[Worker, int], bytes]] = {
    "metrics": render_vmprobe,
    "node": render_node,
    "libvirt": render_libvirt,
}
