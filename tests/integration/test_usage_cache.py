"""Memory usage of each VM in the window, read incrementally from a real store."""

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


class RecordingStore:
    """A store that records its reads and may be unavailable."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.reads: list[tuple[str, int, int]] = []
        self.samples = 0
        self.unavailable = False

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        if self.unavailable:
            raise StoreUnavailable("no answer")
        self.reads.append((node, start_ms, end_ms))
        period = self.store.read(node, start_ms, end_ms, fields, domains=domains)
        self.samples += sum(samples.time_ms.size for samples in period.domains.values())
        return period

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordingStore]:
    opened = SqliteStore(tmp_path / "store.sqlite", 86400)
    yield RecordingStore(opened)
    opened.close()


def put(store: RecordingStore, at: float, node: str = NODE, **vms: dict[str, float]) -> None:
    """Write a scrape of ``at`` seconds after NOW, with the fields of each VM."""
    store.write([store.encode(ScrapeSample(node, int((NOW + at) * 1000), {"cpu": 1.0}, vms))])


def usage(mb: float, rss: float = math.nan) -> dict[str, float]:
    return {"mem_usage": mb} | ({} if math.isnan(rss) else {"mem_rss": rss})


def usages_of(cache: UsageCache, at: float = 0.0, node: str = NODE) -> dict[str, GuestUsage]:
    usages = cache.usage(node, NOW + at)
    assert usages is not None
    return dict(usages)


def test_usage_is_none_before_the_first_read(store: RecordingStore) -> None:
    cache = UsageCache(store, SCOPE)
    assert cache.usage(NODE, NOW) is None
    store.unavailable = True
    cache.refresh([NODE], NOW)
    assert cache.usage(NODE, NOW) is None
    store.unavailable = False
    cache.refresh([NODE], NOW)
    assert usages_of(cache) == {}  # read, but empty


def test_usage_is_the_90th_percentile_and_rss_the_last_value(store: RecordingStore) -> None:
    # Of 0 10 .. 100, the 90th percentile is 90.
    for k in range(11):
        put(store, -11.0 + k, a=usage(10.0 * k, rss=500.0 + k))
    cache = UsageCache(store, SCOPE)
    cache.refresh([NODE], NOW)
    assert usages_of(cache) == {"a": GuestUsage(90.0, 510.0, 1.0)}


def test_missing_figures_are_ignored(store: RecordingStore) -> None:
    put(store, -3, a=usage(7.0, rss=500.0))
    put(store, -2, a={"mem_usage": math.nan, "mem_rss": math.nan})
    put(store, -1, a={"cpu": 1.0}, b={"mem_rss": 600.0})
    cache = UsageCache(store, SCOPE)
    cache.refresh([NODE], NOW)
    usages = usages_of(cache)
    assert usages["a"] == GuestUsage(7.0, 500.0, 3.0)
    assert math.isnan(usages["b"].usage_mb)
    assert (usages["b"].rss_mb, usages["b"].age_s) == (600.0, math.inf)


def test_each_sample_is_read_once(store: RecordingStore) -> None:
    cache = UsageCache(store, SCOPE)
    for k in range(50):
        put(store, k, a=usage(1.0))
    cache.refresh([NODE], NOW + 50)
    assert store.reads == [(NODE, int((NOW - 50) * 1000), int((NOW + 50) * 1000) + 1)]
    assert store.samples == 50
    put(store, 50, a=usage(2.0))
    cache.refresh([NODE], NOW + 50)
    # From 1 ms after the last sample.
    assert store.reads[1][1] == int((NOW + 49) * 1000) + 1
    assert store.samples == 51
    cache.refresh([NODE], NOW + 51)
    assert store.samples == 51
    assert usages_of(cache, 51)["a"].age_s == 1.0


def test_after_a_long_pause_only_the_window_is_read(store: RecordingStore) -> None:
    cache = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0))
    cache.refresh([NODE], NOW)
    cache.refresh([NODE], NOW + 1000)
    assert store.reads[1][1] == int((NOW + 900) * 1000)


def test_samples_leave_the_window(store: RecordingStore) -> None:
    put(store, 0, a=usage(1000.0))
    put(store, 50, a=usage(10.0))
    cache = UsageCache(store, SCOPE)
    cache.refresh([NODE], NOW + 60)
    # 10 and 1000: 10 + 0.9 x 990.
    assert usages_of(cache, 100)["a"].usage_mb == pytest.approx(901.0)
    assert usages_of(cache, 101)["a"].usage_mb == 10.0
    assert math.isnan(usages_of(cache, 151)["a"].usage_mb)


def test_last_rss_leaves_the_window(store: RecordingStore) -> None:
    cache = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0, rss=4000.0))
    cache.refresh([NODE], NOW)
    put(store, 100, a=usage(1.0))
    cache.refresh([NODE], NOW + 100)
    assert usages_of(cache, 100)["a"].rss_mb == 4000.0
    put(store, 101, a=usage(1.0))
    cache.refresh([NODE], NOW + 101)
    assert math.isnan(usages_of(cache, 101)["a"].rss_mb)


def test_vm_is_dropped_with_its_last_sample(store: RecordingStore) -> None:
    cache = UsageCache(store, SCOPE)
    put(store, 0, a=usage(1.0), b=usage(2.0))
    for at in (0.0, 50.0, 101.0):
        put(store, at + 0.5, a=usage(1.0))
        cache.refresh([NODE], NOW + at + 1)
        assert list(usages_of(cache, at + 1)) == (["a", "b"] if at < 100 else ["a"])
    assert store.samples == 5


def test_nodes_are_separate(store: RecordingStore) -> None:
    put(store, -1, a=usage(1.0))
    put(store, -1, "http://w2/metrics", a=usage(2.0))
    cache = UsageCache(store, SCOPE)
    cache.refresh([NODE, "http://w2/metrics"], NOW)
    assert [usages_of(cache, node=node)["a"].usage_mb for node in (NODE, "http://w2/metrics")] == [1.0, 2.0]


def test_unavailable_store_keeps_the_samples_and_is_logged_once(
    store: RecordingStore, event_log: pytest.LogCaptureFixture
) -> None:
    cache = UsageCache(store, SCOPE)
    put(store, -1, a=usage(1.0))
    cache.refresh([NODE], NOW)
    store.unavailable = True
    with event_log.at_level(logging.INFO, "scroogevm"):
        for at in range(5):
            cache.refresh([NODE], NOW + at)
    assert event_log.messages == [f"metrics of {NODE}: no answer"]
    assert usages_of(cache, 40)["a"] == GuestUsage(1.0, math.nan, 41.0)  # its age prevents a session
    store.unavailable = False
    cache.refresh([NODE], NOW)
    assert event_log.messages[1:] == [f"metrics of {NODE}: recovered"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.one_of(st.none(), st.integers(0, 4000))), min_size=1, max_size=25))
def test_incremental_reads_equal_one_read(tmp_path_factory: Any, ticks: Sequence[tuple[int, int | None]]) -> None:
    opened = RecordingStore(SqliteStore(tmp_path_factory.mktemp("store") / "s.sqlite", 86400))
    cache = UsageCache(opened, SCOPE)
    at, written = 0, []
    for pause, mb in ticks:
        at += pause
        put(opened, at, a={} if mb is None else usage(float(mb)))
        written += [] if mb is None else [(at, float(mb))]
        cache.refresh([NODE], NOW + at)
        inside = [mb for when, mb in written if when >= at - SCOPE]
        usages = usages_of(cache, at).get("a", GuestUsage(math.nan, math.nan, math.inf))
        if inside:
            assert usages.usage_mb == pytest.approx(float(np.percentile(inside, 90)))
            assert usages.age_s == at - written[-1][0]
        else:
            assert math.isnan(usages.usage_mb)
    assert opened.samples <= len(ticks)
    opened.close()
