"""The table of the published status, its JSON and its exit code."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from model.cli.tables import first_that_fits, print_checks
from model.common.errors import UsageError
from model.publishers import status_table as module
from model.publishers.status_file import encode, read_status
from model.publishers.status_sources import StatusSources
from model.publishers.status_table import COLUMNS, show_status, status_objects, status_table, watch_status
from model.slices import CPU
from model.status import Figures, NodeStatus, ResourceStatus

END_S, VALID_S, NOW_S = 1000.0, 90.0, 1060.0


def node(name: str = "n1", *, risk: float | None = None, rate: float | None = None) -> NodeStatus:
    """32 cores, 20 booked now and 26 in the slice, 12 free; 64 GB, 40 booked now and 44 in the slice, 20 free."""
    cpu = Figures(32.0, 26.0, 20.0, 20.0, 0.0, 12.0, 12.0, END_S, risk, rate)
    mem = Figures(65536.0, 45056.0, 40960.0, 45056.0, 0.0, 20480.0, 20480.0, END_S, risk, rate)
    return NodeStatus(name, "borg", END_S, ResourceStatus("ok", cpu), ResourceStatus("ok", mem))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test may change."""
    clock = [NOW_S]
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    return clock


def write(path: Path, *statuses: NodeStatus) -> None:
    path.write_bytes(encode(statuses, VALID_S))


def lines(path: Path, now_s: float = NOW_S, **options: Any) -> list[list[str]]:
    stream = io.StringIO()
    Console(file=stream, width=200).print(status_table(read_status(path), now_s, **options))
    return [line.split() for line in stream.getvalue().splitlines()]


def test_row_begins_with_state_and_free_amounts(path: Path) -> None:
    write(path, node())
    title, groups, headings, row = lines(path)
    assert title == ["Free", "resources", "of", "each", "node"]
    assert groups == ["free", "free", "CPU", "CPU", "CPU", "memory", "memory", "memory", "age", "of"]
    assert headings == [
        "node",
        "state",
        "cores",
        "GB",
        "ratio",
        "booked",
        "now",
        "of",
        "ratio",
        "booked",
        "now",
        "of",
        "the",
        "slice",
        "strategy",
    ]
    assert row == ["n1", "ok", "12.0", "20.0", "1.00", "20.0", "32.0", "0.94", "40.0", "64.0", "60", "s", "borg"]


def test_brief_table_lacks_the_columns_for_wide_terminals(path: Path) -> None:
    write(path, node(risk=0.05, rate=0.04))
    _, _, headings, row = lines(path, brief=True)
    assert headings == ["node", "state", "cores", "GB", "ratio", "CPU", "ratio", "memory", "strategy"]
    assert row == ["n1", "ok", "12.0", "20.0", "1.00", "5%", "(4%)", "0.94", "5%", "(4%)", "borg"]


def test_every_column_has_a_heading_and_a_value(path: Path) -> None:
    write(path, node(risk=0.05))
    nodes = read_status(path)
    row = module.NodeRow("n1", nodes["n1"], NOW_S)
    assert len({(column.group, column.heading) for column in COLUMNS}) == len(COLUMNS)
    # Nothing is said of guards that lowered nothing, and of VMs that do not suffer.
    quiet = [column.guards_only or column.contention_only for column in COLUMNS]
    assert [not column.value(row) for column in COLUMNS] == quiet
    assert all(column.heading for column in COLUMNS)


def test_table_says_what_each_guard_left_of_a_figure_and_that_a_node_is_closed(path: Path) -> None:
    limited = node(risk=0.01)
    figures = limited.cpu.last
    assert figures is not None
    cpu = replace(figures, free=2.55, unguarded=30.1, limits={"horizon": 10.2, "ramp": 2.55}, violation_rate=0.02)
    write(path, replace(limited, cpu=replace(limited.cpu, last=cpu)))
    assert shown_column(path)[:2] == ["CPU before", "the guards"]
    assert shown_column(path)[2] == "30.1: horizon 10.2, ramp 2.5"
    closed = replace(cpu, free=0.0, closed=True, limits={"node": -1.0})
    write(path, replace(limited, cpu=replace(limited.cpu, last=closed)))
    assert shown_column(path)[2] == "30.1: node 0.0, closed"
    (published,) = read_status(path).values()
    # 20 cores are booked now, and the node has 32.
    assert published.capacity(CPU) == 20.0


def shown_column(path: Path) -> list[str]:
    """Group, heading and value of the guards' column for CPU."""
    nodes = read_status(path)
    (column,) = [one for one in COLUMNS if one.guards_only and one.group.startswith("CPU")]
    return [column.group, column.heading, column.value(module.NodeRow("n1", nodes["n1"], NOW_S))]


def test_figures_that_are_missing_are_dashes(path: Path) -> None:
    write(path, NodeStatus("n1", "borg"))
    assert lines(path)[3] == ["n1", "unknown", "0.0", "0.0", "-", "-", "-", "-", "-", "-", "-", "borg"]


@pytest.mark.parametrize(
    ("status", "now_s", "state", "code"),
    [
        (node(), NOW_S, "ok", 0),
        (node(), END_S + VALID_S, "ok", 0),
        (node(), END_S + VALID_S + 1, "outdated", 1),
        (node().aged(END_S), NOW_S, "stale", 1),
        (NodeStatus("n1", "borg"), NOW_S, "unknown", 1),
    ],
)
def test_exit_code_is_1_unless_every_node_is_ok(
    path: Path,
    now: list[float],
    capsys: pytest.CaptureFixture[str],
    status: NodeStatus,
    now_s: float,
    state: str,
    code: int,
) -> None:
    now[0] = now_s
    write(path, node("other") if code == 0 else status, status)
    assert show_status(StatusSources([str(path)])) == code
    assert f" {state} " in capsys.readouterr().out
    assert show_status(StatusSources([str(path)]), json=True) == code
    assert state in [entry["state"] for entry in json.loads(capsys.readouterr().out)]


NO_CONTENTION = {"level": "none", "waiting_vms": 0, "text": "", "vms": {}, "pressure": {}, "calm": False}


def test_json_has_the_figures_of_the_status_file(
    path: Path, now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, node(risk=0.05), NodeStatus("n2", "borg"))
    show_status(StatusSources([str(path)]), json=True)
    entries = json.loads(capsys.readouterr().out)
    assert entries == status_objects(read_status(path), NOW_S)
    assert entries[0] == {
        **{"node": "n1", "state": "ok", "slice_end": 1000, "age_s": 60.0, "strategy": "borg"},
        "cpu": {
            **{"state": "ok", "free": 12.0, "booked": 26.0, "booked_now": 20.0, "config": 32.0, "ratio": 1.0},
            **{"target_risk": 0.05, "violation_rate": None, "forecast_violation_rate": None},
            **{"unguarded": None, "limits": {}, "closed": False, "contention": NO_CONTENTION},
        },
        "mem": {
            **{
                "state": "ok",
                "free": 20480.0,
                "booked": 45056.0,
                "booked_now": 40960.0,
                "config": 65536.0,
                "ratio": 0.9375,
            },
            **{"target_risk": 0.05, "violation_rate": None, "forecast_violation_rate": None},
            **{"unguarded": None, "limits": {}, "closed": False, "contention": NO_CONTENTION},
        },
    }
    assert [entries[1][key] for key in ("state", "slice_end", "age_s")] == ["unknown", None, None]
    assert entries[1]["mem"]["ratio"] is None


def test_definitions_follow_the_table(path: Path, now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    write(path, node())
    show_status(StatusSources([str(path)]))
    assert "ratio: (booked now + free) / of" in capsys.readouterr().out
    assert "risk" not in capsys.readouterr().out
    write(path, node(risk=0.05))
    show_status(StatusSources([str(path)]))
    assert "risk: target" in capsys.readouterr().out


def test_missing_status_is_a_usage_error(path: Path) -> None:
    with pytest.raises(UsageError, match=r"status.json: No such file or directory$"):
        show_status(StatusSources([str(path)]))


def test_watch_prints_each_change_into_a_pipe(path: Path, now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    steps = iter(
        [
            lambda: None,
            lambda: now.__setitem__(0, NOW_S + 1),  # only the age changes
            lambda: write(path, node("n2")),
            lambda: now.__setitem__(0, END_S + VALID_S + 1),  # outdated
            path.unlink,
            lambda: None,
        ]
    )

    def sleep(_seconds: float) -> None:
        try:
            next(steps)()
        except StopIteration:
            raise KeyboardInterrupt from None

    write(path, node())
    with pytest.raises(KeyboardInterrupt):
        watch_status(StatusSources([str(path)]), sleep)
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith((" n", str(path)))]
    rows = [row for row in rows if row[0] != "node"]
    assert rows == [["n1", "ok"], ["n2", "ok"], ["n2", "outdated"], [f"{path}:", "No"]]


def test_tables_after_the_one_that_fits_are_not_generated(path: Path) -> None:
    write(path, node())
    console = Console(file=io.StringIO(), width=200)
    tables = (status_table(read_status(path), NOW_S) for _ in range(2))
    first_that_fits(console, tables)
    assert len(list(tables)) == 1


def test_checks_are_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [("store", True, "7 nodes"), ("placement", False, "HTTP status 403")]
    assert not print_checks(checks)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["target", "result", "details"],
        ["store", "ok", "7", "nodes"],
        ["placement", "FAILED", "HTTP", "status", "403"],
    ]
    assert print_checks(checks[:1], json=True)
    assert json.loads(capsys.readouterr().out) == [{"target": "store", "ok": True, "message": "7 nodes"}]
