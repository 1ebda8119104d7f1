"""Logging of the daemons."""

from __future__ import annotations

import logging
import sys


def set_up_logging(debug: bool) -> None:
    """Log lines go to stderr; libraries speak only of what is wrong."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("scroogevm").setLevel(logging.INFO if debug else logging.WARNING)


class Changes:
    """Says once what happened, and once when it is over.

    Parameters
    ----------
    log : logging.Logger
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._wrong: set[str] = set()

    def wrong(self, what: str, words: str) -> None:
        """Something is wrong; only the first time is told."""
        if what not in self._wrong:
            self._wrong.add(what)
            self._log.warning("%s: %s", what, words)

    def right(self, what: str) -> None:
        """All is well; told only if it was not."""
        if what in self._wrong:
            self._wrong.remove(what)
            self._log.warning("%s: all is well again", what)
