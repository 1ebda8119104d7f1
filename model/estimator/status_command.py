"""``scroogevm.py --status`` and ``--watch``: show the published status."""

from __future__ import annotations

from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..store.settings import status_path
from .options import StatusOptions


def run_status(options: StatusOptions) -> int:
    """Show the published status; the exit code, 1 when a node is stale, unknown or outdated.

    Raises
    ------
    UsageError
        When there is none.
    """
    from ..publishers.status_sources import StatusSources
    from ..publishers.status_table import show_status, watch_status

    sources = StatusSources(options.sources or (_own_file(),))
    if options.watch:
        watch_status(sources)
        return 0
    return show_status(sources, json=options.json)


def _own_file() -> str:
    try:
        env = environment()
        path = status_path(env)
        if env.faults:
            raise SettingsError(env.faults)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return str(path)
