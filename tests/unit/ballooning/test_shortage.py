"""Signs that a squeezed guest killed a process, with the figures of real guests where the text says so."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model.ballooning.guests import Guest, ObservedGuest, observe
from model.ballooning.rules import Rules
from model.ballooning.sessions import Session
from model.ballooning.shortage import kill_reason, track_peak

NOW = 1_000_000.0
RULES = Rules()
#: A part of 42 MB is not in the guest's own total.
SESSION = Session("u", "a", "h", 512.0, 200.0, NOW + 60, 164.0, overhead_mb=42.0, moved_s=NOW - 3, peak_mb=100.0)


def guest(unused: float, available: float = 158.0, **more: Any) -> Guest:
    figures = {"rss_mb": 300.0, "reported_s": 10.0, "touched_pages": 0.0, **more}
    return Guest("u", "a", 512.0, 200.0, unused_mb=unused, available_mb=available, **figures)


def between(earlier: Guest, later: Guest) -> ObservedGuest:
    return observe(observe(None, earlier, NOW - 2), later, NOW - 1)


def reason(earlier: Guest, later: Guest, session: Session = SESSION) -> str:
    return kill_reason(session, between(earlier, later), RULES)


# --- usage that falls -------------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "fall"), [(100.0, 64.0), (150.0, 64.0), (1000.0, 200.0)])
def test_usage_that_falls_by_more_than_the_headroom_is_a_sign(peak: float, fall: float) -> None:
    session = Session("u", "a", "h", 4096.0, 2000.0, NOW + 60, 1200.0, overhead_mb=42.0, moved_s=NOW - 3, peak_mb=peak)

    def using(usage: float) -> Guest:
        return guest(2000 - usage, 1958.0, reported_s=11.0)

    assert reason(guest(900, 1958.0), using(peak - fall), session) == ""
    text = f"a process may have been killed: its usage fell from {peak:.0f} to {peak - fall - 1:.0f} MB"
    assert reason(guest(900, 1958.0), using(peak - fall - 1), session) == text


def test_real_guest_whose_process_of_80_mb_was_killed() -> None:
    session = Session("u", "a", "h", 512.0, 220.0, NOW + 60, 200.0, overhead_mb=42.0, moved_s=NOW - 3, peak_mb=149.0)
    earlier = guest(70, 178, touched_pages=54417.0, cached_mb=2.0)
    later = guest(148, 178, reported_s=11.0, touched_pages=91882.0, cached_mb=2.0)
    assert "its usage fell from 149 to 70 MB" in reason(earlier, later, session)


def test_dropped_file_content_is_no_sign() -> None:
    session = Session("u", "a", "h", 512.0, 512.0, NOW + 60, 164.0, overhead_mb=42.0, moved_s=NOW - 3)
    full = guest(200, 470, cached_mb=170.0)
    session = track_peak(session, full)
    assert session.peak_mb == 470 - 200 + 42 - 170
    assert reason(full, guest(365, 470, cached_mb=5.0, reported_s=11.0), session) == ""
    assert reason(full, guest(365, 470, cached_mb=80.0, reported_s=11.0), session) != ""


def test_peak_rises_and_does_not_fall() -> None:
    session = track_peak(SESSION, guest(80))
    assert session.peak_mb == 158 - 80 + 42
    assert track_peak(session, guest(90)) == session
    silent = guest(10, reported_s=math.nan)
    assert track_peak(session, silent) == session


def test_usage_of_a_guest_that_counts_its_balloon_is_compared_when_its_balloon_stands_still() -> None:
    # Its report is older than the last step of 100 MB.
    session = Session(
        *("u", "a", "h", 512.0, 200.0, NOW + 60, 164.0),
        **{"counts_balloon": True, "moved_s": NOW - 0.5, "peak_mb": 100.0},
    )
    assert reason(guest(258, 470), guest(258, 470, reported_s=11.0), session) == ""


def test_unknown_peak_and_missing_report_are_no_sign() -> None:
    unknown = Session("u", "a", "h", 512.0, 200.0, NOW + 60, 164.0)
    assert reason(guest(150), guest(150, reported_s=11.0), unknown) == ""
    assert kill_reason(SESSION, ObservedGuest(guest(math.nan, math.nan), NOW), RULES) == ""


# --- page faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "available", "pages"),
    # Two processes that appeared and were killed between two reports, from the reports of real guests.
    [(79, 158, 33548 - 14162), (70, 178, 91882 - 54417)],
)
def test_real_guest_whose_process_appeared_and_was_killed_between_two_reports(
    free: float, available: float, pages: int
) -> None:
    text = reason(guest(free, available), guest(free, available, reported_s=11.0, touched_pages=float(pages)))
    assert text == (
        f"a process may have been killed: processes used {pages / 256:.0f} MB more between two reports, "
        f"and {free} MB were free"
    )


def test_process_that_fits_into_the_free_memory_is_no_sign() -> None:
    # Three quarters of 100 MB are 75.
    assert reason(guest(100), guest(100, reported_s=11.0, touched_pages=74 * 256.0)) == ""
    assert reason(guest(100), guest(100, reported_s=11.0, touched_pages=75 * 256.0)) != ""


def test_memory_that_the_balloon_took_between_two_reports_was_not_free() -> None:
    assert reason(guest(200, 258), guest(100, 158, reported_s=11.0, touched_pages=75 * 256.0)) != ""


@pytest.mark.parametrize("pages", [math.nan, 0.0, -5.0])
def test_missing_or_restarted_counter_is_no_sign(pages: float) -> None:
    assert reason(guest(100), guest(100, reported_s=11.0, touched_pages=pages)) == ""
    assert reason(guest(0), guest(0, reported_s=11.0, touched_pages=pages)) == ""


def test_faults_before_the_session_are_no_sign() -> None:
    # The session began half a second ago, after the report.
    session = Session("u", "a", "h", 512.0, 200.0, NOW - 0.5 + RULES.session_s, 164.0, overhead_mb=42.0, peak_mb=100.0)
    assert reason(guest(100), guest(100, reported_s=11.0, touched_pages=100 * 256.0), session) == ""
