"""Signs that a squeezed guest ran out of memory and killed a process.

No host reports such a kill: libvirt does not pass on the counter that recent balloon drivers have. What it does to the
guest's other figures was measured on real guests:

- The memory of the killed process is free at once: the usage falls far below what it was.
- A process that appears and is killed between two reports leaves its page faults: it used for the first time nearly
  all memory that was free before.

Both have harmless causes too. A session that ends for one of them in vain costs the host a little memory; one that
does not end costs the guest another process.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from .guests import Guest, ObservedGuest
from .rules import Rules
from .sessions import Session

#: The kernel keeps a part of the free memory for itself.
_ALL_FREE = 0.75


def live_usage(session: Session, guest: Guest) -> float:
    """Current usage of a guest in MB: its total less its free memory, which are of one report, unlike its balloon."""
    used_mb = guest.available_mb - guest.unused_mb + session.overhead_mb
    if session.counts_balloon:
        used_mb -= session.from_mb - guest.balloon_mb
    return 0.0 if math.isnan(used_mb) else used_mb


def track_peak(session: Session, guest: Guest) -> Session:
    """Update the largest memory of the guest's processes; the balloon must not have moved since the guest's report."""
    held_mb = _held(session, guest)
    return session if not guest.reports or held_mb <= session.peak_mb else replace(session, peak_mb=held_mb)


def kill_reason(session: Session, observed: ObservedGuest, rules: Rules) -> str:
    """Why a process of the guest was probably killed during the session; empty when there is no sign of it."""
    guest = observed.guest
    held_mb = _held(session, guest)
    # A guest that counts its balloon as used appears to use less while its balloon has grown since its report.
    comparable = guest.reports and (not session.counts_balloon or observed.fresh_s > session.moved_s)
    if comparable and session.peak_mb - held_mb > rules.headroom(session.peak_mb):
        return f"a process may have been killed: its usage fell from {session.peak_mb:.0f} to {held_mb:.0f} MB"
    during_session = observed.fresh_s > session.until_s - rules.session_s
    if during_session and observed.touched_mb > 0 and observed.touched_mb >= _ALL_FREE * observed.free_mb:
        used = f"processes used {observed.touched_mb:.0f} MB more between two reports"
        return f"a process may have been killed: {used}, and {max(observed.free_mb, 0):.0f} MB were free"
    return ""


def _held(session: Session, guest: Guest) -> float:
    """Usage without file content, which a guest drops and reads again as it likes."""
    return live_usage(session, guest) - (guest.cached_mb if math.isfinite(guest.cached_mb) else 0.0)
