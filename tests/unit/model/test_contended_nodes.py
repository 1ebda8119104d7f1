"""How long VMs waited, in the model of a node: demand in place of usage, levels, guards, feedback and state."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contention import ContentionSettings, Level
from model.estimates import Estimate, NodeEstimate
from model.feedback import Feedback, ResourceFeedback
from model.guards import CONTENTION
from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.slices import RESOURCES, Slice, Usage, Waits, sums_of
from model.stability import never
from model.vmmoments import SIZE_CLASSES
from tests.support.vm_slices import odd_slices, slice_of, vm_usage, with_waits, without_waits

NEVER_STABLE = {"cpu": never, "mem": never}
#: They forecast demand where it is known; the others use plain usage.
OF_DEMAND = ("clt", "conformal")
OF_USAGE = tuple(name for name in STRATEGIES if name not in OF_DEMAND)
#: VMs use half of their size, all of the time.
HALF = Feedback(*[ResourceFeedback((0.5,) * SIZE_CLASSES, (0.25,) * SIZE_CLASSES)] * 2)
#: Two VMs of 4 vCPUs that use 1 core each, on a node of 10 cores.
PAIR = vm_usage([2.5] * 4, [(4, [1] * 4), (4, [1] * 4)])


def model_of(*strategies: str, guarded: bool = True, **more: Any) -> NodeModel:
    return NodeModel(ModelSettings(0, strategies, guarded=guarded, **more), NEVER_STABLE, phase=1)


def waiting(k: int, wait: float, share: float | None = None, usage: Usage = PAIR, **of_node: Sequence[float]) -> Slice:
    """Slice k, in which each VM waits for so many cores."""
    rows = np.full(usage.vm_usage.shape, wait).tolist()
    shares = None if share is None else np.full(usage.vm_usage.shape, share).tolist()
    return with_waits(slice_of(k, usage), rows, shares, of_node)


def run(slices: Sequence[Slice], *strategies: str, feedback: Feedback | None = HALF, **more: Any) -> list[NodeEstimate]:
    model = model_of(*strategies, **more)
    return [model.update(one, feedback) for one in slices]


def of_cpu(results: Sequence[NodeEstimate], strategy: str) -> list[Estimate]:
    return [result.cpu.by_strategy[strategy] for result in results]


# --- demand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
def test_demand_counts_for_forecasts_of_demand_and_plain_usage_for_all_others(guarded: bool) -> None:
    # They wait for 2 of 3 cores; the share is unknown, so that nothing follows but the demand.
    slices = [waiting(k, 2.0, math.nan) for k in range(5)]
    wanted = run(slices, *STRATEGIES, guarded=guarded)
    plain = run([without_waits(one) for one in slices], *STRATEGIES, guarded=guarded)
    for name in OF_USAGE:
        assert [one.threshold for one in of_cpu(wanted, name)] == [one.threshold for one in of_cpu(plain, name)], name
    # 2 VMs of 3 cores, and 0.5 of the node itself, in place of 2.5.
    assert [of_cpu(results, "conformal")[-1].threshold for results in (wanted, plain)] == pytest.approx([6.5, 2.5])
    # Age 5, prior 6: 5/11 of 1 core and 6/11 of 2; with demand the peak is larger.
    assert [of_cpu(results, "clt")[-1].threshold for results in (wanted, plain)] == pytest.approx([6.5, 0.5 + 34 / 11])
    # Memory has no demand beside its usage.
    for name in STRATEGIES:
        assert [r.mem.by_strategy[name].threshold for r in wanted] == [r.mem.by_strategy[name].threshold for r in plain]


def test_guards_leave_at_most_what_the_demand_does() -> None:
    slices = [waiting(k, 2.0, math.nan) for k in range(30)]
    for name in ("nsigma", "percentile"):
        last = of_cpu(run(slices, name), name)[-1]
        # T = 2.5 of usage leaves 7.5, the peak of the demand 10 - 6.5.
        assert (last.unguarded, last.limits["usage"]) == (7.5, 3.5)
        bare = of_cpu(run(slices, name, guarded=False), name)[-1]
        assert (bare.published, bare.limits) == (7.5, {})


def test_node_whose_demand_reaches_its_capacity_is_full() -> None:
    slices = [waiting(0, 0.0), waiting(1, 3.75, math.nan), waiting(2, 0.0)]  # 2.5 + 7.5 = 10
    before, full, after = run(slices, "nsigma")
    assert [result.counts.cpu.full for result in (before, full, after)] == [0.0, 1.0, 0.0]
    assert [one.closed for one in of_cpu([before, full, after], "nsigma")] == [False, True, True]
    assert of_cpu([full], "nsigma")[0].violated == 1.0
    assert [run([without_waits(one)], "nsigma")[0].counts.cpu.full for one in slices] == [0.0] * 3


def test_moments_of_the_vms_are_those_of_their_demand() -> None:
    counts = run([waiting(0, 1.0, math.nan)], "clt")[0].counts
    assert (counts.cpu.shares[2], counts.cpu.squares[2]) == (1.0, 0.5)  # two VMs of 4 that want 2
    assert counts.mem.shares[0] == 2 * 0.25  # they have 4 MB, and use 1


def test_demand_of_a_vm_without_figures_is_its_usage() -> None:
    known = with_waits(slice_of(0, replace(PAIR, node=np.full(4, 9.5))), [[1.0] * 4, [math.nan] * 4])
    assert run([known], "clt")[0].counts.cpu.shares[2] == 0.5 + 0.25


def test_young_vm_that_waits_keeps_back_as_much_as_one_that_does_not() -> None:
    """What it waits for is in no figure of a strategy that uses plain usage: less kept back would be published."""
    usage = vm_usage([0.75] * 4, [(4, [0.5] * 4)])
    waits, calm = (run([one], *STRATEGIES)[0] for one in (waiting(0, 1.5, math.nan, usage), slice_of(0, usage)))
    for name in OF_USAGE:
        if calm.cpu.by_strategy[name].published:
            assert waits.cpu.by_strategy[name].published <= calm.cpu.by_strategy[name].published, name
    # Age 1 of 6: 5/6 of the 1.5 cores that it lacks to half of its size; nsigma, T = 0.8, leaves 9.2.
    assert calm.cpu.by_strategy["nsigma"].limits["young"] == pytest.approx(9.2 - 1.25)
    # The peak of the demand, 2.25, leaves 7.75.
    assert waits.cpu.by_strategy["nsigma"].limits["young"] == pytest.approx(7.75 - 1.25)


#: A VM of 16 vCPUs that wants all of them and has a quota of 1, and one of 4 vCPUs, on a node of 16 cores.
QUOTA = vm_usage([2.0] * 5, [(16, [1.0] * 5), (4, [0.5] * 5)], 16.0)


@pytest.mark.parametrize(("quotas", "capped"), [(1, ()), (2, ("q?",))])
def test_vm_at_its_quota_wants_no_more_of_its_node(quotas: int, capped: tuple[str, ...]) -> None:
    """Recognised, or named: otherwise a node with one of them looks full in every slice, and is closed for good."""
    names = [*(f"q{i}" for i in range(quotas)), "z"]
    usage = vm_usage([2.0] * 5, [*[(16, [1.0] * 5)] * quotas, (4, [0.5] * 5)], 16.0)
    waits = [*[[15.0] * 5] * quotas, [0.01] * 5]
    slices = [with_waits(slice_of(k, usage, names), waits) for k in range(30)]
    # What the other VM waits for counts.
    of_other = [with_waits(slice_of(k, usage, names), [*[[0.0] * 5] * quotas, [0.01] * 5]) for k in range(30)]
    settings = ContentionSettings(capped=capped)
    results = [run(some, "clt", "conformal", "nsigma", contention=settings) for some in (slices, of_other)]
    for name in ("clt", "conformal", "nsigma"):
        one, other = (of_cpu(some, name)[-1] for some in results)
        assert (one.published, one.closed) == (pytest.approx(other.published), False)
        assert dict(one.limits) == pytest.approx(dict(other.limits))
        assert one.published > 0.0
        assert one.violation_rate == 0.0
    assert {some[-1].cpu.contention.level for some in results} == {Level.NONE}


def test_waits_of_some_vms_are_taken_out_of_the_demand() -> None:
    rows = np.array([True, False])
    finished = with_waits(slice_of(0, QUOTA), [[15.0, 14.0, 13.0, 12.0, 11.0], [0.5] * 5])
    left = finished.cpu.without_waits(rows)
    assert left.demand.node.tolist() == [2.5] * 5
    assert left.demand.vm_usage.tolist() == [[1.0] * 5, [1.0] * 5]
    assert left.node.tolist() == QUOTA.node.tolist()
    assert finished.cpu.without_waits(~rows).demand.node.tolist() == [17.0, 16.0, 15.0, 14.0, 13.0]
    assert finished.cpu.without_waits(~rows & rows) is finished.cpu
    assert QUOTA.without_waits(rows) is QUOTA


def test_waits_at_other_samples_than_those_of_the_node_are_taken_out_as_far_as_they_are_sure() -> None:
    usage = vm_usage([2.0] * 5, [(16, [1.0] * 3), (4, [])], 16.0)
    demand = np.array([[16.0, 14.0, 15.0], [math.nan] * 3])
    waiting_usage = replace(usage, node_demand=np.array([17.0, 15.0, 16.0, 15.0, 2.5]), vm_demand=demand)
    left = waiting_usage.without_waits(np.array([True, True]))
    # At least 13 of them, and never below the usage.
    assert left.demand.node.tolist() == [4.0, 2.0, 3.0, 2.0, 2.0]
    assert (
        replace(waiting_usage, node_demand=None).without_waits(np.array([True, True])).demand.node.tolist() == [2.0] * 5
    )


def test_mean_of_samples_is_that_of_each_vm() -> None:
    means = sums_of(np.array([[1.0, 3.0], [math.nan, 4.0], [math.nan, math.nan]])).means
    assert repr(means.tolist()) == "[2.0, 4.0, nan]"
    assert sums_of(np.empty((2, 0))).means.tolist() == pytest.approx([math.nan] * 2, nan_ok=True)
    assert sums_of(np.empty((0, 0))).means.tolist() == []


# --- levels -------------------------------------------------------------------------------------------

HIGH, SOME, CALM = 1.0, 0.06, 0.0  # cores for which a VM that runs on one waits: 50 %, 5.7 %


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_node_whose_vms_suffer_is_closed_until_it_has_recovered(strategy: str) -> None:
    results = run([waiting(k, wait) for k, wait in enumerate([CALM, HIGH, *[CALM] * 12])], strategy)
    levels = [result.cpu.contention.level for result in results]
    assert levels == [Level.NONE, Level.HIGH, Level.SOME, *[Level.NONE] * 11]
    estimates = of_cpu(results, strategy)
    assert all(one.closed and one.published == 0.0 for one in estimates[1:13])
    assert not estimates[13].closed
    # Only the CPU lacks.
    assert {result.mem.contention.level for result in results} == {Level.NONE}
    assert not any(result.mem.by_strategy[strategy].closed for result in results)
    assert {result.counts.mem.full for result in results} == {0.0}


def test_level_of_the_estimate_is_that_on_which_the_node_acts() -> None:
    results = run([waiting(k, SOME) for k in range(3)] + [slice_of(3, PAIR), waiting(4, CALM)], "nsigma")
    contentions = [result.cpu.contention for result in results]
    assert [one.level for one in contentions] == [Level.NONE, *[Level.SOME] * 4]
    # The VMs are those of the slice; unknown figures and the first calm slice end nothing.
    assert [one.waiting for one in contentions] == [2, 2, 2, 0, 0]


def test_node_whose_vms_suffer_a_little_is_offered_no_more_than_before() -> None:
    # In slice 22 the node has its turn: it offers the largest VM, 8 cores.
    feedback = Feedback(replace(HALF.cpu, largest=8.0), HALF.mem)
    sizes = [*[[4, 4]] * 23, [4, 4, 2], [4, 2]]
    usages = [vm_usage([1] * 4, [(size, [0.5] * 4) for size in row]) for row in sizes]
    slices = [waiting(k, 0.04 if k > 19 else 0.0, usage=usage) for k, usage in enumerate(usages)]  # 0.04 / 0.54
    results = run(slices, "nsigma", feedback=feedback)
    estimates = of_cpu(results, "nsigma")
    assert {result.cpu.contention.level for result in results[21:]} == {Level.SOME}
    before = estimates[20].published
    assert before == pytest.approx((10 - 1.08) / 4)  # a quarter of what the demand leaves
    assert (estimates[22].published, dict(estimates[22].limits)[CONTENTION]) == (before, pytest.approx(before))
    # A VM of 2 cores arrives, one of 4 leaves.
    assert estimates[23].published == pytest.approx(before - 2)
    assert estimates[24].published <= before
    free = of_cpu(run([without_waits(one) for one in slices], "nsigma", feedback=feedback), "nsigma")
    assert free[22].published == 8.0


def test_memory_that_lacks_closes_the_memory_alone() -> None:
    results = run([waiting(0, CALM), waiting(1, CALM, oom_kills=[0, 1, 0, 0])], "clt", "nsigma")
    assert [result.mem.contention.level for result in results] == [Level.NONE, Level.HIGH]
    for name in ("clt", "nsigma"):
        assert results[1].mem.by_strategy[name].closed
        assert not results[1].cpu.by_strategy[name].closed
    assert (results[1].counts.mem.full, results[1].counts.cpu.full) == (1.0, 0.0)


def test_without_guards_contention_is_shown_and_changes_no_figure() -> None:
    slices = [waiting(k, wait) for k, wait in enumerate([CALM, HIGH, CALM])]
    results = run(slices, *OF_USAGE, guarded=False)
    assert [result.cpu.contention.level for result in results] == [Level.NONE, Level.HIGH, Level.NONE]
    plain = run([without_waits(one) for one in slices], *OF_USAGE, guarded=False)
    for name in OF_USAGE:
        assert [one.published for one in of_cpu(results, name)] == [one.published for one in of_cpu(plain, name)]


def test_thresholds_are_those_of_the_settings() -> None:
    rules = ContentionSettings(vm_some=0.4, vm_high=0.6, capped=("b",))
    busy = replace(PAIR, node=np.full(4, 9.5))
    high = [waiting(0, 2.0, usage=busy)]
    found = run([waiting(0, HIGH, usage=busy)], "nsigma", contention=rules)[0].cpu.contention
    assert (found.level, found.vms) == (Level.NONE, {"a": 0.5}), "some has to persist"
    assert run(high, "nsigma", contention=rules)[0].cpu.contention.level is Level.HIGH
    assert run(high, "nsigma", contention=replace(rules, vm_high=0.7))[0].cpu.contention.level is Level.NONE


@pytest.mark.parametrize("resource", ["cpu", "mem"])
def test_slice_without_samples_of_the_node_counts_for_the_level(resource: str) -> None:
    """Its waits are known although its usage is not."""
    lost = replace(PAIR, node=np.empty(0))
    gap = with_waits(slice_of(1, lost), np.full((2, 4), HIGH).tolist(), of_node={"oom_kills": [1.0]})
    results = run([waiting(0, CALM), gap, waiting(2, CALM, oom_kills=[0])], "nsigma")
    levels = [getattr(result, resource).contention.level for result in results]
    assert levels == [Level.NONE, Level.HIGH, Level.SOME]
    published = [getattr(result, resource).by_strategy["nsigma"].published for result in results]
    assert published[0] > 0.0 == published[1]
    # After the gap no more than before it.
    assert 0.0 < published[2] <= published[0]


# --- violations and feedback --------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("strategy", ["clt", "conformal", "nsigma", "borg"])
def test_slice_whose_vms_suffer_is_violated(strategy: str, guarded: bool) -> None:
    waits = [CALM, HIGH, CALM, CALM]
    estimates = of_cpu(run([waiting(k, wait) for k, wait in enumerate(waits)], strategy, guarded=guarded), strategy)
    assert [one.violated for one in estimates[1:]] == [1.0, 0.0, 0.0]
    assert estimates[-1].violation_rate == pytest.approx(1 / 3)
    # A level that persists because nothing is known is no violation.
    unknown = [waiting(0, CALM), waiting(1, HIGH), slice_of(2, PAIR)]
    assert of_cpu(run(unknown, strategy, guarded=guarded), strategy)[-1].violated == 0.0
    # Nor is a little, unless the demand exceeds what was published.
    little = [waiting(0, CALM), waiting(1, SOME)]
    assert of_cpu(run(little, strategy), strategy)[-1].violated == 0.0
    assert of_cpu(run(little, "nsigma", guarded=False), "nsigma")[-1].violated == 1.0


@pytest.mark.parametrize(("guarded", "rate"), [(True, 0.5), (False, 0.0)])
def test_conformal_counts_it_where_guards_are_on(guarded: bool, rate: float) -> None:
    # Without demand, so that nothing exceeds the bound.
    shares = [np.full((2, 4), 0.5 * (k % 2)) for k in range(9)]
    slices = [replace(slice_of(k, PAIR), waits=Waits(share, share * 2)) for k, share in enumerate(shares)]
    assert of_cpu(run(slices, "conformal", guarded=guarded), "conformal")[-1].forecast_violation_rate == rate


def test_fleet_counts_it_as_a_full_node() -> None:
    results = run([waiting(k, wait) for k, wait in enumerate([CALM, HIGH, SOME, CALM])], "clt")
    assert [result.counts.cpu.full for result in results] == [0.0, 1.0, 0.0, 0.0]
    assert [result.counts.mem.full for result in results] == [0.0] * 4
    # A node that is a fleet of its own is more cautious afterwards.
    waits = [*[HIGH] * 3, *[CALM] * 22]
    own = of_cpu(run([waiting(k, wait) for k, wait in enumerate(waits)], "nsigma", feedback=None), "nsigma")[-1]
    assert "fleet" in own.limits


# --- what missing figures do --------------------------------------------------------------------------


def waiting_slices(seed: int, count: int = 40, cores: float = 16.0) -> Iterator[Slice]:
    """A node whose VMs come and go, use a share of their size and at times wait; its usage is cut at its cores."""
    draw = np.random.default_rng(seed)
    sizes = {f"vm{i}": float(draw.choice([1, 2, 4, 8])) for i in range(draw.integers(1, 6))}
    often, most = draw.choice([0.05, 0.2, 0.5]), draw.choice([0.02, 0.1, 0.3, 1.0])
    for k in range(count):
        vms = tuple(name for name in sizes if draw.random() < 0.95)
        size = np.array([[sizes[name]] for name in vms]).reshape(-1, 1)
        used = draw.uniform(0, 1, (len(vms), 5)) * size * draw.choice([0.1, 0.5, 1.0])
        wanted = used.sum(axis=0) + draw.uniform(0, 1, 5)
        used = used * np.minimum(1.0, cores / wanted)
        wait = np.where(draw.random((len(vms), 1)) < often, draw.uniform(0, most, used.shape) * size, 0.0)
        usage = Usage(cores, np.minimum(wanted, cores), size[:, 0], used)
        finished = replace(slice_of(k, usage, vms, 24), mem=vm_usage([200] * 5, [(100, [50])] * len(vms), 1000.0))
        yield with_waits(finished, np.minimum(wait, np.maximum(size - used, 0.0)).tolist())


def capacity(result: NodeEstimate, finished: Slice, name: str) -> float:
    return result.cpu.by_strategy[name].capacity(finished.cpu.booked_now, finished.cpu.config)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 1.0, math.nan]))
def test_waits_never_raise_a_figure_of_a_strategy_that_uses_plain_usage(
    seed: int, own_fleet: bool, shown: float
) -> None:
    """Slice by slice, whatever the shares are: true, or 0 or unknown, so that only the demand counts."""
    names, feedback = ("nsigma", "rclike"), None if own_fleet else HALF
    with_them, without = (
        NodeModel(ModelSettings(1, names, positions=24, guarded=True), NEVER_STABLE) for _ in range(2)
    )
    for finished in waiting_slices(seed, 30):
        assert finished.waits is not None
        shares = finished.waits.vm_share * shown
        one = with_them.update(replace(finished, waits=replace(finished.waits, vm_share=shares)), feedback)
        other = without.update(without_waits(finished), feedback)
        for name in names:
            assert one.cpu.by_strategy[name].published <= other.cpu.by_strategy[name].published
            assert capacity(one, finished, name) <= capacity(other, finished, name)
            assert repr(one.mem.by_strategy[name]) == repr(other.mem.by_strategy[name])


@pytest.mark.parametrize("own_fleet", [False, True])
@pytest.mark.parametrize("seed", [0, 5, 9, 10, 12])
def test_waits_raise_no_figure_of_a_strategy_that_forecasts_demand(seed: int, own_fleet: bool) -> None:
    """Of usual loads. A load that waits where it uses least has a smaller variance, and may have a smaller bound."""
    feedback = None if own_fleet else HALF
    with_them, without = (
        NodeModel(ModelSettings(1, OF_DEMAND, positions=24, guarded=True), NEVER_STABLE) for _ in range(2)
    )
    lowered = 0
    for finished in waiting_slices(seed):
        one, other = with_them.update(finished, feedback), without.update(without_waits(finished), feedback)
        for name in OF_DEMAND:
            assert one.cpu.by_strategy[name].published <= other.cpu.by_strategy[name].published
            assert capacity(one, finished, name) <= capacity(other, finished, name)
            lowered += capacity(one, finished, name) < capacity(other, finished, name)
    assert lowered > 10


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_no_more_is_published_than_the_demand_leaves(seed: int, own_fleet: bool) -> None:
    names, feedback = ("clt", "conformal", "nsigma"), None if own_fleet else HALF
    model = NodeModel(ModelSettings(1, names, positions=24, guarded=True), NEVER_STABLE)
    for finished in waiting_slices(seed):
        result = model.update(finished, feedback)
        left = max(finished.cpu.config - float(np.percentile(finished.cpu.demand.node, 99)), 0.0)
        for one in result.cpu.by_strategy.values():
            assert one.published <= left + 1e-6
            if result.cpu.contention.level is Level.HIGH:
                assert (one.published, one.closed) == (0.0, True)


def lacking(finished: Slice, vms: Sequence[str]) -> Slice:
    """The slice without the figures of some VMs."""
    assert finished.waits is not None
    gone = np.array([name in vms for name in finished.vms], dtype=bool)[:, None]
    rows = np.where(gone, math.nan, finished.waits.vm_wait).tolist()
    return with_waits(without_waits(finished), rows)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_figures_that_are_lost_after_high_contention_do_not_open_the_node(seed: int) -> None:
    """All figures, or those of the VMs that waited: until they return, for a scope at most."""
    draw = np.random.default_rng(seed)
    model = NodeModel(ModelSettings(1, ("clt", "nsigma"), positions=24, guarded=True), NEVER_STABLE)
    causes: frozenset[str] = frozenset()
    for finished in waiting_slices(seed, 24):
        if not causes:
            contention = model.update(finished, HALF).cpu.contention
            causes = contention.causes if contention.level is Level.HIGH else causes
            continue
        if not causes & {*finished.alive}:
            return  # they have left
        others = [name for name in finished.vms if draw.random() < 0.3]
        result = model.update(
            lacking(finished, [*causes, *others]) if draw.random() < 0.7 else without_waits(finished), HALF
        )
        if result.cpu.contention.waiting:
            return  # others wait, too
        assert result.cpu.contention.level is Level.HIGH
        for one in result.cpu.by_strategy.values():
            assert (one.published, one.closed) == (0.0, True)


# --- state --------------------------------------------------------------------------------------------


def odd_waits(seed: int, count: int = 40) -> Iterator[Slice]:
    """Odd slices whose VMs wait at times, and of some of which nothing is known."""
    draw = np.random.default_rng(seed + 1)
    for finished in odd_slices(seed, count):
        if draw.random() < 0.3:
            yield finished
            continue
        shape = finished.cpu.vm_usage.shape
        waits = np.where(draw.random(shape) < 0.1, np.nan, draw.exponential(0.2, shape) * draw.choice([0, 0, 0.1, 1]))
        fields = {name: draw.uniform(0, limit, 3) for name, limit in (("psi_cpu", 0.3), ("psi_memory", 0.02))}
        yield with_waits(finished, waits.tolist(), of_node={name: one.tolist() for name, one in fields.items()})


@pytest.mark.parametrize("own_fleet", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_figures_of_contended_nodes_are_the_same_when_restarted_after_every_slice(seed: int, own_fleet: bool) -> None:
    """The state is encoded and decoded as in the checkpoints of the estimator; the slices kept have no waits."""
    parameters = ModelSettings(1, ("clt", "conformal", "rclike"), positions=3, guarded=True)
    whole, feedback = NodeModel(parameters, NEVER_STABLE, phase=seed), None if own_fleet else HALF
    stored: dict[int, bytes] = {}
    past: dict[int, list[Slice]] = defaultdict(list)
    node, levels = b"", set()
    for finished in odd_waits(seed):
        at = finished.position
        restarted = NodeModel(parameters, NEVER_STABLE, phase=seed)
        state = restarted.state(at)
        if node:
            own = msgspec.msgpack.decode(stored.get(at, msgspec.msgpack.encode({})), strict=False)
            restarted.restore(replace(state, node=msgspec.msgpack.decode(node), position=own), at, past[at][-2:])
        result = whole.update(finished, feedback)
        assert repr(restarted.update(finished, feedback)) == repr(result)
        state = restarted.state(at)
        node, stored[at] = msgspec.msgpack.encode(state.node), msgspec.msgpack.encode(state.position)
        past[at].append(without_waits(finished))
        levels |= {result.of(resource).contention.level for resource in RESOURCES}
    assert levels == set(Level)


@pytest.mark.parametrize("missing", ["key", "value"])
def test_state_of_a_version_without_contention_is_restored(missing: str) -> None:
    model, restored = model_of("clt"), model_of("clt")
    for k in range(30):
        model.update(waiting(k, CALM), HALF)
    state = model.state(0)
    for resource in RESOURCES:
        if missing == "key":
            del state.node[resource.name]["contention"], state.node[resource.name]["published"]["clt"]["capacity"]
        else:
            state.node[resource.name]["contention"] = None  # guards were off
    past = [waiting(29, CALM)]
    restored.restore(state, 0, past)
    assert repr(restored.update(waiting(30, CALM), HALF)) == repr(model.update(waiting(30, CALM), HALF))
    assert restored.update(waiting(31, HIGH), HALF).cpu.contention.level is Level.HIGH


def test_state_with_contention_is_restored_where_guards_are_off() -> None:
    model, restored = model_of("clt"), model_of("clt", guarded=False)
    model.update(waiting(0, HIGH), HALF)
    state = model.state(0)
    restored.restore(state, 0, [waiting(0, HIGH)])
    assert restored.state(0).node["cpu"]["contention"] is None
    assert state.node["cpu"]["contention"]["level"] == 2
