"""Limits on what the pages of one node may hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field

from .exposition import LimitError

#: How long a VM counts after it was last on a page, at least, seconds.
_PERIOD_S = 1800.0

#: Names of VMs within the last period or two, as a multiple of the VMs that a page may have.
_NAMES_PER_VM = 2


@dataclass(frozen=True, slots=True)
class PageLimits:
    """Limits on each page of a node.

    Attributes
    ----------
    vms : int
        VMs on a page; within an hour, a node may have twice as many different ones.
    series : int
        Lines of metrics that are used.
    """

    vms: int = 1000
    series: int = 50_000

    def check_series(self, page: bytes, names: Iterable[bytes]) -> None:
        """Refuse a page with too many lines that begin with one of the names.

        Raises
        ------
        LimitError
        """
        # A page with few lines has few series: counting lines is ten times as fast as counting names.
        if page.count(b"\n") <= self.series:
            return
        number = sum(page.count(b"\n" + name) + page.startswith(name) for name in names)
        if number > self.series:
            raise LimitError(f"{number} series on the page, more than AGGREG_MAX_SERIES={self.series}")


@dataclass(slots=True)
class VmLimit:
    """Refuses pages with too many VMs, and ever new VMs: each one costs store and estimator more than its node.

    Parameters
    ----------
    most : int
        VMs of a page.
    clock : callable
        Monotonic seconds.
    """

    most: int
    clock: Callable[[], float] = time.monotonic
    _recent: set[str] = field(default_factory=set)
    _older: set[str] = field(default_factory=set)
    _since_s: float = float("-inf")

    def check(self, names: Set[str]) -> None:
        """Compare a page with the limit.

        Raises
        ------
        LimitError
        """
        if len(names) > self.most:
            raise LimitError(f"{len(names)} VMs on the page, more than AGGREG_MAX_VMS={self.most}")
        now_s = self.clock()
        if now_s - self._since_s >= _PERIOD_S:
            self._older = self._recent if now_s - self._since_s < 2 * _PERIOD_S else set()
            self._recent, self._since_s = set(), now_s
        if names <= self._recent:
            return
        number = len(self._older | self._recent | names)
        if number > _NAMES_PER_VM * self.most:
            raise LimitError(f"{number} VMs within an hour, more than {_NAMES_PER_VM} times AGGREG_MAX_VMS={self.most}")
        self._recent |= names
