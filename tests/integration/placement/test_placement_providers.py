"""Which resource provider belongs to a node, and which are left alone."""

from __future__ import annotations

from model.publishers.placement.reconciler import PlacementReconciler
from tests.support.placement import (
    CPU,
    MEM,
    NODE,
    between,
    capacity_of,
    ratios,
    settings,
)
from tests.support.servers import PlacementServer


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
