"""Text from outside the program, fit for one line of output."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character that cannot be printed escaped, undecodable bytes of a file name included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
