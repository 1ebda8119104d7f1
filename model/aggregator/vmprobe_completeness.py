"""Detects pages that were read while the probe wrote them.

A probe truncates its file and then writes it: a scrape in between gets the beginning of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from .exposition import PageError
from .vmprobe_names import PageNames, Place, Places, pack_places


class CompletenessCheck:
    """Compares the metrics of each page with those of the page before.

    A page is truncated when a machine is still on it but lacks metrics that it had before. If a later page of
    the probe lacks them too, they have ended; from then on they are optional.

    Parameters
    ----------
    prefix : bytes
        Of all names on the pages.
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._names: Places = {}
        self._optional: dict[bytes, str | None] = {}
        self._refused_epoch_ms: float | None = None

    def check(self, places: dict[bytes, Place | None], epoch_ms: float, packed: Places | None = None) -> None:
        """Compare a page with the page before.

        Parameters
        ----------
        places : dict of name to Place or None
            All names of the page; None for a metric that is not used, which may be missing.
        epoch_ms : float
            Time of the page.
        packed : PageNames, optional
            The same names, if they are in memory already.

        Raises
        ------
        PageError
            When the page is truncated.
        """
        names = _domains_of(places)
        before: Mapping[bytes, str | None] = {}
        if self._optional or not names.keys() >= _names_of(self._names):
            before = _domains_of(self._names.places() if isinstance(self._names, PageNames) else self._names)
        present = set(names.values())
        absent = before.keys() - names.keys() - self._optional.keys()
        missing = {name for name in absent if before[name] in present}
        if missing and (self._refused_epoch_ms is None or epoch_ms <= self._refused_epoch_ms):
            if self._refused_epoch_ms is None:
                self._refused_epoch_ms = epoch_ms
            raise PageError(f"the page is truncated: {len(missing)} metrics of the page before are missing")
        optional = {name: domain for name, domain in self._optional.items() if domain in present}
        # A probe whose metrics always change would fill the memory; a truncated page is found by the next check.
        self._optional = {} if len(optional) > len(before) else optional
        self._optional |= {name: before[name] for name in missing}
        self._names = pack_places(places, self._prefix) if packed is None else packed
        self._refused_epoch_ms = None

    def accept(self) -> None:
        """Note that a page had the same metrics as the last one that :meth:`check` accepted."""
        self._refused_epoch_ms = None


def _names_of(places: Places) -> Set[bytes]:
    return set(places.names()) if isinstance(places, PageNames) else places.keys()


def _domains_of(places: Mapping[bytes, Place | None]) -> dict[bytes, str | None]:
    """The domain of each metric that is used; the domain None is the node."""
    return {name: place[0] for name, place in places.items() if place is not None}
