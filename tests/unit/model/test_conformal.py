"""The strategy that keeps to a risk: how often its promises are broken, what it looks at, and what is told of it."""

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
from model.oversubscriptioncomputation import StrategySettings
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import encode, read_status
from model.publishers.status_table import status_table
from model.replay.replay import Replay
from model.replay.scoring import History, published_terms
from model.replay.trace import read_trace
from model.slices import MEMORY, Slice, Usage
from model.stability import never
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import SHARED, Run, build_trace, strict_json

TRACES = sorted((SHARED / "traces").glob("*.json"))
RISKS = (0.05, 0.01)
UNJUDGED = {"cpu": never, "mem": never}


def seen(peak: float, vms: dict[str, tuple[float, float, float]] | None = None, **more: Any) -> SliceObservation:
    """A slice of a node of 64 cores; of each VM what it was promised, its mean and its peak."""
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


# --- how often ----------------------------------------------------------------------------------------


def independent(draw: np.random.Generator, count: int) -> FloatArray:
    return 20 + 2 * draw.normal(size=count)


def changing(draw: np.random.Generator, count: int) -> FloatArray:
    """Its level is another one every 250 slices or so, its noise too."""
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
def test_promises_are_broken_as_often_as_wanted(
    kind: Callable[[np.random.Generator, int], FloatArray], risk: float
) -> None:
    usage = kind(np.random.default_rng(7), 2000)
    positions = 24 if kind is seasonal else 1
    bound = ConformalBound(risk, 0.1)
    said = [
        bound.update(seen(peak, config=256.0, booked=200.0, position=k % positions, positions=positions))
        for k, peak in enumerate(usage.tolist())
    ]
    broken = usage[1:] > np.array(said[:-1])
    assert broken.mean() == pytest.approx(risk, abs=0.005)
    assert bound.violation_rate == broken[-100:].mean()
    # Not by promising nothing and everything in turn.
    assert np.median(said) < 64


@pytest.fixture(scope="module")
def replayed() -> list[tuple[str, dict[tuple[str, str, float], tuple[FloatArray, FloatArray]]]]:
    """Of each real trace, by strategy, resource and risk: misprediction of each slice, and whether it was broken."""
    if not TRACES:
        pytest.skip("the shared folder with real traces is not here")
    found = []
    for path in TRACES:
        trace = read_trace(path)
        terms = {}
        for risk in RISKS:
            chosen = StrategySettings(risk=risk)
            settings = ModelSettings(trace.config.historical, ("conformal", "scroogevm"), chosen, chosen)
            histories = Replay(trace, settings).run().recorder.histories(trace.config.positions)
            for (strategy, resource), history in histories.items():
                terms[strategy, resource, risk] = _scored(history)
        found.append((path.stem, terms))
    return found


def _scored(history: History) -> tuple[FloatArray, FloatArray]:
    terms = published_terms(history)
    scored = ~np.isnan(terms.misprediction)
    return terms.misprediction[scored], (terms.violation > 1e-9)[scored].astype(float)


@pytest.mark.parametrize("resource", ["cpu", "mem"])
@pytest.mark.parametrize(("risk", "least", "most"), [(0.05, 0.03, 0.06), (0.01, 0.0, 0.02)])
def test_real_nodes_break_promises_about_as_often_as_wanted(
    replayed: Any, resource: str, risk: float, least: float, most: float
) -> None:
    """Once ten slices are known, on all nodes together; and on none of them more than twice as often, and two."""
    broken = {name: terms["conformal", resource, risk][1][10:] for name, terms in replayed}
    assert least <= np.concatenate(list(broken.values())).mean() <= most
    assert not [name for name, one in broken.items() if one.sum() > 2 * risk * one.size + 2]


@pytest.mark.parametrize("resource", ["cpu", "mem"])
def test_real_nodes_are_mispredicted_by_about_half(replayed: Any, resource: str) -> None:
    ours, theirs = (
        np.mean([terms[strategy, resource, 0.05][0].mean() for _, terms in replayed])
        for strategy in ("conformal", "scroogevm")
    )
    assert ours <= 0.55 * theirs


# --- what it looks at -----------------------------------------------------------------------------------


def test_first_slice_promises_nothing_beyond_booking() -> None:
    assert ConformalBound(0.05, 0.1).update(seen(10.0, booked=40.0)) == 40.0
    assert ConformalBound(0.05, 0.1).update(seen(10.0, booked=100.0)) == 64.0  # the node has no more
    assert ConformalBound(0.05, 0.1).update(seen(10.0, booked=4.0)) == 10.0  # used beside the VMs


def settled(vms: dict[str, tuple[float, float, float]], peak: float, count: int = 60) -> ConformalBound:
    """After some slices that hardly differ."""
    draw = np.random.default_rng(1)
    bound = ConformalBound(0.05, 0.1)
    for noise in draw.normal(0, 0.2, count).tolist():
        bound.update(seen(peak + noise, vms, mean=0.95 * peak, std=0.2))
    return bound


def test_forecast_goes_down_with_a_vm_that_left_and_up_with_one_that_came() -> None:
    vms = {"a": (16.0, 9.0, 10.0), "b": (16.0, 9.0, 10.0)}
    both = settled(vms, 20.0)
    before = both.update(seen(20.0, vms))
    alone = both.update(seen(10.0, {"a": vms["a"]}))
    assert alone < before - 6
    one = settled({"a": vms["a"]}, 10.0)
    before = one.update(seen(10.0, {"a": vms["a"]}))
    assert one.update(seen(20.0, vms)) > before + 9


def test_remembered_peaks_move_with_what_came_and_left() -> None:
    """20 cores were used at most; who used 9 of them has left, so 11 are what the others are remembered for."""
    bound = ConformalBound(0.05, 0.1)
    vms = {"a": (16.0, 9.0, 10.0), "b": (16.0, 9.0, 10.0)}
    bound.update(seen(20.0, vms, positions=2))
    bound.update(seen(8.0, {"a": (16.0, 7.0, 8.0)}, positions=2, position=1))
    # max(8, 11 + a (8 - 11)) for a = 0.5 and 0.1; the position keeps its 11.
    assert bound.envelopes == [pytest.approx(9.5), pytest.approx(10.7)]
    assert bound.season == {0: pytest.approx(11.0), 1: pytest.approx(8.0)}


def test_more_is_never_called_used_than_what_is_booked_and_the_node_itself_uses() -> None:
    draw = np.random.default_rng(3)
    bound = ConformalBound(0.01, 0.1)
    for _ in range(200):
        used = float(draw.uniform(1, 8))
        vms = {"a": (8.0, 0.9 * used, used)}
        assert bound.update(seen(used + 1, vms, mean=0.9 * used + 1)) <= 8 + 1 + 0.1


def test_broken_promises_lengthen_the_margin_and_kept_ones_shorten_it() -> None:
    calm, usual, shaken = (settled({}, 20.0) for _ in range(3))
    calm.surplus -= 6
    shaken.surplus += 6
    assert (calm._margins() < usual._margins() - 0.05).all()
    assert (shaken._margins() > 2 * usual._margins()).all()


def test_margin_is_longer_while_little_is_known() -> None:
    """Of an exponential tail with mean excess 1, what 1 % of the errors exceed: ln(p0 / risk) in the end."""
    young, old = ConformalBound(0.01, 0.1), ConformalBound(0.01, 0.1)
    levels = -np.log(1 - (np.arange(96) + 0.5) / 96)
    young.errors, old.errors = levels[None, 4::10], levels[None, :]
    assert old._margins()[0] == pytest.approx(math.log(100), rel=0.15)
    assert young._margins()[0] > 1.3 * old._margins()[0]


def test_better_forecasts_weigh_more() -> None:
    bound = settled({}, 20.0)
    bound.losses = np.array([1.0, 2.0, 1.0, 4.0])
    weights = bound._weights()
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] == weights[2] > 1000 * weights[1] > weights[3]


# --- what must not disturb it ---------------------------------------------------------------------------


def odd_slices(seed: int) -> Iterator[Slice]:
    """VMs come and go, without samples, without a known size; the node changes, goes silent, or sells nothing."""
    draw = np.random.default_rng(seed)
    for k in range(80):
        names = sorted(f"vm{i}" for i in range(6) if draw.random() < 0.8) if draw.random() < 0.9 else []

        def one(scale: float, names: Sequence[str] = names) -> Usage:
            rows = draw.exponential(scale / 8, (len(names), 5 if draw.random() < 0.9 else 0))
            rows[draw.random(len(names)) < 0.2] = np.nan
            promised = np.where(draw.random(len(names)) < 0.2, np.nan, scale / 4)
            promised[draw.random(len(names)) < 0.1] = 0.0
            samples = draw.exponential(scale, draw.integers(0, 6)) * draw.choice([1.0, 0.0, 3.0, -0.1])
            config = math.nan if draw.random() < 0.05 else scale * float(draw.choice([1, 2]))
            return Usage(config, samples, promised, rows)

        yield Slice(60.0 * (k + 1), k % 3, tuple(names), one(16.0), one(65536.0))


@pytest.mark.parametrize("seed", range(20))
def test_threshold_is_a_finite_number_and_no_larger_than_what_there_is(seed: int) -> None:
    model = NodeModel(ModelSettings(1, ("conformal",), positions=3))
    for finished in odd_slices(seed):
        answer = model.update(finished)
        for usage, said in ((finished.cpu, answer.cpu), (finished.mem, answer.mem)):
            if usage.measured:
                assert 0 <= said.by_strategy["conformal"].threshold <= usage.config + 1


def test_samples_that_no_machine_gives_do_no_harm() -> None:
    bound = ConformalBound(0.01, 0.1)
    for k in range(60):
        level = (1e15, -1e15, 0.0)[k % 3]
        assert 0 <= bound.update(seen(level, {"a": (level, level, level)}, config=1e15)) <= 1e15


@pytest.mark.parametrize("seed", range(3))
def test_restarted_after_every_slice_it_says_the_same(seed: int) -> None:
    """What is carried on goes through the bytes that the estimator writes down."""
    settings = ModelSettings(1, ("conformal",), positions=3)
    whole = NodeModel(settings, UNJUDGED)
    carried: dict[int, bytes] = {}
    node = b""
    for finished in odd_slices(seed):
        pieces = NodeModel(settings, UNJUDGED)
        memory = pieces.state(finished.position)
        if node:
            own = msgspec.msgpack.decode(carried.get(finished.position, msgspec.msgpack.encode({})), strict=False)
            pieces.restore(replace(memory, node=msgspec.msgpack.decode(node), position=own), finished.position, ())
        assert repr(pieces.update(finished)) == repr(whole.update(finished))
        memory = pieces.state(finished.position)
        node = msgspec.msgpack.encode(memory.node)
        carried[finished.position] = msgspec.msgpack.encode(memory.position)


def test_state_is_small() -> None:
    vms = {f"instance-{i:08}": (4.0, 1.1, 2.3) for i in range(100)}
    bound = settled(vms, 40.0, count=300)
    assert len(msgspec.msgpack.encode(bound.state())) < 10_000


def test_state_is_not_changed_by_what_comes_later() -> None:
    bound = settled({"a": (4.0, 1.0, 2.0)}, 20.0)
    state = bound.state()
    before = msgspec.msgpack.encode(state)
    bound.update(seen(30.0, {"b": (4.0, 1.0, 2.0)}))
    assert msgspec.msgpack.encode(state) == before


# --- what is told of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_realised_risk_is_the_frequency_of_the_published_score(seed: int) -> None:
    """Growth of booking taken off; nothing that was promised before or after a silent slice is counted."""
    slices = list(odd_slices(seed))
    model = NodeModel(ModelSettings(1, ("conformal",), positions=3))
    said = [model.update(finished) for finished in slices]
    for name in ("cpu", "mem"):
        usages: list[Usage] = [getattr(finished, name) for finished in slices]
        answers = [getattr(answer, name).by_strategy["conformal"] for answer in said]
        history = History(
            config=np.array([usage.config for usage in usages]),
            booked=np.array([usage.booked for usage in usages]),
            peak=np.array([np.percentile(u.node, 99) if u.measured else math.nan for u in usages]),
            free=np.array([answer.free for answer in answers]),
            published=np.array([answer.published for answer in answers]),
            lag=3,
        )
        _, broken = _scored(history)
        last = [answer for usage, answer in zip(usages, answers, strict=True) if usage.measured][-1]
        assert 10 < broken.size <= 100
        assert last.violation_rate == pytest.approx(broken.mean())
        assert last.risk == 0.05


def test_nothing_is_realised_before_a_second_slice_and_only_a_hundred_are_counted() -> None:
    bound = ConformalBound(0.05, 0.1)
    bound.update(seen(10.0))
    assert math.isnan(bound.violation_rate)
    bound.update(seen(64.0 + 1))
    assert bound.violation_rate == 1.0
    for _ in range(100):
        bound.update(seen(10.0))
    assert bound.violation_rate == 0.0


def node_status(*, risky: bool, violation_rate: float | None = 0.04) -> NodeStatus:
    figures = Figures(8.0, 4.0, 2.0, 0.0, 6.0, 6.0, 60.0, *((0.05, violation_rate) if risky else ()))
    said = ResourceStatus("ok", figures, {})
    return NodeStatus("conformal" if risky else "plain", "conformal" if risky else "borg", 60.0, said, said)


def test_status_file_tells_the_risk_where_there_is_one() -> None:
    text = encode(
        [node_status(risky=True), node_status(risky=False), node_status(risky=True, violation_rate=None)], 90.0
    )
    told = strict_json(text)
    assert "risk" not in told["plain"]["cpu"]
    assert told["conformal"]["mem"]["risk"] == 0.05
    assert "realised_risk" not in told["conformal"]["mem"]
    told = strict_json(encode([node_status(risky=True)], 90.0))
    assert (told["conformal"]["cpu"]["risk"], told["conformal"]["cpu"]["realised_risk"]) == (0.05, 0.04)


def shown(path: Path, *statuses: NodeStatus) -> str:
    path.write_bytes(encode(statuses, 90.0))
    stream = io.StringIO()
    Console(file=stream, width=160).print(status_table(read_status(path), 60.0))
    return stream.getvalue()


def test_table_has_a_column_for_the_risk_if_any_node_has_one(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert "risk" not in shown(path, node_status(risky=False))
    text = shown(path, node_status(risky=False), node_status(risky=True))
    assert text.count("risk") == text.count("5% (4%)") == 2
    assert "5% (-)" in shown(path, node_status(risky=True, violation_rate=None))


def test_metrics_tell_the_risk_where_there_is_one() -> None:
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts())
    metrics.publish([node_status(risky=True), node_status(risky=False)])
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if "_risk_" in line and line[0] != "#"] == [
        f'scroogevm_node_{resource}_risk_{kind}_ratio{{node="conformal"}} {value}'
        for resource in ("cpu", "memory")
        for kind, value in (("target", 0.05), ("realised", 0.04))
    ]


def test_memory_without_a_resolution_of_a_core_is_cut_to_whole_mb() -> None:
    said = [ConformalBound(0.05, MEMORY.resolution).update(seen(1000.25, config=4096.0, booked=900.5))]
    assert said == [1001.0]


# --- the command line -----------------------------------------------------------------------------------


def test_risks_of_the_command_line_reach_strategy_and_dump(
    scroogevm: Run, write_trace: Callable[[Any], Path], tmp_path: Path
) -> None:
    path = write_trace(build_trace(60, positions=2))
    done = scroogevm("-l", path, "-s", "conformal", "--risk=0.02", "--risk-mem=0.3", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "at a risk of 2%" in done.stdout
    config = strict_json((tmp_path / "out" / "dump-conformal.json").read_bytes())["config"]
    assert (config["cpu_risk"], config["mem_risk"]) == (0.02, 0.3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--risk=0"], "--risk: conformal keeps to risks above 0 and up to 0.3, not to 0"),
        (["--risk=0.5"], "--risk: conformal"),
        (["--risk-cpu=0"], "--risk-cpu: conformal"),
        (["--risk-mem=0.31"], "--risk-mem: conformal"),
        (["--risk-mem=-1"], "argument --risk-mem"),
    ],
)
def test_risk_that_cannot_be_kept_to_is_one_line(
    scroogevm: Run, write_trace: Callable[[Any], Path], arguments: list[str], words: str
) -> None:
    done = scroogevm("-l", write_trace(build_trace()), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_table_is_ordered_by_any_risk_where_no_strategy_aims_at_it(
    scroogevm: Run, write_trace: Callable[[Any], Path]
) -> None:
    for risk in ("0", "1"):
        assert scroogevm("-l", write_trace(build_trace()), "-s", "borg,doa", f"--risk={risk}").returncode == 0
