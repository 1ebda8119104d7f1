"""Tables and sentences for a file or a pipe, as rich prints them; importing rich takes longer than a small replay."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TextIO

#: Columns of a table that is not written to a terminal; further ones are left out.
FILE_WIDTH = 140


def is_plain(stream: TextIO) -> bool:
    """Whether a stream gets plain text: no terminal, and no colours asked for as rich understands it."""
    return not stream.isatty() and not os.environ.get("FORCE_COLOR")


def table_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The columns that a table takes; headings may have several lines."""
    return sum(width + 2 for width in _widths(headings, rows))


def table_lines(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table without a frame.

    Parameters
    ----------
    title : str
        Above the table; folded to its width.
    headings : sequence of str
        Of one or more lines; the last lines stand side by side.
    rows : sequence of sequence of str
        As long as ``headings``. The first column is aligned left, the others right.
    """
    widths = _widths(headings, rows)
    parts = [heading.split("\n") for heading in headings]
    height = max(map(len, parts))
    heads = zip(*([""] * (height - len(lines)) + lines for lines in parts), strict=True)
    body = ["".join(_cell(text, width, i) for i, (text, width) in enumerate(zip(row, widths, strict=True)))
            for row in (*heads, *rows)]  # fmt: skip
    total = sum(width + 2 for width in widths)
    return [*(line.ljust(total) for line in folded(title, total)), *body]


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    columns = zip(*([heading.split("\n") for heading in headings], *([[cell] for cell in row] for row in rows)),
                  strict=True)  # fmt: skip
    return [max(len(line) for lines in column for line in lines) for column in columns]


def _cell(text: str, width: int, column: int) -> str:
    return f" {text.rjust(width) if column else text.ljust(width)} "


def folded(text: str, width: int) -> list[str]:
    """A sentence in lines of at most ``width`` characters, broken between words, and within longer words."""
    lines = [""]
    for word in re.findall(r"\s*\S+\s*", text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
            lines.append("")
        if len(word.rstrip()) > width:
            lines.pop()
            lines += [word[i : i + width] for i in range(0, len(word), width)]
        else:
            lines[-1] += word
    # A space at the end of a line stays where it fits, as in rich.
    return [line.rstrip() if len(line.rstrip()) >= width else line[:width] for line in lines]
