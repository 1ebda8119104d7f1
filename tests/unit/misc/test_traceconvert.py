"""Public usage data to traces: figures checked by hand, oddities of the real files, a real Prometheus server."""

from __future__ import annotations

import gzip
import http.server
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc import traceconvert
from misc.tracesources import azure, grid
from misc.tracesources import prometheus as prometheus_source
from model.replay.trace import Trace, read_trace
from model.slices import Slice
from tests.conftest import DATA, ROOT, strict_json

BITBRAINS = DATA / "bitbrains"
AZURE = DATA / "azure"
HOUR = ["--slice-s", "3600", "--scope-s", "3600"]
NODE = ["--node-name", "n1", "--node-cores", "32", "--node-memory-mb", "131072"]


class Converter:
    """Runs the tool inside this process and remembers what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.output = folder / "out" / "trace.json"
        self.output.parent.mkdir()
        self.said = ""
        self._capsys = capsys

    def code(self, *arguments: str | Path) -> int:
        try:
            code = traceconvert.main([*map(str, arguments), "--output", str(self.output)])
        except SystemExit as left:
            code = int(left.code or 0)
        self.said = self._capsys.readouterr().err
        return code

    def trace(self, *arguments: str | Path) -> Trace:
        assert self.code(*arguments) == 0, self.said
        return read_trace(self.output)

    def json(self, *arguments: str | Path) -> Any:
        assert self.code(*arguments) == 0, self.said
        return strict_json(self.output.read_bytes())

    def fault(self, *arguments: str | Path) -> str:
        """The one line that is said of bad input, after which there is no file, not even a temporary one."""
        self.output.unlink(missing_ok=True)
        assert self.code(*arguments) == 2
        assert list(self.output.parent.iterdir()) == []
        assert self.said.count("\n") == 1
        assert self.said.endswith("\n")
        return self.said.rstrip()


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


def row_of(found: Slice, vm: str) -> tuple[list[float], list[float]]:
    """CPU and memory samples of a VM; NaN where there is none."""
    i = found.vms.index(vm)
    return found.cpu.vm_usage[i].tolist(), found.mem.vm_usage[i].tolist()


# --- Bitbrains ------------------------------------------------------------------------------------------

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


def test_real_bitbrains_files_give_the_figures_of_a_hand_calculation(convert: Converter) -> None:
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


def test_a_vm_switched_off_is_not_there(convert: Converter) -> None:
    """The real VM 122 is off from 08:30 on: half of the fourth slice, and all after it."""
    trace = convert.json("bitbrains", BITBRAINS, *NODE, *HOUR)
    periods = trace["vm"]["122"]["raw_data"]
    assert periods[3]["cpu_usage"][6:] == [None] * 6
    assert None not in periods[3]["cpu_usage"][:6]
    assert periods[4:] == [{}, {}]
    assert [period["vm"] for period in trace["node"]["raw_data"]] == [["122", "22", "76"]] * 4 + [["22", "76"]] * 2


def test_a_hole_of_one_step_is_filled_with_the_sample_before(convert: Converter) -> None:
    """The real VM 76 has no row between 09:34 and 09:44: step 55, the eighth of the fifth slice."""
    filled = row_of(list(convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR).slices())[4], "76")[0]
    assert filled[7] == filled[6]
    left = row_of(list(convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR, "--hold", "0").slices())[4], "76")[0]
    assert math.isnan(left[7])
    assert left[:7] == filled[:7]


def test_a_hole_longer_than_hold_is_empty_from_its_first_step_on(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    one = bitbrains_file(tmp_path / "one.csv", rows[:3] + rows[6:])
    two = bitbrains_file(tmp_path / "two.csv", rows)
    both = convert.json("bitbrains", one, two, *NODE, *HOUR)
    assert both["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 3 + [None] * 3 + [0.5] * 6
    # Half of what is booked is silent, and the rest would pass for a calm node; who wants that says so.
    assert both["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 3 + [None] * 3 + [1.0] * 6
    lax = convert.json("bitbrains", one, two, *NODE, *HOUR, "--least-known", "0.5")
    assert lax["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 3 + [0.5] * 3 + [1.0] * 6
    assert both["meta"]["steps_where_cpu_of_a_vm_is_unknown"] == 3
    longer = convert.json("bitbrains", one, two, *NODE, *HOUR, "--hold", "3")
    assert longer["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12


def test_the_node_has_no_sample_where_no_vm_that_is_there_has_one(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    one = bitbrains_file(tmp_path / "one.csv", rows[:3] + rows[6:])
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--node-cpu-overhead", "1")
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [1.5] * 3 + [None] * 3 + [1.5] * 6


def test_a_node_without_vms_uses_its_overhead(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows(cores=0, capacity=0) + hour_of_rows(T0 + 3600)
    one = bitbrains_file(tmp_path / "one.csv", rows)
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--node-cpu-overhead", "1")
    assert trace["vm"]["one"]["raw_data"][0] == {}
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [1.0] * 12
    assert trace["node"]["raw_data"][0]["vm"] == []
    assert trace["node"]["raw_data"][1]["cpu_usage"] == [1.5] * 12


def test_a_sample_is_not_carried_over_a_time_when_the_vm_was_off(convert: Converter, tmp_path: Path) -> None:
    """Off in step 3; steps 4 and 5 have no row: the VM is still off, and nothing is held from step 2."""
    rows = hour_of_rows()
    rows[3] = row(T0 + 960, cores=0, capacity=0, used=0)
    one = bitbrains_file(tmp_path / "one.csv", rows[:4] + rows[6:])
    trace = convert.json("bitbrains", one, *NODE, *HOUR, "--hold", "9")
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 3 + [None] * 3 + [0.5] * 6


def test_a_sample_from_a_time_when_a_machine_was_not_there_is_neither_kept_nor_held() -> None:
    samples, present = np.array([9.0, np.nan, 1.0, np.nan]), np.array([False, True, True, True])
    filled = grid.fill_holes(samples, present, 2)
    assert np.array_equal(filled, [np.nan, np.nan, 1.0, 1.0], equal_nan=True)


def test_a_vm_has_left_after_its_last_row(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows())
    two = bitbrains_file(tmp_path / "two.csv", hour_of_rows() + hour_of_rows(T0 + 3600))
    slices = convert.trace("bitbrains", one, two, *NODE, *HOUR).slices()
    assert [found.vms for found in slices] == [("one", "two"), ("two",)]


def test_a_vm_without_a_row_for_a_whole_slice_is_still_there(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows() + hour_of_rows(T0 + 7200))
    slices = list(convert.trace("bitbrains", one, *NODE, *HOUR).slices())
    assert [found.vms for found in slices] == [("one",)] * 3
    assert [found.cpu.booked for found in slices] == [2.0] * 3
    assert all(math.isnan(sample) for sample in row_of(slices[1], "one")[0])
    assert not slices[1].cpu.measured


def test_samples_of_one_step_are_averaged_whatever_their_order(convert: Converter, tmp_path: Path) -> None:
    """Step 0 has 500 and 1500 MHz at the same stamp and 1000 a minute later: 2 x 1000 / 4000 = 0.5 on average."""
    rows = hour_of_rows(used=2000)
    rows[0] = row(T0 + 120, used=1000)
    rows += [row(T0 + 60, used=500), row(T0 + 60, used=1500)]
    one = bitbrains_file(tmp_path / "one.csv", rows[::-1])
    trace = convert.json("bitbrains", one, *NODE, *HOUR)
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] + [1.0] * 11


def test_a_step_with_rows_of_a_running_and_a_stopped_vm_counts_the_running_one(
    convert: Converter, tmp_path: Path
) -> None:
    rows = [*hour_of_rows(), row(T0 + 70, cores=0, capacity=0, used=0)]
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12


def test_usage_of_a_vm_without_capacity_is_not_counted(convert: Converter, tmp_path: Path) -> None:
    """In real files some rows have 0 cores and 0 MHz, and still 154 MHz used."""
    rows = hour_of_rows() + hour_of_rows(T0 + 3600, cores=0, capacity=0, used=154)
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][1] == {}


def test_the_config_of_a_slice_is_the_last_one_in_it(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    rows[6:] = [row(T0 + 60 + 300 * i, cores=4, kb="1.6777216E7") for i in range(6, 12)]
    one = bitbrains_file(tmp_path / "one.csv", rows + hour_of_rows(T0 + 3600))
    periods = convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"]
    assert [(period["cpu"], period["mem"]) for period in periods] == [([4.0], [16384.0]), ([2.0], [2048.0])]
    # 4 x 1000 / 4000
    assert periods[0]["cpu_usage"] == [0.5] * 6 + [1.0] * 6


def test_a_sample_without_provisioned_memory_has_no_memory(convert: Converter, tmp_path: Path) -> None:
    rows = hour_of_rows()
    rows[0][5] = rows[0][6] = "0.0"
    one = bitbrains_file(tmp_path / "one.csv", rows)
    period = convert.json("bitbrains", one, *NODE, *HOUR)["vm"]["one"]["raw_data"][0]
    assert period["mem_usage"] == [None] + [512.0] * 11
    assert period["cpu_usage"] == [0.5] * 12


def test_stamps_in_milliseconds_are_known_by_their_size(convert: Converter, tmp_path: Path) -> None:
    rows = [[fields[0] * 1000, *fields[1:]] for fields in hour_of_rows()]
    one = bitbrains_file(tmp_path / "one.csv", rows)
    assert convert.trace("bitbrains", one, *NODE, *HOUR).epoch == [T0 + 3600]


def test_only_whole_slices_are_taken(convert: Converter, tmp_path: Path) -> None:
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


def test_a_node_too_small_for_its_vms_is_capped_and_said_so(convert: Converter, tmp_path: Path) -> None:
    """Two VMs of 0.5 cores and 512 MB on 0.8 cores and 1000 MB, for twelve steps of twenty-four."""
    one = bitbrains_file(tmp_path / "one.csv", hour_of_rows() + hour_of_rows(T0 + 3600))
    two = bitbrains_file(tmp_path / "two.csv", hour_of_rows())
    small = ["--node-name", "n1", "--node-cores", "0.8", "--node-memory-mb", "1000"]
    trace = convert.json("bitbrains", one, two, *small, *HOUR)
    assert convert.said.count("\n") == 1
    assert "in 12 (CPU) and 12 (memory) of 24 steps" in convert.said
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [0.8] * 12
    assert trace["node"]["raw_data"][0]["mem_usage"] == [1000.0] * 12
    assert trace["vm"]["one"]["raw_data"][0]["cpu_usage"] == [0.5] * 12
    assert trace["node"]["raw_data"][1]["cpu_usage"] == [0.5] * 12


def test_nothing_is_said_when_nothing_is_odd(convert: Converter) -> None:
    convert.trace("bitbrains", BITBRAINS, *NODE, *HOUR)
    assert convert.said == ""


def test_a_random_choice_is_repeatable_and_of_vms_that_run(convert: Converter, tmp_path: Path) -> None:
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
    assert "10 of the 21 VMs" in convert.fault("bitbrains", folder, "--vms", "11", *NODE, *HOUR)


def test_files_of_the_same_name_are_told_apart_by_their_folders(convert: Converter, tmp_path: Path) -> None:
    for month in ("2013-7", "2013-8"):
        (tmp_path / month).mkdir()
        bitbrains_file(tmp_path / month / "1.csv", hour_of_rows())
    both = [tmp_path / "2013-7", tmp_path / "2013-8"]
    assert convert.trace("bitbrains", *both, *NODE, *HOUR).vms == ("2013-7/1", "2013-8/1")
    same = tmp_path / "2013-7" / "1.csv"
    assert "is already VM" in convert.fault("bitbrains", same, same, *NODE, *HOUR)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("1373951000;\t2", "line 3: 2 columns where the header has 11"),
        (";\t".join(map(str, [*row(T0), 1])), "line 3: 12 columns where the header has 11"),
        (";\t".join(map(str, row("x"))), "line 3, column 1 (Timestamp [ms]): 'x' is no number"),
        (";\t".join(map(str, row(T0, used=math.nan))), "line 3, column 4 (CPU usage [MHZ]): nan makes no sense"),
        (";\t".join(map(str, row(T0, cores=-1))), "line 3, column 2 (CPU cores): -1 makes no sense"),
        (";\t".join(map(str, row(T0, kb="1e400"))), "line 3, column 6 (Memory capacity provisioned [KB])"),
        (";\t".join(map(str, row(T0, capacity=1e-300))), "line 3, column 4 (CPU usage [MHZ])"),
        (";\t".join(map(str, row(5))), "line 3, column 1 (Timestamp [ms]): 5 is no time"),
        ("\x00\x01", "line 3: 1 columns"),
    ],
)
def test_a_malformed_row_is_told_with_its_place(convert: Converter, tmp_path: Path, line: str, place: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEADER}\n{';'.join(map(str, row(T0)))}\n{line}\n")
    assert f"{path}, {place}" in convert.fault("bitbrains", path, *NODE, *HOUR)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:b76b\nsize 972675\n", "Git LFS pointer"),
        (b"a,b,c\n1,2,3\n", "line 1: not the header of a Bitbrains (GWA-T-12) file"),
        (b"", "line 1: not the header of a Bitbrains (GWA-T-12) file"),
        (b"\xff\xfe\x00", "line 1: not the header"),
        (b"\x1f\x8b\x08garbage", "bad.csv: "),
    ],
)
def test_another_file_is_refused_in_one_line(convert: Converter, tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    said = convert.fault("bitbrains", path, *NODE, *HOUR)
    assert str(path) in said
    assert what in said


def test_what_is_not_there_is_named(convert: Converter, tmp_path: Path) -> None:
    assert "nowhere.csv: No such file" in convert.fault("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR)
    (tmp_path / "bare").mkdir()
    assert "no .csv file" in convert.fault("bitbrains", tmp_path / "bare", *NODE, *HOUR)
    header_only = bitbrains_file(tmp_path / "none.csv", [])
    assert "0 of the 1 VMs" in convert.fault("bitbrains", header_only, *NODE, *HOUR)
    other_year = ["--start", "2014-01-01", "--end", "2014-02-01"]
    assert "0 of the 3 VMs" in convert.fault("bitbrains", BITBRAINS, *NODE, *HOUR, *other_year)


def test_stamps_centuries_apart_are_refused_before_memory_runs_out(convert: Converter, tmp_path: Path) -> None:
    one = bitbrains_file(tmp_path / "one.csv", [*hour_of_rows(), row(9_000_000_000)])
    assert "is a time stamp wrong?" in convert.fault("bitbrains", one, *NODE, *HOUR)


# --- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--slice-s", "3601", "--scope-s", "3601"], "--slice-s"),
        (["--slice-s", "3600", "--scope-s", "5400"], "--scope-s"),
        ([*HOUR, "--start", "1373954400", "--end", "1373950800"], "--end"),
        ([*HOUR, "--start", "yesterday"], "--start"),
        ([*HOUR, "--hold", "-1"], "--hold"),
        ([*HOUR, "--node-c", "3"], "--node-c"),
        ([*HOUR, "--start", "1373950801", "--end", "1373954399"], "no whole slice"),
        ([*HOUR, "--node-cores", "0"], "--node-cores"),
        ([*HOUR, "--node-cores", "nan"], "--node-cores"),
        ([*HOUR, "--historical", "2000000"], "historical"),
    ],
)
def test_a_wrong_option_is_one_line(convert: Converter, arguments: list[str], what: str) -> None:
    assert what in convert.fault("bitbrains", BITBRAINS, *NODE, *arguments)


def test_an_older_trace_survives_a_failure(convert: Converter, tmp_path: Path) -> None:
    convert.output.write_text("older")
    assert convert.code("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR) == 2
    assert convert.output.read_text() == "older"
    assert list(convert.output.parent.iterdir()) == [convert.output]


def test_a_missing_output_folder_is_said_before_any_work(convert: Converter, tmp_path: Path) -> None:
    convert.output = tmp_path / "nowhere" / "trace.json"
    assert convert.code("bitbrains", tmp_path / "nowhere.csv", *NODE, *HOUR) == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in convert.said


def test_it_runs_as_a_program_and_reads_files_without_the_client_of_servers(tmp_path: Path) -> None:
    tool = ROOT / "misc" / "traceconvert.py"
    output = tmp_path / "trace.json"
    ran = subprocess.run(
        [sys.executable, "-W", "error", tool, "bitbrains", BITBRAINS, *NODE, *HOUR, "--output", output],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert len(read_trace(output)) == 6
    helped = subprocess.run(
        [sys.executable, "-X", "importtime", tool, "prometheus", "-h"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert helped.returncode == 0
    assert "--node-instance" in helped.stdout
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"pandas", "requests"}


# --- Azure ----------------------------------------------------------------------------------------------

#: The documented default for the trace's second 0: 2017-01-05T00:00:00Z.
E0 = 1483574400
V1 = AZURE / "vmtable-v1.csv"
V1_ROWS = [line.split(",") for line in V1.read_text().splitlines()]
#: One core and 1.75 GB, there all the time; 8 cores and 56 GB, all the time; 1 core, from 2290500 to 2292300.
SMALL, LARGE, SHORT = (V1_ROWS[i][0] for i in (0, 3, 6))


def readings_file(
    path: Path, ids: Sequence[str], stamps: Sequence[int], percent: Callable[[int, int], float], newline: str = "\n"
) -> Path:
    """Readings of every VM at every stamp: minimum, maximum and average of half, twice and once the percentage."""
    lines = []
    for stamp in stamps:
        for i, name in enumerate(ids):
            share = percent(i, stamp)
            lines.append(f"{stamp},{name},{share / 2},{share * 2},{share}{newline}")
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_real_azure_vms_get_their_readings_in_cores(convert: Converter, tmp_path: Path) -> None:
    """10 % of 1 core and 20 % of 8 cores, 0.25 for the node: 0.1 + 1.6 + 0.25 = 1.95 cores."""
    readings = readings_file(tmp_path / "r.csv.gz", [SMALL, LARGE], range(0, 7200, 300), lambda i, _: 10.0 * (i + 1))
    trace = convert.trace(
        *("azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, SMALL),
        *(*NODE, *HOUR, "--node-cpu-overhead", "0.25"),
    )
    assert trace.epoch == [E0 + 3600, E0 + 7200]
    first = next(trace.slices())
    assert set(first.vms) == {SMALL, LARGE}
    assert row_of(first, SMALL)[0] == pytest.approx([0.1] * 12)
    assert row_of(first, LARGE)[0] == pytest.approx([1.6] * 12)
    assert first.cpu.node.tolist() == pytest.approx([1.95] * 12)
    # 1.75 GB and 56 GB
    assert sorted(first.mem.vm_config.tolist()) == [1792.0, 57344.0]


def test_the_default_second_0_is_a_whole_number_of_days_and_weeks(convert: Converter) -> None:
    assert E0 % 86400 == E0 % 604800 == 0
    assert azure.AZURE_EPOCH_START == E0


def test_the_maximum_can_be_asked_for(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [LARGE], range(0, 3600, 300), lambda i, _: 20.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR]
    usage = row_of(next(convert.trace(*arguments, "--reading", "max").slices()), LARGE)[0]
    assert usage == pytest.approx([8 * 0.4] * 12)


def test_memory_usage_is_absent_unless_assigned(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [LARGE], range(0, 3600, 300), lambda i, _: 20.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR]
    without = convert.json(*arguments)
    assert "mem_usage" not in without["vm"][LARGE]["raw_data"][0]
    assert "mem_usage" not in without["node"]["raw_data"][0]
    assigned = convert.json(*arguments, "--memory-usage-share", "0.5", "--node-memory-overhead-mb", "100")
    assert assigned["vm"][LARGE]["raw_data"][0]["mem_usage"] == [28672.0] * 12
    assert assigned["node"]["raw_data"][0]["mem_usage"] == [28772.0] * 12


def test_a_vm_is_there_from_its_creation_to_its_deletion(convert: Converter, tmp_path: Path) -> None:
    """Created at 2290500 and deleted at 2292300 (slices of 1800 s start at 2289600): steps 3 to 9."""
    readings = readings_file(tmp_path / "r.csv", [SMALL, SHORT], range(2289600, 2295000, 300), lambda *_: 10.0)
    trace = convert.json(
        *("azure", "--vmtable", V1, "--readings", readings, "--vm", SMALL, SHORT),
        *(*NODE, "--slice-s", "1800", "--scope-s", "1800"),
    )
    usage = [period.get("cpu_usage") for period in trace["vm"][SHORT]["raw_data"]]
    assert usage == [[None] * 3 + [0.1] * 3, [0.1] * 4 + [None] * 2, None]
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [0.1] * 3 + [0.2] * 3


def test_a_vm_without_readings_is_still_booked(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [SMALL], range(0, 3600, 300), lambda *_: 10.0)
    found = next(
        convert.trace("azure", "--vmtable", V1, "--readings", readings, "--vm", SMALL, LARGE, *NODE, *HOUR).slices()
    )
    assert found.cpu.booked == 9.0
    assert all(math.isnan(sample) for sample in row_of(found, LARGE)[0])
    assert found.cpu.node.tolist() == pytest.approx([0.1] * 12)


def test_a_deployment_is_a_group(convert: Converter, tmp_path: Path) -> None:
    deployment = V1_ROWS[0][2]
    members = [fields[0] for fields in V1_ROWS if fields[2] == deployment and fields[3] == "0"]
    assert 1 < len(members) < len(V1_ROWS)
    readings = readings_file(tmp_path / "r.csv", [fields[0] for fields in V1_ROWS], range(0, 3600, 300), lambda *_: 5.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, *NODE, *HOUR]
    assert set(convert.trace(*arguments, "--deployment", deployment).vms) == set(members)


def test_a_random_choice_from_the_table_is_repeatable_and_of_vms_alive(convert: Converter, tmp_path: Path) -> None:
    ids = [fields[0] for fields in V1_ROWS]
    alive = {fields[0] for fields in V1_ROWS if fields[3] == "0"}
    readings = readings_file(tmp_path / "r.csv", ids, range(0, 3600, 300), lambda *_: 5.0)
    period = ["--start", str(E0), "--end", str(E0 + 3600)]
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, *NODE, *HOUR, *period]

    def choice(seed: int) -> tuple[str, ...]:
        return convert.trace(*arguments, "--vms", "3", "--seed", str(seed)).vms

    assert choice(1) == choice(1)
    choices = {choice(seed) for seed in range(8)}
    assert len(choices) > 1
    assert all(len(chosen) == 3 and set(chosen) <= alive for chosen in choices)
    assert "--vms wants 9" in convert.fault(*arguments, "--vms", "9")


def test_headers_windows_line_ends_and_a_byte_order_mark_are_tolerated(convert: Converter, tmp_path: Path) -> None:
    plain = readings_file(tmp_path / "plain.csv", [LARGE], range(0, 3600, 300), lambda *_: 20.0, newline="\r\n")
    headed = tmp_path / "headed.csv"
    headed.write_bytes(b"\xef\xbb\xbftimestamp,vm id,min cpu,max cpu,avg cpu\r\n" + plain.read_bytes())
    table = tmp_path / "table.csv"
    titles = "vmid,subscriptionid,deploymentid,vmcreated,vmdeleted,maxcpu,avgcpu,p95maxcpu,vmcategory,cores,memory"
    table.write_bytes(f"{titles}\r\n".encode() + V1.read_bytes().replace(b"\n", b"\r\n"))
    common = ["--vm", LARGE, *NODE, *HOUR]
    expected = convert.json("azure", "--vmtable", V1, "--readings", plain, *common)
    assert convert.json("azure", "--vmtable", table, "--readings", headed, *common) == expected
    assert expected["vm"][LARGE]["raw_data"][0]["cpu_usage"] == [1.6] * 12
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert convert.json("azure", "--vmtable", V1, "--readings", marked, *common) == expected


def test_readings_over_several_files_are_joined(convert: Converter, tmp_path: Path) -> None:
    late = readings_file(tmp_path / "2.csv.gz", [LARGE], range(1800, 3600, 300), lambda *_: 20.0)
    early = readings_file(tmp_path / "1.csv", [LARGE], range(0, 1800, 300), lambda *_: 10.0)
    found = next(
        convert.trace("azure", "--vmtable", V1, "--readings", late, early, "--vm", LARGE, *NODE, *HOUR).slices()
    )
    assert row_of(found, LARGE)[0] == pytest.approx([0.8] * 6 + [1.6] * 6)


def v2_table(path: Path, cores: str, memory: str) -> tuple[Path, str]:
    fields = (AZURE / "vmtable-v2.csv").read_text().strip().split(",")
    path.write_text(",".join([*fields[:9], cores, memory]) + "\n")
    return path, fields[0]


def test_a_real_v2_row_counts_as_the_figures_of_its_buckets(convert: Converter, tmp_path: Path) -> None:
    """4 cores, 32 GB, there from 1133100 to 1133700: three steps of a half-hour that starts at 1132200."""
    name = (AZURE / "vmtable-v2.csv").read_text().partition(",")[0]
    readings = readings_file(tmp_path / "r.csv", [name], range(1132200, 1134000, 300), lambda *_: 50.0)
    trace = convert.json(
        *("azure", "--vmtable", AZURE / "vmtable-v2.csv", "--readings", readings, "--vm", name),
        *(*NODE, "--slice-s", "1800", "--scope-s", "1800"),
    )
    period = trace["vm"][name]["raw_data"][0]
    assert (period["cpu"], period["mem"]) == ([4.0], [32768.0])
    assert period["cpu_usage"] == [None] * 3 + [2.0] * 3


def test_an_open_bucket_needs_to_be_told_what_it_counts_as(convert: Converter, tmp_path: Path) -> None:
    table, name = v2_table(tmp_path / "table.csv", ">24", ">64")
    readings = readings_file(tmp_path / "r.csv", [name], range(1132200, 1134000, 300), lambda *_: 50.0)
    arguments: list[str | Path] = [
        *("azure", "--vmtable", table, "--readings", readings, "--vm", name),
        *(*NODE, "--slice-s", "1800", "--scope-s", "1800"),
    ]
    assert f"{table}, line 1, column 10 (vmcorecount): '>24' is an open bucket; --cores-above" in convert.fault(
        *arguments
    )
    assert "--memory-above" in convert.fault(*arguments, "--cores-above", "30")
    assert "--cores-above 24 is not in the bucket" in convert.fault(*arguments, "--cores-above", "24")
    trace = convert.json(*arguments, "--cores-above", "30", "--memory-above", "70")
    period = trace["vm"][name]["raw_data"][0]
    assert (period["cpu"], period["mem"], period["cpu_usage"][3]) == ([30.0], [71680.0], 15.0)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("300,{vm},1,2", "line 2: 4 columns instead of the 5"),
        ("300,{vm},1,2,3,4", "line 2: 6 columns instead of the 5"),
        ("300,{vm},1,2,lots", "line 2, column 5 (avgcpu): 'lots' is no number"),
        ("soon,{vm},1,2,3", "line 2, column 1 (timestamp): 'soon' is no number"),
        ("300,{vm},1,2,-3", "line 2, column 5 (avgcpu): -3 makes no sense"),
        ("300,{vm},1,2,inf", "line 2, column 5 (avgcpu): inf makes no sense"),
        ("1e12,{vm},1,2,3", "line 2, column 1 (timestamp)"),
    ],
)
def test_a_malformed_reading_is_told_with_its_place(convert: Converter, tmp_path: Path, line: str, place: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"0,{LARGE},1,2,3\n{line.format(vm=LARGE)}\n")
    said = convert.fault("azure", "--vmtable", V1, "--readings", path, "--vm", LARGE, *NODE, *HOUR)
    assert f"{path}, {place}" in said


@pytest.mark.parametrize(
    ("column", "text", "place"),
    [
        (3, "early", "line 2, column 4 (vmcreated): 'early' is no number"),
        (9, "many", "line 2, column 10 (vmcorecount): 'many' is no number"),
        (9, "0", "line 2, column 10 (vmcorecount): a VM of size 0"),
        (10, ">", "line 2, column 11 (vmmemory): '' is no number"),
        (8, "a,b", "line 2: 12 columns instead of the 11"),
        (0, SMALL, "line 2, column 1 (vmid): VM"),
    ],
)
def test_a_malformed_row_of_the_table_is_told_with_its_place(
    convert: Converter, tmp_path: Path, column: int, text: str, place: str
) -> None:
    rows = [list(V1_ROWS[0]), list(V1_ROWS[3])]
    rows[1][column] = text
    table = tmp_path / "table.csv"
    table.write_text("".join(",".join(fields) + "\n" for fields in rows))
    readings = readings_file(tmp_path / "r.csv", [SMALL], range(0, 3600, 300), lambda *_: 5.0)
    said = convert.fault("azure", "--vmtable", table, "--readings", readings, "--vm", SMALL, rows[1][0], *NODE, *HOUR)
    assert f"{table}, {place}" in said


def test_a_gzip_file_that_ends_too_soon_is_refused(convert: Converter, tmp_path: Path) -> None:
    whole = (AZURE / "vm_cpu_readings-file-1-of-125.csv.gz").read_bytes()
    cut = tmp_path / "r.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert str(cut) in convert.fault("azure", "--vmtable", V1, "--readings", cut, "--vm", LARGE, *NODE, *HOUR)


def test_readings_of_other_vms_are_read_and_said_not_to_fit(convert: Converter) -> None:
    """The two real excerpts share no VM."""
    readings = AZURE / "vm_cpu_readings-file-1-of-125.csv.gz"
    said = convert.fault("azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR)
    assert f"{readings}: no reading of the 1 chosen VMs" in said


def test_a_vm_or_deployment_that_the_table_does_not_have_is_named(convert: Converter) -> None:
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", V1, *NODE, *HOUR]
    assert f"{V1}: no VM nobody" in convert.fault(*arguments, "--vm", SMALL, "nobody")
    assert f"{V1}: no VM of deployment nobody" in convert.fault(*arguments, "--deployment", "nobody")


# --- Prometheus: what it says when it fails -------------------------------------------------------------

PERIOD = ["--start", "1704067200", "--end", "1704074400"]


class Answers(http.server.ThreadingHTTPServer):
    """A server on the loopback that answers every request with the same status and body, slowly if asked to."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes, pause_s: float = 0.0) -> None:
        self.requests: list[tuple[str, str | None]] = []
        answers = self
        stop = threading.Event()
        self._stop = stop

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.requests.append((self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.end_headers()
                for i in range(len(body)):
                    if pause_s and stop.wait(pause_s):
                        return
                    try:
                        self.wfile.write(body[i : i + 1] if pause_s else body)
                    except OSError:
                        return
                    if not pause_s:
                        return

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.shutdown()
        self._thread.join(10)
        self.server_close()


def prometheus_arguments(url: str) -> list[str]:
    return ["prometheus", "--server", url, "--node-instance", "w1:9100", *HOUR, *PERIOD]


@pytest.mark.parametrize(
    ("status", "body", "what"),
    [
        (503, b"upstream\nis down", "HTTP status 503"),
        (422, b'{"status":"error","errorType":"execution","error":"too many\\nsamples"}', "422, too many\\nsamples"),
        (200, b'{"status":"error","error":"no"}', "HTTP status 200, no"),
        (200, b"<html>\nlog in</html>", "not the answer of a Prometheus server"),
        (200, b"", "not the answer of a Prometheus server"),
        (200, b'{"status":"success"}', "no data in the answer"),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"value":[1,"2"]}]}}', "not the answer"),
        (200, b'{"status":"success","data":{"result":[]}}', "no node_memory_MemTotal_bytes"),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"values":[[1704070800,"x"]]}]}}', "'x' is no"),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"values":[[7,"1"]]}]}}', "not asked for"),
    ],
)
def test_an_answer_that_is_none_is_one_line(convert: Converter, status: int, body: bytes, what: str) -> None:
    with Answers(status, body) as server:
        said = convert.fault(*prometheus_arguments(server.url))
    assert server.url in said
    assert what in said


def test_a_server_that_never_finishes_is_given_up(convert: Converter) -> None:
    """A byte every 0.1 s: no single read times out."""
    began = time.monotonic()
    with Answers(200, b" " * 1000, pause_s=0.1) as server:
        said = convert.fault(*prometheus_arguments(server.url), "--timeout-s", "0.5")
    assert "no complete answer within 0.5 s" in said
    assert time.monotonic() - began < 10


def test_a_server_that_says_nothing_is_given_up(convert: Converter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no complete answer within 0.5 s" in convert.fault(*prometheus_arguments(url), "--timeout-s", "0.5")


def test_a_server_that_is_not_there_is_said_so(convert: Converter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said = convert.fault(*prometheus_arguments(f"http://user:secret@127.0.0.1:{port}/prefix/"))
    assert f"http://127.0.0.1:{port}/prefix: Connection refused" in said


@pytest.mark.parametrize("url", ["prometheus:9090", "ftp://prometheus", "http://", "http://p:port", "http://p/?a=b"])
def test_a_url_of_no_server_is_refused(convert: Converter, url: str) -> None:
    assert "--server" in convert.fault(*prometheus_arguments(url))


def test_the_token_is_sent_and_a_bad_token_file_is_named(
    convert: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    token = tmp_path / "token"
    token.write_text("s3cr3t\n")
    with Answers(200, b"{}") as server:
        arguments = prometheus_arguments(server.url + "/prefix/")
        convert.fault(*arguments, "--bearer-token-file", token)
        assert server.requests[0][0].startswith("/prefix/api/v1/query_range?")
        assert server.requests[0][1] == "Bearer s3cr3t"
        assert "s3cr3t" not in convert.said
        token.write_text("two words\n")
        assert f"{token}: not a token" in convert.fault(*arguments, "--bearer-token-file", token)
        assert "nowhere: No such file" in convert.fault(*arguments, "--bearer-token-file", tmp_path / "nowhere")


def test_label_values_are_escaped() -> None:
    assert prometheus_source.quoted('a"b\\c\nd') == r'"a\"b\\c\nd"'
    assert prometheus_source.same_host("w.1:9100") == r'instance=~"w\\.1(:[0-9]+)?"'
    assert prometheus_source.same_host("[::1]:9100") == r'instance=~"\\[::1\\](:[0-9]+)?"'
    assert prometheus_source.same_host("w1") == r'instance=~"w1(:[0-9]+)?"'


# --- Prometheus: a real server --------------------------------------------------------------------------

#: 2024-01-01T00:00:00Z. Two hours from there on, and ten minutes before, scraped every 15 s.
P0 = 1704067200
SCRAPE_S = 15
GB = 2**30
ODD_NAME = 'odd"name\\{1}'


class OpenMetrics:
    """Text for ``promtool tsdb create-blocks-from openmetrics``, family by family."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, labels: dict[str, str], value: Callable[[int], float | None]) -> None:
        """A series; ``value`` is told the seconds since P0, and answers None where a scrape is missing."""
        inside = ",".join(f"{key}={prometheus_source.quoted(text)}" for key, text in labels.items())
        for t in range(-600, 7201, SCRAPE_S):
            found = value(t)
            if found is not None:
                self._families.setdefault(name, []).append(f"{name}{{{inside}}} {found!r} {P0 + t}")

    def text(self) -> str:
        return "\n".join([*(line for family in self._families.values() for line in family), "# EOF\n"])


def counter(rate: float, second_hour: float | None = None) -> Callable[[int], float]:
    """A counter that grows by ``rate`` a second, in the second hour by another."""
    later = rate if second_hour is None else second_hour
    return lambda t: 1000.0 + rate * min(t, 3600) + later * max(t - 3600, 0)


def scaled(value: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda t: factor * value(t)


def constant(value: float) -> Callable[[int], float]:
    return lambda t: value


def history() -> str:
    """A node of four CPUs and its domains, and neighbours that must not be counted.

    The node uses 0.5 + 3 x 0.25 (user) + 4 x 0.125 (system) = 1.75 cores; in the second hour one CPU's user
    time grows by 0.75 instead of 0.25: 2.25 cores. Memory: 16 GB, of which 12, then 8 GB are available.
    """
    page = OpenMetrics()
    for instance, job, factor in (("w1:9100", "node", 1.0), ("w1:9100", "again", 1.0), ("w2:9100", "node", 8.0)):
        labels = {"instance": instance, "job": job}
        for cpu in range(4):
            modes = {
                "user": counter(0.5 if cpu == 0 else 0.25, 0.75 if cpu == 3 else None),
                "system": counter(0.125),
                "iowait": counter(0.0625),
                "idle": counter(0.25),
            }
            for mode, value in modes.items():
                page.add("node_cpu_seconds_total", {**labels, "cpu": str(cpu), "mode": mode}, scaled(value, factor))
            # Already inside user: must not be added again.
            page.add("node_cpu_guest_seconds_total", {**labels, "cpu": str(cpu), "mode": "user"}, counter(0.25))
        page.add("node_memory_MemTotal_bytes", labels, constant(16 * GB))
        page.add("node_memory_MemAvailable_bytes", labels, lambda t: (12 if t <= 3600 else 8) * GB)

    here = {"instance": "w1:9177", "job": "libvirt"}

    def while_up(value: Callable[[int], float | None]) -> Callable[[int], float | None]:
        """The exporter does not answer from half past twelve to a quarter to one."""
        return lambda t: None if 1800 <= t < 2700 else value(t)

    def domain(name: str, vcpus: int, gb: int, rate: float, **more: Callable[[int], float | None]) -> None:
        labels = {**here, "domain": name}
        figures: dict[str, Callable[[int], float | None]] = {
            "libvirt_domain_info_virtual_cpus": constant(vcpus),
            "libvirt_domain_info_maximum_memory_bytes": constant(gb * GB),
            "libvirt_domain_info_cpu_time_seconds_total": counter(rate),
            **{f"libvirt_domain_{metric}": value for metric, value in more.items()},
        }
        for metric, value in figures.items():
            page.add(metric, labels, while_up(value))

    def tinkoff(balloon: float, unused: float, rss: float) -> dict[str, Callable[[int], float | None]]:
        return {
            "memory_stats_actual_balloon_bytes": constant(balloon * GB),
            "memory_stats_unused_bytes": constant(unused * GB),
            "memory_stats_rss_bytes": constant(rss * GB),
        }

    domain("tinkoff", 4, 4, 0.75, info_vstate=constant(1), **tinkoff(3, 1, 3.5))
    domain("off", 8, 8, 0.0, info_vstate=constant(5), **tinkoff(8, 0, 0))
    domain("stopped", 2, 2, 0.5, info_vstate=lambda t: 1 if t <= 3600 else 5, **tinkoff(2, 1, 1))
    domain("mute", 1, 1, 0.125, info_vstate=constant(1), **tinkoff(1, 0, 0))
    domain("aged", 1, 2, 0.125, info_vstate=constant(1), **tinkoff(1, 1.5, 1))
    domain("kumina", 2, 2, 0.25, state_code=constant(1), info_memory_usage_bytes=constant(2 * GB))
    balloon = {"memory_stats_current_balloon_bytes": constant(2 * GB), "memory_stats_unused_bytes": constant(GB / 2)}
    domain(ODD_NAME, 1, 2, 0.25, info_state=constant(1), **balloon)
    gone = {**here, "domain": "gone"}
    page.add("libvirt_domain_info_virtual_cpus", gone, while_up(lambda t: 3 if t < 3600 else None))
    page.add("libvirt_up", here, while_up(constant(1)))
    neighbour = {"instance": "w10:9177", "job": "libvirt", "domain": "neighbour"}
    page.add("libvirt_domain_info_virtual_cpus", neighbour, constant(2))
    return page.text()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus server that knows the history above."""
    tools = {name: shutil.which(name) for name in ("prometheus", "promtool")}
    if None in tools.values():
        pytest.skip("prometheus and promtool are not installed (Debian package prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "history.om").write_text(history())
    (folder / "prometheus.yml").write_text("global: {}\n")
    subprocess.run(
        [str(tools["promtool"]), "tsdb", "create-blocks-from", "openmetrics", folder / "history.om", folder / "data"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                str(tools["prometheus"]),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(f"http://{address}/-/ready"):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"prometheus did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_a_real_server_gives_the_nodes_known_rates(convert: Converter, prometheus: str) -> None:
    trace = convert.trace(*prometheus_arguments(prometheus))
    assert trace.config.node_name == "w1:9100"
    assert trace.epoch == [P0 + 3600, P0 + 7200]
    first, second = trace.slices()
    assert (first.cpu.config, first.mem.config) == (4.0, 16384.0)
    assert first.cpu.node.tolist() == pytest.approx([1.75] * 12, abs=1e-5)
    assert second.cpu.node.tolist() == pytest.approx([2.25] * 12, abs=1e-5)
    assert first.mem.node.tolist() == [4096.0] * 12
    assert second.mem.node.tolist() == [8192.0] * 12


def test_a_real_server_gives_the_domains_of_every_dialect(convert: Converter, prometheus: str) -> None:
    """Used memory: Tinkoff 3 - 1 GB, inovex 2 - 0.5 GB, kumina none; 0 unused or more than the balloon: none."""
    second = list(convert.trace(*prometheus_arguments(prometheus)).slices())[1]
    assert second.vms == ("aged", "kumina", "mute", ODD_NAME, "tinkoff")
    assert second.cpu.vm_config.tolist() == [1.0, 2.0, 1.0, 1.0, 4.0]
    assert second.mem.vm_config.tolist() == [2048.0, 2048.0, 1024.0, 2048.0, 4096.0]
    cpu = {name: row_of(second, name)[0] for name in second.vms}
    assert cpu["tinkoff"] == pytest.approx([0.75] * 12, abs=1e-5)
    assert cpu["kumina"] == pytest.approx([0.25] * 12, abs=1e-5)
    assert cpu[ODD_NAME] == pytest.approx([0.25] * 12, abs=1e-5)
    written = strict_json(convert.output.read_bytes())["vm"]
    assert written["tinkoff"]["raw_data"][1]["mem_usage"] == [2048.0] * 12
    assert written["tinkoff"]["raw_data"][1]["mem_rss"] == [3584.0] * 12
    assert written[ODD_NAME]["raw_data"][1]["mem_usage"] == [1536.0] * 12
    for silent in ("kumina", "mute", "aged"):
        assert "mem_usage" not in written[silent]["raw_data"][1]
    assert "mem_rss" not in written["mute"]["raw_data"][1]
    assert written["aged"]["raw_data"][1]["mem_rss"] == [1024.0] * 12


def test_a_domain_that_is_off_or_no_longer_listed_is_not_there(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus))
    assert "off" not in written["vm"]
    first, second = (period["vm"] for period in written["node"]["raw_data"])
    assert set(first) - set(second) == {"stopped", "gone"}
    assert written["vm"]["stopped"]["raw_data"][1] == {}
    assert written["vm"]["gone"]["raw_data"][1] == {}


def test_domains_stay_while_their_exporter_does_not_answer(convert: Converter, prometheus: str) -> None:
    """No scrape from 1800 to 2685 s: no rate at 2100, 2400 and 2700 s, whose windows hold one scrape at most."""
    written = convert.json(*prometheus_arguments(prometheus))
    usage = written["vm"]["tinkoff"]["raw_data"][0]["cpu_usage"]
    assert [i for i, sample in enumerate(usage) if sample is None] == [6, 7, 8]
    held = convert.json(*prometheus_arguments(prometheus), "--hold", "3")["vm"]["tinkoff"]["raw_data"][0]["cpu_usage"]
    assert held[6:9] == [held[5]] * 3


def test_samples_carry_the_end_of_their_step(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus))
    assert written["node"]["raw_data"][0]["time"] == [P0 + 300 * (i + 1) for i in range(12)]


def test_windows_of_rates_span_four_scrapes(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus), "--step-s", "15")
    assert written["meta"]["rate_s"] == 60
    assert len(written["node"]["raw_data"][0]["time"]) == 240
    assert written["node"]["raw_data"][0]["cpu_usage"][100] == pytest.approx(1.75, abs=1e-5)
    assert convert.json(*prometheus_arguments(prometheus), "--rate-s", "120")["meta"]["rate_s"] == 120


def test_long_periods_are_asked_for_in_pieces(
    convert: Converter, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert.json(*prometheus_arguments(prometheus), "--step-s", "60")
    monkeypatch.setattr(prometheus_source, "_MOST_POINTS", 7)
    assert convert.json(*prometheus_arguments(prometheus), "--step-s", "60") == whole


def test_more_points_than_a_server_gives_at_once_are_read(convert: Converter, prometheus: str) -> None:
    """A step of one second from before the first scrape on: 14400 points, where a query may have 11000."""
    period = ["--start", str(P0 - 7200), "--end", str(P0 + 7200), "--step-s", "1"]
    slices = list(convert.trace(*prometheus_arguments(prometheus), *period).slices())
    assert len(slices) == 4
    assert not slices[0].cpu.measured
    assert slices[3].cpu.node.tolist() == pytest.approx([2.25] * 3600, abs=0.6)


def test_the_libvirt_exporter_is_the_one_named_or_that_of_the_host(convert: Converter, prometheus: str) -> None:
    named = convert.trace(*prometheus_arguments(prometheus), "--libvirt-instance", "w10:9177")
    assert named.vms == ("neighbour",)
    said = convert.fault(*prometheus_arguments(prometheus), "--libvirt-instance", 'w1"} or up{a="')
    assert "no metric of a libvirt exporter" in said
    other = [*prometheus_arguments(prometheus), "--node-instance", "w2:9100"]
    assert 'no metric of a libvirt exporter with instance=~"w2(:[0-9]+)?"' in convert.fault(*other)


def test_a_node_that_the_server_does_not_know_is_named(convert: Converter, prometheus: str) -> None:
    arguments = [*prometheus_arguments(prometheus), "--node-instance", "w1\\:9100"]
    assert 'no node_memory_MemTotal_bytes{instance="w1\\\\:9100"}' in convert.fault(*arguments)


def test_a_window_too_short_for_a_rate_is_said(convert: Converter, prometheus: str) -> None:
    said = convert.fault(*prometheus_arguments(prometheus), "--rate-s", "10")
    assert "no rate of node_cpu_seconds_total" in said
    assert "over 10 s" in said
