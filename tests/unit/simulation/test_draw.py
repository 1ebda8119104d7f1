"""Drawn workloads: rates of arrival, mixes, lifetimes, days. Bounds are four standard deviations or more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.simulation.draw import DrawSettings, SampledVm, draw_workload
from model.simulation.workload import Workload

STEP = 300.0
DAY = 288
#: 20 nodes x 6 VMs x 24 hours.
PER_DAY = 2880


def sampled(share: float, days: int = 3, vcpu: float = 2.0) -> SampledVm:
    series = np.full(days * DAY, share, np.float32)
    return SampledVm(vcpu, 1000 * vcpu, series, series)


VMS = [sampled(0.0), sampled(0.09), sampled(0.39, vcpu=4), sampled(0.89, days=1, vcpu=8)]


def draw(seed: int = 1, days: float = 10.0, vms: list[SampledVm] = VMS, **settings: object) -> Workload:
    return draw_workload(vms, STEP, replace(DrawSettings(days=days), **settings), seed)  # type: ignore[arg-type]


def per_half(workload: Workload) -> tuple[int, int]:
    early = int((workload.create_s < workload.duration_s / 2).sum())
    return early, len(workload) - early


def test_flood_is_a_constant_rate() -> None:
    """14,400 arrivals in each half of ten days; a Poisson deviation of 120."""
    workload = draw()
    assert workload.duration_s == 10 * 86_400
    assert all(abs(count - 14_400) < 480 for count in per_half(workload))
    assert (np.diff(workload.create_s) >= 0).all()
    assert (workload.create_s % STEP == 0).all()


def test_rate_is_per_node_and_hour() -> None:
    """5 nodes x 2 VMs x 240 hours = 2,400."""
    assert abs(len(draw(nodes=5, per_node_hour=2.0)) - 2400) < 200


def test_ramp_rises_from_nothing() -> None:
    """Half of a flood in all, 14,400; a quarter of it in the first half."""
    early, late = per_half(draw(arrivals="ramp"))
    assert abs(early - 3600) < 240
    assert abs(late - 10_800) < 420


def test_finite_stream_ends_after_the_first_half() -> None:
    early, late = per_half(draw(arrivals="finite"))
    assert abs(early - 14_400) < 480
    assert late == 0


def test_arrivals_of_part_of_a_day() -> None:
    assert draw(days=0.5).steps == 144


def test_even_mix_draws_all_alike() -> None:
    """About 7,200 of each; a binomial deviation of 73."""
    counts = np.bincount(draw().series, minlength=4)
    assert (np.abs(counts - counts.sum() / 4) < 300).all()


def test_busy_mix_draws_by_usage() -> None:
    """Usage and 0.01: 0.01, 0.10, 0.40 and 0.90 of 1.41 in all."""
    counts = np.bincount(draw(mix="busy").series, minlength=4)
    expected = np.array([0.01, 0.10, 0.40, 0.90]) / 1.41 * counts.sum()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()


def test_turning_mix_is_even_and_then_busy() -> None:
    workload, even, busy = (draw(mix=mix) for mix in ("turn", "even", "busy"))
    early = workload.create_s < workload.duration_s / 2
    np.testing.assert_array_equal(workload.series[early], even.series[early])
    np.testing.assert_array_equal(workload.series[~early], busy.series[~early])


def test_sizes_and_series_are_those_of_the_sampled_vm() -> None:
    workload = draw()
    assert workload.vcpu.tolist() == [VMS[k].vcpu for k in workload.series]
    assert workload.memory_mb.tolist() == [VMS[k].memory_mb for k in workload.series]
    assert workload.cpu.lengths.tolist() == [3 * DAY, 3 * DAY, 3 * DAY, DAY]


def test_lifetimes_are_hours_days_or_for_ever() -> None:
    """60 % with a median of 4 h, 25 % with one of 48 h, 15 % stay.

    The share that lives for less than 4 h: 0.6 x 0.5 + 0.25 x P(log-normal 48 h, 0.8 below 4 h), and the latter is
    P(z < ln(4/48) / 0.8 = -3.106) = 0.00095: 0.3002. Less than 48 h: 0.6 x P(z < ln(12) / 1.2 = 2.071) + 0.25 x 0.5 =
    0.6 x 0.9808 + 0.125 = 0.7135.
    """
    workload = draw()
    life_h = (workload.delete_s - workload.create_s) / 3600
    n = life_h.size
    for found, expected in ((np.isinf(life_h), 0.15), (life_h < 4, 0.3002), (life_h < 48, 0.7135)):
        assert abs(found.mean() - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_each_vm_has_a_random_day_of_its_own() -> None:
    workload = draw()
    of_days = workload.offset[workload.series < 3]
    days, counts = np.unique(of_days, return_counts=True)
    assert days.tolist() == [0, DAY, 2 * DAY]
    assert (np.abs(counts - of_days.size / 3) < 320).all()
    assert (workload.offset[workload.series == 3] == 0).all()


def test_with_the_same_clock_all_replay_the_same_days() -> None:
    assert (draw(same_clock=True).offset == 0).all()


def test_names_are_unique_and_in_order() -> None:
    names = draw(days=1.0).names
    assert list(names) == sorted(set(names))


@pytest.mark.parametrize("settings", [{}, {"arrivals": "ramp", "mix": "turn"}, {"same_clock": True}])
def test_the_seed_decides_everything(settings: dict[str, object]) -> None:
    one, same, other = (draw(seed, days=2.0, **settings) for seed in (1, 1, 2))
    for field in ("create_s", "delete_s", "vcpu", "series", "offset"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert len(one) != len(other) or (one.series != other.series).any()


def test_no_demand_is_an_empty_workload() -> None:
    assert len(draw(per_node_hour=0.0)) == 0
