"""Which provider is which node, and which are left alone, on a real OpenStack Placement."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.publishers.placement.providers import host_of, matching_names
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import Skip
from tests.support.placement import Clock, between, capacity_of, settings
from tests.support.servers import PlacementServer, placement_server

AUTO = {"*": "auto"}
CPU = {"total": 8, "allocation_ratio": 1.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    with placement_server(tmp_path_factory.mktemp("placement")) as ours:
        yield ours


@pytest.fixture
def host() -> str:
    """A name that no other test has."""
    return f"c{uuid.uuid4().hex[:8]}"


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
    child = str(server.call("POST", "/resource_providers", {"name": host, "parent_provider_uuid": root})["uuid"])
    body = {"resource_provider_generation": 0, "inventories": {"VCPU": CPU}}
    server.call("PUT", f"/resource_providers/{child}/inventories", body)
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


# --- what is left alone -----------------------------------------------------------------------------------


def with_trait(server: PlacementServer, provider: str, trait: str) -> None:
    server.call("PUT", f"/traits/{trait}")
    path = f"/resource_providers/{provider}/traits"
    generation = server.call("GET", path)["resource_provider_generation"]
    server.call("PUT", path, {"traits": [trait], "resource_provider_generation": generation})


def in_aggregate(server: PlacementServer, provider: str, aggregate: str) -> None:
    path = f"/resource_providers/{provider}/aggregates"
    generation = server.call("GET", path)["resource_provider_generation"]
    server.call("PUT", path, {"aggregates": [aggregate], "resource_provider_generation": generation})


def test_providers_with_a_trait_or_in_an_aggregate_are_left_alone(server: PlacementServer, host: str) -> None:
    trait, aggregate = f"CUSTOM_{host.upper()}", str(uuid.uuid4())
    providers = [server.provider(f"{host}-{i}", VCPU=CPU) for i in range(3)]
    with_trait(server, providers[0], trait)
    in_aggregate(server, providers[1], aggregate)
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
    with_trait(server, provider, trait)
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


class OpenStack:
    """Keystone's tokens and catalogue, and nova's host aggregates."""

    def __init__(self, placement: str) -> None:
        self.aggregates: list[Any] = []
        ours = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("/os-aggregates"):
                    ours.versions.append(self.headers.get("OpenStack-API-Version"))
                    self.send({"aggregates": ours.aggregates})
                else:
                    links = [{"rel": "self", "href": f"{ours.url}/v3"}]
                    self.send({"version": {"id": "v3.14", "status": "stable", "links": links}})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                endpoints = {"placement": placement, "compute": f"{ours.url}/v2.1"}
                catalog = [
                    {
                        **{"type": kind, "name": kind, "id": kind},
                        "endpoints": [{"interface": "public", "region": "one", "region_id": "one", "url": url}],
                    }
                    for kind, url in endpoints.items()
                ]
                user = {"id": "u", "name": "u", "domain": {"id": "d", "name": "D"}}
                times = {"expires_at": "2999-01-01T00:00:00.000000Z", "issued_at": "2020-01-01T00:00:00.000000Z"}
                self.send({"token": {"methods": ["password"], "user": user, **times, "catalog": catalog}}, 201)

            def send(self, body: Any, status: int = 200) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("X-Subject-Token", "admin")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.versions: list[str | None] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_metadata_of_host_aggregates_leaves_their_providers_alone(server: PlacementServer, host: str) -> None:
    from model.common.environment import Environment
    from model.publishers.settings import placement_settings

    aggregate = str(uuid.uuid4())
    pinned, shared = server.provider(f"{host}-0", VCPU=CPU), server.provider(f"{host}-1", VCPU=CPU)
    in_aggregate(server, pinned, aggregate)
    with contextlib.closing(OpenStack(server.url)) as cloud:
        cloud.aggregates = [
            {"uuid": aggregate, "metadata": {"pinned": "true"}},
            {"uuid": str(uuid.uuid4()), "metadata": {"pinned": "false"}},
        ]
        environment = Environment(
            {
                **{"PLACEMENT_PROVIDERS": "auto", "PLACEMENT_SKIP": "pinned=true", "OS_AUTH_URL": f"{cloud.url}/v3"},
                **{"OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
                "PLACEMENT_STATE_PATH": "/nowhere/at/all.json",
            }
        )
        read = placement_settings(environment, 1800.0)
        assert read is not None
        assert not environment.faults
        done = PlacementReconciler(read).publish([capacity_of(f"{host}-{i}", 16.0, None) for i in range(2)])
        assert (done.skipped, done.updated) == ((f"{host}-0",), (f"{host}-1",))
        assert cloud.versions == ["compute 2.41"]
    assert (ratio(server, pinned), ratio(server, shared)) == (1.0, 2.0)


def test_other_classes_and_providers_inside_are_untouched(server: PlacementServer, host: str) -> None:
    vgpu = {"total": 4, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 1.0}
    root = server.provider(host, VCPU=CPU, PCPU={**vgpu, "total": 2}, VGPU=vgpu)
    child = str(
        server.call("POST", "/resource_providers", {"name": f"{host}_gpu", "parent_provider_uuid": root})["uuid"]
    )
    server.call(
        "PUT",
        f"/resource_providers/{child}/inventories",
        {"resource_provider_generation": 0, "inventories": {"VGPU": vgpu}},
    )
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
