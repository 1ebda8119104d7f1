"""How a scan is shown: table, explanation, CSV, JSON and page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import pytest

from model.scan.command import with_ratios
from model.scan.finding import LEAST_SLICES, SEVERITIES, NodeFinding, ResourceFinding, Severity, TopVm
from model.scan.report import render_report
from model.scan.tables import as_csv, as_json, explanation_of, print_findings
from model.scan.totals import sentence_of, totals_of

HOSTILE = "<script>alert(1)</script>&\"'"


def resource(scale: float = 1.0, **more: object) -> ResourceFinding:
    """32 cores, or as many GB: 48 booked, 12.5 free."""
    amounts = {"config": 32.0, "booked": 48.0, "capacity": 60.5, "free": 12.5, "used_mean": 9.0, "peak": 18.0}
    values = {name: value * scale for name, value in amounts.items()}
    return ResourceFinding(
        **{
            **values,
            **{"peak_s": 1_700_000_000.0, "slices": 300, "compared": 299, "violated": 3, "waited": 0},
            **{"unguarded": 14.0 * scale, "limits": {"ramp": 12.5 * scale}, "closed": False, "contention": ""},
            **{"others": {"clt": 12.5 * scale, "nsigma": 4.0 * scale}, "ratio_now": 1.5},
            **{"top": (TopVm(HOSTILE, 4.0 * scale, 8.0 * scale),)},
            "series": ((1.0, 2.0), (3.0 * scale, 18.0 * scale), (48.0 * scale,) * 2, (50.0 * scale, 60.5 * scale)),
            **more,
        }  # type: ignore[arg-type]
    )


def node(name: str = "n1", **more: object) -> NodeFinding:
    finding = NodeFinding(name, "clt", 1_699_000_000.0, 1_700_000_000.0, 12, resource(), resource(1024.0))
    return replace(finding, **more)  # type: ignore[arg-type]


FLEET = [
    node("harm", cpu=resource(contention="2 VMs wait for CPU: a 31 %", waited=4)),
    node("full", mem=resource(1024.0, free=0.0)),
    node("short", cpu=resource(compared=LEAST_SLICES - 1)),
    NodeFinding("gone", error="no confirmed samples"),
    node("room"),
    node(HOSTILE, cpu=resource(free=1.0)),
]


@pytest.mark.parametrize(
    ("finding", "severity"),
    [
        (node(), "room"),
        (node(cpu=resource(booked=48.0, closed=True)), "harm"),
        (node(cpu=resource(booked=20.0, closed=True, free=0.0)), "full"),
        (node(mem=resource(1024.0, reason="no samples")), "unsure"),
        (node(cpu=None), "room"),
        (node(cpu=resource(free=0.03)), "full"),
        (NodeFinding("a", error="x"), "unsure"),
    ],
)
def test_severity_is_that_of_the_worse_resource(finding: NodeFinding, severity: Severity) -> None:
    assert finding.severity == severity


def test_worst_nodes_come_first() -> None:
    assert [one.node for one in sorted(FLEET, key=NodeFinding.sort_key)] == [
        *("harm", "full", "gone", "short", HOSTILE, "room")
    ]


def test_only_nodes_with_room_count_for_the_answer() -> None:
    totals = totals_of(FLEET)
    assert (totals.nodes, totals.missing, totals.free_vcpus, totals.free_mb) == (5, 1, 13, 25 * 1024.0)
    assert dict(totals.severities) == {"harm": 1, "full": 1, "unsure": 1, "room": 2}
    assert sentence_of(totals, 0.01) == (
        "5 nodes: 13 vCPUs and 25 GB could be placed at 1 % risk (1 node has no figures)"
    )


def test_table_has_every_node_and_its_ratios() -> None:
    stream = io.StringIO()
    print_findings(FLEET, totals_of(FLEET), 0.01, stream)
    lines = stream.getvalue().splitlines()
    (room,) = [
        line for line in lines if " room  " in line and "1.50 → 1.89" in line and "12.5" in line and "n1" not in line
    ][:1]
    assert "3 of 299" in room
    assert any("gone" in line and "no confirmed samples" in line for line in lines)
    assert any("harm" in line and "2 VMs wait for CPU: a 31 %" in line for line in lines)
    assert lines[-1].startswith("5 nodes: 13 vCPUs")


def test_explanation_names_guards_peak_and_vms() -> None:
    text = "\n".join(explanation_of(node()))
    for part in (
        "n1: room, more can be placed",
        "free 12.5 cores, of 14.0 that the strategy finds: ratio 1.50 → 1.89",
        "left by the guards: ramp 12.5",
        "300 slices, 299 compared, 3 violated (1.0%), 0 with contention",
        "18.0 at the peak of 2023-11-14 22:13 UTC",
        f"4.0 of 8.0 cores  {HOSTILE}",
        "each strategy would publish: clt 12.5, nsigma 4.0",
    ):
        assert part in text
    assert list(explanation_of(FLEET[3]))[1:] == ["  no confirmed samples"]


def test_csv_has_a_row_per_node() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(FLEET))))
    assert [row["node"] for row in rows] == [one.node for one in FLEET]
    assert (rows[4]["cpu_free"], rows[4]["mem_free"], rows[4]["severity"]) == ("12.5", "12800", "room")
    assert (rows[3]["cpu_free"], rows[3]["note"]) == ("", "no confirmed samples")


def test_json_is_strict_and_complete() -> None:
    data = json.loads(msgspec.json.encode(as_json([node(cpu=resource(peak_s=math.nan))], totals_of(FLEET), 0.01)))
    (one,) = data["nodes"]
    assert one["cpu"]["peak_s"] is None
    assert one["cpu"]["series"]["peak"] == [3.0, 18.0]
    assert (one["severity"], data["risk"], data["totals"]["severities"]["room"]) == ("room", 0.01, 2)


class Page(HTMLParser):
    """Counts what matters of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_page_needs_no_network_and_escapes_names() -> None:
    text = render_report(FLEET, totals_of(FLEET), 0.01)
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.tags.count("script") == 1
    assert text.count('class="row"') == len(FLEET)
    assert page.tags.count("svg") == 2 * (len(FLEET) - 1)
    for severity in SEVERITIES:
        assert severity in text


def test_ratio_of_placement_replaces_what_is_booked() -> None:
    changed = with_ratios(node(), {"cpu": 4.0})
    assert changed.cpu is not None
    assert changed.mem is not None
    assert (changed.cpu.ratio_now, changed.mem.ratio_now) == (4.0, 1.5)
