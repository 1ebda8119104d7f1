"""What the tests of Placement share: capacities, settings, allocations, and a proxy before the real server."""

from __future__ import annotations

import contextlib
import http.server
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from model.publishers.placement.ratio import NodeCapacity, ResourceCapacity
from model.publishers.settings import PlacementSettings, Token
from tests.support.servers import PlacementServer

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


Hook = Callable[[str, str, str], "tuple[int, str] | None"]


def settings(url: str, providers: dict[str, str], **others: Any) -> PlacementSettings:
    return PlacementSettings(
        **{
            **{"providers": providers, "login": Token(url, "admin"), "ca_file": ""},
            **{"timeout_s": 20.0, "round_timeout_s": 120.0, "least_ratio": 1.0, "most_ratio": 16.0},
            **others,
        }
    )


def place(server: PlacementServer, provider: str, vcpus: int, memory_mb: int) -> str:
    """Allocate for a new consumer, as nova does; empty when Placement refuses it."""
    consumer = str(uuid.uuid4())
    resources = {"VCPU": vcpus, "MEMORY_MB": memory_mb}
    about = {"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"}
    try:
        body = {"allocations": {provider: {"resources": resources}}, **about}
        server.call("PUT", f"/allocations/{consumer}", body)
    except urllib.error.HTTPError as error:
        assert error.code == 409
        return ""
    return consumer


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
