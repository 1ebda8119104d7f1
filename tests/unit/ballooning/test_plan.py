"""The ballooning plan: each rule alone, and complete sessions of simulated guests."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_session

from model.ballooning.guests import NO_USAGE, Guest, GuestUsage, ObservedGuest, match_names, observe
from model.ballooning.plan import TOLERANCE_MB, Situation, plan
from model.ballooning.rules import Rules
from model.ballooning.sessions import Action, Session

NOW = 1_000_000.0
RULES = Rules()
NAN, INF = math.nan, math.inf
#: Part of a guest's memory that its own total does not include.
OVERHEAD = 42.0


def make_guest(name: str = "a", memory: float = 4096.0, used: float = 958.0, **changes: Any) -> Guest:
    """A guest of 4096 MB, all resident, 1000 not free: 958 used and 42 of overhead."""
    figures = {
        "balloon_mb": memory,
        "rss_mb": memory,
        "unused_mb": memory - OVERHEAD - used,
        "available_mb": memory - OVERHEAD,
        "reported_s": 500.0,
        "swapped_kb": 0.0,
        "faults": 0.0,
    }
    return Guest(f"uuid-{name}", name, memory, **{**figures, **changes})


def observed_guest(guest: Guest, **changes: float) -> ObservedGuest:
    return ObservedGuest(guest, NOW, **{"fresh_s": NOW - 1, "period_s": 2.0, **changes})


USAGE = GuestUsage(usage_mb=1000.0, rss_mb=4000.0, age_s=5.0)


def situation(
    *guests: ObservedGuest,
    metrics: Mapping[str, GuestUsage] | GuestUsage = USAGE,
    sessions: Sequence[Session] = (),
    grace: Mapping[str, float] | None = None,
) -> Situation:
    usage = {one.guest.name: metrics for one in guests} if isinstance(metrics, GuestUsage) else metrics
    return Situation(
        "h", NOW, {one.guest.uuid: one for one in guests}, usage, {one.uuid: one for one in sessions}, grace or {}
    )


def only(actions: Sequence[Action]) -> Action:
    assert len(actions) == 1, actions
    return actions[0]


def start(
    observed: ObservedGuest | None = None, metrics: GuestUsage = USAGE, rules: Rules = RULES, grace: float | None = None
) -> Action:
    one = observed or observed_guest(make_guest())
    return only(plan(situation(one, metrics=metrics, grace={} if grace is None else {one.guest.uuid: grace}), rules))


def reason_to_skip(*args: Any, **options: Any) -> str:
    action = start(*args, **options)
    assert (action.kind, action.session) == ("skip", None), action
    return action.reason


def make_session(guest: Guest | None = None, **changes: Any) -> Session:
    """A session half way: 2000 MB were requested 5 s ago and reached 3 s ago; the goal is 1200."""
    one = guest or make_guest()
    fields = {
        "to_mb": 2000.0,
        "until_s": NOW + 60,
        "goal_mb": 1200.0,
        "overhead_mb": OVERHEAD,
        "asked_s": NOW - 5,
        "least_mb": 2000.0,
        "moved_s": NOW - 3,
        "swapped_kb": 0.0,
        "rss_mb": 4096.0,
    }
    return Session(one.uuid, one.name, "h", 4096.0, **{**fields, **changes})


def squeezed(used: float = 958.0, **changes: Any) -> Guest:
    """The guest of :func:`make_session`; it has reported since the last step."""
    figures = {
        "balloon_mb": 2000.0,
        "available_mb": 2000.0 - OVERHEAD,
        "unused_mb": 2000.0 - OVERHEAD - used,
        **changes,
    }
    return make_guest(used=used, **figures)


def continued(guest: Guest | None = None, session: Session | None = None, **changes: float) -> Action:
    one = guest or squeezed()
    return only(
        plan(situation(observed_guest(one, **changes), sessions=[session or make_session()]), RULES, may_start=False)
    )


# --- starting a session -----------------------------------------------------------------------------


def test_vm_is_squeezed_when_the_gain_exceeds_the_threshold() -> None:
    # 1512 - 1000 = 512 does not exceed 512; 1513 - 1000 does.
    assert reason_to_skip(metrics=GuestUsage(1000, 1512, 0)) == "512 MB to gain, not more than the threshold of 512"
    assert start(metrics=GuestUsage(1000, 1513, 0)).kind == "squeeze"


def test_gain_is_last_rss_less_the_percentile_of_usage() -> None:
    assert start(metrics=GuestUsage(1000, 3000, 0)).reason.startswith("2000 MB to gain: 3000 resident, 1000 used")


def test_goal_is_usage_plus_headroom_of_a_fifth() -> None:
    session = start().session
    assert session is not None
    assert session.goal_mb == 1200  # 1000 + 20 %


def test_headroom_is_at_least_64_mb() -> None:
    # 20 % of 100 are 20; of 320 they are 64; of 400 they are 80.
    rules = Rules(min_config_mb=1)
    assert [rules.goal(usage) for usage in (100.0, 320.0, 400.0)] == [164, 384, 480]


def test_goal_is_never_below_min_config() -> None:
    assert [RULES.goal(usage) for usage in (0.0, 800.0, 853.0, 854.0)] == [1024, 1024, 1024, 1025]


def test_goal_follows_the_current_usage_when_that_is_larger() -> None:
    # Stored: 1000. Reported: 1958 used and 42 of overhead, 2000; plus 20 %.
    session = start(observed_guest(make_guest(used=1958))).session
    assert session is not None
    assert session.goal_mb == 2400


@pytest.mark.parametrize(
    ("memory", "step"),
    [pytest.param(2048, 128, id="128 MB"), pytest.param(40960, 2048, id="a twentieth of a large VM")],
)
def test_steps_are_limited(memory: float, step: float) -> None:
    action = start(observed_guest(make_guest(memory=memory)))
    assert (action.from_mb, action.to_mb) == (memory, memory - step)


def test_last_step_ends_at_the_goal() -> None:
    # 1200 is less than a step of 204.8 away from 1300.
    guest = squeezed(balloon_mb=1300.0, available_mb=1258.0, unused_mb=300.0)
    assert continued(guest, make_session(to_mb=1300.0, least_mb=1300.0)).to_mb == 1200


def test_vm_that_needs_all_its_memory_is_skipped() -> None:
    assert (
        reason_to_skip(observed_guest(make_guest(memory=4082.0, used=3358)), metrics=GuestUsage(100, 4000, 0))
        == "it needs 4080 of its 4082 MB"
    )


def test_vm_has_no_grace_period_before_its_first_session() -> None:
    assert start().kind == "squeeze"


def test_vm_is_skipped_during_its_grace_period() -> None:
    assert reason_to_skip(grace=NOW + 10) == "in its grace period for another 10 s"
    assert start(grace=NOW).kind == "squeeze"


@pytest.mark.parametrize("age", [61.0, INF, NAN])
def test_stored_samples_must_be_fresh(age: float) -> None:
    assert reason_to_skip(metrics=replace(USAGE, age_s=age)) == f"its last stored sample is {age:.0f} s old"
    assert start(metrics=replace(USAGE, age_s=60)).kind == "squeeze"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (NO_USAGE, "the store has no mem_usage for it"),
        (replace(USAGE, rss_mb=NAN), "the store has no mem_rss for it"),
        (replace(USAGE, usage_mb=INF), "the store has no mem_usage for it"),
    ],
)
def test_vm_without_stored_figures_is_skipped(metrics: GuestUsage, reason: str) -> None:
    assert reason_to_skip(metrics=metrics) == reason


def test_vm_whose_statistics_its_host_omitted_is_skipped_for_that_reason() -> None:
    silent = make_guest("a", rss_mb=NAN, unused_mb=NAN, available_mb=NAN, reported_s=NAN)
    assert reason_to_skip(observed_guest(silent)).startswith("its host was busy with other queries of it")
    # Not every hypervisor has the resident memory.
    assert start(observed_guest(make_guest("a", rss_mb=NAN))).kind == "squeeze"


def test_vm_without_stored_figures_does_not_prevent_sessions_of_others() -> None:
    actions = plan(
        situation(
            observed_guest(make_guest("a")), observed_guest(make_guest("b", unused_mb=NAN)), metrics={"a": USAGE}
        ),
        RULES,
    )
    assert [(action.name, action.kind) for action in actions] == [("a", "squeeze"), ("b", "skip")]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"reported_s": 0.0}, id="no driver: last update 0"),
        pytest.param({"reported_s": NAN}, id="never reported"),
        pytest.param({"unused_mb": NAN}, id="free memory missing"),
        pytest.param({"available_mb": NAN}, id="total memory missing"),
    ],
)
def test_guest_without_driver_or_statistics_is_skipped(changes: Mapping[str, float]) -> None:
    reason = "no balloon statistics: the guest has no balloon driver or no statistics period"
    assert reason_to_skip(observed_guest(make_guest(**changes))) == reason


def test_guest_whose_statistics_do_not_change_is_skipped() -> None:
    """Without a statistics period all figures are present, but date from the boot of the guest."""
    reason = "its balloon statistics do not change"
    assert reason_to_skip(observed_guest(make_guest(), fresh_s=-INF)) == reason
    assert reason_to_skip(observed_guest(make_guest(), fresh_s=NOW - 31)) == reason
    assert start(observed_guest(make_guest(), fresh_s=NOW - 30)).kind == "squeeze"


def test_guest_that_swaps_is_skipped() -> None:
    assert reason_to_skip(observed_guest(make_guest(), swapped_at_s=NOW - 59)) == "it swaps"
    assert start(observed_guest(make_guest(), swapped_at_s=NOW - 60)).kind == "squeeze"


def test_guest_with_major_faults_is_skipped() -> None:
    assert reason_to_skip(observed_guest(make_guest(), faults_per_s=101)) == "101 major page faults per second"
    assert start(observed_guest(make_guest(), faults_per_s=100)).kind == "squeeze"


def test_guest_whose_balloon_was_set_by_others_is_skipped() -> None:
    reason = "its balloon is at 4091 of 4096 MB, and it has no session"
    assert reason_to_skip(observed_guest(make_guest(balloon_mb=4091.0))) == reason
    assert start(observed_guest(make_guest(balloon_mb=4092.0))).kind == "squeeze"
    assert "4101 of 4096 MB" in reason_to_skip(observed_guest(make_guest(balloon_mb=4101.0)))


def test_excluded_names_are_skipped() -> None:
    rules = Rules(excluded=("db-*", "b"))
    assert reason_to_skip(observed_guest(make_guest("db-1")), rules=rules) == "excluded by name"
    assert start(observed_guest(make_guest("DB-1")), rules=rules).kind == "squeeze"
    assert start(observed_guest(make_guest("bb")), rules=rules).kind == "squeeze"


def test_sessions_per_host_are_limited_and_the_largest_gain_comes_first() -> None:
    guests = [observed_guest(make_guest(name)) for name in "abcd"]
    gains = dict(zip("abcd", (1000.0, 3000.0, 1000.0, 2000.0), strict=True))
    metrics = {name: GuestUsage(1000, 1000 + gain, 0) for name, gain in gains.items()}

    def squeezed_names(per_host: int, *sessions: Session) -> list[str]:
        actions = plan(situation(*guests, metrics=metrics, sessions=sessions), Rules(sessions_per_host=per_host))
        return [action.name for action in actions if action.kind == "squeeze"]

    assert [squeezed_names(count) for count in (1, 2, 3, 4)] == [
        ["b"],
        ["b", "d"],
        ["a", "b", "d"],
        ["a", "b", "c", "d"],
    ]
    # A running session takes one of two places.
    assert squeezed_names(2, make_session(make_guest("x"))) == ["b"]


# --- names ------------------------------------------------------------------------------------------


def test_vmprobe_names_match_without_their_hyphens() -> None:
    matched, unmatched = match_names(["instance-0001", "b"], ["instance0001"])
    assert (matched, unmatched) == ({"instance-0001": "instance0001"}, {})


def test_exporter_names_match_with_their_hyphens() -> None:
    assert match_names(["instance-0001", "b"], ["instance-0001", "b"])[0] == {
        "instance-0001": "instance-0001",
        "b": "b",
    }


@pytest.mark.parametrize("stored", [["ab"], ["a-b"], ["a-b", "ab"]])
def test_guests_whose_names_differ_only_by_hyphens_are_skipped(stored: Sequence[str]) -> None:
    actions = plan(
        situation(
            observed_guest(make_guest("a-b")), observed_guest(make_guest("ab")), metrics=dict.fromkeys(stored, USAGE)
        ),
        RULES,
    )
    assert {action.kind for action in actions} == {"skip"}
    assert sum(action.reason == "the names a-b and ab differ only by hyphens" for action in actions) == len(stored)


def test_guest_stored_under_two_names_is_not_matched() -> None:
    matched, unmatched = match_names(["a-b"], ["ab", "a-b"])
    assert (matched, set(unmatched)) == ({}, {"ab", "a-b"})


def test_stored_vm_that_does_not_run_is_skipped() -> None:
    actions = plan(situation(observed_guest(make_guest()), metrics={"a": USAGE, "off": USAGE}), RULES)
    assert [(action.name, action.kind, action.uuid) for action in actions] == [
        ("a", "squeeze", "uuid-a"),
        ("off", "skip", ""),
    ]


# --- continuing -------------------------------------------------------------------------------------


def test_next_step_follows_when_the_guest_completed_the_last_one_and_reported() -> None:
    # A twentieth of 4096 is 204.8: 2000 - 204.8, rounded up.
    action = continued()
    assert (action.kind, action.from_mb, action.to_mb) == ("squeeze", 2000, 1796)


def test_next_step_waits_for_statistics_after_the_last_one() -> None:
    # Reported 4 s ago, moved 3 s ago.
    assert continued(fresh_s=NOW - 4).kind == "hold"


def test_guest_that_still_releases_memory_is_held() -> None:
    assert continued(squeezed(balloon_mb=2100.0)).kind == "hold"


@pytest.mark.parametrize(
    ("guest", "changes", "reason"),
    [
        pytest.param(squeezed(swapped_kb=4.0), {}, "it swapped 4 kB", id="swaps"),
        pytest.param(squeezed(), {"faults_per_s": 500}, "500 major page faults per second", id="faults"),
        pytest.param(squeezed(), {"fresh_s": NOW - 11}, "its balloon statistics stopped", id="silent for ten seconds"),
        pytest.param(
            squeezed(), {"fresh_s": -INF}, "its balloon statistics stopped", id="never reported to this daemon"
        ),
        pytest.param(squeezed(unused_mb=NAN), {}, "its balloon statistics stopped", id="stops reporting free memory"),
        pytest.param(
            squeezed(available_mb=NAN), {}, "its balloon statistics stopped", id="stops reporting total memory"
        ),
        pytest.param(squeezed(reported_s=0.0), {}, "its balloon statistics stopped", id="lost its driver"),
        pytest.param(squeezed(used=1800.0), {}, "it uses 1842 MB now, too much for 2000 MB", id="uses more"),
        pytest.param(
            squeezed(balloon_mb=NAN), {}, "its host does not report its balloon size", id="balloon size missing"
        ),
    ],
)
def test_guest_in_trouble_is_restored_at_once(guest: Guest, changes: Mapping[str, float], reason: str) -> None:
    action = continued(guest, **changes)
    assert (action.kind, action.to_mb) == ("give up", 4096)
    assert action.reason == reason


def test_usage_is_exact_while_balloon_and_statistics_differ_in_age() -> None:
    """The balloon is at 2000 and the report dates from 3000: total less free is the usage all the same, 958."""
    assert continued(squeezed(available_mb=3000.0 - OVERHEAD, unused_mb=3000.0 - OVERHEAD - 958)).kind == "squeeze"
    # 1758 + 42 = 1800 used; half a headroom is 180: fits in 2000. 1800 + 42 and 184 do not.
    assert continued(squeezed(used=1758.0)).kind != "give up"
    assert continued(squeezed(used=1800.0)).kind == "give up"


def test_guest_is_restored_when_the_requested_size_became_too_small_on_the_way() -> None:
    # Still at 2500, where 1958 + 42 = 2000 used and 200 fit; but 2000 were requested.
    assert continued(squeezed(balloon_mb=2500.0, available_mb=2458.0, unused_mb=500.0)).kind == "give up"


def test_session_without_progress_is_given_up() -> None:
    stuck = squeezed(balloon_mb=2100.0)
    session = make_session(least_mb=2100.0, moved_s=NOW - 11)
    assert continued(stuck, session).reason == "its balloon stays at 2100 MB, requested were 2000 MB"
    assert continued(stuck, replace_session(session, moved_s=NOW - 10)).kind == "hold"
    # A little progress is progress.
    assert continued(stuck, replace_session(session, least_mb=2101.0)).kind == "hold"


def test_session_has_a_time_limit() -> None:
    action = continued(session=make_session(until_s=NOW))
    assert (action.kind, action.to_mb) == ("restore", 4096)
    assert action.reason == "session time limit reached at 2000 MB"
    session = start().session
    assert session is not None
    assert session.until_s == NOW + RULES.session_s


def test_guest_at_its_goal_is_restored() -> None:
    guest = squeezed(balloon_mb=1200.0, available_mb=1158.0, unused_mb=200.0)
    action = continued(guest, make_session(to_mb=1200.0, least_mb=1200.0))
    assert (action.kind, action.to_mb, action.reason) == ("restore", 4096, "it released 2896 MB")


def test_goal_that_rises_during_the_session_is_respected() -> None:
    # 1458 + 42 = 1500, and 20 %: 1800. The step would lead to 1796.
    action = continued(squeezed(used=1458.0))
    assert action.session is not None
    assert (action.kind, action.to_mb, action.session.goal_mb) == ("squeeze", 1800, 1800)


def test_goal_above_the_balloon_ends_the_session() -> None:
    # 1638 + 42 = 1680, and 20 %: 2016 of 2000; half of it is 168 and fits.
    assert continued(squeezed(used=1638.0)).kind == "restore"


def test_restored_guest_is_done_and_restore_is_repeated_until_then() -> None:
    session = make_session(restore_reason="enough")
    assert continued(make_guest(balloon_mb=4092.0), session).kind == "done"
    again = continued(make_guest(balloon_mb=4091.0), session)
    assert (again.kind, again.to_mb) == ("restore", 4096)
    assert continued(make_guest(balloon_mb=NAN), session).kind == "restore"


@pytest.mark.parametrize("memory", [2048.0, 8192.0])
def test_guest_restarted_with_another_size_gets_that_size(memory: float) -> None:
    for session in (make_session(), make_session(restore_reason="enough")):
        action = continued(make_guest(memory=memory, balloon_mb=1000.0), session)
        assert (action.kind in ("restore", "give up"), action.to_mb) == (True, memory)


def test_session_of_a_guest_that_its_host_does_not_list_is_held() -> None:
    session = make_session()
    action = only(plan(situation(sessions=[session]), RULES))
    assert (action.kind, action.session) == ("hold", session)


def test_sessions_continue_when_none_may_start() -> None:
    here = situation(observed_guest(squeezed()), observed_guest(make_guest("b")), sessions=[make_session()])
    assert [action.name for action in plan(here, RULES, may_start=False)] == ["a"]
    assert [action.name for action in plan(here, RULES)] == ["a", "b"]


# --- observations -----------------------------------------------------------------------------------


def test_statistics_are_fresh_when_they_were_observed_to_change() -> None:
    first = observe(None, make_guest(reported_s=500.0), NOW)
    same = observe(first, make_guest(reported_s=500.0), NOW + 2)
    newer = observe(same, make_guest(reported_s=504.0), NOW + 4)
    later = observe(newer, make_guest(reported_s=504.0), NOW + 6)
    assert [one.fresh_s for one in (first, same, newer, later)] == [-INF, -INF, NOW + 4, NOW + 4]
    assert (newer.period_s, later.period_s) == (4, 4)


def test_swapping_and_faults_are_computed_from_counters() -> None:
    first = observe(None, make_guest(reported_s=500.0, swapped_kb=9.0, faults=100.0), NOW)
    second = observe(first, make_guest(reported_s=502.0, swapped_kb=9.0, faults=300.0), NOW + 2)
    third = observe(second, make_guest(reported_s=504.0, swapped_kb=10.0, faults=300.0), NOW + 4)
    assert [one.faults_per_s for one in (first, second, third)] == [0, 100, 0]  # 200 in 2 s
    assert [one.swapped_at_s for one in (first, second, third)] == [-INF, -INF, NOW + 4]


def test_clock_that_is_set_back_ends_the_session() -> None:
    """Until the clock caught up, statistics would appear fresh and the time limit distant."""
    before = observe(observe(None, squeezed(), NOW + 3600), squeezed(reported_s=502.0), NOW + 3602)
    now = observe(before, squeezed(reported_s=504.0), NOW)
    action = only(plan(situation(now, sessions=[make_session(until_s=NOW + 3700, moved_s=NOW + 3600)]), RULES))
    assert action.kind == "give up"


# --- simulated guests -------------------------------------------------------------------------------


@dataclass
class Simulated:
    """A guest of 4096 MB whose balloon moves at a rate and which reports its memory every period."""

    used: Callable[[float], float] = lambda _s: 958.0
    rate_mb_s: float = 400.0
    period_s: float = 2.0
    reports_until_s: float = INF
    swaps_above_mb: float = INF
    counts_balloon: bool = False
    memory: float = 4096.0
    requested: float = 4096.0
    balloon: float = 4096.0
    swapped_kb: float = 0.0
    report: dict[str, float] = field(default_factory=dict)

    def advance(self, now_s: float, seconds: float) -> None:
        change = self.requested - self.balloon
        # A restore takes effect at once.
        self.balloon += change if change > 0 else max(change, -self.rate_mb_s * seconds)
        if self.used(now_s) + OVERHEAD > self.balloon or self.memory - self.balloon > self.swaps_above_mb:
            self.swapped_kb += 100.0
        if now_s < self.reports_until_s and now_s - self.report.get("reported_s", -INF) >= self.period_s:
            unused = max(self.balloon - OVERHEAD - self.used(now_s), 0.0)
            available = (self.memory if self.counts_balloon else self.balloon) - OVERHEAD
            self.report = {"reported_s": now_s, "available_mb": available, "unused_mb": unused, "faults": 0.0}
            self.report["swapped_kb"] = self.swapped_kb

    def query(self) -> Guest:
        return Guest("uuid-a", "a", self.memory, self.balloon, rss_mb=self.balloon, **self.report)


def simulate(guest: Simulated, rules: Rules = RULES, seconds: int = 200) -> list[tuple[int, Action]]:
    """All actions, with an observation every second; one session at most."""
    sessions: dict[str, Session] = {}
    grace: dict[str, float] = {}
    observed: ObservedGuest | None = None
    done = []
    for second in range(1, seconds):
        now_s = NOW + second
        guest.advance(now_s, 1.0)
        observed = observe(observed, guest.query(), now_s)
        here = Situation("h", now_s, {"uuid-a": observed}, {"a": USAGE}, sessions, grace)
        for action in plan(here, rules):
            if action.session is None:
                continue
            done.append((second, action))
            sessions = {} if action.kind == "done" else {action.uuid: action.session}
            if action.kind == "done":
                grace = {action.uuid: now_s + rules.grace_s}
            if not math.isnan(action.to_mb):
                usage = guest.used(now_s) + OVERHEAD
                if action.kind == "squeeze":
                    # Never below the last reported usage plus half the headroom.
                    reported = guest.report["available_mb"] - guest.report["unused_mb"] + OVERHEAD
                    reported -= guest.memory - guest.balloon if guest.counts_balloon else 0
                    assert action.to_mb >= reported + rules.headroom(reported) / 2 - TOLERANCE_MB, (second, usage)
                guest.requested = action.to_mb
    assert not sessions
    assert guest.requested == guest.balloon == guest.memory
    return done


def kinds(done: Sequence[tuple[int, Action]]) -> list[str]:
    return [action.kind for _, action in done if action.kind != "hold"]


def test_guest_whose_process_is_killed_unseen_is_restored_and_its_session_has_failed() -> None:
    """A process of 300 MB is gone 20 s after the start; nothing else happens."""
    done = simulate(Simulated(used=lambda now_s: 958.0 if now_s < NOW + 20 else 658.0))
    assert kinds(done)[-2:] == ["give up", "done"]
    _, action = done[-1]
    assert action.session is not None
    assert (action.session.killed, action.session.gave_up) == (True, True)
    assert min(second for second, action in done if action.kind == "give up") <= 20 + 3


def test_session_is_closed_after_a_report_of_the_guest_with_its_whole_memory() -> None:
    guest = make_guest(reported_s=500.0)
    ending = make_session(restore_reason="enough", peak_mb=958.0)
    first = continued(guest, ending)
    assert (first.kind, first.reason) == ("hold", "waiting for its statistics after the session")
    assert first.session is not None
    assert continued(guest, first.session).kind == "hold"
    assert continued(replace(guest, reported_s=502.0), first.session).kind == "done"
    # A guest that reports no more is not waited for: three reports are due every 10 s.
    late = replace_session(first.session, restored_s=NOW - 10.5)
    assert continued(guest, late).kind == "done"
    # Nor is any when the daemon stops.
    here = situation(observed_guest(guest), sessions=[ending])
    assert only(plan(here, RULES, may_start=False, last=True)).kind == "done"


def test_responsive_guest_is_squeezed_to_its_goal_and_restored() -> None:
    guest = Simulated()
    done = simulate(guest)
    # From 4096 to 1200 in steps of 204.8 and less: (4096 - 1200) / 204.8 = 14.1, so 15.
    assert kinds(done) == ["squeeze"] * 15 + ["restore", "done"]
    assert min(action.to_mb for _, action in done) == 1200
    assert guest.swapped_kb == 0


def test_slow_guest_is_restored_at_the_time_limit() -> None:
    done = simulate(Simulated(rate_mb_s=10.0))
    end, restored = next((second, action) for second, action in done if action.kind == "restore")
    assert restored.reason.startswith("session time limit reached at ")
    assert end - done[0][0] == RULES.session_s


def test_guest_that_does_not_move_is_given_up_after_a_few_seconds() -> None:
    done = simulate(Simulated(rate_mb_s=0.0))
    assert kinds(done) == ["squeeze", "give up", "done"]
    assert done[-2][0] - done[0][0] <= RULES.stuck_s + 3


def test_guest_whose_usage_grows_is_restored_before_it_swaps() -> None:
    # 100 MB more per second from the 20th on.
    guest = Simulated(used=lambda now_s: 958.0 + 100 * max(now_s - NOW - 20, 0) if now_s < NOW + 40 else 958.0)
    done = simulate(guest)
    assert kinds(done)[-2:] in (["give up", "done"], ["restore", "done"])
    assert min(action.to_mb for _, action in done) > 1200
    assert guest.swapped_kb == 0


def test_guest_that_counts_its_balloon_as_used_reaches_the_same_goal() -> None:
    """Drivers with autodeflate do."""
    done = simulate(Simulated(counts_balloon=True))
    assert min(action.to_mb for _, action in done) == 1200
    assert kinds(done)[-2:] == ["restore", "done"]


def test_guest_that_counts_its_balloon_and_uses_more_is_restored() -> None:
    done = simulate(Simulated(used=lambda now_s: 958.0 + 100 * max(now_s - NOW - 20, 0), counts_balloon=True))
    assert kinds(done)[-2:] in (["give up", "done"], ["restore", "done"])
    assert min(action.to_mb for _, action in done) > 1200


def test_guest_that_swaps_is_restored() -> None:
    """Without major page faults, as observed on real guests."""
    done = simulate(Simulated(swaps_above_mb=1000.0))
    reasons = [action.reason for _, action in done if action.kind == "give up"]
    assert reasons
    assert "it swapped" in reasons[0]


def test_single_query_without_guest_statistics_does_not_end_the_session() -> None:
    """A busy host reports its own figures only; the guest's last report is used as long as it is fresh."""
    first = observe(None, squeezed(reported_s=100.0), NOW)
    second = observe(first, squeezed(reported_s=102.0), NOW + 2)
    silent = {"unused_mb": NAN, "available_mb": NAN, "reported_s": NAN, "rss_mb": NAN}
    third = observe(second, squeezed(**silent), NOW + 4)
    assert (third.guest.unused_mb, third.guest.reported_s) == (second.guest.unused_mb, 102.0)
    assert third.fresh_s == NOW + 2
    later = observe(third, squeezed(reported_s=106.0), NOW + 6)
    assert (later.fresh_s, later.period_s) == (NOW + 6, 4.0)
    # A guest without any report gets none.
    assert not observe(observe(None, squeezed(**silent), NOW), squeezed(**silent), NOW + 2).guest.reports


def test_guest_that_stops_reporting_is_restored() -> None:
    done = simulate(Simulated(reports_until_s=NOW + 20))
    second, action = next((second, action) for second, action in done if action.kind == "give up")
    assert "its balloon statistics stopped" in action.reason
    assert second <= 20 + 10 + 2  # three periods, or ten seconds


@given(
    used=st.lists(st.floats(100, 3500), min_size=1, max_size=20),
    rate=st.floats(0, 2000),
    period=st.floats(1, 9),
    silent=st.floats(5, 300),
    swaps=st.floats(10, 5000),
)
def test_every_simulated_guest_ends_restored(
    used: list[float], rate: float, period: float, silent: float, swaps: float
) -> None:
    simulate(
        Simulated(
            used=lambda now_s: used[int((now_s - NOW) // 10) % len(used)],
            rate_mb_s=rate,
            period_s=period,
            reports_until_s=NOW + silent,
            swaps_above_mb=swaps,
        )
    )


# --- arbitrary situations ---------------------------------------------------------------------------

ANY = st.one_of(st.floats(), st.floats(-10, 9000), st.sampled_from([0.0, 1024.0, 2048.0, 4096.0]))
SIZE = st.sampled_from([512.0, 1024.0, 2048.0, 4096.0, 65536.0])


def mostly(usual: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    """Mostly figures with which a session may start."""
    return st.one_of(usual, usual, usual, ANY)


@st.composite
def observed_guests(draw: st.DrawFn, name: str) -> ObservedGuest:
    memory = draw(mostly(SIZE))
    guest = Guest(
        f"uuid-{name}",
        name,
        memory,
        draw(mostly(st.sampled_from([memory, memory, 1500.0]))),
        rss_mb=draw(ANY),
        unused_mb=draw(mostly(st.floats(0, 4000))),
        available_mb=draw(mostly(st.just(memory - OVERHEAD))),
        reported_s=draw(mostly(st.just(500.0))),
        swapped_kb=draw(mostly(st.just(0.0))),
        faults=draw(ANY),
    )
    fresh = draw(mostly(st.floats(NOW - 30, NOW)))
    return ObservedGuest(
        guest, NOW, fresh, draw(mostly(st.just(2.0))), draw(mostly(st.just(-INF))), draw(mostly(st.just(0.0)))
    )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    names = draw(st.lists(st.sampled_from(["a", "b", "c-d", "cd", "e"]), unique=True))
    guests = {f"uuid-{name}": draw(observed_guests(name)) for name in names}
    metrics = {
        name: GuestUsage(
            draw(mostly(st.floats(0, 3000))), draw(mostly(st.floats(1000, 60000))), draw(mostly(st.just(1.0)))
        )
        for name in draw(st.lists(st.sampled_from(["a", "b", "cd", "c-d", "z"]), unique=True))
    }
    sessions = {}
    for name in draw(st.lists(st.sampled_from(["a", "b", "y"]), unique=True)):
        size = draw(SIZE)
        sessions[f"uuid-{name}"] = Session(
            f"uuid-{name}", name, "h", size, draw(st.floats(1024, 4096)), NOW + draw(st.floats(-10, 100)),
            draw(st.floats(1024, 4096)), draw(ANY), draw(ANY), draw(ANY), draw(mostly(st.just(NOW - 1))), draw(ANY),
            draw(ANY), draw(st.sampled_from(["", "", "why"])),
        )  # fmt: skip
    grace = {f"uuid-{name}": draw(ANY) for name in draw(st.lists(st.sampled_from(["a", "b"]), unique=True))}
    return Situation("h", NOW, guests, metrics, sessions, grace)


@given(situations())
def test_plan_of_any_situation_keeps_its_limits_is_deterministic_and_leaves_its_input(here: Situation) -> None:
    before = copy.deepcopy(here)
    actions = plan(here, RULES)
    assert repr(plan(here, RULES)) == repr(actions)
    assert repr(here) == repr(before)
    uuids = [action.uuid for action in actions if action.uuid]
    assert len(uuids) == len(set(uuids))
    for action in actions:
        assert action.reason
        if action.kind == "skip":
            assert action.session is None
            continue
        assert action.session is not None
        if action.kind in ("hold", "done"):
            assert math.isnan(action.to_mb)
            continue
        guest = here.guests[action.uuid].guest
        memory = guest.memory_mb if math.isfinite(guest.memory_mb) else here.sessions[action.uuid].from_mb
        assert action.to_mb <= memory
        if action.kind == "squeeze":
            assert action.to_mb >= RULES.min_config_mb
            assert guest.balloon_mb - action.to_mb <= RULES.step(memory) + 1
            assert action.session.from_mb == memory
            assert action.session.to_mb == action.to_mb
            assert guest.reports
            assert NOW - here.guests[action.uuid].fresh_s <= RULES.stats_age_s
        else:
            assert action.to_mb == memory
            assert action.session.restore_reason


UNKNOWN = st.sampled_from([NAN, INF, -INF])


@given(
    st.sampled_from(["memory_mb", "balloon_mb", "unused_mb", "available_mb", "usage_mb", "rss_mb", "age_s"]), UNKNOWN
)
def test_unknown_figure_starts_no_session(name: str, value: float) -> None:
    guest, metrics = make_guest(), USAGE
    if name in ("usage_mb", "rss_mb", "age_s"):
        metrics = replace(metrics, **{name: value})
    else:
        guest = replace(guest, **{name: value})
    if (name, value) != ("age_s", -INF):
        assert reason_to_skip(observed_guest(guest), metrics=metrics)
