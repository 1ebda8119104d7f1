"""The resource provider of each node."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from .client import PlacementClient, PlacementError, as_uuid


class ProviderMap:
    """Maps nodes to UUIDs of providers; a provider that is configured by name is looked up once.

    Usable from several threads.

    Parameters
    ----------
    providers : mapping of node to str
        UUID or name of the node's provider.
    client : PlacementClient
    """

    def __init__(self, providers: Mapping[str, str], client: PlacementClient) -> None:
        self._providers = providers
        self._client = client
        self._lock = threading.Lock()
        self._looked_up: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._providers

    def uuid_of(self, node: str) -> str:
        """The UUID of a node's provider.

        Raises
        ------
        ProviderMissing
        PlacementError
            Also when two nodes have the same provider.
        """
        configured = self._providers[node]
        if not (provider := self._looked_up.get(node) or as_uuid(configured)):
            provider = self._client.find_provider(configured)
            with self._lock:
                self._looked_up[node] = provider
        with self._lock:
            owner = self._owners.setdefault(provider, node)
        if owner != node:
            raise PlacementError("duplicate", f"has the same resource provider as {owner}")
        return provider

    def is_looked_up(self, node: str) -> bool:
        """Whether a look-up by name is cached, which may be outdated."""
        return node in self._looked_up

    def drop_lookup(self, node: str) -> None:
        """Look the node's provider up again next time."""
        with self._lock:
            self._owners.pop(self._looked_up.pop(node), None)
