"""A bound on usage from the moments of single VMs: the sum of their means, plus z standard deviations of the sum."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from .feedback import ResourceFeedback
from .numerics import zero_if_missing
from .slices import Resource
from .vmmoments import VmFigures

#: After a quarter of a scope a VM's own moments have half of the weight, those of VMs of its size the other half.
_PRIOR_SHARE = 0.25
#: Variance of a VM of which nothing is known, in variances of what VMs of its size use: it may be one of the busy ones.
_PRIOR_VARIANCE = 1.5
#: So many VMs may use all of their size at once. Who lacks CPU waits, who lacks memory is killed; and the memory of a
#: few large VMs is far from a normal distribution.
_VMS_AT_ONCE = {"cpu": 0, "mem": 2}

#: The largest target risk: z is 0 there.
MOST_RISK = 0.5


def moment_bound(resource: Resource, risk: float, scope: int, vms: VmFigures, feedback: ResourceFeedback) -> float:
    r"""sum m_i + z sqrt(sum s_i^2 + (c sum m_i)^2) over the VMs that are alive.

    m_i and s_i^2 are mean and variance of what VM i uses. A VM that is young counts in part as one of its size: with
    age a (slices) and prior p, the weight of its own moments is a / (a + p); the rest is the mean, and 1.5 times the
    variance, of the VMs of its size on the fleet. The central limit theorem takes VMs as independent. Those of a fleet
    are not: c is the relative deviation of the whole fleet from the sum of the means, which independent VMs would not
    show. For memory the sum is at least that of the means with the two VMs full that have the most room. z is the
    normal quantile of the target risk; where the nodes of the fleet are full less often than the risk permits, it is
    lowered, by 1.5 at most.

    Parameters
    ----------
    resource : Resource
    risk : float
        Above 0, at most 0.5.
    scope : int
        Slices of a scope, at least 24.
    vms : VmFigures
    feedback : ResourceFeedback

    References
    ----------
    S. Jokar Jandaghi et al., "AUDIBLE: a convolution-based resource allocator for oversubscribing burstable virtual
    machines", ASPLOS 2024, compares a bound by the central limit theorem with others. Prior, correlation and the
    feedback are of this project.
    """
    alive: Any = slice(None) if vms.alive.all() else vms.alive
    size = zero_if_missing(vms.config[alive])
    weight = vms.ages[alive] / (vms.ages[alive] + _PRIOR_SHARE * scope)
    by_class = np.array((feedback.mean, feedback.square))[:, vms.classes[alive]]
    class_mean, class_square = by_class[0], by_class[1]
    class_variance = _PRIOR_VARIANCE * np.maximum(class_square - class_mean**2, 0.0)
    means = weight * vms.means[alive] + (1.0 - weight) * class_mean * size
    mean = float(np.add.reduce(means))
    variances = weight * vms.variances[alive] + (1.0 - weight) * class_variance * size**2
    z = max(_normal_quantile(1.0 - risk) + min(feedback.level, 0.0), 0.0)
    bound = mean + z * math.sqrt(float(np.add.reduce(variances)) + (feedback.common * mean) ** 2)
    if at_once := _VMS_AT_ONCE[resource.name]:
        room = np.sort(np.maximum(size - means, 0.0))
        bound = max(bound, mean + float(np.add.reduce(room[-at_once:])))
    return bound


@cache
def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
