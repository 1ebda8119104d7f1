"""Renders the status page from its view model and its template."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from .history import Snapshot
from .page import PageSettings, build_page
from .query import Query

if TYPE_CHECKING:
    import jinja2

_TEMPLATE = "page.html.jinja"


class StatusPage:
    """The status page as HTML.

    Parameters
    ----------
    settings : PageSettings
    """

    def __init__(self, settings: PageSettings) -> None:
        self._settings = settings

    def render(self, snapshot: Snapshot, query: Query, now_s: float) -> bytes:
        """The page for a query at a time (Unix seconds), as HTML in UTF-8."""
        page = build_page(self._settings, snapshot, query, now_s)
        return self._template.render(page=page).encode()

    @cached_property
    def _template(self) -> jinja2.Template:
        import jinja2

        environment = jinja2.Environment(
            # The package's own folder; its name differs between a checkout and an installation.
            loader=jinja2.PackageLoader(__package__, ""),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template(_TEMPLATE)
