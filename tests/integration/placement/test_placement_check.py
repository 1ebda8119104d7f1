"""The rows of ``--check``, and the ratios of a scan, from a real OpenStack Placement."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from model.publishers.placement.check import check_placement, present_ratios
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import PlacementSettings, Skip, StatusFileSettings
from model.publishers.status_file import PublishedNode, StatusFile, read_status
from model.status import Figures, NodeStatus, ResourceStatus
from tests.support.placement import CPU, NODE, capacity_of, check, generation, place, set_ratio, settings
from tests.support.servers import PlacementServer, free_port

AUTO = {"*": "auto"}
#: In the order in which rows are printed.
Row = tuple[bool, str]


def published(folder: Path, *nodes: str) -> Mapping[str, PublishedNode]:
    """Nodes of 32 cores and 64 GB with 20 vCPUs booked."""
    cpu = ResourceStatus("ok", Figures(32.0, 24.0, 20.0, 9.0, 0.0, 12.0, 12.0, 60.0))
    mem = ResourceStatus("ok", Figures(65536.0, 9000.0, 8192.0, 9.0, 0.0, 4096.0, 4096.0, 60.0))
    path = folder / "status.json"
    StatusFile(StatusFileSettings(path, 0o644, -1, -1), 60.0).publish(
        [NodeStatus(node, "clt", 60.0, cpu, mem) for node in nodes]
    )
    return read_status(path)


def rows(config: PlacementSettings, nodes: list[str], status: Mapping[str, PublishedNode]) -> dict[str, Row]:
    return {
        target.removeprefix("placement "): (ok, text) for target, ok, text in check_placement(config, nodes, status)
    }


def test_every_node_has_a_row_and_bad_ones_do_not_end_it(server: PlacementServer, host: str, tmp_path: Path) -> None:
    mem = {"total": 65536, "reserved": 4096}
    names = {part: f"{host}-{part}" for part in ("good", "pinned", "large", "nomem", "full", "none", "skipped")}
    good = server.provider(names["good"], VCPU={"total": 32, "reserved": 2, "allocation_ratio": 4.0}, MEMORY_MB=mem)
    place(server, good, 2, 1024)
    server.provider(names["pinned"], VCPU={"total": 8}, PCPU={"total": 24}, MEMORY_MB=mem)
    server.provider(names["large"], VCPU={"total": 40}, MEMORY_MB=mem)
    server.provider(names["nomem"], VCPU={"total": 32})
    server.provider(names["full"], VCPU={"total": 32, "reserved": 32}, MEMORY_MB=mem)
    skipped = server.provider(names["skipped"], VCPU={"total": 32}, MEMORY_MB=mem)
    aggregate = str(uuid.uuid4())
    server.set_aggregates(skipped, aggregate)
    nodes = list(names.values())
    config = settings(server.url, AUTO, skips=(Skip(aggregate=aggregate),))
    found = rows(config, nodes, published(tmp_path, *nodes))
    memory = "MEMORY_MB 65536 of 65536 MB, reserved 4096, ratio 1 not by ScroogeVM, used 0, booked 8192"
    unwritten = "ratio 1 not by ScroogeVM, used 0, booked 20"
    assert found.pop("placement") == (True, "OpenStack Placement, resource providers: 7")
    assert found == {
        names["good"]: (
            True,
            f"{names['good']}: VCPU 32 of 32 cores, reserved 2, ratio 4 not by ScroogeVM, used 2, booked 20; "
            + memory.replace("used 0", "used 1024"),
        ),
        names["pinned"]: (True, f"{names['pinned']}: VCPU 8 of 32 cores, PCPU 24, {unwritten}; {memory}"),
        names["large"]: (
            False,
            f"{names['large']}: VCPU 40 of 32 cores, {unwritten}, the inventory has 40, the node 32; the ratio is not "
            f"kept; {memory}",
        ),
        names["nomem"]: (False, f"{names['nomem']}: VCPU 32 of 32 cores, {unwritten}; no MEMORY_MB"),
        names["full"]: (
            False,
            f"{names['full']}: VCPU 32 of 32 cores, reserved 32, {unwritten}, reserved entirely; {memory}",
        ),
        names["none"]: (False, f"no resource provider has the host name {names['none']}"),
        names["skipped"]: (True, f"{names['skipped']}: left alone, {aggregate}"),
    }


def test_writer_of_a_ratio_is_named(server: PlacementServer, host: str, tmp_path: Path) -> None:
    provider = server.provider(host, VCPU={"total": 8}, MEMORY_MB={"total": 65536})
    config = settings(server.url, AUTO, state_path=tmp_path / "placement.json")
    PlacementReconciler(config).publish([capacity_of(host, 16.0, None)])
    _, text = rows(config, [host], {})[host]
    assert "VCPU 8, ratio 2 by ScroogeVM, 20" in text
    set_ratio(server, provider, 4.0)
    assert "ratio 4 by another process (ScroogeVM: 2)" in rows(config, [host], {})[host][1]


def test_node_that_is_not_estimated_is_named(server: PlacementServer, host: str) -> None:
    server.provider(host, VCPU={"total": 8}, MEMORY_MB={"total": 65536})
    ok, text = rows(settings(server.url, {host: host}), [], {})[host]
    assert not ok
    assert text.endswith("; the node is not in SCHED_NODES")


def test_service_that_is_down_is_one_row(host: str) -> None:
    config = settings(f"http://127.0.0.1:{free_port()}", AUTO)
    assert rows(config, [host, "b"], {}) == {"placement": (False, "Connection refused")}
    assert present_ratios(config, [host]) == ({}, ["Connection refused"])


def test_invalid_state_file_is_a_row_of_its_own(server: PlacementServer, host: str, tmp_path: Path) -> None:
    server.provider(host, VCPU={"total": 8}, MEMORY_MB={"total": 65536})
    path = tmp_path / "placement.json"
    path.write_text("{")
    found = list(check_placement(settings(server.url, AUTO, state_path=path), [host], {}))
    assert [ok for _, ok, _ in found] == [False, True, True]
    assert found[0][2].startswith(f"{path}: ")


def test_present_ratios_are_those_of_the_providers(server: PlacementServer, host: str) -> None:
    server.provider(
        host, VCPU={"total": 8, "allocation_ratio": 2.5}, MEMORY_MB={"total": 65536, "allocation_ratio": 1.5}
    )
    ratios, problems = present_ratios(settings(server.url, AUTO), [host, f"{host}-none"])
    assert ratios == {host: {"cpu": 2.5, "mem": 1.5}}
    assert problems == [f"{host}-none: no resource provider has the host name {host}-none"]


def test_check_does_not_write(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU)
    before = generation(server, provider)
    first, last = check(settings(server.url, {NODE: host}))
    assert first == (
        f"placement {NODE}",
        False,
        f"{host}: VCPU 10, reserved 2, ratio 3 not by ScroogeVM, used 0; no MEMORY_MB",
    )
    assert last == ("placement", True, "OpenStack Placement, resource providers: 1")
    assert generation(server, provider) == before
    rows = check(settings(server.url, {"other": f"{host}-nowhere", NODE: host}))
    assert rows[0] == ("placement other", False, f"no resource provider is named {host}-nowhere")
    assert rows[1] == first
