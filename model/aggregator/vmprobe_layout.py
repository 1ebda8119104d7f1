"""Fast path for a page with the same metrics in the same order as the page before.

The file of a probe is such a page as long as no VM starts or stops, and so is the page of node_exporter with it. The
former is split at blanks and ends of lines. The latter is cut before each metric: what is between two lines of the
probe is not looked at. Names and places of the values are compiled once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..machine_table import MachineTable, TableLayout
from .page_parts import cached_slice, parse_numbers, take
from .vmprobe_names import Place

#: White space and control characters are not above it.
_BLANK = ord(" ")


class PageMetrics(NamedTuple):
    """The metrics of a page, all of them finite.

    Attributes
    ----------
    node : dict of metric name to value
    domains : MachineTable
    """

    node: dict[str, float]
    domains: MachineTable


class _Pieces(NamedTuple):
    """What a page with other lines is cut into.

    Attributes
    ----------
    heads, texts : sequence of slice
        Name and value in each piece.
    ends : sequence of (int, int)
        Pieces that hold more than one line, and where their first line ends.
    """

    heads: Sequence[slice]
    texts: Sequence[slice]
    ends: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Names of the metrics of a page, in its order, and the place of each.

    Attributes
    ----------
    prefix : bytes
        Of the names.
    number : int
        Of the metrics.
    names : bytes
        The names with the prefix, each with the blank behind it.
    pieces : _Pieces or None
        None for a page without other lines.
    node_metrics : sequence of str
    node_values : sequence of int
    domains : TableLayout
    cells : (domains, metrics) int32
        The number of the value of each cell; that of none is the number of values.
    """

    prefix: bytes
    number: int
    names: bytes
    pieces: _Pieces | None
    node_metrics: Sequence[str]
    node_values: Sequence[int]
    domains: TableLayout
    cells: NDArray[np.int32]

    @property
    def is_plain(self) -> bool:
        """Whether the page has no other lines."""
        return self.pieces is None

    def parse(self, page: bytes) -> PageMetrics | None:
        """Metrics of a page; None when the page does not have this layout or a value is not a finite number."""
        texts = self._split(page) if self.pieces is None else self._cut(page, self.pieces)
        values = None if texts is None else parse_numbers(texts)
        if values is None or not math.isfinite(sum(values)):
            return None
        node = dict(zip(self.node_metrics, map(values.__getitem__, self.node_values), strict=True))
        values.append(math.nan)
        table = np.fromiter(values, np.float64, len(values))[self.cells]
        return PageMetrics(node, MachineTable(self.domains, table))

    def _split(self, page: bytes) -> list[bytes] | None:
        """The texts of the values of a page without other lines."""
        # A blank and the end of a line in turn, and a word before each of them.
        if _invisible(page) != b" \n" * self.number or not page.endswith(b"\n"):
            return None
        words = page.split()
        if len(words) != 2 * self.number:
            return None
        return words[1::2] if b" ".join(words[::2]) + b" " == self.names else None

    def _cut(self, page: bytes, layout: _Pieces) -> list[bytes] | None:
        """The texts of the values of a page with other lines."""
        # A page with more metrics is not cut to its end.
        _, *pieces = (b"\n" + page).split(b"\n" + self.prefix, self.number + 1)
        if len(pieces) != self.number:
            return None
        if self.prefix + self.prefix.join(map(take, pieces, layout.heads)) != self.names:
            return None
        if any(piece[at : at + 1 or None] != b"\n" for piece, at in ((pieces[i], at) for i, at in layout.ends)):
            return None
        return list(map(take, pieces, layout.texts))


def page_layout(
    page: bytes,
    prefix: str,
    names: Sequence[bytes],
    places: Iterable[Place | None],
    running: Iterable[str],
    text: bytes = b"",
) -> PageLayout | None:
    """Layout of a page; None when there is no fast path for it.

    Parameters
    ----------
    page : bytes
    prefix : str
    names : sequence of bytes
        Its metrics, without the prefix.
    places : iterable of Place or None
        Of each of them; None for metrics that are not used.
    running : iterable of str
        Domains that are not omitted.
    text : bytes
        Used for the names if it is the same, so that they are in memory once.
    """
    start = f"{prefix}_".encode()
    joined = start + (b" " + start).join(names) + b" "
    is_plain = page.startswith(start) and _invisible(page) == b" \n" * len(names)
    pieces = None if is_plain else _cut(page, start, names)
    if pieces is None and not is_plain:
        return None
    cells: dict[str | None, dict[str, int]] = {}
    for i, place in enumerate(places):
        if place is not None:
            domain, metric = place
            cells.setdefault(domain, {})[metric] = i
    node = cells.pop(None, {})
    kept = set(running)
    rows = {domain: metrics for domain, metrics in cells.items() if domain in kept}
    columns = sorted(set().union(*rows.values()))
    table = [[metrics.get(column, len(names)) for column in columns] for metrics in rows.values()]
    return PageLayout(
        start,
        len(names),
        text if text == joined else joined,
        pieces,
        list(node),
        list(node.values()),
        TableLayout(list(rows), columns),
        np.array(table, dtype=np.int32).reshape(len(rows), len(columns)),
    )


def _invisible(page: bytes) -> bytes:
    """White space and control characters of a page; ``bytes.translate`` takes twice as long."""
    characters = np.frombuffer(page, dtype=np.uint8)
    return characters[np.flatnonzero(characters <= _BLANK)].tobytes()


def _cut(page: bytes, start: bytes, names: Sequence[bytes]) -> _Pieces | None:
    """What a page with other lines is cut into; None when a line of these metrics does not have the usual form."""
    _, *pieces = (b"\n" + page).split(b"\n" + start)
    heads = [name + b" " for name in names]
    if len(pieces) != len(heads) or not all(map(bytes.startswith, pieces, heads)):
        return None
    texts, ends = [], []
    for i, (piece, head) in enumerate(zip(pieces, heads, strict=True)):
        at = piece.find(b"\n")
        if at < 0:
            texts.append(cached_slice(len(head), None))
        else:
            ends.append((i, at - len(piece)))
            texts.append(cached_slice(len(head), at - len(piece)))
    return _Pieces([cached_slice(None, len(head)) for head in heads], texts, ends)
