"""Which provider is which node, and which are left alone, on a real OpenStack Placement."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest

from model.common.environment import Environment
from model.publishers.placement.providers import host_of, matching_names
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import Skip, placement_settings
from tests.support.placement import MEM, NODE, Clock, FakeKeystone, between, capacity_of, ratios, settings
from tests.support.servers import PlacementServer

AUTO = {"*": "auto"}
CPU = {"total": 8, "allocation_ratio": 1.0}


def ratio(server: PlacementServer, provider: str) -> float:
    return float(server.inventories(provider)["VCPU"]["allocation_ratio"])


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("http://{}.example.org:9100/metrics", "{}.example.org"),
        ("http://{}.example.org:9100/metrics", "{}"),
        ("http://{}:9100/metrics", "{}.example.org"),
        ("http://{}:9100/metrics", "{}"),
        ("https://user@{}.EXAMPLE.org/", "{}.example.org"),
        ("{}.example.org:9100", "{}.example.org"),
        ("{}", "{}.example.org"),
    ],
)
def test_provider_is_found_by_the_host_name(server: PlacementServer, host: str, node: str, name: str) -> None:
    provider, node = server.provider(name.format(host), VCPU=CPU), node.format(host)
    server.provider(f"{host}0", VCPU=CPU)
    done = PlacementReconciler(settings(server.url, AUTO)).publish([capacity_of(node, 16.0, None)])
    assert done.updated == (node,)
    assert ratio(server, provider) == 2.0


@pytest.mark.parametrize(
    ("host", "names", "found"),
    [
        ("c1.a.org", ["c1.b.org", "c11", "xc1"], []),
        ("c1", ["c1.a.org", "c1.b.org"], ["c1.a.org", "c1.b.org"]),
        ("c1", ["c1", "c1.a.org"], ["c1"]),
        ("c1.a.org", ["c1", "c1.a.org"], ["c1.a.org"]),
        ("10.0.0.7", ["10", "10.0.0.70", "10.example.org"], []),
        ("10.0.0.7", ["10.0.0.7"], ["10.0.0.7"]),
        ("fe80::1", ["fe80::1"], ["fe80::1"]),
        ("c1", ["C1.Example.org"], ["C1.Example.org"]),
    ],
)
def test_names_match_whole_or_without_their_domain(host: str, names: list[str], found: list[str]) -> None:
    assert matching_names(host, names) == found


@pytest.mark.parametrize(
    ("node", "host"),
    [
        ("http://C1.example.org:9100/metrics", "c1.example.org"),
        ("http://[fe80::1]:9100/", "fe80::1"),
        ("c1:9100", "c1"),
        ("C1", "c1"),
        ("http://", "http://"),
    ],
)
def test_host_is_that_of_the_url_or_the_node_itself(node: str, host: str) -> None:
    assert host_of(node) == host


def test_unclear_nodes_are_left_alone_and_named(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    first, second = (server.provider(f"{host}.{domain}", VCPU=CPU) for domain in ("a", "b"))
    one = server.provider(f"{host}x", VCPU=CPU)
    nodes = [f"http://{host}/", f"http://{host}x.a/", f"http://{host}x.b/", f"http://{host}y/"]
    reconciler = PlacementReconciler(settings(server.url, AUTO))
    done = reconciler.publish([capacity_of(node, 16.0, None) for node in nodes])
    assert done.failed[nodes[0]] == "ambiguous"
    assert sorted(done.failed.get(node, "ok") for node in nodes[1:3]) == ["duplicate", "ok"]
    assert done.failed[nodes[3]] == "missing"
    assert (ratio(server, first), ratio(server, second), ratio(server, one)) == (1.0, 1.0, 2.0)
    texts = [record.getMessage() for record in event_log.records]
    assert f"{nodes[0]}: the host name {host} fits {host}.a and {host}.b" in texts
    assert f"{nodes[3]}: no resource provider has the host name {host}y" in texts


def test_provider_inside_of_another_is_never_taken(server: PlacementServer, host: str) -> None:
    root = server.provider(f"{host}-root", VCPU=CPU)
    child = server.provider(host, root, VCPU=CPU)
    done = PlacementReconciler(settings(server.url, AUTO)).publish([capacity_of(host, 16.0, None)])
    assert done.failed == {host: "missing"}
    assert ratio(server, child) == 1.0


def test_provider_that_appears_or_is_made_anew_is_found_by_the_next_look(server: PlacementServer, host: str) -> None:
    clock = Clock()
    reconciler = PlacementReconciler(settings(server.url, AUTO), clock)
    assert reconciler.publish([capacity_of(host, 16.0, None)]).failed == {host: "missing"}
    for _ in range(2):
        provider = server.provider(host, VCPU=CPU)
        clock.now_s += 100
        assert reconciler.poll().updated == (host,)
        assert ratio(server, provider) == 2.0
        server.call("DELETE", f"/resource_providers/{provider}")


def test_exceptions_are_listed_and_the_list_of_providers_is_read_once(server: PlacementServer, host: str) -> None:
    providers = {f"{host}-{i}": server.provider(f"{host}-{i}", VCPU=CPU) for i in range(40)}
    other = server.provider(f"{host}-other", VCPU=CPU)
    requests: list[str] = []
    mapping = {**AUTO, f"{host}-0": f"{host}-other"}
    with between(server, lambda method, path, token: requests.append(path)) as url:
        reconciler = PlacementReconciler(settings(url, mapping))
        done = reconciler.publish([capacity_of(node, 16.0, None) for node in providers])
    assert set(done.updated) == set(providers)
    assert ratio(server, other) == 2.0
    assert ratio(server, providers[f"{host}-0"]) == 1.0
    assert requests.count("/resource_providers") == 1
    # Without "*" nodes that are not listed are not published.
    listed = PlacementReconciler(settings(server.url, {f"{host}-0": "auto"}))
    assert listed.publish([capacity_of(node, 16.0, None) for node in providers]).updated == (f"{host}-0",)


# --- names and UUIDs that are configured --------------------------------------------------------------------------------


def test_provider_is_looked_up_by_name_once(server: PlacementServer, host: str) -> None:
    odd = f"{host} & ü/#?"
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


def test_renamed_provider_is_found_by_its_uuid(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: host}))
    placement.publish([capacity_of(NODE, 12.0, 12000.0)])
    server.call("PUT", f"/resource_providers/{provider}", {"name": f"{host}-new"})
    placement.publish([capacity_of(NODE, 16.0, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)


def test_recreated_provider_is_found_by_its_name(server: PlacementServer, host: str) -> None:
    placement = PlacementReconciler(settings(server.url, {NODE: host}))
    for cores in (12.0, 16.0):
        provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
        assert placement.publish([capacity_of(NODE, cores, None)]).updated == (NODE,)
        assert ratios(server, provider)[0] == cores / 8
        server.call("DELETE", f"/resource_providers/{provider}")
    assert placement.publish([capacity_of(NODE, 12.0, None)]).failed == {NODE: "missing"}


def test_two_nodes_with_one_provider_are_an_error(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {"a": provider, "b": host}))
    done = placement.publish([capacity_of("a", 12.0, None), capacity_of("b", 16.0, None)])
    assert list(done.failed.values()) == ["duplicate"]
    assert len(done.updated) == 1


# --- what is left alone -----------------------------------------------------------------------------------


def test_providers_with_a_trait_or_in_an_aggregate_are_left_alone(server: PlacementServer, host: str) -> None:
    trait, aggregate = f"CUSTOM_{host.upper()}", str(uuid.uuid4())
    providers = [server.provider(f"{host}-{i}", VCPU=CPU) for i in range(3)]
    server.set_traits(providers[0], trait)
    server.set_aggregates(providers[1], aggregate)
    skips = (Skip(trait=trait), Skip(aggregate=aggregate), Skip(trait="CUSTOM_NOBODY_HAS_IT"))
    reconciler = PlacementReconciler(settings(server.url, AUTO, skips=skips))
    done = reconciler.publish([capacity_of(f"{host}-{i}", 16.0, None) for i in range(3)])
    assert (done.skipped, done.updated) == ((f"{host}-0", f"{host}-1"), (f"{host}-2",))
    assert [ratio(server, provider) for provider in providers] == [1.0, 1.0, 2.0]
    assert reconciler.counts().nodes == {"kept": 1, "skipped": 2, "failed": 0}


def test_trait_that_is_added_counts_after_five_minutes(server: PlacementServer, host: str) -> None:
    trait, clock = f"CUSTOM_{host.upper()}", Clock()
    provider = server.provider(host, VCPU=CPU)
    reconciler = PlacementReconciler(settings(server.url, AUTO, skips=(Skip(trait=trait),)), clock)
    assert reconciler.publish([capacity_of(host, 16.0, None)]).updated == (host,)
    server.set_traits(provider, trait)
    clock.now_s += 299
    assert reconciler.publish([capacity_of(host, 24.0, None)]).updated == (host,)
    clock.now_s += 2
    assert reconciler.publish([capacity_of(host, 32.0, None)]).skipped == (host,)
    assert ratio(server, provider) == 3.0


def test_nothing_is_written_before_it_is_known_what_is_left_alone(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider, clock, answers = server.provider(host, VCPU=CPU), Clock(), {"status": 503}

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return (answers["status"], "{}") if path.startswith("/traits/") and answers["status"] else None

    with between(server, hook) as url:
        reconciler = PlacementReconciler(settings(url, AUTO, skips=(Skip(trait="CUSTOM_X"),)), clock)
        assert reconciler.publish([capacity_of(host, 16.0, None)]).failed == {host: "server"}
        assert ratio(server, provider) == 1.0
        assert event_log.records[-1].getMessage() == "Placement: PLACEMENT_SKIP: HTTP status 503"
        answers["status"] = 0
        clock.now_s += 100
        assert reconciler.poll().updated == (host,)
        # Later, what was found last counts.
        answers["status"] = 503
        clock.now_s += 400
        assert reconciler.publish([capacity_of(host, 24.0, None)]).updated == (host,)


def test_metadata_of_host_aggregates_leaves_their_providers_alone(
    server: PlacementServer, keystone: FakeKeystone, host: str
) -> None:
    aggregate = str(uuid.uuid4())
    pinned, shared = server.provider(f"{host}-0", VCPU=CPU), server.provider(f"{host}-1", VCPU=CPU)
    server.set_aggregates(pinned, aggregate)
    keystone.catalog = server.url
    keystone.aggregates = [
        {"uuid": aggregate, "metadata": {"pinned": "true"}},
        {"uuid": str(uuid.uuid4()), "metadata": {"pinned": "false"}},
    ]
    environment = Environment(
        {
            **{"PLACEMENT_PROVIDERS": "auto", "PLACEMENT_SKIP": "pinned=true", "OS_AUTH_URL": keystone.url},
            **{"OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
            "PLACEMENT_STATE_PATH": "/nowhere/at/all.json",
        }
    )
    read = placement_settings(environment, 1800.0)
    assert read is not None
    assert not environment.faults
    done = PlacementReconciler(read).publish([capacity_of(f"{host}-{i}", 16.0, None) for i in range(2)])
    assert (done.skipped, done.updated) == ((f"{host}-0",), (f"{host}-1",))
    assert keystone.asked == 1
    assert (ratio(server, pinned), ratio(server, shared)) == (1.0, 2.0)


def test_other_classes_and_providers_inside_are_untouched(server: PlacementServer, host: str) -> None:
    vgpu = {"total": 4, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 1.0}
    root = server.provider(host, VCPU=CPU, PCPU={**vgpu, "total": 2}, VGPU=vgpu)
    child = server.provider(f"{host}_gpu", root, VGPU=vgpu)
    before = server.inventories(root), server.call("GET", f"/resource_providers/{child}")
    assert PlacementReconciler(settings(server.url, AUTO)).publish([capacity_of(host, 18.0, None)]).updated == (host,)
    after = server.inventories(root)
    assert {name: after[name] for name in ("PCPU", "VGPU")} == {name: before[0][name] for name in ("PCPU", "VGPU")}
    assert server.call("GET", f"/resource_providers/{child}") == before[1]
    assert after["VCPU"]["allocation_ratio"] == 2.0


def test_unwritable_state_file_is_one_line_and_ratios_are_written(
    server: PlacementServer, host: str, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(host, VCPU=CPU)
    (tmp_path / "file").write_text("")
    event_log.set_level(logging.WARNING)
    config = settings(server.url, AUTO, state_path=tmp_path / "file" / "placement.json")
    reconciler = PlacementReconciler(config)
    for cores in (16.0, 24.0):
        assert reconciler.publish([capacity_of(host, cores, None)]).updated == (host,)
    assert ratio(server, provider) == 3.0
    problems = [record.getMessage() for record in event_log.records]
    assert len([one for one in problems if "cannot be written" in one]) == 1
