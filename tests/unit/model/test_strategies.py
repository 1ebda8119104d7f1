"""Each strategy, with its arithmetic; and the checks of every strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model.estimates import Estimate
from model.nodemodel import ModelSettings, NodeModel
from model.numerics import FloatArray
from model.oversubscriptioncomputation import STRATEGIES, StrategySettings
from model.slices import CPU, MEMORY, Slice, Usage
from model.stability import StabilityDetector, always, mean_predictor, never

DESIGNED = {"percentile", "doa", "greedy", "scroogevm", "nsigma", "rclike", "borg", "maxpeak"}


def usage(node: Sequence[float], config: float = 10.0, vms: Sequence[tuple[float, Sequence[float]]] = ()) -> Usage:
    return Usage(
        config=config,
        node=np.array(node, dtype=float),
        vm_config=np.array([allocation for allocation, _ in vms], dtype=float),
        vm_usage=np.array([samples for _, samples in vms], dtype=float).reshape(len(vms), len(vms[0][1]) if vms else 0),
    )


def a_slice(k: int, cpu: Usage, mem: Usage | None = None, *, positions: int = 1) -> Slice:
    names = tuple(f"vm{i}" for i in range(cpu.vm_config.size))
    return Slice(1800.0 * (k + 1), k % positions, names, cpu, mem or cpu)


def estimates(
    name: str,
    slices: Sequence[Slice],
    *,
    h: int = 1,
    stability: StabilityDetector = never,
    percentile: float = 90.0,
    aggregation: int = 1,
) -> list[tuple[Estimate, Estimate]]:
    parameters = StrategySettings(percentile, aggregation)
    model = NodeModel(ModelSettings(h, (name,), parameters, parameters), {"cpu": stability, "mem": stability})
    results = [model.update(finished) for finished in slices]
    return [(result.cpu.by_strategy[name], result.mem.by_strategy[name]) for result in results]


def thresholds(name: str, usages: Sequence[Usage], **how: Any) -> list[float]:
    slices = [a_slice(k, cpu) for k, cpu in enumerate(usages)]
    return [cpu.threshold for cpu, _ in estimates(name, slices, **how)]


def test_every_designed_strategy_is_there() -> None:
    assert set(STRATEGIES) >= DESIGNED


def test_percentile_pools_the_window() -> None:
    # 50th percentile of [1 2 3], then of [1 2 3 4 5], then, with h = 1, of [4 5 6].
    how = {"percentile": 50.0}
    assert thresholds("percentile", [usage([1, 2, 3]), usage([4, 5]), usage([6])], **how) == [2.0, 3.0, 5.0]


def test_nsigma_is_mean_and_five_population_deviations() -> None:
    # mean 2, std sqrt((1 + 1) / 2) = 1.
    assert thresholds("nsigma", [usage([1, 3])]) == [7.0]


def test_borg_is_booked_over_one_point_one() -> None:
    assert thresholds("borg", [usage([1], vms=[(4, [1]), (7, [1])])]) == [pytest.approx(10.0)]


def test_doa_starts_at_booked_and_steps_down_after_calm_slices() -> None:
    # config 40: a step down is round(40 / 20) = 2, one up is 20; 0.95 x 40 = 38.
    calm, full = usage([1], 40, [(30, [1])]), usage([38], 40, [(30, [1])])
    assert thresholds("doa", [calm, calm, full, calm]) == [28.0, 26.0, 46.0, 44.0]


def test_doa_does_not_sink_below_twice_the_node() -> None:
    assert thresholds("doa", [usage([0], 2, [(1, [0])])] * 3)[-1] == pytest.approx(1.0)  # round(2 / 20) = 0: no step
    assert min(thresholds("doa", [usage([0], 20, [(1, [0])])] * 60)) == -40.0


def test_doa_aggregates_samples() -> None:
    # [40 0] averages to 20 in pairs: calm, though one sample is full.
    assert thresholds("doa", [usage([40, 0], 40, [(30, [1])])], aggregation=2) == [28.0]


def test_greedy_adds_half_of_what_was_booked_and_follows_when_stable() -> None:
    # First: P = 2, dB = 4, T = 2 + 4 / 2. Then dB = 0 and dP = 2 - 4 < 0: unstable, T stays; stable, T = P.
    same = usage([2, 2], vms=[(4, [1, 1])])
    assert thresholds("greedy", [same, same, same, same], stability=never) == [4.0, 4.0, 4.0, 4.0]
    # Stable counts only once h + 1 = 2 older slices exist, so from the third on.
    assert thresholds("greedy", [same, same, same, same], stability=always) == [4.0, 4.0, 2.0, 2.0]


def test_greedy_rounds_the_percentile_up_and_takes_the_highest_slice() -> None:
    # 90th percentile of [1.01] is 1.01: 1.1 cores. Nothing booked and nothing before: T = P.
    assert thresholds("greedy", [usage([1.01])]) == [1.1]
    # Slice 2 uses less, but slice 1 is still in the window: P = 3, dP = 0, unstable: T stays.
    assert thresholds("greedy", [usage([3]), usage([1]), usage([1])], h=1, stability=never) == [3.0, 3.0, 3.0]


def test_greedy_takes_half_of_growing_usage() -> None:
    # dP = 5 - 3 = 2: T = 5 + 1.
    assert thresholds("greedy", [usage([3]), usage([5])]) == [3.0, 6.0]


def test_greedy_follows_usage_down_to_zero_on_an_idle_node() -> None:
    assert thresholds("greedy", [usage([4, 4]), usage([0, 0]), usage([4, 4])], h=0) == [4.0, 0.0, 6.0]


def test_percentile_of_a_slice_is_computed_once_for_all_windows() -> None:
    """A slice is in h + 1 windows; each of them needs its percentile."""
    computations = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __array_finalize__(self, obj: object) -> None:
            computations.append(1)

    samples = np.ones(4).view(Counted)
    slices = [a_slice(k, Usage(10.0, samples, np.empty(0), np.empty((0, 0)))) for k in range(40)]
    for h in (5, 30):
        computations.clear()
        estimates("greedy", slices, h=h)
        if h == 5:
            few = len(computations)
    assert len(computations) < 2 * few


def test_greedy_works_for_memory_in_steps_of_one_mb() -> None:
    slices = [a_slice(0, usage([1.0]), usage([1000.2], 4096))]
    assert estimates("greedy", slices)[0][1].tier0 == 1001.0


def test_scroogevm_moves_its_ratio_with_stability_and_growth() -> None:
    # mean 2, std 1: T = 2 + 3.5. Same again: mean 2 > ceil(2)? no: stays. Stable from the third: r = 3.4.
    same = usage([1, 3])
    assert thresholds("scroogevm", [same, same, same], stability=always) == [5.5, 5.5, pytest.approx(5.4)]
    # Growth: window mean 3 over the previous slice's 2: r = 3.7, std of [1 3 3 5] is sqrt(2).
    grown = thresholds("scroogevm", [same, usage([3, 5])])
    assert grown[1] == pytest.approx(3 + 3.7 * math.sqrt(2))


def test_scroogevm_keeps_its_ratio_within_two_and_five() -> None:
    same = usage([1, 3])
    assert thresholds("scroogevm", [same] * 60, stability=always)[-1] == pytest.approx(2 + 2.0)
    growing = [usage([k, k + 2]) for k in range(1, 40)]
    last = thresholds("scroogevm", growing, h=0)[-1]
    assert last == pytest.approx(40 + 5.0)  # mean of [39 41], std 1


def test_rclike_counts_the_allocation_of_a_vm_until_its_window_is_full() -> None:
    one = usage([1], vms=[(4, [1.0, 1.0])])
    assert thresholds("rclike", [one, one]) == [4.0, 1.0]


def test_rclike_caps_cpu_peaks_at_the_vcpus_but_not_memory() -> None:
    over = usage([1], vms=[(4, [5.0, 5.0])])
    cpu, mem = estimates("rclike", [a_slice(0, over)], h=0)[0]
    assert (cpu.threshold, mem.threshold) == (4.0, 5.0)


def test_rclike_takes_the_99th_percentile_of_cpu_and_the_maximum_of_memory() -> None:
    samples = list(range(101))
    cpu, mem = estimates("rclike", [a_slice(0, usage([1], vms=[(1000, samples)]))], h=0)[0]
    assert (cpu.threshold, mem.threshold) == (99.0, 100.0)


def test_rclike_gives_a_vm_that_returns_a_fresh_window() -> None:
    there, gone = usage([1], vms=[(4, [1.0])]), usage([1])
    assert thresholds("rclike", [there, there, gone, there, there]) == [4.0, 1.0, 0.0, 4.0, 1.0]


def test_maxpeak_is_the_larger_of_nsigma_and_rclike() -> None:
    assert thresholds("maxpeak", [usage([1, 3], vms=[(4, [1, 1])])]) == [7.0]
    assert thresholds("maxpeak", [usage([1, 3], vms=[(9, [1, 1])])]) == [9.0]


def test_mean_predictor_compares_the_error_and_not_the_level() -> None:
    older = np.array([0.2, 0.4])  # mean 0.3, error 0.1
    assert mean_predictor(older, np.array([0.4, 0.4]))  # error 0.1
    assert mean_predictor(older, np.array([0.409, 0.191]))  # error 0.109
    assert not mean_predictor(older, np.array([0.3, 0.3]))  # error 0


def test_stability_is_false_before_enough_older_slices() -> None:
    model = NodeModel(ModelSettings(2, ("nsigma",)), {"cpu": always, "mem": always})
    estimate = [model.update(a_slice(k, usage([1]))).cpu.stable for k in range(5)]
    assert estimate == [False, False, False, True, True]


def test_detector_gets_shares_of_the_node_with_three_digits() -> None:
    calls: list[tuple[list[float], list[float]]] = []

    def detector(older: FloatArray, new: FloatArray, /) -> bool:
        calls.append((older.tolist(), new.tolist()))
        return True

    model = NodeModel(ModelSettings(0, ("nsigma",)), {"cpu": detector, "mem": never})
    for k, level in enumerate((1.0, 2.00049)):
        model.update(a_slice(k, usage([level], 10)))
    assert calls == [([0.1], [0.2])]


def test_cpu_is_rounded_to_a_decimal_and_memory_cut_to_an_integer() -> None:
    assert CPU.tier0(1.26) == 1.3
    assert MEMORY.tier0(1.99) == 1.0
    assert MEMORY.tier0(-1.99) == -1.0


def test_published_is_the_least_free_of_all_positions_so_far() -> None:
    usages = [usage([1]), usage([6]), usage([2]), usage([3])]  # two positions, two scopes, h = 0
    slices = [a_slice(k, cpu, positions=2) for k, cpu in enumerate(usages)]
    estimate = estimates("percentile", slices, h=0)
    assert [cpu.free for cpu, _ in estimate] == [9.0, 4.0, 8.0, 7.0]
    assert [cpu.published for cpu, _ in estimate] == [9.0, 4.0, 4.0, 7.0]


def test_slice_without_data_publishes_zero_and_does_not_change_the_others() -> None:
    gap = Usage(config=math.nan, node=np.empty(0), vm_config=np.empty(0), vm_usage=np.empty((0, 0)))
    estimate = estimates("percentile", [a_slice(0, usage([1])), a_slice(1, gap), a_slice(2, usage([3]))])
    assert [cpu.published for cpu, _ in estimate] == [9.0, 0.0, 7.0]  # 90th percentile of [3]: the gap holds no sample
    assert math.isnan(estimate[1][0].free)


def test_gap_in_one_resource_does_not_change_the_other() -> None:
    nothing = Usage(config=10.0, node=np.empty(0), vm_config=np.empty(0), vm_usage=np.empty((0, 0)))
    cpu, mem = estimates("nsigma", [a_slice(0, usage([1]), nothing)])[0]
    assert cpu.free == 9.0
    assert math.isnan(mem.free)


# --- every strategy ---------------------------------------------------------------------------------


def random_slices(seed: int, count: int = 12) -> list[Slice]:
    random = np.random.default_rng(seed)
    result = []
    for k in range(count):
        names = sorted(random.choice([f"vm{i}" for i in range(8)], size=random.integers(0, 8), replace=False).tolist())

        def one(config: float, names: list[str] = names) -> Usage:
            rows = random.random((len(names), 6)) * config / 4
            rows[random.random(rows.shape) < 0.1] = np.nan
            samples = random.random(random.integers(1, 9)) * config
            return Usage(config, samples, np.full(len(names), config / 6), rows)

        result.append(Slice(1800.0 * (k + 1), k % 2, tuple(names), one(16.0), one(65536.0)))
    return result


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_documents_its_formula_and_has_a_summary_of_one_line(name: str) -> None:
    documentation = STRATEGIES[name].__doc__ or ""
    assert "T " in documentation or "percentile" in documentation
    assert STRATEGIES[name].summary
    assert "\n" not in STRATEGIES[name].summary


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_does_not_change_its_input(name: str) -> None:
    slices = random_slices(1)
    before = [[a.copy() for u in (s.cpu, s.mem) for a in (u.node, u.vm_config, u.vm_usage)] for s in slices]
    estimates(name, slices)
    after = [[a for u in (s.cpu, s.mem) for a in (u.node, u.vm_config, u.vm_usage)] for s in slices]
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_keeps_its_state_to_itself(name: str) -> None:
    """Two models that are updated alternately give the same estimates as each alone."""
    first, second = random_slices(2), random_slices(3)
    settings = ModelSettings(1, (name,))
    alone = [
        [model.update(s) for s in slices]
        for model, slices in ((NodeModel(settings), first), (NodeModel(settings), second))
    ]
    a, b = NodeModel(settings), NodeModel(settings)
    mixed = [(a.update(x), b.update(y)) for x, y in zip(first, second, strict=True)]
    assert repr([x for x, _ in mixed]) == repr(alone[0])
    assert repr([y for _, y in mixed]) == repr(alone[1])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("h", [0, 1, 3])
def test_strategy_never_publishes_a_negative_figure(name: str, h: int) -> None:
    for seed in range(5):
        for pair in estimates(name, random_slices(seed), h=h, stability=mean_predictor):
            for estimate in pair:
                assert estimate.free >= 0
                assert estimate.published >= 0
                assert estimate.free == pytest.approx(
                    max(0.0, (16.0 if estimate is pair[0] else 65536.0) - estimate.tier0)
                )


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_gives_the_same_estimates_alone_and_beside_all_others(name: str) -> None:
    slices = random_slices(4)
    alone = estimates(name, slices, stability=mean_predictor)
    model = NodeModel(ModelSettings(1, tuple(STRATEGIES)))
    together = [model.update(s) for s in slices]
    assert repr(alone) == repr([(t.cpu.by_strategy[name], t.mem.by_strategy[name]) for t in together])
