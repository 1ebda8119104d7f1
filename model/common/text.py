"""Text from outside, made fit for one line of output."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text from outside as it may stand in a one-line message."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
