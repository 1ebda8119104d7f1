"""Nodes that are found on the store, and those that join later."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.common.errors import PassingFault
from model.estimator.found_nodes import FoundNodes
from model.estimator.settings import EstimatorSettings
from model.estimator.shards import Shard
from model.store.base import StoreUnavailable
from tests.support.prometheus import settings_of
from tests.unit.estimator.support import settings_for


class Names:
    """A store of which only the names of the nodes are asked for."""

    def __init__(self, *names: str) -> None:
        self.names: list[str] | None = list(names)

    def nodes(self) -> list[str]:
        if self.names is None:
            raise StoreUnavailable("no connection")
        return self.names


@pytest.fixture
def settings(tmp_path: Path) -> EstimatorSettings:
    settings = settings_for(tmp_path, nodes=())
    return replace(settings, store=replace(settings.store, prometheus=settings_of("http://h:9090")))


def test_found_nodes_are_taken_and_vanished_ones_kept(settings: EstimatorSettings) -> None:
    found, store = FoundNodes(), Names("b", "a")
    completed = found.complete(settings, store)  # type: ignore[arg-type]
    assert (completed.nodes, completed.fleet) == (("a", "b"), ("a", "b"))
    store.names = ["c"]
    assert found.complete(settings, store).nodes == ("a", "b", "c")  # type: ignore[arg-type]


def test_part_of_a_fleet_takes_its_own_nodes(settings: EstimatorSettings) -> None:
    names = [f"w{i}" for i in range(20)]
    parts = [
        FoundNodes().complete(replace(settings, shard=Shard(i, 2)), Names(*names)).nodes  # type: ignore[arg-type]
        for i in (1, 2)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(names)
    assert all(parts)


def test_listed_nodes_are_not_looked_for(settings: EstimatorSettings) -> None:
    listed = replace(settings, nodes=("x",), fleet=("x",))
    store: Any = Names("a")
    assert FoundNodes().complete(listed, store).nodes == ("x",)


@pytest.mark.parametrize("names", [None, []])
def test_start_waits_for_a_store_that_has_no_nodes_yet(settings: EstimatorSettings, names: list[str] | None) -> None:
    store: Any = Names()
    store.names = names
    with pytest.raises(PassingFault, match="store http://h:9090: no"):
        FoundNodes().complete(settings, store)


def test_node_that_appears_joins_once(settings: EstimatorSettings) -> None:
    found, joined, calls = FoundNodes(), threading.Event(), []
    store: Any = Names("a")
    found.complete(settings, store)

    def join() -> None:
        calls.append(1)
        joined.set()

    with found.watched(settings, store, join, every_s=0.01):
        assert not joined.wait(0.05)
        store.names = None
        assert not joined.wait(0.05)
        store.names = ["a", "b"]
        assert joined.wait(10)
    assert calls == [1]
