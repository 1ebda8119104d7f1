"""The state of a node between slices, and its form in the checkpoint file."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..feedback import SliceCounts
from ..numerics import BoolArray, FloatArray
from ..slices import RESOURCES, Slice, Usage
from ..status import NodeStatus
from .bookings import LastConfigs

#: Increased when the format of the file changes.
FORMAT = 2

T = TypeVar("T")


class CheckpointCorrupt(Exception):
    """The checkpoint of a node cannot be decoded or restored."""


class NodeCheckpoint(msgspec.Struct):
    """The state of a node after its last slice.

    Attributes
    ----------
    number : int
        The number of that slice.
    model : dict
        The state of the model that is common to all positions.
    configs : LastConfigs
    status : NodeStatus
        The status that was published.
    counts : SliceCounts or None
        What the fleet learns from the slice; None where the node is a fleet of its own.
    """

    number: int
    model: dict[str, Any] = msgspec.field(name="common")
    configs: LastConfigs = msgspec.field(name="known")
    status: NodeStatus
    counts: SliceCounts | None = None


@dataclass(slots=True)
class PositionCheckpoint:
    """The state of one position of a node.

    Attributes
    ----------
    own : dict
        The state of the model that belongs to this position.
    past : dict of slice number to Slice
        The last slices at this position.
    """

    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    past: dict[int, Slice] = field(default_factory=dict)


class FleetCheckpoint(msgspec.Struct):
    """The state of the fleet after the slice that was closed last.

    Attributes
    ----------
    number : int
        The number of that slice.
    model : dict
    """

    number: int
    model: dict[str, Any]


class _PackedUsage(msgspec.Struct, array_like=True):
    config: float
    node: bytes
    vm_config: bytes
    vm_usage: bytes
    vm_alive: bytes | None = None
    vm_number: bytes | None = None


class _PackedSlice(msgspec.Struct, array_like=True):
    end_s: float
    position: int
    vms: tuple[str, ...]
    cpu: _PackedUsage
    mem: _PackedUsage


def pack_slice(finished: Slice) -> bytes:
    """Encode a slice; arrays become blocks of float64."""
    cpu, mem = (
        _PackedUsage(
            usage.config,
            usage.node.tobytes(),
            usage.vm_config.tobytes(),
            usage.vm_usage.tobytes(),
            None if usage.vm_alive is None else usage.vm_alive.tobytes(),
            None if usage.vm_number is None else usage.vm_number.astype(np.uint32).tobytes(),
        )
        for usage in (finished.cpu, finished.mem)
    )
    return msgspec.msgpack.encode(_PackedSlice(finished.end_s, finished.position, finished.vms, cpu, mem))


def unpack_slice(data: bytes) -> Slice:
    """Decode a slice.

    Raises
    ------
    CheckpointCorrupt
    """
    packed = decode(data, _PackedSlice)
    try:
        cpu, mem = (
            Usage(
                usage.config,
                np.frombuffer(usage.node),
                np.frombuffer(usage.vm_config),
                _matrix(usage.vm_usage, len(packed.vms)),
                vm_alive=None if usage.vm_alive is None else _flags(usage.vm_alive, len(packed.vms)),
                vm_number=None if usage.vm_number is None else _numbers(usage.vm_number, len(packed.vms)),
            )
            for usage in (packed.cpu, packed.mem)
        )
    except ValueError as error:
        raise CheckpointCorrupt(str(error)) from None
    return Slice(packed.end_s, packed.position, packed.vms, cpu, mem)


def _matrix(data: bytes, rows: int) -> FloatArray:
    return np.frombuffer(data).reshape(rows, len(data) // 8 // rows if rows else 0)


def _flags(data: bytes, size: int) -> BoolArray:
    return np.frombuffer(data, dtype=bool).reshape(size)


def _numbers(data: bytes, size: int) -> NDArray[np.intp]:
    return np.frombuffer(data, dtype=np.uint32).astype(np.intp).reshape(size)


def encode(value: object) -> bytes:
    """Encode a part of a checkpoint other than a slice."""
    return msgspec.msgpack.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Decode a part of a checkpoint.

    Raises
    ------
    CheckpointCorrupt
    """
    try:
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CheckpointCorrupt(str(error)) from None


#: msgspec reads the fields of a class when it is decoded for the first time; when two threads do that at once, it
#: crashes the process.
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_decoders_lock = threading.Lock()


def _decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    with _decoders_lock:
        if kind not in _decoders:
            _decoders[kind] = msgspec.msgpack.Decoder(kind, strict=False)
        return _decoders[kind]


def decode_node(data: bytes) -> NodeCheckpoint:
    """Decode the checkpoint of a node, also one of a version that did not distinguish booked and booked now.

    Raises
    ------
    CheckpointCorrupt
    """
    try:
        return decode(data, NodeCheckpoint)
    except CheckpointCorrupt:
        fields = decode(data, dict[str, Any])
    try:
        for resource in RESOURCES:
            if (last := fields["status"][resource.name]["last"]) is not None:
                # What that version published, until the next slice is computed.
                last.setdefault("booked_now", last["booked"])
        return msgspec.convert(fields, NodeCheckpoint, strict=False)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointCorrupt(str(error)) from None
