"""Workload files: what is written is read back, and a fault is one line that names its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.simulation.workload import SeriesPool, Workload
from model.simulation.workload_file import WorkloadError, parse_workload, read_workload, write_workload
from tests.support.markdown import DOCS


def workload_object() -> dict[str, Any]:
    return {
        "step_s": 300,
        "duration_s": 3600,
        "series": [{"cpu": [0.25, 0.5, 1], "mem": [0.5]}, {"cpu": [0], "mem": [0.1, 0.2]}],
        "vms": [
            {"name": "a", "create_s": 0, "delete_s": 900, "vcpu": 4, "memory_mb": 8192, "series": 0, "offset": 2},
            {"name": "b", "create_s": 0, "delete_s": None, "vcpu": 0.5, "memory_mb": 512.5, "series": 1, "offset": 0},
            {"name": "c", "create_s": 450.5, "delete_s": 450.5, "vcpu": 1, "memory_mb": 1, "series": 0, "offset": -1},
        ],
    }


def parse(raw: Any) -> Workload:
    return parse_workload(raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def fault(raw: Any) -> str:
    with pytest.raises(WorkloadError) as raised:
        parse(raw)
    message = str(raised.value)
    assert "\n" not in message
    return message


def shares(pool: SeriesPool) -> list[list[float]]:
    return [pool.shares[a : a + n].tolist() for a, n in zip(pool.starts, pool.lengths, strict=True)]


# --- legal --------------------------------------------------------------------------------------------


def test_fields_are_those_of_the_file() -> None:
    read = parse(workload_object())
    assert (read.step_s, read.duration_s, read.steps) == (300.0, 3600.0, 12)
    assert read.names == ["a", "b", "c"]
    assert read.create_s.tolist() == [0.0, 0.0, 450.5]
    assert read.delete_s.tolist() == [900.0, math.inf, 450.5]
    assert read.vcpu.tolist() == [4.0, 0.5, 1.0]
    assert read.memory_mb.tolist() == [8192.0, 512.5, 1.0]
    assert read.series.tolist() == [0, 1, 0]
    assert read.offset.tolist() == [2, 0, -1]
    assert shares(read.cpu) == [[0.25, 0.5, 1.0], [0.0]]
    assert shares(read.mem) == [[0.5], pytest.approx([0.1, 0.2])]


def test_unknown_keys_are_skipped_even_with_literals_of_python() -> None:
    raw = workload_object()
    raw["note"] = {"NaN": math.nan, "text": "-Infinity and NaN"}
    raw["vms"][0]["tenant"] = math.inf
    raw["vms"][0]["name"] = "NaN"
    assert parse(raw).names == ["NaN", "b", "c"]


def test_byte_order_mark_is_skipped() -> None:
    assert len(parse(b"\xef\xbb\xbf" + json.dumps(workload_object()).encode())) == 3


def test_vm_that_arrives_after_the_end_is_legal() -> None:
    raw = workload_object()
    raw["vms"][2] |= {"create_s": 7200, "delete_s": 9000}
    assert parse(raw).first_step.tolist() == [0, 0, 24]


def test_example_of_the_documentation_is_legal() -> None:
    assert parse(DOCS["simulation.md"].blocks("json")[0].encode()).names == ["vm1", "vm2"]


SHARE = st.floats(0, 1, width=32)
SERIES = st.lists(SHARE, min_size=1, max_size=8).map(lambda shares: np.array(shares, np.float32))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
SIZES = st.floats(1e-3, 1e9)
TIMES = st.floats(0, 1e12)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    n = len(names)
    series = draw(st.integers(1, 4))
    create = np.sort(np.array(draw(st.lists(TIMES, min_size=n, max_size=n))))
    life = draw(st.lists(TIMES | st.just(math.inf), min_size=n, max_size=n))
    step = draw(st.sampled_from([1.0, 300.0, 0.1, 7.5]))
    return Workload(
        step_s=step,
        duration_s=draw(st.integers(1, 10_000)) * step,
        names=names,
        create_s=create,
        delete_s=create + np.array(life),
        vcpu=np.array(draw(st.lists(SIZES, min_size=n, max_size=n))),
        memory_mb=np.array(draw(st.lists(SIZES, min_size=n, max_size=n))),
        series=np.array(draw(st.lists(st.integers(0, series - 1), min_size=n, max_size=n)), np.intp),
        offset=np.array(draw(st.lists(st.integers(-(10**9), 10**9), min_size=n, max_size=n)), np.intp),
        cpu=SeriesPool(draw(st.lists(SERIES, min_size=series, max_size=series))),
        mem=SeriesPool(draw(st.lists(SERIES, min_size=series, max_size=series))),
    )


@settings(deadline=None)
@given(written=workloads())
def test_what_is_written_is_read_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, written: Workload
) -> None:
    path = tmp_path_factory.mktemp("workload") / "workload.json"
    write_workload(path, written)
    read = read_workload(path)
    assert (read.step_s, read.duration_s, read.names) == (written.step_s, written.duration_s, written.names)
    for field in ("create_s", "delete_s", "vcpu", "memory_mb", "series", "offset", "first_step", "end_step"):
        np.testing.assert_array_equal(getattr(read, field), getattr(written, field), err_msg=field)
    assert shares(read.cpu) == shares(written.cpu)
    assert shares(read.mem) == shares(written.mem)


@settings(deadline=None)
@given(share=SHARE)
def test_a_share_is_written_with_nine_digits_at_most(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    written = parse(workload_object())
    written.mem.shares[:] = share
    path = tmp_path_factory.mktemp("workload") / "workload.json"
    write_workload(path, written)
    text = json.loads(path.read_text(), parse_float=str)["series"][0]["mem"][0]
    digits = text.partition("e")[0].replace(".", "").lstrip("0")
    assert len(digits) <= 9 or share < 1e-14
    assert np.float32(text) == np.float32(share)


# --- faults -------------------------------------------------------------------------------------------


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the field at a place such as ``vms.0.name``; ``...`` removes it."""

    def apply(raw: Any) -> None:
        *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
        for key in keys:
            raw = raw[key]
        if value is ...:
            del raw[last]
        else:
            raw[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step_s", ..., "the workload: object missing required field step_s"),
        ("step_s", 0, "step_s: 0 is not a length of time"),
        ("step_s", -300, "step_s: -300 is not a length of time"),
        ("step_s", "5m", "step_s: expected float, got str"),
        ("step_s", math.nan, "step_s: expected float, got NaN, Infinity or a string"),
        ("duration_s", 0, "duration_s: 0 is not a length of time"),
        ("duration_s", 1000, "duration_s: 1000 s is not a multiple of step_s, 300 s"),
        ("duration_s", 150, "duration_s: 150 s is not a multiple of step_s, 300 s"),
        ("duration_s", 3e10, "duration_s: 3e+10 s is more than 10000000 steps of 300 s"),
        ("duration_s", 1e16, "duration_s: 1e+16 is not a length of time"),
        ("series", ..., "the workload: object missing required field series"),
        ("series", [], "series: is empty"),
        ("series", {}, "series: expected array, got object"),
        ("series.1.mem", ..., "series[1]: object missing required field mem"),
        ("series.1.mem", [], "series[1].mem: is empty"),
        ("series.1.mem", None, "series[1].mem: expected array, got null"),
        ("series.1.mem", [0.5, None], "series[1].mem[1]: expected float, got null"),
        ("series.0.cpu.2", 1.01, "series[0].cpu[2]: 1.01 is not a share from 0 to 1"),
        ("series.0.cpu.1", -0.1, "series[0].cpu[1]: -0.1 is not a share from 0 to 1"),
        ("series.0.cpu.1", math.nan, "series[0].cpu[1]: expected float, got NaN, Infinity or a string"),
        ("series.0.cpu.1", "0.5", "series[0].cpu[1]: expected float, got str"),
        ("vms", [], "vms: is empty"),
        ("vms.1", None, "vms[1]: expected object, got null"),
        ("vms.1.name", ..., "vms[1]: object missing required field name"),
        ("vms.1.name", 7, "vms[1].name: expected str, got int"),
        ("vms.1.name", "", "vms[1].name: is empty"),
        ("vms.2.name", "a", "vms[2].name: a is the name of vms[0] too"),
        ("vms.1.create_s", -1, "vms[1].create_s: -1 is not a time from 0 on"),
        ("vms.1.create_s", 1e16, "vms[1].create_s: 1e+16 is not a time from 0 on"),
        ("vms.1.create_s", 500, "vms[2].create_s: 450.5 is before that of the VM above, 500: sort by create_s"),
        ("vms.1.create_s", None, "vms[1].create_s: expected float, got null"),
        ("vms.2.delete_s", 400, "vms[2].delete_s: 400 is before create_s, 450.5"),
        ("vms.2.delete_s", 1e16, "vms[2].delete_s: 1e+16 is not a time"),
        ("vms.2.delete_s", math.inf, "vms[2].delete_s: expected float or null, got NaN, Infinity or a string"),
        ("vms.2.delete_s", ..., "vms[2]: object missing required field delete_s"),
        ("vms.0.vcpu", 0, "vms[0].vcpu: 0 is not a size"),
        ("vms.0.vcpu", -4, "vms[0].vcpu: -4 is not a size"),
        ("vms.0.vcpu", 1e16, "vms[0].vcpu: 1e+16 is not a size"),
        ("vms.0.vcpu", "4", "vms[0].vcpu: expected float, got str"),
        ("vms.1.memory_mb", 0, "vms[1].memory_mb: 0 is not a size"),
        ("vms.1.series", 2, "vms[1].series: 2 is not the index of one of 2 series"),
        ("vms.1.series", -1, "vms[1].series: -1 is not the index of one of 2 series"),
        ("vms.1.series", 0.5, "vms[1].series: expected int, got float"),
        ("vms.1.series", 10**30, "vms[1].series: exceeds 1e+15"),
        ("vms.1.offset", -(10**30), "vms[1].offset: exceeds 1e+15"),
        ("vms.1.offset", None, "vms[1].offset: expected int, got null"),
    ],
)  # fmt: skip
def test_fault_names_its_place(path: str, value: Any, message: str) -> None:
    raw = workload_object()
    change(path, value)(raw)
    assert fault(raw) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"[]", "the workload: expected object, got array"),
        (b"step_s: 300", "not JSON: invalid character (byte 0)"),
        (b'{"step_s": 300, "duration', "not JSON: the file ends in the middle (byte 25)"),
        (b'{"x": NaN, "duration', "not JSON: the file ends in the middle"),
        (b'{"step_s": 1, "duration_s": 1, "series": [], "vms": [{"name": "\xff"}]}', "not JSON: a string is not UTF-8"),
        (b'{"x": ' + b"[" * 100_000, "not a workload: nested too deeply"),
        (b'{"step_s": 1e999}', "step_s: number out of range"),
    ],
)
def test_text_that_is_no_workload(text: bytes, message: str) -> None:
    assert fault(text).startswith(message)


def test_control_characters_of_a_name_are_escaped() -> None:
    raw = workload_object()
    raw["vms"][0]["name"] = raw["vms"][1]["name"] = "x\n\x1b[31m"
    assert fault(raw) == "vms[1].name: x\\n\\x1b[31m is the name of vms[0] too"


def test_error_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    with pytest.raises(WorkloadError, match=r"none\.json: No such file or directory$"):
        read_workload(missing)
    empty = tmp_path / "empty.json"
    empty.touch()
    with pytest.raises(WorkloadError, match=r"empty\.json: the file is empty$"):
        read_workload(str(empty))


def test_faulty_workload_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    path.write_text("old")
    workload = parse(workload_object())
    workload.cpu.shares[3] = math.nan
    with pytest.raises(WorkloadError, match=r"workload\.json: series\[1\]\.cpu\[0\]: nan is not a share from 0 to 1"):
        write_workload(path, workload)
    workload = parse(workload_object())
    workload.delete_s[0] = math.nan
    with pytest.raises(WorkloadError, match=r"vms\[0\]\.delete_s: nan is not a time"):
        write_workload(path, workload)
    assert [file.name for file in tmp_path.iterdir()] == ["workload.json"]
    assert path.read_text() == "old"


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="No such file or directory"):
        write_workload(tmp_path / "none" / "workload.json", parse(workload_object()))
