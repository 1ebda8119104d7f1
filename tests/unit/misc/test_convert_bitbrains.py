"""Bitbrains files to traces: figures checked by hand, oddities of the real files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc.tracesources import grid
from tests.support.conversion import BITBRAINS, HOUR, NODE, Converter, row_of


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


HEADER = (BITBRAINS / "22.csv").read_text().splitlines()[0]
#: 2013-07-16T05:00:00Z, a whole hour.
T0 = 1373950800


def row(
    stamp: float | str, cores: float = 2, capacity: float = 4000, used: float = 1000, kb: str = "2097152.0"
) -> list[Any]:
    """A Bitbrains row; by default 2 cores x 1000 MHz of 4000 MHz = 0.5 cores, 2048 MB of which 512 are used."""
    return [stamp, cores, capacity, used, 0.0, kb, 524288.0, 0.0, 0.0, 0.0, 0.0]


def bitbrains_file(path: Path, rows: Sequence[Sequence[Any]], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *(";\t".join(map(str, fields)) for fields in rows)]) + "\n")
    return path


def hour_of_rows(start: int = T0, **changes: Any) -> list[list[Any]]:
    """Twelve rows, each a minute after the start of its step."""
    return [row(start + 60 + 300 * i, **changes) for i in range(12)]


def test_real_files_give_the_figures_of_a_hand_calculation(convert: Converter) -> None:
    """The first samples, at 2013-07-16T05:00:35Z.

    ====  =====================================  ==================
    VM    cores                                  memory used
    ====  =====================================  ==================
    22    4 x 407.689217 / 11703.996664 = 0.139333   805305.6 / 1024
    76    8 x 79.733309 / 20799.99376 = 0.030667    139809.333 / 1024
    122   4 x 207.999950 / 10399.997508 = 0.08      134217.6 / 1024
    ====  =====================================  ==================

    With half a core and 1024 MB for the node itself: 0.75 cores and 1024 + 1054.036 = 2078.036 MB.
    """
    overhead = ["--node-cpu-overhead", "0.5", "--node-memory-overhead-mb", "1024"]
    trace = convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR, *overhead)
    slices = list(trace.slices())
    assert trace.epoch == [T0 + 3600 * (k + 1) for k in range(6)]
    assert trace.config.historical == 3
    first = slices[0]
    assert first.vms == ("122", "22", "76")
    assert first.cpu.vm_config.tolist() == [4.0, 4.0, 8.0]
    # 1.6703488E7 KB / 1024 = 16312 MB, 4.0763664E7 KB / 1024 = 39808.265625 MB
    assert first.mem.vm_config.tolist() == [16312.0, 16312.0, 39808.265625]
    assert first.cpu.vm_usage[:, 0].tolist() == pytest.approx([0.08, 0.139333, 0.030667])
    assert first.mem.vm_usage[:, 0].tolist() == pytest.approx([131.072, 786.431, 136.533], abs=0.001)
    assert first.cpu.node[0] == pytest.approx(0.75, abs=1e-6)
    assert first.mem.node[0] == pytest.approx(2078.036, abs=0.001)
    assert first.cpu.config == 32.0
    assert first.mem.config == 131072.0


def test_usage_above_capacity_is_kept(convert: Converter) -> None:
    """103.85 % of 8 cores in the real file: 8 x 21600.7935 / 20799.9938 = 8.308."""
    slices = list(convert.trace("bitbrains", BITBRAINS / "76.csv", *NODE, *HOUR).slices())
    assert row_of(slices[1], "76")[0][8] == pytest.approx(8.308)
    assert slices[1].cpu.node[8] == pytest.approx(8.308)


def test_vm_that_is_switched_off_is_absent(convert: Converter) -> None:
    """The real VM 122 is off from 08:30 on: half of the fourth slice, and all after it."""
    trace = convert.json("bitbrains", BITBRAINS, *NODE, *HOUR)
    periods = trace["vm"]["122"]["raw_data"]
    assert periods[3]["cpu_usage"][6:] == [None] * 6
    assert None not in periods[3]["cpu_usage"][:6]
    assert periods[4:] == [{}, {}]
    assert [period["vm"] for period in trace["node"]["raw_data"]] == [["122", "22", "76"]] * 4 + [["22", "76"]] * 2


def test_gap_of_one_step_is_filled_with_the_sample_before(convert: Converter) -> None:
    """The real VM 76 has no row between 09:34 and 09:44: step 55, the eighth of the fifth slice."""
    filled = row_of(list(convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR).slices())[4], "76")[0]
    assert filled[7] == filled[6]
    unfilled = row_of(list(convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR, "--hold", "0").slices())[4], "76")[0]
    assert math.isnan(unfilled[7])
    assert unfilled[:7] == filled[:7]


def test_gap_longer_than_hold_is_empty_from_its_first_step(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    one = bitbrains_file(tmp_path / "one.csv", rows[:3] + rows[6:])
    two = bitbrains_file(tmp_path / "two.csv", rows)
    both = convert.json("bitbrains", one, two, *NODE, *HOUR)
    assert both["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 3 + [None] * 3 + [0.5] * 6
    # Half of what is booked has no sample: the rest would look like an idle node, unless --least-known allows it.
    assert both["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 3 + [None] * 3 + [1.0] * 6
    lax = convert.json("bitbrains", one, two, *NODE, *HOUR, "--least-known", "0.5")
    assert lax["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 3 + [0.5] * 3 + [1.0] * 6
    assert both["meta"]["steps_where_cpu_of_a_vm_is_unknown"] == 3
    longer = convert.json("bitbrains", one, two, *NODE, *HOUR, "--hold", "3")
    assert longer["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12


def test_node_has_no_sample_where_no_running_vm_has_one(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    one = bitbrains_file(tmp_path / "one.csv", rows[:3] + rows[6:])
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--node-cpu-overhead", "1")
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [1.5] * 3 + [None] * 3 + [1.5] * 6


def test_node_without_vms_uses_its_overhead(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows(cores=0, capacity=0) + hour_of_rows(T0 + 3600)
    one = bitbrains_file(tmp_path / "one.csv", rows)
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--node-cpu-overhead", "1")
    assert trace["vm"]["one"]["raw_data"][0] == {}
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 12
    assert trace["node"]["raw_data"][0]["vm"] == []
    assert trace["node"]["raw_data"][1]["cpu_usage"] == [1.5] * 12


def test_sample_is_not_carried_over_a_time_when_the_vm_was_off(convert: Converter, tmp_path: Path) -> None:
    """Off in step 3; steps 4 and 5 have no row: the VM is still off, and nothing is held from step 2."""
    rows = hour_of_rows()
    rows[3] = row(T0 + 960, cores=0, capacity=0, used=0)
    one = bitbrains_file(tmp_path / "one.csv", rows[:4] + rows[6:])
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--hold", "9")
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 3 + [None] * 3 + [0.5] * 6


def test_sample_of_a_machine_that_does_not_run_is_neither_kept_nor_held() -> None:
    samples, present = np.array([9.0, np.nan, 1.0, np.nan]), np.array([False, True, True, True])
    filled = grid.fill_gaps(samples, present, 2)
    assert np.array_equal(filled, [np.nan, np.nan, 1.0, 1.0], equal_nan=True)


def test_vm_leaves_after_its_last_row(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows())
    two = bitbrains_file(tmp_path / "two.csv", hour_of_rows() + hour_of_rows(T0 + 3600))
    slices = convert.trace("bitbrains", one, two, *NODE, *HOUR).slices()
    assert [period.vms for period in slices] == [("one", "two"), ("two",)]


def test_vm_without_a_row_for_a_whole_slice_stays(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows() + hour_of_rows(T0 + 7200))
    slices = list(convert.trace("bitbrains", one, *NODE, *HOUR).slices())
    assert [period.vms for period in slices] == [("one",)] * 3
    assert [period.cpu.booked for period in slices] == [2.0] * 3
    assert all(math.isnan(sample) for sample in row_of(slices[1], "one")[0])
    assert not slices[1].cpu.measured


def test_samples_of_a_step_are_averaged_in_any_order(convert: Converter, tmp_path: Path) -> None:
    """Step 0 has 500 and 1500 MHz at the same stamp and 1000 a minute later: 2 x 1000 / 4000 = 0.5 on average."""
    rows = hour_of_rows(used=2000)
    rows[0] = row(T0 + 120, used=1000)
    rows += [row(T0 + 60, used=500), row(T0 + 60, used=1500)]
    one = bitbrains_file(tmp_path / "one.csv", rows[::-1])
    trace = convert.json("bitbrains", one, *NODE, *HOUR)
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] + [1.0] * 11


def test_step_with_rows_of_a_running_and_a_stopped_vm_counts_as_running(convert: Converter, tmp_path: Path) -> None:
    rows = [*hour_of_rows(), row(T0 + 70, cores=0, capacity=0, used=0)]
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12


def test_usage_of_a_vm_without_capacity_is_ignored(convert: Converter, tmp_path: Path) -> None:
    """In real files some rows have 0 cores and 0 MHz, and still 154 MHz used."""
    rows = hour_of_rows() + hour_of_rows(T0 + 3600, cores=0, capacity=0, used=154)
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][1] == {}


def test_config_of_a_slice_is_its_last_one(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    rows[6:] = [row(T0 + 60 + 300 * i, cores=4, kb="1.6777216E7") for i in range(6, 12)]
    one = bitbrains_file(tmp_path / "one.csv", rows + hour_of_rows(T0 + 3600))
    periods = convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"]
    assert [(period["cpu"], period["mem"]) for period in periods] == [([4.0], [16384.0]), ([2.0], [2048.0])]
    # 4 x 1000 / 4000
    assert periods[0]["cpu_usage"] == [0.5] * 6 + [1.0] * 6


def test_sample_without_provisioned_memory_has_no_memory_usage(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    rows[0][5] = rows[0][6] = "0.0"
    one = bitbrains_file(tmp_path / "one.csv", rows)
    period = convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][0]
    assert period["mem_usage"] == [None] + [512.0] * 11
    assert period["cpu_usage"] == [0.5] * 12


def test_times_in_milliseconds_are_detected_by_their_size(convert: Converter, tmp_path: Path) -> None:
    rows = [[fields[0] * 1000, *fields[1:]] for fields in hour_of_rows()]
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.trace("bitbrains", one, *NODE, *HOUR).epoch == [T0 + 3600]


def test_only_whole_slices_are_converted(convert: Converter, tmp_path: Path) -> None:
    """Data from 04:30 to 07:30 holds the hours from 05:00 to 07:00; --start at 05:01 leaves the last one."""
    rows = [row(T0 - 1800 + 300 * i) for i in range(36)]
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.trace("bitbrains", one, *NODE, *HOUR).epoch == [T0 + 3600, T0 + 7200]
    assert convert.trace("bitbrains", one, *NODE, *HOUR, "--start", "2013-07-16T05:01:00Z").epoch == [T0 + 7200]
    assert convert.trace("bitbrains", one, *NODE, *HOUR, "--end", str(T0 + 7199)).epoch == [T0 + 3600]


def test_times_are_the_starts_of_the_steps(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows())
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--step-s", "1800")
    assert trace["node"]["raw_data"][0]["time"] == [T0, T0 + 1800]
    assert trace["vm"]["one"]["raw_data"][0]["time"] == [T0, T0 + 1800]


def test_node_too_small_for_its_vms_is_capped_with_a_message(convert: Converter, tmp_path: Path) -> None:
    """Two VMs of 0.5 cores and 512 MB on 0.8 cores and 1000 MB, for twelve steps of twenty-four."""
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows() + hour_of_rows(T0 + 3600))
    two = bitbrains_file(tmp_path / "two.csv", hour_of_rows())
    small = ["--node-name", "n1", "--node-cores", "0.8", "--node-memory-mb", "1000"]
    trace = convert.json("bitbrains", one, two, *small, *HOUR)
    assert convert.messages.count("\n") == 1
    assert "in 12 (CPU) and 12 (memory) of 24 steps" in convert.messages
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [0.8] * 12
    assert trace["node"]["raw_data"][0]["mem_usage"] == [1000.0] * 12
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12
    assert trace["node"]["raw_data"][1]["cpu_usage"] == [0.5] * 12


def test_regular_conversion_prints_nothing(convert: Converter) -> None:
    convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR)
    assert convert.messages == ""


def test_random_choice_is_repeatable_and_of_running_vms(convert: Converter, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(20):
        bitbrains_file(folder / f"{i}.csv", hour_of_rows(cores=0 if i % 2 else 2))
    bitbrains_file(folder / "empty.csv", [])

    def choice(seed: int) -> tuple[str, ...]:
        return convert.trace("bitbrains", folder, "--vms", "5", "--seed", str(seed), *NODE, *HOUR).vms

    assert len(choice(1)) == 5
    assert choice(1) == choice(1)
    assert len({choice(seed) for seed in range(6)}) > 1
    assert all(int(name) % 2 == 0 for seed in range(6) for name in choice(seed))
    assert "10 of the 21 VMs" in convert.error("bitbrains", folder, "--vms", "11", *NODE, *HOUR)


def test_files_of_the_same_name_are_distinguished_by_their_folders(convert: Converter, tmp_path: Path) -> None:
    for month in ("2013-7", "2013-8"):
        (tmp_path / month).mkdir()
        bitbrains_file(tmp_path / month / "1.csv", hour_of_rows())
    both = [tmp_path / "2013-7", tmp_path / "2013-8"]
    assert convert.trace("bitbrains", *both, *NODE, *HOUR).vms == ("2013-7/1", "2013-8/1")
    same = tmp_path / "2013-7" / "1.csv"
    assert "is already VM" in convert.error("bitbrains", same, same, *NODE, *HOUR)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("1373951000;\t2", "line 3: 2 columns where the header has 11"),
        (";\t".join(map(str, [*row(T0), 1])), "line 3: 12 columns where the header has 11"),
        (";\t".join(map(str, row("x"))), "line 3, column 1 (Timestamp [ms]): 'x' is not a number"),
        (
            ";\t".join(map(str, row(T0, used=math.nan))),
            "line 3, column 4 (CPU usage [MHZ]): nan is not from 0 to 1e+15",
        ),
        (";\t".join(map(str, row(T0, cores=-1))), "line 3, column 2 (CPU cores): -1 is not from 0 to 1e+15"),
        (";\t".join(map(str, row(T0, kb="1e400"))), "line 3, column 6 (Memory capacity provisioned [KB])"),
        (";\t".join(map(str, row(T0, capacity=1e-300))), "line 3, column 4 (CPU usage [MHZ])"),
        (";\t".join(map(str, row(5))), "line 3, column 1 (Timestamp [ms]): 5 is not a time"),
        ("\x00\x01", "line 3: 1 columns"),
    ],
)
def test_malformed_row_is_an_error_with_its_place(convert: Converter, tmp_path: Path, line: str, place: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEADER}\n{';'.join(map(str, row(T0)))}\n{line}\n")
    assert f"{path}, {place}" in convert.error("bitbrains", path, *NODE, *HOUR)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:b76b\nsize 972675\n", "Git LFS pointer"),
        (b"a,b,c\n1,2,3\n", "line 1: not the header of a Bitbrains (GWA-T-12) file"),
        (b"", "line 1: not the header of a Bitbrains (GWA-T-12) file"),
        (b"\xff\xfe\x00", "line 1: not the header"),
        (b"\x1f\x8b\x08garbage", "bad.csv: "),
    ],
)
def test_other_file_is_one_line(convert: Converter, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    line = convert.error("bitbrains", path, *NODE, *HOUR)
    assert str(path) in line
    assert message in line


def test_missing_data_is_named(convert: Converter, tmp_path: Path) -> None:
    assert "nowhere.csv: No such file" in convert.error("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR)
    (tmp_path / "bare").mkdir()
    assert "no .csv file" in convert.error("bitbrains", tmp_path / "bare", *NODE, *HOUR)
    header_only = bitbrains_file(tmp_path / "none.csv", [])
    assert "0 of the 1 VMs" in convert.error("bitbrains", header_only, *NODE, *HOUR)
    other_year = ["--start", "2014-01-01", "--end", "2014-02-01"]
    assert "0 of the 3 VMs" in convert.error("bitbrains", BITBRAINS, *NODE, *HOUR, *other_year)


def test_times_centuries_apart_are_an_error_before_memory_runs_out(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", [*hour_of_rows(), row(9_000_000_000)])
    assert "is a time stamp wrong?" in convert.error("bitbrains", one, *NODE, *HOUR)
