"""Rows of ``--check`` about OpenStack Placement."""

from __future__ import annotations

from tests.support.placement import (
    CPU,
    NODE,
    check,
    generation,
    settings,
)
from tests.support.servers import PlacementServer


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
