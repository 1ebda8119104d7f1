"""The Pareto picture of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..oversubscriptioncomputation import STRATEGIES
from ..replay.figures import RESOURCE_NAMES, style_of
from ..slices import RESOURCES
from .grid import Pooled, labels

_MARKERS = "osD^vP*X<"


def pareto_figure(points: Sequence[Pooled]) -> Figure:
    """How often a promise was broken against how much of it was of use; dashed: those that nothing beats."""
    called = labels(list(dict.fromkeys(point.variant for point in points)))
    strategies = list(dict.fromkeys(point.variant.strategy for point in points))
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, resource in zip(figure.subplots(1, 2), RESOURCES, strict=True):
        of_resource = sorted(
            (point for point in points if point.resource == resource.name), key=lambda point: point.violation_frequency
        )
        axes.plot(*_places(p for p in of_resource if p.on_front), color="0.6", linestyle="--", linewidth=1.0, zorder=0)
        for strategy in strategies:
            own = [point for point in of_resource if point.variant.strategy == strategy]
            marker = _MARKERS[list(STRATEGIES).index(strategy) % len(_MARKERS)]
            style = {**style_of(strategy), "linewidth": 0.8, "linestyle": "-"}
            axes.plot(*_places(own), **style, marker=marker, markersize=7, label=strategy)
        for point in of_resource:
            text = called[point.variant].partition(" ")[2]
            axes.annotate(
                text, (point.violation_frequency, point.usable_free), (6, -9), textcoords="offset points", fontsize=7
            )
        # What an operator asks for lies between no broken promise and one in ten.
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(-0.001, 1.1)
        axes.set_xticks([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("slices in which the promise was broken")
        axes.set_ylabel(f"promised and really free, share of the node's {RESOURCE_NAMES[resource]}")
        axes.grid(color="0.93")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=9, frameon=False
    )
    return figure


def _places(points: Iterable[Pooled]) -> tuple[list[float], list[float]]:
    places = [(point.violation_frequency, point.usable_free) for point in points]
    return [x for x, _ in places], [y for _, y in places]
