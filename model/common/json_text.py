"""Messages about JSON that cannot be decoded: one line that names the place."""

from __future__ import annotations

import re

import msgspec

from .text import printable

#: A string, which is kept, or a literal that Python writes and JSON does not have.
_STRING_OR_LITERAL = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)\b')


def has_literals(data: bytes) -> bool:
    """Whether a text may contain the literals NaN and Infinity, which Python writes and JSON does not have."""
    return b"NaN" in data or b"Infinity" in data


def replace_literals(data: bytes, by: bytes) -> bytes:
    """The text with another token for each NaN, Infinity and -Infinity outside of strings."""
    return _STRING_OR_LITERAL.sub(lambda match: match[0] if match[0][:1] == b'"' else by, data)


def not_json(error: msgspec.DecodeError, data: bytes) -> str:
    """The message about a text that is not JSON."""
    reason = str(error)
    if "truncated" in reason:
        return f"not JSON: the file ends in the middle (byte {len(data)})"
    return f"not JSON: {reason.removeprefix('JSON is malformed: ')}"


def validation_message(error: msgspec.ValidationError, prefix: str = "", whole: str = "the file") -> str:
    """``Expected `int`, got `str` - at `$.a[3]``` becomes ``prefix.a[3]: expected int, got str``.

    Parameters
    ----------
    error : msgspec.ValidationError
    prefix : str
        Place of the text that was decoded.
    whole : str
        Name of the outermost value.
    """
    reason, _, place = str(error).partition(" - at `$")
    place = f"{prefix}{place.rstrip('`')}".lstrip(".") or whole
    reason = reason.replace("`", "").replace(" | null", " or null")
    return f"{printable(place)}: {reason[:1].lower()}{reason[1:]}"
