"""Makes exporter pages of the VMs that nova runs: the pages that real hosts would have."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloud import Server

from misc.fakeworkers.hosts import Host, Wanted
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers

_MEMORY_SHARE = 0.4

#: What a host itself uses, cores; see misc/fakeworkers/machines.py.
_OWN_CORES = 0.5


class Usage(Protocol):
    """What VMs want to use."""

    def share(self, name: str, second: int) -> float:
        """Share of its vCPUs that a VM of a profile wants in a second of the run, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A VM on a host, as libvirt has it; ``profile`` names its usage."""

    name: str
    vcpus: int
    memory_mb: int
    profile: str
    pinned: bool = False


@dataclass(slots=True)
class HostLoad:
    """Of a host since :meth:`Bridge.take_loads` was called last.

    Attributes
    ----------
    cores : int
        Those that VMs share.
    demand, used : list of float
        Cores that the host and the VMs on these cores wanted and used, one for each second.
    vcpus : int
        Sizes of all VMs now.
    """

    cores: int
    demand: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    vcpus: int = 0


class Bridge:
    """Pages of hosts whose VMs are given.

    Pinned VMs have dedicated cores. What VMs lack on the others slows all of them alike.

    Parameters
    ----------
    sizes : mapping of host to (int, int, int)
        Cores, memory in MB, dedicated cores.
    usage : Usage
    begin_s : int
        Unix seconds at which the run and its first step begin.

    Attributes
    ----------
    late_s : float
        VMs are on the pages so long after nova has started them.
    extra : dict of host to list of Domain
        VMs of which nova does not know.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int, int]], usage: Usage, begin_s: int) -> None:
        self._sizes, self._usage, self._begin_s = sizes, usage, begin_s
        self.late_s = 0.0
        self.extra: dict[str, list[Domain]] = {}
        plan = Plan(workers=len(sizes), vms=0, format="labels", dialect="tinkoff", stats_period_s=0, other_metrics=0)
        self._hosts = {
            name: Host(plan, i, cores, memory_mb, (begin_s - 3600) * 1000)
            for i, (name, (cores, memory_mb, _)) in enumerate(sizes.items())
        }
        self._index = {name: i for i, name in enumerate(sizes)}
        self._domains: dict[str, dict[str, Domain]] = {name: {} for name in sizes}
        self._wanted: dict[str, dict[str, Domain]] = {name: {} for name in sizes}
        self._seen: dict[str, float] = {}
        self._loads = self._new_loads()
        self.pages = FakeWorkers(plan, workers=list(self._hosts.values()))

    def stubs(self) -> list[dict[str, str]]:
        """The hosts in the format of ``AGGREG_STUB_LIST``; a node is called http://HOST:9100/metrics."""
        return [{**stub, "node": node_name(name)} for name, stub in zip(self._hosts, self.pages.stubs(), strict=True)]

    def silence(self, host: str, silent: bool) -> None:
        """Let the exporters of a host answer with errors, or no longer."""
        self.pages.inject(self._index[host], "500" if silent else "none")

    def set_servers(self, servers: Sequence[Server]) -> None:
        """Take over what nova runs."""
        now = time.monotonic()
        running = [one for one in servers if one.running and one.host in self._hosts]
        self._seen = {one.id: self._seen.get(one.id, now) for one in running}
        wanted: dict[str, dict[str, Domain]] = {name: {} for name in self._hosts}
        for one in running:
            # Only VMs that start now are late.
            if one.instance in self._wanted[one.host] or now - self._seen[one.id] >= self.late_s:
                domain = Domain(one.instance, one.vcpus, one.memory_mb, one.name, one.pinned)
                wanted[one.host][one.instance] = domain
        self._wanted = wanted

    def run_second(self, second: int) -> None:
        """Let a second of the run begin: VMs start and stop, and use what they want until it ends."""
        begin_ms = (self._begin_s + second) * 1000
        for name, host in self._hosts.items():
            self._change_domains(name, host)
            cores, _, dedicated = self._sizes[name]
            domains = list(self._domains[name].values())
            wants = {one.name: one.vcpus * self._usage.share(one.profile, second) for one in domains}
            shared = [one for one in domains if not one.pinned]
            demand = sum(wants[one.name] for one in shared)
            room = cores - dedicated - _OWN_CORES
            served = min(1.0, room / demand) if demand and dedicated else 1.0
            for one in shared:
                wants[one.name] *= served
            host.run_step(begin_ms, begin_ms + 1000, {key: Wanted(c, _MEMORY_SHARE) for key, c in wants.items()})
            load = self._loads[name]
            load.demand.append(demand + _OWN_CORES)
            load.used.append(min(demand, room) + _OWN_CORES)
            load.vcpus = sum(one.vcpus for one in domains)

    def _change_domains(self, name: str, host: Host) -> None:
        wanted = {**self._wanted[name], **{one.name: one for one in self.extra.get(name, ())}}
        present = self._domains[name]
        for gone in present.keys() - wanted.keys():
            host.remove_vm(gone)
        for new in wanted.keys() - present.keys():
            host.add_vm(new, wanted[new].vcpus, wanted[new].memory_mb << 10)
        self._domains[name] = wanted

    def take_loads(self) -> dict[str, HostLoad]:
        """What the hosts did since the last call."""
        loads, self._loads = self._loads, self._new_loads()
        return loads

    def _new_loads(self) -> dict[str, HostLoad]:
        return {name: HostLoad(cores - dedicated) for name, (cores, _, dedicated) in self._sizes.items()}


def node_name(host: str) -> str:
    """The node of a host in ScroogeVM's settings."""
    return f"http://{host}:9100/metrics"
