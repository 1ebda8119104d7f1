"""The replay of a small trace, as several test files need it."""

from __future__ import annotations

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.replay import Replay
from model.replay.results import Results, replay_results
from model.replay.trace import read_trace
from tests.conftest import DATA

TINY = DATA / "goldens" / "traces" / "tiny.json"

RISKS = {"cpu": 0.05, "mem": 0.05}


def tiny_results(name: str = "tiny", node: str = "http://node.test:9100/metrics") -> Results:
    """Every strategy on the trace."""
    return replay_results(name, node, Replay(read_trace(TINY), ModelSettings(3, tuple(STRATEGIES))).run())
