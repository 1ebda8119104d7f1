"""The query of the status page: filter, page number, refresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, urlencode

PageState = Literal["ok", "stale", "unknown", "outdated"]

PAGE_STATES: tuple[PageState, ...] = ("ok", "stale", "unknown", "outdated")

LONGEST_FILTER = 200

_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Query:
    """Which nodes are shown.

    Attributes
    ----------
    node : str
        Part of the node's name, in lower case.
    state : str
        One of the states, or empty for all.
    page : int
        From 1.
    refresh : bool
        Whether the browser reloads the page.
    """

    node: str = ""
    state: str = ""
    page: int = 1
    refresh: bool = True

    @classmethod
    def parse(cls, text: str) -> Query:
        """Parse the query of a URL; invalid fields get their default."""
        fields = {key: values[-1] for key, values in parse_qs(text, max_num_fields=None, errors="replace").items()}
        page = fields.get("page", "")
        is_number = page.isascii() and page.isdigit() and len(page) <= _MOST_DIGITS
        return cls(
            node=fields.get("node", "").strip().lower()[:LONGEST_FILTER],
            state=fields["state"] if fields.get("state") in PAGE_STATES else "",
            page=max(1, int(page)) if is_number else 1,
            refresh=fields.get("refresh") != "0",
        )

    def link(self, **changes: str | int) -> str:
        """The relative URL of this query with some fields changed."""
        fields = {"node": self.node, "state": self.state, "page": self.page, "refresh": "" if self.refresh else "0"}
        fields |= changes
        return "./?" + urlencode({key: value for key, value in fields.items() if value not in {"", 1}})
