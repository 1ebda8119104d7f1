"""Workers whose VMs start and stop while they run, and use what they want as far as the CPUs suffice."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from misc.fakeworkers.loads import CALM_PRESSURE, CALM_WAIT, NodeLoad
from misc.fakeworkers.machines import OVERHEAD, IntArray, Plan, Worker, shapes_of

#: CPU time that the host spends for its VMs, a share of theirs in hundredths.
_HOST_SHARE_PERCENT = 1
_KERNEL_PERMILLE = 250
#: The kernel of a guest takes some of the memory of the VM; see ``visible_kib``.
LEAST_MEMORY_KIB = 64 << 10


class Wanted(NamedTuple):
    """What a VM wants to use in a step.

    Attributes
    ----------
    cores : float
        At most its vCPUs.
    memory : float
        Share of its memory, 0 to 1.
    """

    cores: float
    memory: float


@dataclass(slots=True)
class _Vm:
    """A VM, with its CPU time at the begin of the step and what it uses in the step."""

    uuid: str
    vcpus: int
    memory_kib: int
    started_ms: int = 0
    counted_ns: int = 0
    ns_per_ms: int = 0
    waited_ns: int = 0
    wait_per_ms: int = 0
    memory: float = 0.0
    resident: float = 0.0


class Host(Worker):
    """A machine with VMs that are given.

    Time passes in steps (:meth:`run_step`). In a step all usage is constant: that of a VM is what it wants, or a share
    of it when the VMs and the host together want more than there is; all VMs get the same share, and wait for the rest.
    Its pages end with the last step, counters and clock alike, until the next step begins.

    Parameters
    ----------
    plan : Plan
        With ``stats_period_s`` 0: there is no history of memory statistics.
    index : int
    cores : int
    memory_mb : int
    boot_ms : int
        Unix ms.

    Attributes
    ----------
    served : float
        Share of what its VMs want that they get in the current step, 0 to 1.
    """

    takes_events: ClassVar[bool] = False

    def __init__(self, plan: Plan, index: int, cores: int, memory_mb: int, boot_ms: int) -> None:
        if plan.stats_period_s:
            raise ValueError("stats_period_s: is not 0")
        self._cores, self._memory_kib = cores, memory_mb << 10
        self._vms: dict[str, _Vm] = {}
        #: Those of the current step, in the order of the pages.
        self._running: list[_Vm] = []
        self._changed = False
        self._begin_ms = boot_ms
        self._end_ms: int | None = None
        self._vms_ns, self._vms_ns_per_ms = 0, 0
        self._waited_ns, self._wait_per_ms = 0, 0
        self._pressure_ns, self._pressure_per_ms = 0, CALM_PRESSURE
        self.served = 1.0
        none = np.empty(0, np.int64)
        super().__init__(
            index=index,
            plan=plan,
            shapes=shapes_of(plan.seed),
            names=(),
            uuids=(),
            vcpus=none,
            memory_kib=none,
            shape=none,
            offset_ms=none,
            stats_phase_ms=none,
            kernel_permille=none,
            probe_phase_ms=0,
            boot_ms=boot_ms,
            started_ms=none,
        )

    @property
    def cores(self) -> int:
        """CPUs of the host."""
        return self._cores

    @property
    def memory_total_kib(self) -> int:
        """Memory of the host."""
        return self._memory_kib

    def add_vm(self, name: str, vcpus: int, memory_kib: int) -> None:
        """Start a VM with the next step.

        Raises
        ------
        ValueError
            When there is a VM of this name, or when the size is not possible.
        """
        if name in self._vms:
            raise ValueError(f"{name}: runs already")
        if vcpus < 1 or memory_kib < LEAST_MEMORY_KIB:
            raise ValueError(f"{name}: {vcpus} vCPUs and {memory_kib} KiB are not the size of a VM")
        identity = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        self._vms[name] = _Vm(identity, vcpus, memory_kib)
        self._changed = True

    def remove_vm(self, name: str) -> None:
        """Stop a VM before the next step; what it used stays in the counters of the host.

        Raises
        ------
        KeyError
        """
        del self._vms[name]
        self._changed = True

    def run_step(self, begin_ms: int, end_ms: int, wanted: Mapping[str, Wanted]) -> None:
        """Begin the next step.

        Parameters
        ----------
        begin_ms, end_ms : int
            Unix ms. Before its first step the host has no VM and is idle.
        wanted : mapping of VM to Wanted
            One for each VM.

        Raises
        ------
        ValueError
            When the step does not begin at the end of the one before.
        """
        if end_ms <= begin_ms or self._end_ms not in {None, begin_ms} or begin_ms < self._begin_ms:
            raise ValueError(f"a step from {begin_ms} to {end_ms} ms does not follow that until {self._end_ms} ms")
        elapsed_ms = begin_ms - self._begin_ms
        self._vms_ns += self._vms_ns_per_ms * elapsed_ms
        self._waited_ns += self._wait_per_ms * elapsed_ms
        self._pressure_ns += self._pressure_per_ms * elapsed_ms
        demand = [wanted[name].cores for name in self._vms]
        for vm in self._vms.values():
            vm.counted_ns += vm.ns_per_ms * elapsed_ms
            vm.waited_ns += vm.wait_per_ms * elapsed_ms
        free_ns = self._cores * 1_000_000 - OVERHEAD
        total_ns = sum(demand) * 1e6 * (1 + _HOST_SHARE_PERCENT / 100)
        self.served = min(1.0, free_ns / total_ns) if total_ns else 1.0
        for (name, vm), cores in zip(self._vms.items(), demand, strict=True):
            vm.ns_per_ms = int(cores * 1e6 * self.served)
            vm.wait_per_ms = int(cores * 1e6) - vm.ns_per_ms + vm.ns_per_ms // CALM_WAIT
            vm.memory = wanted[name].memory
            vm.resident = max(vm.resident, vm.memory)
            vm.started_ms = vm.started_ms or begin_ms
        if self.served < 1.0:
            # What rounding leaves is no idle time: the CPUs of a full host are busy.
            self._vms_ns_per_ms = free_ns
        else:
            used = sum(vm.ns_per_ms for vm in self._vms.values())
            self._vms_ns_per_ms = min(used + used * _HOST_SHARE_PERCENT // 100, free_ns)
        self._wait_per_ms = sum(vm.wait_per_ms for vm in self._vms.values()) + OVERHEAD // CALM_WAIT
        self._pressure_per_ms = CALM_PRESSURE if self.served == 1.0 else 950_000
        self._begin_ms, self._end_ms = begin_ms, end_ms
        if self._changed:
            self._list_vms()

    def _list_vms(self) -> None:
        """Set the arrays from which the pages are rendered."""
        self._running = vms = list(self._vms.values())
        self.names, self.uuids = tuple(self._vms), tuple(vm.uuid for vm in vms)
        self.vcpus, self.memory_kib = _integers([vm.vcpus for vm in vms]), _integers([vm.memory_kib for vm in vms])
        self.started_ms = _integers([vm.started_ms for vm in vms])
        self.base = self.wait_base = self.stats_phase_ms = np.zeros(len(vms), np.int64)
        self.kernel_permille = np.full(len(vms), _KERNEL_PERMILLE)
        self.away = np.zeros(len(vms), bool)
        self.layouts.clear()
        self._changed = False

    def _elapsed(self, at_ms: int | IntArray) -> IntArray:
        """Time since the begin of the step, ms."""
        return np.clip(np.asarray(at_ms, np.int64) - self._begin_ms, 0, None)

    def cpu_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: CPU time of each VM, ns."""
        vms = self._running
        counted, rates = _integers([vm.counted_ns for vm in vms]), _integers([vm.ns_per_ms for vm in vms])
        return counted + rates * self._elapsed(at_ms)

    def wait_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: time in which each VM waited for a CPU, ns."""
        vms = self._running
        waited, rates = _integers([vm.waited_ns for vm in vms]), _integers([vm.wait_per_ms for vm in vms])
        return waited + rates * self._elapsed(at_ms)

    def node_load(self, at_ms: int) -> NodeLoad:
        """Waits and pressure of the host since it booted; it always has enough memory."""
        elapsed_ms = int(self._elapsed(at_ms))
        wait_ns = self._waited_ns + self._wait_per_ms * elapsed_ms
        return NodeLoad(wait_ns, self._pressure_ns + self._pressure_per_ms * elapsed_ms, 0, 0, 0)

    def counted_ns(self, at_ms: int) -> int:
        """CPU time that the host has spent for VMs since it booted, ns."""
        return self._vms_ns + self._vms_ns_per_ms * int(self._elapsed(at_ms))

    def microcores(self, at_ms: int) -> IntArray:  # noqa: ARG002  # constant in a step
        """(vms,) int64: CPU usage of each VM, millionths of a core."""
        return _integers([vm.ns_per_ms for vm in self._running])

    def iowait_ns(self, at_ms: int) -> int:  # noqa: ARG002
        """A full host has no time for it."""
        return 0

    def memory_share(self, at_ms: int | IntArray) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """(vms,) float64: share of its memory that each guest uses."""
        return np.array([vm.memory for vm in self._running])

    def resident_share(self, at_ms: int | IntArray) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """(vms,) float64: the largest share so far."""
        return np.array([vm.resident for vm in self._running])

    def epoch_ms(self, now_ms: int) -> int:
        """Time of the page: no later than the end of the last step."""
        return now_ms if self._end_ms is None else min(max(now_ms, self._begin_ms), self._end_ms)


def _integers(values: list[int]) -> IntArray:
    return np.array(values, np.int64)
