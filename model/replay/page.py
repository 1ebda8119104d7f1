"""Pages that are one file: reports that need no other file and no network."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def render_page(package: str, template: str, **values: Any) -> str:
    """Fill in a template of a package; every value is escaped, and one that is missing is an error.

    Parameters
    ----------
    package, template : str
        Name of the package, and of the file in it.
    **values
        What the template names.
    """
    text = (files(package) / template).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(text).render(**values)
