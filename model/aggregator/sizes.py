"""Accepts the sizes of machines: possible ones, and changed ones only after they persist."""

from __future__ import annotations

from dataclasses import dataclass

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
