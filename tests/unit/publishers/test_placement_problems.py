"""Lines of the log about many nodes."""

from __future__ import annotations

import logging

import pytest

from model.publishers.placement.problems import NodeProblems
from tests.support.placement import Clock

LOG = logging.getLogger("scroogevm.placement")


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_few_problems_have_a_line_each_and_many_share_one(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(LOG, Clock())
    for number in range(5):
        problems.set(f"n{number}", "timeout", "not updated within 30 s")
    problems.log(900)
    assert texts(event_log) == [f"n{number}: not updated within 30 s" for number in range(5)]
    for number in range(5, 40):
        problems.set(f"n{number}", "timeout", "not updated within 30 s")
        problems.log(900)
    # Numbers alone are nothing new.
    assert texts(event_log) == ["Placement, timeout: 6 of 900 nodes, first n0: not updated within 30 s"]


def test_end_of_many_problems_is_logged_and_those_that_are_left_are_named(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(LOG, Clock())
    for number in range(8):
        problems.set(f"n{number}", "server", "HTTP status 500")
    problems.log(8)
    texts(event_log)
    for number in range(7):
        problems.clear(f"n{number}")
    problems.log(8)
    assert texts(event_log) == ["Placement, server: recovered", "n7: HTTP status 500"]
    problems.clear("n7")
    problems.log(8)
    assert texts(event_log) == ["n7: recovered"]


def test_problems_of_different_topics_are_apart(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(LOG, Clock())
    for number in range(6):
        problems.set(f"n{number}", "timeout", "late")
    problems.set("x", "missing", "no such provider")
    problems.log(7)
    assert sorted(texts(event_log)) == ["Placement, timeout: 6 of 7 nodes, first n0: late", "x: no such provider"]


def test_problem_with_a_quiet_time_ends_when_it_was_not_noted_for_so_long(event_log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problems = NodeProblems(LOG, clock)
    problems.set("a", "writer", "written", quiet_s=100.0)
    problems.log(1)
    for now_s, expected in ((50, []), (99, []), (100, ["a: recovered"]), (150, [])):
        clock.now_s = now_s
        problems.clear("a")
        problems.log(1)
        assert texts(event_log) == (["a: written", *expected] if now_s == 50 else expected)


def test_nodes_that_are_no_longer_kept_do_not_count(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(LOG, Clock())
    for subject in ("a", "a VCPU", "b", "c", "d"):
        problems.set(subject, "topic", "bad", quiet_s=1e9)
    problems.log(4)
    texts(event_log)
    problems.drop("a")
    problems.set("e", "topic", "bad")
    problems.set("ab", "topic", "bad")
    problems.log(5)
    assert texts(event_log) == ["e: bad", "ab: bad"]
