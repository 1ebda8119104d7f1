"""The guards between what a strategy computes as free and what is published, alone and in the model of a node."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.estimates import Estimate
from model.feedback import Feedback, ResourceFeedback
from model.guards import GUARDS, HORIZON, FigureGuards, GuardedFigure, GuardSettings, NodeCondition, NodeState
from model.nodemodel import ModelSettings, NodeModel
from model.slices import RESOURCES, Slice, Usage
from model.stability import never
from model.vmmoments import SIZE_CLASSES, VmFigures
from tests.support.vm_slices import figures, odd_slices, slice_of, vm_usage

NEVER_STABLE = {"cpu": never, "mem": never}
STRATEGIES = ("clt", "conformal", "rclike", "nsigma")
NOTHING_KNOWN = ResourceFeedback()
NO_VMS = figures([])

#: A node of 100 cores on which no guard lowers a figure up to 90.
OPEN = NodeState(
    config=100.0,
    peak=10.0,
    young=0.0,
    fleet_reserve=0.0,
    node_reserve=0.0,
    recovering=False,
    largest=0.0,
    in_turn=False,
    ramp=1.0,
)


def guarded(free: float, **more: Any) -> GuardedFigure:
    return FigureGuards(1).update(free, replace(OPEN, **more), 0.0)


# --- each guard alone ---------------------------------------------------------------------------------


def test_open_node_publishes_what_is_free() -> None:
    assert guarded(40.0) == GuardedFigure(40.0, False, {})


def test_usage_guard_publishes_at_most_what_the_peak_leaves() -> None:
    assert guarded(40.0, peak=70.0) == GuardedFigure(30.0, False, {"usage": 30.0})
    assert guarded(40.0, peak=60.0) == GuardedFigure(40.0, False, {})
    assert guarded(40.0, peak=105.0) == GuardedFigure(0.0, True, {"usage": -5.0})


def test_young_guard_keeps_what_young_vms_will_use() -> None:
    assert guarded(40.0, young=15.0) == GuardedFigure(25.0, False, {"young": 25.0})
    assert guarded(40.0, young=40.0) == GuardedFigure(0.0, False, {"young": 0.0})
    assert guarded(40.0, young=41.0) == GuardedFigure(0.0, True, {"young": -1.0})


def test_fleet_and_node_guards_keep_a_share_of_the_capacity() -> None:
    assert guarded(40.0, fleet_reserve=0.04) == GuardedFigure(36.0, False, {"fleet": 36.0})
    assert guarded(40.0, node_reserve=0.015) == GuardedFigure(38.5, False, {"node": 38.5})


def test_recovering_node_is_closed() -> None:
    assert guarded(40.0, recovering=True) == GuardedFigure(0.0, True, {"node": -1.0})
    assert guarded(-3.0, recovering=True, node_reserve=0.01) == GuardedFigure(0.0, True, {"node": -4.0})


def test_horizon_guard_publishes_the_least_figure_of_a_scope() -> None:
    guards = FigureGuards(3)
    results = [guards.update(free, OPEN, 0.0) for free in (40.0, 30.0, 50.0, 60.0, 70.0)]
    assert [one.free for one in results] == [40.0, 30.0, 30.0, 30.0, 50.0]
    assert [dict(one.limits) for one in results] == [{}, {}, {HORIZON: 30.0}, {HORIZON: 30.0}, {HORIZON: 50.0}]
    assert [FigureGuards(0).update(free, OPEN, 0.0).free for free in (1.0, 2.0)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("free", "in_turn", "offered"),
    [
        (40.0, False, 18.0),  # 40 / 4 = 10 and the largest VM of 8
        (20.0, False, 12.0),  # 20 / 4 + 8 = 13 are more than 20 - 8
        (16.0, False, 8.0),  # the largest VM finds a place: max(4, min(12, 8))
        (12.0, False, 4.0),  # 12 - 8
        (10.0, False, 2.5),  # 10 / 4; 10 - 8 is less
        (4.0, False, 1.0),
        (40.0, True, 18.0),
        (12.0, True, 8.0),  # the turn: the largest VM
        (6.0, True, 6.0),  # all that is free
    ],
)
def test_ramp_guard_offers_a_part_or_the_largest_vm(free: float, in_turn: bool, offered: float) -> None:
    result = guarded(free, ramp=0.25, largest=8.0, in_turn=in_turn)
    assert result == GuardedFigure(offered, False, {"ramp": offered} if offered < free else {})


def test_ramp_guard_leaves_nothing_as_it_is() -> None:
    for free in (0.0, -2.0):
        assert guarded(free, ramp=0.25, largest=8.0, in_turn=True) == GuardedFigure(0.0, free < 0, {})


def test_guards_are_applied_in_order() -> None:
    guards = FigureGuards(2)
    guards.update(60.0, OPEN, 0.0)
    state = replace(OPEN, peak=45.0, young=5.0, fleet_reserve=0.02, node_reserve=0.03, ramp=0.25, largest=4.0)
    # min(60, 80), 100 - 45, - 5, - 0.02 * 100, - 0.03 * 100, 45 / 4 + 4
    limits = {HORIZON: 60.0, "usage": 55.0, "young": 50.0, "fleet": 48.0, "node": 45.0, "ramp": 15.25}
    result = guards.update(80.0, state, 0.0)
    assert result == GuardedFigure(15.25, False, limits)
    assert list(result.limits) == list(limits)


# --- the state of a node ------------------------------------------------------------------------------


def updates(
    condition: NodeCondition, peaks: Sequence[float], feedback: ResourceFeedback = NOTHING_KNOWN
) -> list[NodeState]:
    """The states of a node of 100 cores after slices with these peaks."""
    return [condition.update(100.0, peak, NO_VMS, feedback) for peak in peaks]


@pytest.mark.parametrize(("scope", "slices"), [(1, 12), (24, 12), (25, 13), (48, 24)])
def test_node_recovers_for_half_a_scope(scope: int, slices: int) -> None:
    states = updates(NodeCondition(GuardSettings(scope), 0), [50.0, 100.0, *[50.0] * 60])
    assert [state.recovering for state in states] == [False, *[True] * slices, *[False] * (61 - slices)]


def test_node_that_is_full_again_recovers_from_then_on() -> None:
    states = updates(NodeCondition(GuardSettings(24), 0), [99.9, *[50.0] * 5, 99.9, *[50.0] * 12])
    assert [state.recovering for state in states] == [*[True] * 18, False]


def test_reserve_of_a_node_grows_with_full_slices_and_fades() -> None:
    states = updates(NodeCondition(GuardSettings(24), 0), [100.0, 100.0, 50.0])
    # 0.015 per full slice; a slice removes 1/48.
    second = 0.015 * 47 / 48 + 0.015
    assert [state.node_reserve for state in states] == pytest.approx([0.015, second, second * 47 / 48])
    assert updates(NodeCondition(GuardSettings(24), 0), [100.0] * 50)[-1].node_reserve == 0.2
    slow = updates(NodeCondition(GuardSettings(48), 0), [100.0, 50.0])
    assert slow[-1].node_reserve == pytest.approx(0.015 * 95 / 96)


@pytest.mark.parametrize(("level", "reserve"), [(0.0, 0.0), (2.0, 0.04), (10.0, 0.2), (-1.5, 0.0)])
def test_reserve_of_the_fleet_is_two_percent_per_level(level: float, reserve: float) -> None:
    (state,) = updates(NodeCondition(GuardSettings(24), 0), [50.0], ResourceFeedback(level=level, largest=8.0))
    assert state.fleet_reserve == pytest.approx(reserve)
    assert state.largest == 8.0


def test_nodes_take_turns() -> None:
    turns = [[state.in_turn for state in updates(NodeCondition(GuardSettings(24), k), [50.0] * 16)] for k in range(8)]
    assert [sum(column) for column in zip(*turns, strict=True)] == [1] * 16
    assert turns[3].index(True) == 4  # 3 + 5 = 8
    assert all(sum(row) == 2 for row in turns)


def test_ramp_is_that_of_an_hour_of_a_day() -> None:
    assert GuardSettings(1).ramp_of_slice == GuardSettings(24).ramp_of_slice == pytest.approx(0.25)
    # Two slices of half an hour: 1 - 0.75^(1/2) each.
    assert GuardSettings(48).ramp_of_slice == pytest.approx(1 - math.sqrt(0.75))
    assert GuardSettings(24, ramp=1.0).ramp_of_slice == 1.0


def young(vms: VmFigures, scope: int = 24, feedback: ResourceFeedback = NOTHING_KNOWN) -> float:
    return NodeCondition(GuardSettings(scope), 0).update(100.0, 50.0, vms, feedback).young


def test_young_vm_will_use_what_its_class_does() -> None:
    # Class of 4 cores: half of the size, 2 cores; the VM uses 0.5. Young for 24 / 4 = 6 slices.
    feedback = ResourceFeedback(mean=(1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0))

    def one(age: float, used: float = 0.5, size: float = 4.0, scope: int = 24) -> float:
        return young(figures([size], ages=[age], used=[used]), scope, feedback)

    assert [one(age) for age in (0.0, 3.0, 6.0, 100.0)] == pytest.approx([1.5, 0.75, 0.0, 0.0])
    assert one(6.0, scope=48) == pytest.approx(0.75)
    assert one(3.0, used=3.0) == 0.0  # more than usual
    assert one(0.0, used=math.nan) == pytest.approx(2.0)
    assert one(0.0, size=math.nan) == one(0.0, size=0.0) == 0.0


def test_young_vms_add_up_and_deleted_ones_do_not_count() -> None:
    vms = figures([4, 2, 8, 16], ages=[3, 3, 3, 50], used=[1, 1, 1, 1], alive=[True, True, False, True])
    # Nothing known: half of 4 - 1 and of 2 - 1.
    assert young(vms) == pytest.approx(0.5 * (3 + 1))
    assert young(NO_VMS) == 0.0


def test_restored_condition_continues() -> None:
    whole, restored = (NodeCondition(GuardSettings(24), phase) for phase in (3, 0))
    updates(whole, [50.0, 100.0, 50.0])
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(whole.state())))
    assert updates(restored, [50.0] * 20) == updates(whole, [50.0] * 20)
    with pytest.raises(KeyError, match="recovery"):
        restored.restore({"count": 1, "reserve": 0.0})


# --- properties ---------------------------------------------------------------------------------------

shares = st.floats(0, 1)
node_states = st.builds(
    NodeState,
    config=st.just(100.0),
    peak=st.floats(0, 120),
    young=st.floats(0, 50),
    fleet_reserve=st.floats(0, 0.2),
    node_reserve=st.floats(0, 0.2),
    recovering=st.booleans(),
    largest=st.floats(0, 64),
    in_turn=st.booleans(),
    ramp=st.floats(0.001, 1),
)


def check_limits(free: float, published: float, closed: bool, limits: dict[str, float]) -> None:
    """The figures decrease in the order of the guards down to the published one."""
    order = (HORIZON, *GUARDS)
    assert [order.index(name) for name in limits] == sorted(order.index(name) for name in limits)
    assert all(after < before for before, after in pairwise([free, *limits.values()]))
    last = [free, *limits.values()][-1]
    assert published == pytest.approx(max(last, 0.0), abs=1e-6)
    assert closed == (last < 0)
    if closed:
        assert published == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), node_states), min_size=1, max_size=8), st.integers(0, 4))
def test_guards_only_lower_a_figure(slices: list[tuple[float, NodeState]], horizon: int) -> None:
    guards = FigureGuards(horizon)
    for free, state in slices:
        result = guards.update(free, state, 0.0)
        assert 0.0 <= result.free <= max(free, 0.0)
        assert result.free <= max(state.config - state.peak, 0.0)
        check_limits(free, result.free, result.closed, dict(result.limits))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 100), node_states, st.floats(0, 10))
def test_more_reserve_never_publishes_more(free: float, state: NodeState, more: float) -> None:
    # Where a part is offered; the rule for the largest VM is a matter of place, not of caution.
    state = replace(state, largest=0.0)
    bare = FigureGuards(1).update(free, state, 0.0).free
    for name, step in (("young", more), ("peak", more), ("fleet_reserve", more / 100), ("node_reserve", more / 100)):
        cautious = replace(state, **{name: getattr(state, name) + step})
        assert FigureGuards(1).update(free, cautious, 0.0).free <= bare + 1e-9
    assert FigureGuards(1).update(free, replace(state, recovering=True), 0.0).free == 0.0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1.5, 10), st.floats(0, 32), shares, st.booleans())
def test_published_figures_of_a_node_are_within_the_bare_ones(
    seed: int, level: float, largest: float, share: float, own_fleet: bool
) -> None:
    known = ResourceFeedback((share,) * SIZE_CLASSES, (share**2,) * SIZE_CLASSES, level, largest)
    feedback = None if own_fleet else Feedback(known, known)
    model = NodeModel(ModelSettings(1, STRATEGIES, positions=3, guarded=True), NEVER_STABLE, phase=seed)
    for finished in odd_slices(seed, 20):
        result = model.update(finished, feedback)
        for resource in RESOURCES:
            config = finished.usage(resource).config
            for one in result.of(resource).by_strategy.values():
                if not finished.usage(resource).measured:
                    assert (one.published, one.closed, one.limits) == (0.0, False, {})
                    continue
                assert 0.0 <= one.published <= one.unguarded <= config
                # A threshold above the capacity is less than nothing free.
                bare = min(one.unguarded, config - one.tier0)
                check_limits(bare, one.published, one.closed, dict(one.limits))


@pytest.mark.parametrize("seed", range(3))
def test_guards_leave_the_bare_figures_of_most_strategies_as_they_are(seed: int) -> None:
    """Only conformal counts violations in another way."""
    names = ("clt", "rclike", "nsigma")
    with_guards, without = (
        NodeModel(ModelSettings(1, names, positions=3, guarded=on), NEVER_STABLE) for on in (True, False)
    )
    for finished in odd_slices(seed):
        one, other = with_guards.update(finished), without.update(finished)
        for resource in RESOURCES:
            for name in names:
                guarded_one, bare = one.of(resource).by_strategy[name], other.of(resource).by_strategy[name]
                assert repr(guarded_one.threshold) == repr(bare.threshold)
                assert guarded_one.unguarded == bare.unguarded == bare.published
                assert (bare.closed, bare.limits) == (False, {})


# --- a node, slice by slice ---------------------------------------------------------------------------

CALM = vm_usage([2, 2], [(4, [2, 2])])
FULL = vm_usage([10, 10], [(4, [4, 4])])
GAP = vm_usage([], [(4, [2, 2])])
#: VMs use half of their size, none of them is larger than nothing: the ramp offers a quarter.
HALF = Feedback(ResourceFeedback((0.5,) * SIZE_CLASSES), ResourceFeedback((0.5,) * SIZE_CLASSES))


def run(usages: Sequence[Usage], strategy: str = "nsigma", feedback: Feedback | None = HALF) -> list[Estimate]:
    model = NodeModel(ModelSettings(0, (strategy,), guarded=True), NEVER_STABLE, phase=1)
    results = [model.update(slice_of(k, usage), feedback) for k, usage in enumerate(usages)]
    return [result.cpu.by_strategy[strategy] for result in results]


def test_full_node_is_closed_and_opens_after_recovery_and_horizon() -> None:
    before, full, *after = run([*[CALM] * 10, FULL, *[CALM] * 30])[9:]
    # nsigma, h = 0: T = 2; a quarter of 8 is offered.
    assert (before.published, before.closed, dict(before.limits)) == (2.0, False, {"ramp": 2.0})
    assert (full.unguarded, full.published, full.closed, dict(full.limits)) == (0.0, 0.0, True, {"node": -1.0})
    # The least figure of 24 slices is 0 until the full slice has left; 12 of them are the recovery.
    assert [(one.published, one.closed) for one in after[:23]] == [(0.0, True)] * 23
    assert [list(one.limits) for one in after[:23]] == [[HORIZON, "node"]] * 23
    # Then 8 less the reserve of 0.015 * 10 cores, faded over 24 slices, times 1/4.
    left = 8 - 0.15 * (47 / 48) ** 24
    assert not after[23].closed
    assert dict(after[23].limits) == pytest.approx({"node": left, "ramp": left / 4})
    assert after[23].published == pytest.approx(left / 4, abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_node_of_its_own_fleet_opens_again(strategy: str) -> None:
    results = run([*[CALM] * 30, FULL, *[CALM] * 72], strategy, None)
    assert results[29].published > 0
    assert all(one.closed and one.published == 0.0 for one in results[30:42])
    assert not results[-1].closed
    assert results[-1].published > 0


def test_closed_node_offers_no_more_than_its_capacity() -> None:
    (full,) = run([FULL])
    assert full.closed
    assert (full.capacity(14.0, 10.0), full.capacity(4.0, 10.0)) == (10.0, 4.0)
    calm = run([CALM] * 10)[-1]
    assert calm.capacity(14.0, 10.0) == 16.0  # booked now + 2


def test_young_vm_lowers_the_published_figure() -> None:
    # Uses 0.5 of 4 cores where 2 are usual; age 1 of 6: 5/6 of 1.5 are kept. T = 0.5.
    first = run([vm_usage([0.5, 0.5], [(4, [0.5, 0.5])])])[0]
    assert dict(first.limits) == pytest.approx({"young": 9.5 - 1.25, "ramp": 8.25 / 4})


def test_node_without_vms_is_ramped_only() -> None:
    for strategy in STRATEGIES:
        last = run([vm_usage([0, 0])] * 3, strategy)[-1]
        assert (last.unguarded, last.published, last.closed) == (10.0, 2.5, False)
        assert dict(last.limits) == {"ramp": 2.5}


@pytest.mark.parametrize("own_fleet", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slice_without_samples_changes_only_what_follows(strategy: str, own_fleet: bool) -> None:
    model = NodeModel(ModelSettings(1, (strategy,), guarded=True), NEVER_STABLE)
    feedback = None if own_fleet else HALF
    for k, usage in enumerate([CALM, FULL, CALM]):
        model.update(slice_of(k, usage), feedback)
    before = msgspec.msgpack.decode(msgspec.msgpack.encode(model.state(0).node))
    for k in range(3, 6):
        result = model.update(slice_of(k, GAP), feedback)
        assert result.cpu.by_strategy[strategy].published == 0.0
        assert result.counts.cpu.nodes == 0.0
    after = msgspec.msgpack.decode(msgspec.msgpack.encode(model.state(0).node))
    assert before["cpu"].pop("measured") is before["mem"].pop("measured") is True
    assert after["cpu"].pop("measured") is after["mem"].pop("measured") is False
    # Level of the fleet, recovery and reserve, ages and moments of the VMs, figures of the horizon.
    assert repr(after) == repr(before)
    assert before["cpu"]["condition"]["recovery"] == 11
    assert before["cpu"]["moments"]["ages"] == [3.0]


def test_node_counts_for_its_fleet() -> None:
    model = NodeModel(ModelSettings(1, ("clt",), guarded=True), NEVER_STABLE)
    counts = model.update(slice_of(0, replace(CALM, vm_config=CALM.vm_config * 2)), HALF).counts
    assert (counts.cpu.nodes, counts.cpu.full, counts.cpu.largest) == (1.0, 0.0, 8.0)
    assert counts.cpu.shares[3] == 0.25
    assert model.update(slice_of(1, FULL), HALF).counts.mem.full == 1.0


# --- state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_fleet", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_guarded_figures_are_the_same_when_restarted_after_every_slice(seed: int, own_fleet: bool) -> None:
    """The state is encoded and decoded as in the checkpoints of the estimator."""
    parameters = ModelSettings(1, STRATEGIES, positions=3, guarded=True)
    whole = NodeModel(parameters, NEVER_STABLE, phase=seed)
    feedback = None if own_fleet else HALF
    stored: dict[int, bytes] = {}
    past: dict[int, list[Slice]] = defaultdict(list)
    node = b""
    lowered = closed = 0
    for finished in odd_slices(seed, 40):
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
        past[at].append(finished)
        lowered += len(result.cpu.by_strategy["clt"].limits)
        closed += result.cpu.by_strategy["clt"].closed
    assert lowered > closed > 0
