"""Parity with the recorded results of the original, on the copies in the repository."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA
from tests.support.recordings import differences, recordings, replay_recording

SMALL = DATA / "goldens"


Flags = list[tuple[bool, bool]]


@functools.cache
def replayed(path: Path) -> tuple[Any, Any, Flags]:
    """Dump, recording, and each recorded flag with that of the mean predictor."""
    flags: Flags = []
    return (*replay_recording(path, SMALL, flags), flags)


@pytest.mark.parametrize("path", recordings(SMALL))
def test_recorded_result_is_met(path: Path) -> None:
    dump, recorded, _ = replayed(path)
    assert differences(dump, recorded, path) == []


def test_mean_predictor_gives_nine_of_ten_recorded_flags() -> None:
    """It replaces the recurrent network of the original."""
    paths = [parameter.values[0] for parameter in recordings(SMALL)]
    by_flags = [path for path in paths if path.stem.split(".")[1] in {"greedy", "scroogevm"}]
    flags = [pair for path in by_flags for pair in replayed(path)[2]]
    agreeing = sum(recorded == computed for recorded, computed in flags)
    assert len(flags) > 100
    assert agreeing / len(flags) > 0.9
