"""Values of a page that are missing in its sample because other values do not confirm them."""

from __future__ import annotations

from typing import NamedTuple

#: Reasons for a missing value: labels of a metric, and the subjects of log lines.
REASONS = {
    "cpu_counters": "CPU counters",
    "cpu_still": "CPU counters that stand still",
    "cpu_time": "CPU time",
    "cpu_vms": "CPU time of the VMs",
    "cpu_reset": "reset of counters",
    "memory": "memory",
    "size": "size",
    "clock": "clock",
    "vms_cpu": "CPU usage of VMs",
    "vms_still": "CPU counters of VMs that stand still",
    "vm_size": "size of VMs",
    "vm_memory": "memory of VMs",
    "vms": "VMs",
    "vm_wait": "wait times of VMs",
    "node_wait": "wait times",
    "pressure": "pressure",
}


class Unconfirmed(NamedTuple):
    """A value that is missing because other values do not confirm it.

    Attributes
    ----------
    reason : str
        Key of :data:`REASONS`.
    message : str
        Empty for an ordinary event, which is counted and not logged.
    """

    reason: str
    message: str = ""
