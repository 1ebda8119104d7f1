"""What VMs used, as series for a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from model.scan.vm_series import STEP_S, VmSeries, fits_steps
from model.slices import Slice, Usage

SLICE_S = 1800
DAY = round(86400 / STEP_S)
#: A midnight, as a number of a slice.
MIDNIGHT = 19_723 * 48


def finished(number: int, vms: Mapping[str, Sequence[float]], mem: float = 1024.0) -> Slice:
    """A slice in which each VM of 2 vCPUs and 4096 MB has these samples of CPU usage."""
    longest = max((len(samples) for samples in vms.values()), default=0)
    rows = np.array([[*samples, *[np.nan] * (longest - len(samples))] for samples in vms.values()]).reshape(
        len(vms), -1
    )
    cpu = Usage(8.0, np.ones(4), np.full(len(vms), 2.0), rows)
    memory = Usage(65536.0, np.ones(4), np.full(len(vms), 4096.0), np.full((len(vms), 1), mem))
    return Slice((number + 1) * SLICE_S, number % 48, tuple(vms), cpu, memory)


def test_series_has_shares_of_the_size_on_the_clock_of_the_day() -> None:
    series = VmSeries(SLICE_S)
    for number in range(MIDNIGHT + 10, MIDNIGHT + 58):
        series.note(finished(number, {"a": [(number % 48) / 48.0] * 12}))
    (vm,) = series.vms(5)
    assert (vm.vcpu, vm.memory_mb, vm.cpu.size) == (2.0, 4096.0, DAY)
    np.testing.assert_allclose(vm.cpu, np.repeat(np.arange(48) / 96, 6), atol=1e-6)
    np.testing.assert_allclose(vm.mem, 0.25)


def test_samples_are_averaged_over_steps() -> None:
    series = VmSeries(SLICE_S)
    for number in range(MIDNIGHT, MIDNIGHT + 48):
        series.note(finished(number, {"many": [0.0, 2.0] * 6, "few": [0.5, 1.5]}))
    few, many = sorted(series.vms(5), key=lambda vm: float(vm.cpu.std()), reverse=True)
    np.testing.assert_allclose(many.cpu, 0.5)
    np.testing.assert_allclose(few.cpu[:6], [0.25] * 3 + [0.75] * 3)


def test_vm_with_a_short_or_broken_history_is_left_out() -> None:
    series = VmSeries(SLICE_S)
    for number in range(MIDNIGHT, MIDNIGHT + 96):
        vms = {"whole": [1.0]}
        if number < MIDNIGHT + 40:
            vms["short"] = [1.0]
        if number % 4:
            vms["broken"] = [1.0]
        if number % 12:
            vms["nearly"] = [1.0]
        series.note(finished(number, vms))
    assert sorted(vm.cpu.size for vm in series.vms(9)) == [DAY, 2 * DAY]


def test_memory_that_is_not_measured_counts_as_used() -> None:
    series = VmSeries(SLICE_S)
    for number in range(MIDNIGHT, MIDNIGHT + 48):
        series.note(finished(number, {"a": [1.0]}, mem=np.nan))
    np.testing.assert_allclose(series.vms(1)[0].mem, 1.0)


def test_some_vms_are_chosen_whatever_their_order() -> None:
    names = [f"vm{i}" for i in range(20)]
    chosen = []
    for order in (names, names[::-1]):
        series = VmSeries(SLICE_S)
        for number in range(MIDNIGHT, MIDNIGHT + 48):
            series.note(finished(number, {name: [int(name[2:]) / 10] for name in order}))
        chosen.append(sorted(float(vm.cpu[0]) for vm in series.vms(5)))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5
    assert chosen[0] != sorted(int(name[2:]) / 20 for name in names[:5])


@pytest.mark.parametrize(("slice_s", "fits"), [(1800, True), (300, True), (60, False), (450, False)])
def test_slices_consist_of_whole_steps(slice_s: float, fits: bool) -> None:
    assert fits_steps(slice_s) == fits
