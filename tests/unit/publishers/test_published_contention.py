"""Contention is published: status file, table, JSON, page, metrics; and nothing of it where there is none."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from model.cli.tables import first_that_fits, fits, print_whole
from model.contention import Contention, Level
from model.publishers import status_table as module
from model.publishers.placement.ratio import capacities_of
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import StatusFileError, encode, read_status
from model.publishers.status_sources import StatusSources
from model.publishers.status_table import NodeRow, show_status, status_objects, status_table
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import strict_json
from tests.support.status_pages import EVIL, cells, history, page

END_S, VALID_S = 60.0, 90.0
WAITS = Contention(Level.HIGH, {"a": 0.31251, "b": 0.0625}, 2, {"psi_cpu": 0.25})
SWAPS = Contention(Level.SOME, pressure={"swap_in": 40.0})
CPU_TEXT = "2 VMs wait for CPU: a 31 %, b 6 %; tasks wait for CPU 25 % of the time"
MEM_TEXT = "swaps in 40 pages/s"
NOTHING = {"level": "none", "waiting_vms": 0}


def node(
    cpu: Contention | None = WAITS, mem: Contention | None = SWAPS, name: str = "n1", *, risk: float | None = None
) -> NodeStatus:
    """A node of 64 cores and 8 GB whose CPU is closed; None: of a version that did not look for contention."""
    of_cpu = Figures(
        64.0,
        90.0,
        80.0,
        33.9,
        0.0,
        30.1,
        0.0,
        END_S,
        risk,
        unguarded=30.1,
        closed=True,
        limits={"contention": -1.0},
        used=0.5,
    )
    of_mem = Figures(
        8192.0,
        4096.0,
        4096.0,
        4096.0,
        0.0,
        4096.0,
        1024.0,
        END_S,
        risk,
        unguarded=4096.0,
        limits={"contention": 1024.0},
        used=0.25,
    )
    if cpu is not None:
        of_cpu = replace(of_cpu, contention=cpu)
    if mem is not None:
        of_mem = replace(of_mem, contention=mem)
    return NodeStatus(name, "nsigma", END_S, ResourceStatus("ok", of_cpu), ResourceStatus("ok", of_mem))


CALM = Figures(64.0, 20.0, 20.0, 20.0, 0.0, 44.0, 44.0, END_S)


def calm(name: str = "n1") -> NodeStatus:
    """A node without contention, and without guards that lowered anything."""
    return NodeStatus(name, "nsigma", END_S, ResourceStatus("ok", CALM), ResourceStatus("ok", CALM))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


def write(path: Path, *statuses: NodeStatus) -> None:
    path.write_bytes(encode(statuses, VALID_S))


# --- status -------------------------------------------------------------------------------------------


def test_text_of_a_status_names_the_use_of_a_calm_node() -> None:
    status = node(replace(WAITS, pressure={}, calm=True))
    assert status.cpu.contention_text.endswith("; the node uses 50 % of its CPU: check pinning, NUMA and hyperthreads")
    last = status.cpu.last
    assert last is not None
    unknown = replace(status.cpu, last=replace(last, used=None))
    assert "the node uses little of its CPU" in unknown.contention_text


def test_contention_that_has_not_ended_has_a_text() -> None:
    """The slice shows nothing, or nothing is known of it; the level stays."""
    assert node(Contention(Level.SOME)).cpu.contention_text == "it has not ended yet"
    assert node(Contention()).cpu.contention_text == ""


def test_contention_below_the_level_on_which_the_node_acts_has_no_text() -> None:
    """A VM that waits a little in a single slice."""
    status = node(Contention(Level.NONE, {"a": 0.06}, 1)).cpu
    assert (status.contention_text, status.contention.waiting) == ("", 1)


def test_node_that_is_stale_or_unknown_has_none() -> None:
    for status in (node().aged(120.0), NodeStatus("n1", "nsigma")):
        for one in (status.cpu, status.mem):
            assert (one.contention, one.contention_text) == (Contention(), "")


# --- status file --------------------------------------------------------------------------------------


def test_status_file_says_who_waits(path: Path) -> None:
    write(path, node())
    fields = strict_json(path.read_bytes())["n1"]
    assert fields["cpu"]["contention"] == {
        "level": "high",
        "waiting_vms": 2,
        "text": CPU_TEXT,
        "vms": {"a": 0.3125, "b": 0.0625},
        "pressure": {"psi_cpu": 0.25},
        "calm": False,
    }
    assert list(fields["cpu"]["contention"]["vms"]) == ["a", "b"], "the worst first"
    assert fields["mem"]["contention"] == {
        "level": "some",
        "waiting_vms": 0,
        "text": MEM_TEXT,
        "vms": {},
        "pressure": {"swap_in": 40.0},
        "calm": False,
    }
    published = read_status(path)["n1"]
    assert (published.cpu.contention.text, published.cpu.contention.vms) == (CPU_TEXT, {"a": 0.3125, "b": 0.0625})


def test_status_file_is_brief_where_there_is_none(path: Path) -> None:
    write(path, calm(), node(name="n2").aged(120.0))
    fields = strict_json(path.read_bytes())
    assert [fields[name][resource]["contention"] for name in ("n1", "n2") for resource in ("cpu", "mem")] == [
        NOTHING
    ] * 4
    # A VM that waits a little shows before the level does.
    write(path, node(Contention(Level.NONE, {"a": 0.06}, 1)))
    shown = strict_json(path.read_bytes())["n1"]["cpu"]["contention"]
    assert (shown["level"], shown["text"], shown["vms"]) == ("none", "", {"a": 0.06})


def test_status_file_of_a_version_without_contention_is_read(path: Path) -> None:
    write(path, node())
    older = strict_json(path.read_bytes())
    for resource in ("cpu", "mem"):
        del older["n1"][resource]["contention"]
    path.write_text(json.dumps(older))
    published = read_status(path)["n1"].cpu.contention
    assert (published.level, published.waiting_vms, published.vms) == ("none", 0, {})
    older["n1"]["cpu"]["contention"] = {"level": "terrible"}
    path.write_text(json.dumps(older))
    with pytest.raises(StatusFileError):
        read_status(path)


@pytest.mark.parametrize("name", ["a\nforged: line", "\x1b[31mred", "\u202eleft", "tab\t", "\x00"])
def test_names_of_vms_stay_on_one_line_and_move_no_cursor(
    name: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come from exporters."""
    write(path, node(Contention(Level.HIGH, {name: 0.5}, 1)))
    text = strict_json(path.read_bytes())["n1"]["cpu"]["contention"]["text"]
    assert text.isprintable()
    show_status(StatusSources([str(path)]))
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert not [line for line in out.splitlines() if line.startswith("forged")]


# --- table --------------------------------------------------------------------------------------------


def printed(path: Path, width: int) -> str:
    """The table that fits, and the lines below it."""
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    nodes = read_status(path)
    print_whole(console, module._tables(nodes, END_S))
    console.print(module._definitions(nodes))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160, 250])
def test_contention_is_shown_on_terminals_of_any_width(width: int, path: Path) -> None:
    names = ("http://compute-017.region.example.org:9100/metrics", "n2")
    write(path, node(name=names[0], risk=0.05), calm(names[1]))
    lines = printed(path, width).splitlines()
    assert max(map(len, lines)) <= width
    table, _, below = "\n".join(lines).partition("\n\n")
    words = " ".join(below.split())
    assert f"{names[0]}: CPU contention high: {CPU_TEXT} {names[0]}: memory contention some: {MEM_TEXT}" in words
    assert "closed" in table
    # A column where there is room for it.
    assert ("CPU high, memory some" in table) == (width >= 100)
    assert f"{names[1]}: " not in below


def test_column_has_the_levels_of_both_resources(path: Path) -> None:
    write(path, node(), node(Contention(), name="n2"), calm("n3"))
    nodes = read_status(path)
    (column,) = [one for one in module.COLUMNS if one.contention_only]
    assert [column.value(NodeRow(name, one, END_S)) for name, one in nodes.items()] == [
        "CPU high, memory some",
        "memory some",
        "",
    ]


#: Statuses without contention on which a node acts.
QUIET = [
    [calm()],
    [calm().aged(120.0)],
    [NodeStatus("n1", "nsigma")],
    [replace(calm(), cpu=replace(calm().cpu, last=replace(CALM, contention=Contention(Level.NONE, {"a": 0.06}, 1))))],
]


@pytest.mark.parametrize("width", [80, 160, 250])
@pytest.mark.parametrize("statuses", QUIET)
def test_nothing_is_shown_where_nothing_is_wrong(statuses: list[NodeStatus], width: int, path: Path) -> None:
    write(path, *statuses)
    assert "contention" not in printed(path, width)


def test_lines_are_red_and_yellow(path: Path) -> None:
    write(path, node())
    lines = module._definitions(read_status(path))
    assert [str(span.style) for span in lines.spans] == ["red", "yellow", "dim"]


def test_narrower_tables_are_tried_in_order(path: Path) -> None:
    """Names are folded before a column is left out."""
    write(path, node(name="n" * 60, risk=0.05))
    shown = []
    for width in (250, 160, 115, 80):
        console = Console(file=io.StringIO(), width=width)
        table = first_that_fits(console, module._tables(read_status(path), END_S))
        assert fits(console, table)
        headings = [str(one.header).split("\n")[-1] for one in table.columns]
        shown.append(("contention" in headings, "the guards" in headings, table.columns[0].width))
    assert shown == [(True, True, None), (True, False, 60), (True, False, 24), (False, False, 12)]


def test_table_without_contention_is_the_one_of_before(path: Path) -> None:
    write(path, calm())
    tables = [status_table(read_status(path), END_S, contention=one) for one in (True, False)]
    assert [len(table.columns) for table in tables] == [len(tables[0].columns)] * 2


# --- JSON and exit code -------------------------------------------------------------------------------


def test_json_always_has_all_of_it(path: Path) -> None:
    write(path, node(), calm("n2"))
    first, second = status_objects(read_status(path), END_S)
    assert first["cpu"]["contention"]["text"] == CPU_TEXT
    assert first["mem"]["contention"]["pressure"] == {"swap_in": 40.0}
    empty = {"text": "", "vms": {}, "pressure": {}, "calm": False}
    assert second["cpu"]["contention"] == second["mem"]["contention"] == NOTHING | empty


def test_contention_is_no_failure_of_the_estimator(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.time, "time", lambda: END_S)
    write(path, node())
    assert show_status(StatusSources([str(path)])) == 0


# --- status page --------------------------------------------------------------------------------------


def test_page_has_a_column_of_contention() -> None:
    text = page(history([node(), calm("n2")]), now_s=END_S)
    assert '<th rowspan="2" scope="col" class="left">contention</th>' in text
    rows = cells(text)
    assert rows[0][2] == f"CPU high: {CPU_TEXT} memory some: {MEM_TEXT}"
    assert rows[1][2] == ""
    assert '<small class="high">CPU high: ' in text
    assert '<small class="some">memory some: ' in text
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize("statuses", [*QUIET, []])
def test_page_is_quiet_where_nothing_is_wrong(statuses: list[NodeStatus]) -> None:
    text = page(history(statuses), now_s=END_S)
    assert ">contention<" not in text
    assert '<td class="reason">' not in text


def test_column_is_that_of_the_shown_nodes() -> None:
    assert ">contention<" not in page(history([node(name="n1"), calm("n2")]), "node=n2", now_s=END_S)
    assert ">contention<" in page(history([node(name="n1"), calm("n2")]), "node=n1", now_s=END_S)


def test_names_of_vms_are_escaped_on_the_page() -> None:
    text = page(history([node(Contention(Level.HIGH, {EVIL: 0.5}, 1))]), now_s=END_S)
    assert "<script>alert" not in text
    assert EVIL in cells(text)[0][2]


# --- metrics ------------------------------------------------------------------------------------------


def metrics_of(*statuses: NodeStatus) -> dict[str, float]:
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts())
    metrics.publish(statuses)
    lines = [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    names = ("scroogevm_contention_level", "scroogevm_waiting_vms", "scroogevm_vm_wait_share_max")
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name.startswith(names)}


def test_metrics_have_level_number_and_worst() -> None:
    assert metrics_of(node(), calm("n2")) == {
        'scroogevm_contention_level{node="n1",resource="cpu"}': 2.0,
        'scroogevm_contention_level{node="n1",resource="memory"}': 1.0,
        'scroogevm_contention_level{node="n2",resource="cpu"}': 0.0,
        'scroogevm_contention_level{node="n2",resource="memory"}': 0.0,
        'scroogevm_waiting_vms{node="n1"}': 2.0,
        'scroogevm_waiting_vms{node="n2"}': 0.0,
        'scroogevm_vm_wait_share_max{node="n1"}': 0.31251,
        'scroogevm_vm_wait_share_max{node="n2"}': 0.0,
    }


def test_metrics_of_a_resource_that_is_not_ok_are_absent() -> None:
    assert metrics_of(node().aged(120.0), NodeStatus("n2", "nsigma")) == {}
    status = node()
    assert set(metrics_of(replace(status, cpu=status.cpu.aged()))) == {
        'scroogevm_contention_level{node="n1",resource="memory"}'
    }


# --- Placement ----------------------------------------------------------------------------------------


def test_capacity_within_a_slice_of_contention_is_at_most_what_the_node_has() -> None:
    figures = Figures(64.0, 90.0, 80.0, 33.9, 0.0, 30.1, 7.5, END_S)
    status = NodeStatus("n1", "nsigma", END_S, ResourceStatus("ok", figures), ResourceStatus("ok", figures))
    (before,) = capacities_of([status])
    (after,) = capacities_of([status.contended({"cpu": WAITS})])
    cpu, mem = (
        [(one.free, one.booked_now) for one in pair if one is not None]
        for pair in ((before.cpu, after.cpu), (before.mem, after.mem))
    )
    assert (cpu, mem) == ([(7.5, 80.0), (0.0, 64.0)], [(7.5, 80.0)] * 2)
