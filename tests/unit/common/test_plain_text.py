"""Text for a file or a pipe equals what rich prints there."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from model.cli.plain_text import FILE_WIDTH, folded, is_plain, table_lines, table_width
from model.cli.tables import print_whole

# Without brackets, which are markup to rich, and without blanks, which our headings and cells do not begin or end with.
WORD = st.text("ab1.%()-", min_size=1, max_size=20)
HEADING = st.lists(WORD, min_size=1, max_size=3).map("\n".join)
SENTENCE = st.lists(st.one_of(WORD, st.just("x" * 171)), min_size=1, max_size=40).map(" ".join)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[str], list[list[str]]]:
    columns = draw(st.integers(1, 9))
    headings = draw(st.lists(HEADING, min_size=columns, max_size=columns))
    rows = draw(st.lists(st.lists(WORD, min_size=columns, max_size=columns), max_size=5))
    return draw(st.lists(WORD, min_size=1, max_size=12).map(" ".join)), headings, rows


@settings(max_examples=150, deadline=None)
@given(tables(), SENTENCE)
def test_table_and_sentence_are_those_of_rich(table: tuple[str, list[str], list[list[str]]], sentence: str) -> None:
    title, headings, rows = table
    stream = io.StringIO()
    console = Console(file=stream, width=FILE_WIDTH, highlight=False)
    shown = Table(title=title, title_justify="left", box=None)
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    print_whole(console, [shown])
    console.print(sentence, markup=False)
    width = max(FILE_WIDTH, table_width(headings, rows))
    lines = [*table_lines(title, headings, rows), *folded(sentence, width)]
    assert "".join(f"{line}\n" for line in lines) == stream.getvalue()


def test_stream_is_plain_unless_it_is_a_terminal_or_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert is_plain(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not is_plain(io.StringIO())
