"""What a scheduler asked of Placement in a run of misc/openstack-lab, played against a real Placement of its own."""

from __future__ import annotations

import itertools
import json
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.publishers.placement.ratio import capacities_of
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import PlacementSettings, Token
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import ROOT
from tests.support.servers import PlacementServer, placement_server

#: Of `lab.sh run --record`; events are [second, provider, consumer, resources], without resources when it is gone.
RECORDING = json.loads((ROOT / "tests" / "data" / "openstack-lab.json").read_text())

FLOOR = 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlacementServer]:
    with placement_server(tmp_path) as ours:
        yield ours


class Scheduler:
    """Allocates as nova did; remembers what Placement refused."""

    def __init__(self, server: PlacementServer, providers: dict[str, str]) -> None:
        self.server, self.providers = server, providers
        self.consumers: dict[tuple[str, int], str] = {}
        self.accepted = self.refused = 0

    def play(self, host: str, number: int, resources: dict[str, int]) -> None:
        if not resources:
            if consumer := self.consumers.pop((host, number), None):
                self.server.call("DELETE", f"/allocations/{consumer}")
            return
        if (host, number) in self.consumers:
            return
        consumer = str(uuid.uuid4())
        body = {
            "allocations": {self.providers[host]: {"resources": resources}},
            **{"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"},
        }
        try:
            self.server.call("PUT", f"/allocations/{consumer}", body)
        except urllib.error.HTTPError as error:
            assert error.code == 409
            self.refused += 1
        else:
            self.consumers[host, number] = consumer
            self.accepted += 1

    def allocated(self, host: str, resource: str) -> int:
        usages = self.server.call("GET", f"/resource_providers/{self.providers[host]}/usages")["usages"]
        return int(usages.get(resource, 0))


def status_of(row: dict[str, Any], booked_now: float) -> NodeStatus:
    """What was published of a node; the VMs of this replay are booked on it."""
    state, end_s = row["state"] or "unknown", 1e9 + row["slice"]
    if row["free"] is None:
        return NodeStatus(row["host"], "s", end_s)
    sizes = {"tier0": 0.0, "tier1": 0.0, "tier2": 0.0, "slice_end_s": end_s, "closed": bool(row["closed"])}
    figures = Figures(config=row["config"], booked=booked_now, booked_now=booked_now, free=row["free"], **sizes)
    return NodeStatus(row["host"], "s", end_s, ResourceStatus(state, figures), ResourceStatus())


def test_a_scheduler_gets_what_is_free_and_no_more(server: PlacementServer, tmp_path: Path) -> None:
    providers = {host: server.provider(host, **records) for host, records in RECORDING["inventories"].items()}
    others = {
        host: [server.inventories(one).get(name) for name in ("PCPU", "DISK_GB")] for host, one in providers.items()
    }
    reconciler = PlacementReconciler(
        PlacementSettings(
            **{"providers": providers, "login": Token(server.url, "admin"), "ca_file": "", "timeout_s": 20.0},
            **{"round_timeout_s": 60.0, "least_ratio": FLOOR, "most_ratio": 16.0, "state_path": tmp_path / "p.json"},
        )
    )
    scheduler, oversubscribed = Scheduler(server, providers), 0
    events = iter(RECORDING["events"])
    ahead: list[Any] | None = None
    for _, rows in itertools.groupby(RECORDING["slices"], key=lambda row: row["slice"]):
        published = list(rows)
        # The recording has what was allocated until the end of the slice.
        end_s = (published[0]["slice"] + 1) * RECORDING["slice_s"]
        for event in itertools.chain([] if ahead is None else [ahead], events):
            if event[0] > end_s:
                ahead = event
                break
            scheduler.play(*event[1:])
        else:
            ahead = None
        booked = {host: scheduler.allocated(host, "VCPU") + scheduler.allocated(host, "PCPU") for host in providers}
        result = reconciler.publish(capacities_of([status_of(row, booked[row["host"]]) for row in published]))
        assert not result.failed
        for row in published:
            host = row["host"]
            record, allocated = server.inventories(providers[host])["VCPU"], scheduler.allocated(host, "VCPU")
            usable = record["total"] - record["reserved"]
            capacity = usable * record["allocation_ratio"]
            oversubscribed += capacity > usable + 1
            if row["free"] is not None:
                free = row["free"] if row["state"] == "ok" else 0.0
                assert capacity <= max(FLOOR * usable, allocated + free) + 0.01, row
    assert scheduler.accepted > 30
    assert oversubscribed > 20
    assert [[server.inventories(one).get(name) for name in ("PCPU", "DISK_GB")] for one in providers.values()] == list(
        others.values()
    )
