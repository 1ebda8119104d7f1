"""``vmballooning.py --check``: one query to the store and to each host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..cli.tables import print_checks
from ..common.threads import map_until
from ..store.base import StoreRefused
from ..store.factory import check_store, store_name
from ..store.settings import StoreSettings
from .guests import HostSnapshot, observe_all
from .host import Host, HostUnavailable
from .settings import BallooningSettings

#: Hosts that are queried at the same time.
_AT_ONCE = 16
#: A host that omits statistics of a guest is queried again: at most this often, after this pause.
_MORE_QUERIES, _PAUSE_S = 4, 0.1

Row = tuple[str, bool, str]


def run_check(settings: BallooningSettings, *, as_json: bool) -> int:
    """Query store and hosts and print the results; the exit code is 1 when one fails. No file is created."""
    rows = [_check_store(settings.store), *_check_hosts(settings)]
    return 0 if print_checks(rows, json=as_json) else 1


def _check_store(settings: StoreSettings) -> Row:
    name = store_name(settings)
    try:
        return (name, *check_store(settings))
    except StoreRefused as error:
        return name, False, str(error)


def _check_hosts(settings: BallooningSettings) -> Sequence[Row]:
    uris = list(settings.hosts.values())
    rounds = -(-len(uris) // _AT_ONCE)
    deadline = time.monotonic() + rounds * settings.timeout_s + 1
    results = dict(map_until(uris, _host_check(settings.timeout_s), _AT_ONCE, _seconds_to(deadline), "check"))
    return [(f"host {uri}", *results.get(uri, (False, "no response"))) for uri in uris]


def _seconds_to(deadline: float) -> Callable[[], float]:
    return lambda: max(0.0, deadline - time.monotonic())


def _host_check(timeout_s: float) -> Callable[[str], tuple[bool, str]]:
    # libvirt is a compiled library that only the host checks need.
    from .hypervisor import Hypervisor

    def check(uri: str) -> tuple[bool, str]:
        host = Hypervisor(uri, timeout_s)
        try:
            snapshot = _observe(host)
        except HostUnavailable as error:
            return False, str(error)
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"
        finally:
            host.close()
        reporting = sum(one.guest.reports for one in snapshot.guests.values())
        return True, f"guests running: {len(snapshot.guests)}, with balloon statistics: {reporting}"

    return check


def _observe(host: Host) -> HostSnapshot:
    """The guests of a host; statistics that it omits are requested again."""
    snapshot = observe_all(None, host.guests(), time.time(), time.monotonic())
    for _ in range(_MORE_QUERIES):
        if not any(one.guest.omitted for one in snapshot.guests.values()):
            break
        time.sleep(_PAUSE_S)
        snapshot = observe_all(snapshot, host.guests(), time.time(), time.monotonic())
    return snapshot
