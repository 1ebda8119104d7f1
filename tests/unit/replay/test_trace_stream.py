"""A large trace read through a buffer is the one that the decoder reads; what is odd or wrong is left to the decoder."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.replay import trace as trace_module
from model.replay.trace import Trace, TraceError, build_streamed, parse_trace, read_trace
from model.replay.trace_stream import stream_trace
from tests.conftest import DATA, TraceObject, build_trace

COMPACT, SPACED = (",", ":"), (", ", ": ")


def streamed(text: bytes, *, buffer: int = 1, largest_share: float = 1.0) -> Trace | None:
    """The trace without the decoder; with the smallest buffer, so that many pieces cross its end."""
    found = stream_trace(io.BytesIO(text), buffer=buffer, largest_share=largest_share)
    try:
        return None if found is None else build_streamed(found)
    except TraceError:
        return None


def decoded(text: bytes) -> Trace | None:
    try:
        return parse_trace(text)
    except TraceError:
        return None


def content(trace: Trace) -> Any:
    """Everything that a trace holds; NaN as text, so that it equals itself."""
    periods = [trace.node_periods, *(vm for _, vm in trace.vm_periods())]
    return (
        *(trace.config, trace.config_fields, trace.epoch, trace.vms),
        [[None if one is None else repr((one.time.tolist(), one.cpu_config, one.mem_config, one.cpu_usage.tolist(),
                                         one.mem_usage.tolist(), one.has_data, one.waits)) for one in vm]
         for vm in periods],
        [repr((one.vms, one.cpu.booked_now, one.mem.booked_now, one.position)) for one in trace.slices()],
    )  # fmt: skip


def with_other_lists(trace: TraceObject, dice: random.Random, lists: int) -> TraceObject:
    """Lists that a replay does not use, before, between and behind the others."""
    for vm in trace["vm"].values():
        for k, period in enumerate(vm["raw_data"]):
            other = {f"other{i}": [round(dice.uniform(-1, 1e3), 3) for _ in range(4)] for i in range(lists)}
            pairs = [*period.items(), *other.items()]
            # The same order in every slice, as writers have it.
            random.Random(lists).shuffle(pairs)
            vm["raw_data"][k] = dict(pairs)
    return trace


#: Changes of a slice that are legal, and whether the slice is still read without the decoder of the whole trace.
CHANGES: tuple[tuple[Callable[[dict[str, Any], str], Any], bool], ...] = (
    *((lambda period, _: period, True),) * 12,
    (lambda *_: {}, True),
    (lambda *_: None, False),
    (lambda period, key: {name: one for name, one in period.items() if name != key}, True),
    (lambda period, key: {**period, key: None}, True),
    (lambda period, _: {**period, "cpu_usage": [None, 0.25]}, True),
    (lambda period, _: {**period, "cpu_usage": []}, True),
    (lambda period, _: {**period, "cpu_wait": [0.0, 0.1, None]}, True),
    (lambda period, _: {**period, "text": ["cpu_usage", "a]b"]}, True),
    (lambda period, _: {**period, "number": 7}, True),
    (lambda period, _: {**period, "nested": [[1, 2], [3]]}, True),
    (lambda period, _: dict(reversed(period.items())), True),
    (lambda period, _: {**period, "other": {"cpu_usage": [9.0]}}, False),
    (lambda period, _: {**period, "text": 'a "}" b'}, False),
    (lambda period, _: {**period, "text": "a } b"}, False),
)


def varied(dice: random.Random) -> tuple[bytes, bool]:
    """A legal trace as one of many writers could have written it; and whether it must not need the decoder."""
    trace = build_trace(slices=dice.randint(2, 9), positions=1)
    # Some are longer than the window.
    trace = with_other_lists(trace, dice, dice.choice((0, 3, 40)))
    is_plain = True
    for vm in trace["vm"].values():
        for k, period in enumerate(vm["raw_data"]):
            change, plain = dice.choice(CHANGES)
            vm["raw_data"][k] = change(period, dice.choice(list(period)))
            is_plain &= plain
    trace["meta"] = {"a": [{"b": "c"}, 1], "d": {}} if dice.random() < 0.5 else {}
    keys = list(trace)
    dice.shuffle(keys)
    trace = {key: trace[key] for key in keys}
    separators = dice.choice((COMPACT, SPACED, None))
    if separators is None:
        return json.dumps(trace, indent=1).encode(), is_plain
    return json.dumps(trace, separators=separators).encode(), is_plain


@pytest.mark.parametrize("seed", range(8))
def test_legal_trace_is_the_one_that_the_decoder_reads(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        text, is_plain = varied(dice)
        found = streamed(text)
        assert found is not None or not is_plain, text
        if found is not None:
            assert content(found) == content(parse_trace(text))


@pytest.mark.parametrize("path", sorted((DATA / "goldens" / "traces").glob("*.json")), ids=lambda path: path.stem)
def test_golden_trace_does_not_need_the_decoder(path: Path) -> None:
    text = path.read_bytes()
    found = streamed(text)
    assert found is not None
    assert content(found) == content(parse_trace(text))


PIECES = (
    *(b"", b"", b'"', b"}", b"{", b"]", b"[", b",", b":", b"null", b"NaN", b"-", b"7", b"\xff", b"9" * 40, b"\\"),
    *(b'\\"', b"true", b"e", b".", b'"cpu_usage":[1],', b'"time":[],'),
)


#: A list whose key is not used, up to the next key or the end of the slice.
OTHER_LIST = re.compile(
    rb'"(?!(?:time|cpu|mem|cpu_usage|mem_usage|vm|vms|raw_data|epoch|config|node)")[^"{}]*":\s*\[[^"{}]*\](?=,\s?"|\})'
)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_trace_gives_the_same_or_is_left_to_the_decoder(seed: int, separators: tuple[str, str]) -> None:
    dice = random.Random(seed)
    text = json.dumps(with_other_lists(build_trace(4), dice, 6), separators=separators).encode()
    kept = 0
    for _ in range(600):
        damaged = bytearray(text)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(damaged))
            damaged[at : at + dice.choice((0, 1, 1, 1, 5, 40))] = dice.choice((*PIECES, text[at : at + 60]))
        found = streamed(bytes(damaged))
        if found is None:
            continue
        kept += 1
        # A fault within a list that is not used is not looked for.
        correct = decoded(bytes(damaged)) or decoded(OTHER_LIST.sub(b'"other":[]', bytes(damaged)))
        assert correct is not None, damaged
        assert content(found) == content(correct), damaged
    assert kept > 40


def test_trace_that_ends_early_or_goes_on_is_left_to_the_decoder() -> None:
    text = json.dumps(with_other_lists(build_trace(), random.Random(1), 3)).encode()
    assert streamed(text) is not None
    for length in range(0, len(text), 61):
        assert streamed(text[:length]) is None
    assert streamed(text + b"x") is None
    assert streamed(text + b" \n") is not None
    assert streamed(b"\xef\xbb\xbf" + text) is None
    assert streamed(text.replace(b'"meta"', b'"a"') + b"{}") is None


@pytest.mark.parametrize("text", [b'{"config":' + b"[" * 100_000, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_deep_nesting_is_left_to_the_decoder(text: bytes) -> None:
    assert streamed(text) is None


def test_usage_as_a_share_is_left_to_the_decoder() -> None:
    trace = build_trace()
    trace["config"]["vm_cpu_unit"] = "share"
    assert streamed(json.dumps(trace).encode()) is None


def test_compact_trace_is_left_to_the_decoder_after_its_first_slice() -> None:
    compact = json.dumps(build_trace()).encode()
    assert streamed(compact, largest_share=0.6) is None
    large = json.dumps(with_other_lists(build_trace(), random.Random(1), 20)).encode()
    assert streamed(large, largest_share=0.6) is not None


@pytest.fixture
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "SHORTEST", 0)


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize("key", ["cpu_usage", "mem", "time"])
def test_fault_of_a_large_file_has_its_place(key: str, tmp_path: Path) -> None:
    trace = with_other_lists(build_trace(), random.Random(1), 20)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    assert content(read_trace(path)) == content(parse_trace(path.read_bytes()))
    trace["vm"]["b"]["raw_data"][3][key][1] = "x"
    path.write_text(json.dumps(trace))
    with pytest.raises(TraceError, match=rf"trace\.json: vm\.b\.raw_data\[3\]\.{key}\[1\]: expected a number or null"):
        read_trace(path)


@pytest.mark.usefixtures("every_file_is_large")
def test_large_file_is_not_decoded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(with_other_lists(build_trace(), random.Random(1), 20)))
    monkeypatch.setattr(trace_module, "parse_trace", None)
    assert len(read_trace(path)) == 6
