"""Applies the actions of a plan to a host; a session is recorded in the guest's domain and in the journal first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from ..common.logs import ProblemLog
from .clock import Clock
from .counts import BallooningCounts
from .guest_locator import GuestLocator
from .guests import ObservedGuest
from .host import GuestGone, GuestRefused, Host, HostUnavailable
from .journal import Journal
from .marks import Mark
from .sessions import Action, Session, restore_action

LOG = logging.getLogger("scroogevm.ballooning")

#: A guest that its host does not list for longer is gone; a guest that moves may be listed nowhere for a moment.
_MISSING_S = 5.0
#: After a session in which a process was probably killed, the grace period is this many times as long.
_GRACE_AFTER_KILL = 8.0

Guests = Mapping[str, ObservedGuest]


def report_journal(problems: ProblemLog, reason: str) -> None:
    """Log that the journal cannot be used."""
    effect = "sessions are recorded in the guests' domains alone, and no guest is squeezed that cannot be marked"
    problems.report("journal", f"cannot be used: {reason}; {effect}", logging.ERROR)


class ActionExecutor:
    """Applies actions to one host.

    Parameters
    ----------
    name : str
        The libvirt URI, which identifies the host in the journal.
    host : Host
    journal : Journal
    locator : GuestLocator
    grace_s : float
        Length of the grace period that starts when a session is closed.
    counts : BallooningCounts
    problems : ProblemLog
    clock : Clock
    """

    def __init__(
        self,
        name: str,
        host: Host,
        journal: Journal,
        locator: GuestLocator,
        grace_s: float,
        counts: BallooningCounts,
        problems: ProblemLog,
        clock: Clock,
    ) -> None:
        self._name = name
        self._host = host
        self._journal = journal
        self._locator = locator
        self._grace_s = grace_s
        self._counts = counts
        self._problems = problems
        self._clock = clock
        self._missing_since: dict[str, float] = {}

    def apply(self, actions: Iterable[Action], guests: Guests) -> None:
        """Apply actions in order.

        A failed action may be followed by another one, such as a restore. When a call finds the host unavailable,
        the remaining guests are still restored, because only that one guest may hang, but none is squeezed.

        Raises
        ------
        HostUnavailable
            At the end, when it was raised by any of the actions.
        """
        self._missing_since = {uuid: since for uuid, since in self._missing_since.items() if uuid not in guests}
        pending = deque(actions)
        unavailable: HostUnavailable | None = None
        while pending:
            action = pending.popleft()
            if unavailable is not None and action.kind == "squeeze":
                continue
            try:
                follow_up = self._apply_one(action, guests)
            except HostUnavailable as error:
                unavailable = error
                continue
            if follow_up is not None:
                pending.appendleft(follow_up)
        if unavailable is not None:
            raise unavailable

    def _apply_one(self, action: Action, guests: Guests) -> Action | None:
        """Apply an action; the action that must follow, if any."""
        session = action.session
        if session is None:
            LOG.info("%s: skip vm=%s: %s", self._name, action.name, action.reason)
            return None
        if action.kind == "squeeze":
            return self._squeeze(action, session)
        if action.kind == "hold":
            self._hold(session, guests)
        elif action.kind == "done":
            self._close(action, session, guests)
        else:
            self._restore(action, session)
        return None

    def _squeeze(self, action: Action, session: Session) -> Action | None:
        """Squeeze a guest that is recorded in its domain or in the journal, so that either one can restore it."""
        starts = session.uuid not in self._journal.sessions()
        if starts:
            if not self._journal.owned:
                self._report_journal(self._journal.fault or "is not open")
                return None
            session = replace(session, marked=self._mark(session))
        # Without a lock it is a late call of an earlier run.
        recorded = self._record(session) or (session.marked and self._journal.owned)
        if not recorded:
            if starts:
                self._end_session(session, 0.0)
                return None
            return restore_action(session, action.from_mb, "the journal cannot be written", gave_up=True)
        self._counts.sessions += starts
        self._log(logging.INFO, action)
        try:
            self._host.set_memory(session.uuid, action.to_mb)
        except (GuestGone, GuestRefused) as error:
            self._counts.errors[self._name] += 1
            return restore_action(session, action.from_mb, f"it cannot be squeezed: {error}", gave_up=True)
        return None

    def _restore(self, action: Action, session: Session) -> None:
        recorded = self._journal.sessions().get(session.uuid)
        if recorded is None or recorded.restore_reason != session.restore_reason:
            self._counts.restores += 1
            self._count_failure(session)
            self._log(logging.WARNING if session.gave_up else logging.INFO, action)
        # A restore is safe without a journal entry: at worst it is repeated after a restart.
        self._record(session)
        subject = f"{self._name} {session.name}"
        try:
            self._host.set_memory(session.uuid, session.from_mb)
            self._problems.resolve(subject)
        except GuestGone:
            self._follow_missing(session)
        except HostUnavailable:
            self._counts.restore_failures[self._name] += 1
            raise
        except GuestRefused as error:
            self._counts.errors[self._name] += 1
            self._counts.restore_failures[self._name] += 1
            self._problems.report(subject, f"cannot be restored: {error}")

    def _count_failure(self, session: Session) -> None:
        self._counts.gave_up += session.gave_up
        self._counts.killed += session.killed

    def _hold(self, session: Session, guests: Guests) -> None:
        if session.uuid in guests:
            self._journal.note(session)
        elif self._clock.monotonic() - self._missed_at(session) > _MISSING_S:
            self._follow_missing(session)

    def _missed_at(self, session: Session) -> float:
        return self._missing_since.setdefault(session.uuid, self._clock.monotonic())

    def _follow_missing(self, session: Session) -> None:
        """Move the session of a missing guest to its new host, or close it when the guest is shut off."""
        location = self._locator.locate(session.uuid, self._name, self._missed_at(session))
        if location.host is not None:
            LOG.warning(
                "%s: guest moved while squeezed, it is restored there: vm=%s host=%s",
                *(self._name, session.name, location.host),
            )
            self._record(replace(session, host=location.host, restore_reason="it moved to another host"))
        elif location.certain:
            LOG.info("%s: session closed, the guest is shut off: vm=%s", self._name, session.name)
            self._end_session(session, 0.0)

    def _close(self, action: Action, session: Session, guests: Guests) -> None:
        if session.marked and not self._unmark(session):
            return  # it is tried again at the next step
        recorded = self._journal.sessions().get(session.uuid)
        if session.killed and recorded is not None and not recorded.killed:
            # Its last report shows it, after the restore was counted.
            self._counts.killed += 1
            self._counts.gave_up += not recorded.gave_up
            LOG.warning("%s: session failed vm=%s: %s", self._name, session.name, session.restore_reason)
        reclaimed_mb = session.rss_mb - guests[session.uuid].guest.rss_mb if session.uuid in guests else 0.0
        # False for NaN: an unknown amount does not count.
        reclaimed_mb = reclaimed_mb if reclaimed_mb > 0 else 0.0
        self._counts.reclaimed_mb += reclaimed_mb
        LOG.info(
            "%s: session closed vm=%s memory_mb=%.0f reclaimed_mb=%.0f: %s",
            *(self._name, session.name, action.from_mb, reclaimed_mb, session.restore_reason),
        )
        self._end_session(session, self._grace_s * (_GRACE_AFTER_KILL if session.killed else 1.0))

    def _end_session(self, session: Session, grace_s: float) -> None:
        self._missing_since.pop(session.uuid, None)
        now_s = self._clock.wall()
        try:
            self._journal.end(session.uuid, now_s + grace_s, now_s)
        except OSError as error:
            self._report_journal(error.strerror or type(error).__name__)

    def _record(self, session: Session) -> bool:
        """Write a session into the journal; whether that succeeded."""
        try:
            self._journal.put(session)
        except OSError as error:
            self._report_journal(error.strerror or type(error).__name__)
            return False
        self._problems.resolve("journal")
        return True

    def _report_journal(self, reason: str) -> None:
        report_journal(self._problems, reason)

    def _mark(self, session: Session) -> bool:
        """Mark a guest whose session starts; whether that succeeded.

        Raises
        ------
        HostUnavailable
        """
        mark = Mark(session.from_mb, self._clock.wall(), session.until_s, self._journal.owner)
        subject = f"{self._name} marks"
        try:
            self._host.set_mark(session.uuid, mark)
        except GuestGone:
            return False
        except GuestRefused as error:
            self._problems.report(subject, f"cannot be written: {error}; sessions are in the journal alone")
            return False
        self._problems.resolve(subject)
        return True

    def _unmark(self, session: Session) -> bool:
        """Remove the mark of a guest; False when that must be tried again.

        Raises
        ------
        HostUnavailable
        """
        try:
            self._host.set_mark(session.uuid, None)
        except GuestGone:
            return True
        except GuestRefused as error:
            self._problems.report(f"{self._name} {session.name}", f"its mark cannot be removed: {error}")
            return False
        return True

    def _log(self, level: int, action: Action) -> None:
        figures = (action.name, action.from_mb, action.to_mb, action.reason)
        LOG.log(level, "%s: %s vm=%s from_mb=%.0f to_mb=%.0f: %s", self._name, action.kind, *figures)
