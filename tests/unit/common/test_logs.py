"""Log lines: levels, priorities for the journal, one line per problem and cause."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from model.common.logs import EVENT, ProblemLog, set_up_logging
from tests.conftest import ROOT

LOG = logging.getLogger("scroogevm.test")


@pytest.fixture
def restored() -> Iterator[None]:
    """Put logging back as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("scroogevm").level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("scroogevm").setLevel(before[2])


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("debug", "shown"), [(False, ["event", "warning"]), (True, ["detail", "event", "warning"])])
def test_events_and_problems_are_always_shown_details_on_request(debug: bool, shown: list[str]) -> None:
    stream = io.StringIO()
    set_up_logging(debug, stream)
    LOG.info("detail")
    LOG.info("event", extra=EVENT)
    LOG.warning("warning")
    logging.getLogger("another.library").info("chatter")
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == shown


@pytest.mark.usefixtures("restored")
def test_line_outside_systemd_has_a_time_and_no_priority() -> None:
    stream = io.StringIO()
    set_up_logging(debug=False, stream=stream)
    LOG.warning("disk full")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ WARNING scroogevm.test: disk full\n", stream.getvalue())


CODE = (
    "import logging, os, sys\n"
    "from model.common.logs import set_up_logging\n"
    "stat = os.fstat(2)\n"
    "os.environ['JOURNAL_STREAM'] = f'{stat.st_dev}:{stat.st_ino + int(sys.argv[1])}'\n"
    "set_up_logging(debug=True)\n"
    "log = logging.getLogger('scroogevm.test')\n"
    "log.info('began'); log.warning('odd'); log.error('lost\\nfor good')\n"
)


def logged(other_inode: int) -> str:
    with tempfile.TemporaryFile("w+") as stderr:
        subprocess.run([sys.executable, "-c", CODE, str(other_inode)], cwd=ROOT, stderr=stderr, check=True)
        stderr.seek(0)
        return stderr.read()


def test_lines_for_the_journal_have_a_priority_and_no_time() -> None:
    assert logged(0).splitlines() == [
        "<6>INFO scroogevm.test: began",
        "<4>WARNING scroogevm.test: odd",
        "<3>ERROR scroogevm.test: lost",
        "<3>for good",
    ]


def test_stderr_that_is_redirected_from_the_journal_gets_plain_lines() -> None:
    assert not any(line.startswith("<") for line in logged(1).splitlines())


def test_problem_is_logged_once_and_its_end_once(event_log: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(LOG)
    problems.resolve("node")
    for _ in range(5):
        problems.report("node", "no answer")
    for _ in range(5):
        problems.resolve("node")
    assert [(record.levelname, record.getMessage()) for record in event_log.records] == [
        ("WARNING", "node: no answer"),
        ("INFO", "node: recovered"),
    ]


def test_changed_cause_is_logged_and_one_that_differs_in_numbers_is_not(event_log: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(LOG)
    for age in range(10, 20):
        problems.report("node", f"page is {age} s old")
        problems.report("node", "HTTP status refused")
    assert event_log.messages == ["node: page is 10 s old", "node: HTTP status refused"]


def test_endless_causes_do_not_flood_the_log(event_log: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(LOG)
    for i in range(1000):
        problems.report("node", f"cause {'abcdefghij'[i % 10]}{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i // 100]}")
    assert len(event_log.messages) == 10


def test_subjects_are_independent(event_log: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(LOG)
    problems.report("a", "down")
    problems.report("b", "down")
    problems.resolve("a")
    problems.report("b", "down")
    assert event_log.messages == ["a: down", "b: down", "a: recovered"]


def test_problem_that_comes_and_goes_is_one_problem(event_log: pytest.LogCaptureFixture) -> None:
    """A node that fails at every second scrape: a line or two per scrape would be a flood."""
    now = [0.0]
    problems = ProblemLog(LOG, lambda: now[0])
    for _ in range(100):
        problems.report("node", "no answer")
        now[0] += 5
        problems.resolve("node")
        now[0] += 5
    assert event_log.messages == [
        *["node: no answer", "node: recovered"] * 4,
        "node: no answer (again and again)",
    ]
    # Another cause is still logged, and the end once it has been well for a while.
    problems.report("node", "page is damaged")
    now[0] += 500
    problems.resolve("node")
    now[0] += 110
    problems.resolve("node")
    assert event_log.messages[9:] == ["node: page is damaged (again and again)", "node: recovered"]


def test_rare_problems_are_logged_each_time(event_log: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    problems = ProblemLog(LOG, lambda: now[0])
    for _ in range(20):
        problems.report("node", "no answer")
        problems.resolve("node")
        now[0] += 300
    assert event_log.messages == ["node: no answer", "node: recovered"] * 20


def test_problem_of_single_events_ends_after_a_quiet_time(event_log: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    problems = ProblemLog(LOG, lambda: now[0])
    for _ in range(5):
        problems.report("samples", "one is dropped")
        now[0] += 50
        problems.resolve("samples", quiet_s=60)
    now[0] += 11
    problems.resolve("samples", quiet_s=60)
    assert event_log.messages == ["samples: one is dropped", "samples: recovered"]


def test_traceback_of_a_defect_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(LOG)
    for _ in range(3):
        try:
            raise ZeroDivisionError("a defect")
        except ZeroDivisionError as error:
            problems.report("job", "failed", error=error)
    assert caplog.text.count("Traceback") == 1
