"""What the tests of the publisher of Placement share: capacities, settings, a clock, a proxy, Keystone and nova."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from model.common.environment import Environment
from model.publishers.placement.check import check_placement
from model.publishers.placement.ratio import NodeCapacity, ResourceCapacity
from model.publishers.settings import Keystone, PlacementSettings, Token, placement_settings
from model.publishers.status_file import PublishedNode
from tests.support.servers import PlacementServer

#: A node whose provider the tests configure.
NODE = "http://w1:9100/metrics"
#: Every field differs from its default in a PUT.
CPU = {"total": 10, "reserved": 2, "min_unit": 2, "max_unit": 6, "step_size": 2, "allocation_ratio": 3.0}
MEM = {"total": 9000, "reserved": 1000, "min_unit": 64, "max_unit": 4096, "step_size": 64, "allocation_ratio": 1.25}
OTHERS = {
    "PCPU": {"total": 4, "reserved": 4, "min_unit": 1, "max_unit": 4, "step_size": 1, "allocation_ratio": 1.0},
    "DISK_GB": {"total": 99, "reserved": 7, "min_unit": 3, "max_unit": 90, "step_size": 3, "allocation_ratio": 1.7},
}

#: Takes method, path and token of a request; a status and a body replace the server's response.
Hook = Callable[[str, str, str], "tuple[int, str] | None"]

#: Larger than any inventory of the tests, and entirely in use: nothing of it is outside of an inventory.
_LARGE = 2.0**40


def resource_capacity(
    free: float,
    booked_now: float = 0.0,
    *,
    config: float = _LARGE,
    own: float = _LARGE,
    figures_s: float = 60.0,
) -> ResourceCapacity:
    """One resource of a node whose size does not matter, unless it is given."""
    return ResourceCapacity(free, booked_now, config, own, figures_s)


def capacity_of(
    node: str,
    free_cpu: float | None,
    free_mem: float | None,
    booked_cpu: float = 0.0,
    booked_mem: float = 0.0,
    figures_s: float = 60.0,
) -> NodeCapacity:
    """A node whose size does not matter; None for a resource that was never measured."""
    pairs = ((free_cpu, booked_cpu), (free_mem, booked_mem))
    cpu, mem = (
        None if free is None else resource_capacity(free, booked, figures_s=figures_s) for free, booked in pairs
    )
    return NodeCapacity(node, cpu, mem)


def at(capacity: NodeCapacity, figures_s: float) -> NodeCapacity:
    """The same figures, at the end of another slice."""
    cpu, mem = (one and replace(one, figures_s=figures_s) for one in (capacity.cpu, capacity.mem))
    return NodeCapacity(capacity.node, cpu, mem)


def from_environment(**values: str) -> PlacementSettings:
    """The settings of Placement that an environment gives, without faults."""
    environment = Environment(values)
    read = placement_settings(environment, 1800.0)
    assert not environment.faults
    assert read is not None
    return read


def settings(url: str, providers: dict[str, str], **others: Any) -> PlacementSettings:
    """Settings with a fixed token; no ratio falls below 1.0 or exceeds 16.0."""
    return PlacementSettings(
        **{
            **{"providers": providers, "login": Token(url, "admin"), "ca_file": ""},
            **{"timeout_s": 20.0, "round_timeout_s": 120.0, "least_ratio": 1.0, "most_ratio": 16.0},
            **others,
        }
    )


def ratios(server: PlacementServer, provider: str) -> tuple[float, float]:
    """The ratios of VCPU and of MEMORY_MB."""
    written = server.inventories(provider)
    return written["VCPU"]["allocation_ratio"], written["MEMORY_MB"]["allocation_ratio"]


def check(
    config: PlacementSettings,
    nodes: Sequence[str] | None = None,
    published: Mapping[str, PublishedNode] = MappingProxyType({}),
) -> list[tuple[str, bool, str]]:
    """The rows of ``--check``; by default the nodes of the estimator are those of the settings."""
    return list(check_placement(config, list(config.providers) if nodes is None else nodes, published))


def generation(server: PlacementServer, provider: str) -> int:
    """It grows with every write to the provider's inventories, allocations, traits and aggregates."""
    return int(server.call("GET", f"/resource_providers/{provider}")["generation"])


def place(server: PlacementServer, provider: str, vcpus: int, memory_mb: int = 0, **others: int) -> str:
    """Allocate for a new consumer, as nova does; empty when Placement refuses it.

    Parameters
    ----------
    server : PlacementServer
    provider : str
        UUID.
    vcpus, memory_mb : int
    **others : int
        Amounts of further resource classes.
    """
    consumer = str(uuid.uuid4())
    resources = {"VCPU": vcpus, "MEMORY_MB": memory_mb, **others}
    body = {
        "allocations": {provider: {"resources": {kind: amount for kind, amount in resources.items() if amount}}},
        **{"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"},
    }
    try:
        server.call("PUT", f"/allocations/{consumer}", body)
    except urllib.error.HTTPError as error:
        assert error.code == 409
        return ""
    return consumer


def leave(server: PlacementServer, consumer: str) -> None:
    """Delete the allocation of a consumer."""
    server.call("DELETE", f"/allocations/{consumer}")


def fill(server: PlacementServer, provider: str, vcpus: int = 1) -> int:
    """Place VMs until Placement refuses one; how many it let in."""
    placed = 0
    while place(server, provider, vcpus):
        placed += 1
    return placed


def allocate(server: PlacementServer, provider: str) -> None:
    """Create and delete an allocation; both increase the generation."""
    leave(server, place(server, provider, 2))


def set_ratio(server: PlacementServer, provider: str, ratio: float, resource: str = "VCPU") -> None:
    """Write a ratio as another process does."""
    body = server.call("GET", f"/resource_providers/{provider}/inventories")
    body["inventories"][resource]["allocation_ratio"] = ratio
    server.call("PUT", f"/resource_providers/{provider}/inventories", body)


def lines_of(log: pytest.LogCaptureFixture) -> list[str]:
    """The messages that were logged."""
    return [record.getMessage() for record in log.records]


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.contextmanager
def between(server: PlacementServer, hook: Hook) -> Iterator[str]:
    """The URL of a proxy in front of the server; a response of the hook replaces the server's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = hook(self.command, self.path, self.headers.get("X-Auth-Token", "")) or self.forward(body)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815  # names of the library's

        def forward(self, body: bytes) -> tuple[int, str]:
            names = ("X-Auth-Token", "OpenStack-API-Version", "Content-Type")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = urllib.request.Request(server.url + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        def log_message(self, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


class FakeKeystone:
    """Keystone, reduced to tokens and the catalogue, and nova's list of host aggregates on the same port.

    Attributes
    ----------
    catalog : str
        URL of Placement; it is in region "one" only.
    aggregates : list of dict
        What nova lists: ``uuid`` and ``metadata``.
    nova_status : int
        HTTP status of nova's responses.
    asked : int
        How often the aggregates were listed.
    """

    def __init__(self) -> None:
        self.catalog = ""
        self.logins: list[Any] = []
        self.status = 201
        self.tokens = ["admin"]
        self.aggregates: list[dict[str, Any]] = []
        self.nova_status = 200
        self.asked = 0
        keystone = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/compute"):
                    assert self.headers["OpenStack-API-Version"] == "compute 2.41"
                    keystone.asked += 1
                    self.send(keystone.nova_status, {"aggregates": keystone.aggregates})
                    return
                here = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": keystone.url}]}
                self.send(200, {"version": here})

            def do_POST(self) -> None:
                keystone.logins.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                token = {
                    **{"methods": ["password"], "user": {"id": "u", "name": "u", "domain": {"id": "d", "name": "D"}}},
                    **{"expires_at": "2999-01-01T00:00:00.000000Z", "issued_at": "2020-01-01T00:00:00.000000Z"},
                    "catalog": [
                        self.service("placement", keystone.catalog),
                        self.service("compute", keystone.url.replace("/v3", "/compute/v2.1")),
                    ],
                }
                subject = keystone.tokens[min(len(keystone.logins), len(keystone.tokens)) - 1]
                self.send(keystone.status, {"token": token}, subject)

            def service(self, kind: str, url: str) -> dict[str, Any]:
                endpoint = {"interface": "public", "region": "one", "region_id": "one", "url": url}
                return {"type": kind, "name": kind, "id": kind, "endpoints": [endpoint]}

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

        self._listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listening.server_address[1]}/v3"
        threading.Thread(target=self._listening.serve_forever, daemon=True).start()

    def login(self, password: str = "s3cr3t") -> Keystone:
        """Credentials for it."""
        options = {
            **{"auth_url": self.url, "username": "u", "password": password, "project_name": "p"},
            **{"user_domain_name": "Default", "project_domain_name": "Default"},
        }
        return Keystone("password", options, "one", "public", "")

    def close(self) -> None:
        """Stop listening."""
        self._listening.shutdown()
        self._listening.server_close()
