"""Detects pages that were read while the probe wrote them.

A probe truncates its file and then writes it: a scrape in between gets the beginning of a page.
"""

from __future__ import annotations

from collections.abc import Mapping

from .exposition import PageError


class CompletenessCheck:
    """Compares the metrics of each page with those of the page before.

    A page is truncated when a machine is still on it but lacks metrics that it had before. If a later page of
    the probe lacks them too, they have ended; from then on they are optional.
    """

    def __init__(self) -> None:
        self._names: Mapping[bytes, str | None] = {}
        self._optional: dict[bytes, str | None] = {}
        self._refused_epoch_ms: float | None = None

    def check(self, names: Mapping[bytes, str | None], epoch_ms: float) -> None:
        """Compare a page with the page before.

        Parameters
        ----------
        names : mapping of name to domain
            All metrics of the page; the domain None is the node.
        epoch_ms : float
            Time of the page.

        Raises
        ------
        PageError
            When the page is truncated.
        """
        present = set(names.values())
        absent = self._names.keys() - names.keys() - self._optional.keys()
        missing = {name for name in absent if self._names[name] in present}
        if missing and (self._refused_epoch_ms is None or epoch_ms <= self._refused_epoch_ms):
            if self._refused_epoch_ms is None:
                self._refused_epoch_ms = epoch_ms
            raise PageError(f"the page is truncated: {len(missing)} metrics of the page before are missing")
        optional = {name: domain for name, domain in self._optional.items() if domain in present}
        # A probe whose metrics always change would fill the memory; a truncated page is found by the next check.
        self._optional = {} if len(optional) > len(self._names) else optional
        self._optional |= {name: self._names[name] for name in missing}
        self._names = names
        self._refused_epoch_ms = None

    def accept(self) -> None:
        """Note that a page had the same metrics as the last one that :meth:`check` accepted."""
        self._refused_epoch_ms = None
