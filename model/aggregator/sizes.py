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

#: More memory than ever before without a boot is believed after this time.
_GROWS_MS = 3_600_000.0

#: A pause between two scrapes counts as this time at most: a clock may step.
_LONGEST_STEP_MS = 60_000.0


@dataclass(slots=True)
class _Pending:
    """A size that is not believed yet.

    Attributes
    ----------
    size : float or None
    count : int
        Scrapes with this size.
    held_ms : float
        For how long it has been reported.
    """

    size: float | None = None
    count: int = 0
    held_ms: float = 0.0
    _last_ms: float = 0.0

    def note(self, size: float, now_ms: float) -> None:
        if self.size != size:
            self.size, self.count, self.held_ms = size, 0, 0.0
        else:
            self.held_ms += min(max(now_ms - self._last_ms, 0.0), _LONGEST_STEP_MS)
        self.count += 1
        self._last_ms = now_ms

    def persists(self, for_ms: float) -> bool:
        return self.count >= _SCRAPES and self.held_ms >= for_ms


@dataclass(slots=True)
class AcceptedSize:
    """A size of a machine as it is believed.

    A smaller size is believed at once: it lowers what is free. A larger one is believed when it persists, so that one
    bad page does not raise a figure.

    Parameters
    ----------
    grows_ms : float
        For how long a size must be reported that is larger than any before, unless the machine was booted.

    Attributes
    ----------
    value : float or None
        The size that is believed; None before the first possible one.
    """

    grows_ms: float = _PERSISTS_MS
    value: float | None = None
    _largest: float = 0.0
    _booted: bool = False
    _pending: _Pending = field(default_factory=_Pending)

    def update(self, size: float, largest: float, now_ms: float, *, booted: bool = False) -> bool:
        """Note the size on a page; whether it is the one that is believed.

        Parameters
        ----------
        size, largest : float
            Larger sizes are impossible.
        now_ms : float
            Any clock.
        booted : bool
            Whether the machine was booted since the page before.
        """
        self._booted |= booted
        if not 0 < size <= largest:
            return False
        if self.value is not None and size > self.value:
            self._pending.note(size, now_ms)
            quick = self._booted or size <= self._largest
            if not self._pending.persists(_PERSISTS_MS if quick else self.grows_ms):
                return False
            self._booted = False
        self.value, self._largest, self._pending = size, max(size, self._largest), _Pending()
        return True


@dataclass(slots=True)
class NodeSizes:
    """The sizes of one node as they are believed."""

    _cores: AcceptedSize = field(default_factory=AcceptedSize)
    _memory: AcceptedSize = field(default_factory=lambda: AcceptedSize(_GROWS_MS))

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
    """The allocation of a VM as it is believed: a larger one at once, a much smaller one only after it persists.

    A smaller allocation lowers what is booked. A balloon moves memory in ordinary steps.

    Parameters
    ----------
    falls : float
        By which factor it may fall at once.

    Attributes
    ----------
    value : float or None
        None before the first possible one.
    """

    falls: float
    value: float | None = None
    _pending: _Pending = field(default_factory=_Pending)

    def is_settled_at(self, size: float) -> bool:
        """Whether this is the allocation that is believed, and no other one is pending."""
        return self.value == size and self._pending.size is None

    def update(self, size: float, largest: float, now_ms: float, least: float) -> bool:
        """Note the allocation on a page; whether it is believed.

        Parameters
        ----------
        size, largest : float
            ``largest`` is the largest possible allocation.
        now_ms : float
            Any clock.
        least : float
            What the VM is known to use.
        """
        if not max(0.0, least) < size <= largest:
            return False
        if self.value is not None and size < self.value / self.falls:
            self._pending.note(size, now_ms)
            if not self._pending.persists(_PERSISTS_MS):
                return False
        self.value, self._pending = size, _Pending()
        return True
