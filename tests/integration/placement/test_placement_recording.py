"""What Placement saw in a run of the lab with a real nova (misc/openstack-lab), played against a real Placement."""

from __future__ import annotations

import json
import urllib.error
import uuid
from collections import Counter
from typing import Any

import pytest

from model.publishers.placement.ratio import NodeCapacity, ResourceCapacity
from model.publishers.placement.reconciler import PlacementReconciler
from tests.conftest import DATA
from tests.support.placement import Clock, settings
from tests.support.servers import PlacementServer

#: The slices that are played: a silent host whose VMs are deleted, an orphan, stopped VMs, VMs that appear late.
FIRST, LAST = 48, 70
DEDICATED = "compute4"


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return dict(json.loads((DATA / "openstack-lab.json").read_text()))


class Played:
    """The recorded allocations, one after the other."""

    def __init__(self, server: PlacementServer, recording: dict[str, Any]) -> None:
        self.server = server
        self.providers = {
            name: server.provider(name, **inventories) for name, inventories in recording["inventories"].items()
        }
        self._events = iter(recording["events"])
        self._next = next(self._events, None)
        self._consumers: dict[int, str] = {}
        self.outcomes: Counter[str] = Counter()

    def until(self, time_s: float) -> None:
        """Write and delete allocations as nova did."""
        while self._next is not None and self._next[0] <= time_s:
            _, name, number, resources = self._next
            self._apply(name, number, resources)
            self._next = next(self._events, None)

    def _apply(self, name: str, number: int, resources: dict[str, int]) -> None:
        if not resources:
            if consumer := self._consumers.pop(number, None):
                self.server.call("DELETE", f"/allocations/{consumer}")
                self.outcomes["deleted"] += 1
            return
        consumer = str(uuid.uuid4())
        about = {"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"}
        body = {"allocations": {self.providers[name]: {"resources": resources}}, **about}
        try:
            self.server.call("PUT", f"/allocations/{consumer}", body)
        except urllib.error.HTTPError as error:
            assert error.code == 409
            self.outcomes["refused"] += 1
            return
        self._consumers[number] = consumer
        self.outcomes["placed"] += 1

    def left(self, name: str) -> float:
        """vCPUs that Placement would still let in."""
        record = self.server.inventories(self.providers[name])["VCPU"]
        usages = self.server.call("GET", f"/resource_providers/{self.providers[name]}/usages")["usages"]
        return int((record["total"] - record["reserved"]) * record["allocation_ratio"] + 1e-6) - float(usages["VCPU"])


def test_no_more_is_let_in_than_is_published_as_free(server: PlacementServer, recording: dict[str, Any]) -> None:
    played, clock = Played(server, recording), Clock()
    slice_s = recording["slice_s"]
    dedicated = recording["inventories"][DEDICATED]["PCPU"]["total"]
    reconciler = PlacementReconciler(settings(server.url, played.providers, least_ratio=0.0001), clock)
    rows: dict[int, list[list[Any]]] = {}
    for row in recording["slices"]:
        rows.setdefault(row[0], []).append(row)
    seen: Counter[str] = Counter()
    for number in range(FIRST, LAST):
        played.until((number + 1) * slice_s)
        capacities, published = [], {}
        for _, name, state, free, booked_now, config in rows[number]:
            published[name] = free if state == "ok" else 0.0
            seen[state] += 1
            # The host itself uses half a core.
            cpu = ResourceCapacity(published[name], booked_now or 0.0, config, 0.5, (number + 1) * slice_s)
            capacities.append(NodeCapacity(name, cpu, None))
        assert not reconciler.publish(capacities).failed
        for name, free in published.items():
            assert played.left(name) <= max(0.0, free - (dedicated if name == DEDICATED else 0)) + 1e-6, (number, name)
        # Within the slice VMs leave, and what they leave is not offered.
        played.until((number + 1.5) * slice_s)
        clock.now_s += 100
        reconciler.poll()
        for name, free in published.items():
            assert played.left(name) <= free + 1e-6, (number, name)
    assert seen["stale"] > 0
    assert played.outcomes["placed"] > 60
    assert played.outcomes["deleted"] > 20
