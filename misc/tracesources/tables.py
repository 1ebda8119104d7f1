"""Tables with a header line (CSV), and the VMs that are read of them; errors name the line."""

from __future__ import annotations

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.tracesources.grid import ConversionError
from misc.tracesources.textfiles import lines_of, parsed_number
from model.simulation.arrivals import ArrivalList
from model.simulation.workload import Shares


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table: its fields by column, and its place for messages."""

    place: str
    fields: dict[str, str]

    def where(self, column: str) -> str:
        """The place of a field."""
        return f"{self.place}, column {column}"

    def number(self, column: str) -> float:
        """A number from 0 on.

        Raises
        ------
        ConversionError
        """
        return parsed_number(self.fields[column], self.where(column))


def table_rows(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    """Iterate over the rows of a CSV file, plain or gzipped, whose first line has the names of the columns.

    Raises
    ------
    ConversionError
        When the file cannot be read, is empty, lacks a column, or has a row of another length.
    """
    number = 1

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in lines_of(path):  # noqa: B007 (the number of the row that the reader returns)
            yield line.decode("utf-8", "backslashreplace")

    rows = csv.reader(lines(), strict=True)
    try:
        header = [title.strip() for title in next(rows, ())]
        if not header:
            raise ConversionError(f"{path}: the file is empty")
        for column in required:
            if header.count(column) != 1:
                what = "no column" if column not in header else "more than one column"
                raise ConversionError(f"{path}, line {number}: {what} {column}")
        for fields in rows:
            place = f"{path}, line {number}"
            if len(fields) != len(header):
                raise ConversionError(f"{place}: {len(fields)} columns instead of {len(header)}")
            yield TableRow(place, dict(zip(header, map(str.strip, fields), strict=True)))
    except csv.Error as error:
        raise ConversionError(f"{path}, line {number}: {error}") from None


class ArrivalRows:
    """Collects VMs in any order.

    Parameters
    ----------
    path : Path
        The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, None] = {}
        self._numbers = [array("d") for _ in range(4)]
        self._usage: list[Shares | None] = []
        self._left_out: Counter[str] = Counter()

    def leave_out(self, reason: str) -> None:
        """Count a VM that is not used."""
        self._left_out[reason] += 1

    def add(
        self,
        place: str,
        name: str,
        life_s: tuple[float, float],
        size: tuple[float, float],
        usage: Shares | None = None,
    ) -> None:
        """Add a VM; one without vCPUs or without memory is left out.

        Parameters
        ----------
        place : str
            For messages.
        name : str
        life_s : (float, float)
            Creation and deletion; infinite for a VM that stays.
        size : (float, float)
            vCPUs and MB.
        usage : float32 array, optional
            Shares of the vCPUs.

        Raises
        ------
        ConversionError
        """
        create_s, delete_s = life_s
        if not name:
            raise ConversionError(f"{place}: the VM has no name")
        if name in self._names:
            raise ConversionError(f"{place}: VM {name} occurs twice")
        if delete_s < create_s:
            raise ConversionError(f"{place}: VM {name} is deleted before it is created")
        if not (size[0] > 0 and size[1] > 0):
            self.leave_out("no vCPUs or no memory")
            return
        self._names[name] = None
        for column, number in zip(self._numbers, (*life_s, *size), strict=True):
            column.append(number)
        self._usage.append(usage)

    def arrivals(
        self, start_s: float = 0.0, *, origin_s: float = math.nan, usage_step_s: float = math.nan
    ) -> ArrivalList:
        """The VMs in the order of their arrival; those that ended before the start are left out.

        Parameters
        ----------
        start_s : float
            Becomes time 0.
        origin_s : float
            The start in Unix seconds, if known.
        usage_step_s : float
            Seconds of an element of the usage.

        Raises
        ------
        ConversionError
            When there is no VM.
        """
        create, delete, vcpu, memory = (np.array(column) for column in self._numbers)
        ended = delete < start_s
        for _ in range(int(ended.sum())):
            self.leave_out("ended before the start")
        order = np.argsort(create, kind="stable")
        order = order[~ended[order]]
        if not order.size:
            raise ConversionError(f"{self._path}: no VM" + "".join(f"; {note}" for note in self._notes()))
        names = list(self._names)
        usage = [self._usage[i] for i in order.tolist()]
        return ArrivalList(
            names=[names[i] for i in order.tolist()],
            create_s=np.maximum(create[order] - start_s, 0.0),
            delete_s=delete[order] - start_s,
            vcpu=vcpu[order],
            memory_mb=memory[order],
            usage=None if all(one is None for one in usage) else usage,
            usage_step_s=usage_step_s,
            origin_s=origin_s,
            notes=self._notes(),
        )

    def _notes(self) -> list[str]:
        return [f"{count} VMs left out: {reason}" for reason, count in self._left_out.items()]

    @property
    def first_s(self) -> float:
        """The earliest creation; infinite when there is no VM."""
        return min(self._numbers[0], default=math.inf)
