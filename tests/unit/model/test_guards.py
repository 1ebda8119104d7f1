"""Each guard with its arithmetic; and what holds for all of them, with every strategy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.feedback import ResourceFeedback
from model.guards import GUARDS, FigureGuards, GuardSettings, NodeCondition, NodeState
from model.nodemodel import Estimate, ModelSettings, NodeEstimate, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.slices import CPU, RESOURCES, Slice, Usage
from model.vmmoments import VmFigures
from tests.unit.model.test_conformal import odd_slices

#: 64 cores, of which 20 are used; no guard has a reason to lower anything.
CALM = NodeState(
    config=64.0,
    peak=20.0,
    young=0.0,
    fleet_reserve=0.0,
    node_reserve=0.0,
    recovering=False,
    largest=16.0,
    in_turn=False,
    ramp=1.0,
)


def vms(*rows: tuple[float, float, float], alive: bool = True) -> VmFigures:
    """Size, age and usage of each VM."""
    config, ages, used = np.array(rows, dtype=float).reshape(-1, 3).T
    zeros = np.zeros(config.size)
    return VmFigures(np.full(config.size, alive), config, ages, used, zeros, zeros, used)


# --- the guards one by one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "state", "free", "left"),
    [
        ("usage", replace(CALM, peak=60.0), 10.0, 4.0),  # 64 - 60
        ("usage", replace(CALM, peak=50.0), 10.0, 10.0),
        ("young", replace(CALM, young=3.0), 10.0, 7.0),
        ("young", replace(CALM, young=13.0), 10.0, -3.0),
        ("fleet", replace(CALM, fleet_reserve=0.05), 10.0, 6.8),  # 10 - 0.05 x 64
        ("node", replace(CALM, node_reserve=0.1), 10.0, 3.6),  # 10 - 0.1 x 64
        ("node", replace(CALM, recovering=True), 10.0, -1.0),
        ("node", replace(CALM, recovering=True, node_reserve=0.2), 10.0, 10 - 12.8),  # less than the node is closed by
        ("ramp", replace(CALM, ramp=0.25), 10.0, 2.5),
        ("ramp", replace(CALM, ramp=0.25, in_turn=True), 10.0, 10.0),  # all of it, for a VM of up to 16
        ("ramp", replace(CALM, ramp=0.25, in_turn=True, largest=4.0), 10.0, 4.0),
        ("ramp", replace(CALM, ramp=0.25, in_turn=True, largest=1.0), 10.0, 2.5),  # never less than the ramp
        ("ramp", replace(CALM, ramp=0.25, in_turn=True), -3.0, -3.0),
    ],
)
def test_guard_leaves(guard: str, state: NodeState, free: float, left: float) -> None:
    assert GUARDS[guard](state, free) == pytest.approx(left)
    # The others have no reason to lower it.
    assert all(GUARDS[other](CALM, free) == free for other in GUARDS)
    figure = FigureGuards(24).update(free, state)
    assert figure.free == pytest.approx(max(left, 0.0))
    assert figure.closed == (left < 0)
    assert figure.limits == ({} if left == free else {guard: pytest.approx(left)})


def test_horizon_is_the_least_figure_of_a_scope() -> None:
    guards = FigureGuards(3)
    figures = [guards.update(free, CALM) for free in (10.0, 4.0, 9.0, 9.0, 9.0, 8.0)]
    assert [figure.free for figure in figures] == [10.0, 4.0, 4.0, 4.0, 9.0, 8.0]
    assert [figure.limits for figure in figures] == [{}, {}, {"horizon": 4.0}, {"horizon": 4.0}, {}, {}]


def test_horizon_remembers_that_less_than_nothing_was_free() -> None:
    guards = FigureGuards(2)
    figures = [guards.update(free, CALM) for free in (-2.0, 5.0, 5.0)]
    assert [(figure.free, figure.closed) for figure in figures] == [(0.0, True), (0.0, True), (5.0, False)]
    # What is published lowers no later figure: only what the strategy computes does.
    assert list(guards.past) == [5.0, 5.0]


def test_each_guard_gets_what_the_one_before_left() -> None:
    state = replace(CALM, peak=40.0, young=4.0, fleet_reserve=0.05, node_reserve=0.1, ramp=0.25)
    guards = FigureGuards(24)
    guards.update(30.0, CALM)
    figure = guards.update(50.0, state)
    # Horizon 30; usage 64 - 40; young -4; fleet -3.2; node -6.4; a quarter of the rest.
    left = {"horizon": 30.0, "usage": 24.0, "young": 20.0, "fleet": 16.8, "node": 10.4, "ramp": 2.6}
    assert list(figure.limits) == list(left)
    assert dict(figure.limits) == pytest.approx(left)
    assert figure.free == pytest.approx(2.6)
    assert not figure.closed


def test_nothing_free_is_not_closed_and_less_than_nothing_is() -> None:
    assert not FigureGuards(24).update(0.0, CALM).closed
    assert FigureGuards(24).update(-0.1, CALM).closed
    assert FigureGuards(24).update(-0.1, CALM).free == 0.0


amounts = st.floats(-1e3, 1e3)
shares = st.floats(0, 1)


@given(
    st.lists(amounts, min_size=1, max_size=8),
    st.builds(
        NodeState,
        config=st.floats(0, 1e3),
        peak=amounts,
        young=st.floats(0, 1e3),
        fleet_reserve=shares,
        node_reserve=shares,
        recovering=st.booleans(),
        largest=st.floats(0, 1e3),
        in_turn=st.booleans(),
        ramp=st.floats(0.01, 1),
    ),
)
def test_no_guard_raises_a_figure(frees: list[float], state: NodeState) -> None:
    guards = FigureGuards(4)
    for k, free in enumerate(frees):
        figure = guards.update(free, state)
        assert 0 <= figure.free <= max(0.0, free)
        assert figure.free <= max(0.0, min(frees[max(0, k - 3) : k + 1]))
        left = [free, *figure.limits.values()]
        assert all(later < earlier for earlier, later in itertools.pairwise(left))
        assert figure.free == max(0.0, left[-1])
        assert figure.closed == (left[-1] < 0)


# --- what a node remembers ------------------------------------------------------------------------------


def test_scope_of_few_slices_counts_as_a_day_of_24() -> None:
    assert (GuardSettings(3).day, GuardSettings(24).day, GuardSettings(48).day) == (24, 24, 48)
    assert GuardSettings(3).ramp_of_slice == GuardSettings(24).ramp_of_slice == pytest.approx(0.25)
    # Two slices of half an hour offer as much as one of an hour: 1 - 0.75 = 1 - (1 - r)^2.
    assert (1 - GuardSettings(48).ramp_of_slice) ** 2 == pytest.approx(0.75)


def conditions(peaks: list[float], scope: int = 24, phase: int = 0) -> list[NodeState]:
    condition = NodeCondition(CPU, GuardSettings(scope), phase)
    return [condition.update(64.0, peak, vms(), ResourceFeedback()) for peak in peaks]


def test_full_node_recovers_for_half_a_scope() -> None:
    states = conditions([10.0, 64.0, *[10.0] * 13])
    assert [state.recovering for state in states] == [False, *[True] * 12, False, False]
    # 0.999 of 64 cores are full, 0.998 are not.
    assert [state.recovering for state in conditions([0.999 * 64])] == [True]
    assert [state.recovering for state in conditions([0.998 * 64])] == [False]
    assert sum(state.recovering for state in conditions([64.0, *[10.0] * 40], scope=48)) == 24


def test_reserve_of_a_node_grows_with_each_full_slice_and_fades_within_two_scopes() -> None:
    states = conditions([64.0, 64.0, 10.0])
    # 0.015; then 0.015 (1 - 1/48) + 0.015; then it only fades.
    second = 0.015 * 47 / 48 + 0.015
    assert [state.node_reserve for state in states] == pytest.approx([0.015, second, second * 47 / 48])
    assert max(state.node_reserve for state in conditions([64.0] * 100)) == 0.2
    assert conditions([*[64.0] * 100, *[10.0] * 48])[-1].node_reserve == pytest.approx(0.2 * (47 / 48) ** 48)


@pytest.mark.parametrize(("phase", "turns"), [(0, [7, 15]), (1, [6, 14]), (7, [0, 8])])
def test_nodes_take_turns_in_offering_all(phase: int, turns: list[int]) -> None:
    states = conditions([10.0] * 16, phase=phase)
    assert [k for k, state in enumerate(states) if state.in_turn] == turns


@pytest.mark.parametrize(("level", "reserve"), [(-1.0, 0.0), (0.0, 0.0), (1.5, 0.03), (10.0, 0.2)])
def test_fleet_that_is_full_too_often_keeps_more_back(level: float, reserve: float) -> None:
    state = NodeCondition(CPU, GuardSettings(), 0).update(64.0, 10.0, vms(), ResourceFeedback(level=level, largest=8.0))
    assert state.fleet_reserve == pytest.approx(reserve)
    assert state.largest == 8.0


HALF = ResourceFeedback(mean=(0.5,) * 8)


@pytest.mark.parametrize(
    ("figures", "feedback", "young"),
    [
        # A VM of 4 cores is young for 6 slices. Age 3: half of it is missing, of the 0.5 x 4 - 1 that it lacks.
        (vms((4.0, 3.0, 1.0)), HALF, 0.5),
        (vms((4.0, 0.0, 1.0)), HALF, 1.0),
        (vms((4.0, 6.0, 1.0)), HALF, 0.0),
        (vms((4.0, 3.0, 3.0)), HALF, 0.0),  # it uses more than others of its size
        (vms((4.0, 3.0, 1.0)), ResourceFeedback(), 1.5),  # nothing is known of the fleet: it may use all of 4
        (vms((4.0, 3.0, 1.0), (8.0, 0.0, math.nan)), HALF, 0.5 + 4.0),  # without samples: all of 0.5 x 8
        (vms((math.nan, 0.0, 1.0)), HALF, 0.0),  # a VM of unknown size
        (vms((4.0, 0.0, 1.0), alive=False), HALF, 0.0),  # it has left
        (vms(), HALF, 0.0),
    ],
)
def test_young_vms_count_with_what_those_of_their_size_use(
    figures: VmFigures, feedback: ResourceFeedback, young: float
) -> None:
    assert NodeCondition(CPU, GuardSettings(), 0).update(64.0, 10.0, figures, feedback).young == pytest.approx(young)


def test_condition_continues_from_its_state() -> None:
    whole = NodeCondition(CPU, GuardSettings(), 3)
    for k in range(40):
        restarted = NodeCondition(CPU, GuardSettings(), 3)
        restarted.restore(msgspec.json.decode(msgspec.json.encode(whole.state())))
        peak = 64.0 if k % 9 == 0 else 30.0
        assert restarted.update(64.0, peak, vms(), HALF) == whole.update(64.0, peak, vms(), HALF)


# --- in the model of a node -----------------------------------------------------------------------------

NAMES = tuple(STRATEGIES)


def figures_of(estimate: NodeEstimate) -> Iterator[tuple[str, str, Estimate]]:
    for resource in RESOURCES:
        for name, one in estimate.of(resource).by_strategy.items():
            yield resource.name, name, one


@pytest.mark.parametrize("seed", range(3))
def test_guarded_figure_is_never_above_the_bare_one_nor_the_capacity_nor_negative(seed: int) -> None:
    guarded = NodeModel(ModelSettings(1, NAMES, positions=3, guarded=True))
    bare = NodeModel(ModelSettings(1, NAMES, positions=3))
    lowered = set()
    for finished in odd_slices(seed):
        pairs = zip(figures_of(guarded.update(finished)), figures_of(bare.update(finished)), strict=True)
        for (resource, name, one), (_, _, plain) in pairs:
            usage: Usage = getattr(finished, resource)
            assert 0 <= one.published <= one.unguarded + 1e-6
            assert one.published <= (usage.config if usage.measured else 0.0)
            assert plain.unguarded == plain.published
            assert not plain.closed
            assert not plain.limits
            if name != "conformal":  # which counts full slices with guards: its own forecast is another
                assert one.unguarded == plain.published
            assert 0 <= one.capacity(usage.booked_now, usage.config) <= usage.booked_now + usage.config or math.isnan(
                usage.config
            )
            if one.closed:
                assert one.published == 0.0
            if one.published < one.unguarded:
                assert one.limits or one.closed
                lowered.add(name)
    assert len(lowered) > len(NAMES) / 2


@pytest.mark.parametrize("seed", range(2))
def test_guarded_estimates_are_the_same_when_restarted_after_every_slice(seed: int) -> None:
    """The state is encoded and decoded as in the checkpoints of the estimator."""
    settings = ModelSettings(1, ("clt", "conformal", "nsigma"), positions=3, guarded=True)
    whole = NodeModel(settings)
    stored: dict[int, tuple[bytes, list[Slice]]] = {}
    node = b""
    for finished in odd_slices(seed):
        restarted = NodeModel(settings)
        own, past = stored.get(finished.position, (msgspec.msgpack.encode({}), []))
        state = restarted.state(finished.position)
        if node:
            position = msgspec.msgpack.decode(own, strict=False)
            state = replace(state, node=msgspec.msgpack.decode(node), position=position)
            restarted.restore(state, finished.position, past)
        assert repr(restarted.update(finished)) == repr(whole.update(finished))
        state = restarted.state(finished.position)
        node = msgspec.msgpack.encode(state.node)
        stored[finished.position] = (msgspec.msgpack.encode(state.position), [*past, finished][-2:])


def measured(k: int, level: float) -> Slice:
    usage = Usage(16.0, np.full(5, level), np.array([4.0, 8.0]), np.full((2, 5), level / 3))
    return Slice(60.0 * (k + 1), k % 3, ("a", "b"), usage, usage)


def unmeasured(k: int) -> Slice:
    usage = Usage(16.0, np.empty(0), np.array([4.0]), np.empty((1, 0)))
    return Slice(60.0 * (k + 1), k % 3, ("a",), usage, usage)


def test_slice_without_samples_publishes_nothing_and_changes_nothing_that_guards_remember() -> None:
    levels = [2.0, 16.0, *[3.0] * 30]
    without, with_gaps = (NodeModel(ModelSettings(1, ("borg",), positions=1, guarded=True)) for _ in range(2))
    number = 0
    for k, level in enumerate(levels):
        one = without.update(measured(k, level)).cpu.by_strategy["borg"]
        other = with_gaps.update(measured(number, level)).cpu.by_strategy["borg"]
        number += 1
        # A slice that follows a gap has no figure to compare with; NaN does not equal itself.
        unequal = dict.fromkeys(("risk", "forecast_violation_rate", "violation_rate", "violated"), 0.0)
        assert replace(other, **unequal) == replace(one, **unequal)
        if k % 4 == 1:
            nothing = with_gaps.update(unmeasured(number)).cpu.by_strategy["borg"]
            number += 1
            assert (nothing.published, nothing.unguarded, nothing.limits) == (0.0, 0.0, {})
            assert math.isnan(nothing.violated)


def test_capacity_of_a_closed_node_is_what_is_booked_now_and_at_most_what_it_has() -> None:
    estimate = Estimate(1.0, 1.0, 0.0, 0.0, published=3.0)
    assert estimate.capacity(20.0, 16.0) == 23.0
    closed = replace(estimate, published=0.0, closed=True)
    assert [closed.capacity(booked, 16.0) for booked in (20.0, 16.0, 9.0)] == [16.0, 16.0, 9.0]
