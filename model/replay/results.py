"""The outcome of a replay as tables: fresh, or read back from a folder of dumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..numerics import FloatArray
from ..oversubscriptioncomputation import STRATEGIES
from ..slices import RESOURCES
from .dump import Dump, DumpError, read_dumps
from .replay import Replay
from .scoring import History, Score, score, slices_frame, summary_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What several strategies did on one node.

    Attributes
    ----------
    name : str
        How to call them: the folder's or the trace's name.
    node_name : str
    epoch : (k,) float64
        The ends of the slices, Unix seconds.
    histories : mapping of (strategy, resource name) to History
    """

    name: str
    node_name: str
    epoch: FloatArray
    histories: Mapping[tuple[str, str], History]

    @property
    def strategies(self) -> list[str]:
        """Their names, in the order of the histories."""
        return list(dict.fromkeys(strategy for strategy, _ in self.histories))

    @cached_property
    def scores(self) -> list[Score]:
        """A row per strategy and resource."""
        return [score(strategy, resource, history) for (strategy, resource), history in self.histories.items()]

    @property
    def summary(self) -> pd.DataFrame:
        """The scores as a table."""
        return summary_frame(self.scores)

    @cached_property
    def slices(self) -> Mapping[str, pd.DataFrame]:
        """By resource name: what :func:`model.scoring.slices_frame` makes of all strategies."""
        return {
            resource.name: slices_frame(
                self.epoch, {strategy: self.histories[strategy, resource.name] for strategy in self.strategies}
            )
            for resource in RESOURCES
        }


def replay_results(name: str, node_name: str, replay: Replay) -> Results:
    """The outcome of a replay that has just run."""
    histories = replay.recorder.histories(replay.trace.config.positions)
    return Results(name, node_name, np.array(replay.recorder.epoch), histories)


def load_results(folder: str | Path) -> Results:
    """The outcome of a replay, from the dumps in a folder.

    Raises
    ------
    DumpError
        When there are none, when one can't be read, or when they are of different traces.
    """
    paths = sorted(Path(folder).glob("dump-*.json"), key=_by_registry)
    if not paths:
        raise DumpError(f"{folder}: no dump-*.json in it")
    found = [(path, dump) for path in paths for dump in read_dumps(path)]
    dumps = [dump for _, dump in found]
    seen: set[str] = set()
    for path, dump in found:
        if not _of_one_replay(dump, dumps[0]):
            raise DumpError(f"{path}: of another trace, or with other settings, than {paths[0].name}")
        if dump.strategy in seen:
            raise DumpError(f"{path}: there is another dump of {dump.strategy}")
        seen.add(dump.strategy)
    histories = {
        (dump.strategy, resource.name): dump.histories[resource.name] for dump in dumps for resource in RESOURCES
    }
    return Results(Path(folder).resolve().name, dumps[0].node_name, dumps[0].epoch, histories)


def _of_one_replay(a: Dump, b: Dump) -> bool:
    """Whether two dumps differ in their strategy alone."""
    if {**a.config, "strategy": ""} != {**b.config, "strategy": ""} or not np.array_equal(a.epoch, b.epoch):
        return False
    pairs = [(a.histories[resource.name], b.histories[resource.name]) for resource in RESOURCES]
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for one, other in pairs
        for name in ("config", "booked", "peak")
    )


def _by_registry(path: Path) -> tuple[int, str]:
    """The order in which the strategies are always shown."""
    names: Sequence[str] = list(STRATEGIES)
    name = path.stem.removeprefix("dump-")
    return (names.index(name) if name in names else len(names), name)
