"""How long the VMs and the tasks of a node waited in a slice, from stored samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ..numerics import FloatArray
from ..samples import Samples, SampleTable
from ..slices import Waits, padded
from .coverage import SliceCoverage, valid_levels

#: Of domains: cores, and share of the time in which a VM could run. Of the node: the former, for all of its tasks.
WAIT_FIELDS = ("cpu_wait", "cpu_wait_share")
#: Of the node, see :class:`~model.slices.Waits`.
NODE_WAIT_FIELDS = ("psi_cpu", "psi_memory", "swap_in", "oom_kills")

_NO_SAMPLES: FloatArray = np.empty(0)


class Waiting(NamedTuple):
    """How long was waited in a slice.

    Attributes
    ----------
    waits : Waits or None
        None when nothing of it was measured.
    on_node : (n,) float64 or None
        How long the VMs together waited at the samples of the node, cores; where some of them have no figures, at least
        how long all of its tasks did. NaN where it is unknown.
    """

    waits: Waits | None
    on_node: FloatArray | None


def waiting_of(
    coverage: SliceCoverage, node: Samples, vms: Iterable[str], vm_samples: Mapping[str, Samples] | None
) -> Waiting:
    """How long was waited in a slice.

    Parameters
    ----------
    coverage : SliceCoverage
        Of the slice.
    node : Samples
    vms : iterable of str
        The VMs of the slice, in its order.
    vm_samples : mapping of name to Samples, or None
        None when samples of single VMs are not read.
    """
    if isinstance(vm_samples, SampleTable) and not _is_known(vm_samples):
        vm_samples = None
    of_vms = [None if vm_samples is None else vm_samples.get(name) for name in vms]
    waits = waits_of(node, of_vms)
    sums = [
        valid_levels(coverage.at_node_times(samples, "cpu_wait"))
        for samples in of_vms
        if samples is not None and _is_known(samples)
    ]
    of_tasks = node.fields.get("cpu_wait")
    if not sums or of_tasks is None:
        return Waiting(waits, np.nansum(sums, axis=0) if sums else of_tasks)
    together: FloatArray = np.nansum(sums, axis=0)
    return Waiting(waits, together if len(sums) == len(of_vms) else np.fmax(together, valid_levels(of_tasks)))


def waits_of(node: Samples, vms: Iterable[Samples | None]) -> Waits | None:
    """How long the VMs and the tasks of a node waited; None when nothing of it was measured.

    Parameters
    ----------
    node : Samples
    vms : iterable of Samples or None
        None for a VM without samples.
    """
    of_node = {
        field: valid_levels(node.fields[field])
        for field in NODE_WAIT_FIELDS
        if field in node.fields and not np.isnan(node.fields[field]).all()
    }
    shares, amounts = [], []
    for samples in vms:
        if samples is None or not _is_known(samples):
            shares.append(_NO_SAMPLES)
            amounts.append(_NO_SAMPLES)
            continue
        share = samples.fields["cpu_wait_share"]
        shares.append(np.where((share >= 0) & (share <= 1), share, np.nan))
        amounts.append(valid_levels(samples.fields["cpu_wait"]))
    if not of_node and not any(share.size for share in shares):
        return None
    return Waits(padded(shares), padded(amounts), of_node)


def _is_known(samples: Samples | SampleTable) -> bool:
    shares = samples.fields.get("cpu_wait_share")
    return shares is not None and not np.isnan(shares).all()
