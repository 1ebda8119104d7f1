"""JSON traces to slices.

A trace is read in one pass: the decoder skips what is not needed and hands out the lists that are as
pieces of the file, which are then turned into arrays one by one. Everything is checked before the first
slice is handed out, and a fault is told with its place: ``vm.vm7.raw_data[12].cpu_usage``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..common.text import printable
from ..numerics import FloatArray
from ..slices import CPU, LARGEST, MEMORY, Resource, Slice, Usage, usage_of

_LONGEST_HISTORY = 1_000_000


class TraceError(ValueError):
    """A trace that can't be used; the message is one line that names the place."""


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The ``config`` object of a trace (``historical_occurences`` is h)."""

    node_name: str
    node_scope: float
    slice_scope: float
    historical_occurences: float
    vm_cpu_unit: Literal["cores", "share"] = "cores"

    @property
    def historical(self) -> int:
        """h, as a whole number."""
        return int(self.historical_occurences)

    @property
    def positions(self) -> int:
        """S: how many slices a scope has."""
        return round(self.node_scope / self.slice_scope)


@dataclass(frozen=True, slots=True)
class _Period:
    """What a node or a VM said during one slice; NaN and empty where it said nothing."""

    time: FloatArray
    cpu_config: float
    mem_config: float
    cpu_usage: FloatArray
    mem_usage: FloatArray
    there: bool

    def repeats(self, earlier: _Period) -> bool:
        """Whether every sample is the earlier one's, its time included."""
        return (
            self.time.size > 0
            and _same(self.time, earlier.time)
            and _same(self.cpu_usage, earlier.cpu_usage)
            and _same(self.mem_usage, earlier.mem_usage)
            and self.cpu_config == earlier.cpu_config
            and self.mem_config == earlier.mem_config
        )

    def config(self, resource: Resource) -> float:
        return self.cpu_config if resource is CPU else self.mem_config

    def usage(self, resource: Resource) -> FloatArray:
        return self.cpu_usage if resource is CPU else self.mem_usage


def _same(a: FloatArray, b: FloatArray) -> bool:
    # By their bytes: NaN is equal to NaN here, and it costs a tenth of a comparison by elements.
    return a is b or (a.size == b.size and a.tobytes() == b.tobytes())


_NOTHING: FloatArray = np.empty(0)


class Trace:
    """A trace, checked and decoded.

    Attributes
    ----------
    config : TraceConfig
    config_fields : dict
        The ``config`` object as it stands in the file, unknown keys included.
    epoch : list of float
        The end of each slice.
    vms : tuple of str
        The names of all VMs, sorted.
    """

    def __init__(
        self,
        *,
        config: TraceConfig,
        config_fields: dict[str, Any],
        epoch: list[float],
        node: Sequence[_Period],
        listed: Sequence[frozenset[str] | None],
        vms: dict[str, Sequence[_Period]],
    ) -> None:
        self.config = config
        self.config_fields = config_fields
        self.epoch = epoch
        self.vms = tuple(sorted(vms))
        self._node = node
        self._listed = listed
        self._vm_periods = [vms[name] for name in self.vms]

    def __len__(self) -> int:
        return len(self.epoch)

    def slices(self) -> Iterator[Slice]:
        """The slices, one by one, in time order."""
        positions = self.config.positions
        for k, end_s in enumerate(self.epoch):
            present = [
                (name, periods[k])
                for name, periods in zip(self.vms, self._vm_periods, strict=True)
                if self._is_present(name, periods, k, positions)
            ]
            yield Slice(
                end_s=end_s,
                position=k % positions,
                vms=tuple(name for name, _ in present),
                cpu=_usage(CPU, self._node[k], [period for _, period in present]),
                mem=_usage(MEMORY, self._node[k], [period for _, period in present]),
            )

    def _is_present(self, name: str, periods: Sequence[_Period], k: int, positions: int) -> bool:
        listed = self._listed[k]
        if not periods[k].there or (listed is not None and name not in listed):
            return False
        # The original's dumps mark a departure so: the last slice at that position stands there again.
        return k < positions or not periods[k].repeats(periods[k - positions])


def _usage(resource: Resource, node: _Period, vms: Sequence[_Period]) -> Usage:
    return usage_of(
        node.config(resource),
        node.usage(resource),
        [vm.config(resource) for vm in vms],
        [vm.usage(resource) for vm in vms],
    )


# --- reading -----------------------------------------------------------------------------------------


class _RawPeriod(msgspec.Struct):
    """The lists of one slice, still text; anything else in the object is skipped."""

    time: msgspec.Raw = msgspec.Raw(b"")
    cpu: msgspec.Raw = msgspec.Raw(b"")
    mem: msgspec.Raw = msgspec.Raw(b"")
    cpu_usage: msgspec.Raw = msgspec.Raw(b"")
    mem_usage: msgspec.Raw = msgspec.Raw(b"")


class _RawNodePeriod(_RawPeriod):
    vm: list[str] | None = None


class _RawNode(msgspec.Struct):
    raw_data: list[_RawNodePeriod | None]


class _RawVm(msgspec.Struct):
    raw_data: list[_RawPeriod | None]


class _RawTrace(msgspec.Struct):
    config: msgspec.Raw
    epoch: list[float]
    node: _RawNode
    vm: dict[str, _RawVm]


class _Outline(msgspec.Struct):
    """A trace of which only the outermost keys are known to be right: to find a fault's place."""

    config: msgspec.Raw
    epoch: msgspec.Raw
    node: msgspec.Raw
    vm: dict[str, msgspec.Raw]


_TRACE = msgspec.json.Decoder(_RawTrace)

_NUMBERS = msgspec.json.Decoder(list[float | None] | None)


def read_trace(path: str | Path) -> Trace:
    """Read, decode and check a trace file.

    Raises
    ------
    TraceError
        When the file can't be read or is no trace; the message names file and place.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(f"{printable(str(path))}: {error.strerror}") from None
    try:
        return parse_trace(data)
    except TraceError as error:
        raise TraceError(f"{printable(str(path))}: {error}") from None


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
            if not (b"NaN" in data or b"Infinity" in data):
                raise TraceError(_not_json(error, data)) from None
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


#: A string, which stays as it is, or a literal that JSON does not have and Python writes.
_STRING_OR_LITERAL = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)\b')


def _decode_without_literals(data: bytes) -> _RawTrace:
    clean = _STRING_OR_LITERAL.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", data)
    try:
        return _decode_trace(clean)
    except msgspec.DecodeError as error:
        raise TraceError(_not_json(error, clean)) from None


def _not_json(error: msgspec.DecodeError, data: bytes) -> str:
    reason = str(error)
    if "truncated" in reason:
        return f"not JSON: the file ends in the middle (byte {len(data)})"
    return f"not JSON: {reason.removeprefix('JSON is malformed: ')}"


def _place_of_fault(data: bytes, error: msgspec.ValidationError) -> str:
    """Decode piece by piece to learn the name of the VM, which the decoder does not tell."""
    pieces: list[tuple[str, msgspec.Raw, Any]] = []
    try:
        outline = msgspec.json.decode(data, type=_Outline)
        pieces = [("epoch", outline.epoch, list[float]), ("node", outline.node, _RawNode)]
        pieces += [(f"vm.{name}", raw, _RawVm) for name, raw in outline.vm.items()]
        for place, raw, kind in pieces:
            _checked(raw, kind, place)
    except msgspec.ValidationError as first:
        return _told(first, "")
    except TraceError as found:
        return str(found)
    return _told(error, "")


def _told(error: msgspec.ValidationError, prefix: str) -> str:
    """``Expected `int`, got `str` - at `$.a[3]``` becomes ``prefix.a[3]: expected int, got str``."""
    reason, _, place = str(error).partition(" - at `$")
    place = f"{prefix}{place.rstrip('`')}".lstrip(".") or "the trace"
    # Python's words for what JSON calls otherwise.
    reason = reason.replace("`", "").replace(" | null", " or null")
    if reason.startswith("Invalid enum value"):
        reason = f"{reason}, neither 'cores' nor 'share'"
    return f"{printable(place)}: {reason[:1].lower()}{reason[1:]}"


def _checked(raw: msgspec.Raw, kind: Any, place: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise TraceError(_told(error, place)) from None


def _build(raw: _RawTrace) -> Trace:
    config: TraceConfig = _checked(raw.config, TraceConfig, "config")
    config_fields: dict[str, Any] = _checked(raw.config, dict, "config")
    _check_config(config)
    _check_epoch(raw.epoch)
    slices = len(raw.epoch)
    node_raw = raw.node.raw_data
    _check_length("node.raw_data", node_raw, slices)
    time = _SharedLists(slices)
    node = _Reader("node", time, is_node=True).periods(node_raw)
    listed = [None if period is None or period.vm is None else frozenset(period.vm) for period in node_raw]
    vms: dict[str, Sequence[_Period]] = {}
    for name, vm in raw.vm.items():
        _check_length(f"vm.{name}.raw_data", vm.raw_data, slices)
        reader = _Reader(f"vm.{name}", time, share=config.vm_cpu_unit == "share")
        vms[name] = reader.periods(vm.raw_data)
    return Trace(config=config, config_fields=config_fields, epoch=raw.epoch, node=node, listed=listed, vms=vms)


def _check_config(config: TraceConfig) -> None:
    for name in ("node_scope", "slice_scope"):
        if not 0 < getattr(config, name) <= LARGEST:
            raise TraceError(f"config.{name}: {getattr(config, name):g} is no length of time")
    ratio = config.node_scope / config.slice_scope
    if not 1 <= ratio <= _LONGEST_HISTORY or not math.isclose(ratio, round(ratio), rel_tol=1e-9):
        raise TraceError(
            f"config.node_scope: {config.node_scope:g} s is not 1 to {_LONGEST_HISTORY} times slice_scope, "
            f"{config.slice_scope:g} s"
        )
    h = config.historical_occurences
    if not 0 <= h <= _LONGEST_HISTORY or h != int(h):
        raise TraceError(f"config.historical_occurences: {h:g} is no whole number from 0 to {_LONGEST_HISTORY}")


def _check_epoch(epoch: Sequence[float]) -> None:
    if not epoch:
        raise TraceError("epoch: holds no slice")
    for k, end_s in enumerate(epoch):
        if abs(end_s) > LARGEST:
            raise TraceError(f"epoch[{k}]: {end_s:g} is no time")
        if k and end_s <= epoch[k - 1]:
            raise TraceError(f"epoch[{k}]: {end_s:g} is not after epoch[{k - 1}], {epoch[k - 1]:g}")


def _check_length(place: str, found: Sequence[object], expected: int) -> None:
    if len(found) != expected:
        raise TraceError(f"{printable(place)}: {len(found)} slices where epoch has {expected}")


class _SharedLists:
    """Lists that stand in the file over and over are decoded once.

    All VMs of a scrape share its times, so the ``time`` of a slice is compared with the last one decoded
    for that slice.
    """

    def __init__(self, slices: int) -> None:
        self._texts = [b""] * slices
        self._arrays = [_NOTHING] * slices

    def array(self, k: int, raw: msgspec.Raw, decode: Callable[[msgspec.Raw], FloatArray]) -> FloatArray:
        text = bytes(raw)
        if text != self._texts[k] or not text:
            self._arrays[k] = decode(raw)
            self._texts[k] = text
        return self._arrays[k]


class _Reader:
    """Turns the slices of the node or of one VM into periods."""

    def __init__(self, place: str, time: _SharedLists, *, is_node: bool = False, share: bool = False) -> None:
        self.place = place
        self.time = time
        self.is_node = is_node
        self.share = share

    def periods(self, raw_data: Sequence[_RawPeriod | None]) -> list[_Period]:
        result: list[_Period] = []
        cpu = _Config(self, "cpu")
        mem = _Config(self, "mem")
        for k, told in enumerate(raw_data):
            raw = told or _RawPeriod()
            time = self.time.array(k, raw.time, lambda text, k=k: self._array(text, k, "time"))  # type: ignore[misc]
            cpu_config, cpu_there = cpu.update(raw.cpu, k)
            mem_config, mem_there = mem.update(raw.mem, k)
            cpu_usage = self._array(raw.cpu_usage, k, "cpu_usage")
            mem_usage = self._array(raw.mem_usage, k, "mem_usage")
            there = cpu_there or mem_there or _any_number(cpu_usage) or _any_number(mem_usage)
            if not there and not self.is_node:
                # A VM that went away and comes back may be another one.
                cpu.forget()
                mem.forget()
            if self.share:
                cpu_usage = cpu_usage * cpu_config
            result.append(_Period(time, cpu_config, mem_config, cpu_usage, mem_usage, there))
        return result

    def _array(self, raw: msgspec.Raw, k: int, field: str) -> FloatArray:
        numbers = self.numbers(raw, k, field)
        if not numbers:
            return _NOTHING
        try:
            # Three times as fast as numpy's own way from a list, which is half of the cost of a trace.
            array = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
        except struct.error:
            array = np.array(numbers, dtype=np.float64)  # where a sample is null: NaN
        size = np.abs(array)
        # With a sample that is not there the maximum is NaN: then, and only then, look at each.
        if not size.max() <= LARGEST and (size > LARGEST).any():
            raise TraceError(f"{self.where(k, field)}: {np.nanmax(size):g} is beyond any machine")
        return array

    def numbers(self, raw: msgspec.Raw, k: int, field: str) -> list[float | None] | None:
        if not raw:
            return None
        try:
            return _NUMBERS.decode(raw)
        except msgspec.ValidationError as error:
            reason, _, item = str(error).partition(" - at `$")
            item = item.rstrip("`")
            wanted = "expected a number or null" if item else "expected a list of numbers"
            got = reason.partition("got ")[2].replace("`", "")
            raise TraceError(f"{self.where(k, field)}{item}: {wanted}{', got ' + got if got else ''}") from None

    def where(self, k: int, field: str) -> str:
        return printable(f"{self.place}.raw_data[{k}].{field}")


def _any_number(samples: FloatArray) -> bool:
    return samples.size > 0 and not math.isnan(np.fmin.reduce(samples))


class _Config:
    """The last known configuration; the same list again, the usual case, is not decoded again."""

    def __init__(self, reader: _Reader, field: str) -> None:
        self._reader = reader
        self._field = field
        self._text = b""
        self._known = math.nan

    def update(self, raw: msgspec.Raw, k: int) -> tuple[float, bool]:
        """The configuration at slice k, and whether the slice told anything of it."""
        text = bytes(raw)
        if text and text == self._text:
            return self._known, True
        numbers = self._reader.numbers(raw, k, self._field)
        told = [number for number in numbers or () if number is not None]
        if told:
            smallest_wrong = told[-1] <= 0 if self._reader.is_node else told[-1] < 0
            if smallest_wrong or told[-1] > LARGEST:
                raise TraceError(f"{self._reader.where(k, self._field)}: {told[-1]:g} makes no sense")
            self._known, self._text = told[-1], text
        return self._known, bool(told)

    def forget(self) -> None:
        """What is told next is told by somebody new."""
        self._text, self._known = b"", math.nan
