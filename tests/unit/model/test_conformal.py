"""The conformal strategy: its violation rate, its forecasts and margins, and how both risks are published."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from model.conformal import ConformalBound, SliceObservation
from model.nodemodel import ModelSettings, NodeModel
from model.numerics import FloatArray
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import encode, read_status
from model.publishers.status_table import status_table
from model.replay.scoring import History, published_terms
from model.slices import MEMORY, Slice, Usage
from model.stability import never
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import SHARED, Run, build_trace, strict_json

TRACES = sorted((SHARED / "traces").glob("*.json"))
RISKS = (0.05, 0.01)
NEVER_STABLE = {"cpu": never, "mem": never}


def observed(peak: float, vms: dict[str, tuple[float, float, float]] | None = None, **more: Any) -> SliceObservation:
    """A slice of a node of 64 cores; allocation, mean and peak of each VM."""
    rows = np.array(list((vms or {}).values()), dtype=float).reshape(-1, 3)
    return SliceObservation(
        **{
            "position": 0,
            "positions": 1,
            "follows": True,
            "config": 64.0,
            "booked": float(np.nansum(rows[:, 0])) if vms else 64.0,
            "peak": peak,
            "mean": 0.9 * peak,
            "std": 0.05 * abs(peak),
            "vms": tuple(vms or ()),
            "vm_config": rows[:, 0],
            "vm_mean": rows[:, 1],
            "vm_peak": rows[:, 2],
            **more,
        }
    )


# --- violation rate -----------------------------------------------------------------------------------


def independent(draw: np.random.Generator, count: int) -> FloatArray:
    return 20 + 2 * draw.normal(size=count)


def changing(draw: np.random.Generator, count: int) -> FloatArray:
    """Level and noise change about every 250 slices."""
    new = np.cumsum(draw.random(count) < 1 / 250)
    levels, noises = draw.uniform(8, 35, count), draw.uniform(0.5, 3, count)
    return levels[new] + noises[new] * draw.normal(size=count)


def drifting(draw: np.random.Generator, count: int) -> FloatArray:
    return 20 * np.exp(np.cumsum(draw.normal(0, 0.005, count))) + draw.normal(size=count)


def bursting(draw: np.random.Generator, count: int) -> FloatArray:
    return 15 + draw.normal(size=count) + (draw.random(count) < 0.03) * draw.exponential(8, count)


def seasonal(draw: np.random.Generator, count: int) -> FloatArray:
    day = 10 * np.exp(2 * np.cos(2 * np.pi * (np.arange(count) % 24 - 14) / 24) - 2)
    return 15 + day + draw.normal(size=count)


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("kind", [independent, changing, drifting, bursting, seasonal])
def test_violation_rate_is_the_target_risk(kind: Callable[[np.random.Generator, int], FloatArray], risk: float) -> None:
    usage = kind(np.random.default_rng(7), 2000)
    positions = 24 if kind is seasonal else 1
    bound = ConformalBound(risk, 0.1)
    thresholds = [
        bound.update(observed(peak, config=256.0, booked=200.0, position=k % positions, positions=positions))
        for k, peak in enumerate(usage.tolist())
    ]
    violated = usage[1:] > np.array(thresholds[:-1])
    assert violated.mean() == pytest.approx(risk, abs=0.005)
    assert bound.violation_rate == violated[-100:].mean()
    # Not by alternating between nothing and everything.
    assert np.median(thresholds) < 64


# --- forecasts and margins ----------------------------------------------------------------------------


def test_first_threshold_is_the_allocation() -> None:
    assert ConformalBound(0.05, 0.1).update(observed(10.0, booked=40.0)) == 40.0
    assert ConformalBound(0.05, 0.1).update(observed(10.0, booked=100.0)) == 64.0  # the capacity of the node
    assert ConformalBound(0.05, 0.1).update(observed(10.0, booked=4.0)) == 10.0  # used beside the VMs


def settled(vms: dict[str, tuple[float, float, float]], peak: float, count: int = 60) -> ConformalBound:
    """A bound after slices that hardly differ."""
    draw = np.random.default_rng(1)
    bound = ConformalBound(0.05, 0.1)
    for noise in draw.normal(0, 0.2, count).tolist():
        bound.update(observed(peak + noise, vms, mean=0.95 * peak, std=0.2))
    return bound


def test_forecast_falls_when_a_vm_leaves_and_rises_when_one_arrives() -> None:
    vms = {"a": (16.0, 9.0, 10.0), "b": (16.0, 9.0, 10.0)}
    both = settled(vms, 20.0)
    before = both.update(observed(20.0, vms))
    alone = both.update(observed(10.0, {"a": vms["a"]}))
    assert alone < before - 6
    one = settled({"a": vms["a"]}, 10.0)
    before = one.update(observed(10.0, {"a": vms["a"]}))
    assert one.update(observed(20.0, vms)) > before + 9


def test_stored_peaks_shift_by_the_usage_that_arrives_or_leaves() -> None:
    """The peak of 20 cores falls to 11 when a VM leaves that used 9."""
    bound = ConformalBound(0.05, 0.1)
    vms = {"a": (16.0, 9.0, 10.0), "b": (16.0, 9.0, 10.0)}
    bound.update(observed(20.0, vms, positions=2))
    bound.update(observed(8.0, {"a": (16.0, 7.0, 8.0)}, positions=2, position=1))
    # max(8, 11 + a (8 - 11)) for a = 0.5 and 0.1; the position keeps its 11.
    assert bound.envelopes == [pytest.approx(9.5), pytest.approx(10.7)]
    assert bound.season == {0: pytest.approx(11.0), 1: pytest.approx(8.0)}


def test_threshold_is_at_most_the_allocation_and_the_usage_of_the_node_itself() -> None:
    draw = np.random.default_rng(3)
    bound = ConformalBound(0.01, 0.1)
    for _ in range(200):
        used = float(draw.uniform(1, 8))
        vms = {"a": (8.0, 0.9 * used, used)}
        assert bound.update(observed(used + 1, vms, mean=0.9 * used + 1)) <= 8 + 1 + 0.1


def test_violations_lengthen_the_margin_and_their_absence_shortens_it() -> None:
    deficit, usual, surplus = (settled({}, 20.0) for _ in range(3))
    deficit.surplus -= 6
    surplus.surplus += 6
    assert (deficit._margins() < usual._margins() - 0.05).all()
    assert (surplus._margins() > 2 * usual._margins()).all()


def test_margin_is_longer_with_fewer_errors() -> None:
    """An exponential tail with mean excess 1: a risk of 1 % needs ln(p0 / risk) in the limit."""
    young, old = ConformalBound(0.01, 0.1), ConformalBound(0.01, 0.1)
    levels = -np.log(1 - (np.arange(96) + 0.5) / 96)
    young.errors, old.errors = levels[None, 4::10], levels[None, :]
    assert old._margins()[0] == pytest.approx(math.log(100), rel=0.15)
    assert young._margins()[0] > 1.3 * old._margins()[0]


def test_better_forecasts_have_larger_weights() -> None:
    bound = settled({}, 20.0)
    bound.losses = np.array([1.0, 2.0, 1.0, 4.0])
    weights = bound._weights()
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] == weights[2] > 1000 * weights[1] > weights[3]


# --- unusual input and state --------------------------------------------------------------------------


def odd_slices(seed: int) -> Iterator[Slice]:
    """VMs arrive and leave, lack samples or an allocation; the node changes its capacity, has no data or no VMs."""
    draw = np.random.default_rng(seed)
    for k in range(80):
        names = sorted(f"vm{i}" for i in range(6) if draw.random() < 0.8) if draw.random() < 0.9 else []

        def one(scale: float, names: Sequence[str] = names) -> Usage:
            rows = draw.exponential(scale / 8, (len(names), 5 if draw.random() < 0.9 else 0))
            rows[draw.random(len(names)) < 0.2] = np.nan
            allocation = np.where(draw.random(len(names)) < 0.2, np.nan, scale / 4)
            allocation[draw.random(len(names)) < 0.1] = 0.0
            samples = draw.exponential(scale, draw.integers(0, 6)) * draw.choice([1.0, 0.0, 3.0, -0.1])
            config = math.nan if draw.random() < 0.05 else scale * float(draw.choice([1, 2]))
            return Usage(config, samples, allocation, rows)

        yield Slice(60.0 * (k + 1), k % 3, tuple(names), one(16.0), one(65536.0))


@pytest.mark.parametrize("seed", range(20))
def test_threshold_is_finite_and_at_most_the_capacity(seed: int) -> None:
    model = NodeModel(ModelSettings(1, ("conformal",), positions=3))
    for finished in odd_slices(seed):
        estimate = model.update(finished)
        for usage, resource in ((finished.cpu, estimate.cpu), (finished.mem, estimate.mem)):
            if usage.measured:
                assert 0 <= resource.by_strategy["conformal"].threshold <= usage.config + 1


def test_threshold_is_within_the_node_for_impossible_samples() -> None:
    bound = ConformalBound(0.01, 0.1)
    for k in range(60):
        level = (1e15, -1e15, 0.0)[k % 3]
        assert 0 <= bound.update(observed(level, {"a": (level, level, level)}, config=1e15)) <= 1e15


@pytest.mark.parametrize("seed", range(3))
def test_estimates_are_the_same_when_restarted_after_every_slice(seed: int) -> None:
    """The state is encoded and decoded as in the checkpoints of the estimator."""
    settings = ModelSettings(1, ("conformal",), positions=3)
    whole = NodeModel(settings, NEVER_STABLE)
    stored: dict[int, bytes] = {}
    node = b""
    for finished in odd_slices(seed):
        restarted = NodeModel(settings, NEVER_STABLE)
        state = restarted.state(finished.position)
        if node:
            own = msgspec.msgpack.decode(stored.get(finished.position, msgspec.msgpack.encode({})), strict=False)
            restarted.restore(replace(state, node=msgspec.msgpack.decode(node), position=own), finished.position, ())
        assert repr(restarted.update(finished)) == repr(whole.update(finished))
        state = restarted.state(finished.position)
        node = msgspec.msgpack.encode(state.node)
        stored[finished.position] = msgspec.msgpack.encode(state.position)


def test_state_is_small() -> None:
    vms = {f"instance-{i:08}": (4.0, 1.1, 2.3) for i in range(100)}
    bound = settled(vms, 40.0, count=300)
    assert len(msgspec.msgpack.encode(bound.state())) < 10_000


def test_saved_state_is_not_changed_by_later_slices() -> None:
    bound = settled({"a": (4.0, 1.0, 2.0)}, 20.0)
    state = bound.state()
    before = msgspec.msgpack.encode(state)
    bound.update(observed(30.0, {"b": (4.0, 1.0, 2.0)}))
    assert msgspec.msgpack.encode(state) == before


# --- publication --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_violation_rate_is_that_of_the_published_score(seed: int) -> None:
    """Growth of the allocation is subtracted; figures published before or in a slice without data are not scored."""
    slices = list(odd_slices(seed))
    model = NodeModel(ModelSettings(1, ("conformal",), positions=3))
    estimates = [model.update(finished) for finished in slices]
    for name in ("cpu", "mem"):
        usages: list[Usage] = [getattr(finished, name) for finished in slices]
        results = [getattr(estimate, name).by_strategy["conformal"] for estimate in estimates]
        history = History(
            config=np.array([usage.config for usage in usages]),
            booked=np.array([usage.booked for usage in usages]),
            peak=np.array([np.percentile(u.node, 99) if u.measured else math.nan for u in usages]),
            free=np.array([result.free for result in results]),
            published=np.array([result.published for result in results]),
            lag=3,
        )
        terms = published_terms(history)
        violated = terms.violation[~np.isnan(terms.misprediction)] > 1e-9
        last = [result for usage, result in zip(usages, results, strict=True) if usage.measured][-1]
        assert 10 < violated.size <= 100
        assert last.forecast_violation_rate == pytest.approx(violated.mean())
        assert last.risk == 0.05


def test_violation_rate_starts_with_the_second_slice_and_covers_a_hundred() -> None:
    bound = ConformalBound(0.05, 0.1)
    bound.update(observed(10.0))
    assert math.isnan(bound.violation_rate)
    bound.update(observed(64.0 + 1))
    assert bound.violation_rate == 1.0
    for _ in range(100):
        bound.update(observed(10.0))
    assert bound.violation_rate == 0.0


def node_status(*, risky: bool, violation_rate: float | None = 0.04) -> NodeStatus:
    figures = Figures(8.0, 4.0, 4.0, 2.0, 0.0, 6.0, 6.0, 60.0, *((0.05, violation_rate) if risky else ()))
    resource = ResourceStatus("ok", figures, {})
    return NodeStatus("conformal" if risky else "plain", "conformal" if risky else "borg", 60.0, resource, resource)


def test_status_file_has_the_risks_of_a_strategy_with_a_target() -> None:
    text = encode(
        [node_status(risky=True), node_status(risky=False), node_status(risky=True, violation_rate=None)], 90.0
    )
    nodes = strict_json(text)
    assert "risk" not in nodes["plain"]["cpu"]
    assert nodes["conformal"]["mem"]["risk"] == 0.05
    assert "realised_risk" not in nodes["conformal"]["mem"]
    nodes = strict_json(encode([node_status(risky=True)], 90.0))
    assert (nodes["conformal"]["cpu"]["risk"], nodes["conformal"]["cpu"]["realised_risk"]) == (0.05, 0.04)


def shown(path: Path, *statuses: NodeStatus) -> str:
    path.write_bytes(encode(statuses, 90.0))
    stream = io.StringIO()
    Console(file=stream, width=160).print(status_table(read_status(path), 60.0))
    return stream.getvalue()


def test_status_table_has_a_risk_column_if_any_node_has_a_target(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert "risk" not in shown(path, node_status(risky=False))
    text = shown(path, node_status(risky=False), node_status(risky=True))
    assert text.count("risk") == text.count("5% (4%)") == 2
    assert "5% (-)" in shown(path, node_status(risky=True, violation_rate=None))


def test_metrics_have_the_risks_of_a_strategy_with_a_target() -> None:
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts())
    metrics.publish([node_status(risky=True), node_status(risky=False)])
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if "_risk_" in line and line[0] != "#"] == [
        f'scroogevm_node_{resource}_risk_{kind}_ratio{{node="conformal"}} {value}'
        for resource in ("cpu", "memory")
        for kind, value in (("target", 0.05), ("realised", 0.04))
    ]


def test_memory_is_rounded_up_to_whole_mb() -> None:
    threshold = ConformalBound(0.05, MEMORY.resolution).update(observed(1000.25, config=4096.0, booked=900.5))
    assert threshold == 1001.0


# --- the command line ---------------------------------------------------------------------------------


def test_risks_of_the_command_line_reach_strategy_and_dump(
    scroogevm: Run, write_trace: Callable[[Any], Path], tmp_path: Path
) -> None:
    path = write_trace(build_trace(60, positions=2))
    done = scroogevm("-l", path, "-s", "conformal", "--risk=0.02", "--risk-mem=0.3", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "contains the target risk of 2%" in done.stdout
    assert "Best choice at a target risk of 30%: conformal" in done.stdout
    config = strict_json((tmp_path / "out" / "dump-conformal.json").read_bytes())["config"]
    assert (config["cpu_risk"], config["mem_risk"]) == (0.02, 0.3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--risk=0"], "--risk: conformal supports target risks above 0 and up to 0.3, not 0"),
        (["--risk=0.5"], "--risk: conformal"),
        (["--risk-cpu=0"], "--risk-cpu: conformal"),
        (["--risk-mem=0.31"], "--risk-mem: conformal"),
        (["--risk-mem=-1"], "argument --risk-mem"),
    ],
)
def test_risk_out_of_range_is_one_line(
    scroogevm: Run, write_trace: Callable[[Any], Path], arguments: list[str], words: str
) -> None:
    done = scroogevm("-l", write_trace(build_trace()), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_any_risk_orders_the_table_when_no_strategy_has_a_target(
    scroogevm: Run, write_trace: Callable[[Any], Path]
) -> None:
    for risk in ("0", "1"):
        assert scroogevm("-l", write_trace(build_trace()), "-s", "borg,doa", f"--risk={risk}").returncode == 0
