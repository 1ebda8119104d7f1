"""Finds the host of a guest that moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .guests import HostSnapshot


@dataclass(frozen=True, slots=True)
class Location:
    """Where a guest was found.

    Attributes
    ----------
    host : str or None
        None when no host lists the guest.
    certain : bool
        Whether every other host was observed since the guest was missed.
    """

    host: str | None
    certain: bool


class GuestLocator:
    """The latest snapshot of each host, shared by the threads of all host controllers.

    Parameters
    ----------
    hosts : iterable of str
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._snapshots: dict[str, HostSnapshot | None] = dict.fromkeys(hosts)

    def publish(self, host: str, snapshot: HostSnapshot | None) -> None:
        """Replace the snapshot of a host; None when the host is unavailable."""
        self._snapshots[host] = snapshot

    def locate(self, uuid: str, besides: str, since: float) -> Location:
        """Find a guest on another host.

        Parameters
        ----------
        uuid : str
        besides : str
            The host that does not list the guest any more.
        since : float
            Monotonic time at which it was missed. An earlier snapshot of a host does not show that the guest is
            absent there, because hosts without sessions are observed rarely.
        """
        certain = True
        for host, snapshot in list(self._snapshots.items()):
            if host == besides:
                continue
            if snapshot is not None and uuid in snapshot.guests:
                return Location(host, certain=True)
            if snapshot is None or snapshot.requested_at < since:
                certain = False
        return Location(None, certain)
