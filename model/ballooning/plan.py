"""The ballooning plan: whose memory is asked back, down to what, and when it is given back.

Guest memory that was used once stays resident on the host. A *pressure session* takes it back: the balloon of a guest
is blown up, step by step, until the guest has little more than it uses, and let go again at once; what the
guest gave up stays free on the host until it is used.

Everything here is a pure function of what was seen, the rules, what is written in the journal and the clock. All
amounts are MB of 2**20 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from .guests import NO_USAGE, Guest, GuestUsage, ObservedGuest, matched
from .rules import Rules

Kind = Literal["squeeze", "hold", "restore", "give up", "done", "skip"]

#: How far a balloon may be from where it was asked to be: the guest moves whole pages, and hosts round.
TOLERANCE_MB = 4.0

#: Page faults from disk, per second, of a guest that is short of memory; one that only starts programs has fewer.
_FAULTS_PER_S = 100.0

#: In a session, how many missed reports of the guest are its last.
_MISSED_REPORTS = 3

#: Guests that blow up a balloon tell late.
_SHORTEST_SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """A guest that is squeezed, as it stands in the journal.

    Attributes
    ----------
    uuid, name, host : str
    from_mb : float
        What it had, and gets back.
    to_mb : float
        What it was asked to be content with.
    until_s : float
        When the session is over, whatever happens; Unix seconds.
    goal_mb : float
        Where the steps lead to.
    overhead_mb : float
        What of its memory a guest does not count as its own: balloon less its own total.
    asked_s, least_mb, moved_s : float
        When ``to_mb`` was asked for; how small the balloon has been; when it was last seen to shrink.
    swapped_kb : float
        What the guest had swapped when the session began.
    rss_mb : float
        What was resident then.
    counts_balloon : bool
        Whether the guest takes its balloon for memory in use, as drivers do that let go of it by themselves.
    giving_back : str
        Why it is given back; empty while it is squeezed.
    gave_up : bool
        Whether that is a failure.
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
    giving_back: str = ""
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """What is to be done with a VM, and why.

    Attributes
    ----------
    kind : str
        ``squeeze`` and ``restore`` set its memory to ``to_mb``, ``give up`` restores because something is wrong;
        ``done`` closes its session; ``hold`` and ``skip`` do nothing.
    name : str
    uuid : str
        Empty for a VM that its host does not know.
    from_mb, to_mb : float
        NaN where nothing changes.
    reason : str
    session : Session or None
        What is to stand in the journal before anything is done; None for ``skip``.
    """

    kind: Kind
    name: str
    uuid: str
    from_mb: float
    to_mb: float
    reason: str
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a plan for one host is made from.

    Attributes
    ----------
    host : str
    now_s : float
        Unix seconds.
    guests : mapping of UUID to ObservedGuest
    metrics : mapping of VM name, as it is stored, to GuestUsage
    sessions : mapping of UUID to Session
    grace : mapping of UUID to float
        When a VM may have a session again, Unix seconds.
    """

    host: str
    now_s: float
    guests: Mapping[str, ObservedGuest]
    metrics: Mapping[str, GuestUsage] = field(default_factory=dict)
    sessions: Mapping[str, Session] = field(default_factory=dict)
    grace: Mapping[str, float] = field(default_factory=dict)


def plan(situation: Situation, rules: Rules, *, may_start: bool = True) -> list[Action]:
    """What is to be done on a host now.

    Parameters
    ----------
    situation : Situation
    rules : Rules
    may_start : bool
        Whether new sessions may begin; those that run are gone on with in any case.
    """
    actions = [
        continue_session(session, situation.guests.get(uuid), situation.now_s, rules)
        for uuid, session in situation.sessions.items()
    ]
    if may_start:
        actions += _starts(situation, rules)
    return actions


# --- beginning --------------------------------------------------------------------------------------


def _starts(situation: Situation, rules: Rules) -> list[Action]:
    names = [observed.guest.name for observed in situation.guests.values()]
    stored, nobodys = matched(names, list(situation.metrics))
    possible: list[tuple[float, Action]] = []
    actions = [_skip(name, "", reason) for name, reason in nobodys.items()]
    for uuid, observed in situation.guests.items():
        if uuid in situation.sessions:
            continue
        metrics = situation.metrics[stored[observed.guest.name]] if observed.guest.name in stored else NO_USAGE
        reason = why_not(observed, metrics, situation.grace.get(uuid, -math.inf), situation.now_s, rules)
        if reason:
            actions.append(_skip(observed.guest.name, uuid, reason))
        else:
            possible.append(_begin(situation, observed, metrics, rules))
    # Who has most to give comes first.
    room = rules.sessions_per_host - len(situation.sessions)
    for i, (gain_mb, action) in enumerate(sorted(possible, key=lambda found: (-found[0], found[1].name))):
        if i < room:
            actions.append(action)
        else:
            words = f"{gain_mb:.0f} MB to gain, but {rules.sessions_per_host} sessions run on its host"
            actions.append(_skip(action.name, action.uuid, words))
    return sorted(actions, key=lambda action: action.name)


def why_not(observed: ObservedGuest, metrics: GuestUsage, grace_until_s: float, now_s: float, rules: Rules) -> str:
    """Why no session is begun with a VM; empty when one may be. The rules in the order in which they are told."""
    guest = observed.guest
    usage_mb = _usage(metrics, guest)
    goal_mb = rules.goal(usage_mb)
    gain_mb = metrics.rss_mb - metrics.usage_mb
    oldest_s = max(rules.stats_age_s, 60.0)
    checks: tuple[tuple[bool, str], ...] = (
        (_excluded(guest.name, rules), "excluded by name"),
        (now_s < grace_until_s, f"in its grace period for another {grace_until_s - now_s:.0f} s"),
        (not math.isfinite(metrics.usage_mb), "no mem_usage is stored of it"),
        (not math.isfinite(metrics.rss_mb), "no mem_rss is stored of it"),
        (not metrics.age_s <= oldest_s, f"its last stored sample is {metrics.age_s:.0f} s old"),
        (not guest.reports, "it tells nothing of its memory: no balloon driver, or no statistics period"),
        (now_s - observed.fresh_s > rules.stats_age_s, "its statistics are not seen to change"),
        (now_s - observed.swapped_at_s < rules.quiet_s, "it swaps"),
        (observed.faults_per_s > _FAULTS_PER_S, f"it has {observed.faults_per_s:.0f} page faults from disk per second"),
        (
            not abs(guest.memory_mb - guest.balloon_mb) <= TOLERANCE_MB,
            f"its balloon is at {guest.balloon_mb:.0f} of {guest.memory_mb:.0f} MB, and not by us",
        ),
        (
            not gain_mb > rules.threshold_gain_mb,
            f"{max(gain_mb, 0):.0f} MB to gain, no more than {rules.threshold_gain_mb:.0f}",
        ),
        (
            not goal_mb < guest.balloon_mb - TOLERANCE_MB,
            f"it needs {goal_mb:.0f} MB of its {guest.balloon_mb:.0f}",
        ),
    )
    return next((reason for applies, reason in checks if applies), "")


def _usage(metrics: GuestUsage, guest: Guest) -> float:
    """The larger one of what it used and what it uses now."""
    live_mb = guest.balloon_mb - guest.unused_mb
    return metrics.usage_mb if math.isnan(live_mb) else max(metrics.usage_mb, live_mb)


def _excluded(name: str, rules: Rules) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in rules.excluded)


def _begin(situation: Situation, observed: ObservedGuest, metrics: GuestUsage, rules: Rules) -> tuple[float, Action]:
    guest, now_s = observed.guest, situation.now_s
    gain_mb = metrics.rss_mb - metrics.usage_mb
    goal_mb = rules.goal(_usage(metrics, guest))
    to_mb = max(goal_mb, math.ceil(guest.balloon_mb - rules.step(guest.memory_mb)))
    session = Session(
        uuid=guest.uuid,
        name=guest.name,
        host=situation.host,
        from_mb=guest.memory_mb,
        to_mb=to_mb,
        until_s=now_s + rules.session_s,
        goal_mb=goal_mb,
        overhead_mb=max(guest.balloon_mb - guest.available_mb, 0.0),
        asked_s=now_s,
        least_mb=guest.balloon_mb,
        moved_s=now_s,
        swapped_kb=guest.swapped_kb,
        rss_mb=guest.rss_mb if not math.isnan(guest.rss_mb) else metrics.rss_mb,
    )
    reason = (
        f"{gain_mb:.0f} MB to gain: {metrics.rss_mb:.0f} resident, {metrics.usage_mb:.0f} used; "
        f"down to {goal_mb:.0f} in steps of {rules.step(guest.memory_mb):.0f}"
    )
    return gain_mb, Action("squeeze", guest.name, guest.uuid, guest.balloon_mb, to_mb, reason, session)


def _skip(name: str, uuid: str, reason: str) -> Action:
    return Action("skip", name, uuid, math.nan, math.nan, reason)


# --- going on ---------------------------------------------------------------------------------------


def continue_session(session: Session, observed: ObservedGuest | None, now_s: float, rules: Rules) -> Action:
    """What comes next in a session.

    A guest that the host no longer knows keeps its session: the host may be mistaken, or the guest on its way to
    another one. Who runs the plan finds out.
    """
    if observed is None:
        return _act("hold", session, session.to_mb, "its host does not show it")
    guest = observed.guest
    seen = _followed(session, observed, now_s)
    if seen.giving_back:
        if not guest.balloon_mb >= seen.from_mb - TOLERANCE_MB:
            return restore(seen, guest.balloon_mb, seen.giving_back, gave_up=seen.gave_up)
        return _act("done", seen, guest.balloon_mb, seen.giving_back)
    if wrong := _what_is_wrong(seen, observed, now_s, rules):
        return restore(seen, guest.balloon_mb, wrong, gave_up=True)
    if now_s >= seen.until_s:
        return restore(seen, guest.balloon_mb, f"its time is over at {guest.balloon_mb:.0f} MB")
    return _descend(seen, observed, now_s, rules)


def _descend(session: Session, observed: ObservedGuest, now_s: float, rules: Rules) -> Action:
    """The next step, once the guest has followed the last one and told how it fares."""
    guest = observed.guest
    if guest.balloon_mb > session.to_mb + TOLERANCE_MB:
        return _act("hold", session, guest.balloon_mb, "it is giving back")
    goal_mb = max(session.goal_mb, rules.goal(_live_usage(session, guest)))
    if guest.balloon_mb <= goal_mb + TOLERANCE_MB:
        return restore(session, guest.balloon_mb, f"it gave back {session.from_mb - guest.balloon_mb:.0f} MB")
    if observed.fresh_s <= session.moved_s:
        return _act("hold", session, guest.balloon_mb, "its next statistics are waited for")
    to_mb = max(goal_mb, math.ceil(guest.balloon_mb - rules.step(guest.memory_mb)))
    further = replace(session, to_mb=to_mb, goal_mb=goal_mb, asked_s=now_s, moved_s=now_s)
    return _act("squeeze", further, guest.balloon_mb, f"on the way to {goal_mb:.0f} MB", to_mb)


def restore(session: Session, balloon_mb: float, reason: str, *, gave_up: bool = False) -> Action:
    """Give back what was taken."""
    ended = replace(session, giving_back=reason, gave_up=gave_up)
    return _act("give up" if gave_up else "restore", ended, balloon_mb, reason, session.from_mb)


def _act(kind: Kind, session: Session, from_mb: float, reason: str, to_mb: float = math.nan) -> Action:
    return Action(kind, session.name, session.uuid, from_mb, to_mb, reason, session)


def _followed(session: Session, observed: ObservedGuest, now_s: float) -> Session:
    """The session, with what the balloon has done since.

    What the guest gets back is what it may have now: it may have been shut off and started with more, or with less.
    """
    guest = observed.guest
    if math.isfinite(guest.memory_mb):
        session = replace(session, from_mb=guest.memory_mb)
    if guest.balloon_mb < session.least_mb - 0.5:
        return replace(session, least_mb=guest.balloon_mb, moved_s=now_s)
    if observed.fresh_s > session.moved_s:
        # What it tells is of the balloon as it is: only now the two can be compared.
        surplus_mb = guest.available_mb + session.overhead_mb - guest.balloon_mb
        return replace(session, counts_balloon=surplus_mb > 2 * TOLERANCE_MB)
    return session


def _live_usage(session: Session, guest: Guest) -> float:
    """What the guest uses now: its total and what is free of it are told together, unlike the balloon's size."""
    used_mb = guest.available_mb - guest.unused_mb + session.overhead_mb
    if session.counts_balloon:
        used_mb -= session.from_mb - guest.balloon_mb
    return 0.0 if math.isnan(used_mb) else used_mb


def _what_is_wrong(session: Session, observed: ObservedGuest, now_s: float, rules: Rules) -> str:
    """Why a session must end at once; empty when all is well."""
    guest = observed.guest
    silence_s = min(rules.stats_age_s, max(_MISSED_REPORTS * observed.period_s, _SHORTEST_SILENCE_S))
    usage_mb = _live_usage(session, guest)
    tight_mb = usage_mb + rules.headroom(usage_mb) / 2
    checks: tuple[tuple[bool, str], ...] = (
        (guest.swapped_kb > session.swapped_kb, f"it swapped {guest.swapped_kb - session.swapped_kb:.0f} kB"),
        (observed.faults_per_s > _FAULTS_PER_S, f"it has {observed.faults_per_s:.0f} page faults from disk per second"),
        (not guest.reports or now_s - observed.fresh_s > silence_s, "it stopped telling of its memory"),
        (not math.isfinite(guest.balloon_mb), "its host does not tell how much it has"),
        (
            min(guest.balloon_mb, session.to_mb) < tight_mb,
            f"it uses {usage_mb:.0f} MB by now, too much for {session.to_mb:.0f}",
        ),
        (
            guest.balloon_mb > session.to_mb + TOLERANCE_MB and now_s - session.moved_s > rules.stuck_s,
            f"it stays at {guest.balloon_mb:.0f} MB when {session.to_mb:.0f} are asked for",
        ),
    )
    return next((reason for applies, reason in checks if applies), "")
