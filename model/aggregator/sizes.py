"""Accepts the sizes of machines: possible ones, and changed ones only after they persist."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..samples import Metrics
from .exposition import KIB_PER_MB
from .unconfirmed import Unconfirmed

#: Larger than any machine that runs Linux: its limits are 8192 CPUs and 64 TiB on x86.
MOST_CORES = 8192.0
MOST_MEMORY_KIB = 2.0**36

#: No machine has more memory per core than 512 GiB; a page in a wrong unit has.
MOST_MEMORY_PER_CORE_KIB = 2.0**29

#: A change is believed after this number of scrapes, and after this time.
_SCRAPES = 3
_PERSISTS_MS = 60_000.0

#: A machine does not grow by more than this factor unless it was booted meanwhile.
_GROWTH = 8.0


@dataclass(slots=True)
class AcceptedSize:
    """A size of a machine as it is believed.

    A smaller size is believed at once: it lowers what is free. A larger one is believed when it persists, so that one
    bad page does not raise a figure.

    Attributes
    ----------
    value : float or None
        The size that is believed; None before the first possible one.
    """

    value: float | None = None
    _pending: float | None = None
    _count: int = 0
    _since_ms: float = 0.0
    _booted: bool = False

    def update(self, size: float, largest: float, now_ms: float, *, booted: bool = False) -> bool:
        """Note the size on a page; whether it is the one that is believed.

        Parameters
        ----------
        size, largest : float
            Larger sizes are impossible.
        now_ms : float
            Any clock that does not jump.
        booted : bool
            Whether the machine was booted since the page before.
        """
        self._booted |= booted
        if not 0 < size <= largest:
            return False
        if self.value is None or size <= self.value:
            self.value, self._pending = size, None
            return True
        if self._pending != size:
            self._pending, self._count, self._since_ms = size, 0, now_ms
        self._count += 1
        persists = self._count >= _SCRAPES and now_ms - self._since_ms >= _PERSISTS_MS
        if persists and (self._booted or size <= _GROWTH * self.value):
            self.value, self._pending, self._booted = size, None, False
        return self._pending is None


@dataclass(slots=True)
class NodeSizes:
    """The sizes of one node as they are believed."""

    _cores: AcceptedSize = field(default_factory=AcceptedSize)
    _memory: AcceptedSize = field(default_factory=AcceptedSize)

    @property
    def cores(self) -> float | None:
        """Cores; None before the first possible number."""
        return self._cores.value

    @property
    def memory_kib(self) -> float | None:
        """Memory, KiB; None before the first possible size."""
        return self._memory.value

    def update(self, now: Metrics, at_ms: float, *, booted: bool) -> tuple[dict[str, float], list[Unconfirmed]]:
        """The fields of sizes and memory usage, and what is missing or not believed.

        Parameters
        ----------
        now : mapping of metric name to value
        at_ms : float
            Any clock that does not jump.
        booted : bool
            Whether the node was booted since the page before.
        """
        fields: dict[str, float] = {}
        problems: list[Unconfirmed] = []
        for name, metric, accepted, unit in (
            ("cpu", "cpu_total", self._cores, 1.0),
            ("mem", "memory_total", self._memory, KIB_PER_MB),
        ):
            if metric not in now:
                continue
            most_memory = min(MOST_MEMORY_KIB, MOST_MEMORY_PER_CORE_KIB * (self.cores or MOST_CORES))
            largest = MOST_CORES if accepted is self._cores else most_memory
            if not accepted.update(now[metric], largest, at_ms, booted=booted):
                known = "unknown" if accepted.value is None else f"still {accepted.value / unit:.6g}"
                message = f"{metric} is {now[metric] / unit:.6g}, which is not believed: it is {known}"
                problems.append(Unconfirmed("size", message))
            if accepted.value is not None:
                fields[name] = accepted.value / unit
        self._add_memory_usage(fields, now, problems)
        return fields, problems

    def _add_memory_usage(self, fields: dict[str, float], now: Metrics, problems: list[Unconfirmed]) -> None:
        """Add the memory that is used, if it fits in."""
        total, available = now.get("memory_total"), now.get("memory_available")
        if total is None or available is None:
            return
        if 0 <= available <= total and self.memory_kib is not None and total - available <= self.memory_kib:
            fields["mem_usage"] = (total - available) / KIB_PER_MB
        else:
            message = f"{available / KIB_PER_MB:.0f} MB available of {total / KIB_PER_MB:.0f} MB is impossible"
            problems.append(Unconfirmed("memory", message))


@dataclass(slots=True)
class AcceptedAllocation:
    """The allocation of a VM as it is believed: a large change, in either direction, only after it persists.

    A balloon moves in ordinary steps; a change by more than a factor of 4 may be an error of the exporter.

    Attributes
    ----------
    value : float or None
        None before the first possible one.
    """

    value: float | None = None
    _pending: float | None = None
    _count: int = 0

    def update(self, size: float, largest: float) -> bool:
        """Note the allocation on a page; whether it is believed.

        Parameters
        ----------
        size, largest : float
            ``largest`` is the largest possible allocation.
        """
        if not 0 < size <= largest:
            return False
        if self.value is None or self.value / 4 <= size <= self.value * 4:
            self.value, self._pending = size, None
            return True
        if self._pending != size:
            self._pending, self._count = size, 0
        self._count += 1
        if self._count >= _SCRAPES:
            self.value, self._pending = size, None
        return self._pending is None
