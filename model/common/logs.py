"""Logging of the daemons: to stderr, with priorities under systemd, one line for a problem and one for its end."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from typing import TextIO

#: Attribute of records that are shown whatever the level: start, recovery, reload.
EVENT = {"event": True}
_FORMAT = "%(levelname)s %(name)s: %(message)s"
#: syslog's priorities, see sd-daemon(3).
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
#: Different causes of one problem that are logged before it is over; more would be a flood.
_MOST_CAUSES = 10


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

    Parameters
    ----------
    log : logging.Logger
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._causes: dict[str, set[str]] = {}

    def report(self, subject: str, cause: str, level: int = logging.WARNING) -> None:
        """Log a problem unless its cause was logged before; causes that differ in their numbers alone are one."""
        kind = re.sub(r"\d+(\.\d+)?", "#", cause)
        with self._lock:
            causes = self._causes.setdefault(subject, set())
            if kind in causes or len(causes) >= _MOST_CAUSES:
                return
            causes.add(kind)
        self._log.log(level, "%s: %s", subject, cause)

    def resolve(self, subject: str) -> None:
        """Log that a problem is over, if there was one."""
        with self._lock:
            causes = self._causes.pop(subject, None)
        if causes:
            self._log.info("%s: recovered", subject, extra=EVENT)
