"""Strategies with several values of their parameters on many traces: scores, pooled scores and the Pareto front."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..nodemodel import ModelSettings
from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES, StrategySettings
from ..replay.replay import Replay
from ..replay.scoring import TOLERANCE, History, published_terms, score
from ..replay.trace import Trace
from ..slices import RESOURCES
from ..stability import STABILITY_DETECTORS


@dataclass(frozen=True, slots=True)
class Variant:
    """A strategy with values of its parameters; None for a parameter that does not change its result.

    With ``guards`` the target risk changes the result of every strategy.
    """

    strategy: str
    percentile: float | None = None
    aggregation: int | None = None
    risk: float | None = None
    stability: str | None = None
    guards: bool = False


#: The parameters that an evaluation varies, see ``Strategy.parameters``.
PARAMETERS: tuple[str, ...] = tuple(column.name for column in fields(Variant))[1:-1]


def variants(strategies: Iterable[str], values: Mapping[str, Sequence[Any]], *, guards: bool = False) -> list[Variant]:
    """Every strategy with every combination of the values of its own parameters.

    Parameters
    ----------
    strategies : iterable of str
    values : mapping of parameter to its values
    guards : bool
        Whether guards lower what the variants publish. They depend on the target risk.

    >>> values = {"percentile": [90.0], "aggregation": [1], "risk": [0.01, 0.05], "stability": ["mean"]}
    >>> [variant.risk for variant in variants(["borg", "conformal"], values)]
    [None, 0.01, 0.05]
    >>> [variant.risk for variant in variants(["borg"], values, guards=True)]
    [0.01, 0.05]
    """
    result = []
    for name in strategies:
        own = {*STRATEGIES[name].parameters, *(("risk",) if guards else ())}
        parameters = [parameter for parameter in PARAMETERS if parameter in own]
        for combination in itertools.product(*(values[parameter] for parameter in parameters)):
            result.append(Variant(name, **dict(zip(parameters, combination, strict=True)), guards=guards))
    return result


def labels(chosen: Sequence[Variant]) -> dict[Variant, str]:
    """A label per variant: its strategy, and the parameters in which it differs from others of the same strategy.

    >>> list(labels([Variant("borg"), Variant("conformal", risk=0.01), Variant("conformal", risk=0.05)]).values())
    ['borg', 'conformal 0.01', 'conformal 0.05']
    """
    result = {}
    for variant in chosen:
        siblings = [other for other in chosen if other.strategy == variant.strategy]
        differing = [name for name in PARAMETERS if len({getattr(other, name) for other in siblings}) > 1]
        texts = {name: _value_text(getattr(variant, name)) for name in differing}
        parts = [f"{name}={text}" for name, text in texts.items()] if len(texts) > 1 else texts.values()
        result[variant] = " ".join([variant.strategy, *parts])
    return result


def _value_text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


# --- one trace --------------------------------------------------------------------------------------

Histories = dict[tuple[Variant, str], History]


@dataclass(slots=True)
class _Pass:
    """One replay: variants of different strategies whose parameter values do not conflict."""

    guards: bool
    values: dict[str, Any] = field(default_factory=dict)
    members: dict[str, Variant] = field(default_factory=dict)

    def accepts(self, variant: Variant) -> bool:
        """Add a variant, unless it conflicts with a member."""
        values = {name: value for name in PARAMETERS if (value := getattr(variant, name)) is not None}
        conflict = any(self.values.get(name, value) != value for name, value in values.items())
        if conflict or variant.strategy in self.members or variant.guards != self.guards:
            return False
        self.values |= values
        self.members[variant.strategy] = variant
        return True


def _passes(chosen: Sequence[Variant]) -> list[_Pass]:
    passes: list[_Pass] = []
    for variant in chosen:
        if not any(one.accepts(variant) for one in passes):
            passes.append(_Pass(variant.guards))
            passes[-1].accepts(variant)
    return passes


def evaluate(trace: Trace, chosen: Sequence[Variant]) -> Histories:
    """The history of each variant on a trace, by variant and resource name, in few replays."""
    histories: Histories = {}
    for one in _passes(chosen):
        detector = STABILITY_DETECTORS[one.values.pop("stability", "mean")]
        parameters = StrategySettings(**one.values)
        settings = ModelSettings(
            trace.config.historical,
            strategies=tuple(one.members),
            cpu=parameters,
            mem=parameters,
            guarded=one.guards,
        )
        replay = Replay(trace, settings, {resource.name: detector for resource in RESOURCES})
        for (strategy, resource), history in replay.run_for_histories().items():
            histories[one.members[strategy], resource] = history
    return {(variant, resource.name): histories[variant, resource.name] for variant in chosen for resource in RESOURCES}


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one resource of one trace; a row of ``results.csv``.

    Attributes
    ----------
    slices, violations : int
        Scored slices, without the first ones of the trace, and the violated among them.
    misprediction, published_free, usable_free : float
        Means over the scored slices, shares of the node: distance of the published figure from what was really free;
        published free; the part of it that was really free. NaN where no slice is scored.
    replay_misprediction, replay_violation, replay_violation_frequency, replay_decrease : float
        The replay score of the whole trace, see :class:`model.replay.scoring.Score`.
    """

    trace: str
    variant: Variant
    resource: str
    slices: int
    violations: int
    misprediction: float
    published_free: float
    usable_free: float
    replay_misprediction: float
    replay_violation: float
    replay_violation_frequency: float
    replay_decrease: float


def row_of(trace: str, variant: Variant, resource: str, history: History, after: int) -> Row:
    """Score one history.

    Parameters
    ----------
    after : int
        Number of slices at the start that are not scored.
    """
    terms, replay = published_terms(history), score(variant.strategy, resource, history)
    scored = ~np.isnan(terms.misprediction) & (np.arange(terms.truth.size) >= after)
    config = history.config[scored]
    # A negative figure counts as 0: no strategy is worse than leaving the node alone.
    published = np.maximum(terms.prediction[scored], 0.0)
    usable = np.minimum(published, np.maximum(terms.truth[scored], 0.0))
    return Row(
        trace,
        variant,
        resource,
        slices=int(scored.sum()),
        violations=int((terms.violation[scored] > TOLERANCE).sum()),
        misprediction=_mean(terms.misprediction[scored]),
        published_free=_mean(published / config),
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

    Every scored slice of every trace has the same weight.

    Attributes
    ----------
    traces : int
        Traces with a scored slice.
    slices, violations : int
        Sums over these traces.
    violation_frequency : float
        violations / slices.
    worst : float
        The same for the trace where it is highest.
    misprediction, published_free, usable_free : float
        As in :class:`Row`.
    on_front : bool
        No other variant of the resource is better in violation frequency or usable free and at least as good in the
        other (the Pareto front).
    """

    variant: Variant
    resource: str
    traces: int
    slices: int
    violations: int
    violation_frequency: float
    worst: float
    misprediction: float
    published_free: float
    usable_free: float
    on_front: bool = False


def pooled(rows: Iterable[Row]) -> list[Pooled]:
    """Pool the traces: a row per variant and resource, in order of appearance."""
    groups: dict[tuple[Variant, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.slices:
            groups[row.variant, row.resource].append(row)
    points = [_pooled(group) for group in groups.values()]
    return [replace(point, on_front=not any(_dominates(other, point) for other in points)) for point in points]


def _dominates(one: Pooled, other: Pooled) -> bool:
    if one.resource != other.resource:
        return False
    first, second = ((point.violation_frequency, -point.usable_free) for point in (one, other))
    return first != second and first[0] <= second[0] and first[1] <= second[1]


def _pooled(rows: Sequence[Row]) -> Pooled:
    slices = np.array([row.slices for row in rows])
    violations = np.array([row.violations for row in rows])

    def mean(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=slices))

    return Pooled(
        rows[0].variant,
        rows[0].resource,
        traces=len(rows),
        slices=int(slices.sum()),
        violations=int(violations.sum()),
        violation_frequency=float(violations.sum() / slices.sum()),
        worst=float((violations / slices).max()),
        misprediction=mean(row.misprediction for row in rows),
        published_free=mean(row.published_free for row in rows),
        usable_free=mean(row.usable_free for row in rows),
    )


# --- tables -----------------------------------------------------------------------------------------


def table_csv(rows: Sequence[Row] | Sequence[Pooled], kind: type[Row] | type[Pooled]) -> str:
    """Rows as CSV; a cell is empty where the strategy lacks the parameter or no slice is scored."""
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
