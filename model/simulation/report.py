"""``report.html``: tables and pictures of a simulation on one page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from ..replay.figures import png
from ..replay.page import render_page
from .figures import fleet_figure, front_figure, reported_figure
from .results import SourceResult
from .tables import columns_of

_TEMPLATE = "report.html.jinja"
_TITLES = {"front": "Gain against harm", "fleet": "The fleet over time", "reported": "Reported against real"}


def pictures_of(result: SourceResult) -> dict[str, bytes]:
    """PNGs by the names of their files."""
    comparison = result.comparison
    figures = {
        "front": front_figure(comparison),
        "fleet": fleet_figure(comparison, result.series, result.slice_s, result.warm_up_s),
        "reported": reported_figure(comparison),
    }
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def render_report(results: Sequence[SourceResult], pictures: Sequence[Mapping[str, bytes]]) -> str:
    """The page, as HTML.

    Parameters
    ----------
    results : sequence of SourceResult
    pictures : sequence of mappings of name to PNG
        One per result.
    """
    sections = [
        {
            "name": result.comparison.name,
            "sentence": result.comparison.sentence,
            "harm": result.comparison.harm,
            "runs": max(one.runs for one in result.comparison.summaries),
            "columns": columns_of(result.comparison),
            "rows": result.comparison.ranked(),
            "pictures": [(_TITLES[name], base64.b64encode(data).decode()) for name, data in own.items()],
        }
        for result, own in zip(results, pictures, strict=True)
    ]
    return render_page(str(__package__), _TEMPLATE, sections=sections)
