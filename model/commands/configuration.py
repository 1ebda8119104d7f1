"""All settings of the three programs: the registry is complete once this module is imported.

Validates them (``--check-config``), and renders ``dotenv`` and the configuration page of the docs
(``python3 misc/configuration.py --write``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from ..aggregator import settings as _aggregator
from ..ballooning import settings as _ballooning
from ..common.environment import SettingsError
from ..common.errors import UsageError
from ..common.logs import set_up_logging
from ..common.settings import SETTINGS, Setting
from ..estimator import settings as _estimator
from ..publishers import settings as _publishers
from ..store import settings as _store

#: Importing them declares their settings.
MODULES = (_aggregator, _estimator, _publishers, _ballooning, _store)

_WIDTH = 118
_TITLES = (
    "Aggregator (vmaggreg.py)",
    "Estimator (scroogevm.py)",
    "Contention (scroogevm.py)",
    "Published status file (scroogevm.py)",
    "OpenStack Placement (scroogevm.py)",
    "Ballooning (vmballooning.py)",
    "All daemons",
    "Store (all daemons)",
    "Prometheus of the site, instead of a store (scroogevm.py, vmballooning.py)",
    "misc/influxdb.sh only",
)

_DOTENV_HEAD = """\
# Settings of ScroogeVM's daemons. Copy this file to .env in the working directory and change what differs.
# A variable of the environment overrides the file. Values are read as they stand, without ${} interpolation; JSON
# stands between single quotes. A commented line shows the default, or an example where there is none.
# This file is generated from the settings (misc/configuration.py).
"""

_PAGE_HEAD = """\
# Configuration

<!-- Generated from the settings by misc/configuration.py. -->

To configure the daemons, copy `dotenv` to `.env` in the working directory and change what differs; or set the
variables in the environment, which overrides `.env`. Then run `vmaggreg.py --check-config`,
`scroogevm.py --check-config` and `vmballooning.py --check-config`: they validate the settings without using the
network or creating a file, and report all faults at once.

- Values in `.env` are read as they stand, without `${}` interpolation. JSON stands between single quotes.
- An empty value counts as unset.
- A key that looks like a misspelt setting is logged, in `.env` and in the environment.
- `SIGHUP` makes a daemon read its settings again. If they are wrong by then, it logs the faults and continues with
  the previous ones.
- Options of the command line override settings. A replay (`scroogevm.py --load`) reads no settings.
"""


def check_settings(load: Callable[[], object]) -> int:
    """Validate settings for ``--check-config``; the exit code.

    Parameters
    ----------
    load : callable
        Reads the settings of a program; opens nothing.

    Raises
    ------
    UsageError
        With all faults.
    """
    set_up_logging(debug=False)
    try:
        load()
    except SettingsError as error:
        raise UsageError(str(error)) from None
    print("settings ok")
    return 0


def sections() -> Iterator[tuple[str, list[Setting[Any]]]]:
    """Title and settings of each section, in the order of the docs."""
    by_title = {
        title: list(group)
        for title, group in groupby(
            sorted(SETTINGS.values(), key=lambda setting: _TITLES.index(setting.section)),
            key=lambda setting: setting.section,
        )
    }
    yield from by_title.items()


def render_dotenv() -> str:
    """The commented example ``dotenv``."""
    pieces = [_DOTENV_HEAD]
    for title, settings in sections():
        pieces.append(f"\n# --- {title} ---\n")
        for setting in settings:
            comment = "".join(f"# {line}\n" for line in textwrap.wrap(_explained(setting), _WIDTH - 2))
            value = setting.example or setting.shown
            quoted = f"'{value}'" if value[:1] in {"[", "{"} else value
            # The one setting without which no daemon starts is not commented out.
            mark = "" if setting.key == "AGGREG_STUB_LIST" else "#"
            pieces.append(f"\n{comment}{mark}{setting.key}={quoted}\n")
    return "".join(pieces)


def render_page() -> str:
    """The configuration page, as Markdown."""
    pieces = [_PAGE_HEAD]
    for title, settings in sections():
        pieces.append(f"\n## {title}\n\n| setting | default | meaning |\n|---|---|---|\n")
        for setting in settings:
            default = f"`{setting.shown}`" if setting.shown else ""
            text = _explained(setting).replace("|", "\\|")
            if setting.example:
                text += f" Example: `{setting.example}`"
            pieces.append(f"| `{setting.key}` | {default} | {text} |\n")
    return "".join(pieces)


def _explained(setting: Setting[Any]) -> str:
    text = " ".join(setting.description.split())
    if setting.limits:
        text += f" Takes {setting.limits}."
    if setting.aliases:
        text += f" Older name: {', '.join(setting.aliases)}."
    if setting.secret:
        text += " Never shown."
    return text
