"""Nodes divided among several masters."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.common.environment import Environment
from model.common.errors import SettingsError
from model.common.settings import InvalidValue
from model.estimator.settings import estimator_settings
from model.estimator.shards import Shard, parse_shard

NODES = [f"http://worker{i}:9100/metrics" for i in range(300)]


def settings_nodes(shard: str, nodes: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    values = {"SCHED_NODES": json.dumps(nodes), "SCHED_SHARD": shard, "STATE_ENDPOINT": "status.json"}
    settings = estimator_settings(Environment(values))
    return settings.nodes, settings.fleet


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_each_node_is_in_exactly_one_part(nodes: list[str], number: int) -> None:
    parts = [Shard(index, number).select(nodes) for index in range(1, number + 1)]
    assert sorted(node for part in parts for node in part) == sorted(nodes)
    assert Shard().select(nodes) == tuple(nodes)


def test_parts_are_of_similar_size_and_do_not_depend_on_the_other_nodes() -> None:
    parts = [Shard(index, 3).select(NODES) for index in (1, 2, 3)]
    assert all(70 < len(part) < 130 for part in parts)
    assert Shard(2, 3).select(NODES[:50]) == tuple(node for node in NODES[:50] if node in parts[1])


def test_estimator_computes_its_part() -> None:
    for index in (1, 2, 3):
        nodes, fleet = settings_nodes(f"{index}/3", NODES)
        assert nodes == Shard(index, 3).select(NODES)
        assert fleet == tuple(NODES)


def test_part_without_nodes_is_a_fault() -> None:
    empty = next(index for index in (1, 2) if not Shard(index, 2).select(NODES[:1]))
    with pytest.raises(SettingsError, match=f"SCHED_SHARD: none of the 1 nodes is in part {empty}/2"):
        settings_nodes(f"{empty}/2", NODES[:1])


@pytest.mark.parametrize("text", ["2", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/3/5", "99999/99999"])
def test_invalid_part_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a part of a whole such as 2/3"):
        parse_shard(text)
    assert str(parse_shard(" 2/3 ")) == "2/3"
