"""Finds guests that an earlier run left squeezed, by the marks in their domains."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

from ..common.logs import ProblemLog
from .clock import Clock
from .counts import BallooningCounts
from .guests import Guest, ObservedGuest
from .host import GuestGone, GuestRefused, Host, HostUnavailable
from .journal import Journal
from .marks import Mark
from .plan import TOLERANCE_MB
from .sessions import Session

LOG = logging.getLogger("scroogevm.ballooning")

_REASON = "an earlier run left it squeezed"


class MarkRecovery:
    """Opens a session, which restores the guest, for each squeezed guest that has a mark and no session.

    A balloon below the maximum without a mark is the operator's own. The mark of another daemon is respected until its
    session must have ended. All methods are called by the thread of the host's controller.

    Parameters
    ----------
    name : str
        The libvirt URI, which identifies the host in the journal.
    host : Host
    journal : Journal
    counts : BallooningCounts
    problems : ProblemLog
    clock : Clock
    """

    def __init__(
        self, name: str, host: Host, journal: Journal, counts: BallooningCounts, problems: ProblemLog, clock: Clock
    ) -> None:
        self._name = name
        self._host = host
        self._journal = journal
        self._counts = counts
        self._problems = problems
        self._clock = clock
        #: Guests whose mark was read, and whether they were squeezed at that time or later.
        self._read: dict[str, bool] = {}
        #: Marks of other daemons, and the monotonic time until which they are respected.
        self._respected: dict[str, tuple[Mark, float]] = {}

    def reset(self) -> None:
        """Read all marks again, because the host was unavailable."""
        self._read.clear()

    def recover(self, guests: Mapping[str, ObservedGuest]) -> None:
        """Read the marks of guests that appeared or shrank, and open sessions for those that must be restored.

        Raises
        ------
        HostUnavailable
        """
        sessions = self._journal.sessions()
        without = {uuid: one.guest for uuid, one in guests.items() if uuid not in sessions}
        self._forget(without)
        unread = self._unread(without.values())
        if not unread:
            return
        for uuid, mark in self._host.marks(unread).items():
            guest = without[uuid]
            if mark is None:
                self._respected.pop(uuid, None)
            elif self._is_respected(uuid, mark):
                pass
            elif _is_low(guest, mark.full_mb):
                self._open_session(guest, mark)
            else:
                self._remove_mark(guest)
            self._read[uuid] = _is_low(guest)

    def _forget(self, guests: Mapping[str, Guest]) -> None:
        self._read = {uuid: low and _is_low(guests[uuid]) for uuid, low in self._read.items() if uuid in guests}
        self._respected = {uuid: one for uuid, one in self._respected.items() if uuid in guests}

    def _unread(self, guests: Iterable[Guest]) -> list[str]:
        """The guests whose mark has to be read, squeezed ones first: a call may return a part of them."""
        now_s = self._clock.monotonic()
        unread = [
            (not _is_low(guest), guest.uuid)
            for guest in guests
            if guest.uuid not in self._read
            or (_is_low(guest) and not self._read[guest.uuid])
            or (guest.uuid in self._respected and now_s >= self._respected[guest.uuid][1])
        ]
        return [uuid for _, uuid in sorted(unread)]

    def _is_respected(self, uuid: str, mark: Mark) -> bool:
        """Whether the mark may belong to a running session of another daemon."""
        if self._journal.owned and mark.owner == self._journal.owner:
            return False
        now_s = self._clock.monotonic()
        known, until_s = self._respected.get(uuid, (None, math.inf))
        if known != mark:
            until_s = now_s + mark.others_due_s(self._clock.wall())
            self._respected[uuid] = (mark, until_s)
        return now_s < until_s

    def _open_session(self, guest: Guest, mark: Mark) -> None:
        LOG.warning(
            "%s: %s, it is restored: vm=%s balloon_mb=%.0f memory_mb=%.0f",
            *(self._name, _REASON, guest.name, guest.balloon_mb, guest.memory_mb),
        )
        self._counts.restores += 1
        self._respected.pop(guest.uuid, None)
        self._journal.adopt(
            Session(
                uuid=guest.uuid,
                name=guest.name,
                host=self._name,
                from_mb=min(mark.full_mb, guest.memory_mb),
                to_mb=guest.balloon_mb,
                until_s=mark.until_s,
                goal_mb=guest.balloon_mb,
                restore_reason=_REASON,
                most_mb=mark.full_mb,
                marked=True,
            )
        )

    def _remove_mark(self, guest: Guest) -> None:
        """Remove a mark that outlived its session: it would explain a balloon that the operator sets later."""
        subject = f"{self._name} {guest.name}"
        try:
            self._host.set_mark(guest.uuid, None)
        except GuestGone:
            pass
        except (GuestRefused, HostUnavailable) as error:
            # It is read again when the guest shrinks or the host returns.
            self._problems.report(subject, f"its mark cannot be removed: {error}")
        self._respected.pop(guest.uuid, None)


def _is_low(guest: Guest, full_mb: float = math.inf) -> bool:
    return not guest.balloon_mb >= min(full_mb, guest.memory_mb) - TOLERANCE_MB
