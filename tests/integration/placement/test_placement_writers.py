"""Other processes that write to the same provider: conflicts, and ratios that are not ours."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import urllib.error
import urllib.request

import pytest

from model.publishers.placement.reconciler import PlacementReconciler
from tests.support.placement import (
    CPU,
    MEM,
    NODE,
    OTHERS,
    allocate,
    between,
    capacity_of,
    ratios,
    settings,
)
from tests.support.servers import PlacementServer


def test_conflict_between_read_and_write_is_retried(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM, **OTHERS)
    conflicts = []

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT" and len(conflicts) < 3:
            conflicts.append(path)
            # What the reconciler has read is outdated, too.
            body = server.call("GET", f"/resource_providers/{provider}/inventories")
            body["inventories"]["VCPU"]["reserved"] = len(conflicts)
            server.call("PUT", f"/resource_providers/{provider}/inventories", body)
            allocate(server, provider)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 18.0, 12000.0)]).updated == (NODE,)
    assert placement.counts().conflicts == 3
    written = server.inventories(provider)
    assert written["VCPU"] == {**CPU, "reserved": 3, "allocation_ratio": 2.0}
    assert {kind: written[kind] for kind in OTHERS} == OTHERS


def test_ratio_is_correct_while_vms_come_and_go(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU={**CPU, "total": 1000}, MEMORY_MB=MEM, **OTHERS)
    enough = threading.Event()
    allocations: list[int] = []
    writes = itertools.count()

    def allocate_before_every_third_write(method: str, path: str, _token: str) -> None:
        if method == "PUT" and path.endswith("/inventories") and next(writes) % 3 == 0:
            allocate(server, provider)

    def scheduler() -> None:
        # Longer than a read and a write take on a loaded machine: otherwise each write is a conflict.
        while not enough.wait(0.15):
            # It may lose against the reconciler: a real scheduler would try again.
            with contextlib.suppress(urllib.error.HTTPError):
                allocate(server, provider)
                allocations.append(1)

    busy = threading.Thread(target=scheduler)
    busy.start()
    try:
        with between(server, allocate_before_every_third_write) as url:
            placement = PlacementReconciler(settings(url, {NODE: provider}))
            for cores in range(1001, 1013):
                done = placement.publish([capacity_of(NODE, cores + 4.0, 12000.0)])
                assert not done.failed, placement.counts()
                assert int(998 * ratios(server, provider)[0]) == cores
    finally:
        enough.set()
        busy.join()
    counts = placement.counts()
    assert counts.conflicts >= 3
    assert len(allocations) > 3
    written = server.inventories(provider)
    assert {**written["VCPU"], "allocation_ratio": 0} == {**CPU, "total": 1000, "allocation_ratio": 0}
    assert written["MEMORY_MB"] == {**MEM, "allocation_ratio": 1.5}
    assert {kind: written[kind] for kind in OTHERS} == OTHERS


def test_conflicts_are_retried_a_limited_number_of_times(
    server: PlacementServer, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.publishers.placement.reconciler._LONGEST_PAUSE_S", 0.02)
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            allocate(server, provider)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed == {NODE: "conflict"}
    assert placement.counts().failures == {"conflict": 1}
    assert ratios(server, provider) == (3.0, 1.25)


def test_conflict_of_another_kind_is_not_retried(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU)
    body = {"errors": [{"status": 409, "detail": "x\n\n Inventory in use", "code": "placement.inventory.inuse"}]}
    writes = []

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        if method != "PUT":
            return None
        writes.append(path)
        return 409, json.dumps(body)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 12.0, None)]).failed == {NODE: "refused"}
    assert len(writes) == 1
    assert placement.counts().last_error == f"{NODE}: HTTP status 409: Inventory in use"


def test_server_error_is_retried(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU)
    requests = []

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        requests.append((method, path))
        return (500, "deadlock") if requests.count((method, path)) == 1 else None

    with between(server, hook) as url:
        assert PlacementReconciler(settings(url, {NODE: host})).publish([capacity_of(NODE, 12.0, None)]).updated == (
            NODE,
        )
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5
    assert len(requests) == 10
