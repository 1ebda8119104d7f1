"""Reads the pods of Alibaba's GPU cluster (cluster-trace-gpu-v2023, openb_pod_list_*.csv) as arrivals of VMs."""

from __future__ import annotations

from pathlib import Path

from misc.tracesources.tables import ArrivalRows, table_rows
from model.simulation.arrivals import ArrivalList

_COLUMNS = ("name", "cpu_milli", "memory_mib", "creation_time", "deletion_time", "scheduled_time")


def read_alibaba_pods(path: Path) -> ArrivalList:
    """Read the pods that ran; each is a VM from its creation to its deletion.

    Pods that were never scheduled, and those that request no CPU or no memory, are left out. GPUs are ignored.

    Raises
    ------
    ConversionError
    """
    rows = ArrivalRows(path)
    for row in table_rows(path, _COLUMNS):
        if not row.fields["scheduled_time"]:
            rows.leave_out("never scheduled")
            continue
        life = row.number("creation_time"), row.number("deletion_time")
        rows.add(row.place, row.fields["name"], life, (row.number("cpu_milli") / 1000.0, row.number("memory_mib")))
    return rows.arrivals()
