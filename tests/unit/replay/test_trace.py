"""Traces: unusual but legal content is read, a malformed trace gives an error with its place."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.common.text import printable
from model.replay.trace import TraceError, parse_trace, read_trace
from tests.conftest import TraceObject, build_trace, lists


def parse(trace: Any):  # type: ignore[no-untyped-def]
    return parse_trace(trace if isinstance(trace, bytes) else json.dumps(trace).encode())


def present(trace: Any) -> list[tuple[str, ...]]:
    return [s.vms for s in parse(trace).slices()]


def fault(trace: Any) -> str:
    with pytest.raises(TraceError) as raised:
        parse(trace)
    message = str(raised.value)
    assert "\n" not in message
    return message


# --- legal ------------------------------------------------------------------------------------------


def test_slices_come_in_order_with_their_positions(trace_object: TraceObject) -> None:
    trace_object["config"]["node_scope"] = 5400
    assert [(s.end_s, s.position) for s in parse(trace_object).slices()] == [
        (1800, 0),
        (3600, 1),
        (5400, 2),
        (7200, 0),
        (9000, 1),
        (10800, 2),
    ]


def test_config_is_the_last_value_and_is_carried_on(trace_object: TraceObject) -> None:
    raw = trace_object["vm"]["a"]["raw_data"]
    raw[1]["cpu"] = [4.0, 4.0, 8.0]
    raw[2]["cpu"] = None
    del raw[3]["cpu"]
    raw[4]["cpu"] = [2.0, None]
    configs = [float(s.cpu.vm_config[0]) for s in parse(trace_object).slices()]
    assert configs == [4.0, 8.0, 8.0, 8.0, 2.0, 4.0]


def test_node_may_change_its_size(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][2]["cpu"] = [16.0, 16.0, 32.0]
    assert [s.cpu.config for s in parse(trace_object).slices()] == [16, 16, 32, 16, 16, 16]


def test_null_samples_are_no_data(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][0]["cpu_usage"] = [1.0, None, 3.0]
    trace_object["vm"]["a"]["raw_data"][0]["cpu_usage"] = [None, 0.5, None]
    first = next(parse(trace_object).slices())
    assert first.cpu.node.tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(first.cpu.vm_usage[0], [math.nan, 0.5, math.nan])


def test_nan_and_infinity_literals_are_no_data(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][0]["cpu_usage"] = [1.0, math.nan, math.inf, -math.inf, 3.0]
    assert next(parse(trace_object).slices()).cpu.node.tolist() == [1.0, 3.0]


def test_literals_inside_strings_are_names() -> None:
    trace = build_trace()
    name = 'NaN, "Infinity] \\'
    trace["vm"][name] = trace["vm"].pop("a")
    trace["node"]["raw_data"][0]["cpu_usage"] = [1.0, math.nan]
    for raw in trace["node"]["raw_data"]:
        del raw["vm"]
    assert present(trace)[0] == (name, "b")


def test_integers_are_as_good_as_floats(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][0] = lists([1, 2], 16, 32768, [1, 2])
    first = next(parse(trace_object).slices())
    assert first.cpu.node.tolist() == [1.0, 2.0]
    assert first.cpu.config == 16.0


def test_lists_of_a_slice_may_differ_in_length(trace_object: TraceObject) -> None:
    trace_object["vm"]["a"]["raw_data"][0] |= {"cpu_usage": [1.0], "mem_usage": [1.0, 2.0, 3.0, 4.0], "time": []}
    first = next(parse(trace_object).slices())
    assert first.mem.vm_usage[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(first.cpu.vm_usage[0], [1.0, math.nan, math.nan])


def test_node_gap_is_a_slice_without_data(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][1] = {}
    trace_object["node"]["raw_data"][2] = None
    measured = [s.cpu.measured for s in parse(trace_object).slices()]
    assert measured == [True, False, False, True, True, True]


def test_no_vm_at_all() -> None:
    trace = build_trace()
    trace["vm"] = {}
    assert present(trace) == [()] * 6


def test_trace_without_the_key_vm_is_a_node_without_vms(trace_object: TraceObject) -> None:
    del trace_object["vm"]
    slices = list(parse(trace_object).slices())
    assert [s.vms for s in slices] == [()] * 6
    assert [s.cpu.node.tolist() for s in slices[:2]] == [[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]]


def test_fault_in_a_trace_without_the_key_vm_has_its_place(trace_object: TraceObject) -> None:
    del trace_object["vm"]
    trace_object["node"]["raw_data"][1]["vm"] = "a"
    assert "node.raw_data[1].vm: " in fault(trace_object)


def test_unknown_fields_are_ignored(trace_object: TraceObject) -> None:
    trace_object["meta"] = {"deep": [[{"x": [1, "two", None]}]]}
    trace_object["node"]["more"] = 1
    trace_object["node"]["raw_data"][0] |= {"booked_cpu": 12.0, "weird": {"a": "b"}}
    trace_object["vm"]["a"]["raw_data"][0]["mem_rss"] = [1.0]
    assert present(trace_object) == [("a", "b")] * 6


def test_vm_without_data_is_absent(trace_object: TraceObject) -> None:
    trace_object["vm"]["a"]["raw_data"][1] = {}
    trace_object["vm"]["a"]["raw_data"][2] = None
    assert present(trace_object) == [("a", "b"), ("b",), ("b",), ("a", "b"), ("a", "b"), ("a", "b")]


def test_vm_whose_samples_are_all_null_is_absent(trace_object: TraceObject) -> None:
    trace_object["vm"]["a"]["raw_data"][1] = {"time": [1.0], "cpu": [None], "cpu_usage": [None], "mem": []}
    assert present(trace_object)[1] == ("b",)


def test_history_may_be_written_as_a_float(trace_object: TraceObject) -> None:
    trace_object["config"]["historical_occurences"] = 2.0
    assert parse(trace_object).config.historical == 2


def test_vm_that_the_node_does_not_list_is_absent(trace_object: TraceObject) -> None:
    trace_object["node"]["raw_data"][3]["vm"] = ["b", "unlisted"]
    assert present(trace_object)[3] == ("b",)


def test_vm_that_repeats_its_slice_with_its_time_has_left(trace_object: TraceObject) -> None:
    raw = trace_object["vm"]["b"]["raw_data"]
    raw[2] = raw[1]
    raw[3] = raw[1]
    assert present(trace_object) == [("a", "b"), ("a", "b"), ("a",), ("a",), ("a", "b"), ("a", "b")]


def test_departure_is_a_repetition_at_the_same_position() -> None:
    trace = build_trace(slices=6, positions=2)
    raw = trace["vm"]["b"]["raw_data"]
    raw[1] = raw[0]  # the neighbour's samples are no departure
    raw[4] = raw[2]  # those of the same position are
    assert present(trace) == [("a", "b")] * 4 + [("a",), ("a", "b")]


def test_constant_usage_is_no_departure(trace_object: TraceObject) -> None:
    for k, raw in enumerate(trace_object["vm"]["b"]["raw_data"]):
        raw |= {"cpu_usage": [1.0] * 3, "mem_usage": [2.0] * 3, "time": [k, k + 1, k + 2]}
    assert present(trace_object) == [("a", "b")] * 6


def test_repetition_with_other_notation_is_a_repetition(trace_object: TraceObject) -> None:
    text = json.dumps(trace_object)
    trace_object["vm"]["b"]["raw_data"][2] = trace_object["vm"]["b"]["raw_data"][1]
    before, after = json.dumps(trace_object["vm"]["b"]["raw_data"][1]), "1800.0, 2400.0"
    assert after in before
    text = json.dumps(trace_object)
    last = text.rfind(after)
    assert present((text[:last] + "18e2,   2.4e3" + text[last + len(after) :]).encode()) == present(text.encode())


def test_share_of_a_vm_becomes_cores(trace_object: TraceObject) -> None:
    trace_object["config"]["vm_cpu_unit"] = "share"
    first = next(parse(trace_object).slices())
    assert first.cpu.vm_usage[0].tolist() == [2.0, 2.4, pytest.approx(2.8)]  # 4 vCPUs
    assert first.mem.vm_usage[0].tolist() == pytest.approx([50, 60, 70])


def test_order_of_vms_in_the_file_is_irrelevant(trace_object: TraceObject) -> None:
    turned = dict(trace_object, vm=dict(reversed(trace_object["vm"].items())))
    for a, b in zip(parse(trace_object).slices(), parse(turned).slices(), strict=True):
        assert a.vms == b.vms
        np.testing.assert_array_equal(a.cpu.vm_usage, b.cpu.vm_usage)


def test_order_of_keys_in_the_file_is_irrelevant(trace_object: TraceObject) -> None:
    turned = {key: trace_object[key] for key in ("vm", "node", "epoch", "config")}
    assert present(turned) == present(trace_object)


def test_byte_order_mark_is_skipped(trace_object: TraceObject) -> None:
    assert present(b"\xef\xbb\xbf" + json.dumps(trace_object).encode()) == present(trace_object)


@pytest.mark.parametrize(
    "name", ["a/b", "line\nbreak", "<script>alert(1)</script>", "\u202e", "ü", "", "\x00", "$x^2$"]
)
def test_any_name_is_a_name(name: str) -> None:
    trace = build_trace()
    trace["vm"] = {name: trace["vm"]["a"]}
    trace["config"]["node_name"] = name
    for raw in trace["node"]["raw_data"]:
        raw["vm"] = [name]
    assert present(trace) == [(name,)] * 6


# --- malformed --------------------------------------------------------------------------------------

Damage = Callable[[TraceObject], Any]


def put(path: str, value: Any) -> Damage:
    """Put a value at a place such as ``vm.a.raw_data.2.cpu``."""

    def damage(trace: TraceObject) -> Any:
        *way, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
        at: Any = trace
        for key in way:
            at = at[key]
        at[last] = value
        return trace

    return damage


def drop(path: str) -> Damage:
    def damage(trace: TraceObject) -> Any:
        *way, last = path.split(".")
        at: Any = trace
        for key in way:
            at = at[int(key) if key.isdecimal() else key]
        del at[int(last) if last.isdecimal() else last]
        return trace

    return damage


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (drop("config"), "config"),
        (drop("epoch"), "epoch"),
        (drop("node"), "node"),
        (drop("node.raw_data"), "node: "),
        (drop("vm.a.raw_data"), "vm.a: "),
        (drop("config.node_name"), "node_name"),
        (drop("config.slice_scope"), "slice_scope"),
        (put("config", []), "config: "),
        (put("config.node_name", 7), "config.node_name: "),
        (put("config.slice_scope", "x"), "config.slice_scope: "),
        (put("config.slice_scope", 0), "config.slice_scope: "),
        (put("config.slice_scope", -1800), "config.slice_scope: "),
        (put("config.node_scope", 2700), "config.node_scope: "),
        (lambda t: put("config.node_scope", 1e15)(put("config.slice_scope", 1e-300)(t)), "config.node_scope: "),
        (put("config.node_scope", 900), "config.node_scope: "),
        (put("config.historical_occurences", -1), "config.historical_occurences: "),
        (put("config.historical_occurences", 1.5), "config.historical_occurences: "),
        (put("config.historical_occurences", 10**12), "config.historical_occurences: "),
        (put("config.vm_cpu_unit", "bananas"), "config.vm_cpu_unit: "),
        (put("epoch", []), "epoch: "),
        (put("epoch", 3), "epoch: "),
        (put("epoch.2", "noon"), "epoch[2]: "),
        (put("epoch.2", None), "epoch[2]: "),
        (put("epoch.3", 1800), "epoch[3]: "),
        (drop("epoch.5"), "node.raw_data: "),
        (drop("node.raw_data.5"), "node.raw_data: "),
        (drop("vm.b.raw_data.5"), "vm.b.raw_data: "),
        (put("node.raw_data", {}), "node.raw_data: "),
        (put("node.raw_data.1", []), "node.raw_data[1]: "),
        (put("node.raw_data.1.vm", "a"), "node.raw_data[1].vm: "),
        (put("node.raw_data.1.vm", [1]), "node.raw_data[1].vm[0]: "),
        (put("node.raw_data.1.cpu", [0]), "node.raw_data[1].cpu: "),
        (put("node.raw_data.1.mem", [-5]), "node.raw_data[1].mem: "),
        (put("node.raw_data.1.cpu_usage", 5), "node.raw_data[1].cpu_usage: "),
        (put("node.raw_data.1.cpu_usage", [1, [2]]), "node.raw_data[1].cpu_usage[1]: "),
        (put("node.raw_data.1.cpu_usage", [1, 1e300]), "node.raw_data[1].cpu_usage: "),
        (put("vm", []), "vm: "),
        (put("vm.a", 1), "vm.a: "),
        (put("vm.a.raw_data.4", "gone"), "vm.a.raw_data[4]: "),
        (put("vm.a.raw_data.4.cpu", [-1]), "vm.a.raw_data[4].cpu: "),
        (put("vm.a.raw_data.4.mem", {"x": 1}), "vm.a.raw_data[4].mem: "),
        (put("vm.b.raw_data.2.cpu_usage", [0.5, "0.6"]), "vm.b.raw_data[2].cpu_usage[1]: "),
        (put("vm.b.raw_data.2.cpu_usage", [True]), "vm.b.raw_data[2].cpu_usage[0]: "),
        (put("vm.b.raw_data.2.mem_usage", "lots"), "vm.b.raw_data[2].mem_usage: "),
        (put("vm.b.raw_data.2.time", [None, {}]), "vm.b.raw_data[2].time[1]: "),
    ],
)
def test_fault_is_reported_with_its_place(trace_object: TraceObject, damage: Damage, place: str) -> None:
    assert place in fault(damage(trace_object))


def test_fault_in_a_vm_with_an_unprintable_name_stays_on_one_line(trace_object: TraceObject) -> None:
    trace_object["vm"]["a\nb\x1b[31m"] = {"raw_data": 5}
    assert "vm.a\\nb\\x1b[31m.raw_data: " in fault(trace_object)


@pytest.mark.parametrize(
    "text", [b"", b" \n", b"{", b"[]", b"null", b"7", b'"x"', b"hello", b"{} {}", b"\xff\xfe{}", b'{"config": NaN']
)
def test_text_other_than_a_json_object_is_refused(text: bytes) -> None:
    assert fault(text)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b'{"config":' + b"[" * 100_000])
def test_deep_nesting_is_refused(text: bytes) -> None:
    assert fault(text)


def test_number_beyond_floats_is_refused(trace_object: TraceObject) -> None:
    text = json.dumps(trace_object).replace("0.6", "1e999", 1).encode()
    assert fault(text)


def test_truncation_anywhere_is_refused(trace_object: TraceObject) -> None:
    text = json.dumps(trace_object).encode()
    for length in [*range(0, len(text) - 1, 97), len(text) - 1]:
        assert fault(text[:length])


def test_random_damage_gives_a_trace_error_or_a_trace(trace_object: TraceObject) -> None:
    text = json.dumps(trace_object).encode()
    dice = random.Random(1)
    for _ in range(3000):
        damaged = bytearray(text)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(damaged))
            damaged[at : at + dice.choice((0, 1, 1, 5))] = dice.choice(
                (b"", b'"', b"}", b"]", b"[", b",", b"null", b"NaN", b"-", b"\xff", b"9" * 40, b"\\ud800", b"true")
            )
        with contextlib.suppress(TraceError):
            list(parse_trace(bytes(damaged)).slices())


def test_file_whose_name_is_not_utf8_is_read(trace_object: TraceObject, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"tr\xe4ce.json")
    path.write_text(json.dumps(trace_object))
    assert len(read_trace(path)) == 6
    path.write_text("{")
    with pytest.raises(TraceError, match=r"tr\\udce4ce\.json: not JSON"):
        read_trace(path)


def test_missing_file_and_folder_are_reported(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TraceError, match=words):
            read_trace(path)


def test_printable_keeps_text_and_escapes_the_rest() -> None:
    assert printable("vm-ü 1") == "vm-ü 1"
    assert printable("a\tb\x00") == "a\\tb\\x00"


# --- alive at the end -------------------------------------------------------------------------------


def alive_in_one_slice(node: list[float] | None, vms: dict[str, list[float | None] | None], **more: Any) -> Any:
    """The VMs that are alive at the end of a slice with these times."""
    samples = {"cpu": [2], "mem": [1024], "cpu_usage": [1.0], "mem_usage": [512.0]}

    def with_times(times: Any) -> dict[str, Any]:
        return samples if times is None else samples | {"time": times}

    (one,) = parse(
        {
            "config": {"node_name": "n", "node_scope": 60, "slice_scope": 60, "historical_occurences": 0},
            "epoch": [60],
            "node": {"raw_data": [with_times(node) | more]},
            "vm": {name: {"raw_data": [with_times(times)]} for name, times in vms.items()},
        }
    ).slices()
    assert one.vms == tuple(vms)
    assert one.cpu.booked_now == one.mem.booked_now / 512 == 2 * len(one.alive)
    return one.alive


def test_vm_whose_times_end_clearly_before_those_of_the_node_is_not_alive_at_the_end() -> None:
    times = [10.0, 20.0, 30.0, 40.0]
    vms = {
        **{"a": times, "early": [10.0, 20.0, 30.0], "gap": [10.0, 20.0, 30.0, None], "late": [41.0], "no_times": None},
        **{"on_the_edge": [35.0], "past_the_edge": [34.9]},
    }
    assert alive_in_one_slice(times, vms) == ("a", "late", "no_times", "on_the_edge")


@pytest.mark.parametrize("node", [None, [], [40.0]])
def test_vms_of_a_node_without_a_sample_interval_are_alive(node: list[float] | None) -> None:
    assert alive_in_one_slice(node, {"a": [10.0], "b": None}) == ("a", "b")


def test_list_of_the_vms_alive_takes_precedence_over_their_times() -> None:
    times = [10.0, 20.0, 30.0, 40.0]
    assert alive_in_one_slice(times, {"a": times, "b": [10.0], "c": times}, alive=["b", "c", "gone"]) == ("b", "c")
    assert fault(trace_with_alive("a")) == "node.raw_data[0].alive: expected array or null, got str"


def trace_with_alive(alive: Any) -> dict[str, Any]:
    return {
        "config": {"node_name": "n", "node_scope": 60, "slice_scope": 60, "historical_occurences": 0},
        "epoch": [60],
        "node": {"raw_data": [{"alive": alive}]},
        "vm": {},
    }
