"""Finding a guest that moved."""

from __future__ import annotations

from model.ballooning.guest_locator import GuestLocator, Location
from model.ballooning.guests import Guest, HostSnapshot, ObservedGuest

HERE = {"u1": ObservedGuest(Guest("u1", "a", 1024.0, 512.0), 0.0)}


def locator(**snapshots: HostSnapshot | None) -> GuestLocator:
    built = GuestLocator(snapshots)
    for host, snapshot in snapshots.items():
        built.publish(host, snapshot)
    return built


def test_guest_is_found_on_another_host_even_in_an_old_snapshot() -> None:
    hosts = locator(h1=HostSnapshot(9.0, {}), h2=None, h3=HostSnapshot(1.0, HERE))
    assert hosts.locate("u1", besides="h1", since=5.0) == Location("h3", certain=True)


def test_host_that_misses_the_guest_does_not_count() -> None:
    """Its latest snapshot may still list the guest."""
    assert locator(h1=HostSnapshot(9.0, HERE)).locate("u1", besides="h1", since=5.0) == Location(None, certain=True)


def test_absence_is_certain_only_after_all_other_hosts_were_observed() -> None:
    def absent(snapshot: HostSnapshot | None) -> Location:
        return locator(h1=HostSnapshot(9.0, {}), h2=snapshot).locate("u1", besides="h1", since=5.0)

    assert absent(None) == Location(None, certain=False)
    assert absent(HostSnapshot(4.9, {})) == Location(None, certain=False)
    assert absent(HostSnapshot(5.0, {})) == Location(None, certain=True)
