"""Records what Placement saw in a run, so that a test can play it against another Placement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloud import Placement

#: What is recorded of a slice of a host.
_FIELDS = ("slice", "host", "state", "free", "booked_now", "config")


class Recorder:
    """Compares allocations with those it saw before.

    Parameters
    ----------
    placement : Placement
    providers : mapping of str to str
        UUID by name.
    """

    def __init__(self, placement: Placement, providers: Mapping[str, str]) -> None:
        self._placement, self._providers = placement, providers
        self._seen: dict[str, dict[str, dict[str, int]]] = {name: {} for name in providers}
        self._numbers: dict[str, int] = {}
        self._events: list[list[Any]] = []
        self._slices: list[list[Any]] = []
        self._inventories = {name: placement.provider(identity).inventories for name, identity in providers.items()}

    def look(self, now_s: float) -> None:
        """Note the allocations that came and went; consumers are numbered."""
        for name, identity in self._providers.items():
            before, now = self._seen[name], self._placement.allocations(identity)
            for consumer in before.keys() - now.keys():
                self._events.append([round(now_s, 1), name, self._numbers[consumer], {}])
            for consumer, resources in now.items():
                if before.get(consumer) != resources:
                    consumer_number = self._numbers.setdefault(consumer, len(self._numbers))
                    self._events.append([round(now_s, 1), name, consumer_number, resources])
            self._seen[name] = now

    def note_slice(self, row: Mapping[str, Any]) -> None:
        """Note what was published of a node in a slice."""
        self._slices.append([row[name] for name in _FIELDS])

    def content(self) -> dict[str, Any]:
        """Inventories at the begin; events as [s, provider, consumer, resources], empty when it is gone; slices.

        Those are lists of the figures :data:`_FIELDS`.
        """
        return {"inventories": self._inventories, "events": self._events, "slices": self._slices}
