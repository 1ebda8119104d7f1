"""What was last written to each provider, kept in a file over restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...common.atomic_files import make_folder_of, write_atomically
from .bookings import CountedBookings
from .ratio import same_ratio


class WrittenRecord(msgspec.Struct):
    """One provider.

    Attributes
    ----------
    node : str
    ratios : dict of resource class to float
        What was written, or found to be right already.
    written_s : float
        When a ratio was changed last, Unix seconds.
    bookings : dict
        The state of :class:`~.bookings.CountedBookings`.
    """

    node: str = ""
    ratios: dict[str, float] = {}
    written_s: float = 0.0
    bookings: dict[str, Any] = {}


def read_written(path: Path) -> dict[str, WrittenRecord]:
    """The records of a file, by UUID of the provider; none when there is no file.

    Raises
    ------
    OSError
        When it cannot be read.
    ValueError
        When it is not such a file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, WrittenRecord])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


class WrittenRatios:
    """The ratios that were written last, and the bookings that count. Usable from several threads.

    Parameters
    ----------
    path : Path or None
        None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[str, WrittenRecord] = {}
        self._bookings: dict[str, CountedBookings] = {}
        self._attempted: dict[str, Mapping[str, float]] = {}
        self._saved = b""

    def load(self) -> None:
        """Continue from the file.

        Raises
        ------
        OSError, ValueError
            When it cannot be read; it is replaced later.
        """
        if self._path is None:
            return
        records = read_written(self._path)
        bookings = {provider: CountedBookings() for provider in records}
        for provider, record in records.items():
            if record.bookings:
                try:
                    bookings[provider].restore(record.bookings)
                except (LookupError, TypeError) as error:
                    raise ValueError(f"invalid bookings of {provider}: {error}") from None
        self._records, self._bookings = records, bookings

    def save(self) -> None:
        """Write the file, if anything has changed.

        Raises
        ------
        OSError
        """
        if self._path is None:
            return
        with self._lock:
            for provider, bookings in self._bookings.items():
                if provider in self._records:
                    self._records[provider].bookings = bookings.state()
            data = msgspec.json.encode(self._records)
        if data != self._saved:
            make_folder_of(self._path)
            write_atomically(self._path, data)
            self._saved = data

    def ratios(self, provider: str) -> Mapping[str, float]:
        """The ratios of a provider that are ours, by resource class."""
        with self._lock:
            record = self._records.get(provider)
            return dict(record.ratios) if record else {}

    def bookings(self, provider: str) -> CountedBookings:
        """The bookings of a provider that count."""
        with self._lock:
            return self._bookings.setdefault(provider, CountedBookings())

    def foreign(self, provider: str, inventories: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        """The ratios that another process has written since, and ours before them, by resource class.

        A ratio whose write was not answered is ours.
        """
        with self._lock:
            record = self._records.get(provider)
            ours = record.ratios if record else {}
            attempted = self._attempted.get(provider, {})
        found = {resource: inventories[resource]["allocation_ratio"] for resource in ours if resource in inventories}
        return {
            resource: (ratio, ours[resource])
            for resource, ratio in found.items()
            if not same_ratio(ratio, ours[resource]) and not same_ratio(ratio, attempted.get(resource))
        }

    def attempt(self, provider: str, ratios: Mapping[str, float]) -> None:
        """Note ratios before they are written."""
        with self._lock:
            self._attempted[provider] = ratios

    def note(self, provider: str, node: str, ratios: Mapping[str, float], *, changed: bool) -> None:
        """Note the ratios that a provider has now."""
        with self._lock:
            record = self._records.setdefault(provider, WrittenRecord())
            record.node, record.ratios = node, {**record.ratios, **ratios}
            if changed:
                record.written_s = time.time()

    def forget(self, providers: Iterable[str]) -> None:
        """Drop providers that are left alone, or gone."""
        with self._lock:
            for provider in providers:
                self._records.pop(provider, None)
                self._bookings.pop(provider, None)
                self._attempted.pop(provider, None)
