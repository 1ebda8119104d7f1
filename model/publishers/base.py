"""Interface of a publisher, and a publisher that works in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..common.threads import LatestValue
from ..status import NodeStatus


class Publisher(Protocol):
    """Makes the status of all nodes available to a consumer."""

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Publish the status of all nodes, which replaces what was published before.

        Raises
        ------
        OSError
            When it cannot be published; the caller tries again later.
        """


class BackgroundPublisher:
    """Publishes the latest status in a thread of its own; never blocks and never raises.

    Statuses that arrive during a publication replace one another; only the latest is published next.

    Parameters
    ----------
    work : callable
        Called with the status of all nodes; must not raise.
    name : str
        Of the thread.
    """

    def __init__(self, work: Callable[[Sequence[NodeStatus]], object], name: str = "publisher") -> None:
        self._latest: LatestValue[Sequence[NodeStatus]] = LatestValue(work, name)

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Replace the status that waits."""
        self._latest.put(tuple(statuses))

    def close(self, timeout_s: float) -> None:
        """Publish the status that waits, if that is possible within ``timeout_s`` seconds."""
        self._latest.close(timeout_s)
