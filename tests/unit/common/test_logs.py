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
