"""The figures of the notebook and of ``misc/evaluate.py``: small multiples, one strategy per panel, the others in grey.

Each function returns a matplotlib figure. Memory is in GB of 2^30 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES
from ..slices import RESOURCES, Resource
from .dump import DumpRecorder
from .results import Results
from .scoring import TOLERANCE, published_terms

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


# Okabe and Ito's palette and an indigo: distinct for colour-blind readers and in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#7f3b08", "#332288")

#: Four strategies each, so that the first colour returns with another line.
_LINES = ("-", "--", "-.")

_TRUTH = "#000000"

#: The other strategies of a panel. Lines without smoothed edges halve the size of a PNG.
_OTHER: dict[str, Any] = {"color": "0.85", "linewidth": 0.6, "antialiased": False}


def style_of(strategy: str) -> dict[str, Any]:
    """The line of a strategy, the same in every figure; text behind the name is ignored."""
    names, strategy = list(STRATEGIES), strategy.partition(" ")[0]
    i = names.index(strategy) if strategy in names else len(names)
    line = _LINES[min(i // 4, len(_LINES) - 1)]
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": line, "linewidth": 1.4}


def misprediction_figure(results: Sequence[Results]) -> Figure:
    """Misprediction of the replay score per slice, as a share of the node."""
    return _per_strategy(results, "misprediction", "misprediction per slice, share of the node", highest=1.0)


def cumulated_misprediction_figure(results: Sequence[Results]) -> Figure:
    """The same, added up from the start, in sizes of the node."""
    return _per_strategy(results, "cumulated_misprediction", "misprediction, cumulated, sizes of the node")


def free_figure(results: Sequence[Results]) -> Figure:
    """What each strategy computed as free; dotted: what stayed unused, config less the slice's peak."""

    def draw(axes: Axes, table: pd.DataFrame, strategy: str, resource: Resource) -> None:
        scale = resource.display_scale
        _draw_line(axes, table, strategy, "free", scale)
        _draw_truth(axes, table, "unused", scale)
        axes.set_ylim(0, _size_of_node(table) / scale)

    return _trellis(results, draw, "computed as free, cores and GB; dotted: unused")


def oversubscription_figure(results: Sequence[Results]) -> Figure:
    """(booked + free) / config: the ratio that each strategy allows; dotted: (booked + unused) / config."""

    def draw(axes: Axes, table: pd.DataFrame, strategy: str, _resource: Resource) -> None:
        _draw_line(axes, table, strategy, "oversubscription", 1.0)
        _draw_truth(axes, table, "useful_oversubscription", 1.0)
        axes.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(0, _visible_top(table["useful_oversubscription"], table["oversubscription"]))

    return _trellis(results, draw, "oversubscription ratio; dotted: the ratio that would have fitted")


def published_figure(results: Results, resource: Resource) -> Figure:
    """What was left of the published amount against what stayed unused, a panel per strategy; red: violated slices."""
    scale, names = resource.display_scale, results.strategies
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    width, height = 13.0, 2.6 * rows + 0.6
    figure = Figure(figsize=(width, height))
    # Fixed margins in inches: to measure every label first takes as long as to draw the picture.
    figure.subplots_adjust(
        *(0.75 / width, 0.6 / height, 1 - 0.1 / width, 1 - 0.65 / height),
        wspace=0.06,
        hspace=0.4 / (2.6 - 0.4),
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    histories = {name: results.histories[name, resource.name] for name in names}
    top = 1.05 * _largest(np.concatenate([history.config for history in histories.values()])) / scale
    for axes, (name, history) in zip(grid.flat, histories.items(), strict=False):
        terms, unused = published_terms(history), history.unused / scale
        scope = np.arange(unused.size) / history.lag
        violated = terms.violation > TOLERANCE
        axes.fill_between(scope, unused, color="0.85", linewidth=0, label="unused")
        axes.plot(scope, terms.prediction / scale, color=style_of(name)["color"], linewidth=1.2, label="left")
        axes.plot(scope[violated], unused[violated], ".", color="#c00000", markersize=4, label="violated")
        axes.set_title(f"{name}: {int(violated.sum())} violated", fontsize=9)
        axes.set_ylim(0, top)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("scope", fontsize=9, y=0.12 / height)
    figure.supylabel(f"free {_quantity(resource)}", fontsize=9, x=0.12 / width)
    figure.suptitle(_plain(f"{results.name}: published and used"), fontsize=11, parse_math=False, y=1 - 0.1 / height)
    return figure


def tiers_png(recorder: DumpRecorder, strategy: str, node_name: str) -> bytes:
    """A PNG of the tiers of one strategy, slice by slice."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, resource in zip(figure.subplots(2, 1, sharex=True), RESOURCES, strict=True):
        tiers = [np.nan_to_num(tier) / resource.display_scale for tier in recorder.tiers(strategy, resource)]
        # A negative threshold is drawn as zero use.
        axes.stackplot(
            np.arange(len(recorder.epoch)) + 1,
            *(np.maximum(tier, 0) for tier in tiers),
            labels=("tier 0: used", "tier 1: between", "tier 2: free"),
            colors=("#d55e00", "#e69f00", "#009e73"),
            step="mid",
        )
        axes.set_ylabel(_quantity(resource))
    figure.axes[0].legend(loc="upper left", fontsize=8)
    figure.axes[-1].set_xlabel("slice")
    figure.suptitle(_plain(f"{strategy} on {node_name}"), fontsize=11, parse_math=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _quantity(resource: Resource) -> str:
    return f"{resource.title}, {resource.display_unit}"


def _per_strategy(results: Sequence[Results], column: str, label: str, highest: float | None = None) -> Figure:
    def draw(axes: Axes, table: pd.DataFrame, strategy: str, _resource: Resource) -> None:
        _draw_line(axes, table, strategy, column, 1.0)
        top = _readable_top(table, column)
        axes.set_ylim(0, top if highest is None else min(top, highest))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0) if highest else "{x:g}")

    return _trellis(results, draw, label)


def _trellis(
    results: Sequence[Results], draw: Callable[[Axes, pd.DataFrame, str, Resource], None], title: str
) -> Figure:
    """A row per strategy, a column per trace and resource."""
    names = results[0].strategies
    columns = [(outcome, resource) for outcome in results for resource in RESOURCES]
    figure = Figure(figsize=(2.7 * len(columns), 0.95 * len(names) + 0.8), layout="constrained")
    grid = figure.subplots(len(names), len(columns), sharex="col", squeeze=False)
    for j, (outcome, resource) in enumerate(columns):
        for i, name in enumerate(names):
            draw(grid[i, j], outcome.slices[resource.name], name, resource)
            grid[i, j].margins(x=0.01)
            grid[i, j].tick_params(labelsize=7)
        grid[0, j].set_title(f"{_plain(outcome.name, 45)}\n{resource.title}", fontsize=9, parse_math=False)
        grid[-1, j].set_xlabel("scope", fontsize=8)
    for i, name in enumerate(names):
        grid[i, 0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_line(axes: Axes, table: pd.DataFrame, strategy: str, column: str, scale: float) -> None:
    """The line of one strategy, and those of the others in grey."""
    for name, one in table.groupby("strategy", sort=False):
        own = name == strategy
        style = {"color": style_of(strategy)["color"], "linewidth": 1.5} if own else _OTHER
        axes.plot(one["scope"], one[column] / scale, zorder=2.5 if own else 1.5, **style)


def _draw_truth(axes: Axes, table: pd.DataFrame, column: str, scale: float) -> None:
    one = table[table["strategy"] == table["strategy"].iloc[0]]
    axes.plot(one["scope"], one[column] / scale, color=_TRUTH, linewidth=0.9, linestyle=":", zorder=3)


def _readable_top(table: pd.DataFrame, column: str) -> float:
    """An upper end of the axis at which one strategy that is far off does not flatten all others."""
    tops = sorted(table.groupby("strategy")[column].max().fillna(0.0), reverse=True)
    if len(tops) > 1 and tops[0] > 3 * tops[1] > 0:
        tops = tops[1:]
    return 1.08 * float(tops[0]) or 1.0


def _size_of_node(table: pd.DataFrame) -> float:
    """A little more than the largest capacity of the node; 1 when it is unknown."""
    return 1.05 * _largest(table["config"].to_numpy())


def _visible_top(truth: pd.Series, estimates: pd.Series) -> float:
    return min(1.5 * _largest(truth.to_numpy()), 1.08 * _largest(estimates.to_numpy()))


def _largest(column: FloatArray) -> float:
    """The largest number of a column; 1 when there is none above 0."""
    largest = float(np.fmax.reduce(column, initial=-np.inf))
    return largest if largest > 0 else 1.0


def _plain(text: str, longest: int = 90) -> str:
    """A name as a title: one printable line, no longer than a picture is wide."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
