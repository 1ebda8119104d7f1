"""Which waits of a node and its domains are possible; NaN where figures contradict each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..numerics import FloatArray

#: As in the aggregator: a wait or a share of time may be larger than possible by this much, counters that stand still
#: while so many cores were used are old, and a queue is no longer.
_MOST_WAIT = 1.1
_MOST_SHARE = 1.05
_MOST_RUN = 2.0
_BUSY_CORES = 0.05
_LONGEST_QUEUE = 1000.0


def checked_node_waits(rates: Mapping[str, FloatArray], cores: FloatArray, usage: FloatArray) -> dict[str, FloatArray]:
    """Pressure, waits and memory trouble of a node.

    Parameters
    ----------
    rates : mapping of str to (n,) float64
        ``psi_cpu``, ``psi_memory``, ``swap_in`` and ``queue``, per second.
    cores, usage : (n,) float64
        Cores of the node and used ones.
    """
    with np.errstate(invalid="ignore"):
        is_old = (rates["queue"] == 0) & (usage > _BUSY_CORES)
        impossible = is_old | (rates["queue"] > _LONGEST_QUEUE * cores) | ~(rates["queue"] >= 0)
    return {
        "psi_cpu": _share(rates["psi_cpu"]),
        "psi_memory": _share(rates["psi_memory"]),
        "swap_in": _at_least_0(rates["swap_in"]),
        "cpu_wait": np.where(impossible, np.nan, rates["queue"]),
    }


def _at_least_0(rate: FloatArray) -> FloatArray:
    return np.where(rate >= 0, rate, np.nan)


def _share(rate: FloatArray) -> FloatArray:
    return np.where((rate > _MOST_SHARE) | ~(rate >= 0), np.nan, np.minimum(rate, 1.0))


def checked_domain_waits(
    wait: FloatArray, run: FloatArray, number: FloatArray, vcpus: FloatArray, usage: FloatArray
) -> dict[str, FloatArray]:
    """``cpu_wait`` and ``cpu_wait_share`` of domains.

    Parameters
    ----------
    wait, run : (..., n) float64
        Rates of waiting and running of all vCPUs, cores.
    number : (..., n) float64
        How many vCPUs have these counters.
    vcpus, usage : (..., n) float64
        vCPUs of the domain and cores that it used.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        contradicts = (
            (number != vcpus)
            | ~(wait >= 0)
            | ~(run >= 0)
            | (wait > _MOST_WAIT * vcpus)
            | (run > _MOST_RUN * usage + _BUSY_CORES * vcpus)
            | (((wait == 0) | (run == 0)) & (usage > _BUSY_CORES))
        )
        known = np.where(contradicts | np.isnan(usage), np.nan, wait)
        share = np.where(known == 0, 0.0, known / (known + run))
    return {"cpu_wait": known, "cpu_wait_share": share}
