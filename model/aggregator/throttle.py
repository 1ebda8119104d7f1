"""Decides when a node that costs too much is scraped less often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Share of a core that the scrapes of one node may take.
CPU_SHARE = 0.05

#: CPU time that a node may use at once: a page whose VMs changed takes several times as long as the next one, seconds.
_BURST_S = 0.5

#: Longest pause of a node, and of one that sends more than is read, seconds.
_LONGEST_S = 300.0
_LONGEST_AFTER_FLOOD_S = 60.0

#: Shortest pause after a flood, which each further one doubles, seconds.
_SHORTEST_AFTER_FLOOD_S = 2.0


@dataclass(slots=True)
class Throttle:
    """The CPU time that a node has left, and the floods that it has sent in succession.

    A failure that costs nothing, such as a refused connection, has no effect: a node that boots returns at once.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _credit_s: float = _BURST_S
    _charged_s: float = float("-inf")
    _floods: int = 0

    def charge(self, cost_s: float, *, flooded: bool) -> float:
        """Charge a scrape; the shortest time until the next one, seconds.

        Parameters
        ----------
        cost_s : float
            CPU time of the scrape.
        flooded : bool
            Whether the node sent more than a scrape may take.
        """
        now_s = self.clock()
        credit_s = min(_BURST_S, self._credit_s + CPU_SHARE * (now_s - self._charged_s)) - cost_s
        self._credit_s, self._charged_s = max(credit_s, -_LONGEST_S * CPU_SHARE), now_s
        self._floods = self._floods + 1 if flooded else 0
        pause_s = max(0.0, -self._credit_s / CPU_SHARE)
        if flooded:
            # The exponent has a limit: a float has one.
            doubled_s = _SHORTEST_AFTER_FLOOD_S * 2.0 ** min(self._floods, 10)
            pause_s = max(pause_s, min(doubled_s, _LONGEST_AFTER_FLOOD_S))
        return pause_s

    @property
    def is_overdrawn(self) -> bool:
        """Whether the node has used more CPU time than it had."""
        return self._credit_s < 0

    @property
    def is_idle(self) -> bool:
        """Whether the node has most of its CPU time left: it is not about to be throttled again."""
        return self._credit_s > _BURST_S / 2
