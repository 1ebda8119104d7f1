"""Samples as bytes that no store needs to understand: for the spool, and for a long backlog in RAM.

A sample is a MessagePack array: node, time, fields of the node, names of the domain fields, names of the domains, and a
block of float64 with a row per domain; NaN where a domain lacks a field. The spool has the number of this format.
"""

from __future__ import annotations

import math
from array import array

import msgspec

from ..samples import ScrapeSample


class _Packed(msgspec.Struct, array_like=True):
    node: str
    time_ms: int
    fields: dict[str, float]
    domain_fields: list[str]
    domains: list[str]
    block: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Packed)


class SampleCorrupt(ValueError):
    """Bytes that are not a sample."""


def pack_sample(sample: ScrapeSample) -> bytes:
    """A sample as bytes; a tenth of its size in RAM.

    Raises
    ------
    UnicodeEncodeError
        For a name with a lone surrogate.
    """
    names = sorted(set().union(*sample.domains.values()))
    values = array("d", [domain.get(name, math.nan) for domain in sample.domains.values() for name in names])
    packed = _Packed(
        sample.node, sample.time_ms, dict(sample.fields), names, list(sample.domains), memoryview(values).tobytes()
    )
    return _ENCODER.encode(packed)


def count_points(data: bytes) -> int:
    """Rows of node and domains of a packed sample; 0 if it is none."""
    try:
        return 1 + len(_DECODER.decode(data).domains)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0


def unpack_sample(data: bytes) -> ScrapeSample:
    """The sample that was packed, without fields of domains that are NaN.

    Raises
    ------
    SampleCorrupt
    """
    try:
        packed = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SampleCorrupt(str(error)) from None
    names, width = packed.domain_fields, len(packed.domain_fields)
    if len(packed.block) != 8 * width * len(packed.domains):
        raise SampleCorrupt("the block has another size")
    values = array("d", packed.block).tolist()
    domains = {
        domain: {
            name: value
            for name, value in zip(names, values[row * width : (row + 1) * width], strict=True)
            if not math.isnan(value)
        }
        for row, domain in enumerate(packed.domains)
    }
    return ScrapeSample(packed.node, packed.time_ms, packed.fields, domains)
