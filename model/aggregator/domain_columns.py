"""Fields of the domains of one scrape, a column for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..machine_table import MachineTable, TableLayout
from ..numerics import FloatArray


class DomainColumns:
    """Fields by column.

    Parameters
    ----------
    machines : sequence of str
        Names of the domains: the rows.

    Attributes
    ----------
    columns : dict of field name to (n,) float64
        NaN where a domain lacks the field.
    """

    def __init__(self, machines: tuple[str, ...]) -> None:
        self.machines = machines
        self.columns: dict[str, FloatArray] = {}

    def known(self, name: str) -> dict[str, float | None]:
        """A field by domain; None where a domain lacks it."""
        if name not in self.columns:
            return dict.fromkeys(self.machines)
        column = self.columns[name]
        values = column.tolist()
        if not np.isnan(column).any():
            return dict(zip(self.machines, values, strict=True))
        return {
            machine: value if value == value else None  # noqa: PLR0124  # not NaN
            for machine, value in zip(self.machines, values, strict=True)
        }

    def rows(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Some fields of each domain, as dictionaries."""
        rows: dict[str, dict[str, float]] = {machine: {} for machine in self.machines}
        for name in names:
            for machine, value in self.known(name).items():
                if value is not None:
                    rows[machine][name] = value
        return rows

    def add(self, name: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        """Add a field from dictionaries, if any domain has it."""
        if any(name in row for row in rows.values()):
            self.columns[name] = np.array([rows[machine].get(name, math.nan) for machine in self.machines])

    def values(self, name: str) -> list[float] | None:
        """The values of a field; None when a domain lacks it."""
        column = self.columns.get(name)
        if column is None:
            return None
        return None if np.isnan(column).any() else column.tolist()

    def remove(self, names: Iterable[str]) -> None:
        """Remove fields."""
        for name in names:
            self.columns.pop(name, None)

    def table(self, like: TableLayout | None) -> MachineTable:
        """The fields that a domain has, sorted.

        Parameters
        ----------
        like : TableLayout or None
            Layout of the table before; it is used again when it is the same.
        """
        names = sorted(self.columns)
        values = np.array([self.columns[name] for name in names])
        lacking = np.isnan(values).all(axis=1)
        if lacking.any():
            names = [name for name, lacks in zip(names, lacking.tolist(), strict=True) if not lacks]
            values = values[~lacking]
        if like is None or like.machines is not self.machines or like.columns != tuple(names):
            like = TableLayout(self.machines, names)
        return MachineTable(like, values.T)
