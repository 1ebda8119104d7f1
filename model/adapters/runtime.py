"""What the daemons have in common: a pace that does not drift, an end that is clean, a log that does not repeat."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from model.adapters.commandline import UsageError
from model.adapters.web import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def set_up_logging(debug: bool) -> None:
    """Log lines go to stderr; libraries speak only of what is wrong."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("scroogevm").setLevel(logging.INFO if debug else logging.WARNING)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Ctrl-C and SIGTERM set the event; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        stop.set()
        for sent in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(sent)
            # Not Python's own handler, which answers with a traceback.
            signal.signal(sent, signal.SIG_DFL)

    for sent in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sent, ask)


def jitter(name: str) -> float:
    """A share of a period, 0 to 1, always the same for a name: so many nodes are not asked all at once."""
    return zlib.crc32(name.encode()) / 2**32


def serve_metrics(key: str, port: int, address: str, registry: CollectorRegistry) -> None:
    """Answer a Prometheus server, in a thread, for as long as the process lives.

    Raises
    ------
    UsageError
        When the port that the setting ``key`` names can't be had.
    """
    serve(key, port, address, make_wsgi_app(registry))


def serve(key: str, port: int, address: str, application: WSGIApplication) -> None:
    """The same for any pages.

    Raises
    ------
    UsageError
        When the port that the setting ``key`` names can't be had.
    """
    try:
        Server(application, port, address)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "METRICS_ADDRESS is no address"
        raise UsageError(f"{key}: {port} can't be served: {words}") from None


class Pace:
    """Moments that follow each other at equal distances, whatever is done in between.

    Parameters
    ----------
    first_after_s : float
        From now to the first moment.
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, first_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + first_after_s

    async def wait(self, stop: asyncio.Event) -> bool:
        """Wait for the moment; False when it is time to stop."""
        if stop.is_set():
            return False
        pause = max(0.0, self._next - self._clock())
        try:
            await asyncio.wait_for(stop.wait(), pause)
        except asyncio.TimeoutError:
            return True
        return False

    def advance(self, period_s: float) -> int:
        """Go on to the next moment; those that have passed already are left out, and counted."""
        self._next += period_s
        late = self._clock() - self._next
        missed = int(late // period_s) + 1 if late > 0 else 0
        self._next += missed * period_s
        return missed


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
