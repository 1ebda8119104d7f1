"""What was stored last of a node, from which a restarted aggregator continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.aggregator.recall import Recall, last_complete
from model.samples import ScrapeSample
from model.store.base import StoreUnavailable
from model.store.sqlite import SqliteStore

NODE = "http://w1/metrics"
T0 = 1_795_000_000_000
FIELDS = {"cpu": 8.0, "cpu_usage": 3.0, "mem_usage": 900.0, "oc_cpu": 0.25}
VM = {"cpu": 2.0, "mem": 1024.0, "cpu_usage": 1.5, "mem_rss": 700.0}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.sqlite", 10**12)
    yield made
    made.close()


def write(store: SqliteStore, at_s: int, fields: dict[str, float], **vms: dict[str, float]) -> ScrapeSample:
    sample = ScrapeSample(NODE, T0 + at_s * 1000, fields, vms)
    store.write([store.encode(sample)])
    return sample


def without(fields: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in fields.items() if key != name}


def test_newest_sample_is_recalled_when_it_is_complete(store: SqliteStore) -> None:
    assert last_complete(store, NODE) is None
    write(store, 0, FIELDS, a=VM, b=VM)
    newest = write(store, 5, FIELDS, a=VM)
    assert last_complete(store, NODE) == newest


def test_sample_before_the_vms_became_unknown_is_recalled(store: SqliteStore) -> None:
    complete = write(store, 0, FIELDS, a=VM, b=VM)
    write(store, 5, without(FIELDS, "cpu_usage"), a=VM)
    write(store, 10, FIELDS, a=without(VM, "cpu_usage"))
    write(store, 15, without(FIELDS, "oc_cpu"))
    recalled = last_complete(store, NODE)
    assert recalled is not None
    assert recalled.time_ms == complete.time_ms
    assert recalled.domains == complete.domains
    assert recalled.fields == FIELDS


def test_known_vms_without_usage_are_better_than_none(store: SqliteStore) -> None:
    write(store, 0, FIELDS, a=without(VM, "cpu_usage"), b=VM)
    write(store, 5, without(FIELDS, "oc_cpu"))
    recalled = last_complete(store, NODE)
    assert recalled is not None
    assert set(recalled.domains) == {"a", "b"}


def test_samples_of_more_than_a_quarter_of_an_hour_before_are_not_recalled(store: SqliteStore) -> None:
    write(store, 0, FIELDS, a=VM)
    write(store, 901, without(FIELDS, "oc_cpu"))
    assert last_complete(store, NODE) is None


def test_sample_of_long_ago_is_not_recalled(store: SqliteStore) -> None:
    newest = write(store, 0, FIELDS, a=VM)
    assert Recall(store, wall_clock=lambda: T0 / 1000 + 899)(NODE) == newest
    assert Recall(store, wall_clock=lambda: T0 / 1000 + 901)(NODE) is None


def test_store_that_is_unavailable_is_asked_again_after_a_while() -> None:
    class Unavailable:
        asked = 0

        def last(self, _: str) -> Any:
            self.asked += 1
            raise StoreUnavailable("no connection")

    now, store = [0.0], Unavailable()
    recall = Recall(store, lambda: now[0])  # type: ignore[arg-type]
    assert [recall(NODE) for _ in range(5)] == [None] * 5
    assert store.asked == 1
    now[0] = 61.0
    assert recall(NODE) is None
    assert store.asked == 2
