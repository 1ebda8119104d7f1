"""Pages whose text is laid out once and filled with values many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The constant text of a page, and which value stands between two pieces of it.

    Attributes
    ----------
    texts : tuple of str
        The text before each value, then the text after the last one.
    places : tuple of int
        Index of each value.
    """

    texts: tuple[str, ...]
    places: tuple[int, ...]

    def fill(self, values: Sequence[float], write: Callable[[Any], str]) -> bytes:
        """Write the values into the text.

        Parameters
        ----------
        values : sequence of float
            All values; ``places`` selects from them.
        write : callable
            Formats a value.
        """
        parts = [""] * (2 * len(self.places) + 1)
        parts[0::2] = self.texts
        parts[1::2] = map(write, map(values.__getitem__, self.places))
        return "".join(parts).encode()


def lay_out(lines: Iterable[tuple[str, int | str]]) -> PageLayout:
    """Build the layout of a page from its lines.

    Parameters
    ----------
    lines : iterable of (str, int or str)
        The text before the value; the index of the value, or a constant as text.
    """
    texts, places, text = [], [], ""
    for head, value in lines:
        text += head
        if isinstance(value, str):
            text += value + "\n"
        else:
            texts.append(text)
            places.append(value)
            text = "\n"
    return PageLayout((*texts, text), tuple(places))


def go_number(value: float) -> str:
    """Format a number as Go formats a float64 with the fewest digits: with an exponent from a million on.

    >>> [go_number(v) for v in (0, 857.16, 999999.0, 14099215000, 2**64 - 1)]
    ['0', '857.16', '999999', '1.4099215e+10', '1.8446744073709552e+19']
    """
    if isinstance(value, int) and abs(value) < 2**53:
        digits = str(value)
        if value < 1_000_000:
            return digits
        exponent, digits = len(digits) - 1, digits.rstrip("0")
    else:
        whole, _, fraction = repr(float(value)).partition(".")
        if "e" in whole + fraction:
            return f"{whole}.{fraction}" if fraction else whole
        if value < 1_000_000:
            return whole if fraction == "0" else f"{whole}.{fraction}"
        exponent, digits = len(whole) - 1, (whole + fraction).rstrip("0")
    return f"{digits[0]}.{digits[1:]}e+{exponent:02d}" if len(digits) > 1 else f"{digits}e+{exponent:02d}"
