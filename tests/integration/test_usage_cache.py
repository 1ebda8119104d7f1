"""What the planner is told of each VM's memory: the last scope, read piece by piece from a real store."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.ballooning.guests import GuestUsage
from model.ballooning.usage_cache import UsageCache
from model.samples import Period, ScrapeSample
from model.store.base import StoreUnavailable
from model.store.sqlite import SqliteStore

NODE = "http://w1/metrics"
#: 2023-11-14, whole seconds.
NOW = 1_700_000_000.0
SCOPE = 100.0


class Watching:
    """A store that remembers what it was asked for, and may be away."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.asked: list[tuple[str, int, int]] = []
        self.samples = 0
        self.away = False

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        if self.away:
            raise StoreUnavailable("no answer")
        self.asked.append((node, start_ms, end_ms))
        period = self.store.read(node, start_ms, end_ms, fields, domains=domains)
        self.samples += sum(samples.time_ms.size for samples in period.domains.values())
        return period

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Watching]:
    opened = SqliteStore(tmp_path / "store.sqlite", 86400)
    yield Watching(opened)
    opened.close()


def put(store: Watching, at: float, node: str = NODE, **vms: dict[str, float]) -> None:
    """A tick ``at`` seconds from NOW; each VM with what was told of it."""
    store.write([store.encode(ScrapeSample(node, int((NOW + at) * 1000), {"cpu": 1.0}, vms))])


def usage(mb: float, rss: float = math.nan) -> dict[str, float]:
    return {"mem_usage": mb} | ({} if math.isnan(rss) else {"mem_rss": rss})


def of(metrics: UsageCache, at: float = 0.0, node: str = NODE) -> dict[str, GuestUsage]:
    plan_lines = metrics.of(node, NOW + at)
    assert plan_lines is not None
    return dict(plan_lines)


def test_before_anything_was_read_nothing_is_known(store: Watching) -> None:
    metrics = UsageCache(store, SCOPE)
    assert metrics.of(NODE, NOW) is None
    store.away = True
    metrics.refresh([NODE], NOW)
    assert metrics.of(NODE, NOW) is None
    store.away = False
    metrics.refresh([NODE], NOW)
    assert of(metrics) == {}  # read, and there is none


def test_usage_is_the_90th_percentile_and_rss_the_last_one(store: Watching) -> None:
    # Of 0 10 .. 100, the 90th percentile is 90.
    for k in range(11):
        put(store, -11.0 + k, a=usage(10.0 * k, rss=500.0 + k))
    metrics = UsageCache(store, SCOPE)
    metrics.refresh([NODE], NOW)
    assert of(metrics) == {"a": GuestUsage(90.0, 510.0, 1.0)}


def test_samples_without_a_figure_count_for_nothing(store: Watching) -> None:
    put(store, -3, a=usage(7.0, rss=500.0))
    put(store, -2, a={"mem_usage": math.nan, "mem_rss": math.nan})
    put(store, -1, a={"cpu": 1.0}, b={"mem_rss": 600.0})
    metrics = UsageCache(store, SCOPE)
    metrics.refresh([NODE], NOW)
    plan_lines = of(metrics)
    assert plan_lines["a"] == GuestUsage(7.0, 500.0, 3.0)
    assert math.isnan(plan_lines["b"].usage_mb)
    assert (plan_lines["b"].rss_mb, plan_lines["b"].age_s) == (600.0, math.inf)


def test_what_is_known_is_not_read_again(store: Watching) -> None:
    metrics = UsageCache(store, SCOPE)
    for k in range(50):
        put(store, k, a=usage(1.0))
    metrics.refresh([NODE], NOW + 50)
    assert store.asked == [(NODE, int((NOW - 50) * 1000), int((NOW + 50) * 1000) + 1)]
    assert store.samples == 50
    put(store, 50, a=usage(2.0))
    metrics.refresh([NODE], NOW + 50)
    # From 1 ms after the last sample.
    assert store.asked[1][1] == int((NOW + 49) * 1000) + 1
    assert store.samples == 51
    metrics.refresh([NODE], NOW + 51)
    assert store.samples == 51
    assert of(metrics, 51)["a"].age_s == 1.0


def test_after_a_long_pause_no_more_than_the_scope_is_read(store: Watching) -> None:
    metrics = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0))
    metrics.refresh([NODE], NOW)
    metrics.refresh([NODE], NOW + 1000)
    assert store.asked[1][1] == int((NOW + 900) * 1000)


def test_samples_age_out_of_the_scope(store: Watching) -> None:
    put(store, 0, a=usage(1000.0))
    put(store, 50, a=usage(10.0))
    metrics = UsageCache(store, SCOPE)
    metrics.refresh([NODE], NOW + 60)
    # 10 and 1000: 10 + 0.9 x 990.
    assert of(metrics, 100)["a"].usage_mb == pytest.approx(901.0)
    assert of(metrics, 101)["a"].usage_mb == 10.0
    assert math.isnan(of(metrics, 151)["a"].usage_mb)


def test_the_last_rss_ages_out_of_the_scope(store: Watching) -> None:
    metrics = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0, rss=4000.0))
    metrics.refresh([NODE], NOW)
    put(store, 100, a=usage(1.0))
    metrics.refresh([NODE], NOW + 100)
    assert of(metrics, 100)["a"].rss_mb == 4000.0
    put(store, 101, a=usage(1.0))
    metrics.refresh([NODE], NOW + 101)
    assert math.isnan(of(metrics, 101)["a"].rss_mb)


def test_a_vm_that_left_is_forgotten_with_its_last_sample(store: Watching) -> None:
    metrics = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0), b=usage(2.0))
    for at in (0.0, 50.0, 101.0):
        put(store, at + 0.5, a=usage(1.0))
        metrics.refresh([NODE], NOW + at + 1)
        assert list(of(metrics, at + 1)) == (["a", "b"] if at < 100 else ["a"])
    assert store.samples == 5


def test_nodes_are_kept_apart(store: Watching) -> None:
    put(store, -1, a=usage(1.0))
    put(store, -1, "http://w2/metrics", a=usage(2.0))
    metrics = UsageCache(store, SCOPE)
    metrics.refresh([NODE, "http://w2/metrics"], NOW)
    assert [of(metrics, node=node)["a"].usage_mb for node in (NODE, "http://w2/metrics")] == [1.0, 2.0]


def test_a_store_that_is_away_leaves_what_is_known_and_is_told_once(
    store: Watching, event_log: pytest.LogCaptureFixture
) -> None:
    metrics = UsageCache(store, SCOPE)
    put(store, -1, a=usage(1.0))
    metrics.refresh([NODE], NOW)
    store.away = True
    with event_log.at_level(logging.INFO, "scroogevm"):
        for at in range(5):
            metrics.refresh([NODE], NOW + at)
    assert event_log.messages == [f"metrics of {NODE}: no answer"]
    assert of(metrics, 40)["a"] == GuestUsage(1.0, math.nan, 41.0)  # older and older, and so not acted on
    store.away = False
    metrics.refresh([NODE], NOW)
    assert event_log.messages[1:] == [f"metrics of {NODE}: recovered"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.one_of(st.none(), st.integers(0, 4000))), min_size=1, max_size=25))
def test_read_piece_by_piece_is_read_at_once(tmp_path_factory: Any, ticks: Sequence[tuple[int, int | None]]) -> None:
    opened = Watching(SqliteStore(tmp_path_factory.mktemp("store") / "s.sqlite", 86400))
    metrics = UsageCache(opened, SCOPE)
    at, kept = 0, []
    for pause, mb in ticks:
        at += pause
        put(opened, at, a={} if mb is None else usage(float(mb)))
        kept += [] if mb is None else [(at, float(mb))]
        metrics.refresh([NODE], NOW + at)
        inside = [mb for when, mb in kept if when >= at - SCOPE]
        plan_lines = of(metrics, at).get("a", GuestUsage(math.nan, math.nan, math.inf))
        if inside:
            assert plan_lines.usage_mb == pytest.approx(float(np.percentile(inside, 90)))
            assert plan_lines.age_s == at - kept[-1][0]
        else:
            assert math.isnan(plan_lines.usage_mb)
    assert opened.samples <= len(ticks)
    opened.close()
