"""Means and spread over the seeds, and the sentence for the operator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .grid import BEST_RATIO, FIGURES, Row, Setting

#: Accepted share of node-slices that are over in memory: there something is killed.
MEMORY_HARM = 0.001


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds; NaN where it does not apply."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A setting over all seeds.

    Attributes
    ----------
    setting : Setting
    runs : int
    figures : mapping of column to Spread
        See :data:`~model.simulation.grid.FIGURES`.
    """

    setting: Setting
    runs: int
    figures: Mapping[str, Spread]

    def mean(self, name: str) -> float:
        """The mean of a figure."""
        return self.figures[name].mean

    def is_safe(self, harm: float) -> bool:
        """Whether no more node-slices than accepted are over, in CPU and in memory."""
        return self.mean("over") <= harm and self.mean("mem_over") <= min(harm, MEMORY_HARM)


def summaries_of(rows: Iterable[Row]) -> list[Summary]:
    """A summary per setting, in order of appearance."""
    groups: dict[Setting, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.setting].append(row)
    return [
        Summary(setting, len(own), {name: _spread(own, name) for name in FIGURES}) for setting, own in groups.items()
    ]


def _spread(rows: Sequence[Row], name: str) -> Spread:
    values = np.array([math.nan if (value := getattr(row, name)) is None else value for row in rows], np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(float(values.mean()), float(values.min()), float(values.max()))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The settings that were simulated on one workload.

    Attributes
    ----------
    name : str
        Of the workload.
    summaries : sequence of Summary
    harm : float
        The share of node-slices over capacity that is accepted.
    memory : bool
        Whether memory is published too.
    """

    name: str
    summaries: Sequence[Summary]
    harm: float
    memory: bool = False

    @property
    def best_ratio(self) -> Summary | None:
        """The best fixed ratio in hindsight."""
        return next((one for one in self.summaries if one.setting.strategy == BEST_RATIO), None)

    @property
    def best_strategy(self) -> Summary | None:
        """The safe strategy that sells the most."""
        safe = [one for one in self.summaries if one.setting.is_strategy and one.is_safe(self.harm)]
        return max(safe, key=lambda one: one.mean("sold"), default=None)

    def ranked(self) -> list[Summary]:
        """The safe settings first, those that sell the most at the top; then the others, the safest at the top."""

        def key(one: Summary) -> tuple[bool, float, float]:
            safe = one.is_safe(self.harm)
            return not safe, 0.0 if safe else one.mean("over"), -one.mean("sold")

        return sorted(self.summaries, key=key)

    @property
    def sentence(self) -> str:
        """The answer for an operator."""
        begin = f"at most {100 * self.harm:g} % over: "
        best, ratio = self.best_strategy, self.best_ratio
        by_ratio = "no fixed ratio is that safe" if ratio is None else "the best fixed ratio is "
        if ratio is not None:
            by_ratio += f"{ratio.setting.ratio:g} and sells {ratio.mean('sold'):.2f}"
        if best is None:
            if not any(one.setting.is_strategy for one in self.summaries):
                return begin + by_ratio
            return f"{begin}no strategy is that safe; {by_ratio}"
        sold = best.mean("sold")
        answer = f"{begin}{best.setting.label} sells {sold:.2f} vCPUs per core"
        if ratio is None:
            answer += f"; {by_ratio}"
        else:
            other = ratio.mean("sold")
            by_ratio = f"{ratio.setting.ratio:g} sells {other:.2f}"
            answer += f", {_compared(sold, other)} the best fixed ratio that is as safe ({by_ratio})"
        return answer + self._hosts(best, ratio) + self._memory(best)

    def _hosts(self, best: Summary, ratio: Summary | None) -> str:
        needed = best.mean("hosts_needed")
        if math.isnan(needed):
            return ""
        by_ratio = math.nan if ratio is None else ratio.mean("hosts_needed")
        compared = "" if math.isnan(by_ratio) else f", that ratio needs {by_ratio:.3g}"
        return f"; it needs {needed:.3g} nodes for 99 % of the vCPUs{compared}"

    def _memory(self, best: Summary) -> str:
        over = best.mean("mem_over")
        return f"; memory is over in {over:.2%} of its slices" if over > 0 else ""

    def as_json(self) -> dict[str, Any]:
        """The comparison as nested dicts and lists; None for figures that do not apply."""
        return {
            "workload": self.name,
            "sentence": self.sentence,
            "best_ratio": None if self.best_ratio is None else self.best_ratio.setting.ratio,
            "settings": [
                {**asdict(one.setting), "safe": one.is_safe(self.harm), "runs": one.runs}
                | {
                    name: None
                    if math.isnan(spread.mean)
                    else {"mean": spread.mean, "min": spread.least, "max": spread.most}
                    for name, spread in one.figures.items()
                }
                for one in self.ranked()
            ],
        }


def _compared(one: float, other: float) -> str:
    """How one amount relates to another.

    >>> _compared(7.5, 5.0), _compared(4.0, 5.0), _compared(5.0, 5.0)
    ('50 % more than', '20 % less than', 'as much as')
    """
    percent = round(100 * (one / other - 1)) if other > 0 else 0
    if percent == 0:
        return "as much as"
    return f"{abs(percent)} % {'more' if percent > 0 else 'less'} than"
