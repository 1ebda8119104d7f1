"""Compares the clock of a node with the clock of this host."""

from __future__ import annotations

from ..samples import Scrape
from .unconfirmed import Unconfirmed

#: A page from the future by no more than this keeps its time: clocks that are synchronised differ by less, ms.
_AHEAD_MS = 1000.0

#: A page may be older than this, or than some delays of its probe, only if the clock of the node is wrong, ms.
_BEHIND_MS = 60_000.0
_BEHIND_DELAYS = 3
_LONGEST_DELAY_MS = 3_600_000.0


class ClockBehind(ValueError):
    """The page of a node is old, or its clock is far behind."""


def skew_ms(scrape: Scrape) -> float:
    """Time of a page minus time of its arrival, ms; below 0 by the age of the page."""
    return 0.0 if scrape.received_ms is None else scrape.epoch_ms - scrape.received_ms


def sample_time_ms(scrape: Scrape) -> tuple[int, Unconfirmed | None]:
    """The time at which a scrape is stored, by the clock of this host.

    A page from the future was not measured later than it arrived. A page from the past may be old: its time is kept.

    Raises
    ------
    ClockBehind
        When the page is too old to be used.
    """
    skew = skew_ms(scrape)
    delay_ms = min(scrape.node.get("probe_delay", 0.0), _LONGEST_DELAY_MS)
    if -skew > max(_BEHIND_MS, _BEHIND_DELAYS * delay_ms):
        raise ClockBehind(f"the page is {-skew / 1000:.0f} s old, or the clock of the node is behind by that time")
    if skew > _AHEAD_MS and scrape.received_ms is not None:
        message = f"{skew / 1000:.0f} s ahead of this host, samples get the time of this host"
        return int(scrape.received_ms), Unconfirmed("clock", message)
    return int(scrape.epoch_ms), None
