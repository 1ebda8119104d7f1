"""Decides whether the CPU counters of a node confirm each other.

In any period the cores of a node are busy or idle, so that busy + idle grow by cores x elapsed time. Counters that
stand still, that a cache repeats, or of which a mode is missing grow by less: taken alone, they look like an idle node.
"""

from __future__ import annotations

from typing import NamedTuple

from ..samples import Metrics
from .exposition import NS_PER_MS, NS_PER_S
from .sizes import MOST_CORES
from .unconfirmed import Unconfirmed

#: Difference between busy + idle and cores x elapsed time that is accepted: a share of the latter, and a time per core,
#: because counters have steps of 10 ms and are not read at the very time of the page.
TOLERANCE = 0.05
_READ_S = 0.05

_BUSY = ("cpu_user", "cpu_kernel")
_IDLE = ("cpu_idle", "cpu_iowait")


class CpuGrowth(NamedTuple):
    """The growth of the CPU time of a node between two scrapes.

    Attributes
    ----------
    busy_ns : float or None
        None when it is not confirmed.
    problem : Unconfirmed or None
    still : bool
        Whether all counters had the same values as before.
    """

    busy_ns: float | None
    problem: Unconfirmed | None = None
    still: bool = False


def confirm_cpu(now: Metrics, before: Metrics, elapsed_ms: float) -> CpuGrowth:
    """The busy time of a node, if busy + idle grew by about cores x elapsed time.

    Parameters
    ----------
    now, before : mapping of metric name to value
        Metrics of the node, ns.
    elapsed_ms : float
        Positive.
    """
    required = ("cpu_total", *_BUSY, _IDLE[0])
    missing = [name for name in required if name not in now]
    if missing:
        problem = Unconfirmed("cpu_counters", f"usage is unknown: {' and '.join(missing)} missing or invalid")
        return CpuGrowth(None, problem)
    if any(name not in before for name in required):
        return CpuGrowth(None)
    growth = {name: now[name] - before[name] for name in (*_BUSY, *_IDLE) if name in now and name in before}
    if not any(growth.values()):
        message = f"usage is unknown: the counters did not change in {elapsed_ms / 1000:.1f} s"
        return CpuGrowth(None, Unconfirmed("cpu_still", message), still=True)
    if any(growth[name] < 0 for name in _BUSY):
        return CpuGrowth(None, Unconfirmed("cpu_reset"))
    busy, total = sum(growth[name] for name in _BUSY), sum(growth.values())
    cores = now["cpu_total"]
    expected = cores * elapsed_ms * NS_PER_MS
    margin = TOLERANCE * expected + cores * _READ_S * NS_PER_S
    # A size that is impossible would make the margin infinite.
    possible = 0 < cores <= MOST_CORES and busy <= expected + margin
    if not (possible and abs(total - expected) <= margin):
        share = f"{100 * total / expected:.0f} %" if expected > 0 else "none"
        message = f"usage is unknown: busy and idle time grew by {share} of cores x elapsed time"
        return CpuGrowth(None, Unconfirmed("cpu_time", message))
    return CpuGrowth(busy)
