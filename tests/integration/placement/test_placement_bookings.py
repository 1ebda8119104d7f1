"""What the present VMs count, and what Placement lets in between two publications."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from model.publishers.placement.ratio import capacities_of
from model.publishers.placement.reconciler import PlacementReconciler
from model.status import Figures, NodeStatus, ResourceStatus
from model.store.sqlite import SqliteStore
from tests.support.placement import (
    CPU,
    MEM,
    NODE,
    between,
    capacity_of,
    check,
    place,
    ratios,
    settings,
)
from tests.support.servers import PlacementServer
from tests.unit.estimator.support import FIRST, NODES, LiveRun, settings_for, write_slice


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
    server: PlacementServer, host: str, allocated: int, expected: tuple[float, float]
) -> None:
    """9 vCPUs were booked in the slice, and 7 of them at its end."""
    unit = {"min_unit": 1, "step_size": 1}
    provider = server.provider(host, VCPU=CPU | unit, MEMORY_MB=MEM | unit)
    assert all(place(server, provider, 1, 1000) for _ in range(allocated))
    cpu = Figures(10.0, 9.0, 7.0, 6.0, 0.0, 4.0, 4.0, 60.0, own=2.0)
    mem = Figures(9000.0, 9000.0, 7000.0, 8000.0, 0.0, 1000.0, 1000.0, 60.0, own=1000.0)
    status = NodeStatus(NODE, "borg", 60.0, ResourceStatus("ok", cpu), ResourceStatus("ok", mem))
    placement = PlacementReconciler(settings(server.url, {NODE: provider}, least_ratio=0.0001))
    assert not placement.publish(capacities_of([status])).failed
    assert ratios(server, provider) == expected


def test_full_node_whose_vms_are_replaced_never_gets_more_of_them(
    server: PlacementServer, host: str, tmp_path: Path
) -> None:
    """One VM of 4 vCPUs is replaced per slice, and Placement accepts as many as the ratio allows."""
    provider = server.provider(host, VCPU={"total": 64}, MEMORY_MB={"total": 65536})
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
    server: PlacementServer, host: str, tmp_path: Path
) -> None:
    """64 cores; one slice is full, and closes the node. Each VM of 4 vCPUs that is placed uses a quarter of a core."""
    provider = server.provider(host, VCPU={"total": 64, "max_unit": 64}, MEMORY_MB={"total": 2**20})
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
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider, other = server.provider(host, VCPU=CPU), server.provider(f"{host}-2", VCPU=CPU)
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


def test_vm_placed_between_the_reads_is_a_conflict(server: PlacementServer, host: str) -> None:
    """Inventories and usages of two moments give a capacity of neither."""
    provider = server.provider(host, VCPU={"total": 8}, MEMORY_MB={"total": 8192})
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
    server: PlacementServer, host: str
) -> None:
    provider = server.provider(host, VCPU={"total": 8, "allocation_ratio": 1.5})
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
