"""What guards left is published: status file, table, page, metrics and the capacity for Placement."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from model.publishers.placement.bookings import CountedBookings
from model.publishers.placement.ratio import RatioLimits, capacities_of, update_inventories
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import encode, read_status
from model.publishers.status_page.history import Snapshot
from model.publishers.status_page.page import PageSettings, build_page
from model.publishers.status_page.query import Query
from model.publishers.status_table import status_objects, status_table
from model.slices import CPU, MEMORY
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import strict_json

#: 64 cores, 80 booked now; 30.1 free without guards.
LIMITED = Figures(
    *(64.0, 90.0, 80.0, 33.9, 0.0, 30.1, 7.5, 60.0),
    violation_rate=0.04,
    unguarded=30.1,
    limits={"horizon": 10.2, "ramp": 7.5},
)
#: 8 GB, 10 GB booked now; less than nothing free.
CLOSED = Figures(
    *(8192.0, 10240.0, 10240.0, 8192.0, 0.0, 0.0, 0.0, 60.0),
    violation_rate=0.11,
    unguarded=512.0,
    closed=True,
    limits={"young": 100.0, "node": -1.0},
)
WHY_CPU, WHY_MEM = "30.1: horizon 10.2, ramp 7.5", "0.5: young 0.1, node 0.0, closed"


def node(cpu: Figures = LIMITED, mem: Figures = CLOSED, name: str = "n1") -> NodeStatus:
    return NodeStatus(name, "nsigma", 60.0, ResourceStatus("ok", cpu), ResourceStatus("ok", mem))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


def write(path: Path, *statuses: NodeStatus) -> None:
    path.write_bytes(encode(statuses, 90.0))


# --- status file --------------------------------------------------------------------------------------


def test_status_file_has_what_guards_left_and_both_violation_rates(path: Path) -> None:
    write(path, node(replace(LIMITED, risk=0.05, forecast_violation_rate=0.02)))
    fields = strict_json(path.read_bytes())["n1"]
    assert fields["free_cpu"] == 7.5
    written = {
        name: fields["cpu"][name] for name in ("unguarded", "closed", "realised_risk", "forecast_violation_rate")
    }
    assert written == {
        "unguarded": 30.1,
        "closed": False,
        "realised_risk": 0.04,
        "forecast_violation_rate": 0.02,
    }
    assert list(fields["cpu"]["limits"].items()) == [("horizon", 10.2), ("ramp", 7.5)]
    assert (fields["mem"]["closed"], fields["mem"]["limits"]["node"]) == (True, -1.0)
    assert "forecast_violation_rate" not in fields["mem"]
    cpu, mem = (read_status(path)["n1"].of(resource)[1] for resource in (CPU, MEMORY))
    assert (cpu.unguarded, cpu.closed, cpu.violation_rate, cpu.forecast_violation_rate) == (30.1, False, 0.04, 0.02)
    assert (mem.limits, mem.forecast_violation_rate) == ({"young": 100.0, "node": -1.0}, None)


def test_stale_resource_keeps_closed_and_no_limits_of_an_earlier_slice(path: Path) -> None:
    write(path, node().aged(120.0))
    fields = strict_json(path.read_bytes())["n1"]
    assert fields["mem"]["closed"] is True
    assert not {"limits", "unguarded"} & {*fields["cpu"], *fields["mem"]}
    assert status_objects(read_status(path), 130.0)[0]["mem"]["ratio"] == 1.0


# --- table --------------------------------------------------------------------------------------------


def shown(path: Path, *statuses: NodeStatus, **options: Any) -> str:
    write(path, *statuses)
    stream = io.StringIO()
    Console(file=stream, width=250).print(status_table(read_status(path), 60.0, **options))
    return stream.getvalue()


def test_table_shows__wide_terminals_and_closed_on_all(path: Path) -> None:
    wide, narrow = shown(path, node()), shown(path, node(), brief=True, guards=False)
    assert WHY_CPU in wide
    assert WHY_MEM in wide
    assert "horizon" not in narrow
    for text in (wide, narrow):
        row = text.splitlines()[-1].split()
        # 80 + 7.5 of 64; closed: what the node has.
        assert row[:5] == ["n1", "ok", "7.5", "closed", "1.37"]
        assert "1.00" in row
        assert "- (4%)" in text
        assert "- (11%)" in text


# --- status page --------------------------------------------------------------------------------------


def test_ratio_of_all_nodes_counts_a_closed_one_with_what_it_has() -> None:
    statuses = (node(), node(name="n2"))
    totals = build_page(PageSettings(60.0, 90.0), Snapshot(statuses), Query(), 60.0).totals
    assert [one.ratio for one in totals] == ["1.37", "1.00"]


# --- metrics ------------------------------------------------------------------------------------------


def test_metrics_have_what_guards_left_and_both_violation_rates() -> None:
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts())
    metrics.publish([node(replace(LIMITED, forecast_violation_rate=0.02))])
    lines = [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    for line in (
        'unguarded_free_cpu_cores{node="n1"} 30.1',
        'guard_left_cpu_cores{guard="horizon",node="n1"} 10.2',
        'guard_left_cpu_cores{guard="ramp",node="n1"} 7.5',
        'guard_left_memory_bytes{guard="node",node="n1"} 0.0',
        'cpu_closed{node="n1"} 0.0',
        'memory_closed{node="n1"} 1.0',
        'cpu_violation_ratio{node="n1"} 0.04',
        'cpu_risk_realised_ratio{node="n1"} 0.04',
        'cpu_forecast_violation_ratio{node="n1"} 0.02',
        'memory_oversubscription_ratio{node="n1"} 1.0',
    ):
        assert f"scroogevm_node_{line}" in lines
    assert not [line for line in lines if "memory_forecast" in line]
    metrics.publish([node().aged(120.0)])
    lines = generate_latest(registry).decode().splitlines()
    assert not [line for line in lines if line.startswith("scroogevm_node_unguarded")]
    assert not [line for line in lines if line.startswith("scroogevm_node_guard_limit")]


# --- Placement ----------------------------------------------------------------------------------------


def test_capacity_of_a_closed_resource_is_at_most_what_the_node_has() -> None:
    (capacity,), (stale,) = capacities_of([node()]), capacities_of([node().aged(120.0)])
    assert capacity.cpu is not None
    assert (capacity.cpu.free, capacity.cpu.booked_now) == (7.5, 80.0)
    assert stale.cpu is not None
    assert (stale.cpu.free, stale.cpu.booked_now) == (0.0, 80.0)
    for one in (capacity, stale):
        assert one.mem is not None
        assert (one.mem.free, one.mem.booked_now) == (0.0, 8192.0)


@pytest.mark.parametrize(
    ("allocated", "expected"),
    [
        (12.0, 1.0),  # the node has 8: nothing fits until less than 8 are allocated
        (8.0, 1.0),
        (5.0, 0.625),
        (0.0, 0.0001),
    ],
)
def test_closed_node_offers_no_more_than_it_has_and_than_is_allocated(allocated: float, expected: float) -> None:
    inventories = {"VCPU": {"total": 8, "reserved": 0, "allocation_ratio": 4.0}}
    figures = Figures(8.0, 12.0, 12.0, 8.0, 0.0, 0.0, 0.0, 60.0, closed=True)
    (capacity,) = capacities_of([NodeStatus("n", "nsigma", 60.0, ResourceStatus("ok", figures))])
    booked = CountedBookings().count(capacity, {"VCPU": allocated})
    for least in (0.0001, 1.0):
        update = update_inventories(inventories, booked, capacity, RatioLimits(least, 16.0))
        assert update.inventories["VCPU"]["allocation_ratio"] == max(expected, least)
