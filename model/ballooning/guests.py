"""Guests as their host reports them, and how they change over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class GuestUsage:
    """What the store says of a VM in the scope.

    Attributes
    ----------
    usage_mb : float
        90th percentile of ``mem_usage``; NaN when there is none.
    rss_mb : float
        Last ``mem_rss``; NaN when there is none.
    age_s : float
        Of the last sample that had a ``mem_usage``.
    """

    usage_mb: float
    rss_mb: float
    age_s: float


NO_USAGE = GuestUsage(math.nan, math.nan, math.inf)


@dataclass(frozen=True, slots=True)
class Guest:
    """What a host says of a guest that runs now.

    Attributes
    ----------
    uuid, name : str
    memory_mb : float
        What it may have at most.
    balloon_mb : float
        What it has now.
    rss_mb : float
        Resident on the host; NaN where the host does not tell.
    unused_mb, available_mb : float
        As the guest itself told: free; its total. NaN where it does not.
    reported_s : float
        When it told them, seconds of the host's clock; 0 or NaN when never.
    swapped_kb, faults : float
        Swapped in and out, page faults from disk, both since it was started; NaN where it does not tell.
    """

    uuid: str
    name: str
    memory_mb: float
    balloon_mb: float
    rss_mb: float = math.nan
    unused_mb: float = math.nan
    available_mb: float = math.nan
    reported_s: float = math.nan
    swapped_kb: float = math.nan
    faults: float = math.nan

    @property
    def reports(self) -> bool:
        """Whether it ever told anything of its memory: what is free, and of how much."""
        return self.reported_s > 0 and math.isfinite(self.available_mb - self.unused_mb)


@dataclass(frozen=True, slots=True)
class ObservedGuest:
    """A guest, and what only shows over time.

    Attributes
    ----------
    guest : Guest
    seen_s : float
        When it was looked at, seconds of our clock.
    fresh_s : float
        When its statistics were last seen to be newer than before; -inf as long as they were not.
    period_s : float
        Between the last two that were; inf as long as there were none.
    swapped_at_s : float
        When it was last seen to have swapped; -inf if never.
    faults_per_s : float
    """

    guest: Guest
    seen_s: float
    fresh_s: float = -math.inf
    period_s: float = math.inf
    swapped_at_s: float = -math.inf
    faults_per_s: float = 0.0


def observe(before: ObservedGuest | None, guest: Guest, now_s: float) -> ObservedGuest:
    """Look at a guest once more.

    Statistics are as old as the time since they were last seen to change: the clocks of guest, host and ours need
    not agree, and a guest that told something once, at its start, is not taken for one that does. When our own
    clock was put back, what was seen before says nothing any more: who is squeezed gets it back.
    """
    if before is None or before.guest.uuid != guest.uuid or now_s < before.seen_s:
        return ObservedGuest(guest, now_s)
    old = before.guest
    if math.isnan(guest.reported_s) and old.reports:
        # Its host was at something else with it, such as an exporter's question, and told only what it knows itself.
        guest = _completed(guest, old)
    newer = guest.reported_s > old.reported_s
    fresh_s = now_s if newer else before.fresh_s
    period_s = guest.reported_s - old.reported_s if newer else before.period_s
    swapped = guest.swapped_kb > old.swapped_kb
    faults_per_s = before.faults_per_s
    if newer and not math.isnan(guest.faults - old.faults):
        faults_per_s = max(guest.faults - old.faults, 0.0) / period_s
    return ObservedGuest(guest, now_s, fresh_s, period_s, now_s if swapped else before.swapped_at_s, faults_per_s)


def _completed(guest: Guest, old: Guest) -> Guest:
    """A guest with what it told last; that does not become fresh by it."""
    return replace(
        guest,
        rss_mb=old.rss_mb if math.isnan(guest.rss_mb) else guest.rss_mb,
        unused_mb=old.unused_mb,
        available_mb=old.available_mb,
        reported_s=old.reported_s,
        swapped_kb=old.swapped_kb,
        faults=old.faults,
    )


def stored_name(name: str) -> str:
    """How vmprobe writes a domain's name: without hyphens."""
    return name.replace("-", "")


def matched(guests: Sequence[str], stored: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which stored name is which guest's.

    Parameters
    ----------
    guests : sequence of str
        As libvirt calls them.
    stored : sequence of str
        As they are stored: with their hyphens, or without them.

    Returns
    -------
    dict of guest to stored name, dict of stored name to the reason why it is nobody's
        Two guests whose names differ by hyphens alone can't be told apart: neither of them is touched.
    """
    by_name: dict[str, list[str]] = {}
    for guest in guests:
        by_name.setdefault(stored_name(guest), []).append(guest)
    found: dict[str, str] = {}
    nobodys: dict[str, str] = {}
    for name in stored:
        candidates = by_name.get(stored_name(name), [])
        if len(candidates) > 1:
            nobodys[name] = f"{' and '.join(sorted(candidates))} can't be told apart without hyphens"
        elif not candidates:
            nobodys[name] = "its host does not know it, or it does not run"
        elif candidates[0] in found:
            nobodys[name] = f"{candidates[0]} is stored as {found[candidates[0]]} too"
        else:
            found[candidates[0]] = name
    for guest, name in list(found.items()):
        if any(other != name and stored_name(other) == stored_name(name) for other in stored):
            nobodys[name] = f"{guest} is stored under several names"
            del found[guest]
    return found, nobodys
