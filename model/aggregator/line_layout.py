"""Fast path for a page whose lines with labels are those of the page before, with other values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from .page_parts import cached_slice, parse_numbers, take

#: Lines of a layout, and their longest part before the value: a page may be made to fill the memory.
MOST_LINES = 4096
_LONGEST_HEAD = 512


@dataclass(frozen=True, slots=True)
class LineLayout:
    """The lines of some metrics on a page.

    Attributes
    ----------
    number : int
        Of all lines of the page.
    names : sequence of str
    labels : sequence of mapping of str to str
    select : callable
        Selects the lines of the metrics.
    heads, texts : sequence of slice
        What is before the value, and the value.
    text : bytes
        All heads.
    starts : int
        See :func:`_count_starts`.
    """

    number: int
    names: Sequence[str]
    labels: Sequence[Mapping[str, str]]
    select: Callable[[Sequence[bytes]], tuple[bytes, ...]]
    heads: Sequence[slice]
    texts: Sequence[slice]
    text: bytes
    starts: int

    def values(self, page: bytes, encoded: Sequence[bytes]) -> list[float] | None:
        """The values of a page; None when it has other lines of the metrics, or a value is not a finite number."""
        if not page.endswith(b"\n") or page.count(b"\n") != self.number:
            return None
        lines = self.select(page.split(b"\n"))
        if b"".join(map(take, lines, self.heads)) != self.text:
            return None
        # As many as before: no line of the metrics is anywhere else.
        if _count_starts(page, encoded) != self.starts:
            return None
        values = parse_numbers(list(map(take, lines, self.texts)))
        return None if values is None or not math.isfinite(sum(values)) else values


def line_layout(
    page: bytes, encoded: Sequence[bytes], names: Sequence[str], labels: Sequence[Mapping[str, str]]
) -> LineLayout | None:
    """The layout of a page; None when there is no fast path for it.

    Parameters
    ----------
    page : bytes
    encoded : sequence of bytes
        Names of the metrics.
    names, labels : sequence
        Of each of their lines; all of them have the usual form.
    """
    # An itemgetter of one item does not return a tuple.
    if not 2 <= len(names) <= MOST_LINES or not page.endswith(b"\n"):
        return None
    lines = page.split(b"\n")
    starts = tuple(encoded)
    own = [i for i, line in enumerate(lines) if line.startswith(starts)]
    # The value is behind the last blank.
    heads = [lines[i][: lines[i].rfind(b" ") + 1] for i in own]
    number = sum(head.startswith(name) for head in heads for name in encoded)
    # A metric whose name begins with that of one of these is not told apart.
    if len(own) != len(names) or _count_starts(page, encoded) != number:
        return None
    if max(map(len, heads)) > _LONGEST_HEAD:
        return None
    if any(not head.startswith(name.encode()) for head, name in zip(heads, names, strict=True)):
        return None
    return LineLayout(
        len(lines) - 1,
        names,
        labels,
        itemgetter(*own),
        [cached_slice(None, len(head)) for head in heads],
        [cached_slice(len(head), None) for head in heads],
        b"".join(heads),
        number,
    )


def _count_starts(page: bytes, encoded: Sequence[bytes]) -> int:
    """How often a line begins with the name of a metric."""
    return sum(page.count(b"\n" + name) + page.startswith(name) for name in encoded)
