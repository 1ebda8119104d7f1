"""misc/traceconvert.py: its options and its output file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.conversion import BITBRAINS, HOUR, NODE, Converter


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice-s", "3601", "--scope-s", "3601"], "--slice-s"),
        (["--slice-s", "3600", "--scope-s", "5400"], "--scope-s"),
        ([*HOUR, "--start", "1373954400", "--end", "1373950800"], "--end"),
        ([*HOUR, "--start", "yesterday"], "--start"),
        ([*HOUR, "--hold", "-1"], "--hold"),
        ([*HOUR, "--node-c", "3"], "--node-c"),
        ([*HOUR, "--start", "1373950801", "--end", "1373954399"], "no whole slice"),
        ([*HOUR, "--node-cores", "0"], "--node-cores"),
        ([*HOUR, "--node-cores", "nan"], "--node-cores"),
        ([*HOUR, "--historical", "2000000"], "historical"),
    ],
)
def test_invalid_option_is_one_line(convert: Converter, arguments: list[str], message: str) -> None:
    assert message in convert.error("bitbrains", BITBRAINS, *NODE, *arguments)


def test_existing_trace_survives_a_failure(convert: Converter, tmp_path: Path) -> None:
    convert.output.write_text("older")
    assert convert.code("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR) == 2
    assert convert.output.read_text() == "older"
    assert list(convert.output.parent.iterdir()) == [convert.output]


def test_missing_output_folder_is_reported_before_any_work(convert: Converter, tmp_path: Path) -> None:
    convert.output = tmp_path / "nowhere" / "trace.json"
    assert convert.code("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR) == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in convert.messages
