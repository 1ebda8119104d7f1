"""The controller of one host: observe the guests, plan, apply the plan."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..common.logs import ProblemLog
from .clock import Clock
from .counts import BallooningCounts
from .guest_locator import GuestLocator
from .guests import GuestUsage, HostSnapshot, ObservedGuest, observe_all
from .host import Host, HostUnavailable
from .journal import Journal
from .plan import Situation, plan
from .recovery import MarkRecovery
from .rules import Rules
from .sessions import Action, restore_action

LOG = logging.getLogger("scroogevm.ballooning")

#: Time limit for restoring all guests when the daemon stops.
END_S = 10.0
#: Time limit for the first read of the store when a single plan is made.
_FIRST_READ_S = 30.0


class Executor(Protocol):
    """Applies or prints the actions of a plan."""

    def apply(self, actions: Sequence[Action], guests: Mapping[str, ObservedGuest]) -> None:
        """Apply actions in order.

        Raises
        ------
        HostUnavailable
        """


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds between two steps of a controller, without and with a running session, and between two plans."""

    idle_s: float
    session_s: float
    plan_s: float


class HostController:
    """Balloons the guests of one host; all methods are called by one thread.

    Parameters
    ----------
    name : str
        The libvirt URI, which identifies the host in the journal.
    host : Host
    journal : Journal
    usage : callable
        Returns the usage of the host's VMs at a Unix time; None until the store was read.
    executor : Executor
    locator : GuestLocator
        Receives each snapshot.
    rules : Rules
    intervals : Intervals
    counts : BallooningCounts
    problems : ProblemLog
    clock : Clock
    dry_run : bool
        Nothing is changed; the executor prints each plan.
    once : bool
        A single plan is made.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        journal: Journal,
        usage: Callable[[float], Mapping[str, GuestUsage] | None],
        executor: Executor,
        locator: GuestLocator,
        rules: Rules,
        intervals: Intervals,
        counts: BallooningCounts,
        problems: ProblemLog,
        clock: Clock,
        *,
        dry_run: bool = False,
        once: bool = False,
    ) -> None:
        self.name = name
        self._host = host
        self._journal = journal
        self._usage = usage
        self._executor = executor
        self._locator = locator
        self._rules = rules
        self._intervals = intervals
        self._counts = counts
        self._problems = problems
        self._clock = clock
        self._dry_run = dry_run
        self._once = once
        self._snapshot: HostSnapshot | None = None
        self._watched_since = clock.monotonic()
        self._first_plan_until = self._watched_since + rules.stats_age_s + _FIRST_READ_S
        self._plan_at = -math.inf
        self._planned = False
        self._expired = False
        self._recovery = MarkRecovery(name, host, journal, counts, problems, clock)

    def step(self) -> None:
        """Observe the host, plan, and apply the plan; failures are logged and counted."""
        try:
            completed = self._observe_and_apply()
        except HostUnavailable as error:
            self._snapshot, self._watched_since = None, self._clock.monotonic()
            self._recovery.reset()
            self._locator.publish(self.name, None)
            self._counts.up[self.name] = False
            self._counts.errors[self.name] += 1
            self._problems.report(self.name, str(error))
            completed = True
        except Exception:
            self._report_internal_error("step failed")
            self._counts.errors[self.name] += 1
            self._restore_all("an internal error")
            completed = True
        if completed:
            self._planned = True
            self._plan_at = math.inf if self._once else self._clock.monotonic() + self._intervals.plan_s
        elif self._once and not self._planned and self._clock.monotonic() > self._first_plan_until:
            self._expired = True
            self._counts.up[self.name] = False
            self._problems.report(self.name, "no plan: the store could not be read")

    def pause_s(self) -> float:
        """Seconds until the next step."""
        if self._journal.sessions(self.name) or not self._is_settled():
            return self._intervals.session_s
        return min(self._intervals.idle_s, max(0.05, self._plan_at - self._clock.monotonic()))

    def is_done(self) -> bool:
        """Whether a single plan was made and its sessions are closed, or no plan could be made."""
        if self._expired:
            return True
        return self._planned and (self._dry_run or self._snapshot is None or not self._journal.sessions(self.name))

    def end(self) -> None:
        """Restore all guests, wait a few seconds until they have their memory, and release the host."""
        deadline = self._clock.monotonic() + END_S
        while not self._dry_run and self._journal.sessions(self.name) and self._clock.monotonic() < deadline:
            self._restore_all("the daemon stops")
            try:
                self._apply(self._observe(), None, last=True)
            except HostUnavailable as error:
                self._problems.report(self.name, str(error))
            except Exception:
                self._report_internal_error("restoring failed")
            if self._journal.sessions(self.name):
                time.sleep(0.2)
        self._host.close()

    def _observe_and_apply(self) -> bool:
        """One step; whether new sessions were considered."""
        snapshot = self._observe()
        unavailable = None if self._dry_run else self._recover(snapshot)
        may_plan = self._is_settled() and self._clock.monotonic() >= self._plan_at
        usage = self._usage(self._clock.wall()) if may_plan else None
        if usage is not None or not self._dry_run:
            self._apply(snapshot, usage)
        if unavailable is not None:
            raise unavailable
        return usage is not None

    def _recover(self, snapshot: HostSnapshot) -> HostUnavailable | None:
        """Find guests that were left squeezed; a failure must not delay the guests that have a session."""
        try:
            self._recovery.recover(snapshot.guests)
        except HostUnavailable as error:
            return error
        return None

    def _observe(self) -> HostSnapshot:
        requested_at = self._clock.monotonic()
        guests = self._host.guests()
        self._snapshot = snapshot = observe_all(self._snapshot, guests, self._clock.wall(), requested_at)
        self._locator.publish(self.name, snapshot)
        self._counts.up[self.name] = True
        self._problems.resolve(self.name)
        return snapshot

    def _is_settled(self) -> bool:
        """Whether each guest was observed long enough to detect whether its statistics change."""
        if self._snapshot is None:
            return False
        return self._snapshot.settled or self._clock.monotonic() - self._watched_since > self._rules.stats_age_s

    def _apply(self, snapshot: HostSnapshot, usage: Mapping[str, GuestUsage] | None, *, last: bool = False) -> None:
        """Continue running sessions; start new ones when usage is given."""
        situation = Situation(
            host=self.name,
            now_s=self._clock.wall(),
            guests=snapshot.guests,
            metrics=usage or {},
            sessions=self._journal.sessions(self.name),
            grace=self._journal.grace(),
        )
        self._executor.apply(plan(situation, self._rules, may_start=usage is not None, last=last), snapshot.guests)

    def _restore_all(self, reason: str) -> None:
        """Request the memory of all squeezed guests back, whatever fails on the way."""
        if self._dry_run:
            return
        guests = self._snapshot.guests if self._snapshot is not None else {}
        for session in self._journal.sessions(self.name).values():
            action = restore_action(session, session.to_mb, session.restore_reason or reason, gave_up=session.gave_up)
            try:
                self._executor.apply([action], guests)
            except HostUnavailable as error:
                self._problems.report(self.name, str(error))
            except Exception:
                # The thread must survive: no other one restores the guests of this host.
                self._report_internal_error(f"restore failed vm={session.name}")

    def _report_internal_error(self, what: str) -> None:
        """Log the current exception with its traceback, once for each place where it is raised."""
        self._problems.report(f"{self.name} internal error", f"{what}\n{traceback.format_exc()}", logging.ERROR)
