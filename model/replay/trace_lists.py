"""Decodes the lists of a trace to arrays."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from ..common.text import printable
from ..numerics import FloatArray
from ..slices import LARGEST
from .trace_data import Period, TraceError

_EMPTY: FloatArray = np.empty(0)

_NO_WAITS: Mapping[str, FloatArray] = {}

_NUMBERS = msgspec.json.Decoder(list[float | None] | None)


class RawPeriod(msgspec.Struct):
    """The lists of one slice as JSON text; other keys are skipped."""

    time: msgspec.Raw = msgspec.Raw(b"")
    cpu: msgspec.Raw = msgspec.Raw(b"")
    mem: msgspec.Raw = msgspec.Raw(b"")
    cpu_usage: msgspec.Raw = msgspec.Raw(b"")
    mem_usage: msgspec.Raw = msgspec.Raw(b"")
    cpu_demand: msgspec.Raw = msgspec.Raw(b"")
    cpu_wait: msgspec.Raw = msgspec.Raw(b"")
    cpu_wait_share: msgspec.Raw = msgspec.Raw(b"")
    psi_cpu: msgspec.Raw = msgspec.Raw(b"")
    psi_memory: msgspec.Raw = msgspec.Raw(b"")
    swap_in: msgspec.Raw = msgspec.Raw(b"")
    oom_kills: msgspec.Raw = msgspec.Raw(b"")

    @property
    def has_waits(self) -> bool:
        """Whether any of the optional lists is there."""
        return bool(
            self.cpu_demand
            or self.cpu_wait
            or self.cpu_wait_share
            or self.psi_cpu
            or self.psi_memory
            or self.swap_in
            or self.oom_kills
        )


class RawNodePeriod(RawPeriod):
    """Of a node also the names of its VMs."""

    vm: list[str] | None = None
    alive: list[str] | None = None


_NO_LISTS = RawPeriod()


class SharedLists:
    """Decodes a list that is repeated for many VMs once.

    All VMs of a scrape share its times, so the ``time`` of a slice is compared with the last one decoded for that
    slice.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[bytes, FloatArray]] = {}

    def find(self, k: int, text: bytes) -> FloatArray | None:
        """The array of slice k, if the last one kept for it has the same text."""
        kept, array = self._kept.get(k, (b"", None))
        return array if text == kept else None

    def keep(self, k: int, text: bytes, array: FloatArray) -> FloatArray:
        """Keep the array of slice k, and return it."""
        self._kept[k] = text, array
        return array


class PeriodReader:
    """Turns the slices of the node or of one VM into periods.

    Parameters
    ----------
    place : str
        Where they are in the trace, for messages.
    time : SharedLists
    is_node : bool
        A node keeps its configuration over gaps; a VM that returns may be another one.
    share : bool
        Whether CPU usage is a share of the VM's vCPUs, not cores.
    """

    def __init__(self, place: str, time: SharedLists, *, is_node: bool = False, share: bool = False) -> None:
        self.place = place
        self.time = time
        self.is_node = is_node
        self.share = share

    def periods(self, raw_data: Sequence[RawPeriod | None]) -> list[Period]:
        """One period per slice.

        Raises
        ------
        TraceError
        """
        result: list[Period] = []
        cpu = _ConfigReader(self, "cpu")
        mem = _ConfigReader(self, "mem")
        lists_of = [lists or _NO_LISTS for lists in raw_data]
        cpu_usages = _decoded_together([raw.cpu_usage for raw in lists_of])
        mem_usages = _decoded_together([raw.mem_usage for raw in lists_of])
        for k, raw in enumerate(lists_of):
            text = bytes(raw.time)
            time = self.time.find(k, text)
            if time is None:
                time = self.time.keep(k, text, self._array(raw.time, k, "time"))
            cpu_config, cpu_known = cpu.update(raw.cpu, k)
            mem_config, mem_known = mem.update(raw.mem, k)
            cpu_usage = self._array(raw.cpu_usage, k, "cpu_usage") if cpu_usages is None else cpu_usages[k]
            mem_usage = self._array(raw.mem_usage, k, "mem_usage") if mem_usages is None else mem_usages[k]
            has_data = cpu_known or mem_known or _any_number(cpu_usage) or _any_number(mem_usage)
            if not has_data and not self.is_node:
                cpu.reset()
                mem.reset()
            if self.share:
                cpu_usage = cpu_usage * cpu_config
            waits = self._waits(raw, k, cpu_config) if raw.has_waits else _NO_WAITS
            result.append(Period(time, cpu_config, mem_config, cpu_usage, mem_usage, has_data, waits))
        return result

    def _waits(self, raw: RawPeriod, k: int, cpu_config: float) -> Mapping[str, FloatArray]:
        """The optional lists that a period has."""
        texts = {
            "cpu_demand": raw.cpu_demand,
            "cpu_wait": raw.cpu_wait,
            "cpu_wait_share": raw.cpu_wait_share,
            "psi_cpu": raw.psi_cpu,
            "psi_memory": raw.psi_memory,
            "swap_in": raw.swap_in,
            "oom_kills": raw.oom_kills,
        }
        waits = {field: self._array(text, k, field) for field, text in texts.items() if text}
        if self.share and "cpu_demand" in waits:
            waits["cpu_demand"] = waits["cpu_demand"] * cpu_config
        return waits

    def _array(self, raw: msgspec.Raw, k: int, field: str) -> FloatArray:
        numbers = self.numbers(raw, k, field)
        if not numbers:
            return _EMPTY
        array = _array_of(numbers)
        size = np.abs(array)
        if _exceeds_machines(size):
            raise TraceError(f"{self.where(k, field)}: {np.nanmax(size):g} exceeds any machine")
        return array

    def numbers(self, raw: msgspec.Raw, k: int, field: str) -> list[float | None] | None:
        """The numbers of a list; None where it is missing or null."""
        if not raw:
            return None
        try:
            return _NUMBERS.decode(raw)
        except msgspec.ValidationError as error:
            reason, _, item = str(error).partition(" - at `$")
            item = item.rstrip("`")
            expected = "expected a number or null" if item else "expected a list of numbers"
            got = reason.partition("got ")[2].replace("`", "")
            raise TraceError(f"{self.where(k, field)}{item}: {expected}{', got ' + got if got else ''}") from None

    def where(self, k: int, field: str) -> str:
        """The place of a list in the trace."""
        return printable(f"{self.place}.raw_data[{k}].{field}")


def _decoded_together(raw_lists: Sequence[msgspec.Raw]) -> list[FloatArray] | None:
    """The arrays of several lists, decoded as one list; None where a list is empty or wrong.

    :class:`PeriodReader` then decodes them one by one and finds the place of the fault. A list of a slice has few
    samples, and most of the time to decode it alone is spent around them.
    """
    texts = [bytes(raw) for raw in raw_lists]
    if not all(text[:1] == b"[" and text[-1:] == b"]" for text in texts if text):
        return None
    # A comma separates two numbers, because nothing else is decoded; an empty list leaves two commas side by side.
    inner = b",".join([text[1:-1] for text in texts if text])
    try:
        numbers = _NUMBERS.decode(b"[" + inner + b"]")
    except msgspec.DecodeError:
        return None
    if not numbers:
        return None
    array = _array_of(numbers)
    if _exceeds_machines(np.abs(array)):
        return None
    ends = itertools.accumulate(text.count(b",") + 1 if text else 0 for text in texts)
    return [array[start:end] for start, end in itertools.pairwise((0, *ends))]


def _array_of(numbers: Sequence[float | None]) -> FloatArray:
    """The numbers as an array, null as NaN."""
    try:
        # Three times as fast as np.array(list), which is half of the time to read a trace.
        return np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
    except struct.error:
        return np.array(numbers, dtype=np.float64)


def _exceeds_machines(sizes: FloatArray) -> bool:
    # A missing sample makes the maximum NaN; only then compare each.
    return not sizes.max() <= LARGEST and bool((sizes > LARGEST).any())


def _any_number(samples: FloatArray) -> bool:
    return samples.size > 0 and not math.isnan(np.fmin.reduce(samples))


class _ConfigReader:
    """Keeps the last known configuration; the same list again, the usual case, is not decoded."""

    def __init__(self, reader: PeriodReader, field: str) -> None:
        self._reader = reader
        self._field = field
        self._text = b""
        self._known = math.nan

    def update(self, raw: msgspec.Raw, k: int) -> tuple[float, bool]:
        """The configuration at slice k, and whether the slice itself holds one."""
        text = bytes(raw)
        if text and text == self._text:
            return self._known, True
        numbers = self._reader.numbers(raw, k, self._field)
        known = [number for number in numbers or () if number is not None]
        if known:
            too_small = known[-1] <= 0 if self._reader.is_node else known[-1] < 0
            if too_small or known[-1] > LARGEST:
                raise TraceError(f"{self._reader.where(k, self._field)}: {known[-1]:g} is not a size")
            self._known, self._text = known[-1], text
        return self._known, bool(known)

    def reset(self) -> None:
        """Start without a configuration."""
        self._text, self._known = b"", math.nan
