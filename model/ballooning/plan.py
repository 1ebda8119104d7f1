"""The ballooning plan: which guests are squeezed, to what size, and when they are restored.

Guest memory that was used once stays resident on the host. A *pressure session* reclaims it: the balloon of a guest
is inflated step by step until the guest has little more than it uses, and then deflated at once. The pages that the
guest released stay free on the host until the guest uses them again.

All functions are pure: they depend on observations, rules, journal content and time. All amounts are MB of 2**20 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from msgspec.structs import replace

from .guests import NO_USAGE, Guest, GuestUsage, ObservedGuest, match_names
from .rules import Rules
from .sessions import Action, Session, restore_action, session_action, skip_action
from .shortage import kill_reason, live_usage, track_peak

#: Accepted difference between requested and actual memory: guests move whole pages, and hosts round.
TOLERANCE_MB = 4.0

#: A guest with more major page faults per second is short of memory; starting programs causes fewer.
_MAX_FAULTS_PER_S = 100.0

#: A session is given up when the guest misses this many reports.
_MISSED_REPORTS = 3

#: Guests report late while they inflate a balloon.
_MIN_SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Situation:
    """Input of the plan for one host.

    Attributes
    ----------
    host : str
    now_s : float
        Unix seconds.
    guests : mapping of UUID to ObservedGuest
    metrics : mapping of stored VM name to GuestUsage
    sessions : mapping of UUID to Session
    grace : mapping of UUID to float
        End of the grace period, Unix seconds.
    """

    host: str
    now_s: float
    guests: Mapping[str, ObservedGuest]
    metrics: Mapping[str, GuestUsage] = field(default_factory=dict)
    sessions: Mapping[str, Session] = field(default_factory=dict)
    grace: Mapping[str, float] = field(default_factory=dict)


def plan(situation: Situation, rules: Rules, *, may_start: bool = True, last: bool = False) -> list[Action]:
    """Plan the next actions on a host.

    Parameters
    ----------
    situation : Situation
    rules : Rules
    may_start : bool
        Whether new sessions may start; running ones always continue.
    last : bool
        Whether the daemon stops: sessions are closed without a last report of their guest.
    """
    actions = [
        continue_session(session, situation.guests.get(uuid), situation.now_s, rules, last=last)
        for uuid, session in situation.sessions.items()
    ]
    if may_start:
        actions += _start_sessions(situation, rules)
    return actions


# --- start ------------------------------------------------------------------------------------------


def _start_sessions(situation: Situation, rules: Rules) -> list[Action]:
    names = [observed.guest.name for observed in situation.guests.values()]
    stored, unmatched = match_names(names, list(situation.metrics))
    candidates: list[tuple[float, Action]] = []
    actions = [skip_action(name, "", reason) for name, reason in unmatched.items()]
    for uuid, observed in situation.guests.items():
        if uuid in situation.sessions:
            continue
        metrics = situation.metrics[stored[observed.guest.name]] if observed.guest.name in stored else NO_USAGE
        reason = skip_reason(observed, metrics, situation.grace.get(uuid, -math.inf), situation.now_s, rules)
        if reason:
            actions.append(skip_action(observed.guest.name, uuid, reason))
        else:
            candidates.append(_start_session(situation, observed, metrics, rules))
    # The largest gain comes first.
    free_places = rules.sessions_per_host - len(situation.sessions)
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1].name))
    for i, (gain_mb, action) in enumerate(candidates):
        if i < free_places:
            actions.append(action)
        else:
            reason = f"{gain_mb:.0f} MB to gain, but its host has the maximum of {rules.sessions_per_host} sessions"
            actions.append(skip_action(action.name, action.uuid, reason))
    return sorted(actions, key=lambda action: action.name)


def skip_reason(observed: ObservedGuest, metrics: GuestUsage, grace_until_s: float, now_s: float, rules: Rules) -> str:
    """The first rule that forbids a session with a VM, as a reason for the operator; empty when a session may start."""
    guest = observed.guest
    goal_mb = rules.goal(_usage(metrics, guest))
    gain_mb = metrics.rss_mb - metrics.usage_mb
    max_age_s = max(rules.stats_age_s, 60.0)
    # Written so that NaN fails the condition for a session.
    checks: tuple[tuple[bool, str], ...] = (
        (_is_excluded(guest.name, rules), "excluded by name"),
        (now_s < grace_until_s, f"in its grace period for another {grace_until_s - now_s:.0f} s"),
        (not math.isfinite(metrics.usage_mb), "the store has no mem_usage for it"),
        (not math.isfinite(metrics.rss_mb), "the store has no mem_rss for it"),
        (not metrics.age_s <= max_age_s, f"its last stored sample is {metrics.age_s:.0f} s old"),
        (guest.omitted, "its host was busy with other queries of it and omitted its balloon statistics"),
        (not guest.reports, "no balloon statistics: the guest has no balloon driver or no statistics period"),
        (now_s - observed.fresh_s > rules.stats_age_s, "its balloon statistics do not change"),
        (now_s - observed.swapped_at_s < rules.quiet_s, "it swaps"),
        (observed.faults_per_s > _MAX_FAULTS_PER_S, f"{observed.faults_per_s:.0f} major page faults per second"),
        (
            not abs(guest.memory_mb - guest.balloon_mb) <= TOLERANCE_MB,
            f"its balloon is at {guest.balloon_mb:.0f} of {guest.memory_mb:.0f} MB, and it has no session",
        ),
        (
            not gain_mb > rules.threshold_gain_mb,
            f"{max(gain_mb, 0):.0f} MB to gain, not more than the threshold of {rules.threshold_gain_mb:.0f}",
        ),
        (
            not goal_mb < guest.balloon_mb - TOLERANCE_MB,
            f"it needs {goal_mb:.0f} of its {guest.balloon_mb:.0f} MB",
        ),
    )
    return next((reason for applies, reason in checks if applies), "")


def _usage(metrics: GuestUsage, guest: Guest) -> float:
    """The larger of the stored and the current usage."""
    live_mb = guest.balloon_mb - guest.unused_mb
    return metrics.usage_mb if math.isnan(live_mb) else max(metrics.usage_mb, live_mb)


def _is_excluded(name: str, rules: Rules) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in rules.excluded)


def _start_session(
    situation: Situation, observed: ObservedGuest, metrics: GuestUsage, rules: Rules
) -> tuple[float, Action]:
    """The gain in MB and the first squeeze."""
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
        peak_mb=0.0,
    )
    reason = (
        f"{gain_mb:.0f} MB to gain: {metrics.rss_mb:.0f} resident, {metrics.usage_mb:.0f} used; "
        f"down to {goal_mb:.0f} in steps of {rules.step(guest.memory_mb):.0f}"
    )
    return gain_mb, session_action("squeeze", track_peak(session, guest), guest.balloon_mb, reason, to_mb)


# --- continue ---------------------------------------------------------------------------------------


def continue_session(
    session: Session, observed: ObservedGuest | None, now_s: float, rules: Rules, *, last: bool = False
) -> Action:
    """Plan the next action of a session.

    A guest that its host does not list keeps its session: the list may be incomplete, or the guest may be moving to
    another host. The executor of the action decides which.
    """
    if observed is None:
        return session_action("hold", session, session.to_mb, "its host does not list it")
    guest = observed.guest
    updated = _track_balloon(session, observed, now_s)
    if updated.restore_reason:
        if not guest.balloon_mb >= updated.from_mb - TOLERANCE_MB:
            return restore_action(updated, guest.balloon_mb, updated.restore_reason, gave_up=updated.gave_up)
        return _close_session(updated, observed, now_s, rules, last=last)
    killed = kill_reason(updated, observed, rules)
    if reason := killed or abort_reason(updated, observed, now_s, rules):
        return restore_action(replace(updated, killed=bool(killed)), guest.balloon_mb, reason, gave_up=True)
    if now_s >= updated.until_s:
        return restore_action(updated, guest.balloon_mb, f"session time limit reached at {guest.balloon_mb:.0f} MB")
    return _next_step(updated, observed, now_s, rules)


def _close_session(
    session: Session, observed: ObservedGuest, now_s: float, rules: Rules, *, last: bool = False
) -> Action:
    """Close the session of a guest that has its memory again, after the report that shows how the guest bore it."""
    guest = observed.guest
    if not session.restored_s:
        session = replace(session, restored_s=now_s, restored_report_s=guest.reported_s)
    reported = guest.reported_s > session.restored_report_s
    waits = not (last or reported) and now_s - session.restored_s <= _max_silence(observed, rules)
    # Without a peak the guest's figures before the session are unknown.
    if guest.reports and waits and not math.isnan(session.peak_mb):
        return session_action("hold", session, guest.balloon_mb, "waiting for its statistics after the session")
    if not session.killed and (reason := kill_reason(session, observed, rules)):
        session = replace(session, killed=True, gave_up=True, restore_reason=reason)
    return session_action("done", session, guest.balloon_mb, session.restore_reason)


def _next_step(session: Session, observed: ObservedGuest, now_s: float, rules: Rules) -> Action:
    """The next squeeze, once the guest has completed the last one and has reported since."""
    guest = observed.guest
    if guest.balloon_mb > session.to_mb + TOLERANCE_MB:
        return session_action("hold", session, guest.balloon_mb, "it is releasing memory")
    goal_mb = max(session.goal_mb, rules.goal(live_usage(session, guest)))
    if guest.balloon_mb <= goal_mb + TOLERANCE_MB:
        reason = f"it released {session.from_mb - guest.balloon_mb:.0f} MB"
        return restore_action(session, guest.balloon_mb, reason)
    if observed.fresh_s <= session.moved_s:
        return session_action("hold", session, guest.balloon_mb, "waiting for its next statistics")
    to_mb = max(goal_mb, math.ceil(guest.balloon_mb - rules.step(guest.memory_mb)))
    advanced = replace(session, to_mb=to_mb, goal_mb=goal_mb, asked_s=now_s, moved_s=now_s)
    return session_action("squeeze", advanced, guest.balloon_mb, f"on the way to {goal_mb:.0f} MB", to_mb)


def _track_balloon(session: Session, observed: ObservedGuest, now_s: float) -> Session:
    """Update a session with the observed balloon.

    The guest is restored to its current maximum, which differs from the recorded one when it was restarted with
    another size.
    """
    guest = observed.guest
    if math.isfinite(guest.memory_mb):
        session = replace(session, from_mb=min(guest.memory_mb, session.most_mb))
    if guest.balloon_mb < session.least_mb - 0.5:
        return replace(session, least_mb=guest.balloon_mb, moved_s=now_s)
    if observed.fresh_s > session.moved_s:
        # The balloon has not moved since the report, so that the two can be compared.
        surplus_mb = guest.available_mb + session.overhead_mb - guest.balloon_mb
        session = replace(session, counts_balloon=surplus_mb > 2 * TOLERANCE_MB)
        # While the guest is restored its balloon moves again.
        return session if session.restore_reason else track_peak(session, guest)
    return session


def _max_silence(observed: ObservedGuest, rules: Rules) -> float:
    """Time in seconds in which a guest reports at least once."""
    return min(rules.stats_age_s, max(_MISSED_REPORTS * observed.period_s, _MIN_SILENCE_S))


def abort_reason(session: Session, observed: ObservedGuest, now_s: float, rules: Rules) -> str:
    """Why a session must be given up at once, as a reason for the operator; empty when it may continue."""
    guest = observed.guest
    usage_mb = live_usage(session, guest)
    tight_mb = usage_mb + rules.headroom(usage_mb) / 2
    checks: tuple[tuple[bool, str], ...] = (
        (guest.swapped_kb > session.swapped_kb, f"it swapped {guest.swapped_kb - session.swapped_kb:.0f} kB"),
        (observed.faults_per_s > _MAX_FAULTS_PER_S, f"{observed.faults_per_s:.0f} major page faults per second"),
        (
            not guest.reports or now_s - observed.fresh_s > _max_silence(observed, rules),
            "its balloon statistics stopped",
        ),
        (not math.isfinite(guest.balloon_mb), "its host does not report its balloon size"),
        (
            min(guest.balloon_mb, session.to_mb) < tight_mb,
            f"it uses {usage_mb:.0f} MB now, too much for {session.to_mb:.0f} MB",
        ),
        (
            guest.balloon_mb > session.to_mb + TOLERANCE_MB and now_s - session.moved_s > rules.stuck_s,
            f"its balloon stays at {guest.balloon_mb:.0f} MB, requested were {session.to_mb:.0f} MB",
        ),
    )
    return next((reason for applies, reason in checks if applies), "")
