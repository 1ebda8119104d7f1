"""The status page: content, escaping, paging, history."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model.publishers.status_page.history import SLICES_KEPT, History
from model.publishers.status_page.page import NODES_PER_PAGE
from model.publishers.status_page.query import Query
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import ROOT
from tests.support.status_pages import EVIL, LAST_S, SLICE_S, VALID_S, cells, history, ok, page

# --- content -----------------------------------------------------------------------------------


def test_row_shows_the_published_figures() -> None:
    (row,) = cells(page(history([ok()])))
    assert row == [
        *("http://w1:9100/metrics", "ok", "12.5", "20.0", "32.0", "1.02", ""),
        *("20.0", "40.0", "64.0", "0.94", "", "60 s", "scroogevm"),
    ]


def test_row_shows_what_the_guards_left_and_how_often_the_node_was_full() -> None:
    status = ok()
    assert status.cpu.last is not None
    limits = {"horizon": 18.04, "ramp": 12.5}
    last = replace(status.cpu.last, unguarded=20.0, limits=limits, violation_rate=0.03)
    (row,) = cells(page(history([replace(status, cpu=replace(status.cpu, last=last))])))
    assert row[2] == "12.5 of 20.0: horizon 18.0, ramp 12.5 full or exceeded in 3% of the slices"
    last = replace(last, free=0.0, closed=True, limits={"node": -1.0}, violation_rate=0.0)
    (row,) = cells(page(history([replace(status, cpu=replace(status.cpu, last=last))])))
    assert row[2] == "0.0 of 20.0: node 0.0, closed"
    # 20 cores are booked now: no more than that may be booked, of 32.
    assert row[5] == "0.62"


def test_stale_node_has_nothing_free_and_shows_the_last_figure() -> None:
    text = page(history([ok(end_s=LAST_S - SLICE_S)], [ok(end_s=LAST_S - SLICE_S).aged(LAST_S)]))
    (row,) = cells(text)
    assert row[1:6] == ["stale", "0.0 last 12.5", "20.0", "32.0", "0.62"]
    assert "1 slice without data" in text


def test_state_of_a_single_resource_is_shown_beside_it() -> None:
    (row,) = cells(page(history([replace(ok(), mem=ok().mem.aged())])))
    assert row[1:3] == ["ok", "12.5"]
    assert row[7] == "0.0 last 20.0 stale"


@pytest.mark.parametrize("status", [NodeStatus("n", "borg"), NodeStatus("n", "borg").aged(LAST_S)])
def test_unknown_node_has_no_figures(status: NodeStatus) -> None:
    (row,) = cells(page(history([status])))
    assert row[:6] == ["n", "unknown", "0.0", "-", "-", "-"]
    assert row[-2] == ("-" if math.isnan(status.slice_end_s) else "60 s")


def test_status_is_outdated_after_its_validity() -> None:
    kept = history([ok()])
    assert cells(page(kept, now_s=LAST_S + VALID_S))[0][1] == "ok"
    assert cells(page(kept, now_s=LAST_S + VALID_S + 1))[0][1] == "outdated"


def test_empty_table_states_the_reason() -> None:
    assert cells(page(History())) == [["nothing is published yet"]]
    assert cells(page(history([ok()]), "node=other")) == [["no node matches"]]


def test_totals_ignore_the_filter() -> None:
    text = page(history([ok("a"), ok("b", free=2.5), ok("c").aged(LAST_S), NodeStatus("d", "borg")]), "node=a")
    assert "CPU: <b>15.0</b> cores free" in text
    # (3 * 20 + 15) / 96
    assert re.search(r"60\.0 booked now of 96\.0, ratio\s+0\.78", text)
    assert [word in text for word in ("2 ok", "1 stale", "1 unknown", "outdated</a>")] == [True, True, True, False]


def test_other_strategies_are_folded() -> None:
    folded = re.search(r"<details><summary>scroogevm</summary>(.*?)</details>", page(history([ok()])), flags=re.S)
    assert folded
    assert re.findall(r"<t[hd].*?>(.*?)</t[hd]>", folded[1]) == [
        *("free", "CPU", "memory"),
        *("scroogevm", "12.5", "20.0"),
        *("borg", "3.2", "1.0"),
    ]
    alone = replace(ok(), cpu=replace(ok().cpu, others={"scroogevm": 1.0}), mem=replace(ok().mem, others={}))
    assert "<details>" not in page(history([alone]))


def test_chart_stacks_free_on_booked() -> None:
    """32 cores are at height 1; 16 booked of 32 cores at 1 + 31 / 2, rounded to even; 24 at 1 + 31 / 4."""
    ends = [LAST_S - SLICE_S, LAST_S]
    text = page(history([ok(end_s=ends[0], free=8, booked=16)], [ok(end_s=ends[1], free=16, booked=16)]), "refresh=0")
    row = text[text.index("<tbody>") :]
    (free, *_), (booked, *_), (config, *_) = (
        re.findall(rf'<path class="{kind}" d="(.*?)"', row) for kind in ("free", "booked", "config")
    )
    assert (free, booked, config) == ("M188 32V9H190V1H192V32Z", "M188 32V17H192V32Z", "M188 1H192")
    assert "<title>CPU: free 8.0 to 16.0, booked now 16.0 cores, ratio 0.75 to 1.00</title>" in row


def test_missing_slice_is_a_gap_in_the_chart() -> None:
    kept = history([ok(end_s=LAST_S - 3 * SLICE_S)], [ok(end_s=LAST_S)])
    row = page(kept).partition("<tbody>")[2]
    assert re.findall(r'<path class="booked" d="(.*?)"', row)[0].count("Z") == 2
    assert "2 slices without data" in row


@pytest.mark.parametrize("free", [0.0, 1e9, math.nan, math.inf])
def test_extreme_figures_are_rendered(free: float) -> None:
    status = ok(free=free)
    nothing = replace(status, cpu=ResourceStatus("ok", replace(Figures(*[0.0] * 8), slice_end_s=LAST_S), {}))
    assert len(cells(page(history([status, replace(nothing, node="zero")])))) == 2


# --- hostile input ---------------------------------------------------------------------------------


def test_every_name_is_escaped() -> None:
    status = replace(ok(EVIL), strategy=EVIL)
    status = replace(status, cpu=replace(status.cpu, others={EVIL: 1.0, "b": 2.0}))
    text = page(history([status]), "node=%3C/script%3E%22'")
    assert "<script" not in text
    assert "\"'" not in text
    assert text.count("&lt;script&gt;alert(1)") == 3
    assert 'value="&lt;/script&gt;&#34;&#39;"' in text


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query()),
        ("node=+W1+&state=stale&page=3&refresh=0", Query("w1", "stale", 3, refresh=False)),
        ("state=%3Cb%3E&page=-1", Query()),
        ("page=0x10&page=%D9%A3", Query()),
        (f"page={'9' * 5000}&node={'x' * 5000}", Query(node="x" * 200)),
        ("page=0&&&=&node", Query()),
        ("node=%ff%00", Query(node="\ufffd\x00")),
    ],
)
def test_invalid_fields_of_a_query_get_defaults(text: str, query: Query) -> None:
    assert Query.parse(text) == query
    assert page(history([ok()]), text)


def test_link_preserves_the_query() -> None:
    query = Query('a&b"<', "stale", 3, refresh=False)
    assert Query.parse(query.link().partition("?")[2]) == query
    assert query.link(node="", state="", page=1, refresh="") == "./?"


def test_page_has_a_bounded_number_of_nodes() -> None:
    kept = history([ok(f"n{i}") for i in range(2 * NODES_PER_PAGE + 1)])
    first, last, beyond = (cells(page(kept, f"page={k}")) for k in (1, 3, 99))
    assert (len(first), len(last), beyond) == (NODES_PER_PAGE, 1, last)
    assert [row[0] for row in cells(page(kept, "node=N39"))] == ["n39", *(f"n39{i}" for i in range(10))]


# --- history ------------------------------------------------------------------------------------


def test_history_is_bounded_in_slices_nodes_and_bytes() -> None:
    kept, nodes = History(), [ok(f"n{i}") for i in range(100)]
    for k in range(SLICES_KEPT + 10):
        kept.publish([replace(node, slice_end_s=k * SLICE_S) for node in nodes])
    histories = kept.snapshot.histories
    assert {rows.shape for rows in histories.values()} == {(SLICES_KEPT, 7)}
    assert histories["n7"][:, 0].tolist() == [k * SLICE_S for k in range(10, SLICES_KEPT + 10)]
    # A thousand nodes cost less than 20 MB.
    assert sum(rows.nbytes for rows in histories.values()) * 10 < 6e6
    kept.publish(nodes[:1])
    assert list(kept.snapshot.histories) == ["n0"]


def test_republished_slice_is_replaced() -> None:
    kept = history([ok(free=1)], [ok(free=2)])
    assert kept.snapshot.histories[ok().node][:, 1].tolist() == [2.0]


def test_later_slices_are_dropped_when_the_clock_is_set_back() -> None:
    ends = [LAST_S, LAST_S + SLICE_S, LAST_S + 86400, LAST_S + SLICE_S]
    kept = history(*([ok(end_s=end_s)] for end_s in ends))
    assert kept.snapshot.histories[ok().node][:, 0].tolist() == ends[:2]


def test_reader_sees_a_consistent_rowsduring_publications() -> None:
    kept, stop = History(), threading.Event()
    nodes = [ok(f"n{i}") for i in range(5)]

    def publish() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            kept.publish([replace(node, slice_end_s=k * SLICE_S) for node in nodes])

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for _ in range(30):
            histories = kept.snapshot.histories
            assert len({tuple(rows[:, 0]) for rows in histories.values()}) <= 1
        page(kept)
    finally:
        stop.set()
        publisher.join()


def test_template_is_found_under_any_package_name(tmp_path: Path) -> None:
    """In a checkout the package is ``model``, installed it is ``scroogevm``."""
    (tmp_path / "scroogevm").symlink_to(ROOT / "model")
    code = (
        "from scroogevm.publishers.status_page.renderer import StatusPage, PageSettings, Snapshot, Query\n"
        "print(StatusPage(PageSettings(60, 90)).render(Snapshot(), Query(), 0.0).decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nothing is published yet" in done.stdout
