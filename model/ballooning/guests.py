"""Guests as their host reports them, and observations of them over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

#: Size of a page; larger ones make the touched memory appear smaller.
_PAGE_MB = 4 / 1024


@dataclass(frozen=True, slots=True)
class GuestUsage:
    """Usage of a VM in the window, from the store.

    Attributes
    ----------
    usage_mb : float
        90th percentile of ``mem_usage``; NaN when missing.
    rss_mb : float
        Last ``mem_rss``; NaN when missing.
    age_s : float
        Age of the last sample with a ``mem_usage``; inf when there is none.
    """

    usage_mb: float
    rss_mb: float
    age_s: float


NO_USAGE = GuestUsage(math.nan, math.nan, math.inf)


@dataclass(frozen=True, slots=True)
class Guest:
    """A running guest as its host reports it.

    Attributes
    ----------
    uuid, name : str
    memory_mb : float
        Maximum memory.
    balloon_mb : float
        Current memory: the maximum less the balloon.
    rss_mb : float
        Resident memory on the host; NaN when missing.
    unused_mb, available_mb : float
        Free memory and total memory as the guest itself reports them; NaN when missing.
    reported_s : float
        Time of the guest's report in seconds of the host's clock; 0 or NaN when there was none.
    swapped_kb, faults : float
        Memory swapped in and out, and number of major page faults, since the guest was started; NaN when missing.
    cached_mb : float
        Part of its used memory that holds file content, as the guest reports it; NaN when missing.
    touched_pages : float
        Number of minor page faults since the guest was started: pages that processes used for the first time; NaN
        when missing.
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
    cached_mb: float = math.nan
    touched_pages: float = math.nan

    @property
    def reports(self) -> bool:
        """Whether the guest has reported its free and its total memory."""
        return self.reported_s > 0 and math.isfinite(self.available_mb - self.unused_mb)

    @property
    def omitted(self) -> bool:
        """Whether the host left the statistics out of its answer.

        libvirt does so while another query of the guest runs, such as an exporter's. Otherwise its answer has the
        resident memory, also for a guest without a balloon.
        """
        return math.isnan(self.rss_mb) and math.isnan(self.reported_s)


@dataclass(frozen=True, slots=True)
class ObservedGuest:
    """A guest, with figures that need several observations.

    Attributes
    ----------
    guest : Guest
    seen_s : float
        Time of the last observation, seconds of the local clock.
    fresh_s : float
        When newer statistics were last observed; -inf if never.
    period_s : float
        Time between the last two reports of the guest; inf when there were fewer.
    swapped_at_s : float
        When the guest was last observed to have swapped; -inf if never.
    faults_per_s : float
        Rate of major page faults.
    touched_mb : float
        Memory that processes used for the first time between the last two reports.
    free_mb : float
        Memory that was free for that: free memory in the earlier report, less what the balloon took since; NaN when
        there were fewer than two reports.
    """

    guest: Guest
    seen_s: float
    fresh_s: float = -math.inf
    period_s: float = math.inf
    swapped_at_s: float = -math.inf
    faults_per_s: float = 0.0
    touched_mb: float = 0.0
    free_mb: float = math.nan


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """The guests of a host at one moment.

    Attributes
    ----------
    requested_at : float
        Monotonic time at which the host was queried.
    guests : mapping of UUID to ObservedGuest
    """

    requested_at: float
    guests: Mapping[str, ObservedGuest]

    @property
    def settled(self) -> bool:
        """Whether the host answered for every guest, and statistics of every guest that reports were seen to change."""
        return not any(
            one.guest.omitted or (one.guest.reports and math.isinf(one.fresh_s)) for one in self.guests.values()
        )


def observe_all(
    previous: HostSnapshot | None, guests: Mapping[str, Guest], now_s: float, requested_at: float
) -> HostSnapshot:
    """Add an observation of all guests of a host."""
    before = previous.guests if previous is not None else {}
    return HostSnapshot(requested_at, {uuid: observe(before.get(uuid), guest, now_s) for uuid, guest in guests.items()})


def observe(previous: ObservedGuest | None, guest: Guest, now_s: float) -> ObservedGuest:
    """Add an observation of a guest.

    The age of statistics is the time since they were last observed to change: the clocks of guest, host and this
    daemon may differ, and a guest that reported only once, at its start, does not count as reporting. When the local
    clock was set back, earlier observations are dropped, and squeezed guests are restored.
    """
    if previous is None or previous.guest.uuid != guest.uuid or now_s < previous.seen_s:
        return ObservedGuest(guest, now_s)
    old = previous.guest
    if math.isnan(guest.reported_s) and old.reports:
        # The host was busy with this guest, such as with an exporter's query, and omitted the guest's own statistics.
        guest = _with_last_report(guest, old)
    newer = guest.reported_s > old.reported_s
    fresh_s = now_s if newer else previous.fresh_s
    period_s = guest.reported_s - old.reported_s if newer else previous.period_s
    swapped = guest.swapped_kb > old.swapped_kb
    faults_per_s, touched_mb, free_mb = previous.faults_per_s, previous.touched_mb, previous.free_mb
    if newer and not math.isnan(guest.faults - old.faults):
        faults_per_s = max(guest.faults - old.faults, 0.0) / period_s
    if newer:
        touched_pages = guest.touched_pages - old.touched_pages
        touched_mb = max(touched_pages, 0.0) * _PAGE_MB if not math.isnan(touched_pages) else 0.0
        free_mb = old.unused_mb - max(old.available_mb - guest.available_mb, 0.0)
    swapped_at_s = now_s if swapped else previous.swapped_at_s
    return ObservedGuest(guest, now_s, fresh_s, period_s, swapped_at_s, faults_per_s, touched_mb, free_mb)


def _with_last_report(guest: Guest, old: Guest) -> Guest:
    """The guest with its last report, which does not become fresh by that."""
    return replace(
        guest,
        rss_mb=old.rss_mb if math.isnan(guest.rss_mb) else guest.rss_mb,
        unused_mb=old.unused_mb,
        available_mb=old.available_mb,
        reported_s=old.reported_s,
        swapped_kb=old.swapped_kb,
        faults=old.faults,
        cached_mb=old.cached_mb,
        touched_pages=old.touched_pages,
    )


def stored_name(name: str) -> str:
    """The name of a domain as vmprobe writes it: without hyphens."""
    return name.replace("-", "")


def match_names(guests: Sequence[str], stored: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Match stored names to guests.

    Parameters
    ----------
    guests : sequence of str
        Names in libvirt.
    stored : sequence of str
        Names in the store, with or without hyphens.

    Returns
    -------
    dict of guest to stored name, dict of unmatched stored name to reason
        Guests whose names differ only by hyphens are ambiguous: none of them is matched.
    """
    by_name: dict[str, list[str]] = {}
    for guest in guests:
        by_name.setdefault(stored_name(guest), []).append(guest)
    matched: dict[str, str] = {}
    unmatched: dict[str, str] = {}
    for name in stored:
        candidates = by_name.get(stored_name(name), [])
        if len(candidates) > 1:
            unmatched[name] = f"the names {' and '.join(sorted(candidates))} differ only by hyphens"
        elif not candidates:
            unmatched[name] = "its host does not list it, or it is shut off"
        elif candidates[0] in matched:
            unmatched[name] = f"{candidates[0]} is stored as {matched[candidates[0]]} too"
        else:
            matched[candidates[0]] = name
    for guest, name in list(matched.items()):
        if any(other != name and stored_name(other) == stored_name(name) for other in stored):
            unmatched[name] = f"{guest} is stored under several names"
            del matched[guest]
    return matched, unmatched
