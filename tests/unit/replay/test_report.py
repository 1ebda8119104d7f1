"""report.html: complete, escaped, and readable without any other file or host."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.charts import HEIGHT, WIDTH, charts_of
from model.replay.presentation import DEFINITIONS
from model.replay.replay import Replay
from model.replay.report import render_report
from model.replay.results import Results, replay_results
from model.replay.scoring import History
from model.replay.trace import read_trace
from model.slices import RESOURCES
from tests.support.replays import RISKS, TINY, tiny_results

CHARTS_PER_RESOURCE = 5


class Page(HTMLParser):
    """The references, the identifiers and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href", "action", "data", "xlink:href"}]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def results() -> Results:
    return tiny_results()


@pytest.fixture(scope="module")
def page(results: Results) -> Page:
    return Page(render_report(results, RISKS))


def test_report_holds_its_pictures_and_needs_no_other_host(page: Page) -> None:
    assert page.tags.count("figure") == 2 * CHARTS_PER_RESOURCE * len(STRATEGIES)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.links) == page.tags.count("figure")
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert set(re.findall(r"url\(([^)]*)\)", page.html)) == {"#plot"}
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)


def test_report_shows_the_figures_of_the_summary(page: Page, results: Results) -> None:
    for row in results.scores:
        assert row.strategy in page.text
        assert f"{row.published_misprediction:.3f}" in page.text
        assert f"{row.violation_frequency:.1%}" in page.text


def test_report_shows_definitions_verdicts_and_evidence(page: Page, results: Results) -> None:
    for definition in DEFINITIONS:
        assert definition in page.text
    for resource in RESOURCES:
        assert results.verdict(resource, RISKS[resource.name]).reason in page.text
        for row in results.evidence[resource.name]:
            assert f"{row.violations} of {row.slices}" in page.text
    assert page.html.index("A slice is violated") < page.html.index("<table>")


def test_report_marks_the_recommended_strategy_alone(results: Results) -> None:
    # Ninety times the slices give evidence enough.
    many = Results(
        "many",
        "node",
        np.tile(results.epoch, 90),
        {key: repeated(history, 90) for key, history in results.histories.items() if key[0] in {"borg", "doa"}},
    )
    html = render_report(many, RISKS)
    recommended = [many.verdict(resource, 0.05).strategy for resource in RESOURCES]
    assert re.findall(r'class="best"><td>(\w+)</td>', html) == [name for name in recommended if name]
    assert "borg" in recommended


def repeated(history: History, times: int) -> History:
    columns = ("config", "booked", "peak", "free", "published")
    return replace(history, **{name: np.tile(getattr(history, name), times) for name in columns})


def test_report_escapes_every_name() -> None:
    evil = "<img src=x onerror=alert(1)>\"'&{{7*7}}"
    page = Page(render_report(tiny_results(evil, evil), RISKS))
    assert "<img src=x" not in page.html
    assert all(link.startswith("#") for link in page.links)
    assert page.text.count(evil) >= 2


def test_report_of_a_trace_without_a_scored_slice() -> None:
    replay = Replay(read_trace(TINY), ModelSettings(3, ("doa",)))
    replay.trace.epoch[:] = replay.trace.epoch[:1]
    assert "No slice could be scored" in render_report(replay_results("one", "n", replay.run()), RISKS)


def test_report_follows_the_colour_scheme(page: Page) -> None:
    assert "@media (prefers-color-scheme: dark)" in page.html
    colours = set(re.findall(r"#[0-9a-f]{3,6}\b", page.html.partition("</style>")[2]))
    assert colours == set()  # all colours come from the style sheet, which has both schemes


# --- charts -------------------------------------------------------------------------------------------


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_every_chart_has_a_panel_for_each_strategy_within_its_box(results: Results) -> None:
    charts = charts_of(results)
    assert len(charts) == 2 * CHARTS_PER_RESOURCE
    assert len({chart.key for chart in charts}) == len(charts)
    for chart in charts:
        assert [panel.strategy for panel in chart.panels] == list(STRATEGIES)
        assert all(0 <= x <= WIDTH for panel in chart.panels for x, _ in points(panel.line))
        assert all(0 <= x <= WIDTH for x, _ in chart.x_ticks)
        assert all(0 <= y <= HEIGHT for y, _ in chart.y_ticks)
        assert 2 <= len(chart.y_ticks) <= 7


def test_line_is_broken_where_data_is_missing(results: Results) -> None:
    history = results.histories["borg", "cpu"]
    free = np.array([5.0, np.nan, 7.0, 8.0, np.nan, 6.0])
    (chart,) = [
        chart
        for chart in charts_of(
            Results("x", "n", results.epoch, {("borg", r.name): replace(history, free=free) for r in RESOURCES})
        )
        if chart.key == "cpu-free"
    ]
    assert [piece.count("L") for piece in chart.panels[0].line.split("M")[1:]] == [0, 1, 0]


def test_dots_are_the_counted_violations(results: Results) -> None:
    for resource, chart in zip(RESOURCES, (c for c in charts_of(results) if c.key.endswith("published")), strict=True):
        for row, panel in zip(results.evidence[resource.name], chart.panels, strict=True):
            assert panel.dots.count("M") == row.violations
            assert panel.note == f"{row.violations} of {row.slices} violated"


def test_long_trace_is_thinned_without_losing_its_extremes(results: Results) -> None:
    size = 20_000
    free = np.full(size, 5.0)
    free[12_345] = 9.0
    flat = np.full(size, 8.0)
    history = History(config=np.full(size, 10.0), booked=flat, peak=flat / 8, free=free, published=free, lag=48)
    long = Results("x", "n", np.arange(size, dtype=float), {("borg", r.name): history for r in RESOURCES})
    chart = next(chart for chart in charts_of(long) if chart.key == "cpu-free")
    drawn = points(chart.panels[0].line)
    assert len(drawn) < 600
    heights = sorted(y for _, y in drawn)
    assert heights[0] < heights[1]
