"""``scan.html``: the scan of a fleet on one page that needs no other file and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..replay.page import render_page
from ..simulation.summary import Comparison
from ..simulation.tables import columns_of
from ..slices import RESOURCES, Resource
from .columns import note_of, shown_columns
from .finding import SEVERITIES, NodeFinding, ResourceFinding
from .tables import explanation_of
from .totals import Totals, memory_text, sentence_of

_TEMPLATE = "report.html.jinja"

#: The drawing of a resource of a node, in its own units.
_WIDTH, _HEIGHT = 160, 40


def render_report(
    findings: Sequence[NodeFinding], totals: Totals, risk: float, comparison: Comparison | None = None
) -> str:
    """The page, as HTML.

    Parameters
    ----------
    findings : sequence of NodeFinding
        The worst first.
    totals : Totals
    risk : float
        The target risk for CPU.
    comparison : Comparison, optional
        What a simulation found.
    """
    columns = shown_columns(findings)
    rows = [
        {
            "node": one.node,
            "severity": one.severity,
            "cells": [(column.text(one), _sortable(column.value(one))) for column in columns],
            "note": note_of(one),
            "explanation": "\n".join(explanation_of(one)),
            "drawings": [
                (resource.title, drawing(resource, found))
                for resource in RESOURCES
                if (found := one.of(resource)) is not None and found.series and len(found.series[0]) > 1
            ],
        }
        for one in findings
    ]
    return render_page(
        *(str(__package__), _TEMPLATE),
        sentence=sentence_of(totals, risk),
        totals=totals,
        severities=SEVERITIES,
        columns=columns,
        noted=any(note_of(one) for one in findings),
        rows=rows,
        memory_text=memory_text,
        comparison=comparison,
        simulated=[] if comparison is None else columns_of(comparison),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _sortable(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def drawing(resource: Resource, one: ResourceFinding) -> dict[str, str]:
    """The SVG paths of the history of a resource: what was used at most, booked, and offered in total.

    Gaps between slices are not drawn; the height is that of the largest value.
    """
    _, peaks, booked, capacity = one.series
    top = max(*peaks, *booked, *capacity, one.config) or 1.0
    return {
        "used": f"M0,{_HEIGHT} L{_line(peaks, top)} L{_WIDTH},{_HEIGHT} Z",
        "booked": f"M{_line(booked, top)}",
        "capacity": f"M{_line(capacity, top)}",
        "config": f"M0,{_y(one.config, top)} L{_WIDTH},{_y(one.config, top)}",
        "alt": (
            f"{resource.title}: at most {max(peaks) / resource.display_scale:.1f} of "
            f"{one.config / resource.display_scale:.1f} {resource.display_unit} used"
        ),
    }


def _line(values: Sequence[float], top: float) -> str:
    step = _WIDTH / (len(values) - 1)
    return " L".join(f"{i * step:.1f},{_y(value, top)}" for i, value in enumerate(values))


def _y(value: float, top: float) -> str:
    return f"{_HEIGHT * (1 - value / top):.1f}"
