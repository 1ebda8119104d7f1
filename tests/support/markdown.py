"""The project's Markdown pages, parsed: headings, links, tables, code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

_PARSER = MarkdownIt("commonmark").enable("table")


class Page:
    """A Markdown file.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tokens(self) -> list[Token]:
        """Block tokens."""
        return _PARSER.parse(self.text)

    def _inline(self) -> Iterator[Token]:
        for token in self.tokens:
            yield from token.children or ()

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        targets = [token.attrGet("href") or token.attrGet("src") for token in self._inline()]
        return [str(target) for target in targets if target]

    @cached_property
    def pictures(self) -> list[str]:
        """Targets of pictures."""
        return [str(token.attrGet("src")) for token in self._inline() if token.type == "image"]

    @cached_property
    def code(self) -> list[str]:
        """Contents of inline code."""
        return [token.content for token in self._inline() if token.type == "code_inline"]

    def blocks(self, language: str) -> list[str]:
        """Contents of the fenced blocks of a language."""
        return [token.content for token in self.tokens if token.type == "fence" and token.info == language]

    @cached_property
    def commands(self) -> list[str]:
        """Lines of the ``sh`` blocks, continued lines joined."""
        text = "\n".join(self.blocks("sh")).replace("\\\n", " ")
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    @cached_property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub makes them."""
        titles = [_plain(self.tokens[i + 1]) for i, token in enumerate(self.tokens) if token.type == "heading_open"]
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    def tables(self, heading: str = "") -> list[list[list[Token]]]:
        """Rows of the tables below a heading (of all tables without one); a cell is its inline token."""
        tables: list[list[list[Token]]] = []
        section = ""
        for i, token in enumerate(self.tokens):
            if token.type == "heading_open":
                section = _plain(self.tokens[i + 1])
            elif token.type == "table_open":
                tables.append([])
            elif heading in {"", section} and token.type == "tr_open":
                tables[-1].append([])
            elif heading in {"", section} and token.type in {"td_open", "th_open"}:
                tables[-1][-1].append(self.tokens[i + 1])
        return [table[1:] for table in tables if table]


def _plain(inline: Token) -> str:
    return "".join(token.content for token in inline.children or ())


def code_of(cell: Token) -> list[str]:
    """Contents of the inline code in a table cell."""
    return [token.content for token in cell.children or () if token.type == "code_inline"]


README = Page(ROOT / "README.md")
DOCS = {path.name: Page(path) for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [README, Page(ROOT / "CONTRIBUTING.md"), *DOCS.values()]
