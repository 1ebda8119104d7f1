"""The strategy clt: the sum of the VMs' means, and a margin from their variances."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from model.clt import moment_bound
from model.feedback import Feedback, ResourceFeedback
from model.nodemodel import Estimate, ModelSettings, NodeModel
from model.oversubscriptioncomputation import StrategySettings
from model.slices import CPU, MEMORY, Slice, Usage
from model.vmmoments import VmFigures
from tests.unit.model.test_conformal import odd_slices

#: The normal quantiles of target risks of 5 % and 1 %.
Z5, Z1 = 1.6448536, 2.3263479
#: Older than any prior.
OLD = 1e12
#: VMs use half of their size, with a mean square of 0.3: a variance of 0.05, and 1.5 times that for unknown VMs.
HALF = ResourceFeedback(mean=(0.5,) * 8, square=(0.3,) * 8)


def figures(*vms: tuple[float, float, float, float], alive: list[bool] | None = None) -> VmFigures:
    """Size, age, mean and variance of each VM."""
    config, ages, means, variances = np.array(vms, dtype=float).reshape(-1, 4).T
    flags = np.ones(len(vms), dtype=bool) if alive is None else np.array(alive)
    return VmFigures(flags, config, ages, means, means, variances + means**2, means)


def bound(vms: VmFigures, feedback: ResourceFeedback = HALF, risk: float = 0.05) -> float:
    return moment_bound(CPU, risk, 24, vms, feedback)


@pytest.mark.parametrize(("risk", "z"), [(0.05, Z5), (0.01, Z1), (0.5, 0.0)])
def test_bound_is_the_sum_of_the_means_and_z_deviations_of_the_sum(risk: float, z: float) -> None:
    # Means 1 + 2; deviation sqrt(9 + 16).
    assert bound(figures((8, OLD, 1, 9), (8, OLD, 2, 16)), risk=risk) == pytest.approx(3.0 + 5.0 * z)


def test_many_vms_need_a_smaller_margin_than_each_alone() -> None:
    one = bound(figures((4, OLD, 1, 1)))
    assert bound(figures(*[(4, OLD, 1, 1)] * 100)) == pytest.approx(100 + 10 * Z5)
    assert 100 * one > 100 + 10 * Z5


@pytest.mark.parametrize(
    ("age", "weight"),
    [(0.0, 0.0), (6.0, 0.5), (18.0, 0.75), (OLD, 1.0)],  # a / (a + a quarter of 24)
)
def test_young_vm_counts_in_part_as_one_of_its_size(age: float, weight: float) -> None:
    mean = weight * 1.0 + (1 - weight) * 0.5 * 4.0
    variance = weight * 0.25 + (1 - weight) * 1.5 * 0.05 * 16.0
    assert bound(figures((4, age, 1, 0.25))) == pytest.approx(mean + Z5 * math.sqrt(variance))


def test_young_vm_of_an_unknown_fleet_counts_with_its_size() -> None:
    assert bound(figures((4, 0, 0, 0)), ResourceFeedback()) == pytest.approx(4.0)


def test_each_size_has_its_own_class() -> None:
    feedback = ResourceFeedback(mean=(0.1, 0.2, 0.3, *[0.0] * 5), square=(0.01, 0.04, 0.09, *[0.0] * 5))
    assert bound(figures((1, 0, 0, 0), (2, 0, 0, 0), (4, 0, 0, 0)), feedback) == pytest.approx(0.1 + 0.4 + 1.2)


@pytest.mark.parametrize(("level", "z"), [(-1.0, Z5 - 1.0), (-0.4, Z5 - 0.4), (0.0, Z5), (3.0, Z5)])
def test_quiet_fleet_lowers_z_and_a_full_one_does_not_raise_it(level: float, z: float) -> None:
    feedback = ResourceFeedback(mean=HALF.mean, square=HALF.square, level=level)
    assert bound(figures((8, OLD, 2, 4)), feedback) == pytest.approx(2.0 + 2.0 * z)


def test_correlation_of_the_fleet_adds_to_the_variance() -> None:
    feedback = ResourceFeedback(mean=HALF.mean, square=HALF.square, common=0.3)
    # sqrt(16 + (0.3 x 10)^2) = 5
    assert bound(figures((8, OLD, 10, 16)), feedback) == pytest.approx(10.0 + 5.0 * Z5)


def test_vms_that_have_left_do_not_count_and_unknown_sizes_are_zero() -> None:
    vms = figures((8, OLD, 1, 0), (8, OLD, 2, 0), (math.nan, 0, 0, 0), alive=[True, False, True])
    assert bound(vms) == pytest.approx(1.0, abs=1e-4)
    assert bound(figures()) == 0.0


# --- the strategy ---------------------------------------------------------------------------------------


def a_slice(k: int, node: float | list[float], vms: dict[str, float], alive: list[bool] | None = None) -> Slice:
    """A node of 64 cores with VMs of 4 cores."""
    samples = np.array(node if isinstance(node, list) else [node] * 5)
    rows = np.repeat(np.array(list(vms.values()), dtype=float)[:, None], samples.size, axis=1).reshape(len(vms), -1)
    flags = None if alive is None else np.array(alive)
    usage = Usage(64.0, samples, np.full(len(vms), 4.0), rows, vm_alive=flags)
    return Slice(3600.0 * (k + 1), k % 24, tuple(vms), usage, usage)


def estimates(slices: list[Slice], **more: Any) -> list[Estimate]:
    parameters = StrategySettings(risk=more.pop("risk", 0.05))
    model = NodeModel(ModelSettings(1, ("clt",), parameters, parameters, positions=24))
    return [model.update(one, **more).cpu.by_strategy["clt"] for one in slices]


def test_threshold_has_the_usage_of_the_node_itself() -> None:
    """Constant VMs: their variance is 0, and the prior fades. The node uses 2 cores beside them."""
    names = {f"vm{i}": 1.0 for i in range(20)}
    last = estimates([a_slice(k, 22.0, names) for k in range(2000)])[-1]
    fleet = 20 * 1.0
    assert last.threshold == pytest.approx(fleet + 2.0, abs=0.5)
    assert last.risk == 0.05


def test_threshold_is_at_least_the_peak_of_the_slice() -> None:
    names = {f"vm{i}": 0.1 for i in range(4)}
    *_, last = estimates([a_slice(k, 2.0, names) for k in range(10)] + [a_slice(10, [2.0] * 50 + [40.0] * 50, names)])
    assert last.threshold == pytest.approx(40.0)


def test_threshold_is_at_most_booked_now_and_the_usage_of_the_node_itself() -> None:
    """One VM of two is alive at the end of the slice; VMs of its size vary so much that the bound exceeds it."""
    varying = ResourceFeedback(mean=(0.9,) * 8, square=(2.0,) * 8)
    slices = [a_slice(0, 3.0, {"a": 0.5, "b": 0.5}, alive=[True, False])]
    (first,) = estimates(slices, feedback=Feedback(varying, varying))
    # own = 3 - 1; the VM has 4.
    assert first.threshold == pytest.approx(4.0 + 2.0)


def test_more_risk_publishes_more() -> None:
    draw = np.random.default_rng(2)
    slices = []
    for k in range(60):
        used = {f"vm{i}": float(draw.uniform(0, 2)) for i in range(20)}
        slices.append(a_slice(k, sum(used.values()) + 1.0, used))
    careful, usual, bold = (estimates(slices, risk=risk)[-1].published for risk in (0.01, 0.05, 0.3))
    assert careful < usual < bold


def test_feedback_of_the_fleet_replaces_that_of_the_node() -> None:
    """A fleet whose VMs use a tenth of their size: new VMs count with that."""
    new = [a_slice(0, 1.0, {f"vm{i}": 0.05 for i in range(10)})]
    known = ResourceFeedback(mean=(0.1,) * 8, square=(0.01,) * 8)
    (alone,) = estimates(new)
    (of_fleet,) = estimates(new, feedback=Feedback(known, known))
    # Age 1 of a prior of 6; own = 1 - 10 x 0.05. An unknown VM of 4 cores may use 4.
    weight = 1 / (1 + 6)
    assert alone.threshold == pytest.approx(10 * (weight * 0.05 + (1 - weight) * 4.0) + 0.5)
    assert of_fleet.threshold == pytest.approx(10 * (weight * 0.05 + (1 - weight) * 0.4) + 0.5)


@pytest.mark.parametrize("seed", range(8))
def test_threshold_is_finite_for_gaps_and_unknown_sizes(seed: int) -> None:
    model = NodeModel(ModelSettings(1, ("clt",), positions=3))
    for finished in odd_slices(seed):
        estimate = model.update(finished)
        for usage, resource in ((finished.cpu, CPU), (finished.mem, MEMORY)):
            if usage.measured:
                one = estimate.of(resource).by_strategy["clt"]
                assert math.isfinite(one.threshold)
                assert one.threshold >= float(np.percentile(usage.node, 99)) - 1e-9
                assert 0 <= one.published <= usage.config


def test_z_is_the_normal_quantile() -> None:
    assert NormalDist().inv_cdf(0.95) == pytest.approx(Z5)
    assert NormalDist().inv_cdf(0.99) == pytest.approx(Z1)
