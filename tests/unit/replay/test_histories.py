"""The input of the scores is the same with and without the recording of dumps."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.scoring import History
from model.replay.trace import Trace, parse_trace, read_trace
from tests.conftest import DATA, build_trace

GOLDENS = sorted((DATA / "goldens" / "traces").glob("*.json"))


def replays(trace: Trace) -> tuple[dict[tuple[str, str], History], dict[tuple[str, str], History]]:
    settings = ModelSettings(trace.config.historical, tuple(STRATEGIES))
    return Replay(trace, settings).run().histories(), Replay(trace, settings).run_for_histories()


def assert_same(one: dict[tuple[str, str], History], other: dict[tuple[str, str], History]) -> None:
    assert set(one) == set(other)
    for key, history in one.items():
        for column in fields(History):
            expected, found = getattr(history, column.name), getattr(other[key], column.name)
            assert np.array_equal(np.asarray(expected, float), np.asarray(found, float), equal_nan=True), (key, column)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_histories_without_dumps_are_those_with_dumps(path: Path) -> None:
    assert_same(*replays(read_trace(path)))


def test_slice_without_data_and_waits_are_recorded_too() -> None:
    trace = build_trace(slices=8)
    trace["node"]["raw_data"][2] = {}
    for vm in trace["vm"].values():
        vm["raw_data"][2] = {}
    for period in trace["vm"]["a"]["raw_data"][3:6]:
        period["cpu_wait_share"] = [0.0, 0.15, None]
    with_dumps, without = replays(parse_trace(json.dumps(trace).encode()))
    assert_same(with_dumps, without)
    assert np.isnan(without["borg", "cpu"].peak[2])
    waited = without["borg", "cpu"].waiting
    assert waited is not None
    assert waited[3, 0] > 0
