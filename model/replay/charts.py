"""The charts of the report: small multiples, one panel per strategy with the others in grey, as SVG paths.

A chart is geometry only; ``report.html.jinja`` draws it and sets its colours, so that it follows the colour scheme and
the width of the browser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numerics import FloatArray
from ..slices import RESOURCES, Resource
from .evidence import NEGLIGIBLE
from .results import Results
from .scoring import published_terms, replay_terms

#: Of a panel, in pixels of the SVG; the plot lies within the margins.
WIDTH, HEIGHT = 300, 140
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20

#: A line of more points than twice this is thinned to the least and the largest point of so many groups.
_GROUPS = 260

_TICKS = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One strategy: its name, a note beside it, its line, and a dot for each violated slice, as SVG path data."""

    strategy: str
    note: str
    line: str
    dots: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One quantity of one resource.

    Attributes
    ----------
    key : str
        Unique within the page.
    title, caption : str
    panels : sequence of Panel
    truth : str
        Path data of what the strategies are compared with; empty without.
    filled : bool
        Whether the truth is an area, not a line.
    x_ticks, y_ticks : sequence of (float, str)
        Position in pixels, and label.
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel]
    truth: str
    filled: bool
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Maps slices and values to pixels."""

    slices: int
    lag: int
    top: float

    def x(self, k: Any) -> FloatArray:
        return LEFT + k / max(self.slices - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(self, values: FloatArray) -> FloatArray:
        # Far beyond the plot is as good as the true place, and shorter.
        shares = np.clip(values / self.top, -1.0, 2.0)
        return HEIGHT - BOTTOM - shares * (HEIGHT - TOP - BOTTOM)

    def path(self, values: FloatArray, close: bool = False) -> str:
        """A line through the values, broken where one is NaN; closed along the axis for an area."""
        kept = _thinned(values)
        xs, ys, missing = self.x(kept).tolist(), self.y(values[kept]).tolist(), np.isnan(values[kept]).tolist()
        pieces = []
        # A line from one slice to the next, never over a gap.
        for gap, run in itertools.groupby(zip(xs, ys, missing, strict=True), lambda point: point[2]):
            if gap:
                continue
            points = [f"{x:.1f} {y:.1f}" for x, y, _ in run]
            piece = "M" + "L".join(points)
            if close:
                floor = HEIGHT - BOTTOM
                first, last = (points[i].partition(" ")[0] for i in (0, -1))
                piece += f"L{last} {floor}L{first} {floor}Z"
            pieces.append(piece)
        return "".join(pieces)

    def dots(self, values: FloatArray, marked: np.ndarray) -> str:
        """A point of length zero, drawn round, for each marked value."""
        indices = np.flatnonzero(marked)
        places = zip(self.x(indices).tolist(), self.y(values[indices]).tolist(), strict=True)
        return "".join(dict.fromkeys(f"M{x:.1f} {y:.1f}h0" for x, y in places))

    def x_ticks(self) -> list[tuple[float, str]]:
        step = max(_nice_step((self.slices - 1) / self.lag / _TICKS), 1.0)
        scopes = np.arange(0, (self.slices - 1) / self.lag + 1e-9, step)
        return [(float(x), f"{scope:g}") for x, scope in zip(self.x(scopes * self.lag), scopes, strict=True)]

    def y_ticks(self, unit: str) -> list[tuple[float, str]]:
        step = _nice_step(self.top / _TICKS)
        values = np.arange(0, self.top + 1e-9, step)
        labels = [f"{100 * value:g}%" if unit == "%" else f"{value:g}" for value in np.round(values, 12)]
        return list(zip(self.y(values).tolist(), labels, strict=True))


def _thinned(values: FloatArray) -> NDArray[np.intp]:
    """Indices of the points to draw, ascending."""
    if values.size <= 2 * _GROUPS:
        return np.arange(values.size)
    # Groups of one length and groups of one point more, as np.array_split makes them.
    length, longer = divmod(values.size, _GROUPS)
    border = longer * (length + 1)
    parts = (values[:border].reshape(longer, length + 1), values[border:].reshape(_GROUPS - longer, length))
    return np.concatenate([_extremes(parts[0]), border + _extremes(parts[1])])


def _extremes(groups: FloatArray) -> NDArray[np.intp]:
    """The flat indices of the least and the largest point of each row, ascending; the first of a row without any."""
    if not groups.size:
        return np.empty(0, dtype=np.intp)
    missing = np.isnan(groups)
    starts = np.arange(groups.shape[0]) * groups.shape[1]
    least = starts + np.where(missing, np.inf, groups).argmin(axis=1)
    largest = starts + np.where(missing, -np.inf, groups).argmax(axis=1)
    # Both at the first point where every point is missing; np.unique also sorts the two of a row.
    return np.unique(np.concatenate([least, largest]))


def _nice_step(step: float) -> float:
    """The next larger of 1, 2, 5, 10 ... times a power of ten."""
    if not 0 < step < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def charts_of(results: Results) -> list[Chart]:
    """All charts of a report, CPU before memory."""
    return [chart for resource in RESOURCES for chart in _resource_charts(results, resource)]


def _resource_charts(results: Results, resource: Resource) -> list[Chart]:
    scale, unit = resource.display_scale, resource.display_unit
    histories = {name: results.histories[name, resource.name] for name in results.strategies}
    any_history = next(iter(histories.values()))
    config, booked, unused = any_history.config, any_history.booked, any_history.unused
    published = {name: published_terms(history) for name, history in histories.items()}
    replayed = {name: replay_terms(history).misprediction for name, history in histories.items()}
    capacity = 1.05 * _largest(config / scale)
    notes = {row.strategy: f"{row.violations} of {row.slices} violated" for row in results.evidence[resource.name]}
    offered = {name: (booked + history.published) / config for name, history in histories.items()}
    useful = (booked + unused) / config

    def chart(
        kind: str, title: str, caption: str, lines: Mapping[str, FloatArray], top: float,
        *, truth: FloatArray | None = None, tick_unit: str = "", marked: Mapping[str, np.ndarray] | None = None,
        panel_notes: Mapping[str, str] | None = None,
    ) -> Chart:  # fmt: skip
        axes = _Axes(unused.size, any_history.lag, top)
        panels = [
            Panel(
                strategy=name,
                note=(panel_notes or {}).get(name, ""),
                line=axes.path(values),
                dots="" if marked is None or truth is None else axes.dots(truth, marked[name]),
            )
            for name, values in lines.items()
        ]
        filled = marked is not None
        return Chart(
            key=f"{resource.name}-{kind}",
            title=title,
            caption=caption,
            panels=panels,
            truth="" if truth is None else axes.path(truth, close=filled),
            filled=filled,
            x_ticks=axes.x_ticks(),
            y_ticks=axes.y_ticks(tick_unit),
        )

    title = resource.title[:1].upper() + resource.title[1:]
    return [
        chart(
            "published",
            f"{title}: published free, {unit}",
            "Line: what was left of the published amount. Area: what stayed unused. Dots: violated slices.",
            {name: terms.prediction / scale for name, terms in published.items()},
            capacity,
            truth=unused / scale,
            marked={name: terms.violation >= NEGLIGIBLE for name, terms in published.items()},
            panel_notes=notes,
        ),
        chart(
            "ratio",
            f"{title}: booked and published free over capacity",
            "Line: the ratio that a scheduler could sell. Dashed: booked and unused, the ratio that would have fitted.",
            offered,
            min(1.5 * _largest(useful), 1.08 * max(map(_largest, offered.values()))),
            truth=useful,
        ),
        chart(
            "free",
            f"{title}: computed as free, {unit}",
            "Line: free at the position of the slice, before the least of all positions is published. Dashed: unused.",
            {name: history.free / scale for name, history in histories.items()},
            capacity,
            truth=unused / scale,
        ),
        chart(
            "misprediction",
            f"{title}: misprediction per slice",
            "Distance of the threshold from the usage at the same position of the next scope, as a share of the node.",
            replayed,
            min(1.0, _readable_top(replayed)),
            tick_unit="%",
        ),
        chart(
            "cumulated",
            f"{title}: misprediction, cumulated",
            "The same, added up, in sizes of the node.",
            {name: np.nancumsum(values) for name, values in replayed.items()},
            _readable_top({name: np.nancumsum(values) for name, values in replayed.items()}),
        ),
    ]


def _readable_top(lines: Mapping[str, FloatArray]) -> float:
    """An upper end of the axis at which one strategy that is far off does not flatten all others."""
    tops = sorted(_largest(values) if np.nanmax(values, initial=0.0) > 0 else 0.0 for values in lines.values())
    if len(tops) > 1 and tops[-1] > 3 * tops[-2] > 0:
        tops.pop()
    return 1.08 * tops[-1] or 1.0


def _largest(values: FloatArray) -> float:
    """The largest number; 1 when none is above 0."""
    largest = float(np.nanmax(values, initial=-math.inf))
    return largest if 0 < largest < math.inf else 1.0
