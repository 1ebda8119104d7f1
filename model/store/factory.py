"""Opens the store that the settings name."""

from __future__ import annotations

from ..common.targets import without_password
from .base import Store, StoreRefused, StoreUnavailable
from .settings import StoreSettings
from .sqlite import SqliteStore


def open_store(settings: StoreSettings) -> Store:
    """The store that is meant.

    Raises
    ------
    StoreRefused
        When the embedded one can't be opened. A server that is away is no fault: it may come back.
    """
    if settings.influx is None:
        try:
            return SqliteStore(settings.path, settings.retention_s)
        except StoreRefused as error:
            raise StoreRefused(f"STORE_PATH: {error}") from None
    # A third of a second that only those wait for who use it.
    from .influxdb import InfluxStore

    return InfluxStore(settings.influx)


def ask_store(store: Store) -> tuple[bool, str]:
    """Whether a store answers, and what it says."""
    try:
        return True, store.check()
    except StoreUnavailable as error:
        return False, str(error)


def store_name(settings: StoreSettings) -> str:
    """What a store is called before a person."""
    return f"store {settings.path}" if settings.influx is None else f"store {without_password(settings.influx.url)}"
