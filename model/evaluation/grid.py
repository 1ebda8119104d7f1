"""Strategies with several settings on many traces: what each is worth, pooled, and which of them nothing beats."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..cli.model_options import ModelOptions, risk_fault, strategies_of
from ..common.errors import UsageError
from ..nodemodel import ModelSettings
from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES, StrategySettings
from ..replay.replay import Replay
from ..replay.scoring import TOLERANCE, History, published_terms, score
from ..replay.trace import Trace
from ..slices import RESOURCES
from ..stability import STABILITY_DETECTORS

#: Where the values of each of ``PARAMETERS`` stand.
_OPTIONS = ("percentile", "aggreg", "risk", "stability")


def chosen_variants(args: argparse.Namespace) -> list[Variant]:
    """What ``misc/evaluate.py`` is to evaluate: its options hold lists of values.

    Raises
    ------
    UsageError
    """
    strategies = strategies_of(ModelOptions(strategy=args.strategy), "all")
    for risk in args.risk:
        if fault := risk_fault(risk, strategies):
            raise UsageError(f"--risk: {fault}")
    for name in args.stability:
        if name not in STABILITY_DETECTORS:
            raise UsageError(f"--stability: {name!r} is none of {', '.join(STABILITY_DETECTORS)}")
    values = {name: getattr(args, option) for name, option in zip(PARAMETERS, _OPTIONS, strict=True)}
    return variants(strategies, values)


@dataclass(frozen=True, slots=True)
class Variant:
    """A strategy with the parameters that it heeds; None for those that it does not."""

    strategy: str
    percentile: float | None = None
    aggregation: int | None = None
    risk: float | None = None
    stability: str | None = None


#: What may be tried in several values, see ``Strategy.heeds``.
PARAMETERS: tuple[str, ...] = tuple(column.name for column in fields(Variant))[1:]


def variants(strategies: Iterable[str], values: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every strategy with every combination of the values of what it heeds.

    >>> tried = {"percentile": [90.0], "aggregation": [1], "risk": [0.01, 0.05], "stability": ["mean"]}
    >>> [variant.risk for variant in variants(["borg", "conformal"], tried)]
    [None, 0.01, 0.05]
    """
    found = []
    for name in strategies:
        heeded = [parameter for parameter in PARAMETERS if parameter in STRATEGIES[name].parameters]
        for combined in itertools.product(*(values[parameter] for parameter in heeded)):
            found.append(Variant(name, **dict(zip(heeded, combined, strict=True))))
    return found


def labels(chosen: Sequence[Variant]) -> dict[Variant, str]:
    """What to call each: its strategy, and what tells it from others of the same strategy.

    >>> list(labels([Variant("borg"), Variant("conformal", risk=0.01), Variant("conformal", risk=0.05)]).values())
    ['borg', 'conformal 0.01', 'conformal 0.05']
    """
    found = {}
    for variant in chosen:
        same = [other for other in chosen if other.strategy == variant.strategy]
        differing = [name for name in PARAMETERS if len({getattr(other, name) for other in same}) > 1]
        values = ((name, getattr(variant, name)) for name in differing)
        told = ((name, value if isinstance(value, str) else f"{value:g}") for name, value in values)
        # A single value needs no name: each strategy has one that is looked at first.
        words = (f"{name}={value}" if len(differing) > 1 else value for name, value in told)
        found[variant] = " ".join([variant.strategy, *words])
    return found


# --- one trace --------------------------------------------------------------------------------------

Histories = dict[tuple[Variant, str], History]


@dataclass(slots=True)
class _Pass:
    """Variants of different strategies, no two of which want another value of the same parameter."""

    settings: dict[str, Any] = field(default_factory=dict)
    members: dict[str, Variant] = field(default_factory=dict)

    def takes(self, variant: Variant) -> bool:
        """Make it a member, if it fits to those that are."""
        wanted = {name: value for name in PARAMETERS if (value := getattr(variant, name)) is not None}
        if variant.strategy in self.members or any(
            self.settings.get(name, wanted[name]) != wanted[name] for name in wanted
        ):
            return False
        self.settings |= wanted
        self.members[variant.strategy] = variant
        return True


def evaluate(trace: Trace, chosen: Sequence[Variant]) -> Histories:
    """What each variant did on a trace, by variant and resource name; in as few replays as will do."""
    passes: list[_Pass] = []
    for variant in chosen:
        if not any(one.takes(variant) for one in passes):
            passes.append(_Pass())
            passes[-1].takes(variant)
    found: Histories = {}
    for one in passes:
        detector = STABILITY_DETECTORS[one.settings.pop("stability", "mean")]
        wanted = StrategySettings(**one.settings)
        settings = ModelSettings(trace.config.historical, strategies=tuple(one.members), cpu=wanted, mem=wanted)
        replay = Replay(trace, settings, {resource.name: detector for resource in RESOURCES}).run()
        for (strategy, resource), history in replay.recorder.histories(trace.config.positions).items():
            found[one.members[strategy], resource] = history
    return {(variant, resource.name): found[variant, resource.name] for variant in chosen for resource in RESOURCES}


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one resource of one trace; a row of ``results.csv``.

    Attributes
    ----------
    scored, broken : int
        Slices for which there was a promise to test, and those in which it was broken, after the first ones.
    misprediction, published_free, usable_free : float
        Means over the scored slices, shares of the node: how far off the promise was; what was promised; how much of
        that was really free. NaN where no slice is scored.
    replay_misprediction, replay_violation, replay_violation_frequency, replay_decrease : float
        The replay score of the whole trace, see :class:`model.scoring.Score`.
    """

    trace: str
    variant: Variant
    resource: str
    scored: int
    broken: int
    misprediction: float
    published_free: float
    usable_free: float
    replay_misprediction: float
    replay_violation: float
    replay_violation_frequency: float
    replay_decrease: float


def row_of(trace: str, variant: Variant, resource: str, history: History, after: int) -> Row:
    """The figures of one history.

    Parameters
    ----------
    after : int
        How many slices a strategy has to learn before its promises count.
    """
    terms, replay = published_terms(history), score(variant.strategy, resource, history)
    counted = ~np.isnan(terms.misprediction) & (np.arange(terms.truth.size) >= after)
    config = history.config[counted]
    # What is promised below nothing is nothing: neither counts for less than a node that is left alone.
    promised = np.maximum(terms.prediction[counted], 0.0)
    usable = np.minimum(promised, np.maximum(terms.truth[counted], 0.0))
    return Row(
        trace,
        variant,
        resource,
        scored=int(counted.sum()),
        broken=int((terms.violation[counted] > TOLERANCE).sum()),
        misprediction=_mean(terms.misprediction[counted]),
        published_free=_mean(promised / config),
        usable_free=_mean(usable / config),
        replay_misprediction=replay.misprediction,
        replay_violation=replay.violation,
        replay_violation_frequency=replay.violation_frequency,
        replay_decrease=replay.decrease,
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else math.nan


# --- all traces -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pooled:
    """One variant on one resource, all traces together; a row of ``pooled.csv``.

    Every scored slice of every trace counts the same.

    Attributes
    ----------
    traces : int
        Those in which a slice is scored.
    violation_frequency : float
        Share of the slices in which more was used than the promise left.
    worst : float
        The same on the trace where it is highest.
    misprediction, published_free, usable_free : float
        As in :class:`Row`.
    on_front : bool
        No other variant of the resource breaks as few promises and has more that is usable, or fewer and as much.
    """

    variant: Variant
    resource: str
    traces: int
    scored: int
    broken: int
    violation_frequency: float
    worst: float
    misprediction: float
    published_free: float
    usable_free: float
    on_front: bool = False


def pooled(rows: Iterable[Row]) -> list[Pooled]:
    """All traces together: a row per variant and resource, in the order in which they come."""
    groups: dict[tuple[Variant, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.scored:
            groups[row.variant, row.resource].append(row)
    points = [_pooled(group) for group in groups.values()]
    return [replace(point, on_front=not any(_beats(other, point) for other in points)) for point in points]


def _beats(one: Pooled, other: Pooled) -> bool:
    ours, theirs = ((point.violation_frequency, -point.usable_free) for point in (one, other))
    return one.resource == other.resource and ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def _pooled(rows: Sequence[Row]) -> Pooled:
    scored = np.array([row.scored for row in rows])
    broken = np.array([row.broken for row in rows])

    def mean(figures: Iterable[float]) -> float:
        return float(np.average(list(figures), weights=scored))

    return Pooled(
        rows[0].variant,
        rows[0].resource,
        traces=len(rows),
        scored=int(scored.sum()),
        broken=int(broken.sum()),
        violation_frequency=float(broken.sum() / scored.sum()),
        worst=float((broken / scored).max()),
        misprediction=mean(row.misprediction for row in rows),
        published_free=mean(row.published_free for row in rows),
        usable_free=mean(row.usable_free for row in rows),
    )


# --- tables -----------------------------------------------------------------------------------------


def table_csv(rows: Sequence[Row] | Sequence[Pooled], kind: type[Row] | type[Pooled]) -> str:
    """Rows as CSV; an empty cell where a parameter is not heeded or nothing could be scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [column.name for column in fields(kind)]
    at = names.index("variant")
    writer.writerow([*names[:at], *(column.name for column in fields(Variant)), *names[at + 1 :]])
    for row in rows:
        writer.writerow([_cell(value) for name in names for value in _values(getattr(row, name))])
    return text.getvalue()


def _values(value: Any) -> Iterator[Any]:
    yield from astuple(value) if isinstance(value, Variant) else (value,)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return round(value, 12) if isinstance(value, float) else value
