"""A sample that waits for the store."""

from __future__ import annotations

from dataclasses import dataclass

from ..samples import ScrapeSample
from .sample_codec import pack_sample, unpack_sample

#: Estimates of the memory of a sample that is not packed: of a value, of a domain and of the rest, bytes.
_OF_VALUE, _OF_DOMAIN, _OF_SAMPLE = 90, 300, 500
#: Memory of a packed sample besides its bytes.
_OVERHEAD = 200


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A sample, packed or not; two of them are equal only if they are the same object.

    Attributes
    ----------
    sample : ScrapeSample or None
    packed : bytes or None
    size : int
        Approximate size in memory, bytes.
    points : int
        Rows of node and domains.
    since_s : float
        Monotonic seconds.
    """

    sample: ScrapeSample | None
    packed: bytes | None
    size: int
    points: int
    since_s: float = 0.0

    @classmethod
    def of(cls, sample: ScrapeSample, since_s: float, *, packed: bool) -> Waiting:
        """Wrap a sample.

        Raises
        ------
        UnicodeEncodeError
            When it cannot be packed.
        """
        points = 1 + len(sample.domains)
        if packed:
            data = pack_sample(sample)
            return cls(None, data, len(data) + _OVERHEAD, points, since_s)
        values = len(sample.fields) + sum(map(len, sample.domains.values()))
        size = _OF_SAMPLE + _OF_DOMAIN * len(sample.domains) + _OF_VALUE * values
        return cls(sample, None, size, points, since_s)

    @classmethod
    def of_packed(cls, packed: bytes, sample: ScrapeSample | None) -> Waiting:
        """Wrap a sample of the spool; None when it could not be unpacked."""
        return cls(sample, packed, len(packed) + _OVERHEAD, 0 if sample is None else 1 + len(sample.domains))

    def to_sample(self) -> ScrapeSample:
        """The sample.

        Raises
        ------
        SampleCorrupt
        """
        return self.sample if self.sample is not None else unpack_sample(self.packed or b"")

    def to_bytes(self) -> bytes:
        """The packed sample.

        Raises
        ------
        UnicodeEncodeError
        """
        return self.packed if self.packed is not None else pack_sample(self.to_sample())
