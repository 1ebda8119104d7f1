"""Fast path for the waits of VMs that vmprobe reports, as long as no VM comes or goes and no counter decreases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..machine_table import MachineTable, TableLayout
from ..samples import Metrics, VcpuTimes
from .domain_columns import DomainColumns
from .exposition import NS_PER_S
from .wait_readings import BUSY_CORES, COVERED, MOST_WAIT, PROBE, READ_S, Growth, Reading

_METRICS = ("sched_waittime", "sched_runtime", "cpu_cputime")


class SteadyWaits:
    """The readings of the VMs of a node, in arrays.

    Parameters
    ----------
    layout : TableLayout
        Of the metrics of the VMs.
    readings : mapping of domain name to Reading
    """

    def __init__(self, layout: TableLayout, readings: Mapping[str, Reading]) -> None:
        self._layout = layout
        self._places = [layout.position[name] for name in _METRICS]
        found = [readings[name] for name in layout.machines]
        self._at_ms = np.array([reading.times.at_ms for reading in found])
        #: Wait, run and CPU time of each VM, s.
        self._times = np.array([(reading.times.wait[""], reading.times.run[""], reading.cpu_s) for reading in found])

    @staticmethod
    def fits(domains: MachineTable, readings: Mapping[str, Reading]) -> bool:
        """Whether the probe reports the waits of all VMs."""
        names = domains.layout.machines
        return (
            len(names) > 0
            and domains.layout.position.keys() >= set(_METRICS)
            and all(name in readings and readings[name].times.source == PROBE for name in names)
        )

    def add(self, fields: DomainColumns, domains: Mapping[str, Metrics], at_ms: float) -> bool:
        """Add the waits that are known; False, and nothing has changed, when something else is to be done."""
        if not isinstance(domains, MachineTable) or domains.layout is not self._layout:
            return False
        usage, vcpus = fields.columns.get("cpu_usage"), fields.columns.get("cpu")
        if usage is None or vcpus is None or np.isnan(usage).any() or np.isnan(vcpus).any():
            return False
        times = domains.array[:, self._places] / NS_PER_S
        elapsed_s = (at_ms - self._at_ms) / 1000.0
        growth = times - self._times
        # A comparison with NaN is false.
        if not ((growth >= 0).all() and (elapsed_s > 0).all()):
            return False
        wait, run, cpu = growth.T
        # Counters that a page repeats continue from the page on which they last changed.
        repeated = (run == 0) & (cpu > BUSY_CORES * elapsed_s)
        if (~repeated & (wait > vcpus * MOST_WAIT * elapsed_s + READ_S)).any():
            return False
        of_vm = ~repeated & (cpu > 0) & (run >= COVERED * cpu)
        if of_vm.any():
            waits, shares = np.full((2, len(of_vm)), np.nan)
            for i in np.flatnonzero(of_vm).tolist():
                of_one = Growth(float(wait[i]), float(run[i]), float(cpu[i]), float(elapsed_s[i]), stands=False)
                waits[i] = of_one.wait_s / of_one.elapsed_s
                shares[i] = of_one.wait_share(float(vcpus[i]))
            fields.columns |= {"cpu_wait": waits, "cpu_wait_share": shares}
        self._times = np.where(repeated[:, None], self._times, times)
        self._at_ms = np.where(repeated, self._at_ms, at_ms)
        return True

    def readings(self) -> dict[str, Reading]:
        """The reading of each VM."""
        rows = zip(self._layout.machines, self._at_ms.tolist(), self._times.tolist(), strict=True)
        return {
            name: Reading(VcpuTimes(PROBE, at_ms, {"": wait}, {"": run}), cpu) for name, at_ms, (wait, run, cpu) in rows
        }
