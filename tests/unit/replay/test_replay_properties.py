"""Properties of every replay, on generated traces."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.nodemodel import ModelSettings
from model.numerics import PERCENTILES, aggregate, round_up, row_percentiles, summarise
from model.oversubscriptioncomputation import STRATEGIES, StrategySettings
from model.replay.dump import read_dumps
from model.replay.replay import Replay
from model.replay.results import load_results, replay_results
from model.replay.scoring import summary_csv
from model.replay.trace import parse_trace
from tests.conftest import strict_json

NAMES = st.text(max_size=6).filter(lambda name: not any(0xD800 <= ord(c) < 0xE000 for c in name))

#: Samples on which arithmetic is most likely to differ.
EDGES = (0, 0.0, -0.0, 1, -10.0, 5e-324, 0.1 + 0.2, 1e6)


def sample(dice: random.Random) -> float | None:
    kinds = (lambda: None, lambda: dice.randint(0, 64), lambda: dice.uniform(-10, 1e6), lambda: dice.choice(EDGES))
    return dice.choice(kinds)()


def samples(dice: random.Random) -> list[float | None] | None:
    return None if dice.random() < 0.2 else [sample(dice) for _ in range(dice.randint(0, 6))]


def config(dice: random.Random) -> list[float | None] | None:
    sizes = (lambda: None, lambda: dice.randint(1, 64), lambda: dice.uniform(0.001, 1e6))
    return None if dice.random() < 0.2 else [dice.choice(sizes)() for _ in range(dice.randint(0, 3))]


FIELDS = {"time": samples, "cpu": config, "mem": config, "cpu_usage": samples, "mem_usage": samples}


def period(dice: random.Random) -> Any:
    if dice.random() < 1 / 3:
        return dice.choice([{}, None])
    return {key: values(dice) for key, values in FIELDS.items() if dice.random() < 0.6}


@st.composite
def traces(draw: st.DrawFn) -> Any:
    """Hypothesis draws the shape and a seed of the samples: drawing each of them takes longer than the test."""
    count = draw(st.integers(1, 8))
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    dice = random.Random(draw(st.integers(0, 2**32)))
    node = [period(dice) for _ in range(count)]
    for one in node:
        if one is not None and dice.random() < 0.5:
            one["vm"] = dice.choices([*names, "unlisted"], k=dice.randint(0, 4))
    return {
        "config": {
            "node_name": draw(NAMES),
            "slice_scope": 1800,
            "node_scope": 1800 * draw(st.integers(1, 4)),
            "historical_occurences": draw(st.integers(0, 3)),
            "vm_cpu_unit": draw(st.sampled_from(["cores", "share"])),
        },
        "epoch": [1800 * (k + 1) for k in range(count)],
        "node": {"raw_data": node},
        "vm": {name: {"raw_data": [period(dice) for _ in range(count)]} for name in names},
    }


def replay(trace: Any, percentile: float = 90.0, aggregation: int = 1) -> Replay:
    parsed = parse_trace(json.dumps(trace).encode())
    options = StrategySettings(percentile, aggregation)
    return Replay(parsed, ModelSettings(parsed.config.historical, tuple(STRATEGIES), options, options)).run()


ANY_TRACE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@ANY_TRACE
@given(traces(), st.floats(0, 100), st.integers(1, 4), st.integers(0, 23))
def test_replay_of_any_legal_trace(trace: Any, percentile: float, aggregation: int, turn: int) -> None:
    """Dumps are strict JSON with bounded figures; neither the order of VMs nor later slices change a figure."""
    whole = dict(replay(trace, percentile, aggregation).dumps("node", "mean"))
    dumps = {strategy: strict_json(text) for strategy, text in whole.items()}
    for dump in dumps.values():
        check_published_is_bounded(dump)
        check_listed_vms_have_figures(dump, len(trace["epoch"]))
    orders = list(itertools.permutations(trace["vm"]))
    names = orders[turn % len(orders)]
    shuffled = dict(trace, vm={name: trace["vm"][name] for name in names})
    assert dict(replay(shuffled, percentile, aggregation).dumps("node", "mean")) == whole
    if len(trace["epoch"]) > 1:
        shorter = replay(without_last_slice(trace), percentile, aggregation)
        check_beginning_is_the_same(shorter, dumps)


def check_published_is_bounded(dump: Any) -> None:
    for resource in ("cpu", "mem"):
        for free, published, tier0, config in zip(
            *(dump["model"][key] for key in (f"free_{resource}", f"published_{resource}", f"{resource}_tier0")),
            dump["node"][f"{resource}_config"],
            strict=True,
        ):
            assert published >= 0
            if free is None:
                assert published == 0
            else:
                assert free >= 0
                assert published <= free
                assert math.isclose(free, max(0.0, config - tier0), abs_tol=1e-5)


def check_listed_vms_have_figures(dump: Any, slices: int) -> None:
    assert [len(names) for names in dump["node"]["vm_list"]] == [
        sum(figures["number_of_values"][k] is not None for figures in dump["vm"].values()) for k in range(slices)
    ]


def check_beginning_is_the_same(shorter: Replay, dumps: dict[str, Any]) -> None:
    """The model sees one finished slice at a time."""
    for strategy, text in shorter.dumps("node", "mean"):
        for key, column in json.loads(text)["model"].items():
            assert dumps[strategy]["model"][key][: len(column)] == column


def without_last_slice(trace: Any) -> Any:
    return {
        **trace,
        "epoch": trace["epoch"][:-1],
        "node": {"raw_data": trace["node"]["raw_data"][:-1]},
        "vm": {name: {"raw_data": vm["raw_data"][:-1]} for name, vm in trace["vm"].items()},
    }


@settings(max_examples=40, deadline=None)
@given(traces())
def test_dump_read_back_gives_the_same_scores(tmp_path_factory: Any, trace: Any) -> None:
    folder = tmp_path_factory.mktemp("results")
    outcome = replay(trace)
    for strategy, text in outcome.dumps("node", "mean"):
        (folder / f"dump-{strategy}.json").write_bytes(text)
        (dump,) = read_dumps(folder / f"dump-{strategy}.json")
        assert dump.strategy == strategy
    # A dump keeps six decimals of a peak, a millionth of a core.
    again = {(row.strategy, row.resource): row for row in load_results(folder).scores}
    scores = replay_results("x", "node", outcome).scores
    for row in scores:
        other = again[row.strategy, row.resource]
        for name in ("misprediction", "free_share", "published_misprediction", "published_free_share", "decrease"):
            assert math.isclose(getattr(row, name), getattr(other, name), rel_tol=1e-6, abs_tol=1e-2) or math.isnan(
                getattr(row, name)
            )
    assert len(summary_csv(scores).splitlines()) == 1 + 2 * len(STRATEGIES)


ROWS = st.lists(st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=7, max_size=7), max_size=5)


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_summary_of_all_rows_is_numpys_of_each(rows: list[list[float]]) -> None:
    summary = summarise(np.array(rows, dtype=float).reshape(len(rows), 7))
    for i, row in enumerate(rows):
        samples = [value for value in row if not math.isnan(value)]
        assert summary.count[i] == len(samples)
        if not samples:
            assert np.isnan(
                [summary.average[i], summary.deviation[i], summary.maximum[i], *summary.percentiles[:, i]]
            ).all()
            continue
        close = {"rtol": 1e-9, "atol": 1e-6}
        np.testing.assert_allclose(summary.average[i], np.mean(samples), **close)
        np.testing.assert_allclose(summary.deviation[i], np.std(samples), **close)
        assert summary.maximum[i] == max(samples)
        np.testing.assert_allclose(summary.percentiles[:, i], np.percentile(samples, PERCENTILES), **close)


@given(st.floats(0, 1e9), st.sampled_from([0.1, 1.0]))
def test_rounding_up_is_the_next_step_and_no_more(amount: float, step: float) -> None:
    rounded = round_up(amount, step)
    assert -1e-6 <= rounded - amount < step + 1e-6
    assert round_up(rounded, step) == rounded


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(1, 12))
def test_aggregation_keeps_every_whole_group(samples: list[float], size: int) -> None:
    got = aggregate(np.array(samples), size)
    groups = [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)] or [samples]
    np.testing.assert_allclose(got, [math.fsum(group) / len(group) for group in groups], atol=1e-6)


def test_percentiles_of_no_samples_are_none() -> None:
    assert np.isnan(row_percentiles(np.empty((3, 0)), (50.0,))).all()
