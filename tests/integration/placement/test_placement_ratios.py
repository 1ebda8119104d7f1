"""Ratios that are written to a real OpenStack Placement."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from typing import Any

import pytest

from model.common.environment import Environment
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import placement_settings
from tests.support.placement import (
    CPU,
    MEM,
    NODE,
    OTHERS,
    Clock,
    capacity_of,
    generation,
    ratios,
    settings,
)
from tests.support.servers import PlacementServer


def test_ratios_are_set_and_every_other_field_is_kept(server: PlacementServer, host: str) -> None:
    licence = {"total": 5, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 0.5}
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM, CUSTOM_LICENCE=licence, **OTHERS)
    done = PlacementReconciler(settings(server.url, {NODE: provider})).publish([capacity_of(NODE, 16.0, 12000.0)])
    assert (done.updated, done.unchanged, done.failed) == ((NODE,), (), {})
    # (16 - 4 dedicated) / (10 - 2) and 12000 / (9000 - 1000)
    assert server.inventories(provider) == {
        **{"VCPU": {**CPU, "allocation_ratio": 1.5}, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}},
        **{"CUSTOM_LICENCE": licence, **OTHERS},
    }


def test_resource_without_capacity_is_left_unchanged(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([capacity_of(NODE, 16.0, None)])
    assert ratios(server, provider) == (2.0, 1.25)
    placement.publish([capacity_of(NODE, None, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)
    assert placement.publish([capacity_of(NODE, None, None)]).unchanged == (NODE,)


def test_unchanged_ratio_is_not_written(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([capacity_of(NODE, 13.9, 9001.0)])
    before = generation(server, provider)
    done = placement.publish([capacity_of(NODE, 13.2, 9001.5)])
    assert (done.updated, done.unchanged) == ((), (NODE,))
    assert generation(server, provider) == before
    assert placement.counts().updates == 1


@pytest.mark.parametrize(("allowed", "expected"), [(False, (1.0, 1.0)), (True, (0.5, 0.0001))])
def test_ratio_below_one_needs_the_setting(
    server: PlacementServer, host: str, allowed: bool, expected: tuple[float, float]
) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
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
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}, most_ratio=4.0))
    for _ in range(3):
        placement.publish([capacity_of(NODE, 80.0, 16000.0)])
    assert ratios(server, provider) == (4.0, 2.0)
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: ratio 10 is limited to 4"]
    placement.publish([capacity_of(NODE, 16.0, 16000.0)])
    assert "VCPU: recovered" in event_log.records[-1].getMessage()


def test_changed_total_changes_the_ratio(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
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
    server: PlacementServer, host: str, inventories: Any, message: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(host, **inventories)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    for _ in range(2):
        assert not placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed
    written = server.inventories(provider)
    assert written == {**inventories, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}}
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: {message}"]


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0])
def test_invalid_capacity_is_not_written(server: PlacementServer, host: str, amount: float) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    PlacementReconciler(settings(server.url, {NODE: provider})).publish([capacity_of(NODE, amount, 12000.0)])
    assert ratios(server, provider) == (3.0, 1.5)


def test_placement_accepts_exactly_the_vcpus_of_the_capacity(server: PlacementServer, host: str) -> None:
    """Capacity 8 of 3 cores: the truncated ratio 2.6666 would accept 7."""
    provider = server.provider(host, VCPU={"total": 3})
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
