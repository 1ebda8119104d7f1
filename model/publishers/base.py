"""What a publisher is, and one that works in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ..status import NodeStatus


class Publisher(Protocol):
    """Somebody who wants to know."""

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Take the status of all nodes.

        Raises
        ------
        OSError
        """


class BackgroundPublisher:
    """An outlet that takes its time: in a thread of its own, always with the newest that there is.

    Parameters
    ----------
    work : callable
        Given the status of all nodes; must not raise.
    """

    def __init__(self, work: Callable[[Sequence[NodeStatus]], object]) -> None:
        self._work = work
        self._newest: Sequence[NodeStatus] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Take note, and never wait."""
        with self._changed:
            self._newest = tuple(statuses)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Do what is still to be done, if it can be done in time."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                newest, self._newest = self._newest, None
            if newest is None:
                return
            self._work(newest)
