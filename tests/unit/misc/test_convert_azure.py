"""Azure VM traces to traces: real excerpts, choice of VMs, malformed files."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from misc.tracesources import azure
from tests.support.conversion import AZURE, HOUR, NODE, Converter, row_of


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


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


def test_default_second_0_is_a_whole_number_of_days_and_weeks(convert: Converter) -> None:
    assert E0 % 86400 == E0 % 604800 == 0
    assert azure.AZURE_EPOCH_START == E0


def test_maximum_can_be_selected(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [LARGE], range(0, 3600, 300), lambda i, _: 20.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR]
    usage = row_of(next(convert.trace(*arguments, "--reading", "max").slices()), LARGE)[0]
    assert usage == pytest.approx([8 * 0.4] * 12)


def test_memory_usage_is_missing_unless_assumed(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [LARGE], range(0, 3600, 300), lambda i, _: 20.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR]
    without = convert.json(*arguments)
    assert "mem_usage" not in without["vm"][LARGE]["raw_data"][0]
    assert "mem_usage" not in without["node"]["raw_data"][0]
    assumed = convert.json(*arguments, "--memory-usage-share", "0.5", "--node-memory-overhead-mb", "100")
    assert assumed["vm"][LARGE]["raw_data"][0]["mem_usage"] == [28672.0] * 12
    assert assumed["node"]["raw_data"][0]["mem_usage"] == [28772.0] * 12


def test_vm_runs_from_its_creation_to_its_deletion(convert: Converter, tmp_path: Path) -> None:
    """Created at 2290500 and deleted at 2292300 (slices of 1800 s start at 2289600): steps 3 to 9."""
    readings = readings_file(tmp_path / "r.csv", [SMALL, SHORT], range(2289600, 2295000, 300), lambda *_: 10.0)
    trace = convert.json(
        *("azure", "--vmtable", V1, "--readings", readings, "--vm", SMALL, SHORT),
        *(*NODE, "--slice-s", "1800", "--scope-s", "1800"),
    )
    usage = [period.get("cpu_usage") for period in trace["vm"][SHORT]["raw_data"]]
    assert usage == [[None] * 3 + [0.1] * 3, [0.1] * 4 + [None] * 2, None]
    assert trace["node"]["raw_data"][0]["cpu_usage"] == [0.1] * 3 + [0.2] * 3


def test_vm_without_readings_is_booked(convert: Converter, tmp_path: Path) -> None:
    readings = readings_file(tmp_path / "r.csv", [SMALL], range(0, 3600, 300), lambda *_: 10.0)
    first = next(
        convert.trace("azure", "--vmtable", V1, "--readings", readings, "--vm", SMALL, LARGE, *NODE, *HOUR).slices()
    )
    assert first.cpu.booked == 9.0
    assert all(math.isnan(sample) for sample in row_of(first, LARGE)[0])
    assert first.cpu.node.tolist() == pytest.approx([0.1] * 12)


def test_vms_of_a_deployment_can_be_selected(convert: Converter, tmp_path: Path) -> None:
    deployment = V1_ROWS[0][2]
    members = [fields[0] for fields in V1_ROWS if fields[2] == deployment and fields[3] == "0"]
    assert 1 < len(members) < len(V1_ROWS)
    readings = readings_file(tmp_path / "r.csv", [fields[0] for fields in V1_ROWS], range(0, 3600, 300), lambda *_: 5.0)
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", readings, *NODE, *HOUR]
    assert set(convert.trace(*arguments, "--deployment", deployment).vms) == set(members)


def test_random_choice_is_repeatable_and_of_running_vms(convert: Converter, tmp_path: Path) -> None:
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
    assert all(len(vms) == 3 and set(vms) <= alive for vms in choices)
    assert "--vms is 9" in convert.error(*arguments, "--vms", "9")


def test_headers_windows_line_ends_and_a_byte_order_mark_are_accepted(convert: Converter, tmp_path: Path) -> None:
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
    first = next(
        convert.trace("azure", "--vmtable", V1, "--readings", late, early, "--vm", LARGE, *NODE, *HOUR).slices()
    )
    assert row_of(first, LARGE)[0] == pytest.approx([0.8] * 6 + [1.6] * 6)


def v2_table(path: Path, cores: str, memory: str) -> tuple[Path, str]:
    fields = (AZURE / "vmtable-v2.csv").read_text().strip().split(",")
    path.write_text(",".join([*fields[:9], cores, memory]) + "\n")
    return path, fields[0]


def test_real_v2_row_has_the_sizes_of_its_buckets(convert: Converter, tmp_path: Path) -> None:
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


def test_open_bucket_needs_a_value(convert: Converter, tmp_path: Path) -> None:
    table, name = v2_table(tmp_path / "table.csv", ">24", ">64")
    readings = readings_file(tmp_path / "r.csv", [name], range(1132200, 1134000, 300), lambda *_: 50.0)
    arguments: list[str | Path] = [
        *("azure", "--vmtable", table, "--readings", readings, "--vm", name),
        *(*NODE, "--slice-s", "1800", "--scope-s", "1800"),
    ]
    assert (
        f"{table}, line 1, column 10 (vmcorecount): '>24' is an open bucket; set its value with --cores-above"
        in convert.error(*arguments)
    )
    assert "--memory-above" in convert.error(*arguments, "--cores-above", "30")
    assert "--cores-above 24 is not in the bucket" in convert.error(*arguments, "--cores-above", "24")
    trace = convert.json(*arguments, "--cores-above", "30", "--memory-above", "70")
    period = trace["vm"][name]["raw_data"][0]
    assert (period["cpu"], period["mem"], period["cpu_usage"][3]) == ([30.0], [71680.0], 15.0)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("300,{vm},1,2", "line 2: 4 columns instead of the 5"),
        ("300,{vm},1,2,3,4", "line 2: 6 columns instead of the 5"),
        ("300,{vm},1,2,lots", "line 2, column 5 (avgcpu): 'lots' is not a number"),
        ("soon,{vm},1,2,3", "line 2, column 1 (timestamp): 'soon' is not a number"),
        ("300,{vm},1,2,-3", "line 2, column 5 (avgcpu): -3 is not from 0 to 1e+15"),
        ("300,{vm},1,2,inf", "line 2, column 5 (avgcpu): inf is not from 0 to 1e+15"),
        ("1e12,{vm},1,2,3", "line 2, column 1 (timestamp)"),
    ],
)
def test_malformed_reading_is_an_error_with_its_place(
    convert: Converter, tmp_path: Path, line: str, place: str
) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"0,{LARGE},1,2,3\n{line.format(vm=LARGE)}\n")
    message = convert.error("azure", "--vmtable", V1, "--readings", path, "--vm", LARGE, *NODE, *HOUR)
    assert f"{path}, {place}" in message


@pytest.mark.parametrize(
    ("column", "text", "place"),
    [
        (3, "early", "line 2, column 4 (vmcreated): 'early' is not a number"),
        (9, "many", "line 2, column 10 (vmcorecount): 'many' is not a number"),
        (9, "0", "line 2, column 10 (vmcorecount): a VM of size 0"),
        (10, ">", "line 2, column 11 (vmmemory): '' is not a number"),
        (8, "a,b", "line 2: 12 columns instead of the 11"),
        (0, SMALL, "line 2, column 1 (vmid): VM"),
    ],
)
def test_malformed_row_of_the_table_is_an_error_with_its_place(
    convert: Converter, tmp_path: Path, column: int, text: str, place: str
) -> None:
    rows = [list(V1_ROWS[0]), list(V1_ROWS[3])]
    rows[1][column] = text
    table = tmp_path / "table.csv"
    table.write_text("".join(",".join(fields) + "\n" for fields in rows))
    readings = readings_file(tmp_path / "r.csv", [SMALL], range(0, 3600, 300), lambda *_: 5.0)
    message = convert.error(
        "azure", "--vmtable", table, "--readings", readings, "--vm", SMALL, rows[1][0], *NODE, *HOUR
    )
    assert f"{table}, {place}" in message


def test_truncated_gzip_file_is_an_error(convert: Converter, tmp_path: Path) -> None:
    whole = (AZURE / "vm_cpu_readings-file-1-of-125.csv.gz").read_bytes()
    cut = tmp_path / "r.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert str(cut) in convert.error("azure", "--vmtable", V1, "--readings", cut, "--vm", LARGE, *NODE, *HOUR)


def test_readings_of_other_vms_are_an_error(convert: Converter) -> None:
    """The two real excerpts share no VM."""
    readings = AZURE / "vm_cpu_readings-file-1-of-125.csv.gz"
    message = convert.error("azure", "--vmtable", V1, "--readings", readings, "--vm", LARGE, *NODE, *HOUR)
    assert f"{readings}: no reading of the 1 selected VMs" in message


def test_unknown_vm_or_deployment_is_named(convert: Converter) -> None:
    arguments: list[str | Path] = ["azure", "--vmtable", V1, "--readings", V1, *NODE, *HOUR]
    assert f"{V1}: no VM absent" in convert.error(*arguments, "--vm", SMALL, "absent")
    assert f"{V1}: no VM of deployment absent" in convert.error(*arguments, "--deployment", "absent")
