"""The contention of a slice, and the level on which a node acts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contention import (
    Contention,
    ContentionSettings,
    ContentionTracker,
    Level,
    Measured,
    describe,
    measure,
    measure_cpu,
    measure_memory,
)
from model.slices import CPU, MEMORY, Slice, Waits, padded
from tests.support.vm_slices import vm_usage

DEFAULTS = ContentionSettings()
NAN = math.nan


def waits_of(vms: Sequence[tuple[Sequence[float], Sequence[float] | float]] = (), **of_node: Sequence[float]) -> Waits:
    """Shares, and amounts or one amount, of each VM; samples of the node by field."""
    shares = [np.array(share, dtype=float) for share, _ in vms]
    amounts = [
        np.broadcast_to(np.array(amount, dtype=float), share.shape)
        for share, (_, amount) in zip(shares, vms, strict=True)
    ]
    return Waits(
        padded(shares), padded(amounts), {name: np.array(values, dtype=float) for name, values in of_node.items()}
    )


def cpu_contention(
    vms: Sequence[tuple[Sequence[float], Sequence[float] | float]] = (),
    *,
    sizes: Sequence[float] = (),
    node: Sequence[float] = (9.5,) * 10,
    config: float = 10.0,
    rules: ContentionSettings = DEFAULTS,
    **of_node: Sequence[float],
) -> Measured:
    """The CPU contention of a node of 10 cores, busy by default, with VMs a, b, c ... of 4 vCPUs."""
    names = "abcdefghijklmnopqrstuvwxyz"[: len(vms)] if len(vms) <= 26 else [f"vm{i:02}" for i in range(len(vms))]
    usage = vm_usage(node, [(size, []) for size in sizes or [4.0] * len(vms)], config)
    return measure_cpu(tuple(names), usage, waits_of(vms, **of_node), rules)


def varying(share: float, count: int = 10) -> tuple[list[float], list[float]]:
    """Share and wait of a VM that waits in a constant share of a run that varies between 1 and 2 cores."""
    run = np.linspace(1.0, 2.0, count)
    return [share] * count, (run * share / (1 - share)).tolist()


# --- CPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "level"),
    [
        (0.0, Level.NONE),
        (0.05, Level.NONE),
        (0.051, Level.SOME),
        (0.1, Level.SOME),
        (0.101, Level.HIGH),
        (1.0, Level.HIGH),
    ],
)
def test_level_is_that_of_the_share_in_which_a_vm_waits(share: float, level: Level) -> None:
    found = cpu_contention([([share] * 10, 1.0)]).contention
    assert found.level is level
    assert found.vms == ({"a": share} if level else {})
    assert (found.waiting, found.worst) == (int(level > 0), share if level else 0.0)


@pytest.mark.parametrize("count", [1, 4, 5, 9, 10, 11, 19, 20, 25, 30])
def test_more_than_a_tenth_of_the_samples_must_be_above_a_threshold(count: int) -> None:
    for above in range(count + 1):
        shares = [0.5] * above + [0.0] * (count - above)
        expected = Level.HIGH if above * 10 > count else Level.NONE
        assert cpu_contention([(shares, 1.0)]).contention.level is expected, (above, count)


def test_share_of_the_samples_is_a_setting() -> None:
    half = [0.5] * 5 + [0.0] * 5
    assert cpu_contention([(half, 1.0)], rules=ContentionSettings(samples=0.49)).contention.level is Level.HIGH
    assert cpu_contention([(half, 1.0)], rules=ContentionSettings(samples=0.5)).contention.level is Level.NONE
    # At the largest one a VM must wait in every sample.
    every = ContentionSettings(samples=0.99)
    assert cpu_contention([([0.5] * 9 + [0.0], 1.0)], rules=every).contention.level is Level.NONE
    assert cpu_contention([([0.5] * 10, 1.0)], rules=every).contention.level is Level.HIGH
    # At the smallest one sample suffices.
    any_one = ContentionSettings(samples=0.0)
    assert cpu_contention([([0.5] + [0.0] * 99, 1.0)], rules=any_one).contention.level is Level.HIGH


def test_thresholds_are_settings() -> None:
    rules = ContentionSettings(vm_some=0.2, vm_high=0.4)
    levels = [cpu_contention([([share] * 5, 1.0)], rules=rules).contention.level for share in (0.2, 0.21, 0.4, 0.41)]
    assert levels == [Level.NONE, Level.SOME, Level.SOME, Level.HIGH]


def test_figure_of_a_vm_is_what_more_than_a_tenth_of_its_samples_reach() -> None:
    # The largest but one of ten samples.
    found = cpu_contention([([0.9, 0.8, 0.7] + [0.0] * 7, 1.0)]).contention
    assert found.vms == {"a": 0.8}


def test_idle_vm_that_loses_less_than_one_percent_of_its_vcpus_does_not_wait() -> None:
    # One percent of 4 vCPUs is 0.04 cores.
    assert cpu_contention([([0.5] * 10, 0.039)]).contention == Contention()
    assert cpu_contention([([0.5] * 10, 0.04)]).contention.level is Level.HIGH
    # Sample by sample: the share of an idle one does not count.
    idle = [0.9] * 8 + [0.06] * 2
    assert cpu_contention([(idle, [0.01] * 8 + [1.0] * 2)]).contention.vms == {"a": 0.06}
    # A VM of unknown size has no such limit.
    assert cpu_contention([([0.5] * 10, 0.0)], sizes=[NAN]).contention.level is Level.HIGH


def test_share_counts_where_the_amount_is_unknown() -> None:
    assert cpu_contention([([0.5] * 10, NAN)]).contention.level is Level.HIGH
    assert cpu_contention([([0.5] * 10, [NAN] * 2 + [0.0] * 8)]).contention.vms == {"a": 0.5}
    # Whether it is at its quota is unknown, too.
    assert cpu_contention([([0.5] * 10, NAN)], node=CALM).contention.level is Level.HIGH


def test_missing_samples_do_not_count() -> None:
    # 2 of 10 known samples, of 40 in all.
    shares = [0.5] * 2 + [0.0] * 8 + [NAN] * 30
    assert cpu_contention([(shares, 1.0)]).contention.level is Level.HIGH
    assert cpu_contention([([NAN] * 4 + [0.5], 1.0)]).contention.level is Level.HIGH
    assert cpu_contention([([NAN] * 5 + [0.0], 1.0)]).contention.level is Level.NONE


def test_sources_are_the_vms_and_fields_with_samples() -> None:
    absent, unknown, known = ([], 1.0), ([NAN, NAN], 1.0), ([0.0, NAN], 1.0)
    assert cpu_contention([absent, unknown, known]).sources == {"c"}
    assert cpu_contention([absent, unknown]).sources == frozenset()
    assert cpu_contention([known], psi_cpu=[0.0]).sources == {"a", "psi_cpu"}
    assert cpu_contention([], psi_cpu=[NAN]).sources == frozenset()
    assert cpu_contention([]) == Measured()


def test_row_of_samples_beside_absent_vms_is_that_of_its_vm() -> None:
    waits = [([], 0.0), ([0.2] * 5, 1.0), ([NAN] * 9, 1.0), varying(0.3)]
    found = cpu_contention(waits).contention
    assert dict(found.vms) == pytest.approx({"d": 0.3, "b": 0.2})
    assert list(found.vms) == ["d", "b"]


def test_pressure_of_the_cpu_alone_is_some_never_high() -> None:
    levels = [cpu_contention([], psi_cpu=[psi] * 10).contention.level for psi in (0.2, 0.21, 1.0, 100.0)]
    assert levels == [Level.NONE, Level.SOME, Level.SOME, Level.SOME]
    assert cpu_contention([], psi_cpu=[0.4] * 10).contention == Contention(Level.SOME, pressure={"psi_cpu": 0.4})
    assert cpu_contention([], psi_cpu=[0.4] * 10, rules=ContentionSettings(psi_cpu=0.4)).contention.level is Level.NONE
    # One of ten samples is not more than a tenth.
    assert cpu_contention([], psi_cpu=[0.4] + [0.0] * 9).contention.level is Level.NONE
    both = cpu_contention([([0.5] * 10, 1.0)], psi_cpu=[0.4] * 10).contention
    assert (both.level, both.causes) == (Level.HIGH, {"a", "psi_cpu"})


def test_other_figures_of_the_node_do_not_show_a_lack_of_cpu() -> None:
    found = cpu_contention([], psi_memory=[1.0] * 5, swap_in=[1e6] * 5, oom_kills=[9.0] * 5)
    assert found == Measured()


@pytest.mark.parametrize(
    ("patterns", "listed"),
    [
        ((), "abc"),
        (("a",), "bc"),
        (("a", "c"), "b"),
        (("?",), ""),
        (("*",), ""),
        (("[ab]",), "c"),
        (("A", "aa", ""), "abc"),
    ],
)
def test_vms_of_capped_patterns_do_not_count(patterns: tuple[str, ...], listed: str) -> None:
    found = cpu_contention([varying(0.5)] * 3, rules=ContentionSettings(capped=patterns))
    assert list(found.contention.vms) == list(listed)
    assert found.contention.level is (Level.HIGH if listed else Level.NONE)
    assert found.sources == {"a", "b", "c"}, "they have figures"
    assert found.at_quota == {*"abc"} - {*listed}
    # Whether they wait or not.
    calm = cpu_contention([([0.0] * 10, 0.0)] * 3, rules=ContentionSettings(capped=patterns))
    assert calm.at_quota == found.at_quota


def test_worst_vms_are_listed_and_all_are_counted() -> None:
    found = cpu_contention([([0.06 + i / 100] * 5, 1.0) for i in range(26)]).contention
    assert (found.waiting, len(found.vms), list(found.vms)[:2], list(found.vms)[-1]) == (26, 20, ["z", "y"], "g")
    assert found.worst == pytest.approx(0.31)
    equal = cpu_contention([([0.2] * 5, 1.0)] * 26).contention
    assert "".join(equal.vms) == "abcdefghijklmnopqrst", "those of one share by name"


def test_level_is_high_when_the_vm_that_suffers_is_not_the_first() -> None:
    assert cpu_contention([([0.06] * 5, 1.0), ([0.2] * 5, 1.0)]).contention.level is Level.HIGH
    assert cpu_contention([([0.06] * 5, 1.0), ([0.07] * 5, 1.0)]).contention.level is Level.SOME


# --- a VM at its quota --------------------------------------------------------------------------------

CALM = (3.0,) * 10
#: Runs at 1 of 4 cores and waits for 3.
AT_QUOTA = ([0.75] * 10, [3.0] * 10)


def test_single_vm_at_a_constant_level_on_a_calm_node_is_at_its_quota() -> None:
    found = cpu_contention([AT_QUOTA], node=CALM)
    assert found == Measured(Contention(), frozenset("a"), at_quota=frozenset("a"))
    assert cpu_contention([AT_QUOTA]).at_quota == frozenset(), "on a busy node it waits for the node"


def test_it_waits_where_the_node_is_busy_or_its_use_is_unknown() -> None:
    # 99th percentile of the node: 0.9 of its cores.
    assert cpu_contention([AT_QUOTA], node=[9.0] * 10).contention.level is Level.HIGH
    assert cpu_contention([AT_QUOTA], node=[8.99] * 10).contention.level is Level.NONE
    assert cpu_contention([AT_QUOTA], node=[0.0] * 9 + [10.0]).contention.level is Level.HIGH
    assert cpu_contention([AT_QUOTA], node=[0.0] * 199 + [10.0]).contention.level is Level.NONE
    assert cpu_contention([AT_QUOTA], node=[]).contention.level is Level.HIGH
    assert cpu_contention([AT_QUOTA], node=CALM, config=NAN).contention.level is Level.HIGH


def test_two_such_vms_wait_for_each_other() -> None:
    found = cpu_contention([AT_QUOTA, AT_QUOTA], node=CALM).contention
    assert (found.level, found.waiting, found.calm) == (Level.HIGH, 2, True)


def test_second_vm_that_is_capped_or_does_not_wait_leaves_one_at_its_quota() -> None:
    idle = ([0.0] * 10, 0.0)
    assert cpu_contention([AT_QUOTA, idle], node=CALM).contention == Contention()
    assert (
        cpu_contention([AT_QUOTA, AT_QUOTA], node=CALM, rules=ContentionSettings(capped=("b",))).contention
        == Contention()
    )


def test_vm_whose_level_varies_is_not_at_its_quota() -> None:
    shares, waits = varying(0.5)
    assert cpu_contention([(shares, waits)], node=CALM).contention.level is Level.HIGH
    # Within 5 % of the mean level it is constant: 1 core and 4.9 % more; 5.2 % more.
    for more, level in ((0.049, Level.NONE), (0.052, Level.HIGH)):
        runs = [1.0, 1.0 + more] * 5
        assert cpu_contention([([0.5] * 10, runs)], node=CALM).contention.level is level, more


def test_vm_that_runs_at_its_size_is_not_at_a_quota_below_it() -> None:
    # 98 % of 4 cores are 3.92.
    for run, level in ((3.9, Level.NONE), (3.93, Level.HIGH)):
        assert cpu_contention([([0.5] * 10, run)], node=CALM).contention.level is level
    assert cpu_contention([AT_QUOTA], node=CALM, sizes=[NAN]).contention.level is Level.HIGH


def test_only_samples_in_which_it_waits_show_the_level() -> None:
    # Idle in between, at 1 core whenever it waits.
    shares, waits = [0.75, 0.0] * 10, [3.0, 0.0] * 10
    assert cpu_contention([(shares, waits)], node=CALM).contention == Contention()
    # Three such samples are too few to tell.
    assert cpu_contention([([0.75] * 3 + [0.0] * 3, 3.0)], node=CALM).contention.level is Level.HIGH
    assert cpu_contention([([0.75] * 4 + [0.0] * 3, 3.0)], node=CALM).contention.level is Level.NONE


def test_idle_moments_do_not_show_the_level() -> None:
    # An idle VM that runs 0.02 cores and waits as long loses less than 1 % of its vCPUs.
    shares, waits = [0.75, 0.5] * 10, [3.0, 0.02] * 10
    assert cpu_contention([(shares, waits)], node=CALM).contention == Contention()


def test_vm_that_does_not_run_at_all_is_not_at_a_quota() -> None:
    found = cpu_contention([([1.0] * 10, 4.0)], node=CALM).contention
    assert (found.level, found.vms, found.calm) == (Level.HIGH, {"a": 1.0}, True)


def test_vm_that_is_at_its_quota_does_not_hide_the_pressure_of_the_node() -> None:
    found = cpu_contention([AT_QUOTA], node=CALM, psi_cpu=[0.5] * 10).contention
    assert found == Contention(Level.SOME, pressure={"psi_cpu": 0.5})


def test_node_is_calm_when_vms_wait_although_it_has_cpu_left() -> None:
    assert cpu_contention([varying(0.5)], node=CALM).contention.calm
    assert not cpu_contention([varying(0.5)]).contention.calm
    assert not cpu_contention([], node=CALM).contention.calm
    assert not cpu_contention([], node=CALM, psi_cpu=[0.5] * 9).contention.calm, "no VM waits"


# --- memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [("psi_memory", (0.01, 0.011, 0.05, 0.051)), ("swap_in", (10.0, 11.0, 100.0, 101.0))],
)
def test_stalled_or_swapping_node_lacks_memory(field: str, values: Sequence[float]) -> None:
    found = [measure_memory(waits_of(**{field: [value] * 10}), DEFAULTS) for value in values]
    assert [one.contention.level for one in found] == [Level.NONE, Level.SOME, Level.SOME, Level.HIGH]
    assert [one.contention.pressure for one in found] == [{}, *({field: value} for value in values[1:])]
    assert {one.sources for one in found} == {frozenset([field])}
    rules = ContentionSettings(psi_memory=0.5, swap_in=1000.0)
    assert measure_memory(waits_of(**{field: [values[-1]] * 10}), rules).contention.level is not Level.HIGH
    # In more than a tenth of the samples.
    rarely = waits_of(**{field: [1e6] + [0.0] * 9})
    assert measure_memory(rarely, DEFAULTS) == Measured(Contention(), frozenset([field]))


def test_killed_process_is_high_even_in_a_single_sample() -> None:
    found = measure_memory(waits_of(oom_kills=[0.0] * 50 + [1.0] + [NAN, 2.0]), DEFAULTS)
    assert found == Measured(Contention(Level.HIGH, pressure={"oom_kills": 3.0}), frozenset(["oom_kills"]))
    none = measure_memory(waits_of(oom_kills=[0.0] * 50), DEFAULTS)
    assert none == Measured(Contention(), frozenset(["oom_kills"]))


def test_largest_level_of_the_figures_counts() -> None:
    swaps = waits_of(psi_memory=[0.5] * 5, swap_in=[20.0] * 5, oom_kills=[0.0])
    found = measure_memory(swaps, DEFAULTS).contention
    assert (found.level, found.pressure) == (Level.HIGH, {"psi_memory": 0.5, "swap_in": 20.0})
    assert measure_memory(waits_of(psi_memory=[0.02] * 5, swap_in=[0.0] * 5), DEFAULTS).contention.level is Level.SOME


def test_figures_that_are_missing_show_nothing() -> None:
    assert measure_memory(waits_of(), DEFAULTS) == Measured()
    unknown = waits_of(psi_memory=[NAN], swap_in=[], oom_kills=[NAN, NAN])
    assert measure_memory(unknown, DEFAULTS) == Measured()
    assert measure_memory(waits_of([([0.9] * 5, 1.0)], psi_cpu=[1.0] * 5), DEFAULTS) == Measured()


def test_each_resource_is_measured_by_its_own_figures() -> None:
    usage = vm_usage([9.5] * 5, [(4, [])])
    finished = Slice(60.0, 0, ("a",), usage, usage, waits_of([([0.5] * 5, 1.0)], oom_kills=[1.0]))
    assert measure(CPU, finished, DEFAULTS).contention.causes == {"a"}
    assert measure(MEMORY, finished, DEFAULTS).contention.causes == {"oom_kills"}
    without = Slice(60.0, 0, ("a",), usage, usage)
    assert measure(CPU, without, DEFAULTS) == measure(MEMORY, without, DEFAULTS) == Measured()


# --- the level on which a node acts -------------------------------------------------------------------

NONE, SOME, HIGH = Level.NONE, Level.SOME, Level.HIGH


def measured(level: Level, causes: str = "a", known: str | None = "ab") -> Measured:
    """A slice in which some VMs wait, and in which there are figures of the known VMs."""
    contention = Contention(level, dict.fromkeys(causes, 0.07 if level is SOME else 0.5) if level else {})
    return Measured(contention, frozenset(known or ""))


UNKNOWN = Measured()


def play(
    slices: Sequence[Measured | Level], scope: int = 24, rules: ContentionSettings = DEFAULTS, vms: str = "ab"
) -> list[Level]:
    tracker = ContentionTracker(rules, scope)
    return [tracker.update(measured(one) if isinstance(one, Level) else one, vms) for one in slices]


def test_high_acts_at_once_and_fades_over_some() -> None:
    assert play([NONE, HIGH, NONE, NONE, NONE]) == [NONE, HIGH, SOME, NONE, NONE]
    assert play([HIGH, HIGH, SOME, NONE, SOME, NONE, NONE]) == [HIGH, HIGH, SOME, SOME, SOME, SOME, NONE]


def test_some_acts_when_it_persists() -> None:
    assert play([SOME, NONE, NONE, NONE, SOME]) == [NONE] * 5
    # The second of four slices.
    assert play([SOME, SOME]) == [NONE, SOME]
    assert play([SOME, NONE, NONE, SOME]) == [NONE, NONE, NONE, SOME]


def test_some_ends_after_as_many_slices_without_it() -> None:
    assert play([SOME, SOME, NONE, NONE]) == [NONE, SOME, SOME, NONE]
    assert play([SOME, SOME, NONE, SOME, NONE, NONE]) == [NONE, SOME, SOME, SOME, SOME, NONE]


def test_slices_and_window_are_settings() -> None:
    rules = ContentionSettings(slices=3, window=3)
    assert play([SOME, SOME, SOME, NONE, NONE, NONE], rules=rules) == [NONE, NONE, SOME, SOME, SOME, NONE]
    assert play([SOME, SOME, NONE, SOME, SOME, SOME], rules=rules) == [NONE] * 5 + [SOME]
    at_once = ContentionSettings(slices=1, window=1)
    assert play([SOME, NONE, HIGH, NONE], rules=at_once) == [SOME, NONE, HIGH, NONE]


def test_slices_before_the_end_of_contention_count_for_the_next() -> None:
    """Contention that comes and goes is not new each time."""
    assert play([HIGH, NONE, NONE, SOME]) == [HIGH, SOME, NONE, SOME]


def test_unknown_figures_keep_the_level_for_a_scope() -> None:
    assert play([HIGH, *[UNKNOWN] * 24]) == [HIGH] * 25
    # Then they are slices without contention.
    assert play([HIGH, *[UNKNOWN] * 26]) == [*[HIGH] * 25, SOME, SOME]
    assert play([HIGH, *[UNKNOWN] * 50])[-1] is NONE
    assert play([HIGH, *[UNKNOWN] * 4], scope=3) == [*[HIGH] * 4, SOME]
    assert play([SOME, SOME, UNKNOWN, NONE, UNKNOWN, NONE]) == [NONE, SOME, SOME, SOME, SOME, NONE]


def test_unknown_figures_begin_nothing() -> None:
    assert play([UNKNOWN] * 5) == [NONE] * 5
    # Nor are they slices without contention.
    assert play([SOME, *[UNKNOWN] * 9, SOME]) == [NONE] * 10 + [SOME]


def test_level_stays_while_the_vm_that_waited_has_no_figures() -> None:
    only_b = measured(NONE, known="b")
    assert play([HIGH, only_b, only_b, only_b]) == [HIGH] * 4
    assert play([SOME, SOME, only_b, only_b, only_b]) == [NONE, *[SOME] * 4]
    # Figures of the one that waited end it, whatever is unknown of the others.
    only_a = measured(NONE, known="a")
    assert play([HIGH, only_a, only_a]) == [HIGH, SOME, NONE]
    # Those of another VM that waits do not hide it.
    assert play([HIGH, measured(SOME, "b", "b"), only_b, only_b, only_b]) == [HIGH, SOME, SOME, SOME, SOME]


def test_vm_that_left_is_no_cause() -> None:
    tracker = ContentionTracker(DEFAULTS, 24)
    only_b = measured(NONE, known="b")
    assert [tracker.update(measured(HIGH), "ab"), tracker.update(only_b, "ab")] == [HIGH, HIGH]
    assert [tracker.update(only_b, "b"), tracker.update(only_b, "b")] == [SOME, NONE]
    # All of them left, but nothing is known of the others.
    assert play([HIGH, UNKNOWN, UNKNOWN], vms="b") == [HIGH] * 3


def test_cause_must_be_known_in_each_slice_without_contention() -> None:
    only_b = measured(NONE, known="b")
    assert play([HIGH, NONE, only_b, NONE]) == [HIGH, SOME, SOME, NONE]
    # Also one from before the contention counted.
    assert play([measured(SOME, "a"), measured(SOME, "b"), only_b, only_b, only_b]) == [NONE, *[SOME] * 4]


def test_figure_of_the_node_is_a_cause_that_does_not_leave() -> None:
    pressed = Measured(Contention(HIGH, pressure={"swap_in": 500.0}), frozenset(["swap_in", "psi_memory"]))
    without = Measured(Contention(), frozenset(["psi_memory"]))
    known = Measured(Contention(), frozenset(["swap_in"]))
    assert play([pressed, without, without]) == [HIGH, HIGH, HIGH]
    assert play([pressed, without, known, known]) == [HIGH, HIGH, SOME, NONE]


def test_causes_of_all_slices_of_the_contention_must_be_known() -> None:
    tracker = ContentionTracker(DEFAULTS, 24)
    tracker.update(measured(HIGH, "a"), "abc")
    tracker.update(measured(HIGH, "b"), "abc")
    assert tracker.causes == {"a", "b"}
    assert [tracker.update(measured(NONE, known="b"), "abc") for _ in range(3)] == [HIGH] * 3
    assert [tracker.update(measured(NONE, known="ab"), "abc") for _ in range(2)] == [SOME, NONE]
    assert tracker.causes == frozenset()


def test_known_figures_in_between_begin_the_scope_anew() -> None:
    unknown = [UNKNOWN] * 20
    assert play([HIGH, *unknown, HIGH, *unknown, NONE]) == [*[HIGH] * 42, SOME]


def test_level_is_at_most_that_of_the_slices() -> None:
    """Of all sequences of five slices: never above the largest level so far, ``high`` in each slice that is."""
    for levels in product(Level, repeat=5):
        acted = play(levels)
        for k, level in enumerate(levels):
            assert acted[k] <= max(levels[: k + 1])
            assert (acted[k] is HIGH) == (level is HIGH)
            # Contention that acts ends only after two slices without it.
            if k and acted[k - 1] > NONE and acted[k] is NONE:
                assert levels[k - 1 : k + 1] == (NONE, NONE)


slices_of = st.lists(
    st.tuples(
        st.sampled_from(Level),
        st.sets(st.sampled_from("ab"), min_size=1),
        st.sets(st.sampled_from("abc")),
        st.sampled_from(["ab", "a", "abc"]),
    ),
    min_size=1,
    max_size=12,
)


def updated(tracker: ContentionTracker, one: tuple[Level, set[str], set[str], str]) -> Level:
    level, causes, known, vms = one
    sources = known | causes if level else known
    return tracker.update(measured(level, "".join(sorted(causes)), "".join(sorted(sources))), vms)


@settings(max_examples=100, deadline=None)
@given(slices_of, st.integers(1, 3), st.integers(0, 2), st.integers(1, 5))
def test_restored_tracker_continues_at_every_point(
    slices: list[tuple[Level, set[str], set[str], str]], needed: int, more: int, scope: int
) -> None:
    rules = ContentionSettings(slices=needed, window=needed + more)
    whole = ContentionTracker(rules, scope)
    restarted = ContentionTracker(rules, scope)
    for one in slices:
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state()))
        restarted = ContentionTracker(rules, scope)
        restarted.restore(state)
        assert updated(restarted, one) is updated(whole, one)
        assert restarted.state() == whole.state()


@settings(max_examples=100, deadline=None)
@given(slices_of)
def test_missing_figures_never_end_contention_earlier(slices: list[tuple[Level, set[str], set[str], str]]) -> None:
    """Of the slices after ``high``, some have no figures: the level is never below that with a calm slice instead."""
    lacking, calm = ContentionTracker(DEFAULTS, 24), ContentionTracker(DEFAULTS, 24)
    assert lacking.update(measured(HIGH), "ab") is calm.update(measured(HIGH), "ab") is HIGH
    for level, causes, known, _ in slices:
        full = measured(level, "".join(sorted(causes)), "abc")
        got = lacking.update(full if level else measured(NONE, known="".join(sorted(known))), "abc")
        assert got >= calm.update(full, "abc")


def test_state_is_small_and_a_fresh_tracker_has_one() -> None:
    tracker = ContentionTracker(DEFAULTS, 24)
    assert tracker.state() == {"level": 0, "causes": [], "recent": [], "calm": 0, "unknown": 0}
    for _ in range(50):
        tracker.update(measured(HIGH), "ab")
    assert tracker.state() == {"level": 2, "causes": ["a"], "recent": [True] * 4, "calm": 0, "unknown": 0}
    with pytest.raises(KeyError, match="causes"):
        ContentionTracker(DEFAULTS, 24).restore({"level": 0})


def test_causes_do_not_accumulate_without_contention() -> None:
    """VMs that waited once, at other times, are not waited for later."""
    tracker = ContentionTracker(DEFAULTS, 24)
    for level, vm in ((SOME, "a"), (NONE, ""), (SOME, "b"), (SOME, "b")):
        tracker.update(measured(level, vm or "a"), "ab")
    assert tracker.level is SOME
    assert tracker.causes == {"b"}


# --- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contention", "text"),
    [
        (Contention(), ""),
        (Contention(SOME, {"a": 0.061}, 1), "1 VM waits for CPU: a 6 %"),
        (
            Contention(HIGH, {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.1}, 30),
            "30 VMs wait for CPU: a 50 %, b 30 %, c 20 % and 27 more",
        ),
        (Contention(SOME, pressure={"psi_cpu": 0.25}), "tasks wait for CPU 25 % of the time"),
        (
            Contention(HIGH, pressure={"psi_memory": 0.07, "swap_in": 123.4, "oom_kills": 2.0}),
            "stalled for memory 7 % of the time; swaps in 123 pages/s; killed 2 processes for lack of memory",
        ),
        (
            Contention(HIGH, {"a": 0.5}, 1, {"psi_cpu": 0.3}),
            "1 VM waits for CPU: a 50 %; tasks wait for CPU 30 % of the time",
        ),
    ],
)
def test_text_names_what_waits(contention: Contention, text: str) -> None:
    assert describe(contention, 0.99) == text


def test_text_of_a_calm_node_says_how_much_it_is_used() -> None:
    contention = Contention(HIGH, {"a": 0.5}, 1, calm=True)
    hint = "check pinning, NUMA and hyperthreads"
    assert describe(contention, 0.414) == f"1 VM waits for CPU: a 50 %; the node uses 41 % of its CPU: {hint}"
    assert describe(contention, NAN) == f"1 VM waits for CPU: a 50 %; the node uses little of its CPU: {hint}"


def test_levels_are_ordered_and_have_texts() -> None:
    assert NONE < SOME < HIGH
    assert [level.text for level in Level] == ["none", "some", "high"]


# --- properties ---------------------------------------------------------------------------------------

odd = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.05, 0.1, 1.0, NAN]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.tuples(odd, odd), max_size=12), min_size=1, max_size=4),
    st.lists(odd, max_size=6),
    st.floats(0, 11),
)
def test_more_wait_or_fewer_known_vms_never_change_the_level_the_wrong_way(
    vms: list[list[tuple[float, float]]], psi: list[float], used: float
) -> None:
    rows = [([share for share, _ in row], [amount for _, amount in row]) for row in vms]
    # A busy node: a single VM at a constant level is no matter there.
    whole = cpu_contention(rows, node=[9.5] * 4, psi_cpu=psi)
    without: Mapping[str, Measured] = {
        name: cpu_contention([row if i != k else ([], []) for i, row in enumerate(rows)], node=[9.5] * 4, psi_cpu=psi)
        for k, name in enumerate("abcd"[: len(rows)])
    }
    for name, one in without.items():
        assert one.contention.level <= whole.contention.level
        assert one.sources == whole.sources - {name}
        assert {vm: share for vm, share in whole.contention.vms.items() if vm != name} == one.contention.vms
    worse = [
        ([share if math.isnan(share) else min(2 * share, 1.0) for share in shares], amounts) for shares, amounts in rows
    ]
    assert cpu_contention(worse, node=[9.5] * 4, psi_cpu=psi).contention.level >= whole.contention.level
    # Figures are shares, whatever the node uses.
    found = cpu_contention(rows, node=[used] * 4, psi_cpu=psi).contention
    assert all(DEFAULTS.vm_some < share <= 1.0 for share in found.vms.values())
    assert found.waiting == len(found.vms)
