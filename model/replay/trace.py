"""Reads traces.

A trace is decoded in one pass: the decoder skips unused keys and returns the lists as pieces of the file, which are
turned into arrays one by one. Everything is checked before the first slice is used. A message names the place of the
fault: ``vm.vm7.raw_data[12].cpu_usage``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import msgspec

from ..common.json_text import has_literals, not_json, replace_literals, validation_message
from ..common.text import printable
from ..slices import LARGEST
from .trace_data import Period, Trace, TraceConfig, TraceError
from .trace_lists import PeriodReader, RawNodePeriod, RawPeriod, SharedLists
from .trace_stream import SHORTEST, StreamedTrace, stream_trace

__all__ = ["Trace", "TraceConfig", "TraceError", "parse_trace", "read_trace"]

_LONGEST_HISTORY = 1_000_000


class _RawNode(msgspec.Struct):
    raw_data: list[RawNodePeriod | None]


class _RawVm(msgspec.Struct):
    raw_data: list[RawPeriod | None]


class _RawTrace(msgspec.Struct):
    config: msgspec.Raw
    epoch: list[float]
    node: _RawNode
    vm: dict[str, _RawVm] = {}


class _Outline(msgspec.Struct):
    """The outermost keys of a trace, to find the place of a fault."""

    config: msgspec.Raw
    epoch: msgspec.Raw
    node: msgspec.Raw
    vm: dict[str, msgspec.Raw] = {}


_TRACE = msgspec.json.Decoder(_RawTrace)


def read_trace(path: str | Path) -> Trace:
    """Read, decode and check a trace file.

    Raises
    ------
    TraceError
        When the file cannot be read or is not a trace; the message names file and place.
    """
    try:
        with Path(path).open("rb") as file:
            trace = _streamed(file)
            data = file.read() if trace is None else b""
    except OSError as error:
        raise TraceError(f"{printable(str(path))}: {error.strerror}") from None
    if trace is not None:
        return trace
    try:
        return parse_trace(data)
    except TraceError as error:
        raise TraceError(f"{printable(str(path))}: {error}") from None


def _streamed(file: BinaryIO) -> Trace | None:
    """A large trace, read without what is not used; None, and the file at its beginning, when all has to be decoded."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size < SHORTEST:
        return None
    streamed = stream_trace(file)
    try:
        trace = None if streamed is None else build_streamed(streamed)
    except TraceError:
        # The decoder also finds faults that come before this one.
        trace = None
    file.seek(0)
    return trace


def build_streamed(streamed: StreamedTrace) -> Trace | None:
    """Check what was read as a stream; None when the VMs' usage is not in cores.

    Raises
    ------
    TraceError
    """
    config, config_fields = _config_of(streamed.config)
    _check_epoch(streamed.epoch)
    if config.vm_cpu_unit != "cores":
        return None
    slices = len(streamed.epoch)
    for name, periods in streamed.vms.items():
        _check_length(f"vm.{name}.raw_data", periods, slices)
    node = _node_of(streamed.node, slices, streamed.time)
    return Trace(config=config, config_fields=config_fields, epoch=streamed.epoch, **node, vms=streamed.vms)


def parse_trace(data: bytes) -> Trace:
    """Decode and check the text of a trace.

    Raises
    ------
    TraceError
        With the place in the trace, without a file name.
    """
    if not data.strip():
        raise TraceError("the file is empty")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        try:
            raw = _decode_trace(data)
        except msgspec.DecodeError as error:
            if not has_literals(data):
                raise TraceError(not_json(error, data)) from None
            raw = _decode_without_literals(data)
        return _build(raw)
    except UnicodeDecodeError as error:
        raise TraceError(f"not JSON: a string is not UTF-8 ({error.reason})") from None


def _decode_trace(data: bytes) -> _RawTrace:
    try:
        return _TRACE.decode(data)
    except msgspec.ValidationError as error:
        raise TraceError(_place_of_fault(data, error)) from None
    except RecursionError:
        raise TraceError("not a trace: nested too deeply") from None


def _decode_without_literals(data: bytes) -> _RawTrace:
    clean = replace_literals(data, b"null")
    try:
        return _decode_trace(clean)
    except msgspec.DecodeError as error:
        raise TraceError(not_json(error, clean)) from None


def _place_of_fault(data: bytes, error: msgspec.ValidationError) -> str:
    """Decode piece by piece to find the name of the VM, which the error of the decoder does not contain."""
    pieces: list[tuple[str, msgspec.Raw, Any]] = []
    try:
        outline = msgspec.json.decode(data, type=_Outline)
        pieces = [("epoch", outline.epoch, list[float]), ("node", outline.node, _RawNode)]
        pieces += [(f"vm.{name}", raw, _RawVm) for name, raw in outline.vm.items()]
        for place, raw, kind in pieces:
            _checked(raw, kind, place)
    except msgspec.ValidationError as first:
        return _message(first, "")
    except TraceError as fault:
        return str(fault)
    return _message(error, "")


def _message(error: msgspec.ValidationError, prefix: str) -> str:
    message = validation_message(error, prefix, "the trace")
    return f"{message}, neither 'cores' nor 'share'" if "invalid enum value" in message else message


def _checked(raw: msgspec.Raw, kind: Any, place: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise TraceError(_message(error, place)) from None


def _build(raw: _RawTrace) -> Trace:
    config, config_fields = _config_of(raw.config)
    _check_epoch(raw.epoch)
    slices = len(raw.epoch)
    time = SharedLists()
    node = _node_of(raw.node.raw_data, slices, time)
    vms: dict[str, Sequence[Period]] = {}
    for name, vm in raw.vm.items():
        _check_length(f"vm.{name}.raw_data", vm.raw_data, slices)
        reader = PeriodReader(f"vm.{name}", time, share=config.vm_cpu_unit == "share")
        vms[name] = reader.periods(vm.raw_data)
    return Trace(config=config, config_fields=config_fields, epoch=raw.epoch, **node, vms=vms)


class _NodeParts(TypedDict):
    node: Sequence[Period]
    listed: Sequence[frozenset[str] | None]
    alive: Sequence[frozenset[str] | None]


def _node_of(raw_data: Sequence[RawNodePeriod | None], slices: int, time: SharedLists) -> _NodeParts:
    """The slices of the node, the VMs that it lists in each, and those that are alive at its end."""
    _check_length("node.raw_data", raw_data, slices)
    return {
        "node": PeriodReader("node", time, is_node=True).periods(raw_data),
        "listed": [_names(period.vm if period else None) for period in raw_data],
        "alive": [_names(period.alive if period else None) for period in raw_data],
    }


def _config_of(raw: msgspec.Raw) -> tuple[TraceConfig, dict[str, Any]]:
    """The checked ``config`` object, and all of its keys."""
    config: TraceConfig = _checked(raw, TraceConfig, "config")
    config_fields: dict[str, Any] = _checked(raw, dict, "config")
    _check_config(config)
    return config, config_fields


def _names(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _check_config(config: TraceConfig) -> None:
    for name in ("node_scope", "slice_scope"):
        if not 0 < getattr(config, name) <= LARGEST:
            raise TraceError(f"config.{name}: {getattr(config, name):g} is not a length of time")
    ratio = config.node_scope / config.slice_scope
    if not 1 <= ratio <= _LONGEST_HISTORY or not math.isclose(ratio, round(ratio), rel_tol=1e-9):
        raise TraceError(
            f"config.node_scope: {config.node_scope:g} s is not 1 to {_LONGEST_HISTORY} times slice_scope, "
            f"{config.slice_scope:g} s"
        )
    h = config.historical_occurences
    if not 0 <= h <= _LONGEST_HISTORY or h != int(h):
        raise TraceError(f"config.historical_occurences: {h:g} is not a whole number from 0 to {_LONGEST_HISTORY}")


def _check_epoch(epoch: Sequence[float]) -> None:
    if not epoch:
        raise TraceError("epoch: is empty")
    for k, end_s in enumerate(epoch):
        if abs(end_s) > LARGEST:
            raise TraceError(f"epoch[{k}]: {end_s:g} is not a time")
        if k and end_s <= epoch[k - 1]:
            raise TraceError(f"epoch[{k}]: {end_s:g} is not after epoch[{k - 1}], {epoch[k - 1]:g}")


def _check_length(place: str, entries: Sequence[object], expected: int) -> None:
    if len(entries) != expected:
        raise TraceError(f"{printable(place)}: {len(entries)} slices where epoch has {expected}")
