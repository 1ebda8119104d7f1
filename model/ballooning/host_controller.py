"""Ballooning at work: a thread per host, which looks, plans and acts, whatever becomes of the other hosts."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..common.logs import ProblemLog
from .guests import Guest, GuestUsage, ObservedGuest, observe
from .hypervisor import GuestGone, GuestRefused, HostUnavailable
from .journal import Journal
from .plan import Action, Session, Situation, plan, restore
from .rules import Rules

LOG = logging.getLogger("scroogevm.ballooning")

#: How long the end waits for guests to have their memory back.
_END_S = 10.0
#: How long a single plan waits for the store.
_UNREAD_S = 30.0
#: A guest that its host does not show for so long is not there any more; one that moves may be nowhere for a moment.
_MISSING_S = 5.0


class Host(Protocol):
    """What is asked of a hypervisor."""

    def guests(self) -> dict[str, Guest]:
        """The guests that run, by UUID."""

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        """Tell a guest how much memory it may have."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a host is looked at, seconds: between sessions, in one, and how often sessions are begun."""

    idle_s: float
    session_s: float
    plan_s: float


@dataclass(slots=True)
class BallooningCounts:
    """What happened so far."""

    sessions: int = 0
    reclaimed_mb: float = 0.0
    restores: int = 0
    gave_up: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By host: calls that failed."""
    up: dict[str, bool] = field(default_factory=dict)
    """By host: whether it answered last time."""


class HostController:
    """One host and its guests.

    Parameters
    ----------
    name : str
        The libvirt URI: under this name the journal knows the host.
    host : Host
    journal : Journal
    metrics : callable
        What the store says of the host's VMs, at a time in Unix seconds; None as long as it was not read.
    rules : Rules
    pace : Pace
    counts : BallooningCounts
    elsewhere : callable
        Where a guest runs that is not here since a moment of the monotonic clock: the name of its host; empty when no
        host has it; None when some host has not been seen since.
    report : callable, optional
        Takes the plan; nothing is done then.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        journal: Journal,
        metrics: Callable[[float], Mapping[str, GuestUsage] | None],
        rules: Rules,
        pace: Pace,
        counts: BallooningCounts,
        elsewhere: Callable[[str, float], str | None],
        report: Callable[[str, Sequence[Action]], None] | None = None,
    ) -> None:
        self.name = name
        self.observed: dict[str, ObservedGuest] | None = None
        self.asked_at = -math.inf
        self._host = host
        self._journal = journal
        self._metrics = metrics
        self._rules = rules
        self._pace = pace
        self._counts = counts
        self._elsewhere = elsewhere
        self._report = report
        self._watched_since = time.monotonic()
        self._plan_at = 0.0
        self._missing_since: dict[str, float] = {}
        self._problems = ProblemLog(LOG)

    def run(self, stop: threading.Event, *, once: bool = False) -> None:
        """Look, plan and act until told to stop, or, once, until the sessions of one plan are over."""
        patience_at = time.monotonic() + self._rules.stats_age_s + _UNREAD_S
        planned = False
        while not stop.is_set():
            planned = self.tick() or planned
            if once and planned:
                # No second one.
                self._plan_at = math.inf
            if once and not planned and self._plan_at == 0.0 and time.monotonic() > patience_at:
                self._problems.report(self.name, "nothing could be read from the store, there is no plan")
                self._counts.up[self.name] = False
                break
            if once and planned and (self._report or self.observed is None or not self._journal.sessions(self.name)):
                break
            stop.wait(self._pause_s())
        if self._report is None:
            self.end()

    def _pause_s(self) -> float:
        if self._journal.sessions(self.name) or not self._is_known():
            return self._pace.session_s
        return min(self._pace.idle_s, max(0.05, self._plan_at - time.monotonic()))

    def tick(self) -> bool:
        """Look at the host once and do what the plan says; whether sessions might have begun."""
        started = False
        try:
            self._look()
            now_s = time.time()
            metrics = self._metrics(now_s) if self._is_known() and time.monotonic() >= self._plan_at else None
            started = metrics is not None
            self._act(now_s, metrics)
        except HostUnavailable as error:
            self.observed, self._watched_since = None, time.monotonic()
            self._counts.up[self.name] = False
            self._counts.errors[self.name] += 1
            self._problems.report(self.name, str(error))
            return self._plan_is_over()
        except Exception:
            # A fault of ours: told with all that is known, and nobody stays squeezed for it.
            LOG.exception("%s: this look at the host failed", self.name)
            self._counts.errors[self.name] += 1
            self._give_all_back("something went wrong here")
            return self._plan_is_over()
        return started and self._plan_is_over()

    def _plan_is_over(self) -> bool:
        self._plan_at = time.monotonic() + self._pace.plan_s
        return True

    def _is_known(self) -> bool:
        """Whether every guest has been watched for long enough to know whether it goes on telling of its memory."""
        if self.observed is None:
            return False
        waits = any(one.guest.reports and math.isinf(one.fresh_s) for one in self.observed.values())
        return not waits or time.monotonic() - self._watched_since > self._rules.stats_age_s

    def _look(self) -> None:
        asked_at = time.monotonic()
        guests = self._host.guests()
        before = self.observed or {}
        now_s = time.time()
        self.observed = {uuid: observe(before.get(uuid), guest, now_s) for uuid, guest in guests.items()}
        # In this order: who reads both from another thread may take new guests for old ones, never old for new.
        self.asked_at = asked_at
        self._missing_since = {uuid: since for uuid, since in self._missing_since.items() if uuid not in guests}
        self._counts.up[self.name] = True
        self._problems.resolve(self.name)

    def _act(self, now_s: float, metrics: Mapping[str, GuestUsage] | None) -> None:
        """Go on with what runs, and begin what the metrics suggest, if there are any."""
        situation = Situation(
            host=self.name,
            now_s=now_s,
            guests=self.observed or {},
            metrics=metrics or {},
            sessions=self._journal.sessions(self.name),
            grace=self._journal.grace(),
        )
        actions = plan(situation, self._rules, may_start=metrics is not None)
        if self._report is not None:
            if metrics is not None:
                self._report(self.name, actions)
            return
        silent: HostUnavailable | None = None
        for action in actions:
            if silent is not None and action.kind == "squeeze":
                continue
            try:
                self._perform(action)
            except HostUnavailable as error:
                # It may be this guest alone that hangs: the others get their memory back, and nobody loses any.
                silent = error
        if silent is not None:
            raise silent

    # --- one action ---------------------------------------------------------------------------------

    def _perform(self, action: Action) -> None:
        session = action.session
        if session is None:
            LOG.info("%s: %s is left alone: %s", self.name, action.name, action.reason)
        elif action.kind == "hold":
            self._hold(session)
        elif action.kind == "squeeze":
            self._squeeze(action, session)
        elif action.kind == "done":
            self._close(session, action.from_mb)
        else:
            self._restore(action, session)

    def _squeeze(self, action: Action, session: Session) -> None:
        begins = session.uuid not in self._journal.sessions()
        try:
            self._journal.put(session)
        except OSError as error:
            self._problems.report("journal", f"can't be written: {error.strerror}; nobody is squeezed")
            if begins:
                self._forget(session, 0.0)
            else:
                self._perform(restore(session, action.from_mb, "the journal can't be written", gave_up=True))
            return
        self._problems.resolve("journal")
        self._counts.sessions += begins
        LOG.info("%s: squeeze %s from %.0f to %.0f MB: %s", self.name, *_figures(action))
        try:
            self._host.set_memory(session.uuid, action.to_mb)
        except (GuestGone, GuestRefused) as error:
            self._counts.errors[self.name] += 1
            self._perform(restore(session, action.from_mb, f"it can't be squeezed: {error}", gave_up=True))

    def _restore(self, action: Action, session: Session) -> None:
        before = self._journal.sessions().get(session.uuid)
        if before is None or before.giving_back != session.giving_back:
            self._counts.restores += 1
            self._counts.gave_up += session.gave_up
            level = logging.WARNING if session.gave_up else logging.INFO
            LOG.log(level, "%s: give back to %s from %.0f to %.0f MB: %s", self.name, *_figures(action))
        try:
            self._journal.put(session)
            self._problems.resolve("journal")
        except OSError as error:
            # To give back needs no leave: at worst it is done once more after a restart.
            self._problems.report("journal", f"can't be written: {error.strerror}; nobody is squeezed")
        try:
            self._host.set_memory(session.uuid, session.from_mb)
            self._problems.resolve(f"{self.name} {session.name}")
        except GuestGone:
            self._look_elsewhere(session)
        except GuestRefused as error:
            self._counts.errors[self.name] += 1
            self._problems.report(f"{self.name} {session.name}", f"does not take its memory back: {error}")

    def _hold(self, session: Session) -> None:
        if self.observed is None or session.uuid in self.observed:
            self._journal.note(session)
        elif time.monotonic() - self._missing_since.setdefault(session.uuid, time.monotonic()) > _MISSING_S:
            self._look_elsewhere(session)

    def _look_elsewhere(self, session: Session) -> None:
        """A squeezed guest that is not here any more: it was shut off, or it runs on another host, squeezed."""
        where = self._elsewhere(session.uuid, self._missing_since.setdefault(session.uuid, time.monotonic()))
        if where:
            LOG.warning("%s: %s has moved to %s, it gets its memory back there", self.name, session.name, where)
            moved = replace(session, host=where, giving_back="it has moved")
            try:
                self._journal.put(moved)
            except OSError as error:
                self._problems.report("journal", f"can't be written: {error.strerror}")
        elif where == "":
            LOG.info("%s: %s does not run any more, its session is over", self.name, session.name)
            self._forget(session, 0.0)

    def _close(self, session: Session, balloon_mb: float) -> None:
        observed = (self.observed or {}).get(session.uuid)
        reclaimed_mb = max(session.rss_mb - observed.guest.rss_mb, 0.0) if observed else 0.0
        # Not known is not gained.
        self._counts.reclaimed_mb += reclaimed_mb if reclaimed_mb > 0 else 0.0
        LOG.info(
            "%s: %s has its %.0f MB back, %.0f fewer are resident: %s",
            *(self.name, session.name, balloon_mb, reclaimed_mb, session.giving_back),
        )
        self._forget(session, self._rules.grace_s)

    def _forget(self, session: Session, grace_s: float) -> None:
        self._missing_since.pop(session.uuid, None)
        now_s = time.time()
        try:
            self._journal.end(session.uuid, now_s + grace_s, now_s)
        except OSError as error:
            self._problems.report("journal", f"can't be written: {error.strerror}")

    # --- the end ------------------------------------------------------------------------------------

    def _give_all_back(self, reason: str) -> None:
        for session in self._journal.sessions(self.name).values():
            try:
                self._perform(restore(session, session.to_mb, session.giving_back or reason))
            except HostUnavailable as error:
                self._problems.report(self.name, str(error))
            except Exception:
                # The thread must live on: nobody else gives anything back on this host.
                LOG.exception("%s: giving back to %s failed", self.name, session.name)

    def end(self) -> None:
        """Give everything back, and wait a little until the guests have it."""
        deadline = time.monotonic() + _END_S
        while self._journal.sessions(self.name) and time.monotonic() < deadline:
            try:
                self._give_all_back("the daemon ends")
                self._look()
                self._act(time.time(), None)
            except HostUnavailable as error:
                self._problems.report(self.name, str(error))
            except Exception:
                LOG.exception("%s: giving back failed", self.name)
            if self._journal.sessions(self.name):
                time.sleep(0.2)


def _figures(action: Action) -> tuple[str, float, float, str]:
    return action.name, action.from_mb, action.to_mb, action.reason


def run_controllers(
    controllers: Sequence[HostController],
    refresh: Callable[[], None],
    every_s: float,
    stop: threading.Event,
    *,
    once: bool,
) -> bool:
    """All hosts, each in a thread of its own, until told to stop, or once.

    Parameters
    ----------
    controllers : sequence of HostController
    refresh : callable
        Reads what is new in the store.
    every_s : float
        How often.

    Returns
    -------
    bool
        False when a host could not be left in time.
    """
    ended = threading.Event()
    threading.Thread(target=_read, args=(refresh, every_s, ended), daemon=True).start()
    threads = [
        threading.Thread(target=controller.run, args=(stop,), kwargs={"once": once}, daemon=True)
        for controller in controllers
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not stop.wait(0.1):
        pass
    deadline = time.monotonic() + 2 * _END_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    ended.set()
    return not any(thread.is_alive() for thread in threads)


def _read(refresh: Callable[[], None], every_s: float, ended: threading.Event) -> None:
    while True:
        try:
            refresh()
        except Exception:
            LOG.exception("the store could not be read")
        if ended.wait(every_s):
            return


def find_guest(controllers: Sequence[HostController], here: str, uuid: str, since: float) -> str | None:
    """On which other host a guest runs; empty when on none, None when a host has not been seen since.

    A host without sessions is looked at now and then only: what it showed before a guest left here says nothing.
    """
    unseen = False
    for controller in controllers:
        if controller.name == here:
            continue
        asked_at, observed = controller.asked_at, controller.observed
        if observed is not None and uuid in observed:
            return controller.name
        if observed is None or asked_at < since:
            unseen = True
    return None if unseen else ""
