"""The outcome of a replay: of one that has just run, or read back from a folder of dumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES
from ..slices import RESOURCES, Resource
from .dump import Dump, DumpError, read_dumps
from .evidence import Evidence, Verdict, choose, collect_evidence, rank
from .replay import Replay
from .scoring import History, Score

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What several strategies computed on one node. Every figure is computed once, when it is first read.

    Attributes
    ----------
    name : str
        The title: the name of the folder or of the trace.
    node_name : str
    epoch : (k,) float64
        The ends of the slices, Unix seconds.
    histories : mapping of (strategy, resource name) to History
    guarded : bool
        Whether guards lowered what was published.
    """

    name: str
    node_name: str
    epoch: FloatArray
    histories: Mapping[tuple[str, str], History]
    guarded: bool = False

    @property
    def strategies(self) -> list[str]:
        """Their names, in the order of the histories."""
        return list(dict.fromkeys(strategy for strategy, _ in self.histories))

    @cached_property
    def evidence(self) -> Mapping[str, Sequence[Evidence]]:
        """By resource name: a row per strategy."""
        return {
            resource.name: [
                collect_evidence(strategy, resource, self.histories[strategy, resource.name])
                for strategy in self.strategies
            ]
            for resource in RESOURCES
        }

    @property
    def scores(self) -> list[Score]:
        """A row per strategy and resource."""
        by_strategy = zip(*(self.evidence[resource.name] for resource in RESOURCES), strict=True)
        return [row.score for rows in by_strategy for row in rows]

    def ranked(self, resource: Resource, risk: float) -> list[Evidence]:
        """The strategies for one resource, best first at this target risk."""
        return rank(self.evidence[resource.name], risk)

    def verdict(self, resource: Resource, risk: float) -> Verdict:
        """The recommended strategy for one resource at this target risk."""
        return choose(self.evidence[resource.name], risk)

    @property
    def summary(self) -> pd.DataFrame:
        """The scores as a table with the columns of ``summary.csv``."""
        from .frames import summary_frame

        return summary_frame(self.scores)

    @cached_property
    def slices(self) -> Mapping[str, pd.DataFrame]:
        """By resource name: the table of :func:`.frames.slices_frame` of all strategies."""
        from .frames import slices_frame

        return {
            resource.name: slices_frame(
                self.epoch, {strategy: self.histories[strategy, resource.name] for strategy in self.strategies}
            )
            for resource in RESOURCES
        }


def replay_results(
    name: str, node_name: str, replay: Replay, histories: Mapping[tuple[str, str], History] | None = None
) -> Results:
    """The outcome of a replay that has just run; its histories are those of its dumps unless they are given."""
    histories = replay.histories() if histories is None else histories
    return Results(name, node_name, np.array(replay.trace.epoch), histories, replay.settings.guarded)


def load_results(folder: str | Path) -> Results:
    """The outcome of a replay, from the dumps in a folder.

    Raises
    ------
    DumpError
        When there are none, when one cannot be read, or when they are of different traces.
    """
    paths = sorted(Path(folder).glob("dump-*.json"), key=_registry_order)
    if not paths:
        raise DumpError(f"{folder}: no dump-*.json in it")
    dumps_of_paths = [(path, dump) for path in paths for dump in read_dumps(path)]
    dumps = [dump for _, dump in dumps_of_paths]
    seen: set[str] = set()
    for path, dump in dumps_of_paths:
        if not _same_replay(dump, dumps[0]):
            raise DumpError(f"{path}: of another trace, or with other settings, than {paths[0].name}")
        if dump.strategy in seen:
            raise DumpError(f"{path}: there is another dump of {dump.strategy}")
        seen.add(dump.strategy)
    dumps.sort(key=lambda dump: _place_in_registry(dump.strategy))
    histories = {
        (dump.strategy, resource.name): dump.histories[resource.name] for dump in dumps for resource in RESOURCES
    }
    # Dumps of earlier versions lack the key.
    guarded = bool(dumps[0].config.get("guards"))
    return Results(Path(folder).resolve().name, dumps[0].node_name, dumps[0].epoch, histories, guarded)


def _same_replay(a: Dump, b: Dump) -> bool:
    """Whether two dumps differ in their strategy alone."""
    if {**a.config, "strategy": ""} != {**b.config, "strategy": ""} or not np.array_equal(a.epoch, b.epoch):
        return False
    pairs = [(a.histories[resource.name], b.histories[resource.name]) for resource in RESOURCES]
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for one, other in pairs
        for name in ("config", "booked", "peak")
    )


def _registry_order(path: Path) -> tuple[int, str]:
    """Strategies are always shown in the order of the registry."""
    return _place_in_registry(path.stem.removeprefix("dump-"))


def _place_in_registry(name: str) -> tuple[int, str]:
    names: Sequence[str] = list(STRATEGIES)
    return (names.index(name) if name in names else len(names), name)
