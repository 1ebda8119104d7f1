"""Pressure sessions and the actions that a plan consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

Kind = Literal["squeeze", "hold", "restore", "give up", "done", "skip"]


class Session(msgspec.Struct, frozen=True, rename={"restore_reason": "giving_back"}):
    """A squeezed guest, as the journal stores it.

    Attributes
    ----------
    uuid, name, host : str
    from_mb : float
        Memory to which the guest is restored.
    to_mb : float
        Memory that was last requested.
    until_s : float
        Latest end of the session, Unix seconds.
    goal_mb : float
        Memory at which the steps end.
    overhead_mb : float
        Memory that the guest does not count in its own total: balloon size less that total.
    asked_s, least_mb, moved_s : float
        When ``to_mb`` was requested; the smallest memory observed; when it was last observed to shrink.
    swapped_kb : float
        The guest's swap counter when the session began.
    rss_mb : float
        Resident memory when the session began.
    counts_balloon : bool
        Whether the guest counts its balloon as used memory, as drivers with autodeflate do.
    restore_reason : str
        Why the guest is restored; empty while it is squeezed. The journal names it ``giving_back``.
    gave_up : bool
        Whether the session failed.
    most_mb : float
        The guest is not restored to more than this.
    marked : bool
        Whether the domain of the guest carries a mark.
    peak_mb : float
        Largest memory that the guest's processes were observed to use; NaN when unknown.
    restored_report_s : float
        The guest's last report, in seconds of the host's clock, when it was observed to have its memory again.
    restored_s : float
        When that was observed; 0 before.
    killed : bool
        Whether a process of the guest was probably killed for lack of memory.
    """

    uuid: str
    name: str
    host: str
    from_mb: float
    to_mb: float
    until_s: float
    goal_mb: float
    overhead_mb: float = 0.0
    asked_s: float = 0.0
    least_mb: float = math.inf
    moved_s: float = 0.0
    swapped_kb: float = math.nan
    rss_mb: float = math.nan
    counts_balloon: bool = False
    restore_reason: str = ""
    gave_up: bool = False
    most_mb: float = math.inf
    marked: bool = False
    peak_mb: float = math.nan
    restored_report_s: float = 0.0
    restored_s: float = 0.0
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """What to do with a VM, and why.

    Attributes
    ----------
    kind : str
        ``squeeze`` and ``restore`` set the memory to ``to_mb``; ``give up`` restores because something is wrong;
        ``done`` closes the session; ``hold`` and ``skip`` change nothing.
    name : str
    uuid : str
        Empty for a VM that its host does not list.
    from_mb, to_mb : float
        NaN where nothing changes.
    reason : str
    session : Session or None
        The session to write into the journal before the action is applied; None for ``skip``.
    """

    kind: Kind
    name: str
    uuid: str
    from_mb: float
    to_mb: float
    reason: str
    session: Session | None = None


def skip_action(name: str, uuid: str, reason: str) -> Action:
    """Leave a VM alone."""
    return Action("skip", name, uuid, math.nan, math.nan, reason)


def session_action(kind: Kind, session: Session, from_mb: float, reason: str, to_mb: float = math.nan) -> Action:
    """An action on a VM that has a session."""
    return Action(kind, session.name, session.uuid, from_mb, to_mb, reason, session)


def restore_action(session: Session, balloon_mb: float, reason: str, *, gave_up: bool = False) -> Action:
    """Restore the memory of a squeezed guest; with ``gave_up`` because its session failed."""
    ended = msgspec.structs.replace(session, restore_reason=reason, gave_up=gave_up)
    return session_action("give up" if gave_up else "restore", ended, balloon_mb, reason, session.from_mb)
