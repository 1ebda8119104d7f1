"""Reads the Azure Trace for Packing 2020 (SQLite) as arrivals."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from misc.tracesources.grid import ConversionError
from misc.tracesources.tables import ArrivalRows
from misc.tracesources.textfiles import LARGEST
from model.simulation.arrivals import ArrivalList

_DAY_S = 86400.0
_COLUMNS = {"vm": ("vmId", "vmTypeId", "starttime", "endtime"), "vmType": ("vmTypeId", "machineId", "core", "memory")}


def read_azure_packing(
    path: Path, machine_cores: float, machine_memory_mb: float, machine: int | None = None
) -> ArrivalList:
    """Read the VM requests; those that are older than the data arrive at its start.

    Parameters
    ----------
    path : Path
        ``packing_trace_zone_a_v1.sqlite``.
    machine_cores, machine_memory_mb : float
        Size of a machine, cores and MB: the data has the size of a VM type as shares of a machine.
    machine : int, optional
        ``machineId`` whose shares count; by default the machine that has the most VM types. VMs whose type it does
        not have are left out.

    Raises
    ------
    ConversionError
    """
    rows = ArrivalRows(path)
    try:
        with path.open("rb") as file:
            if file.read(15) != b"SQLite format 3":
                raise ConversionError(f"{path}: not an SQLite file")
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            _check_columns(path, database)
            sizes = _sizes(path, database, (machine_cores, machine_memory_mb), machine)
            for vm, kind, start, end in database.execute("SELECT vmId, vmTypeId, starttime, endtime FROM vm"):
                place = f"{path}: vm {vm}"
                size = sizes.get(kind)
                if size is None:
                    rows.leave_out("their type does not exist on the machine")
                    continue
                create_s = _number(start, f"{place}.starttime", least=-LARGEST) * _DAY_S
                delete_s = math.inf if end is None else _number(end, f"{place}.endtime", least=-LARGEST) * _DAY_S
                rows.add(place, f"vm{vm}", (create_s, delete_s), size)
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise ConversionError(f"{path}: {error}") from None
    return rows.arrivals()


def _check_columns(path: Path, database: sqlite3.Connection) -> None:
    for table, columns in _COLUMNS.items():
        found = {str(row[0]).lower() for row in database.execute("SELECT name FROM pragma_table_info(?)", (table,))}
        if not found:
            raise ConversionError(f"{path}: no table {table}")
        for column in columns:
            if column.lower() not in found:
                raise ConversionError(f"{path}: table {table} has no column {column}")


def _sizes(
    path: Path, database: sqlite3.Connection, machine_size: tuple[float, float], machine: int | None
) -> dict[object, tuple[float, float]]:
    """VCPUs and MB by VM type."""
    if machine is None:
        query = (
            "SELECT machineId FROM vmType GROUP BY machineId ORDER BY COUNT(DISTINCT vmTypeId) DESC, machineId LIMIT 1"
        )
        row = database.execute(query).fetchone()
        if row is None:
            raise ConversionError(f"{path}: table vmType is empty")
        (machine,) = row
    shares = {kind: (core, memory) for kind, core, memory in _types(path, database, machine)}
    if not shares:
        raise ConversionError(f"{path}: no VM type of machine {machine}")
    cores, memory_mb = machine_size
    # Shares are rounded: 0.041667 of 48 cores are 2.
    return {kind: (round(core * cores, 3), round(memory * memory_mb, 3)) for kind, (core, memory) in shares.items()}


def _types(path: Path, database: sqlite3.Connection, machine: int | None) -> Iterator[tuple[object, float, float]]:
    query = "SELECT vmTypeId, core, memory FROM vmType WHERE machineId = ?"
    for kind, core, memory in database.execute(query, (machine,)):
        place = f"{path}: vmType {kind} of machine {machine}"
        yield kind, _number(core, f"{place}.core", most=1.0), _number(memory, f"{place}.memory", most=1.0)


def _number(value: object, place: str, least: float = 0.0, most: float = LARGEST) -> float:
    """A number of a database whose columns may be text."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConversionError(f"{place}: {str(value)[:40]!r} is not a number") from None
    if not least <= number <= most:
        raise ConversionError(f"{place}: {number:g} is not from {least:g} to {most:g}")
    return number
