"""The scheduler of the demo: what it reads, what it starts, and its figures beside those of a simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from misc.closedloop import command
from misc.closedloop.demand import drawn_workload, given_workload
from misc.closedloop.loop import ClosedLoop, log_to
from misc.closedloop.published import read_published
from misc.fakeworkers.hosts import Host, Wanted
from misc.fakeworkers.machines import Plan
from model.publishers.status_file import StatusFileError
from model.simulation.fleet import FleetSize
from model.simulation.workload import Workload
from model.simulation.workload_file import WorkloadError, write_workload
from tests.support.worker_pages import NOW_MS

NAMES = ("http://node0", "http://node1")
SIZE = FleetSize(2, 16, 2**20)
STEPS, STEP_S = 6, 0.5
SLICES = 20


def resource(state: str, **figures: Any) -> dict[str, Any]:
    return {"state": state, "config": 16, "booked": 0.0, "tier0": 0.0, "tier1": 0.0, "tier2": 0.0} | figures


def publish(path: Path, nodes: dict[str, dict[str, Any]]) -> None:
    path.write_text(json.dumps(nodes))


def node(
    free: float = 4.0, booked_now: float = 8.0, state: str = "ok", valid_until: float = 100.0, **cpu: Any
) -> dict[str, Any]:
    figures = {"slice_end": 90.0, "valid_until": valid_until, "free_cpu": free, "free_mem": 0.0}
    own = resource(state, booked_now=booked_now, **cpu)
    return {"state": state, "strategy": "clt", **figures, "cpu": own, "mem": resource("stale", booked_now=0.0)}


# --- what is published --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "capacity"),
    [
        (node(), 12.0),
        (node(closed=False), 12.0),
        (node(closed=True), 0.0),
        (node(state="stale"), 0.0),
        (node(valid_until=99.0), 0.0),
        ({**node(), "slice_end": None, "valid_until": None}, 0.0),
    ],
    ids=["ok", "open", "closed", "stale", "outdated", "unknown"],
)
def test_capacity_is_booked_now_and_free_of_a_node_that_takes_vms(
    published: dict[str, Any], capacity: float, tmp_path: Path
) -> None:
    publish(tmp_path / "status.json", {NAMES[0]: published})
    assert read_published(tmp_path / "status.json")[NAMES[0]].capacity(99.5) == capacity


def test_nothing_is_published_before_there_is_a_file(tmp_path: Path) -> None:
    assert read_published(tmp_path / "status.json") == {}


def test_damaged_status_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(StatusFileError, match="not a status file"):
        read_published(tmp_path / "status.json")


# --- the VMs that arrive ------------------------------------------------------------------------------------


def drawn(seed: int = 1, slices: int = SLICES) -> Workload:
    return drawn_workload(2, 6.0, 24 * STEPS, slices * STEPS, STEP_S, seed)


def test_drawn_vms_depend_on_the_seed_and_want_more_than_there_is() -> None:
    one, same, other = drawn(), drawn(), drawn(seed=2)
    assert np.array_equal(one.create_s, same.create_s)
    assert np.array_equal(one.cpu.shares, same.cpu.shares)
    assert len(one) != len(other) or not np.array_equal(one.vcpu, other.vcpu)
    assert one.peak_vcpu() > 3 * 2 * 16
    assert one.steps == SLICES * STEPS
    assert 0 < one.cpu.shares.mean() < 0.5


def test_a_step_of_a_workload_file_takes_the_time_of_a_step_of_the_demo(tmp_path: Path) -> None:
    vms = [
        {"name": "a", "create_s": 0, "delete_s": None, "vcpu": 2, "memory_mb": 2048, "series": 0, "offset": 0},
        {"name": "b", "create_s": 700, "delete_s": 1500, "vcpu": 1, "memory_mb": 1024, "series": 0, "offset": 2},
    ]
    file = {"step_s": 300, "duration_s": 3000, "series": [{"cpu": [0.5, 0.25], "mem": [0.4]}], "vms": vms}
    (tmp_path / "w.json").write_text(json.dumps(file))
    read = given_workload(tmp_path / "w.json", steps=60, step_s=STEP_S)
    assert read.first_step.tolist() == [0, 2]
    assert read.end_step.tolist() == [61, 5]
    assert (read.step_s, read.steps) == (STEP_S, 60)


@pytest.mark.parametrize(
    ("vcpu", "memory_mb", "place"), [(0.5, 2048, r"vms\[0\]\.vcpu"), (1, 8, r"vms\[0\]\.memory_mb")]
)
def test_size_that_a_worker_cannot_have_is_an_error(vcpu: float, memory_mb: float, place: str, tmp_path: Path) -> None:
    vm = {"name": "a", "create_s": 0, "delete_s": None, "vcpu": vcpu, "memory_mb": memory_mb, "series": 0, "offset": 0}
    file = {"step_s": 300, "duration_s": 3000, "series": [{"cpu": [0.5], "mem": [0.4]}], "vms": [vm]}
    (tmp_path / "w.json").write_text(json.dumps(file))
    with pytest.raises(WorkloadError, match=place):
        given_workload(tmp_path / "w.json", steps=60, step_s=STEP_S)


# --- the loop -----------------------------------------------------------------------------------------------


class Run:
    """A loop over a workload, whose status file the test writes."""

    def __init__(self, folder: Path, workload: Workload, slices: int = SLICES) -> None:
        plan = Plan(workers=2, vms=0, format="labels", dialect="tinkoff", stats_period_s=0, other_metrics=0)
        self.path = folder / "status.json"
        self.hosts = [Host(plan, i, 16, 2**20, NOW_MS - 1000) for i in range(2)]
        self.lines: list[str] = []
        self.loop = ClosedLoop(
            workload,
            self.hosts,
            NAMES,
            SIZE,
            self.path,
            slices=slices,
            slice_steps=STEPS,
            warm_up=2,
            log=log_to(self.lines.append),
        )

    def steps(self, first: int, end: int, now_s: float = 50.0) -> None:
        for step in range(first, end):
            begin = NOW_MS + step * 500
            self.loop.run_step(step, begin, begin + 500, now_s)
            if (step + 1) % STEPS == 0:
                self.loop.end_slice(step // STEPS)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in map(json.loads, self.lines) if event["event"] in kinds]


def test_constant_capacity_gives_the_figures_of_the_simulated_ratio(tmp_path: Path) -> None:
    """The loop over pages and files, and the simulation, are the same loop."""
    run = Run(tmp_path, drawn())
    # In its first slice a simulation has the size of the nodes.
    publish(run.path, dict.fromkeys(NAMES, node(free=4.0, booked_now=12.0)))
    run.steps(0, STEPS)
    publish(run.path, dict.fromkeys(NAMES, node(free=40.0, booked_now=24.0)))
    run.steps(STEPS, SLICES * STEPS)
    live, simulated = asdict(run.loop.figures()), asdict(run.loop.figures_of_ratio(4.0))
    assert live == pytest.approx(simulated, nan_ok=True)
    assert live["sold"] > 3.5
    assert 0 < live["accepted"] < 1


def test_hosts_measure_what_the_fleet_uses(tmp_path: Path) -> None:
    run = Run(tmp_path, drawn())
    publish(run.path, dict.fromkeys(NAMES, node(free=100.0, booked_now=0.0)))
    cut = 0
    for step in range(12 * STEPS):
        begin = NOW_MS + step * 500
        before = [host.counted_ns(begin) for host in run.hosts]
        run.loop.run_step(step, begin, begin + 500, 50.0)
        measured = run.loop._cpu[-1].node[:, 0]
        for i, host in enumerate(run.hosts):
            used = (host.counted_ns(begin + 500) - before[i]) / 5e8 + 0.5
            assert used == pytest.approx(measured[i], abs=1e-3)
            cut += host.served < 1.0
        if (step + 1) % STEPS == 0:
            run.loop.end_slice(step // STEPS)
    assert cut > 0, "no node was full"


def test_vms_start_only_where_the_published_capacity_suffices(tmp_path: Path) -> None:
    run = Run(tmp_path, drawn())
    publish(run.path, {NAMES[0]: node(free=10.0, booked_now=0.0), NAMES[1]: node(closed=True)})
    run.steps(0, 6 * STEPS)
    assert {event["node"] for event in run.events("start")} == {NAMES[0]}
    assert max(event["booked"] for event in run.events("start")) <= 10.0
    assert run.events("refuse")
    publish(run.path, {NAMES[0]: node(state="stale"), NAMES[1]: node(free=6.0, booked_now=0.0)})
    seen = len(run.lines)
    run.steps(6 * STEPS, 12 * STEPS)
    run.lines = run.lines[seen:]
    assert {event["node"] for event in run.events("start")} == {NAMES[1]}
    assert max(event["booked"] for event in run.events("start")) <= 6.0


def test_outdated_figures_take_nothing_new(tmp_path: Path) -> None:
    run = Run(tmp_path, drawn())
    publish(run.path, dict.fromkeys(NAMES, node(free=40.0, booked_now=0.0)))
    assert run.loop.read_status(50.0)
    run.steps(0, 3 * STEPS, now_s=101.0)
    assert run.events("start") == []
    assert len(run.events("refuse")) > 0


def test_log_says_which_vms_run_and_what_is_booked(tmp_path: Path) -> None:
    run = Run(tmp_path, drawn())
    publish(run.path, dict.fromkeys(NAMES, node(free=40.0, booked_now=0.0)))
    run.steps(0, SLICES * STEPS)
    booked, running = dict.fromkeys(NAMES, 0.0), dict[str, set[str]]()
    for event in run.events("start", "stop"):
        starts = event["event"] == "start"
        booked[event["node"]] += event["vcpu"] if starts else -event["vcpu"]
        assert event["booked"] == booked[event["node"]]
        vms = running.setdefault(event["node"], set())
        assert (event["vm"] in vms) is not starts
        vms.symmetric_difference_update({event["vm"]})
    assert run.events("stop")
    at = SLICES * STEPS
    for host, name in zip(run.hosts, NAMES, strict=True):
        host.run_step(NOW_MS + at * 500, NOW_MS + at * 500 + 500, dict.fromkeys(running[name], Wanted(0.1, 0.1)))
        assert set(host.names) == running[name]


def test_published_figures_are_logged_when_they_change(tmp_path: Path) -> None:
    run = Run(tmp_path, drawn())
    for _ in range(3):
        run.loop.read_status(50.0)
    assert run.lines == []
    publish(run.path, dict.fromkeys(NAMES, node(realised_risk=0.03)))
    for _ in range(3):
        run.loop.read_status(50.0)
    assert [event["capacity"] for event in run.events("published")] == [12.0, 12.0]
    assert run.loop.reported() == pytest.approx(0.03)
    run.loop.read_status(101.0)
    assert [event["capacity"] for event in run.events("published")] == [12.0, 12.0, 0.0, 0.0]


def test_nothing_is_reported_without_a_figure(tmp_path: Path) -> None:
    assert math.isnan(Run(tmp_path, drawn()).loop.reported())


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=70000"], "--port"),
        (["--nodes=0"], "--nodes"),
        (["--ratio=0"], "--ratio"),
        (["--workload=missing.json"], "missing.json: No such file"),
        (["--place=all"], "--place"),
    ],
)
def test_invalid_option_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--status=s", "--log=l", "--figures=f", "--check", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_check_of_a_workload_file_writes_nothing(tmp_path: Path) -> None:
    write_workload(tmp_path / "w.json", drawn())
    options = [f"--{name}={tmp_path / name}" for name in ("status", "log", "figures")]
    assert command.main([*options, f"--workload={tmp_path / 'w.json'}", "--check"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["w.json"]
