"""Estimates to dumps, and dumps back to the figures that scores are made of.

Numbers that do not exist are NaN inside and ``null`` in the file: a dump is strict JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from model.nodemodel import Estimate, NodeEstimate
from model.scoring import History
from model.series import PERCENTILES, RESOURCES, FloatArray, Resource, Slice, Summary, summarise

_PERCENTILE_KEYS = tuple(str(percentile) for percentile in PERCENTILES)
_FIGURES = ("avg", "std", "max", "percentile")


class DumpError(ValueError):
    """A dump that can't be used; the message is one line that names file and place."""


class DumpRecorder:
    """Collects what a dump holds, slice by slice, for all strategies at once.

    What does not depend on the strategy is kept, and encoded, once.

    Parameters
    ----------
    strategies : sequence of str
    vms : sequence of str
        Every VM that will be seen.
    """

    def __init__(self, strategies: Sequence[str], vms: Sequence[str]) -> None:
        self.epoch: list[float] = []
        self.strategies = tuple(strategies)
        self._node: dict[str, list[Any]] = {}
        self._vms: dict[str, dict[str, list[Any]]] = {name: {} for name in vms}
        self._model: dict[str, dict[str, list[float]]] = {name: {} for name in strategies}
        self._peak: dict[str, list[float]] = {resource.name: [] for resource in RESOURCES}

    def record(self, finished: Slice, estimate: NodeEstimate) -> None:
        """Take down one slice and what was estimated at its end."""
        self.epoch.append(finished.end_s)
        node: dict[str, Any] = {"vm_list": finished.vms}
        vms: dict[str, dict[str, Any]] = {name: {} for name in finished.vms}
        for resource in RESOURCES:
            usage = finished.usage(resource)
            own = summarise(usage.node[None, :])
            node |= {f"{resource.name}_config": usage.config, f"booked_{resource.name}": usage.booked}
            node |= _figures(resource, own)[0]
            node[f"{resource.name}_stable_state"] = estimate.of(resource).stable if usage.measured else None
            if resource is RESOURCES[0]:
                node["number_of_values"] = int(own.count[0])
            self._peak[resource.name].append(float(own.percentiles[PERCENTILES.index(99), 0]))
            summary = summarise(usage.vm_usage)
            for name, config, figures in zip(
                finished.vms, usage.vm_config.tolist(), _figures(resource, summary), strict=True
            ):
                vms[name][f"{resource.name}_config"] = config
                vms[name] |= figures
            if resource is RESOURCES[0]:
                for name, count in zip(finished.vms, summary.count.tolist(), strict=True):
                    vms[name]["number_of_values"] = count
            for name, said in estimate.of(resource).by_strategy.items():
                self._record_model(self._model[name], resource, said)
        _append(self._node, node)
        for name, columns in self._vms.items():
            _append_sparse(columns, vms.get(name), len(self.epoch) - 1)

    @staticmethod
    def _record_model(columns: dict[str, list[float]], resource: Resource, said: Estimate) -> None:
        row = {
            f"free_{resource.name}": said.free,
            f"{resource.name}_tier0": said.tier0,
            f"{resource.name}_tier1": said.tier1,
            f"{resource.name}_tier2": said.tier2,
            f"published_{resource.name}": said.published,
        }
        _append(columns, row)

    def histories(self, lag: int) -> dict[tuple[str, str], History]:
        """What the scores are made of, by strategy and resource name.

        Parameters
        ----------
        lag : int
            S, how many slices before the predecessor at the same position stands.
        """
        return {
            (strategy, resource.name): History(
                config=_array(self._node[f"{resource.name}_config"]),
                booked=_array(self._node[f"booked_{resource.name}"]),
                peak=_array(self._peak[resource.name]),
                free=_array(self._model[strategy][f"free_{resource.name}"]),
                published=_array(self._model[strategy][f"published_{resource.name}"]),
                lag=lag,
            )
            for strategy in self.strategies
            for resource in RESOURCES
        }

    def tiers(self, strategy: str, resource: Resource) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(k,) float64 each: tier0, tier1 and tier2 of one strategy."""
        columns = self._model[strategy]
        return tuple(_array(columns[f"{resource.name}_tier{i}"]) for i in range(3))  # type: ignore[return-value]

    def encode(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """The dump of each strategy as JSON text.

        Parameters
        ----------
        config : mapping
            The ``config`` object, without the strategy's name, which is added.
        """
        epoch = msgspec.json.encode(self.epoch)
        node = msgspec.json.encode(self._node)
        vms = msgspec.json.encode(self._vms)
        return {
            strategy: msgspec.json.encode(
                {
                    "epoch": msgspec.Raw(epoch),
                    "config": {**config, "strategy": strategy},
                    "model": self._model[strategy],
                    "node": msgspec.Raw(node),
                    "vm": msgspec.Raw(vms),
                }
            )
            for strategy in self.strategies
        }


def _figures(resource: Resource, summary: Summary) -> list[dict[str, Any]]:
    """One object per row of the summary."""
    keys = [f"{resource.name}_{figure}" for figure in _FIGURES]
    percentiles = [dict(zip(_PERCENTILE_KEYS, row, strict=True)) for row in summary.percentiles.T.tolist()]
    columns = (summary.average.tolist(), summary.deviation.tolist(), summary.maximum.tolist(), percentiles)
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    for row, count in zip(rows, summary.count.tolist(), strict=True):
        if count == 0:
            row[keys[-1]] = None
    return rows


def _append(columns: dict[str, list[Any]], row: Mapping[str, Any]) -> None:
    for key, value in row.items():
        columns.setdefault(key, []).append(value)


def _append_sparse(columns: dict[str, list[Any]], row: Mapping[str, Any] | None, length: int) -> None:
    """Append a row, or ``None`` in every column; the columns appear with the first row."""
    if row is not None:
        for key, value in row.items():
            columns.setdefault(key, [None] * length).append(value)
    else:
        for column in columns.values():
            column.append(None)


def _array(values: Sequence[float | None]) -> FloatArray:
    return np.array(values, dtype=np.float64)


# --- reading -----------------------------------------------------------------------------------------


class _DumpConfig(msgspec.Struct):
    node_name: str
    strategy: str
    node_scope: float
    slice_scope: float


class _DumpText(msgspec.Struct):
    epoch: list[float]
    config: _DumpConfig
    model: dict[str, list[float | None]]
    node: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Dump:
    """What a dump tells of one strategy on one node.

    Attributes
    ----------
    node_name, strategy : str
    epoch : (k,) float64
        The ends of the slices, Unix seconds.
    histories : mapping of resource name to History
    """

    node_name: str
    strategy: str
    epoch: FloatArray
    histories: Mapping[str, History]


def read_dump(path: str | Path) -> Dump:
    """Read a dump back.

    Raises
    ------
    DumpError
        When the file can't be read or is no dump.
    """
    try:
        text = msgspec.json.decode(Path(path).read_bytes(), type=_DumpText)
        lag = round(text.config.node_scope / text.config.slice_scope)
        histories = {
            resource.name: History(
                config=_array(text.node[f"{resource.name}_config"]),
                booked=_array(text.node[f"booked_{resource.name}"]),
                peak=_array([p and p["99"] for p in text.node[f"{resource.name}_percentile"]]),
                free=_array(text.model[f"free_{resource.name}"]),
                published=_array(text.model[f"published_{resource.name}"]),
                lag=lag,
            )
            for resource in RESOURCES
        }
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror}") from None
    except KeyError as error:
        raise DumpError(f"{path}: {error.args[0]} is missing") from None
    except (msgspec.DecodeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DumpError(f"{path}: not a dump: {error}") from None
    return Dump(text.config.node_name, text.config.strategy, _array(text.epoch), histories)
