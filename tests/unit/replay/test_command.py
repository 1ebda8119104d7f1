"""The replay command: what it prints, where it writes, and which options reach it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.cli.model_options import ModelOptions
from model.common.errors import UsageError
from model.replay import command
from model.replay.options import ReplayOptions
from model.replay.results import load_results
from tests.conftest import strict_json
from tests.support.replays import TINY


def options(model: ModelOptions | None = None, **changes: Any) -> ReplayOptions:
    values: dict[str, Any] = {
        "trace": TINY, "strategies": ("doa", "borg"), "node_name": None, "output": None,
        "report": False, "debug": 0, "json": False,
    }  # fmt: skip
    return ReplayOptions(**{**values, **changes}, model=model or ModelOptions())


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        options().json = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("own", "targets"),
    [
        ({}, {"cpu": 0.05, "mem": 0.05}),
        ({"risk_cpu": 0.01}, {"cpu": 0.01, "mem": 0.05}),
        ({"risk_cpu": 0.01, "risk_mem": 0.2}, {"cpu": 0.01, "mem": 0.2}),
    ],
)
def test_target_risk_of_a_resource_overrides_that_of_both(own: dict[str, float], targets: dict[str, float]) -> None:
    assert options(ModelOptions(**own)).target_risks == targets


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.run(options(ModelOptions(risk_mem=0.1), json=True, report=True, output=tmp_path / "out")) == 0
    answer = strict_json(capsys.readouterr().out)
    assert [answer[name]["target_risk"] for name in ("cpu", "mem")] == [0.05, 0.1]
    assert (tmp_path / "out" / "report.html").exists()


def test_compact_dump_holds_what_the_dumps_of_all_strategies_hold(tmp_path: Path) -> None:
    for compact in (False, True):
        command.run(options(strategies=("doa", "borg", "clt"), output=tmp_path / f"{compact}", compact=compact))
    assert [path.name for path in sorted((tmp_path / "True").iterdir())] == ["dump-all.json", "summary.csv"]
    dump = strict_json((tmp_path / "True" / "dump-all.json").read_text())
    models = {"doa": dump["model"], **dump.pop("others")}
    for vm in dump["vm"].values():
        for resource in ("cpu", "mem"):
            # A list per percentile becomes an object per slice.
            lists = vm[f"{resource}_percentile"]
            rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
            vm[f"{resource}_percentile"] = [None if None in row.values() else row for row in rows]
    for strategy in ("doa", "borg", "clt"):
        dump["model"], dump["config"]["strategy"] = models[strategy], strategy
        assert dump == strict_json((tmp_path / "False" / f"dump-{strategy}.json").read_text())
    one, other = (load_results(tmp_path / f"{compact}") for compact in (False, True))
    assert one.strategies == other.strategies
    assert repr(one.scores) == repr(other.scores)


def test_path_of_the_report_is_the_last_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    command.run(options(report=True, output=folder))
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    command.run(options(output=folder))
    assert "report.html" not in capsys.readouterr().out


def test_trace_whose_name_is_not_utf8_is_replayed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / os.fsdecode(b"tr\xe4ce.json")
    shutil.copy(TINY, trace)
    output = tmp_path / os.fsdecode(b"\xf6ut")
    assert command.run(options(trace=str(trace), output=output, report=True, strategies=("borg",))) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("\\udcf6ut/report.html")
    assert "<h1>tr\\udce4ce</h1>" in (output / "report.html").read_text()
    trace.write_text("{")
    with pytest.raises(UsageError, match=r"tr\\udce4ce\.json: not JSON") as refused:
        command.run(options(trace=str(trace)))
    assert str(refused.value).isascii()


def test_trace_without_the_key_vm_is_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace_object: dict[str, Any]
) -> None:
    del trace_object["vm"]
    (tmp_path / "trace.json").write_text(json.dumps(trace_object))
    assert command.run(options(trace=tmp_path / "trace.json", json=True)) == 0
    assert {row["booked_ratio"] for row in strict_json(capsys.readouterr().out)["cpu"]["rows"]} == {0}


def test_subscribers_see_every_slice_after_the_recorder() -> None:
    from model.nodemodel import ModelSettings
    from model.replay.replay import Replay
    from model.replay.trace import read_trace

    replay = Replay(read_trace(TINY), ModelSettings(3, ("borg",)))
    seen: list[tuple[str, float, int]] = []
    replay.run(
        lambda finished, _: seen.append(("a", finished.end_s, len(replay.recorder.epoch))),
        lambda finished, _: seen.append(("b", finished.end_s, len(replay.recorder.epoch))),
    )
    assert seen == [(name, end_s, k) for k, end_s in enumerate(replay.trace.epoch, 1) for name in "ab"]
