"""Interface of a publisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
