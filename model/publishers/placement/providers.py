"""The resource provider of each node, and the providers that are left alone."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from ..settings import ALL_NODES, AUTO, Skip
from .client import PlacementClient, PlacementError, ProviderMissing, as_uuid


def host_of(node: str) -> str:
    """The host in the URL of a node, or of ``host:port``, in lower case; else the node itself."""
    if "://" in node:
        return urlsplit(node).hostname or node.lower()
    host, _, port = node.lower().rpartition(":")
    return host if host and ":" not in host and port.isdecimal() else node.lower()


def matching_names(host: str, names: Collection[str]) -> list[str]:
    """The providers that may have a host name, best first; several when the name is ambiguous.

    A provider has the name that nova-compute reports, in full or without its domain, and so has the URL of a node. The
    same name counts before one of which the other is the first part. Addresses match themselves only.

    Parameters
    ----------
    host : str
        In lower case.
    names : collection of str

    Examples
    --------
    >>> matching_names("c17.example.org", ["c17", "c170"]), matching_names("c17", ["c17.a.org", "c17.b.org"])
    (['c17'], ['c17.a.org', 'c17.b.org'])
    """
    if same := [name for name in names if name.lower() == host]:
        return same
    if _is_address(host):
        return []
    short = host.partition(".")[0]
    if short != host:
        return [name for name in names if name.lower() == short]
    return sorted(name for name in names if name.lower().partition(".")[0] == short)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ProviderMap:
    """Maps nodes to UUIDs of providers; a provider that is found by a name is looked up once.

    Usable from several threads.

    Parameters
    ----------
    providers : mapping of node to str
        UUID or name of the node's provider, or ``auto``; ``*`` stands for the nodes that are not listed.
    client : PlacementClient
    """

    def __init__(self, providers: Mapping[str, str], client: PlacementClient) -> None:
        self._providers = providers
        self._client = client
        self._lock = threading.Lock()
        self._looked_up: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._roots: dict[str, str] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._providers or ALL_NODES in self._providers

    def refresh(self, nodes: Collection[str]) -> None:
        """Read the list of all providers, if one of the nodes is to be found in it and was not yet.

        Raises
        ------
        PlacementError
        """
        if any(self._configured(node) == AUTO and node not in self._looked_up for node in nodes):
            roots = self._client.root_providers()
            with self._lock:
                self._roots = roots

    def uuid_of(self, node: str) -> str:
        """The UUID of a node's provider.

        Raises
        ------
        ProviderMissing
        PlacementError
            Also when two nodes have the same provider, or a name fits several.
        """
        configured = self._configured(node)
        if not (provider := self._looked_up.get(node) or as_uuid(configured)):
            provider = self._find(node) if configured == AUTO else self._client.find_provider(configured)
            with self._lock:
                self._looked_up[node] = provider
        with self._lock:
            owner = self._owners.setdefault(provider, node)
        if owner != node:
            raise PlacementError("duplicate", f"has the same resource provider as {owner}")
        return provider

    def name_of(self, node: str) -> str:
        """The configured name of a node's provider, or the one that was found; its UUID if no name is known."""
        configured = self._configured(node)
        if configured != AUTO:
            return configured
        provider = self._looked_up.get(node, "")
        return next((name for name, found in self._roots.items() if found == provider), provider)

    def is_looked_up(self, node: str) -> bool:
        """Whether a look-up by name is cached, which may be outdated."""
        return node in self._looked_up

    def drop_lookup(self, node: str) -> None:
        """Look the node's provider up again next time."""
        with self._lock:
            found = self._looked_up.pop(node)
            self._owners.pop(found, None)
            self._roots = {name: provider for name, provider in self._roots.items() if provider != found}

    def _configured(self, node: str) -> str:
        return self._providers.get(node) or AUTO

    def _find(self, node: str) -> str:
        host = host_of(node)
        match matching_names(host, self._roots):
            case [name]:
                return self._roots[name]
            case []:
                raise ProviderMissing("missing", f"no resource provider has the host name {host}")
            case names:
                raise PlacementError("ambiguous", f"the host name {host} fits {' and '.join(names[:3])}")


class SkippedProviders:
    """The providers that are left alone.

    What was found last counts while it cannot be found again; before it was found once, nothing may be written.

    Parameters
    ----------
    skips : sequence of Skip
    client : PlacementClient
    """

    def __init__(self, skips: Collection[Skip], client: PlacementClient) -> None:
        self._skips = skips
        self._client = client
        self._found: dict[Skip, frozenset[str]] = {}

    def refresh(self) -> None:
        """Find the providers.

        Raises
        ------
        PlacementError
        """
        for skip in self._skips:
            self._found[skip] = self._providers(skip)

    @property
    def is_known(self) -> bool:
        """Whether all of them were found at least once."""
        return len(self._found) == len(set(self._skips))

    def reason(self, provider: str) -> str:
        """Why a provider is left alone; empty when it is not."""
        return next((str(skip) for skip, providers in self._found.items() if provider in providers), "")

    def _providers(self, skip: Skip) -> frozenset[str]:
        if skip.trait:
            return self._client.providers_with_trait(skip.trait)
        aggregates = {skip.aggregate} if skip.aggregate else self._client.host_aggregates(skip.key, skip.value)
        return self._client.providers_of_aggregates(aggregates)
