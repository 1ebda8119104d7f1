"""What happens between two slices, and beside other writers, on a real OpenStack Placement."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model.publishers.placement.publisher import PlacementPublisher
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.placement.written import read_written
from model.status import Figures, NodeStatus, ResourceStatus
from tests.support.placement import Clock, at, between, capacity_of, place, set_ratio, settings
from tests.support.servers import PlacementServer, wait_for

CPU = {"total": 64, "max_unit": 64, "allocation_ratio": 1.0}


def made(server: PlacementServer, host: str, vms: int, size: int = 8) -> tuple[str, list[str]]:
    """A provider of 64 VCPUs with some VMs."""
    provider = server.provider(host, VCPU={**CPU, "allocation_ratio": 9.0}, MEMORY_MB={"total": 2**20})
    return provider, [place(server, provider, size, 64) for _ in range(vms)]


def fill(server: PlacementServer, provider: str, size: int = 8) -> int:
    """How many VMs Placement lets in."""
    count = 0
    while place(server, provider, size, 64):
        count += 1
    return count


def ratio(server: PlacementServer, provider: str) -> float:
    return float(server.inventories(provider)["VCPU"]["allocation_ratio"])


# --- VMs that are deleted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [8.0, 0.0])
def test_what_a_deleted_vm_leaves_is_not_sold_within_the_slice(server: PlacementServer, host: str, free: float) -> None:
    """10 VMs of 8 vCPUs are booked; with 0 free as on a stale node."""
    (provider, vms), clock = made(server, host, 10), Clock()
    reconciler = PlacementReconciler(settings(server.url, {host: provider}), clock)
    capacity = capacity_of(host, free, None, 80.0)
    reconciler.publish([capacity])
    assert ratio(server, provider) == (80 + free) / 64
    for vm in vms[:2]:
        server.call("DELETE", f"/allocations/{vm}")
    clock.now_s += 100
    assert reconciler.poll().updated == (host,)
    assert ratio(server, provider) == (64 + free) / 64
    # VMs may take what is free, and neither they nor later looks raise the ratio.
    assert fill(server, provider) == free / 8
    clock.now_s += 100
    assert reconciler.poll().unchanged == (host,)
    assert fill(server, provider) == 0
    # In the next slice their absence was measured.
    assert reconciler.publish([at(capacity_of(host, 24.0, None, 64.0 + free), 120.0)]).updated == (host,)
    assert fill(server, provider) == 3


def test_restart_within_the_slice_does_not_sell_it_either(server: PlacementServer, host: str, tmp_path: Path) -> None:
    (provider, vms), capacity = made(server, host, 10), capacity_of(host, 8.0, None, 80.0)
    config = settings(server.url, {host: provider}, state_path=tmp_path / "placement.json")
    clock = Clock()
    first = PlacementReconciler(config, clock)
    first.publish([capacity])
    server.call("DELETE", f"/allocations/{vms[0]}")
    clock.now_s += 100
    first.poll()
    assert place(server, provider, 8, 64)
    PlacementReconciler(config).publish([capacity])
    assert ratio(server, provider) == 80 / 64


def test_vm_that_only_the_node_has_lets_nobody_in(server: PlacementServer, host: str) -> None:
    """An orphan of 40 vCPUs, also while VMs are created that the node does not have yet."""
    provider, _ = made(server, host, 8)
    reconciler = PlacementReconciler(settings(server.url, {host: provider}))
    reconciler.publish([capacity_of(host, 16.0, None, 64.0 + 40.0)])
    assert fill(server, provider) == 2
    reconciler.publish([at(capacity_of(host, 8.0, None, 64.0 + 40.0), 120.0)])
    assert fill(server, provider) == 0, "the 2 VMs of the slice before use what is free"
    reconciler.publish([at(capacity_of(host, 8.0, None, 64.0 + 16.0 + 40.0), 180.0)])
    assert fill(server, provider) == 1


# --- looks --------------------------------------------------------------------------------------------------


def test_look_at_a_provider_that_has_not_changed_costs_one_request(server: PlacementServer, host: str) -> None:
    provider, _ = made(server, host, 2)
    requests: list[tuple[str, str]] = []
    clock = Clock()
    with between(server, lambda method, path, token: requests.append((method, path.rpartition("/")[2]))) as url:
        reconciler = PlacementReconciler(settings(url, {host: provider}), clock)
        reconciler.publish([capacity_of(host, 16.0, None, 16.0)])
        requests.clear()
        clock.now_s += 100
        assert reconciler.poll().unchanged == (host,)
        # One more shows whether the server is there.
        assert [path for _, path in requests if "?" not in path] == ["usages"]
        requests.clear()
        assert reconciler.publish([capacity_of(host, 16.0, None, 16.0)]).unchanged == ()
        assert requests == []


def test_looks_are_spread_over_time(server: PlacementServer, host: str) -> None:
    nodes = {f"{host}-{i}": server.provider(f"{host}-{i}", VCPU=CPU) for i in range(24)}
    clock = Clock()
    reconciler = PlacementReconciler(settings(server.url, nodes, poll_s=60.0), clock)
    reconciler.publish([capacity_of(node, 8.0, None) for node in nodes])
    looked = []
    for _ in range(10):
        clock.now_s += 10
        looked.append(len(reconciler.poll().unchanged))
    assert looked[:2] == [0, 0]
    assert sum(looked[:9]) >= 24
    assert max(looked) < 24
    assert 1.0 <= reconciler.pause_s() <= 60.0


def test_nodes_that_a_round_left_go_first_and_falling_ones_before_them(server: PlacementServer, host: str) -> None:
    nodes = {f"{host}-{i:02}": server.provider(f"{host}-{i:02}", VCPU=CPU) for i in range(30)}
    clock, order = Clock(), list[str]()
    names = {provider: node for node, provider in nodes.items()}
    too_long, before = threading.Event(), set(threading.enumerate())

    def hook(method: str, path: str, token: str) -> None:
        provider = path.split("/")[2] if path.count("/") > 2 else ""
        if provider in names and names[provider] not in order:
            order.append(names[provider])
            if too_long.is_set() and len(order) > 20:
                clock.now_s += 1000

    with between(server, hook) as url:
        reconciler = PlacementReconciler(settings(url, nodes), clock)
        assert len(reconciler.publish([capacity_of(node, 80.0, None) for node in nodes]).updated) == 30
        order.clear()
        too_long.set()
        done = reconciler.publish([capacity_of(node, 88.0, None) for node in nodes])
        late = {node for node, reason in done.failed.items() if reason == "timeout"}
        assert len(late) > 9
        too_long.clear()
        # Requests that were on their way.
        wait_for(lambda: not any("placement-" in one.name for one in set(threading.enumerate()) - before))
        order.clear()
        fell = done.updated[-1]
        reconciler.publish([capacity_of(node, 72.0 if node == fell else 88.0, None) for node in nodes])
        # Eight are begun at once.
        assert fell in order[:8]
        assert set(order) == late | {fell}
    assert reconciler.counts().nodes["kept"] == 30


def test_failed_node_is_tried_again_by_the_next_look(server: PlacementServer, host: str) -> None:
    provider, clock, answers = server.provider(host, VCPU=CPU), Clock(), [403]

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return (answers[0], "{}") if provider in path and answers[0] else None

    with between(server, hook) as url:
        reconciler = PlacementReconciler(settings(url, {host: provider}), clock)
        assert reconciler.publish([capacity_of(host, 72.0, None)]).failed == {host: "forbidden"}
        answers[0] = 0
        assert reconciler.poll().updated == ()
        clock.now_s += 100
        assert reconciler.poll().updated == (host,)


def test_hung_provider_is_not_asked_again_at_once(server: PlacementServer, host: str) -> None:
    provider, clock = server.provider(host, VCPU=CPU), Clock()
    release, asked = threading.Event(), list[str]()

    def hook(method: str, path: str, token: str) -> None:
        if provider in path:
            asked.append(path)
            clock.now_s += 1000
            release.wait(60)

    with between(server, hook) as url:
        reconciler = PlacementReconciler(settings(url, {host: provider}), clock)
        assert reconciler.publish([capacity_of(host, 72.0, None)]).failed == {host: "timeout"}
        assert reconciler.poll().failed == {}, "it is not due yet"
        assert reconciler.publish([]).failed == {}
        release.set()
    assert len(asked) <= 3


# --- other writers ---------------------------------------------------------------------------------------------


def test_ratio_of_another_process_is_written_back_counted_and_logged_once(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider, clock = server.provider(host, VCPU=CPU), Clock()
    reconciler = PlacementReconciler(settings(server.url, {host: provider}), clock)
    reconciler.publish([capacity_of(host, 128.0, None)])
    for value in (4.0, 8.0):
        set_ratio(server, provider, value)
        clock.now_s += 100
        assert reconciler.poll().updated == (host,)
        assert ratio(server, provider) == 2.0
    assert reconciler.counts().foreign_writes == 2
    assert [record.getMessage() for record in event_log.records] == [
        f"{host} VCPU ratio: another process has set 4 in place of 2; nova-compute does so where cpu_allocation_ratio is "
        "set in its nova.conf"
    ]
    clock.now_s += 1000
    reconciler.poll()
    assert len(event_log.records) == 1
    clock.now_s += 1000
    reconciler.poll()
    assert event_log.records[-1].getMessage() == f"{host} VCPU ratio: recovered"


def test_write_whose_answer_is_lost_is_not_that_of_another_process(server: PlacementServer, host: str) -> None:
    provider, clock, lost = server.provider(host, VCPU=CPU), Clock(), [True]

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        if method == "PUT" and lost[0]:
            lost[0] = False
            set_ratio(server, provider, 2.0)
            return 200, "lost"
        return None

    with between(server, hook) as url:
        reconciler = PlacementReconciler(settings(url, {host: provider}), clock)
        assert reconciler.publish([capacity_of(host, 128.0, None)]).failed == {host: "answer"}
        clock.now_s += 100
        assert reconciler.poll().unchanged == (host,)
    assert reconciler.counts().foreign_writes == 0


def test_ratio_that_was_changed_while_the_estimator_was_down_is_noticed(
    server: PlacementServer, host: str, tmp_path: Path
) -> None:
    provider = server.provider(host, VCPU=CPU)
    config = settings(server.url, {host: provider}, state_path=tmp_path / "new" / "placement.json")
    PlacementReconciler(config).publish([capacity_of(host, 128.0, None)])
    assert read_written(tmp_path / "new" / "placement.json")[provider].ratios == {"VCPU": 2.0}
    again = PlacementReconciler(config)
    assert again.publish([capacity_of(host, 128.0, None)]).unchanged == (host,)
    assert again.counts().foreign_writes == 0
    set_ratio(server, provider, 4.0)
    later = PlacementReconciler(config)
    assert later.publish([capacity_of(host, 128.0, None)]).updated == (host,)
    assert later.counts().foreign_writes == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"x": {"ratios": {"VCPU": "a"}}}', '{"x": {"bookings": {"VCPU": 1}}}']
)
def test_invalid_state_file_is_replaced(
    server: PlacementServer, host: str, tmp_path: Path, text: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider, path = server.provider(host, VCPU=CPU), tmp_path / "placement.json"
    path.write_text(text)
    reconciler = PlacementReconciler(settings(server.url, {host: provider}, state_path=path))
    assert reconciler.publish([capacity_of(host, 128.0, None)]).updated == (host,)
    (line,) = [record.getMessage() for record in event_log.records]
    assert line.startswith(f"{path}: cannot be read, is started anew: ")
    assert list(json.loads(path.read_text())) == [provider]


# --- the thread ----------------------------------------------------------------------------------------------


def status_of(host: str, free: float, booked: float, end_s: float = 60.0) -> NodeStatus:
    cpu = ResourceStatus("ok", Figures(64.0, booked, booked, 9.0, 0.0, free, free, end_s, own=1.0))
    return NodeStatus(host, "clt", end_s, cpu)


def test_publisher_looks_between_two_publications(server: PlacementServer, host: str) -> None:
    provider, vms = made(server, host, 10)
    config = settings(server.url, {host: provider}, poll_s=1.0)
    publisher = PlacementPublisher(PlacementReconciler(config))
    try:
        publisher.publish([status_of(host, 8.0, 80.0)])
        wait_for(lambda: ratio(server, provider) == 88 / 64)
        server.call("DELETE", f"/allocations/{vms[0]}")
        wait_for(lambda: ratio(server, provider) == 80 / 64)
        publisher.publish([status_of(host, 16.0, 72.0, 120.0)])
        wait_for(lambda: ratio(server, provider) == 88 / 64)
    finally:
        publisher.close(30)
    assert "placement publisher" not in {thread.name for thread in threading.enumerate()}


def test_latest_status_wins_and_a_hung_round_does_not_delay_the_end(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU)
    before = threading.active_count()
    release, asked = threading.Event(), threading.Event()

    def hook(method: str, path: str, token: str) -> None:
        if not asked.is_set():
            asked.set()
            release.wait(30)

    with between(server, hook) as url:
        publisher = PlacementPublisher(PlacementReconciler(settings(url, {host: provider})))
        assert threading.active_count() == before + 1  # of the proxy
        publisher.publish([status_of(host, 8.0, 0.0)])
        assert asked.wait(30)
        publisher.publish([status_of(host, 100.0, 0.0)])
        publisher.publish([status_of(host, 64.0, 0.0)])
        publisher.close(0.01)
        release.set()
        publisher.close(30)
    assert ratio(server, provider) == 1.0


def test_capacity_that_falls_is_known_by_what_is_free() -> None:
    one = capacity_of("a", 8.0, 64.0)
    assert replace(one, cpu=None).is_lower_than(one) is False
    assert capacity_of("a", 7.9, 64.0).is_lower_than(one)
    assert capacity_of("a", 9.0, 63.0).is_lower_than(one)
    assert not capacity_of("a", 9.0, 64.0).is_lower_than(one)
