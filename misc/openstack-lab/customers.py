"""Customers: they ask nova for VMs and delete them when their time is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cloud import CloudError, Nova, Server
from workload import MB_PER_VCPU, Arrival

#: Requests to nova at the same time.
_AT_ONCE = 4


class Customers:
    """Asks for VMs in the order of their arrival.

    Parameters
    ----------
    nova : Nova
    arrivals : sequence of Arrival
        By their time.

    Attributes
    ----------
    admitted : list of Arrival
        VMs that nova has started.
    refused : int
        VMs for which it found no host.
    """

    def __init__(self, nova: Nova, arrivals: Sequence[Arrival]) -> None:
        self._nova = nova
        self._waiting = list(reversed(arrivals))
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._lock = threading.Lock()
        self._asked: dict[str, Arrival] = {}
        self._present: dict[str, Server] = {}
        self._deleted: set[str] = set()
        self._counted = (0, 0)
        self.admitted: list[Arrival] = []
        self.refused = 0
        self.failed = 0

    def run_until(self, now_s: float) -> None:
        """Ask for the VMs that have arrived, and delete those whose time is over."""
        while self._waiting and self._waiting[-1].at_s <= now_s:
            arrival = self._waiting.pop()
            self._asked[arrival.name] = arrival
            self._send(lambda one=arrival: self._create(one))  # type: ignore[misc]
        for server in list(self._present.values()):
            if (asked := self._asked.get(server.name)) and asked.leave_s <= now_s:
                self._delete(server)

    def _create(self, arrival: Arrival) -> None:
        self._nova.create(arrival.name, arrival.vcpus, arrival.vcpus * MB_PER_VCPU, pinned=arrival.pinned)

    def _delete(self, server: Server) -> None:
        if server.id not in self._deleted:
            self._deleted.add(server.id)
            self._send(lambda: self._nova.delete(server.id))

    def _send(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except (CloudError, OSError) as error:
                self.failed += 1
                print(f"      -- {error}", flush=True)

        self._pool.submit(guarded)

    def take_servers(self, servers: Sequence[Server]) -> None:
        """Count what nova has admitted and refused since the last call."""
        present = {one.id: one for one in servers if one.status in ("ACTIVE", "SHUTOFF")}
        new = present.keys() - self._present.keys()
        self._present = present
        for identity in new:
            if (asked := self._asked.get(present[identity].name)) and asked not in self.admitted:
                self.admitted.append(asked)
        for one in servers:
            if one.status == "ERROR" and one.id not in self._deleted:
                self.refused += 1
                self._delete(one)

    def change(self, host: str, count: int, action: str) -> str:
        """``delete`` or ``stop`` some VMs of a host, the largest first; returns what was done."""
        found = [one for one in self._present.values() if one.host == host and one.running]
        chosen = sorted(found, key=lambda one: (-one.vcpus, one.name))[:count]
        for one in chosen:
            if action == "delete":
                self._delete(one)
            else:
                self._nova.stop(one.id)
        done = {"delete": "deleted", "stop": "stopped"}[action]
        return f"{len(chosen)} VMs with {sum(one.vcpus for one in chosen)} vCPUs {done} on {host}"

    def take_counts(self) -> tuple[int, int]:
        """VMs admitted and refused since the last call."""
        now = len(self.admitted), self.refused
        before, self._counted = self._counted, now
        return now[0] - before[0], now[1] - before[1]

    def close(self) -> None:
        """Send nothing more."""
        self._pool.shutdown(cancel_futures=True)
