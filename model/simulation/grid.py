"""The settings that a simulation compares, its rows, and the search for the best fixed ratio."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from ..oversubscriptioncomputation import STRATEGIES
from .harm import Figures

#: Names in the column ``strategy`` that are not those of a strategy.
FIXED_RATIO, BEST_RATIO, ORACLE = "ratio", "best-ratio", "oracle"
#: Ratios are searched in steps of a tenth.
_STEPS_PER_RATIO = 10


@dataclass(frozen=True, slots=True)
class Setting:
    """What sets the capacities; None for a parameter that does not apply.

    Attributes
    ----------
    strategy : str
        Name of a strategy, ``ratio``, ``best-ratio`` or ``oracle``.
    risk : float or None
        Target risk.
    ratio : float or None
        Allocation ratio.
    guards : bool or None
        Whether the guards stand between the strategy and what is published.
    waits : bool or None
        Whether it is measured how long VMs wait.
    """

    strategy: str
    risk: float | None = None
    ratio: float | None = None
    guards: bool | None = None
    waits: bool | None = None

    @property
    def is_strategy(self) -> bool:
        """Whether a strategy publishes, not a fixed ratio or the oracle."""
        return self.strategy in STRATEGIES

    @property
    def label(self) -> str:
        """Text for tables and pictures.

        >>> Setting("conformal", risk=0.05, guards=False).label, Setting("ratio", ratio=4.0).label
        ('conformal 5% bare', 'ratio 4')
        """
        parts = [self.strategy.replace("-", " ")]
        if self.risk is not None:
            parts.append(f"{100 * self.risk:g}%")
        if self.ratio is not None:
            parts.append(f"{self.ratio:g}")
        if self.guards is False:
            parts.append("bare")
        if self.waits:
            parts.append("waits")
        return " ".join(parts)


def settings_of(
    strategies: Iterable[str],
    risks: Sequence[float],
    ratios: Sequence[float],
    guards: Sequence[bool],
    waits: Sequence[bool] = (False,),
    *,
    oracle: bool,
) -> list[Setting]:
    """Fixed ratios, the oracle, and every strategy with each target risk that it has, with guards and without, and with
    waits measured and without.

    >>> [setting.label for setting in settings_of(["borg", "conformal"], [0.01, 0.05], [4], [True], oracle=True)]
    ['ratio 4', 'oracle', 'borg', 'conformal 1%', 'conformal 5%']
    """
    chosen = [Setting(FIXED_RATIO, ratio=ratio) for ratio in ratios]
    if oracle:
        chosen.append(Setting(ORACLE))
    for name in strategies:
        own: Sequence[float | None] = risks if "risk" in STRATEGIES[name].parameters else [None]
        chosen += [
            Setting(name, risk=risk, guards=guarded, waits=measured)
            for risk in own
            for guarded in guards
            for measured in waits
        ]
    return chosen


# --- rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A run of one setting; a row of ``simulation.csv``.

    Attributes
    ----------
    strategy, risk, ratio, guards
        See :class:`Setting`.
    seed : int or None
        None where nothing is drawn.
    sold, hosted, accepted, accepted_vcpu, accepted_large, used, over, worst_node, unserved, p999, mem_over, mem_sold,
    reported : float
        See :class:`~model.simulation.harm.Figures`.
    hosts_needed : int or None
        The smallest number of nodes that takes 99 % of the vCPUs; None where it was not searched.
    wait_5, wait_10, wait_20 : float
        See :class:`~model.simulation.harm.Figures`.
    waits : bool or None
        See :class:`Setting`.
    """

    strategy: str
    risk: float | None
    ratio: float | None
    guards: bool | None
    seed: int | None
    sold: float
    hosted: float
    accepted: float
    accepted_vcpu: float
    accepted_large: float
    used: float
    over: float
    worst_node: float
    unserved: float
    p999: float
    mem_over: float
    mem_sold: float
    reported: float
    hosts_needed: int | None = None
    wait_5: float = 0.0
    wait_10: float = 0.0
    wait_20: float = 0.0
    waits: bool | None = None

    @property
    def setting(self) -> Setting:
        """What set the capacities."""
        return Setting(self.strategy, self.risk, self.ratio, self.guards, self.waits)


COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(Row))
#: The columns that are figures.
FIGURES: tuple[str, ...] = COLUMNS[COLUMNS.index("seed") + 1 : COLUMNS.index("waits")]


def row_of(setting: Setting, seed: int | None, figures: Figures, hosts_needed: int | None) -> Row:
    """The row of a run."""
    values = {name: getattr(figures, name) for name in FIGURES if name != "hosts_needed"}
    return Row(**asdict(setting), seed=seed, **values, hosts_needed=hosts_needed)


def table_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV; a cell is empty where a column does not apply."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in astuple(row)] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return round(value, 12) if isinstance(value, float) else value


# --- the best fixed ratio -----------------------------------------------------------------------------


class RatioSearch:
    """Bisection for the largest fixed ratio that is safe, in steps of 0.1 from 1 to the largest ratio.

    It takes harm to grow with the ratio.

    Parameters
    ----------
    harm : float
        A ratio is safe when its ``over``, mean over the seeds, is at most this.
    most : float
        The largest ratio.

    Attributes
    ----------
    best : float or None
        The largest ratio that was found to be safe.
    """

    def __init__(self, harm: float, most: float) -> None:
        self._harm = harm
        # In steps: the largest that is safe, the smallest that is not, and those within the limits.
        self._least = self._safe = _STEPS_PER_RATIO - 1
        self._most = math.floor(most * _STEPS_PER_RATIO + 1e-9)
        self._unsafe = self._most + 1

    @property
    def best(self) -> float | None:
        """The largest ratio so far that is safe; None without any."""
        return self._safe / _STEPS_PER_RATIO if self._safe > self._least else None

    def next(self) -> float | None:
        """The ratio to try; None at the end of the search."""
        if self._unsafe - self._safe <= 1:
            return None
        return (self._safe + self._unsafe) // 2 / _STEPS_PER_RATIO

    def note(self, ratio: float, over: float) -> None:
        """Take the harm of a ratio into account."""
        steps = ratio * _STEPS_PER_RATIO
        if over <= self._harm:
            self._safe = max(self._safe, min(math.floor(steps + 1e-9), self._unsafe - 1))
        else:
            self._unsafe = max(min(self._unsafe, math.ceil(steps - 1e-9)), self._safe + 1)
