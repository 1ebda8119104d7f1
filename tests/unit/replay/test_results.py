"""Results of a replay read back from its dumps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import StrategySettings
from model.replay.dump import DumpError
from model.replay.replay import Replay
from model.replay.results import load_results
from model.replay.trace import read_trace
from tests.support.replays import TINY


def write_dumps(folder: Path, *strategies: str, node: str = "node", percentile: float = 90.0) -> Path:
    folder.mkdir(exist_ok=True)
    options = StrategySettings(percentile)
    replay = Replay(read_trace(TINY), ModelSettings(3, strategies, options, options)).run()
    for strategy, text in replay.dumps(node, "mean"):
        (folder / f"dump-{strategy}.json").write_bytes(text)
    return folder


def test_results_of_different_traces_are_not_mixed(tmp_path: Path) -> None:
    folder = write_dumps(tmp_path / "a", "doa", "borg")
    write_dumps(folder, "nsigma", node="other")
    with pytest.raises(DumpError, match=r"dump-nsigma\.json: of another trace"):
        load_results(folder)


def test_results_of_different_settings_are_not_mixed(tmp_path: Path) -> None:
    folder = write_dumps(tmp_path / "a", "doa", "borg")
    write_dumps(folder, "greedy", percentile=50)
    with pytest.raises(DumpError, match=r"dump-greedy\.json: of another trace, or with other settings"):
        load_results(folder)


def test_two_dumps_of_one_strategy_are_refused(tmp_path: Path) -> None:
    folder = write_dumps(tmp_path / "a", "doa")
    (folder / "dump-doa2.json").write_bytes((folder / "dump-doa.json").read_bytes())
    with pytest.raises(DumpError, match="another dump of doa"):
        load_results(folder)


@pytest.mark.parametrize("damage", [("model", "free_cpu"), ("node", "cpu_config"), ("node", "mem_percentile")])
def test_dump_with_a_short_column_is_refused(tmp_path: Path, damage: tuple[str, str]) -> None:
    path = write_dumps(tmp_path / "a", "doa") / "dump-doa.json"
    dump = json.loads(path.read_bytes())
    dump[damage[0]][damage[1]].pop()
    path.write_text(json.dumps(dump))
    with pytest.raises(DumpError, match=f"{damage[1]}: 5 numbers for 6 slices"):
        load_results(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"epoch": [1]}'])
def test_file_other_than_a_dump_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match=re.escape(str(tmp_path))):
        load_results(tmp_path)
    (tmp_path / "dump-x.json").write_text(text)
    with pytest.raises(DumpError, match=r"dump-x\.json"):
        load_results(tmp_path)


def test_figures_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.replay import results as module

    calls = []
    real = module.collect_evidence
    monkeypatch.setattr(module, "collect_evidence", lambda *a: calls.append(a[:2]) or real(*a))
    results = load_results(write_dumps(tmp_path / "a", "doa", "borg"))
    for _ in range(2):
        assert len(results.scores) == 4
        assert results.ranked(module.RESOURCES[0], 0.05)
        assert results.verdict(module.RESOURCES[1], 0.05)
    assert len(calls) == 4
