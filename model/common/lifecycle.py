"""What the daemons have in common: a pace that does not drift, an end that is clean, a log that does not repeat."""

from __future__ import annotations

import asyncio
import signal
import time
import zlib
from collections.abc import Callable


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
