"""What a machine does for a time instead of its regular usage: contention, lack of memory, a quota."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

#: A core, ns per ms.
_CORE = 1_000_000

#: Without contention, a thread waits for an eightieth of its run time, and some task of the node for half a percent
#: of the time.
CALM_WAIT = 80
CALM_PRESSURE = 5_000

#: Description by name.
LOADS = {
    "contention": "the VMs want all of their vCPUs, more than the node has (see --cores): all get the same share",
    "memory-pressure": "the node has no memory left: tasks stall, pages are swapped in, processes are killed",
    "quota": "a VM wants all of its vCPUs and gets half of them, and nobody else waits",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """Rates while a load lasts.

    Attributes
    ----------
    usage, wait : (vms,) int64
        CPU time of VMs and their time in the queue of a CPU, ns per ms; -1 for VMs with their regular usage.
    cpu_pressure, memory_pressure : int
        Time in which some task waits for a CPU, and in which all wait for memory, ns per ms.
    swapped_in : int
        Pages per second.
    kill_period_ms : int
        A process is killed after each such time; 0 = never.
    """

    usage: IntArray
    wait: IntArray
    cpu_pressure: int = CALM_PRESSURE
    memory_pressure: int = 0
    swapped_in: int = 0
    kill_period_ms: int = 0

    @property
    def affected(self) -> npt.NDArray[np.bool_]:
        """(vms,) bool: VMs without their regular usage."""
        return self.usage >= 0


def contention(vcpus: IntArray, away: npt.NDArray[np.bool_], free: int) -> Effect:
    """All VMs want all of their vCPUs.

    Parameters
    ----------
    vcpus : (vms,) int64
    away : (vms,) bool
        VMs that do not run.
    free : int
        What the node has for them, ns per ms.

    Raises
    ------
    ValueError
        When the node has enough.
    """
    wanted = np.where(away, 0, vcpus) * _CORE
    total = int(wanted.sum())
    if total <= free:
        raise ValueError(f"contention: {total // _CORE} vCPUs find enough free CPU; give the node less with --cores")
    usage = np.array([wants * free // total for wants in wanted.tolist()], np.int64)
    return Effect(usage, wanted - usage, cpu_pressure=_CORE * 95 // 100)


def lack_of_memory(vms: int) -> Effect:
    """Tasks of the node stall for memory for a fifth of the time."""
    none = np.full(vms, -1, np.int64)
    return Effect(none, none, memory_pressure=_CORE // 5, swapped_in=2000, kill_period_ms=60_000)


def quota(vcpus: IntArray, vm: int) -> Effect:
    """One VM gets half of its vCPUs and waits for the other half."""
    usage = np.where(np.arange(vcpus.size) == vm, vcpus * _CORE // 2, -1)
    return Effect(usage, usage)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A load from one time to another, Unix ms; ``regular`` is the regular CPU time of the VMs at its begin."""

    name: str
    effect: Effect
    begin_ms: int
    end_ms: int | None
    regular: IntArray

    def clip(self, at_ms: int | IntArray) -> IntArray:
        """The time, but no earlier than the begin and no later than the end."""
        return np.clip(np.asarray(at_ms, np.int64), self.begin_ms, self.end_ms)

    def length_ms(self, at_ms: int | IntArray) -> IntArray:
        """How long it has lasted at a time."""
        return self.clip(at_ms) - self.begin_ms


class NodeLoad(NamedTuple):
    """Counters of a node since a time; ns, pages and processes."""

    wait_ns: int
    cpu_pressure_ns: int
    memory_pressure_ns: int
    swapped_in: int
    killed: int


class Loads:
    """The loads of a worker, one after the other.

    Parameters
    ----------
    regular : callable
        Returns (vms,) int64: the CPU time of the VMs at a time, Unix ms, or at one time each, without loads, ns.
    """

    def __init__(self, regular: Callable[[int | IntArray], IntArray]) -> None:
        self._regular = regular
        self._segments: list[_Segment] = []

    def begin(self, name: str, effect: Effect, begin_ms: int, end_ms: int | None) -> None:
        """Begin a load, which ends at a time, or with :meth:`end`."""
        self._segments.append(_Segment(name, effect, begin_ms, end_ms, self._regular(begin_ms)))

    def end(self, at_ms: int) -> None:
        """End the current load, if there is one."""
        segment = self.current(at_ms)
        if segment is not None:
            self._segments[-1] = replace(segment, end_ms=at_ms)

    def current(self, at_ms: int) -> _Segment | None:
        """The load at a time."""
        for segment in reversed(self._segments):
            if segment.begin_ms <= at_ms and (segment.end_ms is None or at_ms < segment.end_ms):
                return segment
        return None

    def cpu_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: CPU time of the VMs, ns."""
        used: IntArray = self._regular_ns(at_ms)
        for segment in self._segments:
            used += np.maximum(segment.effect.usage, 0) * segment.length_ms(at_ms)
        return used

    def wait_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: time in which the VMs waited for a CPU, ns."""
        waited: IntArray = self._regular_ns(at_ms) // CALM_WAIT
        for segment in self._segments:
            waited += np.maximum(segment.effect.wait, 0) * segment.length_ms(at_ms)
        return waited

    def node(self, since_ms: int, at_ms: int) -> NodeLoad:
        """What loads add to the waits of the node, and its pressure."""
        wait = stalled = swapped = killed = 0
        pressure = (at_ms - since_ms) * CALM_PRESSURE
        for segment in self._segments:
            effect = segment.effect
            length_ms = int(segment.length_ms(at_ms) - segment.length_ms(since_ms))
            wait += int(np.maximum(effect.wait, 0).sum()) * length_ms
            pressure += (effect.cpu_pressure - CALM_PRESSURE) * length_ms
            stalled += effect.memory_pressure * length_ms
            swapped += effect.swapped_in * length_ms // 1000
            killed += length_ms // effect.kill_period_ms if effect.kill_period_ms else 0
        return NodeLoad(wait, pressure, stalled, swapped, killed)

    def _regular_ns(self, at_ms: int | IntArray) -> IntArray:
        """(vms,) int64: the CPU time of the VMs outside of loads, ns."""
        used = self._regular(at_ms)
        for segment in self._segments:
            used = used - (self._regular(segment.clip(at_ms)) - segment.regular) * segment.effect.affected
        return used
