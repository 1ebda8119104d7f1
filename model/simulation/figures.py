"""The pictures of a simulation: gain against harm, the fleet over time, reported against real."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES
from ..replay.figures import style_of
from .grid import BEST_RATIO, FIXED_RATIO, ORACLE, Setting
from .summary import Comparison, Summary
from .tasks import FleetSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MARKERS = "sD^vPX<>ph"
_RATIO_COLOUR, _ORACLE_COLOUR, _HARM_COLOUR = "0.45", "#000000", "#c00000"
#: Shares below this are drawn on a linear scale.
_LINEAR_BELOW = 0.001
_SHARE_TICKS = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_DAY_S = 86400.0


def front_figure(comparison: Comparison) -> Figure:
    """What is sold against the share of slices that are over; bars from the least to the most of the seeds."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    ratios = [one for one in comparison.summaries if one.setting.strategy in (FIXED_RATIO, BEST_RATIO)]
    ratios.sort(key=lambda one: one.setting.ratio or 0.0)
    line = [(one.mean("over"), one.mean("sold")) for one in ratios]
    axes.plot([x for x, _ in line], [y for _, y in line], color=_RATIO_COLOUR, linewidth=1.0, zorder=1)
    for name, group in _by_strategy(comparison.summaries).items():
        for summary in group:
            _draw_point(axes, summary, name if summary is group[0] else "")
    _draw_accepted(axes, comparison.harm)
    _scale_share(axes, "x", max(one.figures["over"].most for one in comparison.summaries))
    axes.set_ylim(0, 1.08 * max(one.figures["sold"].most for one in comparison.summaries))
    axes.set_xlabel("node-slices over capacity")
    axes.set_ylabel("vCPUs sold per core")
    axes.set_title(f"{_plain(comparison.name)}: gain against harm", fontsize=11, parse_math=False)
    axes.legend(fontsize=8, frameon=False, loc="best")
    return figure


def _draw_point(axes: Axes, summary: Summary, label: str) -> None:
    setting = summary.setting
    over, sold = summary.figures["over"], summary.figures["sold"]
    axes.errorbar(
        over.mean,
        sold.mean,
        xerr=[[over.mean - over.least], [over.most - over.mean]],
        yerr=[[sold.mean - sold.least], [sold.most - sold.mean]],
        color=_colour(setting),
        marker=_marker(setting),
        markersize=11 if setting.strategy == ORACLE else 7,
        markerfacecolor="white" if setting.guards is False else None,
        linewidth=0.8,
        linestyle="none",
        zorder=3 if setting.strategy == ORACLE else 2,
        label=label or None,
    )
    text = setting.label.removeprefix(setting.strategy.replace("-", " ")).strip()
    axes.annotate(text, (over.mean, sold.mean), (6, 5), textcoords="offset points", fontsize=7)


def _draw_accepted(axes: Axes, harm: float) -> None:
    axes.axvline(harm, color=_HARM_COLOUR, linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(
        "accepted",
        (harm, 0),
        (4, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=8,
        color=_HARM_COLOUR,
    )


def fleet_figure(
    comparison: Comparison, series: Mapping[Setting, Sequence[FleetSeries]], slice_s: float, warm_up_s: float
) -> Figure:
    """What is sold and used and the share of nodes that are over, day by day; means over the seeds."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    shown = {setting: runs for setting, runs in series.items() if setting.strategy != FIXED_RATIO}
    ratios = {setting: runs for setting, runs in series.items() if setting.strategy == FIXED_RATIO}
    largest = 0.0
    for axes, column, label in zip(
        panels,
        ("sold", "used", "over"),
        ("vCPUs sold per core", "share of the cores that is used", "share of the nodes over capacity\n(of 24 hours)"),
        strict=True,
    ):
        for setting, runs in (*ratios.items(), *shown.items()):
            values = np.mean([getattr(run, column) for run in runs], axis=0)
            if column == "over":
                values = _rolling_mean(values, round(_DAY_S / slice_s))
                largest = max(largest, float(values.max()))
            days = (np.arange(values.size) + 1) * slice_s / _DAY_S
            own = [one for one in shown if one.strategy == setting.strategy]
            axes.plot(days, values, **_line(setting, own), label=setting.label)
        axes.axvspan(0, warm_up_s / _DAY_S, color="0.95", zorder=0)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(color="0.93")
        axes.set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _scale_share(panels[2], "y", largest)
    panels[2].axhline(comparison.harm, color=_HARM_COLOUR, linewidth=0.8, linestyle=":")
    panels[2].set_xlabel("days; grey: warm-up, not counted")
    panels[2].set_xlim(0, max(len(run.sold) for runs in series.values() for run in runs) * slice_s / _DAY_S)
    figure.suptitle(f"{_plain(comparison.name)}: the fleet over time", fontsize=11, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def reported_figure(comparison: Comparison) -> Figure | None:
    """The share of violations that each strategy counts against the share of slices that are over; None without any."""
    counted = [one for one in comparison.summaries if not math.isnan(one.mean("reported"))]
    if not counted:
        return None
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    most = max(max(one.figures["over"].most, one.figures["reported"].most) for one in counted)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    for name, group in _by_strategy(counted).items():
        for one in group:
            reported, over = one.figures["reported"], one.figures["over"]
            axes.errorbar(
                over.mean,
                reported.mean,
                xerr=[[over.mean - over.least], [over.most - over.mean]],
                yerr=[[reported.mean - reported.least], [reported.most - reported.mean]],
                color=_colour(one.setting),
                marker=_marker(one.setting),
                markerfacecolor="white" if one.setting.guards is False else None,
                linestyle="none",
                linewidth=0.8,
                label=name if one is group[0] else None,
            )
            text = one.setting.label.removeprefix(name).strip()
            axes.annotate(text, (over.mean, reported.mean), (6, 5), textcoords="offset points", fontsize=7)
    _scale_share(axes, "x", most)
    _scale_share(axes, "y", most)
    axes.set_xlabel("real: node-slices over capacity")
    axes.set_ylabel("reported: violations that the strategy counts")
    axes.set_title(f"{_plain(comparison.name)}: reported against real", fontsize=11, parse_math=False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


# --- styles -------------------------------------------------------------------------------------------


def _by_strategy(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    groups: dict[str, list[Summary]] = {}
    for one in summaries:
        groups.setdefault(one.setting.strategy.replace("-", " "), []).append(one)
    return groups


def _colour(setting: Setting) -> str:
    if setting.strategy in (FIXED_RATIO, BEST_RATIO):
        return _RATIO_COLOUR
    return _ORACLE_COLOUR if setting.strategy == ORACLE else str(style_of(setting.strategy)["color"])


def _marker(setting: Setting) -> str:
    """The same in every picture."""
    if setting.is_strategy:
        return _MARKERS[list(STRATEGIES).index(setting.strategy) % len(_MARKERS)]
    return "*" if setting.strategy == ORACLE else "o"


def _line(setting: Setting, siblings: Sequence[Setting]) -> dict[str, Any]:
    """Fixed ratios are thin and grey; settings of one strategy differ in their dashes."""
    if setting.strategy == FIXED_RATIO:
        return {"color": "0.75", "linewidth": 0.8}
    number = siblings.index(setting)
    return {"color": _colour(setting), "linewidth": 1.3, "linestyle": ("-", "--", ":", "-.")[number % 4]}


def _scale_share(axes: Axes, which: str, most: float) -> None:
    """Linear up to a thousandth, logarithmic above."""
    top = min(1.0, next((tick for tick in _SHARE_TICKS[4:] if tick > most), 1.0))
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    limits = (-0.15 * _LINEAR_BELOW, 1.1 * top)
    if which == "x":
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.set_xlim(*limits)
    else:
        axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
        axes.set_ylim(*limits)
    axis.set_major_locator(FixedLocator(_SHARE_TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.grid(color="0.93")


def _rolling_mean(values: FloatArray, window: int) -> FloatArray:
    """Mean of so many values up to each one; fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, values.size + 1)
    begin = np.maximum(end - max(window, 1), 0)
    return (total[end] - total[begin]) / (end - begin)


def _plain(text: str, longest: int = 60) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
