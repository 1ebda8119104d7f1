"""The ballooning plan: whose memory is asked back, down to what, and when it is given back.

Guest memory that was used once stays resident on the host. A *pressure session* takes it back: the balloon of a guest
is blown up, step by step, until the guest has little more than it uses, and let go again at once; what the
guest gave up stays free on the host until it is used.

Everything here is a pure function of what was seen, the rules, what is written in the journal and the clock. All
amounts are MB of 2**20 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

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
class Rules:
    """How ballooning goes about it.

    Attributes
    ----------
    scope_s : float
        Over which a VM's usage is looked at.
    grace_s : float
        From the end of a session until a VM may have another.
    threshold_gain_mb : float
        What there must be to gain, at least.
    min_config_mb : float
        Below which no VM is squeezed.
    headroom_share, headroom_mb : float
        What a guest keeps beside what it uses: a share of that, and at least so much.
    step_share, step_mb : float
        What one step takes, at most: a share of the VM's memory, or so much where that is less.
    session_s : float
        How long a session lasts, at most.
    stuck_s : float
        How long a guest may take to give anything back.
    stats_age_s : float
        How old the guest's own statistics may be.
    quiet_s : float
        How long a guest must not have swapped.
    sessions_per_host : int
    excluded : tuple of str
        Patterns of names that are left alone, such as ``db-*``.
    """

    scope_s: float = 3600.0
    grace_s: float = 3600.0
    threshold_gain_mb: float = 512.0
    min_config_mb: float = 1024.0
    headroom_share: float = 0.2
    headroom_mb: float = 64.0
    step_share: float = 0.05
    step_mb: float = 128.0
    session_s: float = 120.0
    stuck_s: float = 10.0
    stats_age_s: float = 30.0
    quiet_s: float = 60.0
    sessions_per_host: int = 4
    excluded: tuple[str, ...] = ()

    def headroom(self, usage_mb: float) -> float:
        """What a guest keeps beside what it uses."""
        return max(self.headroom_share * usage_mb, self.headroom_mb)

    def goal(self, usage_mb: float) -> float:
        """Down to what a VM may be squeezed, whole MB; of a usage that is not known, inf."""
        wanted_mb = usage_mb + self.headroom(usage_mb)
        # A usage beyond all measure overflows here, and is no more of a goal than one that is not known.
        return float(math.ceil(max(wanted_mb, self.min_config_mb))) if math.isfinite(wanted_mb) else math.inf

    def step(self, memory_mb: float) -> float:
        """How much one step takes from a VM of that size."""
        return max(self.step_mb, self.step_share * memory_mb)


@dataclass(frozen=True, slots=True)
class Metrics:
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


NO_METRICS = Metrics(math.nan, math.nan, math.inf)


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
class Watched:
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


def watch(before: Watched | None, guest: Guest, now_s: float) -> Watched:
    """Look at a guest once more.

    Statistics are as old as the time since they were last seen to change: the clocks of guest, host and ours need
    not agree, and a guest that told something once, at its start, is not taken for one that does. When our own
    clock was put back, what was seen before says nothing any more: who is squeezed gets it back.
    """
    if before is None or before.guest.uuid != guest.uuid or now_s < before.seen_s:
        return Watched(guest, now_s)
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
    return Watched(guest, now_s, fresh_s, period_s, now_s if swapped else before.swapped_at_s, faults_per_s)


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
    guests : mapping of UUID to Watched
    metrics : mapping of VM name, as it is stored, to Metrics
    sessions : mapping of UUID to Session
    grace : mapping of UUID to float
        When a VM may have a session again, Unix seconds.
    """

    host: str
    now_s: float
    guests: Mapping[str, Watched]
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    sessions: Mapping[str, Session] = field(default_factory=dict)
    grace: Mapping[str, float] = field(default_factory=dict)


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
        go_on(session, situation.guests.get(uuid), situation.now_s, rules)
        for uuid, session in situation.sessions.items()
    ]
    if may_start:
        actions += _starts(situation, rules)
    return actions


# --- beginning --------------------------------------------------------------------------------------


def _starts(situation: Situation, rules: Rules) -> list[Action]:
    names = [watched.guest.name for watched in situation.guests.values()]
    stored, nobodys = matched(names, list(situation.metrics))
    possible: list[tuple[float, Action]] = []
    actions = [_skip(name, "", reason) for name, reason in nobodys.items()]
    for uuid, watched in situation.guests.items():
        if uuid in situation.sessions:
            continue
        metrics = situation.metrics[stored[watched.guest.name]] if watched.guest.name in stored else NO_METRICS
        reason = why_not(watched, metrics, situation.grace.get(uuid, -math.inf), situation.now_s, rules)
        if reason:
            actions.append(_skip(watched.guest.name, uuid, reason))
        else:
            possible.append(_begin(situation, watched, metrics, rules))
    # Who has most to give comes first.
    room = rules.sessions_per_host - len(situation.sessions)
    for i, (gain_mb, action) in enumerate(sorted(possible, key=lambda found: (-found[0], found[1].name))):
        if i < room:
            actions.append(action)
        else:
            words = f"{gain_mb:.0f} MB to gain, but {rules.sessions_per_host} sessions run on its host"
            actions.append(_skip(action.name, action.uuid, words))
    return sorted(actions, key=lambda action: action.name)


def why_not(watched: Watched, metrics: Metrics, grace_until_s: float, now_s: float, rules: Rules) -> str:
    """Why no session is begun with a VM; empty when one may be. The rules in the order in which they are told."""
    guest = watched.guest
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
        (now_s - watched.fresh_s > rules.stats_age_s, "its statistics are not seen to change"),
        (now_s - watched.swapped_at_s < rules.quiet_s, "it swaps"),
        (watched.faults_per_s > _FAULTS_PER_S, f"it has {watched.faults_per_s:.0f} page faults from disk per second"),
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


def _usage(metrics: Metrics, guest: Guest) -> float:
    """The larger one of what it used and what it uses now."""
    live_mb = guest.balloon_mb - guest.unused_mb
    return metrics.usage_mb if math.isnan(live_mb) else max(metrics.usage_mb, live_mb)


def _excluded(name: str, rules: Rules) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in rules.excluded)


def _begin(situation: Situation, watched: Watched, metrics: Metrics, rules: Rules) -> tuple[float, Action]:
    guest, now_s = watched.guest, situation.now_s
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


def go_on(session: Session, watched: Watched | None, now_s: float, rules: Rules) -> Action:
    """What comes next in a session.

    A guest that the host no longer knows keeps its session: the host may be mistaken, or the guest on its way to
    another one. Who runs the plan finds out.
    """
    if watched is None:
        return _act("hold", session, session.to_mb, "its host does not show it")
    guest = watched.guest
    seen = _followed(session, watched, now_s)
    if seen.giving_back:
        if not guest.balloon_mb >= seen.from_mb - TOLERANCE_MB:
            return restore(seen, guest.balloon_mb, seen.giving_back, gave_up=seen.gave_up)
        return _act("done", seen, guest.balloon_mb, seen.giving_back)
    if wrong := _what_is_wrong(seen, watched, now_s, rules):
        return restore(seen, guest.balloon_mb, wrong, gave_up=True)
    if now_s >= seen.until_s:
        return restore(seen, guest.balloon_mb, f"its time is over at {guest.balloon_mb:.0f} MB")
    return _descend(seen, watched, now_s, rules)


def _descend(session: Session, watched: Watched, now_s: float, rules: Rules) -> Action:
    """The next step, once the guest has followed the last one and told how it fares."""
    guest = watched.guest
    if guest.balloon_mb > session.to_mb + TOLERANCE_MB:
        return _act("hold", session, guest.balloon_mb, "it is giving back")
    goal_mb = max(session.goal_mb, rules.goal(_live_usage(session, guest)))
    if guest.balloon_mb <= goal_mb + TOLERANCE_MB:
        return restore(session, guest.balloon_mb, f"it gave back {session.from_mb - guest.balloon_mb:.0f} MB")
    if watched.fresh_s <= session.moved_s:
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


def _followed(session: Session, watched: Watched, now_s: float) -> Session:
    """The session, with what the balloon has done since.

    What the guest gets back is what it may have now: it may have been shut off and started with more, or with less.
    """
    guest = watched.guest
    if math.isfinite(guest.memory_mb):
        session = replace(session, from_mb=guest.memory_mb)
    if guest.balloon_mb < session.least_mb - 0.5:
        return replace(session, least_mb=guest.balloon_mb, moved_s=now_s)
    if watched.fresh_s > session.moved_s:
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


def _what_is_wrong(session: Session, watched: Watched, now_s: float, rules: Rules) -> str:
    """Why a session must end at once; empty when all is well."""
    guest = watched.guest
    silence_s = min(rules.stats_age_s, max(_MISSED_REPORTS * watched.period_s, _SHORTEST_SILENCE_S))
    usage_mb = _live_usage(session, guest)
    tight_mb = usage_mb + rules.headroom(usage_mb) / 2
    checks: tuple[tuple[bool, str], ...] = (
        (guest.swapped_kb > session.swapped_kb, f"it swapped {guest.swapped_kb - session.swapped_kb:.0f} kB"),
        (watched.faults_per_s > _FAULTS_PER_S, f"it has {watched.faults_per_s:.0f} page faults from disk per second"),
        (not guest.reports or now_s - watched.fresh_s > silence_s, "it stopped telling of its memory"),
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
