"""The answer on stdout, as tables and as JSON."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from model.oversubscriptioncomputation import STRATEGIES
from model.replay.evidence import DEFINITION
from model.replay.results import Results
from model.replay.tables import print_json, print_results
from model.slices import RESOURCES
from tests.conftest import strict_json
from tests.support.replays import RISKS, tiny_results


@pytest.fixture(scope="module")
def results() -> Results:
    return tiny_results()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(results: Results, width: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO() if width is None else Terminal()
    print_results(results, RISKS, stream)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


def test_table_shows_count_rate_worst_and_ratio_of_every_strategy(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(results, 200, monkeypatch).splitlines()
    for name in STRATEGIES:
        cpu, memory = [line for line in lines if line.startswith(f" {name} ")]
        for line, added in ((cpu, "vCPU"), (memory, "GB")):
            assert re.match(
                rf" {name} +\d of 5 +[\d.]+% \([\d.]+-[\d.]+%\) +[\d.]+ +[\d.]+ +\d\.\d\d -> \d\.\d\d, \+\d+ {added} ",
                line,
            )


def test_verdict_and_definition_stand_under_the_tables(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown(results, None, monkeypatch).split())
    for resource in RESOURCES:
        assert results.verdict(resource, RISKS[resource.name]).reason in text
    assert DEFINITION in text
    assert "Not recommended" not in text


def test_strategy_that_exceeded_the_capacity_is_named(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = {
        key: replace(history, free=history.config * 1.01) if key == ("doa", "cpu") else history
        for key, history in results.histories.items()
    }
    text = shown(Results("x", "n", results.epoch, histories), None, monkeypatch)
    assert text.count("Not recommended, because they computed more free than the node has: doa.\n") == 1


@pytest.mark.parametrize(
    ("width", "replay", "ratio"), [(60, False, False), (80, False, False), (110, False, True), (240, True, True)]
)
def test_narrow_terminal_loses_columns_from_the_right(
    width: int, replay: bool, ratio: bool, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(results, width, monkeypatch)
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert ("decrease" in text) is replay
    assert (" -> " in text) is ratio
    assert text.count(" of 5 ") >= 18


def test_json_holds_verdict_and_rows_of_both_resources(results: Results) -> None:
    stream = io.StringIO()
    print_json(results, {"cpu": 0.05, "mem": 0.1}, stream)
    answer = strict_json(stream.getvalue())
    assert (answer["node"], answer["slices"]) == ("http://node.test:9100/metrics", 6)
    for name, risk, unit in (("cpu", 0.05, "cores"), ("mem", 0.1, "GB")):
        one = answer[name]
        assert (one["target_risk"], one["unit"]) == (risk, unit)
        assert set(one["verdict"]) == {"strategy", "reason"}
        assert {row["strategy"] for row in one["rows"]} == set(STRATEGIES)
        for row in one["rows"]:
            assert row["violation_rate"] == pytest.approx(row["violations"] / row["slices"])
            lower, upper = row["violation_rate_interval"]
            assert lower <= row["violation_rate"] <= upper
            assert row["scores"]["published_free_share"] > 0
        assert {row["strategy"] for row in one["rows"] if row["exceeds_capacity"]} == {
            row.strategy for row in results.evidence[name] if row.exceeds_capacity
        }


def test_amounts_of_memory_are_in_gb(results: Results) -> None:
    stream = io.StringIO()
    print_json(results, RISKS, stream)
    (row,) = [row for row in strict_json(stream.getvalue())["mem"]["rows"] if row["strategy"] == "borg"]
    (evidence,) = [row for row in results.evidence["mem"] if row.strategy == "borg"]
    assert row["published_free"] == pytest.approx(evidence.published_free / 1024)
