"""Reads Huawei's public VM placement data set (Huawei-East-1) as arrivals."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from misc.tracesources.grid import ConversionError
from misc.tracesources.tables import ArrivalRows, TableRow, table_rows
from model.simulation.arrivals import ArrivalList

_COLUMNS = ("vmid", "cpu", "memory", "time", "type")
_CREATED, _DELETED = "0", "1"


def read_huawei_placement(path: Path) -> ArrivalList:
    """Read the events; a VM without a deletion stays. An ID that is created again after its deletion is another VM.

    Raises
    ------
    ConversionError
    """
    rows = ArrivalRows(path)
    running: dict[str, TableRow] = {}
    count: Counter[str] = Counter()

    def add(created: TableRow, delete_s: float) -> None:
        vm = created.fields["vmid"]
        count[vm] += 1
        name = f"vm{vm}" if count[vm] == 1 else f"vm{vm}#{count[vm]}"
        size = created.number("cpu"), created.number("memory") * 1024.0
        rows.add(created.place, name, (created.number("time"), delete_s), size)

    for row in table_rows(path, _COLUMNS):
        vm, kind = row.fields["vmid"], row.fields["type"]
        if kind == _CREATED:
            if vm in running:
                raise ConversionError(f"{row.place}: VM {vm} is created again before its deletion")
            running[vm] = row
        elif kind != _DELETED:
            raise ConversionError(f"{row.where('type')}: {kind[:40]!r} is neither 0 (creation) nor 1 (deletion)")
        elif vm in running:
            add(running.pop(vm), row.number("time"))
        else:
            rows.leave_out("deleted without a creation")
    for created in running.values():
        add(created, math.inf)
    return rows.arrivals()
