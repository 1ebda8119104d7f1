"""A sample that waits for the store."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine_table import MachineTable
from ..samples import ScrapeSample
from ..store.base import Encoded, Store
from .sample_codec import count_points, pack_sample, unpack_sample

#: Estimates of the memory of a sample that is not packed: of a value, of a domain and of the rest, bytes.
_OF_VALUE, _OF_DOMAIN, _OF_SAMPLE = 90, 300, 500


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A sample in the form that its store writes, and in one that the spool takes; equal to itself alone.

    Attributes
    ----------
    encoded : Encoded or None
        None for a sample that was read from the spool: it is encoded when it is written.
    neutral : ScrapeSample or bytes or None
        The sample, or the packed sample. None where there is no spool.
    size : int
        Approximate size in memory, bytes.
    points : int
        Rows of node and domains.
    since_s : float
        Monotonic seconds.
    """

    encoded: Encoded | None
    neutral: ScrapeSample | bytes | None
    size: int
    points: int
    since_s: float = 0.0

    @classmethod
    def of_spool(cls, packed: bytes) -> Waiting:
        """Wrap a sample of the spool; it has no points when it is not a sample of this version."""
        return cls(None, packed, len(packed), count_points(packed))

    def encode(self, store: Store) -> Encoded:
        """The sample in the form of the store.

        Raises
        ------
        SampleCorrupt
        """
        if self.encoded is not None:
            return self.encoded
        return store.encode(unpack_sample(self.neutral) if isinstance(self.neutral, bytes) else self._sample())

    def pack(self) -> bytes:
        """The sample in the form of the spool.

        Raises
        ------
        UnicodeEncodeError
        """
        return self.neutral if isinstance(self.neutral, bytes) else pack_sample(self._sample())

    def _sample(self) -> ScrapeSample:
        assert isinstance(self.neutral, ScrapeSample)  # noqa: S101  # by construction
        return self.neutral


def estimate_size(sample: ScrapeSample) -> int:
    """Approximate memory of a sample that is not packed, bytes."""
    if isinstance(sample.domains, MachineTable):
        return _OF_SAMPLE + _OF_VALUE * len(sample.fields) + sample.domains.array.nbytes
    values = len(sample.fields) + sum(map(len, sample.domains.values()))
    return _OF_SAMPLE + _OF_DOMAIN * len(sample.domains) + _OF_VALUE * values
