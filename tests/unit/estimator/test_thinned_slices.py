"""Slices of thinned samples: no percentile and no maximum is lower than that of all samples, and none is made up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.estimator.bookings import LastConfigs, last_configs
from model.estimator.slicing import SLICE_FIELDS, Calendar, SliceRules, build_slice
from model.samples import Period, ScrapeSample
from model.slices import RESOURCES, Slice
from model.store.sqlite_blocks import Layout, Row, decode_period, encode_block, thin_rows

NODE = "http://w1:9100/metrics"
SLICE_S, STEP_S, INTERVAL_S = 1800, 300, 15
FIRST = 1_000_000
CALENDAR = Calendar(SLICE_S, 48)
NEEDED_INTERVALS = SLICE_S // INTERVAL_S


class History(NamedTuple):
    """Scrapes of one slice: which of them were made, and the usage of the node and of two VMs."""

    made: Sequence[bool]
    usage: Sequence[float]
    vm: Sequence[float]
    vm_from: int
    vm_until: int


def scrapes(history: History, jitter_ms: Sequence[int] | None = None) -> list[ScrapeSample]:
    """The samples; a rate covers the time since the scrape before it."""
    result: list[ScrapeSample] = []
    last_ms = FIRST * SLICE_S * 1000 - 5000
    for k, made in enumerate(history.made):
        if not made:
            continue
        time_ms = FIRST * SLICE_S * 1000 + k * INTERVAL_S * 1000 + 10_000 + (jitter_ms[k] if jitter_ms else 0)
        vms = {"stays": {"cpu": 4.0, "mem": 4096.0, "cpu_usage": history.vm[k] / 2, "mem_usage": 1000 + history.vm[k]}}
        if history.vm_from <= k < history.vm_until:
            vms["moves"] = {"cpu": 8.0, "mem": 8192.0, "cpu_usage": history.vm[k], "mem_usage": 10 * history.vm[k]}
        fields = {
            "cpu": 64.0,
            "mem": 65536.0,
            "cpu_usage": history.usage[k],
            "mem_usage": 100 * history.usage[k],
            "elapsed_time": float(time_ms - last_ms),
            "oc_cpu": sum(vm["cpu"] for vm in vms.values()) / 64.0,
            "oc_mem": sum(vm["mem"] for vm in vms.values()) / 65536.0,
        }
        last_ms = time_ms
        result.append(ScrapeSample(NODE, time_ms, fields, vms))
    return result


def periods(samples: Sequence[ScrapeSample]) -> tuple[Period, Period]:
    """All samples, and the thinned ones."""
    layouts: dict[int, Layout] = {}
    numbers: dict[str, int] = {}

    def row(sample: ScrapeSample) -> Row:
        layout, block = encode_block(sample)
        number = numbers.setdefault(layout.to_json(), len(numbers))
        layouts[number] = layout
        return sample.time_ms, number, block

    rows = [row(sample) for sample in samples]
    steps: dict[int, list[Row]] = {}
    for one in rows:
        steps.setdefault(one[0] // (STEP_S * 1000), []).append(one)
    thinned = [row(thin_rows(NODE, step, layouts)) for step in steps.values()]
    return tuple(decode_period(some, layouts, SLICE_FIELDS, domains=True) for some in (rows, thinned))  # type: ignore[return-value]


def built(period: Period, interval_s: float = 0.0) -> Slice:
    known = LastConfigs(interval_s=interval_s)
    configs = last_configs(period.domains)
    return build_slice(FIRST, CALENDAR, SliceRules(), known, period.node, configs, period.domains)


def both(samples: Sequence[ScrapeSample], interval_s: float = 0.0) -> tuple[Slice, Slice]:
    whole, thinned = periods(samples)
    return built(whole, interval_s), built(thinned, interval_s)


levels = st.one_of(st.sampled_from([0.0, 1.0, 30.0, 64.0]), st.floats(0, 64))


@st.composite
def histories(draw: Any) -> History:
    n = NEEDED_INTERVALS
    made = [True] * n
    for _ in range(draw(st.integers(0, 3))):
        start, length = draw(st.integers(0, n - 1)), draw(st.integers(1, 40))
        made[start : start + length] = [False] * len(made[start : start + length])
    seed = draw(st.integers(0, 2**32 - 1))
    few = draw(st.lists(levels, min_size=1, max_size=4))
    random = np.random.default_rng(seed)
    usage = random.choice(few, n) if draw(st.booleans()) else random.uniform(0, 64, n)
    vm_from = draw(st.integers(0, n // 2))
    return History(made, usage.tolist(), random.uniform(0, 8, n).tolist(), vm_from, draw(st.integers(vm_from, n + 5)))


def is_free_of_gaps_in_steps(history: History) -> bool:
    """Whether the scrapes that are missing are at most one run in each step."""
    per_step = STEP_S // INTERVAL_S
    for start in range(0, NEEDED_INTERVALS, per_step):
        step = [True, *history.made[start : start + per_step]]
        if sum(before and not now for before, now in itertools.pairwise(step)) > 1:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(histories())
def test_no_percentile_of_a_thinned_slice_is_lower(history: History) -> None:
    whole, thinned = both(scrapes(history), INTERVAL_S)
    for resource in RESOURCES:
        raw, coarse = whole.usage(resource), thinned.usage(resource)
        if not coarse.measured:
            continue
        assert raw.measured, "thinning must not make up for what was not scraped"
        assert coarse.node.max() == raw.node.max()
        assert coarse.config == raw.config
        if not is_free_of_gaps_in_steps(history):
            continue
        assert coarse.node.size == raw.node.size
        for percentile in (1.0, 50.0, 89.9, 90.0, 91.7, 99.0, 99.9):
            assert np.percentile(coarse.node, percentile) >= np.percentile(raw.node, percentile) - 1e-9
        assert coarse.node.mean() >= raw.node.mean() - 1e-9


@settings(max_examples=150, deadline=None)
@given(histories())
def test_no_figure_of_a_vm_in_a_thinned_slice_is_lower(history: History) -> None:
    whole, thinned = both(scrapes(history), INTERVAL_S)
    assert thinned.vms == whole.vms
    for resource in RESOURCES:
        raw, coarse = whole.usage(resource), thinned.usage(resource)
        assert coarse.booked == raw.booked
        assert coarse.booked_now <= raw.booked_now + 1e-9
        for i in range(len(whole.vms)):
            before, after = (values[~np.isnan(values)] for values in (raw.vm_usage[i], coarse.vm_usage[i]))
            # A VM whose samples do not suffice counts with its allocation.
            assert before.size or not after.size
            if after.size:
                assert after.max() >= before.max()


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(-300, 300), min_size=NEEDED_INTERVALS, max_size=NEEDED_INTERVALS))
def test_jitter_of_the_scrapes_does_not_change_how_often_samples_count(history: History, jitter: list[int]) -> None:
    history = history._replace(made=[True] * NEEDED_INTERVALS)
    whole, thinned = both(scrapes(history, jitter), INTERVAL_S)
    assert whole.cpu.node.size == thinned.cpu.node.size == NEEDED_INTERVALS
    assert (np.sort(thinned.cpu.node) >= np.sort(whole.cpu.node)).all()


def test_usual_interval_stays_that_of_the_scrapes() -> None:
    history = History([True] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, 0, 999)
    _, thinned = periods(scrapes(history))
    known = LastConfigs()
    build_slice(FIRST, CALENDAR, SliceRules(), known, thinned.node, last_configs(thinned.domains), thinned.domains)
    assert known.interval_s == pytest.approx(INTERVAL_S, rel=0.04)


@pytest.mark.parametrize("missing", [range(20, 60), range(100, 120), range(0, 30)])
def test_slice_with_a_gap_is_covered_as_far_as_it_was(missing: range) -> None:
    """A scrape is the first after a restart of the aggregator, so that its rate does not cover the gap."""
    history = History(
        [k not in missing for k in range(NEEDED_INTERVALS)], [1.0] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, 0, 999
    )
    samples = [
        ScrapeSample(
            one.node, one.time_ms, {**one.fields, "elapsed_time": min(one.fields["elapsed_time"], 15e3)}, one.domains
        )
        for one in scrapes(history)
    ]
    whole, thinned = both(samples, INTERVAL_S)
    for resource in RESOURCES:
        assert whole.usage(resource).missing.startswith("valid samples cover")
        assert thinned.usage(resource).missing == whole.usage(resource).missing


def test_slice_that_ends_within_a_step_is_not_covered() -> None:
    """The sample of that step is in the next slice, and with it what was used before."""
    calendar = Calendar(1000, 4)
    number = FIRST * SLICE_S // 1000
    history = History([True] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, 0, 999)
    _, thinned = periods(scrapes(history))
    start_ms, end_ms = calendar.bounds_ms(number)
    chosen = (thinned.node.time_ms >= start_ms) & (thinned.node.time_ms < end_ms)
    assert chosen.sum() == 3
    node = type(thinned.node)(
        thinned.node.time_ms[chosen], {name: values[chosen] for name, values in thinned.node.fields.items()}
    )
    finished = build_slice(number, calendar, SliceRules(), LastConfigs(interval_s=INTERVAL_S), node, {}, {})
    assert finished.cpu.missing == "valid samples cover 90 % of it"


@pytest.mark.parametrize("number", [math.nan, -5.0, 0.0, 1e300, math.inf])
def test_number_of_samples_that_is_impossible_does_no_harm(number: float) -> None:
    history = History([True] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, [1.0] * NEEDED_INTERVALS, 0, 999)
    samples = scrapes(history)
    wrong = {"samples": number, "cpu_samples": number, "mem_samples": number}
    samples[3] = ScrapeSample(NODE, samples[3].time_ms, {**samples[3].fields, **wrong}, samples[3].domains)
    whole, _ = periods(samples)
    assert built(whole, INTERVAL_S).cpu.node.size < 1000
