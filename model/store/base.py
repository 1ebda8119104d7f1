"""What every store does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..samples import Period, ScrapeSample


class StoreUnavailable(Exception):
    """The store can't be reached, or not now; what was to be written may be tried again.

    Attributes
    ----------
    retry_after_s : float or None
        When the store itself wants to be asked again.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreRefused(Exception):
    """The store does not take or give what was asked, now or ever."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tick in the form in which its store takes it.

    Attributes
    ----------
    payload : object
    size : int
        Bytes that it holds in memory, about.
    points : int
        How many rows of node and domains it is.
    """

    payload: Any
    size: int
    points: int


class Store(Protocol):
    """What all daemons ask of a store."""

    def encode(self, sample: ScrapeSample) -> Encoded:
        """Bring a tick into the form in which it is written."""

    def write(self, scraped: Sequence[Encoded]) -> int:
        """Write ticks; writing one twice is writing it once.

        Returns
        -------
        int
            How many points the store refused for good; they are lost, all others are kept.

        Raises
        ------
        StoreUnavailable
            Nothing is known to be kept: try all of them again.
        """

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Some fields of a node, and as a rule of its domains, from ``start_ms`` to before ``end_ms``.

        Raises
        ------
        StoreUnavailable, StoreRefused
        """

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, dict[str, float]]:
        """The last ``cpu`` and ``mem`` of each domain in a period: much less than all their samples.

        Raises
        ------
        StoreUnavailable
        """

    def nodes(self) -> list[str]:
        """The nodes of which there is anything, sorted."""

    def domains(self, node: str, start_ms: int, end_ms: int) -> list[str]:
        """The domains of a node in a period, sorted."""

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """When the first sample of a node in a period was; None when there is none."""

    def last(self, node: str) -> ScrapeSample | None:
        """The newest tick of a node; None when there is none."""

    def check(self) -> str:
        """One line of what answers, once it has been read and could be written.

        Raises
        ------
        StoreUnavailable
        """

    def close(self) -> None:
        """Let go of files and connections."""
