"""The interface and the errors of all stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..samples import LastConfig, Period, ScrapeSample


class StoreUnavailable(Exception):
    """The store cannot be used at the moment; the same call may succeed later.

    Attributes
    ----------
    retry_after_s : float or None
        Seconds after which the store asks for a retry.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreRefused(Exception):
    """The store rejects a request; a retry does not help."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample in the form in which its store writes it.

    Attributes
    ----------
    payload : object
    size : int
        Approximate size in memory, bytes.
    points : int
        Number of rows of node and domains.
    """

    payload: Any
    size: int
    points: int


@dataclass(frozen=True, slots=True)
class FleetRow:
    """What a master counted on its nodes in a slice.

    Attributes
    ----------
    master : str
    time_ms : int
        Unix milliseconds of the end of the slice.
    counts : mapping of field to float
    """

    master: str
    time_ms: int
    counts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Resolution:
    """How many samples of a period are kept.

    Attributes
    ----------
    before_ms : int
        Of the samples before this time, Unix milliseconds, one per step is kept; all later ones are.
    step_ms : int
    """

    before_ms: int
    step_ms: int


class Store(Protocol):
    """The operations of a store."""

    def encode(self, sample: ScrapeSample) -> Encoded:
        """Convert a sample to the form in which it is written."""

    def write(self, samples: Sequence[Encoded]) -> int:
        """Write samples; a sample that is written twice is stored once.

        Returns
        -------
        int
            Number of points that the store rejected; they are lost, all others are stored.

        Raises
        ------
        StoreUnavailable
            The samples may not be stored: retry all of them.
        """

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Read fields of a node, and of its domains unless ``domains`` is false.

        Parameters
        ----------
        node : str
        start_ms, end_ms : int
            Unix milliseconds; the start is included, the end is not.
        fields : collection of str
        domains : bool

        Raises
        ------
        StoreUnavailable, StoreRefused
        """

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, LastConfig]:
        """Read the last ``cpu`` and ``mem`` of each domain in a period, and their time, without reading all samples.

        Raises
        ------
        StoreUnavailable
        """

    def nodes(self) -> list[str]:
        """Names of the nodes that have samples, sorted."""

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """Time of the first sample of a node in a period; None when there is none."""

    def resolution(self, node: str, start_ms: int, end_ms: int) -> Resolution | None:
        """Which samples of a node in a period are thinned, see :mod:`~model.store.thinning`; None when none are."""

    def last(self, node: str) -> ScrapeSample | None:
        """Newest sample of a node; None when there is none."""

    def write_fleet(self, row: FleetRow) -> None:
        """Write the counts of a master; they replace those of the same time.

        Raises
        ------
        StoreUnavailable
        StoreRefused
            When the store cannot hold them, or cannot be written at all.
        """

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:
        """Read the counts of all masters in a period, by time and name; the start is included, the end is not.

        Raises
        ------
        StoreUnavailable, StoreRefused
        """

    def check(self) -> str:
        """Verify that the store can be read and written; one line that describes it.

        Raises
        ------
        StoreUnavailable
        """

    def close(self) -> None:
        """Close files and connections."""
