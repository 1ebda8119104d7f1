"""Cuts many parts of a page at once, and reads their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import getitem

import msgspec

take: Callable[[bytes, slice], bytes] = getitem  # type: ignore[assignment]  # of all overloads, this one

#: All that a number in ordinary form consists of, and the comma between two of them.
_NUMERALS = b"0123456789+-.eE,"

_NUMBERS = msgspec.json.Decoder(list[float])


def parse_numbers(texts: Sequence[bytes]) -> list[float] | None:
    """The numbers; None when a text is not one in ordinary form."""
    joined = b",".join(texts)
    if joined.translate(None, _NUMERALS):
        return None  # float() accepts underscores and white space, the format does not
    try:
        numbers = _NUMBERS.decode(b"[%b]" % joined)
        return numbers if len(numbers) == len(texts) else None
    except msgspec.MsgspecError:
        pass  # JSON has neither "+1" nor "1."
    try:
        return list(map(float, texts))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def cached_slice(start: int | None, stop: int | None) -> slice:
    """A slice; cached, because pages have thousands of parts and few different slices."""
    return slice(start, stop)
