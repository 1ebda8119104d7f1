"""Computes how long vCPUs and tasks waited for a CPU, and the pressure of a node, from successive scrapes.

A wait is a figure of its own: what is wrong with it removes it and nothing else. It is stored only beside a confirmed
CPU usage of the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..machine_table import MachineTable
from ..samples import Contention, Metrics, VcpuTimes
from .confirmation import TOLERANCE
from .domain_columns import DomainColumns
from .exposition import NS_PER_S
from .steady_waits import SteadyWaits
from .unconfirmed import Unconfirmed
from .wait_readings import BUSY_CORES, COVERED, PROBE, READ_S, Growth, Reading

#: A share of time may be larger than 1 by this, for the same reason.
_MOST_SHARE = 1.05

#: Tasks in the queue of a core, on average. More is impossible.
_LONGEST_QUEUE = 1000.0

#: CPU time and times of vCPUs may be of different periods of the same length, so that one is larger by this factor.
_MOST_RUN = 2.0

#: A thread that ran for longer has waited: each time it wakes up, for a moment.
_HAS_WAITED_S = 0.1

#: The clock of node_exporter's page and that of the probe on it are read at different times, s.
_CLOCKS_S = 1.0


@dataclass(slots=True)
class DomainWaits:
    """Computes the waits of the VMs of one node."""

    _before: dict[str, Reading] = field(default_factory=dict)
    _steady: SteadyWaits | None = None

    def add(
        self,
        fields: DomainColumns | Mapping[str, dict[str, float]],
        domains: Mapping[str, Metrics],
        vcpus: Mapping[str, VcpuTimes],
        at_ms: float,
    ) -> list[Unconfirmed]:
        """Add ``cpu_wait`` and ``cpu_wait_share`` to the fields of the VMs whose waits are known.

        Parameters
        ----------
        fields : DomainColumns or mapping of domain name to dict of field name to value
            With ``cpu_usage`` where it is known.
        domains : mapping of domain name to mapping of metric name to value
        vcpus : mapping of domain name to VcpuTimes
        at_ms : float
            When the metrics were measured, Unix milliseconds.
        """
        if self._steady is not None:
            if isinstance(fields, DomainColumns) and not vcpus and self._steady.add(fields, domains, at_ms):
                return []
            self._before, self._steady = self._steady.readings(), None
        if not vcpus and not self._before and not _has_sched(domains):
            return []
        rows = domains.to_dict() if isinstance(domains, MachineTable) else domains
        if isinstance(fields, DomainColumns):
            of_domains = fields.rows(("cpu", "cpu_usage"))
            problems = self._add_each(of_domains, rows, vcpus, at_ms)
            for name in ("cpu_wait", "cpu_wait_share"):
                fields.add(name, of_domains)
        else:
            problems = self._add_each(fields, rows, vcpus, at_ms)
        if isinstance(domains, MachineTable) and not vcpus and SteadyWaits.fits(domains, self._before):
            self._steady, self._before = SteadyWaits(domains.layout, self._before), {}
        return problems

    def _add_each(
        self,
        fields: Mapping[str, dict[str, float]],
        domains: Mapping[str, Metrics],
        vcpus: Mapping[str, VcpuTimes],
        at_ms: float,
    ) -> list[Unconfirmed]:
        # A VM missing from the page is gone; if it returns, start fresh.
        earlier, self._before = self._before, {}
        impossible = 0
        for name, now in domains.items():
            before, reading = earlier.get(name), _read(now, vcpus.get(name), at_ms)
            if reading is None or before is None:
                kept = reading or before
                if kept is not None:
                    self._before[name] = kept
                continue
            growth = _grow(before, reading)
            usage = fields[name].get("cpu_usage")
            # Counters that a page repeats continue from the page on which they last changed.
            repeated = growth is not None and growth.is_old(confirmed=usage is not None)
            self._before[name] = before if repeated else reading
            # Of a thread of the probe, the number of vCPUs is that of the VM.
            of_probe = reading.times.source == PROBE
            vcpus_of_vm = fields[name].get("cpu") if of_probe else float(len(reading.times.wait))
            if growth is None or usage is None or repeated or vcpus_of_vm is None:
                continue
            if growth.wait_s > growth.longest_s(vcpus_of_vm):
                impossible += 1
            elif _is_of_vm(growth, reading, vcpus_of_vm):
                fields[name]["cpu_wait"] = growth.wait_s / growth.elapsed_s
                fields[name]["cpu_wait_share"] = growth.wait_share(vcpus_of_vm)
        if not impossible:
            return []
        return [Unconfirmed("vm_wait", f"{impossible} VMs waited for longer than the time since the page before")]


def _has_sched(domains: Mapping[str, Metrics]) -> bool:
    """Whether the probe may report waits of these domains."""
    return not isinstance(domains, MachineTable) or "sched_waittime" in domains.layout.position


def _read(now: Metrics, times: VcpuTimes | None, at_ms: float) -> Reading | None:
    """The counters of a VM on a page; None if there are none, or not all of them are valid."""
    if times is None and "sched_waittime" in now and "sched_runtime" in now:
        wait, run = now["sched_waittime"] / NS_PER_S, now["sched_runtime"] / NS_PER_S
        times = VcpuTimes(PROBE, at_ms, {"": wait}, {"": run})
    if times is None or "cpu_cputime" not in now:
        return None
    values = (times.at_ms, *times.wait.values(), *times.run.values())
    if not all(map(math.isfinite, values)) or (times.run and times.run.keys() != times.wait.keys()):
        return None
    return Reading(times, now["cpu_cputime"] / NS_PER_S)


def _grow(before: Reading, now: Reading) -> Growth | None:
    """What all counters grew by; None when they cannot be compared, or one of them decreased."""
    old, new = before.times, now.times
    comparable = old.source == new.source and old.wait.keys() == new.wait.keys() and old.run.keys() == new.run.keys()
    elapsed_s = (new.at_ms - old.at_ms) / 1000.0
    if not comparable or elapsed_s <= 0:
        return None
    waits = [new.wait[vcpu] - old.wait[vcpu] for vcpu in new.wait]
    runs = [new.run[vcpu] - old.run[vcpu] for vcpu in new.run]
    cpu_s = now.cpu_s - before.cpu_s
    if min(*waits, *runs, cpu_s) < 0:
        return None
    wait_s, run_s = sum(waits), sum(runs) if runs else cpu_s
    stands = (run_s if runs else wait_s) == 0.0
    return Growth(wait_s, run_s, cpu_s, elapsed_s, stands) if math.isfinite(wait_s + run_s + cpu_s) else None


def _is_of_vm(growth: Growth, reading: Reading, vcpus: float) -> bool:
    """Whether the counters are those of the vCPUs and of the same period as the CPU time of the VM."""
    times = reading.times
    if times.source == PROBE:
        # The probe reads the main thread of the VM's process, which need not be the one that works.
        return growth.cpu_s > 0 and growth.run_s >= COVERED * growth.cpu_s
    if not any(times.wait.values()) and max(sum(times.run.values()), reading.cpu_s) > _HAS_WAITED_S:
        return False  # the kernel does not count it
    slack_s = BUSY_CORES * vcpus * growth.elapsed_s + vcpus * READ_S
    return growth.run_s <= min(_MOST_RUN * growth.cpu_s + slack_s, growth.longest_s(vcpus))


def add_node_contention(
    fields: dict[str, float], now: Contention, before: Contention, delay_s: float
) -> list[Unconfirmed]:
    """Add pressure, waits and memory trouble of a node whose CPU usage is known.

    Parameters
    ----------
    fields : dict of field name to value
        With ``cpu``, ``cpu_usage`` and ``elapsed_time`` of the same pages.
    now, before : Contention
    delay_s : float
        Of the probe on the page, 0 without one.
    """
    elapsed_s, page_s = (now.at_ms - before.at_ms) / 1000.0, fields["elapsed_time"] / 1000.0
    # The times of the page and of the probe on it differ by up to its delay.
    if not (elapsed_s > 0 and abs(elapsed_s - page_s) <= TOLERANCE * page_s + delay_s + _CLOCKS_S):
        return []
    problems: list[Unconfirmed] = []
    for name in ("psi_cpu", "psi_memory"):
        share = _increase(now.node, before.node, name) / elapsed_s
        if share > _MOST_SHARE:
            problems.append(Unconfirmed("pressure", f"{name} grew by {share:.2f} s per second"))
        elif share >= 0:
            fields[name] = min(share, 1.0)
    for name, divisor in (("swap_in", elapsed_s), ("oom_kills", 1.0)):
        value = _increase(now.node, before.node, name) / divisor
        if 0 <= value < math.inf:
            fields[name] = value
    waits = [_increase(now.queue, before.queue, cpu) for cpu in now.queue]
    if waits and now.queue.keys() == before.queue.keys() and all(wait >= 0 for wait in waits):
        wait = sum(waits) / elapsed_s
        is_old = wait == 0.0 and fields["cpu_usage"] > BUSY_CORES
        problems += _add_node_wait(fields, math.nan if is_old or not any(now.queue.values()) else wait)
    return problems


def add_probe_wait(fields: dict[str, float], now: Metrics, before: Metrics) -> list[Unconfirmed]:
    """Add the wait of all tasks of a node by the counters of vmprobe, which are 0 on many hosts."""
    run_ns, wait_ns = (_increase(now, before, f"sched_{name}time") for name in ("run", "wait"))
    if not (run_ns > 0 and wait_ns >= 0):
        return []
    return _add_node_wait(fields, wait_ns / NS_PER_S / (fields["elapsed_time"] / 1000.0))


def _add_node_wait(fields: dict[str, float], wait: float) -> list[Unconfirmed]:
    """Add a wait, cores, unless it is NaN or impossible."""
    if wait > _LONGEST_QUEUE * fields.get("cpu", 0.0):
        return [Unconfirmed("node_wait", f"{wait:.6g} tasks waited for a CPU on average")]
    if wait >= 0:
        fields["cpu_wait"] = wait
    return []


def _increase(now: Metrics, before: Metrics, name: str) -> float:
    """By what a counter grew; NaN if that is unknown."""
    return now.get(name, math.nan) - before.get(name, math.nan)
