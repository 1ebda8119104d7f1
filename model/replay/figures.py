"""The pictures of the report and of the notebook.

Each function answers with a matplotlib figure: a row per resource, a column per trace.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..oversubscriptioncomputation import STRATEGIES
from ..slices import CPU, MEMORY, RESOURCES, Resource
from .dump import DumpRecorder
from .results import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


RESOURCE_NAMES = {CPU: "CPU", MEMORY: "memory"}

_TITLES = {CPU: "CPU, cores", MEMORY: "memory, GB"}

#: Figures of this module are in cores and, so that axes stay readable, in GB of 2^30 bytes.
_SCALES = {CPU: 1.0, MEMORY: 1024.0}

# Okabe and Ito's palette and an indigo: told apart by colour-blind readers and in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#7f3b08", "#332288")

#: Four strategies each: what comes round to the first colour again has another line.
_LINES = ("-", "--", "-.")

_TRUTH = "#000000"


def style_of(strategy: str) -> dict[str, Any]:
    """The same line for the same strategy in every picture; what comes behind its name does not matter."""
    names, strategy = list(STRATEGIES), strategy.partition(" ")[0]
    i = names.index(strategy) if strategy in names else len(names)
    line = _LINES[min(i // 4, len(_LINES) - 1)]
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": line, "linewidth": 1.4}


def misprediction_figure(results: Sequence[Results]) -> Figure:
    """How far each strategy was off, scope by scope, as a share of the node."""
    return _per_strategy(results, "misprediction", "misprediction", highest=1.0)


def cumulated_misprediction_figure(results: Sequence[Results]) -> Figure:
    """The same, summed up from the start."""
    return _per_strategy(results, "cumulated_misprediction", "misprediction, cumulated", highest=None, form="{x:g}")


def free_figure(results: Sequence[Results]) -> Figure:
    """What each strategy called free against what was: the black line is config less the slice's peak."""

    def draw(axes: Axes, table: pd.DataFrame, resource: Resource) -> None:
        scale = _SCALES[resource]
        _draw_lines(axes, table, "free", scale)
        _draw_truth(axes, table, "really_free", scale, "really free")
        axes.set_ylim(0, _size_of_node(table) / scale)
        axes.set_ylabel(f"free {_TITLES[resource]}")

    return _grid(results, draw)


def oversubscription_figure(results: Sequence[Results]) -> Figure:
    """(booked + free) / config: what could be sold of each core or byte; black: had one known the future."""

    def draw(axes: Axes, table: pd.DataFrame, resource: Resource) -> None:
        _draw_lines(axes, table, "oversubscription", 1.0)
        _draw_truth(axes, table, "useful_oversubscription", 1.0, "useful, in hindsight")
        axes.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(0, _visible_top(table["useful_oversubscription"], table["oversubscription"]))
        axes.set_ylabel(f"oversubscription of {RESOURCE_NAMES[resource]}")

    return _grid(results, draw)


def published_figure(results: Results, resource: Resource) -> Figure:
    """What was published against what then happened, a small picture per strategy; red: a broken promise."""
    table, scale = results.slices[resource.name], _SCALES[resource]
    names = results.strategies
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(13, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        one = table[table["strategy"] == name]
        axes.fill_between(one["scope"], one["really_free"] / scale, color="0.85", linewidth=0, label="really free")
        axes.plot(one["scope"], one["promised"] / scale, color=style_of(name)["color"], linewidth=1.2, label="promised")
        broken = one[one["broken"]]
        axes.plot(broken["scope"], broken["really_free"] / scale, ".", color="#c00000", markersize=4, label="broken")
        axes.set_title(f"{name}: {len(broken)} broken", fontsize=9)
        axes.set_ylim(0, _size_of_node(table) / scale)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("scope", fontsize=9)
    figure.supylabel(f"free {_TITLES[resource]}", fontsize=9)
    figure.suptitle(_plain(f"{results.name}: promised and kept"), fontsize=11, parse_math=False)
    return figure


def tiers_png(recorder: DumpRecorder, strategy: str, node_name: str) -> bytes:
    """A PNG of the tiers of one strategy, slice by slice."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, resource in zip(figure.subplots(2, 1, sharex=True), RESOURCES, strict=True):
        tiers = [np.nan_to_num(tier) / _SCALES[resource] for tier in recorder.tiers(strategy, resource)]
        # A threshold below zero is as much use as none.
        axes.stackplot(
            np.arange(len(recorder.epoch)) + 1,
            *(np.maximum(tier, 0) for tier in tiers),
            labels=("tier 0: used", "tier 1: between", "tier 2: free"),
            colors=("#d55e00", "#e69f00", "#009e73"),
            step="mid",
        )
        axes.set_ylabel(_TITLES[resource])
    figure.axes[0].legend(loc="upper left", fontsize=8)
    figure.axes[-1].set_xlabel("slice")
    figure.suptitle(_plain(f"{strategy} on {node_name}"), fontsize=11, parse_math=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _per_strategy(
    results: Sequence[Results], column: str, label: str, highest: float | None, form: str = "percent"
) -> Figure:
    def draw(axes: Axes, table: pd.DataFrame, resource: Resource) -> None:
        _draw_lines(axes, table, column, 1.0)
        top = _readable_top(table, column)
        axes.set_ylim(0, top if highest is None else min(top, highest))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0) if form == "percent" else form)
        axes.set_ylabel(
            f"{label}\n({'share' if form == 'percent' else 'sizes'} of the node's {RESOURCE_NAMES[resource]})"
        )

    return _grid(results, draw)


def _grid(results: Sequence[Results], draw: Callable[[Axes, pd.DataFrame, Resource], None]) -> Figure:
    """Resources beside each other for one trace; below each other, with the traces side by side, for more."""
    single = len(results) == 1
    rows, columns = (1, 2) if single else (2, len(results))
    figure = Figure(figsize=(6.5 * columns, 3.4 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, outcome in enumerate(results):
        for j, resource in enumerate(RESOURCES):
            axes = grid[0, j] if single else grid[j, i]
            draw(axes, outcome.slices[resource.name], resource)
            axes.set_xlabel("scope")
            axes.margins(x=0.01)
            if not single and j == 0:
                axes.set_title(_plain(outcome.name), fontsize=10, parse_math=False)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    return figure


def _draw_lines(axes: Axes, table: pd.DataFrame, column: str, scale: float) -> None:
    for name, one in table.groupby("strategy", sort=False):
        axes.plot(one["scope"], one[column] / scale, label=str(name), **style_of(str(name)))


def _draw_truth(axes: Axes, table: pd.DataFrame, column: str, scale: float, label: str) -> None:
    one = table[table["strategy"] == table["strategy"].iloc[0]]
    axes.plot(one["scope"], one[column] / scale, color=_TRUTH, linewidth=2.0, label=label)


def _readable_top(table: pd.DataFrame, column: str) -> float:
    """An upper end of the axis at which one strategy that is far off does not flatten all others."""
    tops = sorted(table.groupby("strategy")[column].max().fillna(0.0), reverse=True)
    if len(tops) > 1 and tops[0] > 3 * tops[1] > 0:
        tops = tops[1:]
    return 1.08 * float(tops[0]) or 1.0


def _size_of_node(table: pd.DataFrame) -> float:
    """A little more than what the node has at most; 1 when nobody knows."""
    return 1.05 * _largest(table["config"])


def _visible_top(truth: pd.Series, said: pd.Series) -> float:
    return min(1.5 * _largest(truth), 1.08 * _largest(said))


def _largest(column: pd.Series) -> float:
    """The largest number of a column; 1 when there is none above 0."""
    largest = column.max(skipna=True)
    return float(largest) if largest > 0 else 1.0


def _plain(text: str) -> str:
    """A name as a title: on one line, not longer than a picture is wide."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= 90 else f"{line[:87]}..."
