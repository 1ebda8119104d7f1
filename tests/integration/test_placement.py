"""Reconciliation of allocation ratios with a real OpenStack Placement."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.common.environment import Environment
from model.publishers.placement.check import check_placement
from model.publishers.placement.ratio import capacities_of
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import PlacementSettings, Token, placement_settings
from model.status import Figures, NodeStatus, ResourceStatus
from model.store.sqlite import SqliteStore
from tests.support.placement import Clock, between, capacity_of, place, settings
from tests.support.servers import PlacementServer, free_port, placement_server, wait_for
from tests.unit.estimator.support import FIRST, NODES, LiveRun, settings_for, write_slice

NODE = "http://w1:9100/metrics"
#: Every field differs from its default in a PUT.
CPU = {"total": 10, "reserved": 2, "min_unit": 2, "max_unit": 6, "step_size": 2, "allocation_ratio": 3.0}
MEM = {"total": 9000, "reserved": 1000, "min_unit": 64, "max_unit": 4096, "step_size": 64, "allocation_ratio": 1.25}
OTHERS = {
    "PCPU": {"total": 4, "reserved": 4, "min_unit": 1, "max_unit": 4, "step_size": 1, "allocation_ratio": 1.0},
    "DISK_GB": {"total": 99, "reserved": 7, "min_unit": 3, "max_unit": 90, "step_size": 3, "allocation_ratio": 1.7},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    with placement_server(tmp_path_factory.mktemp("placement")) as ours:
        ours.call("PUT", "/resource_classes/CUSTOM_LICENCE")
        yield ours


@pytest.fixture
def name() -> str:
    return f"host-{uuid.uuid4().hex[:8]}"


def ratios(server: PlacementServer, provider: str) -> tuple[float, float]:
    written = server.inventories(provider)
    return written["VCPU"]["allocation_ratio"], written["MEMORY_MB"]["allocation_ratio"]


def check(config: PlacementSettings) -> list[tuple[str, bool, str]]:
    return list(check_placement(config, list(config.providers), {}))


def generation(server: PlacementServer, provider: str) -> int:
    return int(server.call("GET", f"/resource_providers/{provider}")["generation"])


def allocate(server: PlacementServer, provider: str) -> None:
    """Create and delete an allocation; both increase the generation."""
    consumer = uuid.uuid4()
    body = {
        "allocations": {provider: {"resources": {"VCPU": 2}}},
        **{"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"},
    }
    server.call("PUT", f"/allocations/{consumer}", body)
    server.call("DELETE", f"/allocations/{consumer}")


# --- written ratios ----------------------------------------------------------------------------------


def test_ratios_are_set_and_every_other_field_is_kept(server: PlacementServer, name: str) -> None:
    licence = {"total": 5, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 0.5}
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM, CUSTOM_LICENCE=licence, **OTHERS)
    done = PlacementReconciler(settings(server.url, {NODE: provider})).publish([capacity_of(NODE, 16.0, 12000.0)])
    assert (done.updated, done.unchanged, done.failed) == ((NODE,), (), {})
    # (16 - 4 dedicated) / (10 - 2) and 12000 / (9000 - 1000)
    assert server.inventories(provider) == {
        **{"VCPU": {**CPU, "allocation_ratio": 1.5}, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}},
        **{"CUSTOM_LICENCE": licence, **OTHERS},
    }


def test_resource_without_capacity_is_left_unchanged(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([capacity_of(NODE, 16.0, None)])
    assert ratios(server, provider) == (2.0, 1.25)
    placement.publish([capacity_of(NODE, None, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)
    assert placement.publish([capacity_of(NODE, None, None)]).unchanged == (NODE,)


def test_unchanged_ratio_is_not_written(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([capacity_of(NODE, 13.9, 9001.0)])
    before = generation(server, provider)
    done = placement.publish([capacity_of(NODE, 13.2, 9001.5)])
    assert (done.updated, done.unchanged) == ((), (NODE,))
    assert generation(server, provider) == before
    assert placement.counts().updates == 1


@pytest.mark.parametrize(("allowed", "expected"), [(False, (1.0, 1.0)), (True, (0.5, 0.0001))])
def test_ratio_below_one_needs_the_setting(
    server: PlacementServer, name: str, allowed: bool, expected: tuple[float, float]
) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    environment = Environment(
        {
            **{"PLACEMENT_PROVIDERS": json.dumps({NODE: provider}), "PLACEMENT_TOKEN": "admin"},
            **{"PLACEMENT_ENDPOINT": server.url, "PLACEMENT_ALLOW_BELOW_ONE": str(int(allowed))},
        }
    )
    read = placement_settings(environment, 1800.0)
    assert read is not None
    assert not PlacementReconciler(read).publish([capacity_of(NODE, 4.0, 0.0)]).failed
    assert ratios(server, provider) == expected


def test_ratio_above_the_maximum_is_limited_and_logged_once(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}, most_ratio=4.0))
    for _ in range(3):
        placement.publish([capacity_of(NODE, 80.0, 16000.0)])
    assert ratios(server, provider) == (4.0, 2.0)
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: ratio 10 is limited to 4"]
    placement.publish([capacity_of(NODE, 16.0, 16000.0)])
    assert "VCPU: recovered" in event_log.records[-1].getMessage()


def test_changed_total_changes_the_ratio(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    clock = Clock()
    placement = PlacementReconciler(settings(server.url, {NODE: provider}), clock)
    placement.publish([capacity_of(NODE, 12.0, 12000.0)])
    body = server.call("GET", f"/resource_providers/{provider}/inventories")
    body["inventories"]["VCPU"].update(total=8, reserved=0)
    body["inventories"]["MEMORY_MB"].update(reserved=3000)
    server.call("PUT", f"/resource_providers/{provider}/inventories", body)
    clock.now_s += 100
    assert placement.poll().updated == (NODE,)
    assert ratios(server, provider) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("inventories", "message"),
    [
        ({"MEMORY_MB": MEM}, "the provider has no such inventory"),
        ({"VCPU": {**CPU, "reserved": 10}, "MEMORY_MB": MEM}, "the inventory is reserved entirely"),
    ],
)
def test_resource_without_ratio_is_logged_once_and_the_other_is_set(
    server: PlacementServer, name: str, inventories: Any, message: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(name, **inventories)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    for _ in range(2):
        assert not placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed
    written = server.inventories(provider)
    assert written == {**inventories, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}}
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: {message}"]


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0])
def test_invalid_capacity_is_not_written(server: PlacementServer, name: str, amount: float) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    PlacementReconciler(settings(server.url, {NODE: provider})).publish([capacity_of(NODE, amount, 12000.0)])
    assert ratios(server, provider) == (3.0, 1.5)


def test_placement_accepts_exactly_the_vcpus_of_the_capacity(server: PlacementServer, name: str) -> None:
    """Capacity 8 of 3 cores: the truncated ratio 2.6666 would accept 7."""
    provider = server.provider(name, VCPU={"total": 3})
    PlacementReconciler(settings(server.url, {NODE: provider})).publish([capacity_of(NODE, 8.9, None)])

    def take(vcpus: int) -> bool:
        allocations = {provider: {"resources": {"VCPU": 1}}}
        about = {"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"}
        try:
            for _ in range(vcpus):
                server.call("PUT", f"/allocations/{uuid.uuid4()}", {"allocations": allocations, **about})
        except urllib.error.HTTPError:
            return False
        return True

    assert take(8)
    assert not take(1)


# --- what is booked now --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocated", "expected"),
    [
        (0, (4 / 8, 1000 / 8000)),  # nothing is allocated: what is booked on the node is not Placement's
        (5, (9 / 8, 6000 / 8000)),  # a VM was deleted after the slice
        (7, (11 / 8, 8000 / 8000)),
        (9, (11 / 8, 8000 / 8000)),  # two VMs were placed after the slice
    ],
)
def test_capacity_is_the_smaller_of_booked_now_and_allocated_and_what_is_free(
    server: PlacementServer, name: str, allocated: int, expected: tuple[float, float]
) -> None:
    """9 vCPUs were booked in the slice, and 7 of them at its end."""
    unit = {"min_unit": 1, "step_size": 1}
    provider = server.provider(name, VCPU=CPU | unit, MEMORY_MB=MEM | unit)
    assert all(place(server, provider, 1, 1000) for _ in range(allocated))
    cpu = Figures(10.0, 9.0, 7.0, 6.0, 0.0, 4.0, 4.0, 60.0, own=2.0)
    mem = Figures(9000.0, 9000.0, 7000.0, 8000.0, 0.0, 1000.0, 1000.0, 60.0, own=1000.0)
    status = NodeStatus(NODE, "borg", 60.0, ResourceStatus("ok", cpu), ResourceStatus("ok", mem))
    placement = PlacementReconciler(settings(server.url, {NODE: provider}, least_ratio=0.0001))
    assert not placement.publish(capacities_of([status])).failed
    assert ratios(server, provider) == expected


def test_full_node_whose_vms_are_replaced_never_gets_more_of_them(
    server: PlacementServer, name: str, tmp_path: Path
) -> None:
    """One VM of 4 vCPUs is replaced per slice, and Placement accepts as many as the ratio allows."""
    provider = server.provider(name, VCPU={"total": 64}, MEMORY_MB={"total": 65536})
    placement = PlacementReconciler(settings(server.url, {NODES[0]: provider}))
    full = {"cpu": 64.0, "mem": 65536.0, "cpu_usage": 64.0, "mem_usage": 65536.0}
    vm = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": 4.0, "mem_usage": 1024.0}
    live_settings = settings_for(tmp_path, nodes=NODES[:1])
    store = SqliteStore(tmp_path / "store.sqlite", 86400)
    live = LiveRun(live_settings, store, ["percentile"])
    vms: list[str] = []
    while placed := place(server, provider, 4, 1024):
        vms.append(placed)
    hosted = []
    for number in range(FIRST, FIRST + 12):
        before = list(vms)
        server.call("DELETE", f"/allocations/{vms.pop(0)}")
        while placed := place(server, provider, 4, 1024):
            vms.append(placed)
        write_slice(store, number, full, dict.fromkeys(before, vm), at=range(4))
        write_slice(store, number, full, dict.fromkeys(vms, vm), at=range(4, 8))
        statuses = live.wake(number)
        assert statuses[0].cpu.last is not None
        assert statuses[0].cpu.last.booked > statuses[0].cpu.last.booked_now
        assert not placement.publish(capacities_of(statuses)).failed
        hosted.append(4 * len(vms))
    live.stop()
    store.close()
    assert hosted == [64] * 12
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.0


def test_vm_that_leaves_a_closed_node_is_replaced_once_the_node_is_open_again(
    server: PlacementServer, name: str, tmp_path: Path
) -> None:
    """64 cores; one slice is full, and closes the node. Each VM of 4 vCPUs that is placed uses a quarter of a core."""
    provider = server.provider(name, VCPU={"total": 64, "max_unit": 64}, MEMORY_MB={"total": 2**20})
    placement = PlacementReconciler(settings(server.url, {NODES[0]: provider}))
    store = SqliteStore(tmp_path / "store.sqlite", 86400)
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), store, ["percentile"], guarded=True)
    number = itertools.count(FIRST)
    vms: list[str] = []

    def fill() -> int:
        """Place VMs until Placement refuses one; how many were placed."""
        before = len(vms)
        while placed := place(server, provider, 4, 1024):
            vms.append(placed)
        return len(vms) - before

    def leave() -> None:
        server.call("DELETE", f"/allocations/{vms.pop(0)}")

    def run_slice(used: float | None = None) -> ResourceStatus:
        """A slice of the present VMs, and the publication at its end."""
        cores = 0.25 * len(vms) if used is None else used
        fields = {"cpu": 64.0, "mem": 2.0**20, "cpu_usage": cores, "mem_usage": 9000.0}
        vm = {"cpu": 4.0, "mem": 1024.0, "cpu_usage": cores / len(vms), "mem_usage": 100.0}
        due = next(number)
        write_slice(store, due, fields, dict.fromkeys(vms, vm))
        statuses = live.wake(due)
        assert statuses[0].cpu.state == "ok"
        assert not placement.publish(capacities_of(statuses)).failed
        return statuses[0].cpu

    assert fill() == 16
    while len(vms) < 24:  # more than the node has
        assert not run_slice().last.closed  # type: ignore[union-attr]
        fill()
    sold = len(vms)
    assert run_slice(64.0).last.closed  # type: ignore[union-attr]
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.0
    closed = 0
    while True:
        if len(vms) > sold - 5:
            leave()
        assert fill() == 0, "nothing is placed on a closed node"
        if not run_slice().last.closed:  # type: ignore[union-attr]
            break
        closed += 1
    # Half a scope, at least 24 slices, to recover; then the full slice is in the horizon of the scope.
    assert closed >= 23
    assert len(vms) == sold - 5
    for _ in range(8):  # one slice in eight all that is free is offered
        run_slice()
        fill()
    assert len(vms) > sold - 5
    live.stop()
    store.close()


def test_provider_whose_usages_cannot_be_read_is_left_as_it_is(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider, other = server.provider(name, VCPU=CPU), server.provider(f"{name}-2", VCPU=CPU)
    answers = {"status": 403, "text": "{}"}

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        is_read = answers["status"] and path.endswith(f"{provider}/usages")
        return (int(answers["status"]), str(answers["text"])) if is_read else None

    with between(server, hook) as url:
        config = settings(url, {NODE: provider, "other": other})
        placement = PlacementReconciler(config)
        capacities = [capacity_of(node, 12.0, None) for node in (NODE, "other")]
        assert placement.publish(capacities).failed == {NODE: "forbidden"}
        assert (f"placement {NODE}", False, "HTTP status 403") in check(config)
        for text in ("{}", '{"resource_provider_generation": 1, "usages": {"VCPU": -1}}', "[]"):
            answers |= {"status": 200, "text": text}
            assert placement.publish(capacities).failed == {NODE: "answer"}
        assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 3.0
        assert server.inventories(other)["VCPU"]["allocation_ratio"] == 1.5
        answers["status"] = 0
        assert placement.publish(capacities).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5
    assert event_log.records[-1].getMessage() == f"{NODE}: recovered"


def test_vm_placed_between_the_reads_is_a_conflict(server: PlacementServer, name: str) -> None:
    """Inventories and usages of two moments give a capacity of neither."""
    provider = server.provider(name, VCPU={"total": 8}, MEMORY_MB={"total": 8192})
    placed = []

    def hook(method: str, path: str, token: str) -> None:
        if path.endswith("/inventories") and not placed:
            placed.append(place(server, provider, 2, 512))

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 10.0, None, 2.0)]).updated == (NODE,)
    assert placement.counts().conflicts == 1
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5


def test_ratio_written_between_the_reads_is_not_taken_for_the_one_that_was_read(
    server: PlacementServer, name: str
) -> None:
    provider = server.provider(name, VCPU={"total": 8, "allocation_ratio": 1.5})
    changed = []

    def hook(method: str, path: str, token: str) -> None:
        if path.endswith("/inventories") and not changed:
            body = server.call("GET", f"/resource_providers/{provider}/inventories")
            body["inventories"]["VCPU"]["allocation_ratio"] = 3.0
            changed.append(server.call("PUT", f"/resource_providers/{provider}/inventories", body))

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 12.0, None)]).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5


# --- concurrent writers --------------------------------------------------------------------------------


def test_conflict_between_read_and_write_is_retried(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM, **OTHERS)
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


def test_ratio_is_correct_while_vms_come_and_go(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU={**CPU, "total": 1000}, MEMORY_MB=MEM, **OTHERS)
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
    server: PlacementServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.publishers.placement.reconciler._LONGEST_PAUSE_S", 0.02)
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            allocate(server, provider)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed == {NODE: "conflict"}
    assert placement.counts().failures == {"conflict": 1}
    assert ratios(server, provider) == (3.0, 1.25)


def test_conflict_of_another_kind_is_not_retried(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
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


def test_server_error_is_retried(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    requests = []

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        requests.append((method, path))
        return (500, "deadlock") if requests.count((method, path)) == 1 else None

    with between(server, hook) as url:
        assert PlacementReconciler(settings(url, {NODE: name})).publish([capacity_of(NODE, 12.0, None)]).updated == (
            NODE,
        )
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5
    assert len(requests) == 10


# --- provider names --------------------------------------------------------------------------------------------


def test_provider_is_looked_up_by_name_once(server: PlacementServer, name: str) -> None:
    odd = f"{name} & ü/#?"
    provider = server.provider(odd, VCPU=CPU, MEMORY_MB=MEM)
    requests = []

    def hook(method: str, path: str, token: str) -> None:
        requests.append(path)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: odd}))
        placement.publish([capacity_of(NODE, 12.0, 12000.0)])
        placement.publish([capacity_of(NODE, 16.0, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)
    assert sum("?name=" in path for path in requests) == 1


def test_renamed_provider_is_found_by_its_uuid(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: name}))
    placement.publish([capacity_of(NODE, 12.0, 12000.0)])
    server.call("PUT", f"/resource_providers/{provider}", {"name": f"{name}-new"})
    placement.publish([capacity_of(NODE, 16.0, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)


def test_recreated_provider_is_found_by_its_name(server: PlacementServer, name: str) -> None:
    placement = PlacementReconciler(settings(server.url, {NODE: name}))
    for cores in (12.0, 16.0):
        provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
        assert placement.publish([capacity_of(NODE, cores, None)]).updated == (NODE,)
        assert ratios(server, provider)[0] == cores / 8
        server.call("DELETE", f"/resource_providers/{provider}")
    assert placement.publish([capacity_of(NODE, 12.0, None)]).failed == {NODE: "missing"}


def test_two_nodes_with_one_provider_are_an_error(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {"a": provider, "b": name}))
    done = placement.publish([capacity_of("a", 12.0, None), capacity_of("b", 16.0, None)])
    assert list(done.failed.values()) == ["duplicate"]
    assert len(done.updated) == 1


# --- isolation of failures ------------------------------------------------------------------------


def test_missing_provider_is_logged_once_and_the_others_are_updated(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    providers = [server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(12)]
    nodes = {f"node{k}": provider for k, provider in enumerate(providers)}
    nodes |= {"by-name": f"{name}-nowhere", "by-uuid": str(uuid.uuid4())}
    placement = PlacementReconciler(settings(server.url, nodes))
    for cores in (12.0, 16.0):
        done = placement.publish([capacity_of(node, cores, None) for node in [*nodes, "unmapped"]])
        assert done.failed == {"by-name": "missing", "by-uuid": "missing"}
        assert [ratios(server, provider)[0] for provider in providers] == [cores / 8] * 12
    assert placement.counts().failures == {"missing": 4}
    assert len(event_log.records) == 2
    server.provider(f"{name}-nowhere", VCPU=CPU)
    assert set(placement.publish([capacity_of("by-name", 12.0, None)]).updated) == {"by-name"}
    assert event_log.records[-1].getMessage() == "by-name: recovered"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((403, '{"errors": [{"detail": "Policy does not allow it"}]}'), "forbidden"),
        ((401, ""), "login"),
        ((500, "<html>"), "server"),
        ((302, ""), "refused"),
        ((200, "[]"), "answer"),
        ((200, "{}"), "answer"),
        ((200, '{"resource_provider_generation": 1, "inventories": {"VCPU": 7}}'), "answer"),
        ((200, "not JSON"), "answer"),
    ],
)
def test_invalid_response_affects_only_its_provider(
    server: PlacementServer, name: str, answer: tuple[int, str], reason: str
) -> None:
    good, bad = (server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return answer if bad in path else None

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}))
        done = placement.publish([capacity_of("bad", 12.0, 12000.0), capacity_of("good", 12.0, 12000.0)])
    assert (done.updated, done.failed) == (("good",), {"bad": reason})
    assert ratios(server, good) == (1.5, 1.5)
    assert ratios(server, bad) == (3.0, 1.25)


def test_hung_request_delays_no_other_provider_and_is_not_repeated(server: PlacementServer, name: str) -> None:
    good, bad = (server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")
    release, requests = threading.Event(), []

    def hook(method: str, path: str, token: str) -> None:
        if bad in path:
            requests.append(path)
            release.wait(60)

    def end_after_first_update() -> None:
        wait_for(lambda: placement.counts().updates)
        time.sleep(0.5)
        clock.now_s += 1000

    with between(server, hook) as url:
        clock = Clock()
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}, timeout_s=120.0), clock)
        ends = threading.Thread(target=end_after_first_update)
        ends.start()
        for cores in (12.0, 16.0):
            done = placement.publish([capacity_of("bad", cores, None), capacity_of("good", cores, None)])
            assert (done.updated, done.failed) == (("good",), {"bad": "timeout"})
            assert ratios(server, good)[0] == cores / 8
        ends.join()
        assert len(requests) == 1
        release.set()


def test_stop_ends_a_hung_reconciliation(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    stop, release = threading.Event(), threading.Event()

    def hook(method: str, path: str, token: str) -> None:
        if provider in path:
            stop.set()
            release.wait(60)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=120.0))
        start = time.monotonic()
        done = placement.publish([capacity_of(NODE, 12.0, None)], stop)
        release.set()
    # Without the stop: two minutes.
    assert time.monotonic() - start < 60
    assert not done.updated
    assert not done.failed


# --- failures of the server ------------------------------------------------------------------------------


def test_unreachable_server_is_logged_once_and_recovers(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    nodes = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(3)}
    placement = PlacementReconciler(settings(server.url, nodes))
    capacities = [capacity_of(node, 12.0, 12000.0) for node in nodes]
    server.kill()
    try:
        for _ in range(2):
            assert placement.publish(capacities).failed == dict.fromkeys(nodes, "connection")
    finally:
        server.start()
    assert set(placement.publish(capacities).updated) == set(nodes)
    assert [record.getMessage() for record in event_log.records] == [
        "Placement: Connection refused",
        "Placement: recovered",
    ]
    assert placement.counts().failures == {"connection": 6}


def test_frozen_server_is_waited_for_once(server: PlacementServer, name: str) -> None:
    nodes = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(10)}
    placement = PlacementReconciler(settings(server.url, nodes, timeout_s=0.5))
    capacities = [capacity_of(node, 12.0, 12000.0) for node in nodes]
    server.freeze()
    try:
        start = time.monotonic()
        assert placement.publish(capacities).failed == dict.fromkeys(nodes, "timeout")
        # Without the first request: two minutes.
        assert time.monotonic() - start < 60
    finally:
        server.thaw()
    placement = PlacementReconciler(settings(server.url, nodes))
    assert set(placement.publish(capacities).updated) == set(nodes)


def test_server_that_freezes_during_an_update_is_a_timeout(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)

    clock = Clock()

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            server.freeze()
            clock.now_s += 1000

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=60.0), clock)
        try:
            assert placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed == {NODE: "timeout"}
        finally:
            server.thaw()


def test_refused_token_is_logged_once_and_never_shown(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    nodes = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU) for k in range(3)}
    event_log.set_level(logging.DEBUG)
    config = settings(server.url, nodes, login=Token(server.url, "s3cr3t"))
    placement = PlacementReconciler(config)
    assert placement.publish([capacity_of(node, 12.0, None) for node in nodes]).failed == dict.fromkeys(
        nodes, "forbidden"
    )
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    (warning,) = warnings
    assert "Placement: HTTP status 403" in warning
    ((_, ok, message),) = check(config)
    assert not ok
    assert "403" in message
    shown = f"{config!r} {placement!r} {message} {placement.counts()!r} {event_log.text}"
    assert "s3cr3t" not in shown


def test_server_that_is_not_placement_is_an_error(server: PlacementServer) -> None:
    with between(server, lambda *_: (200, "hello")) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([capacity_of(NODE, 1.0, 1.0)]).failed == {NODE: "answer"}
    with between(
        server, lambda *_: (406, '{"errors": [{"detail": "x\\n\\nUnacceptable version header: 1.26"}]}')
    ) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([capacity_of(NODE, 1.0, 1.0)]).failed == {NODE: "refused"}
        assert "1.26" in placement.counts().last_error


def test_check_does_not_write(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    before = generation(server, provider)
    first, last = check(settings(server.url, {NODE: name}))
    assert first == (
        f"placement {NODE}",
        False,
        f"{name}: VCPU 10, reserved 2, ratio 3 not by ScroogeVM, used 0; no MEMORY_MB",
    )
    assert last == ("placement", True, "OpenStack Placement, resource providers: 1")
    assert generation(server, provider) == before
    rows = check(settings(server.url, {"other": f"{name}-nowhere", NODE: name}))
    assert rows[0] == ("placement other", False, f"no resource provider is named {name}-nowhere")
    assert rows[1] == first


# --- Keystone -------------------------------------------------------------------------------------------


class FakeKeystone:
    """Keystone, reduced to tokens and the catalog."""

    def __init__(self) -> None:
        self.catalog = ""
        self.logins: list[Any] = []
        self.status = 201
        self.tokens = ["admin"]
        keystone = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                here = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": keystone.url}]}
                self.send(200, {"version": here})

            def do_POST(self) -> None:
                keystone.logins.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                endpoint = {"interface": "public", "region": "one", "region_id": "one", "url": keystone.catalog}
                token = {
                    **{"methods": ["password"], "user": {"id": "u", "name": "u", "domain": {"id": "d", "name": "D"}}},
                    **{"expires_at": "2999-01-01T00:00:00.000000Z", "issued_at": "2020-01-01T00:00:00.000000Z"},
                    "catalog": [{"type": "placement", "name": "placement", "id": "p", "endpoints": [endpoint]}],
                }
                subject = keystone.tokens[min(len(keystone.logins), len(keystone.tokens)) - 1]
                self.send(keystone.status, {"token": token}, subject)

            def send(self, status: int, body: Any, subject: str = "") -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("X-Subject-Token", subject)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.listening.server_address[1]}/v3"
        threading.Thread(target=self.listening.serve_forever, daemon=True).start()


@pytest.fixture
def keystone() -> Iterator[FakeKeystone]:
    fake = FakeKeystone()
    yield fake
    fake.listening.shutdown()
    fake.listening.server_close()


def from_environment(**values: str) -> PlacementSettings:
    environment = Environment(values)
    read = placement_settings(environment, 1800.0)
    assert not environment.faults
    assert read is not None
    return read


def test_login_with_keystone_finds_placement_in_the_catalog(
    server: PlacementServer, keystone: FakeKeystone, name: str
) -> None:
    provider = server.provider(name, VCPU=CPU)
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS=json.dumps({NODE: name}),
            OS_AUTH_URL=keystone.url,
            OS_USERNAME="scroogevm",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="service",
            OS_REGION_NAME="one",
        )
    )
    for cores in (12.0, 16.0):
        assert placement.publish([capacity_of(NODE, cores, None)]).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 2.0
    (login,) = keystone.logins
    assert login["auth"]["identity"]["password"]["user"] == {
        **{"name": "scroogevm", "password": "s3cr3t", "domain": {"name": "Default"}}
    }
    assert login["auth"]["scope"]["project"]["name"] == "service"


def test_expired_token_is_renewed(server: PlacementServer, keystone: FakeKeystone, name: str) -> None:
    server.provider(name, VCPU=CPU)
    keystone.tokens = ["old", "admin"]

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return (401, "{}") if token == "old" else None

    with between(server, hook) as url:
        keystone.catalog = url
        placement = PlacementReconciler(
            from_environment(
                PLACEMENT_PROVIDERS=json.dumps({NODE: name}),
                OS_AUTH_TYPE="v3applicationcredential",
                OS_AUTH_URL=keystone.url,
                OS_APPLICATION_CREDENTIAL_ID="id",
                OS_APPLICATION_CREDENTIAL_SECRET="s3cr3t",
            )
        )
        assert placement.publish([capacity_of(NODE, 12.0, None)]).updated == (NODE,)
    assert [login["auth"]["identity"]["methods"] for login in keystone.logins] == [["application_credential"]] * 2


@pytest.mark.parametrize("status", [401, 500, 0])
def test_failed_keystone_login_is_logged_without_secrets(
    server: PlacementServer, keystone: FakeKeystone, status: int, event_log: pytest.LogCaptureFixture
) -> None:
    keystone.status = status
    event_log.set_level(logging.DEBUG)
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS='{"a": "b", "c": "d"}',
            OS_AUTH_URL=keystone.url if status else f"http://127.0.0.1:{free_port()}/v3",
            OS_USERNAME="u",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="p",
        )
    )
    for _ in range(2):
        done = placement.publish([capacity_of("a", 12.0, None), capacity_of("c", 12.0, None)])
        assert done.failed == dict.fromkeys("ac", "login" if status else "connection")
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    assert warnings == [f"Placement: Keystone: HTTP status {status}" if status else "Placement: Connection refused"]
    assert "s3cr3t" not in event_log.text


def test_placement_missing_in_the_catalog_is_an_error(server: PlacementServer, keystone: FakeKeystone) -> None:
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            **{"PLACEMENT_PROVIDERS": '{"a": "b"}', "OS_AUTH_URL": keystone.url, "OS_REGION_NAME": "elsewhere"},
            **{"OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
        )
    )
    assert placement.publish([capacity_of("a", 12.0, None)]).failed == {"a": "login"}
    assert "elsewhere" in placement.counts().last_error
