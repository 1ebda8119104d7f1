"""``report.html``: the answer and the charts of a replay on one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping

from ..slices import CPU, RESOURCES, Resource
from . import charts
from .page import render_page
from .presentation import TITLES, columns_of, definitions_of, exclusion_note
from .results import Results

_TEMPLATE = "report.html.jinja"


def render_report(results: Results, risks: Mapping[str, float]) -> str:
    """The page, as HTML.

    Parameters
    ----------
    results : Results
    risks : mapping of resource name to float
        The target risks: they decide the verdict and the order of the tables.
    """
    return render_page(
        *(str(__package__), _TEMPLATE),
        results=results,
        definitions=definitions_of(results.evidence[CPU.name]),
        tables=[_table(results, resource, risks[resource.name]) for resource in RESOURCES],
        charts=charts.charts_of(results),
        box={
            "width": charts.WIDTH,
            "height": charts.HEIGHT,
            "left": charts.LEFT,
            "right": charts.RIGHT,
            "top": charts.TOP,
            "bottom": charts.BOTTOM,
        },
    )


def _table(results: Results, resource: Resource, risk: float) -> Mapping[str, object]:
    rows = results.ranked(resource, risk)
    return {
        "title": TITLES[resource.name],
        "risk": risk,
        "verdict": results.verdict(resource, risk),
        "note": exclusion_note(rows),
        "columns": columns_of(resource, rows),
        "rows": rows,
    }
