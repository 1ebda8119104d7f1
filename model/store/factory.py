"""Opens and checks the store that the settings name."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from ..common.atomic_files import identity
from ..common.targets import without_password
from .base import Store, StoreRefused, StoreUnavailable
from .settings import StoreSettings
from .sqlite import SqliteStore

LOG = logging.getLogger("scroogevm.store")


def open_store(settings: StoreSettings) -> Store:
    """Open the store; the embedded one is created if it does not exist.

    A store that is unavailable is not an error, be it a server or a file: it may return, and every operation opens it
    again.

    Raises
    ------
    StoreRefused
        When the file of the embedded store is not a store.
    """
    if settings.prometheus is not None:
        from .prometheus import PrometheusStore

        return PrometheusStore(settings.prometheus)
    if settings.influx is None:
        store = SqliteStore(settings.path, settings.retention_s, settings.thinning)
        try:
            store.open()
        except StoreUnavailable:
            LOG.debug("%s is opened when it is available", settings.path)
        except StoreRefused as error:
            raise StoreRefused(f"STORE_PATH: {error}") from None
        return store
    # The import takes 0.3 s, and the embedded store does not need it.
    from .influxdb import InfluxStore

    return InfluxStore(settings.influx)


def check_store(settings: StoreSettings) -> tuple[bool, str]:
    """Check the store without creating it: whether it can be used, and one line that describes it.

    Raises
    ------
    StoreRefused
        When the file of the embedded store exists and is not a store.
    """
    path = settings.path.expanduser().absolute()
    if settings.is_embedded and identity(path) is None:
        return _check_missing_file(path)
    with contextlib.closing(open_store(settings)) as store:
        return ask_store(store)


def _check_missing_file(path: Path) -> tuple[bool, str]:
    """Whether a store could be created: missing folders are created below the first one that exists."""
    folder = next(parent for parent in path.parents if identity(parent) is not None)
    if not folder.is_dir():
        return False, f"the store does not exist yet; {folder} is not a folder"
    writable = os.access(folder, os.W_OK | os.X_OK)
    return writable, f"the store does not exist yet; folder {folder} is {'' if writable else 'not '}writable"


def ask_store(store: Store) -> tuple[bool, str]:
    """Whether an open store can be used, and one line that describes it."""
    try:
        return True, store.check()
    except StoreUnavailable as error:
        return False, str(error)


def store_name(settings: StoreSettings) -> str:
    """Name of the store for messages: its file, or its URL without a password."""
    if settings.prometheus is not None:
        return f"store {without_password(settings.prometheus.access.url)}"
    return f"store {settings.path}" if settings.influx is None else f"store {without_password(settings.influx.url)}"
