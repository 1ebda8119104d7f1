"""Logging of the daemons: to stderr, with priorities under systemd, one line for a problem and one for its end."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

#: Attribute of records that are shown whatever the level: start, recovery, reload.
EVENT = {"event": True}
_FORMAT = "%(levelname)s %(name)s: %(message)s"
#: syslog's priorities, see sd-daemon(3).
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
#: Different causes of one problem that are logged before it is over; more would be a flood.
_MOST_CAUSES = 10
#: Beginnings of one problem within this time, seconds, that are logged; after them it counts as one problem.
_MOST_BEGINNINGS = 4
_QUIET_S = 600.0


def set_up_logging(debug: bool, stream: TextIO | None = None) -> None:
    """Send log records to stderr; libraries log warnings and errors only.

    Under systemd the journal adds the time, and a priority starts each line, as sd-daemon(3) describes.

    Parameters
    ----------
    debug : bool
        Whether informational records are shown; records marked with :data:`EVENT` always are.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JournalFormatter(_FORMAT) if _is_journal(stream) else logging.Formatter(f"%(asctime)s {_FORMAT}")
    )
    handler.addFilter(lambda record: debug or record.levelno >= logging.WARNING or getattr(record, "event", False))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("scroogevm").setLevel(logging.INFO)


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream is the journal's socket, which ``JOURNAL_STREAM`` names by device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournalFormatter(logging.Formatter):
    """Puts the priority in front of each line of a record, as ``<4>``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines for the journal."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class ProblemLog:
    """Logs each problem once, each further cause of it once, and its end.

    A subject that fails and recovers again and again is one problem: after a few times its end is logged once it has
    been well for a while.

    Parameters
    ----------
    log : logging.Logger
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Problem] = {}
        self._begun: dict[str, list[float]] = {}

    def report(
        self, subject: str, cause: str, level: int = logging.WARNING, *, error: BaseException | None = None
    ) -> None:
        """Log a problem unless its cause was logged before; causes that differ in their numbers alone are one.

        Parameters
        ----------
        subject, cause : str
        level : int
        error : BaseException, optional
            Logged with its traceback: for a defect.
        """
        kind = re.sub(r"\d+(\.\d+)?", "#", cause)
        now = self._clock()
        with self._lock:
            problem = self._open.get(subject)
            if problem is None:
                problem = self._open[subject] = _Problem(self._is_repeated(subject, now))
            problem.reported_at = now
            if kind in problem.causes or len(problem.causes) >= _MOST_CAUSES:
                return
            problem.causes.add(kind)
            again = " (again and again)" if problem.is_repeated else ""
        self._log.log(level, "%s: %s%s", subject, cause, again, exc_info=error)

    def resolve(self, subject: str, *, quiet_s: float = 0.0) -> None:
        """Log that a problem is over, if there was one and it has not been reported for ``quiet_s`` seconds."""
        with self._lock:
            problem = self._open.get(subject)
            if problem is None:
                return
            quiet_s = max(quiet_s, _QUIET_S) if problem.is_repeated else quiet_s
            if self._clock() - problem.reported_at < quiet_s:
                return
            del self._open[subject]
        self._log.info("%s: recovered", subject, extra=EVENT)

    def _is_repeated(self, subject: str, now: float) -> bool:
        """Note the beginning of a problem; whether it has begun often lately."""
        begun = [at for at in self._begun.get(subject, []) if now - at < _QUIET_S]
        self._begun[subject] = [*begun, now][-_MOST_BEGINNINGS:]
        return len(begun) >= _MOST_BEGINNINGS


@dataclass(slots=True)
class _Problem:
    """A problem that is not over."""

    is_repeated: bool
    reported_at: float = 0.0
    causes: set[str] = field(default_factory=set)
