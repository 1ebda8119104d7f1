"""Readings of the counters of one VM, and what they grew by."""

from __future__ import annotations

from typing import NamedTuple

from ..samples import VcpuTimes

#: Source of the times of a thread that vmprobe reads.
PROBE = "vmprobe"

#: The counters of one thread are those of a VM when that thread used this share of the CPU time of the VM.
COVERED = 0.8

#: Counters that stand still while this number of cores was used are old.
BUSY_CORES = 0.05

#: A vCPU waits at most all the time, and this share of it more because pages are not read at the very time, and a time.
MOST_WAIT = 1.1
READ_S = 0.05

#: Times of vCPUs may have steps of a hundredth of a second.
_STEP_S = 0.01


class Reading(NamedTuple):
    """Counters of a VM.

    Attributes
    ----------
    times : VcpuTimes
    cpu_s : float
        CPU time of the VM.
    """

    times: VcpuTimes
    cpu_s: float


class Growth(NamedTuple):
    """What the counters of a VM grew by between two readings, s.

    Attributes
    ----------
    wait_s, run_s : float
        Of its vCPUs; without a counter of the run time, that is the CPU time of the VM.
    cpu_s : float
        CPU time of the VM.
    elapsed_s : float
    stands : bool
        Whether the counters of the vCPUs stand still.
    """

    wait_s: float
    run_s: float
    cpu_s: float
    elapsed_s: float
    stands: bool

    def is_old(self, *, confirmed: bool) -> bool:
        """Whether the counters of the vCPUs are old: they stand still, and the VM does not, or that is unknown."""
        return self.stands and (not confirmed or self.cpu_s > BUSY_CORES * self.elapsed_s)

    def longest_s(self, vcpus: float) -> float:
        """For how long so many vCPUs can have waited, or run."""
        return vcpus * MOST_WAIT * self.elapsed_s + READ_S

    def wait_share(self, vcpus: float) -> float:
        """Wait of wait and run, 0 to 1; of an idle VM, whose run time is less than its steps, a lower limit."""
        step_s = vcpus * _STEP_S
        run_s = self.run_s
        if run_s < step_s:
            run_s = step_s if self.wait_s < step_s else max(run_s, min(self.cpu_s, step_s))
        return self.wait_s / (self.wait_s + run_s) if self.wait_s > 0 else 0.0
