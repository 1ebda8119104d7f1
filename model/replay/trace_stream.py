"""Reads a large trace through a buffer of a few megabytes, without decoding the lists that a replay does not use.

A trace of a monitored node has many lists per slice, of which a replay uses five. The end of a slice is the next
closing brace, because nothing but numbers stands in it; its keys are what stands between quotes. Whatever differs from
that, or is not a valid trace, is left to the decoder of :mod:`.trace`, which reads it all and finds the place of a
fault. Only the numbers of lists that are not used are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from .trace_data import Period, TraceError
from .trace_lists import PeriodReader, RawNodePeriod, RawPeriod, SharedLists

#: Bytes that are read at once.
BUFFER = 1 << 20
#: A slice, a name or another value of more bytes is left to the decoder.
_LONGEST = 64 << 20
#: Text before which a token ends, in bytes: a token of more is left to the decoder.
_TOKEN = 1 << 12
#: The shortest file for which the search for ends pays, bytes.
SHORTEST = 4 << 20
#: The largest share of the first slice that the used lists may take; of a compact trace, decoding all is faster.
_LARGEST_SHARE = 0.6

_OPEN = re.compile(rb"\s*\{\s*")
_KEY = re.compile(rb'"([^"\\]*)"\s*:\s*')
_RAW_DATA = re.compile(rb'\s*\{\s*"raw_data"\s*:\s*\[\s*')
_NEXT = re.compile(rb"\s*([,\]}])\s*")
_OPENING = re.compile(rb"([\[{])")
_END = re.compile(rb"\s*\}\s*")

_PERIOD = msgspec.json.Decoder(RawPeriod)
_NODE_PERIOD = msgspec.json.Decoder(RawNodePeriod)
_NUMBERS = msgspec.json.Decoder(list[float])

_FIELDS = {name.encode(): name for name in RawPeriod.__struct_fields__}


class _OddError(Exception):
    """The trace differs from what is expected, or is wrong; the decoder has to read it."""


@dataclass(slots=True)
class StreamedTrace:
    """The parts of a trace, not yet checked against each other."""

    config: msgspec.Raw = field(default_factory=msgspec.Raw)
    epoch: list[float] = field(default_factory=list)
    node: list[RawNodePeriod | None] = field(default_factory=list)
    vms: dict[str, list[Period]] = field(default_factory=dict)
    time: SharedLists = field(default_factory=SharedLists)


def stream_trace(
    file: BinaryIO, *, buffer: int = BUFFER, largest_share: float = _LARGEST_SHARE
) -> StreamedTrace | None:
    """Read a trace whose VMs' usage is in cores; None when the decoder has to read it.

    Parameters
    ----------
    file : binary file
        At its beginning.
    buffer : int
        Bytes that are read at once.
    largest_share : float
        The share of the first slice that the used lists may take.

    Raises
    ------
    OSError
    """
    try:
        return _Reader(_Text(file, buffer), largest_share).trace()
    except (_OddError, TraceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Text:
    """A window that moves over a file; its memory is used again and again."""

    def __init__(self, file: BinaryIO, buffer: int) -> None:
        self._file = file
        self._data = bytearray(max(buffer, 2 * _TOKEN))
        self._at = 0
        self._end = 0
        self._ended = False

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """The text of a short token at the place of the window, which is moved behind it."""
        while self._end - self._at < _TOKEN and self._read_on():
            pass
        found = pattern.match(self._data, self._at, self._end)
        # A token that ends where the window ends may go on behind it.
        if found is None or (found.end() == self._end and not self._ended):
            raise _OddError
        self._at = found.end()
        return found

    def take_through(self, end: bytes) -> bytearray:
        """The text up to a character, and with it."""
        searched = self._at
        while (found := self._data.find(end, searched, self._end)) < 0:
            waiting = self._end - self._at
            if waiting > _LONGEST or not self._read_on():
                raise _OddError
            searched = self._at + waiting
        text = self._data[self._at : found + 1]
        self._at = found + 1
        return text

    def has_ended(self) -> bool:
        """Whether nothing follows."""
        return self._at == self._end and not self._read_on()

    def _read_on(self) -> bool:
        """Add the next piece of the file; False at its end."""
        waiting = self._end - self._at
        with memoryview(self._data) as view:
            view[:waiting] = view[self._at : self._end]
        self._at, self._end = 0, waiting
        if waiting > len(self._data) // 2:
            self._data.extend(bytes(len(self._data)))
        with memoryview(self._data) as view, view[waiting:] as free:
            # A regular file gives as much as there is.
            count = 0 if self._ended else self._file.readinto(free)  # type: ignore[attr-defined]
        self._ended = not count
        self._end += count
        return not self._ended


class _Reader:
    """Takes a trace apart in the order in which it is written."""

    def __init__(self, text: _Text, largest_share: float) -> None:
        self._text = text
        self._largest_share = largest_share
        self._layout: _Layout | None = None
        self._trace = StreamedTrace()

    def trace(self) -> StreamedTrace:
        self._text.take(_OPEN)
        seen: set[bytes] = set()
        while True:
            key = bytes(self._text.take(_KEY)[1])
            if key in seen:
                raise _OddError
            seen.add(key)
            self._value_of(key)
            if self._ends(b"}"):
                break
        if not self._text.has_ended() or not {b"config", b"epoch", b"node"} <= seen:
            raise _OddError
        return self._trace

    def _value_of(self, key: bytes) -> None:
        if key == b"vm":
            self._vms()
        elif key == b"node":
            self._trace.node = list(self._node_periods())
        elif key == b"epoch":
            self._trace.epoch = _NUMBERS.decode(self._nested())
        else:
            text = self._nested()
            msgspec.json.decode(text)
            if key == b"config":
                self._trace.config = msgspec.Raw(text)

    def _nested(self) -> bytes:
        """An object or a list of any depth."""
        opening = self._text.take(_OPENING)[1]
        closing = b"}" if opening == b"{" else b"]"
        text, depth, in_string = bytearray(opening), 1, False
        while depth or in_string:
            piece = self._text.take_through(closing)
            # Where a string holds such a character, what is taken is not JSON, which the decoder then finds.
            depth += piece.count(opening) - 1
            in_string ^= bool(piece.count(b'"') % 2)
            text += piece
            if len(text) > _LONGEST:
                raise _OddError
        return bytes(text)

    def _node_periods(self) -> Iterator[RawNodePeriod | None]:
        for text in self._periods():
            if not _is_one_object(text) or text.count(b'"') % 2:
                raise _OddError
            yield _NODE_PERIOD.decode(text)

    def _vms(self) -> None:
        self._text.take(_OPEN)
        while True:
            name = self._text.take(_KEY)[1].decode()
            if name in self._trace.vms:
                raise _OddError
            lists = [self._lists(text) for text in self._periods()]
            self._trace.vms[name] = PeriodReader(f"vm.{name}", self._trace.time).periods(lists)
            if self._ends(b"}"):
                return

    def _periods(self) -> Iterator[bytearray]:
        """The texts of the slices of the node or of a VM, whose object holds nothing else."""
        self._text.take(_RAW_DATA)
        while True:
            yield self._text.take_through(b"}")
            if self._ends(b"]"):
                break
        self._text.take(_END)

    def _ends(self, closing: bytes) -> bool:
        """Whether a list or an object ends; else another entry follows."""
        found = self._text.take(_NEXT)[1]
        if found not in (b",", closing):
            raise _OddError
        return bool(found == closing)

    def _lists(self, text: bytearray) -> RawPeriod:
        """The used lists of one slice of a VM."""
        if text == b"{}":
            return RawPeriod()
        if not _is_one_object(text):
            raise _OddError
        lists = None if self._layout is None else self._layout.lists_of(text)
        if lists is None:
            # A brace within a string would leave an odd number of quotes before it.
            if text.count(b'"') % 2:
                raise _OddError
            self._layout = _Layout(text)
            lists = self._layout.lists_of(text)
        if self._largest_share < 1:
            if lists is None or sum(map(len, lists.values())) > self._largest_share * len(text):
                raise _OddError
            self._largest_share = 1.0
        if lists is None:
            return _PERIOD.decode(text)
        return RawPeriod(**{name: msgspec.Raw(one) for name, one in lists.items()})


def _is_one_object(text: bytearray) -> bool:
    """Whether a text that ends with a closing brace has one opening brace, at its beginning, and nothing escaped."""
    return text.startswith(b"{") and text.find(b"{", 1) < 0 and text.find(b"\\") < 0


class _Layout:
    """The keys of a slice in the order in which they are written; the same for most slices.

    Parameters
    ----------
    text : bytearray
        A slice with that layout.
    """

    def __init__(self, text: bytearray) -> None:
        keys = bytes(text).split(b'"')[1::2]
        colon, comma = (b": ", b", ") if text.find(b'": [') > 0 else (b":", b",")
        before = b"]" + comma
        #: What stands from the end of one list to the beginning of the next, how much of it before the quote, and the
        #: name of the next list if it is used.
        self._steps = [
            ((before if i else b"{") + b'"' + key + b'"' + colon + b"[", len(before) if i else 1, _FIELDS.get(key))
            for i, key in enumerate(keys)
        ]
        self._is_usable = 0 < len(set(keys)) == len(keys)

    def lists_of(self, text: bytearray) -> dict[str, bytearray] | None:
        """The texts of the used lists; None for another layout, and where anything but lists of numbers stands."""
        if not self._is_usable:
            return None
        find, startswith = text.find, text.startswith
        lists = {}
        name, begin = None, 0
        for step, before, following in self._steps:
            at = find(b'"', begin) - before
            if at < 0 or not startswith(step, at):
                return None
            if name is not None:
                lists[name] = text[begin : at + 1]
            name, begin = following, at + len(step)
            if name is not None:
                begin -= 1
        if not text.endswith(b"]}") or find(b'"', begin) >= 0:
            return None
        if name is not None:
            lists[name] = text[begin:-1]
        return lists
