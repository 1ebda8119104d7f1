"""The input of the scores, recorded slice by slice, without what a dump holds beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..contention import WAIT_SHARES, waiting_vms
from ..estimates import NodeEstimate
from ..numerics import FloatArray
from ..slices import CPU, RESOURCES, Slice
from .scoring import History


class HistoryRecorder:
    """Collects what strategies computed and what was used.

    Parameters
    ----------
    strategies : sequence of str

    Attributes
    ----------
    epoch : list of float
        The end of each slice, Unix seconds.
    """

    def __init__(self, strategies: Sequence[str]) -> None:
        self.epoch: list[float] = []
        self.strategies = tuple(strategies)
        self._node: dict[str, list[tuple[float, float, float]]] = {resource.name: [] for resource in RESOURCES}
        """By resource: capacity, booked and peak."""
        self._model: dict[tuple[str, str], list[tuple[float, float]]] = {
            (strategy, resource.name): [] for strategy in strategies for resource in RESOURCES
        }
        """By strategy and resource: computed as free, and published."""
        self._waiting: list[Sequence[float] | None] = []

    def record(self, finished: Slice, estimate: NodeEstimate) -> None:
        """Record one slice and the estimate at its end."""
        self.epoch.append(finished.end_s)
        self._waiting.append(None if finished.waits is None else waiting_vms(finished.waits))
        for resource in RESOURCES:
            usage = finished.usage(resource)
            self._node[resource.name].append((usage.config, usage.booked, usage.peak))
            for strategy, one in estimate.of(resource).by_strategy.items():
                self._model[strategy, resource.name].append((one.free, one.published))

    def histories(self, lag: int) -> dict[tuple[str, str], History]:
        """The input of the scores, by strategy and resource name.

        Parameters
        ----------
        lag : int
            S: slices between two slices of the same position.
        """
        nodes = {name: np.array(rows, dtype=np.float64).reshape(-1, 3).T for name, rows in self._node.items()}
        waiting = waiting_minutes(self._waiting, self.epoch)
        result = {}
        for (strategy, name), rows in self._model.items():
            config, booked, peak = nodes[name]
            free, published = np.array(rows, dtype=np.float64).reshape(-1, 2).T
            waited = waiting if name == CPU.name else None
            result[strategy, name] = History(config, booked, peak, free, published, lag, waited)
        return result


def waiting_minutes(vms: Sequence[Sequence[float] | None], epoch: Sequence[float]) -> FloatArray | None:
    """VM-minutes of waiting by slice and share, (k, 3) float64, 0 where nothing is known; None where nothing is."""
    if all(value is None for value in vms):
        return None
    minutes = float(np.median(np.diff(epoch))) / 60 if len(epoch) > 1 else 0.0
    return minutes * np.array([value or (0.0,) * len(WAIT_SHARES) for value in vms], dtype=np.float64)
