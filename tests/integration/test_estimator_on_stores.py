"""The estimator on each kind of store."""

from __future__ import annotations

from pathlib import Path

from model.estimator.trace_export import export
from model.store.base import Store
from model.store.sqlite import SqliteStore
from tests.conftest import strict_json
from tests.unit.estimator.support import FIRST, NODES, LiveRun, fill, settings_for


def test_both_stores_give_the_same_figures(any_store: Store, tmp_path: Path) -> None:
    numbers = range(FIRST, FIRST + 9)
    reference = SqliteStore(tmp_path / "reference.sqlite", 86400)
    fill(reference, NODES, numbers)
    fill(any_store, NODES, numbers)
    expected = LiveRun(settings_for(tmp_path / "a"), reference).play(numbers)
    assert LiveRun(settings_for(tmp_path / "b"), any_store).play(numbers) == expected
    # Without strategies that use the samples of VMs the queries are different ones.
    strategies = ("scroogevm", "borg", "greedy")
    live = LiveRun(settings_for(tmp_path / "c"), any_store, strategies).play(numbers)
    assert [[status.cpu.others for status in statuses] for statuses in live] == [
        [{name: status.cpu.others[name] for name in strategies if status.cpu.others} for status in statuses]
        for statuses in expected
    ]
    reference.close()


def test_both_stores_give_the_same_trace(any_store: Store, tmp_path: Path) -> None:
    reference = SqliteStore(tmp_path / "reference.sqlite", 86400)
    for store in (reference, any_store):
        fill(store, NODES, range(FIRST, FIRST + 5))
    settings = settings_for(tmp_path)
    traces = [
        strict_json(b"".join(export(store, settings, NODES[0], FIRST - 1, FIRST + 5)))
        for store in (any_store, reference)
    ]
    assert traces[0] == traces[1]
    assert traces[0]["node"]["raw_data"][0] == {}
    reference.close()
