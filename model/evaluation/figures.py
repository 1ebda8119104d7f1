"""The Pareto picture of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..oversubscriptioncomputation import STRATEGIES
from ..replay.figures import style_of
from ..slices import RESOURCES
from .grid import Pooled, Variant, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X<"


def pareto_figure(points: Sequence[Pooled]) -> Figure:
    """Usable free against the violation rate, a panel per resource; the Pareto front is dashed."""
    label_of = labels(list(dict.fromkeys(point.variant for point in points)))
    figure = Figure(figsize=(13, 6))
    figure.subplots_adjust(left=0.06, right=0.99, top=0.98, bottom=0.18, wspace=0.16)
    for axes, resource in zip(figure.subplots(1, 2), RESOURCES, strict=True):
        _draw_points(axes, [point for point in points if point.resource == resource.name], label_of)
        _scale_axes(axes)
        axes.set_xlabel("violated slices")
        axes.set_ylabel(f"published and really free, share of the node's {resource.title}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="lower center", ncols=9, fontsize=9, frameon=False)
    return figure


def _draw_points(axes: Axes, points: Sequence[Pooled], label_of: dict[Variant, str]) -> None:
    strategies = dict.fromkeys(point.variant.strategy for point in points)
    points = sorted(points, key=lambda point: point.violation_frequency)
    axes.plot(*_coordinates(p for p in points if p.on_front), color="0.6", linestyle="--", linewidth=1.0, zorder=0)
    for strategy in strategies:
        marker = _MARKERS[list(STRATEGIES).index(strategy) % len(_MARKERS)]
        style = {**style_of(strategy), "linewidth": 0.8, "linestyle": "-"}
        coordinates = _coordinates(point for point in points if point.variant.strategy == strategy)
        axes.plot(*coordinates, **style, marker=marker, markersize=7, label=strategy)
    for point in points:
        parameters = label_of[point.variant].partition(" ")[2]
        place = (point.violation_frequency, point.usable_free)
        axes.annotate(parameters, place, (6, -9), textcoords="offset points", fontsize=7)


def _scale_axes(axes: Axes) -> None:
    # Target risks are between 0 and 0.1: linear up to 0.01, logarithmic above.
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(-0.001, 1.1)
    axes.set_xticks([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    axes.grid(color="0.93")


def _coordinates(points: Iterable[Pooled]) -> tuple[list[float], list[float]]:
    pairs = [(point.violation_frequency, point.usable_free) for point in points]
    return [x for x, _ in pairs], [y for _, y in pairs]
