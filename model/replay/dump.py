"""Writes the estimates of a replay as dumps, and reads dumps back.

A missing number is NaN in memory and ``null`` in the file: a dump is strict JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..contention import waiting_vms
from ..estimates import Estimate, NodeEstimate
from ..numerics import PERCENTILES, FloatArray, Summary, summarise
from ..slices import CPU, RESOURCES, Resource, Slice
from .histories import waiting_minutes
from .scoring import History

_PERCENTILE_KEYS = tuple(str(percentile) for percentile in PERCENTILES)
_FIGURES = ("avg", "std", "max", "percentile")
_BOOKED_NOW = tuple(f"booked_now_{resource.name}" for resource in RESOURCES)
_WAITING = "waiting_vms"
#: Slices wait to be summarised together until they have so many samples of one resource.
_SUMMARISED_AT_ONCE = 50_000
#: Of a row: average, deviation, maximum and the percentiles.
_WIDTH = 3 + len(PERCENTILES)


class DumpError(ValueError):
    """The dump is not usable; the message is one line that names file and place."""


class _VmFigures(msgspec.Struct):
    """The figures of the VMs present in one slice; ``vms`` names the rows."""

    vms: tuple[str, ...]
    count: list[int]
    config: dict[str, bytes]
    """By resource: (v,) float64."""
    figures: dict[str, bytes]
    """By resource: (v, 29) float64, average, deviation, maximum and percentiles."""


class SliceFigures(msgspec.Struct):
    """The figures of one slice that dumps and scores need, in a few kilobytes.

    Attributes
    ----------
    end_s : float
    node : dict
        The columns of ``node``.
    peak : dict of resource name to float
        99th percentile of the node's samples, unrounded.
    model : dict of strategy to the columns of ``model``
    vm : _VmFigures
    """

    end_s: float
    node: dict[str, Any]
    peak: dict[str, float]
    model: dict[str, dict[str, float]]
    vm: _VmFigures


def slice_figures(finished: Slice, estimate: NodeEstimate) -> SliceFigures:
    """The figures of a slice and of the estimate at its end."""
    return _figures_of([(finished, estimate)])[0]


def _figures_of(slices: Sequence[tuple[Slice, NodeEstimate]]) -> list[SliceFigures]:
    """The figures of some slices: all nodes and all VMs are summarised together."""
    nodes, vms = {}, {}
    for resource in RESOURCES:
        usages = [finished.usage(resource) for finished, _ in slices]
        nodes[resource.name] = _rows_of([usage.node[None, :] for usage in usages])
        vms[resource.name] = _rows_of([usage.vm_usage for usage in usages])
    return [
        _one_of(*one, *({name: rows[k] for name, rows in of.items()} for of in (nodes, vms)))
        for k, one in enumerate(slices)
    ]


class _Rows(NamedTuple):
    """The figures of the machines of one slice.

    Attributes
    ----------
    table : (v, 29) float64
        As :func:`_table` returns it.
    number : (v,) int
        Samples.
    peak : (v,) float64
        99th percentile, unrounded.
    """

    table: FloatArray
    number: NDArray[np.intp]
    peak: FloatArray


def _rows_of(samples: Sequence[FloatArray]) -> list[_Rows]:
    """The figures of the machines of some slices, (v, m) float64 each; those of one width are summarised together."""
    rows: dict[int, _Rows] = {}
    for width in {one.shape[1] for one in samples}:
        places = [k for k, one in enumerate(samples) if one.shape[1] == width]
        summary = summarise(np.concatenate([samples[k] for k in places]))
        table, peak, end = _table(summary), summary.percentiles[PERCENTILES.index(99)], 0
        for k in places:
            start, end = end, end + samples[k].shape[0]
            rows[k] = _Rows(table[start:end], summary.count[start:end], peak[start:end])
    return [rows[k] for k in range(len(samples))]


def _one_of(
    finished: Slice, estimate: NodeEstimate, of_node: Mapping[str, _Rows], of_vms: Mapping[str, _Rows]
) -> SliceFigures:
    """The figures of one slice, from those of node and VMs by resource name."""
    node: dict[str, Any] = {"vm_list": finished.vms, "number_of_values": finished.cpu.node.size}
    node[_WAITING] = None if finished.waits is None else waiting_vms(finished.waits)
    peak: dict[str, float] = {}
    model: dict[str, dict[str, float]] = {}
    for resource in RESOURCES:
        usage, estimates, rows = finished.usage(resource), estimate.of(resource), of_node[resource.name]
        peak[resource.name] = float(rows.peak[0])
        node |= {f"{resource.name}_config": usage.config, f"booked_{resource.name}": usage.booked}
        node[f"booked_now_{resource.name}"] = usage.booked_now
        node |= _named(resource, rows.table[0])
        node[f"{resource.name}_stable_state"] = estimates.stable if usage.measured else None
        for strategy, one in estimates.by_strategy.items():
            model.setdefault(strategy, {}).update(_model_row(resource, one))
    vm = _VmFigures(
        vms=finished.vms,
        count=of_vms[RESOURCES[0].name].number.tolist(),
        config={resource.name: finished.usage(resource).vm_config.tobytes() for resource in RESOURCES},
        figures={name: rows.table.tobytes() for name, rows in of_vms.items()},
    )
    return SliceFigures(finished.end_s, node, peak, model, vm)


class DumpRecorder:
    """Collects the content of dumps, slice by slice, for all strategies at once.

    What does not depend on the strategy is stored and encoded once.

    Parameters
    ----------
    strategies : sequence of str
    vms : sequence of str
        All VMs of the trace.
    """

    def __init__(self, strategies: Sequence[str], vms: Sequence[str]) -> None:
        self.epoch: list[float] = []
        self.strategies = tuple(strategies)
        self.vms = tuple(vms)
        self._node: dict[str, list[Any]] = {}
        self._vm_figures: list[_VmFigures] = []
        self._model: dict[str, dict[str, list[float]]] = {name: {} for name in strategies}
        self._peak: dict[str, list[float]] = {}
        self._pending: list[tuple[Slice, NodeEstimate]] = []
        self._pending_samples = 0

    def record(self, finished: Slice, estimate: NodeEstimate) -> None:
        """Record one slice and the estimate at its end."""
        self.epoch.append(finished.end_s)
        self._pending.append((finished, estimate))
        self._pending_samples += finished.cpu.node.size + finished.cpu.vm_usage.size
        if self._pending_samples > _SUMMARISED_AT_ONCE:
            self._summarise()

    def add(self, figures: SliceFigures) -> None:
        """Record the figures of one slice."""
        self._summarise()
        self.epoch.append(figures.end_s)
        self._add(figures)

    def _summarise(self) -> None:
        """Record the figures of the slices that wait for it."""
        for figures in _figures_of(self._pending):
            self._add(figures)
        self._pending, self._pending_samples = [], 0

    def _add(self, figures: SliceFigures) -> None:
        # Figures from a checkpoint of an earlier version lack it.
        lacking = {key: figures.node.get(key, math.nan) for key in _BOOKED_NOW}
        lacking[_WAITING] = figures.node.get(_WAITING)
        _append(self._node, figures.node | lacking)
        _append(self._peak, figures.peak)
        for strategy in self.strategies:
            _append(self._model[strategy], figures.model[strategy])
        self._vm_figures.append(figures.vm)

    def histories(self, lag: int) -> dict[tuple[str, str], History]:
        """The input of the scores, by strategy and resource name.

        Parameters
        ----------
        lag : int
            S: slices between two slices of the same position.
        """
        self._summarise()
        return {
            (strategy, resource.name): History(
                config=_array(self._node[f"{resource.name}_config"]),
                booked=_array(self._node[f"booked_{resource.name}"]),
                peak=_array(self._peak[resource.name]),
                free=_array(self._model[strategy][f"free_{resource.name}"]),
                published=_array(self._model[strategy][f"published_{resource.name}"]),
                lag=lag,
                waiting=waiting_minutes(self._node[_WAITING], self.epoch) if resource is CPU else None,
            )
            for strategy in self.strategies
            for resource in RESOURCES
        }

    def tiers(self, strategy: str, resource: Resource) -> list[FloatArray]:
        """Three (k,) float64 arrays: tier0, tier1 and tier2 of one strategy."""
        self._summarise()
        return [_array(self._model[strategy][f"{resource.name}_tier{i}"]) for i in range(3)]

    def encode(self, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """The dump of each strategy as JSON text in two pieces, one strategy after the other.

        Parameters
        ----------
        config : mapping
            The ``config`` object; the name of the strategy is added.
        """
        self._summarise()
        shared = self._encode_shared()
        for strategy in self.strategies:
            head = {"config": {**config, "strategy": strategy}, "model": self._model[strategy]}
            yield strategy, (_opened(head), shared)

    def encode_together(self, config: Mapping[str, Any]) -> bytes:
        """One dump: the first strategy, which is published, and the others under ``others``."""
        return _opened(self._head_of_all(config)) + self._encode_shared()

    def encode_compact(self, config: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """The same in two pieces, with a list per percentile of a VM instead of an object per slice."""
        return _opened(self._head_of_all(config)), self._encode_shared(by_percentile=True)

    def _head_of_all(self, config: Mapping[str, Any]) -> dict[str, Any]:
        self._summarise()
        first, *others = self.strategies
        head: dict[str, Any] = {"config": {**config, "strategy": first}, "model": self._model[first]}
        if others:
            head["others"] = {strategy: self._model[strategy] for strategy in others}
        return head

    def _encode_shared(self, *, by_percentile: bool = False) -> bytes:
        """The keys that all strategies share, and the end of the object that :func:`_opened` began."""
        figures = _VmColumns(self._vm_figures, by_percentile)
        # As objects those of a long trace take gigabytes, so each VM is encoded by itself.
        vms = {name: msgspec.Raw(msgspec.json.encode(figures.of(name))) for name in self.vms}
        return msgspec.json.encode({"epoch": self.epoch, "node": self._node_columns(), "vm": vms})[1:]

    def _node_columns(self) -> dict[str, list[Any]]:
        """The columns of ``node``; that of waiting VMs only where it was measured."""
        measured = any(value is not None for value in self._node.get(_WAITING, ()))
        return {key: values for key, values in self._node.items() if measured or key != _WAITING}


def _opened(head: Mapping[str, Any]) -> bytes:
    """An object with some keys as JSON text, to be continued with further ones."""
    return msgspec.json.encode(head)[:-1] + b","


#: The percentiles of one slice; encoded in half the time of a dict.
_Percentiles = msgspec.defstruct(
    "_Percentiles",
    [(f"p{key}", float) for key in _PERCENTILE_KEYS],
    rename={f"p{key}": key for key in _PERCENTILE_KEYS},
)


class _VmColumns:
    """The columns of each VM, from the figures of all VMs slice by slice.

    Parameters
    ----------
    slices : sequence of _VmFigures
    by_percentile : bool
        Whether percentiles are a list each, not an object per slice.
    """

    def __init__(self, slices: Sequence[_VmFigures], by_percentile: bool) -> None:
        self._slices = len(slices)
        self._by_percentile = by_percentile
        self._places: dict[str, tuple[list[int], list[int]]] = {}
        """By VM: the slices in which it is present, and its rows in the tables."""
        rows = 0
        for k, figures in enumerate(slices):
            for i, name in enumerate(figures.vms):
                where, at = self._places.setdefault(name, ([], []))
                where.append(k)
                at.append(rows + i)
            rows += len(figures.vms)
        self._count = [count for figures in slices for count in figures.count]
        names = [resource.name for resource in RESOURCES]
        self._config = {name: np.frombuffer(b"".join(one.config[name] for one in slices)) for name in names}
        self._table = {
            name: np.frombuffer(b"".join(one.figures[name] for one in slices)).reshape(-1, _WIDTH) for name in names
        }

    def of(self, name: str) -> dict[str, Any]:
        """The columns of one VM; None in a slice in which it is absent."""
        where, at = self._places.get(name, ([], []))

        def column(values: Sequence[Any]) -> list[Any]:
            if len(where) == self._slices:
                return list(values)
            result: list[Any] = [None] * self._slices
            for k, value in zip(where, values, strict=True):
                result[k] = value
            return result

        columns: dict[str, Any] = {"number_of_values": column([self._count[row] for row in at])}
        for resource in RESOURCES:
            prefix, table = resource.name, self._table[resource.name][at]
            columns[f"{prefix}_config"] = column(self._config[prefix][at].tolist())
            for figure, values in zip(_FIGURES[:3], table.T, strict=False):
                columns[f"{prefix}_{figure}"] = column(values.tolist())
            columns[f"{prefix}_percentile"] = (
                {key: column(values.tolist()) for key, values in zip(_PERCENTILE_KEYS, table.T[3:], strict=True)}
                if self._by_percentile
                else column([None if math.isnan(row[2]) else _Percentiles(*row[3:]) for row in table.tolist()])
            )
        return columns


def _table(summary: Summary) -> FloatArray:
    """(v, 29) float64: the figures of each row, in the order of :func:`_named`."""
    heads = np.stack([summary.average, summary.deviation, summary.maximum])
    # Six decimals are a millionth of a core and a byte of memory; all digits would double the size of dumps.
    return np.ascontiguousarray(np.concatenate([heads, summary.percentiles]).T.round(6))


def _named(resource: Resource, figures: FloatArray) -> dict[str, Any]:
    average, deviation, maximum, *percentiles = figures.tolist()
    missing = math.isnan(maximum)
    values = (average, deviation, maximum, None if missing else dict(zip(_PERCENTILE_KEYS, percentiles, strict=True)))
    return {f"{resource.name}_{figure}": value for figure, value in zip(_FIGURES, values, strict=True)}


def _model_row(resource: Resource, estimate: Estimate) -> dict[str, float]:
    return {
        f"free_{resource.name}": estimate.free,
        f"{resource.name}_tier0": estimate.tier0,
        f"{resource.name}_tier1": estimate.tier1,
        f"{resource.name}_tier2": estimate.tier2,
        f"published_{resource.name}": estimate.published,
        f"unguarded_{resource.name}": estimate.unguarded,
        f"violated_{resource.name}": estimate.violated,
    }


def _append(columns: dict[str, list[Any]], row: Mapping[str, Any]) -> None:
    for key, value in row.items():
        columns.setdefault(key, []).append(value)


def _array(values: Sequence[float | None]) -> FloatArray:
    return np.array(values, dtype=np.float64)


# --- reading -----------------------------------------------------------------------------------------


class _DumpText(msgspec.Struct):
    epoch: list[float]
    config: dict[str, Any]
    model: dict[str, list[float | None]]
    node: dict[str, list[Any]]
    others: dict[str, dict[str, list[float | None]]] = {}


@dataclass(frozen=True, slots=True)
class Dump:
    """One strategy on one node, as a dump holds it.

    Attributes
    ----------
    node_name, strategy : str
    config : mapping
        The whole ``config`` object.
    epoch : (k,) float64
        The ends of the slices, Unix seconds.
    histories : mapping of resource name to History
    """

    node_name: str
    strategy: str
    config: Mapping[str, Any]
    epoch: FloatArray
    histories: Mapping[str, History]


def read_dumps(path: str | Path) -> list[Dump]:
    """Read a dump file: a dump per strategy in it, the published one first.

    Raises
    ------
    DumpError
        When the file cannot be read or is not a dump.
    """
    try:
        text = msgspec.json.decode(Path(path).read_bytes(), type=_DumpText)
        lag = round(text.config["node_scope"] / text.config["slice_scope"])
        node_name, strategy = text.config["node_name"], text.config["strategy"]
        if lag < 1 or not isinstance(node_name, str) or not isinstance(strategy, str):
            raise ValueError("config: node_scope, slice_scope, node_name or strategy has a wrong value")
        histories = {
            name: _histories(text, model, lag) for name, model in {strategy: text.model, **text.others}.items()
        }
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror}") from None
    except KeyError as error:
        raise DumpError(f"{path}: {error.args[0]} is missing") from None
    except (msgspec.DecodeError, TypeError, ValueError, ArithmeticError) as error:
        raise DumpError(f"{path}: not a dump: {error}") from None
    epoch = _array(text.epoch)
    return [Dump(node_name, name, {**text.config, "strategy": name}, epoch, one) for name, one in histories.items()]


def _histories(text: _DumpText, model: Mapping[str, Sequence[float | None]], lag: int) -> dict[str, History]:
    columns = _Columns(text)
    return {
        resource.name: History(
            config=columns.of(text.node, f"{resource.name}_config"),
            booked=columns.of(text.node, f"booked_{resource.name}"),
            peak=columns.peaks(f"{resource.name}_percentile"),
            free=columns.of(model, f"free_{resource.name}"),
            published=columns.of(model, f"published_{resource.name}"),
            lag=lag,
            waiting=waiting_minutes(text.node[_WAITING], text.epoch)
            if resource is CPU and _WAITING in text.node
            else None,
        )
        for resource in RESOURCES
    }


class _Columns:
    """The columns of a dump as arrays, checked to be as long as ``epoch``."""

    def __init__(self, text: _DumpText) -> None:
        self._text = text
        if not text.epoch:
            raise ValueError("epoch is empty")

    def of(self, table: Mapping[str, Sequence[Any]], key: str) -> FloatArray:
        array = _array(table[key])
        if array.shape != (len(self._text.epoch),):
            raise ValueError(f"{key}: {array.size} numbers for {len(self._text.epoch)} slices")
        return array

    def peaks(self, key: str) -> FloatArray:
        figures = self._text.node[key]
        return self.of({key: [None if percentiles is None else percentiles["99"] for percentiles in figures]}, key)
