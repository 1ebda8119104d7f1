"""The bound from the moments of single VMs, and the strategy that uses it."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.clt import moment_bound
from model.feedback import ResourceFeedback
from model.oversubscriptioncomputation import CentralLimit, Observation, StrategySettings
from model.slices import CPU, MEMORY, PresentUsage, Resource, Window
from model.vmmoments import SIZE_CLASSES, VmFigures, VmMoments
from tests.support.vm_slices import figures, odd_slices, vm_usage

#: Target risk at which z is 1.
ONE_SIGMA = 1.0 - NormalDist().cdf(1.0)
NOTHING_KNOWN = ResourceFeedback()


def by_class(value: float) -> tuple[float, ...]:
    return (value,) * SIZE_CLASSES


def bound(vms: VmFigures, risk: float = ONE_SIGMA, feedback: ResourceFeedback = NOTHING_KNOWN) -> float:
    return moment_bound(CPU, risk, 24, vms, feedback)


# --- the bound ----------------------------------------------------------------------------------------


def test_bound_of_one_vm() -> None:
    # Prior 24 / 4 = 6, weight 18 / (18 + 6) = 0.75. Class: mean 0.5, variance 0.35 - 0.25 = 0.1 of the size.
    # Mean 0.75 * 1 + 0.25 * 0.5 * 4 = 1.25; variance 0.75 * 0.25 + 0.25 * 1.5 * 0.1 * 16 = 0.7875;
    # common (0.2 * 1.25)^2 = 0.0625; z = 1.
    vms = figures([4.0], ages=[18.0], means=[1.0], variances=[0.25])
    feedback = ResourceFeedback(by_class(0.5), by_class(0.35), common=0.2)
    assert bound(vms, feedback=feedback) == pytest.approx(1.25 + math.sqrt(0.7875 + 0.0625))


@pytest.mark.parametrize(("level", "z"), [(0.0, 1.0), (-0.5, 0.5), (-1.0, 0.0), (-1.5, 0.0), (3.0, 1.0)])
def test_level_of_the_fleet_lowers_z_but_not_below_zero(level: float, z: float) -> None:
    vms = figures([4.0], ages=[18.0], means=[1.0], variances=[0.25])
    feedback = ResourceFeedback(by_class(0.5), by_class(0.35), level=level)
    assert bound(vms, feedback=feedback) == pytest.approx(1.25 + z * math.sqrt(0.7875))


def test_variances_add_up_and_common_deviations_add_linearly() -> None:
    # Class figures equal to the VM's own remove the prior: mean 2 of 4, no variance in the class.
    own = ResourceFeedback(by_class(0.5), by_class(0.25))
    vms = figures([4.0] * 100, ages=[18.0] * 100, means=[2.0] * 100, variances=[1.0] * 100)
    assert bound(vms, feedback=own) == pytest.approx(200 + math.sqrt(100 * 0.75))
    still = figures([4.0] * 100, means=[2.0] * 100)
    common = ResourceFeedback(by_class(0.5), by_class(0.25), common=0.1)
    assert bound(still, feedback=common) == pytest.approx(200 + 0.1 * 200)


def test_young_vm_counts_as_its_class() -> None:
    # Age 0: all of the size where nothing is known; else the mean of the class of 4 cores, the third one.
    new = figures([4.0], ages=[0.0])
    assert bound(new) == 4.0
    mean = (1.0, 1.0, 0.3, 1.0, 1.0, 1.0, 1.0, 1.0)
    known = ResourceFeedback(mean, tuple(share**2 + 0.04 * (share < 1) for share in mean))
    # Variance 1.5 * 0.04 * 16 = 0.96.
    assert bound(new, feedback=known) == pytest.approx(1.2 + math.sqrt(0.96))
    by_age = [bound(figures([4.0], ages=[age], means=[0.2])) for age in (0.0, 6.0, 18.0, 1e6)]
    # Weights 0, 1/2, 3/4, about 1 of 0.2; the rest of 4.
    assert by_age == [4.0, pytest.approx(2.1), pytest.approx(1.15), pytest.approx(0.2, abs=1e-4)]


def test_deleted_vm_does_not_count() -> None:
    both = figures([4.0, 4.0], means=[1.0, 3.0], alive=[True, False])
    assert bound(both) == bound(figures([4.0], means=[1.0]))


def test_no_vms_use_nothing() -> None:
    for resource in (CPU, MEMORY):
        assert moment_bound(resource, 0.05, 24, figures([]), NOTHING_KNOWN) == 0.0
        assert moment_bound(resource, 0.05, 24, figures([4.0], means=[1.0], alive=[False]), NOTHING_KNOWN) == 0.0


def test_vm_of_unknown_size_counts_with_what_it_used() -> None:
    vms = figures([math.nan, 0.0], ages=[18.0, 18.0], means=[1.0, 2.0])
    # 0.75 * (1 + 2); a quarter of a size of 0 adds nothing.
    assert bound(vms) == pytest.approx(2.25)
    assert moment_bound(MEMORY, ONE_SIGMA, 24, vms, NOTHING_KNOWN) == pytest.approx(2.25)


def test_memory_counts_two_vms_as_full() -> None:
    # The classes use 1/2, 1/2 and 1/4, as the VMs do: the prior does not matter. Rooms 512, 1024 and 3072 MB.
    shares = (1.0, 0.5, 0.5, 0.25, 1.0, 1.0, 1.0, 1.0)
    feedback = ResourceFeedback(shares, tuple(share**2 for share in shares))
    vms = figures([1024.0, 2048.0, 4096.0], resource=MEMORY, means=[512.0, 1024.0, 1024.0])
    assert moment_bound(MEMORY, 0.5, 24, vms, feedback) == pytest.approx(2560 + 1024 + 3072)
    one = figures([4096.0], resource=MEMORY, means=[1024.0])
    assert moment_bound(MEMORY, 0.5, 24, one, feedback) == pytest.approx(4096)
    # For CPU the sum of the means is enough at a risk of 1/2.
    cpu = figures([2.0, 4.0, 8.0], means=[1.0, 2.0, 2.0])
    assert bound(cpu, 0.5, feedback) == pytest.approx(5.0)


def test_memory_counts_the_larger_of_both_bounds() -> None:
    # 100 VMs of 1024 MB with mean 1000 and standard deviation 200: 1 * sqrt(100) * 200 = 2000 > 2 * 24.
    feedback = ResourceFeedback(by_class(1000 / 1024), by_class((1000**2 + 200**2 / 1.5) / 1024**2))
    vms = figures([1024.0] * 100, resource=MEMORY, means=[1000.0] * 100, variances=[200.0**2] * 100)
    assert moment_bound(MEMORY, ONE_SIGMA, 24, vms, feedback) == pytest.approx(100_000 + 2000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 64), st.floats(0, 1), st.floats(0, 200)), max_size=6),
    st.floats(0.001, 0.5),
    st.floats(0.001, 0.5),
)
def test_smaller_risk_and_more_vms_need_more(vms: list[tuple[float, float, float]], one: float, other: float) -> None:
    sizes, shares, ages = ([row[i] for row in vms] for i in range(3))
    means = [size * share for size, share in zip(sizes, shares, strict=True)]
    feedback = ResourceFeedback(by_class(0.3), by_class(0.2), common=0.1)
    built = figures(sizes, ages=ages, means=means, variances=[0.1 * mean for mean in means])
    for resource in (CPU, MEMORY):
        low, high = (moment_bound(resource, risk, 24, built, feedback) for risk in sorted((one, other), reverse=True))
        assert 0 <= low <= high
        fewer = figures(sizes[:-1], ages=ages[:-1], means=means[:-1], variances=[0.1 * mean for mean in means[:-1]])
        assert (
            moment_bound(resource, one, 24, fewer, feedback) <= moment_bound(resource, one, 24, built, feedback) + 1e-9
        )


# --- the strategy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", [CPU, MEMORY], ids=lambda resource: resource.name)
@pytest.mark.parametrize("risk", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_threshold_is_between_the_peak_and_the_allocation(resource: Resource, risk: float, seed: int) -> None:
    strategy = CentralLimit(resource, StrategySettings(risk=risk))
    moments = VmMoments(resource, 3)
    measured = 0
    for finished in odd_slices(seed):
        usage = finished.usage(resource)
        if not usage.measured:
            continue
        vms = moments.update(finished.vms, usage)
        present = PresentUsage(finished.vms, usage)
        threshold = strategy.update(Observation(Window([present], 1), False, positions=3, vms=vms))
        peak = float(np.percentile(usage.node, 99))
        assert peak <= threshold <= max(usage.booked_now + strategy.own, peak)
        measured += 1
    assert measured > 30


def test_usage_of_the_node_itself_is_added() -> None:
    strategy = CentralLimit(CPU, StrategySettings(risk=0.5))
    usage = vm_usage([2, 4], [(4, [1, 1]), (8, [0, 2])])
    vms = figures([4.0, 8.0], used=[1.0, 1.0], means=[1.0, 1.0], ages=[18.0, 18.0])
    feedback = ResourceFeedback((0.25, 0.25, 0.25, 0.125, 1, 1, 1, 1), by_class(0.0))
    observed = Observation(Window([PresentUsage(("a", "b"), usage)], 1), False, feedback=feedback, vms=vms)
    # Own 3 - 2 = 1; the bound is 2, so 3 are less than the peak of 3.98.
    assert strategy.update(observed) == pytest.approx(3.98)
    assert strategy.own == 1.0
    # Nothing known: 0.75 * 2 + 0.25 * 12 = 4.5, plus 1.
    unknown = Observation(observed.window, False, vms=vms)
    assert strategy.update(unknown) == pytest.approx(5.5)
