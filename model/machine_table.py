"""Figures of several machines in one array: the same mapping as a dictionary for each, at a tenth of its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .numerics import FloatArray


class TableLayout:
    """The machines and the columns of a table; tables that share the object have the same.

    Parameters
    ----------
    machines, columns : sequence of str
        Without repetitions.

    Attributes
    ----------
    machines, columns : tuple of str
    position : dict of column to int
    is_sorted : bool
        Whether the columns are in the order of their names.
    by_name : (n,) int64
        The rows in the order of the names.
    """

    __slots__ = ("__weakref__", "by_name", "columns", "is_sorted", "machines", "position")

    def __init__(self, machines: Sequence[str], columns: Sequence[str]) -> None:
        self.machines = tuple(machines)
        self.columns = tuple(columns)
        self.position = {name: i for i, name in enumerate(self.columns)}
        self.is_sorted = list(self.columns) == sorted(self.columns)
        order = sorted(range(len(self.machines)), key=self.machines.__getitem__)
        self.by_name: NDArray[np.int64] = np.array(order, dtype=np.int64)


class MachineTable(Mapping[str, dict[str, float]]):
    """A table that reads as a mapping of machine to a dictionary of its figures.

    Parameters
    ----------
    layout : TableLayout
    array : (machines, columns) float64
        NaN where a machine lacks a figure. It must not be changed any more.
    order : sequence of str, optional
        The machines in the order of the mapping; by default that of the rows.
    """

    __slots__ = ("_order", "_rows", "array", "layout")

    def __init__(self, layout: TableLayout, array: FloatArray, order: Sequence[str] | None = None) -> None:
        self.layout = layout
        self.array = array
        self._order = layout.machines if order is None else order
        self._rows: dict[str, int] | None = None

    def __getitem__(self, machine: str) -> dict[str, float]:
        """The figures of a machine, without those that are NaN."""
        if self._rows is None:
            self._rows = {name: i for i, name in enumerate(self.layout.machines)}
        return self._row(self.array[self._rows[machine]].tolist())

    def __iter__(self) -> Iterator[str]:
        """The machines, in the order of the mapping."""
        return iter(self._order)

    def __len__(self) -> int:
        """The number of machines."""
        return len(self.layout.machines)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The same as dictionaries."""
        rows = dict(zip(self.layout.machines, map(self._row, self.array.tolist()), strict=True))
        return rows if self._order is self.layout.machines else {name: rows[name] for name in self._order}

    def _row(self, values: list[float]) -> dict[str, float]:
        pairs = zip(self.layout.columns, values, strict=True)
        return {name: value for name, value in pairs if value == value}  # noqa: PLR0124  # not NaN
