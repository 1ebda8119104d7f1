"""Reads and writes workload files.

The lists of shares are decoded one by one, so that a month of a thousand VMs is never held as Python numbers.
Everything is checked before it is used. A message names the place of the fault: ``series[3].cpu[7]``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..common.atomic_files import staged
from ..common.json_text import has_literals, not_json, replace_literals, validation_message
from ..common.text import printable
from ..numerics import FloatArray
from ..slices import LARGEST
from .workload import IntArray, SeriesPool, Shares, Workload

#: A month in steps of a second, and a century in steps of five minutes.
_MOST_STEPS = 10_000_000
_VMS_AT_ONCE = 1000


class WorkloadError(ValueError):
    """The workload is not usable; the message is one line that names the place."""


class _RawSeries(msgspec.Struct):
    cpu: msgspec.Raw
    mem: msgspec.Raw


class _RawVm(msgspec.Struct):
    name: str
    create_s: float
    delete_s: float | None
    vcpu: float
    memory_mb: float
    series: int
    offset: int


class _RawWorkload(msgspec.Struct):
    step_s: float
    duration_s: float
    series: list[_RawSeries]
    vms: list[_RawVm]


_WORKLOAD = msgspec.json.Decoder(_RawWorkload)
_SHARES = msgspec.json.Decoder(list[float])
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class _Vms:
    """The fields of the VMs, an array for each; times in s, infinite ``delete_s`` for a VM that stays."""

    names: Sequence[str]
    create_s: FloatArray
    delete_s: FloatArray
    vcpu: FloatArray
    memory_mb: FloatArray
    series: IntArray
    offset: IntArray

    def check(self, series: int) -> None:
        """Check each field; ``series`` is the number of series."""
        if not self.names:
            raise WorkloadError("vms: is empty")
        self._check_names()
        create, delete = self.create_s, self.delete_s
        self._check("create_s", (create >= 0) & (create <= LARGEST), "is not a time from 0 on")
        self._check("delete_s", (delete <= LARGEST) | (delete == math.inf), "is not a time")
        self._check("delete_s", delete >= create, "is before create_s, {:g}", create)
        before = np.concatenate([create[:1], create[:-1]])
        self._check("create_s", create >= before, "is before that of the VM above, {:g}: sort by create_s", before)
        for field in ("vcpu", "memory_mb"):
            size = getattr(self, field)
            self._check(field, (size > 0) & (size <= LARGEST), "is not a size")
        self._check(
            "series", (self.series >= 0) & (self.series < series), f"is not the index of one of {series} series"
        )
        self._check("offset", np.abs(self.offset) <= LARGEST, "is not a number of steps")

    def _check(self, field: str, valid: NDArray[np.bool_], message: str, other: FloatArray | None = None) -> None:
        if valid.all():
            return
        k = int(valid.argmin())
        detail = message if other is None else message.format(other[k])
        raise WorkloadError(f"vms[{k}].{field}: {getattr(self, field)[k]:g} {detail}")

    def _check_names(self) -> None:
        if len(set(self.names)) == len(self.names) and "" not in self.names:
            return
        first: dict[str, int] = {}
        for k, name in enumerate(self.names):
            if not name:
                raise WorkloadError(f"vms[{k}].name: is empty")
            if name in first:
                raise WorkloadError(f"vms[{k}].name: {printable(name)} is the name of vms[{first[name]}] too")
            first[name] = k


def read_workload(path: str | Path) -> Workload:
    """Read, decode and check a workload file.

    Raises
    ------
    WorkloadError
        When the file cannot be read or is not a workload; the message names file and place.
    """
    try:
        return parse_workload(Path(path).read_bytes())
    except OSError as error:
        raise WorkloadError(f"{printable(str(path))}: {error.strerror}") from None
    except WorkloadError as error:
        raise WorkloadError(f"{printable(str(path))}: {error}") from None


def parse_workload(data: bytes) -> Workload:
    """Decode and check the text of a workload.

    Raises
    ------
    WorkloadError
        With the place in the workload, without a file name.
    """
    if not data.strip():
        raise WorkloadError("the file is empty")
    data = data.removeprefix(b"\xef\xbb\xbf")
    literals = has_literals(data)
    if literals:
        # As a string each of them is refused with its place, except where the key is skipped anyway.
        data = replace_literals(data, b'"NaN"')
    try:
        return _build(_WORKLOAD.decode(data))
    except (WorkloadError, msgspec.ValidationError) as error:
        message = str(error)
        if isinstance(error, msgspec.ValidationError):
            message = validation_message(error, whole="the workload")
        if literals:
            message = message.replace("got str", "got NaN, Infinity or a string")
        raise WorkloadError(message) from None
    except msgspec.DecodeError as error:
        raise WorkloadError(not_json(error, data)) from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"not JSON: a string is not UTF-8 ({error.reason})") from None
    except RecursionError:
        raise WorkloadError("not a workload: nested too deeply") from None


def _build(raw: _RawWorkload) -> Workload:
    _check_length(raw.step_s, raw.duration_s)
    if not raw.series:
        raise WorkloadError("series: is empty")
    vms = _vms(raw.vms)
    vms.check(len(raw.series))
    pools = [
        SeriesPool([_shares(getattr(one, field), f"series[{k}].{field}") for k, one in enumerate(raw.series)])
        for field in ("cpu", "mem")
    ]
    return Workload(
        step_s=raw.step_s,
        duration_s=raw.duration_s,
        names=vms.names,
        create_s=vms.create_s,
        delete_s=vms.delete_s,
        vcpu=vms.vcpu,
        memory_mb=vms.memory_mb,
        series=vms.series,
        offset=vms.offset,
        cpu=pools[0],
        mem=pools[1],
    )


def _vms(raw: Sequence[_RawVm]) -> _Vms:
    for k, vm in enumerate(raw):
        # A whole number of any size is JSON; an array holds 64 bits.
        if abs(vm.series) > LARGEST or abs(vm.offset) > LARGEST:
            field = "series" if abs(vm.series) > LARGEST else "offset"
            raise WorkloadError(f"vms[{k}].{field}: exceeds {LARGEST:g}")
    return _Vms(
        names=[vm.name for vm in raw],
        create_s=np.array([vm.create_s for vm in raw], np.float64),
        delete_s=np.array([math.inf if vm.delete_s is None else vm.delete_s for vm in raw], np.float64),
        vcpu=np.array([vm.vcpu for vm in raw], np.float64),
        memory_mb=np.array([vm.memory_mb for vm in raw], np.float64),
        series=np.array([vm.series for vm in raw], np.intp),
        offset=np.array([vm.offset for vm in raw], np.intp),
    )


def _check_length(step_s: float, duration_s: float) -> None:
    for field, value in (("step_s", step_s), ("duration_s", duration_s)):
        if not 0 < value <= LARGEST:
            raise WorkloadError(f"{field}: {value:g} is not a length of time")
    steps = duration_s / step_s
    if steps > _MOST_STEPS:
        raise WorkloadError(f"duration_s: {duration_s:g} s is more than {_MOST_STEPS} steps of {step_s:g} s")
    if round(steps) < 1 or not math.isclose(steps, round(steps), rel_tol=1e-9):
        raise WorkloadError(f"duration_s: {duration_s:g} s is not a multiple of step_s, {step_s:g} s")


def _shares(raw: msgspec.Raw, place: str) -> Shares:
    try:
        numbers = _SHARES.decode(raw)
    except msgspec.ValidationError as error:
        raise WorkloadError(validation_message(error, place)) from None
    # As in traces: faster than np.array(list).
    shares = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
    check_shares(shares, place)
    return shares.astype(np.float32)


def check_shares(shares: NDArray[np.floating[Any]], place: str) -> None:
    """Check that there are shares, each from 0 to 1.

    Raises
    ------
    WorkloadError
        With the place.
    """
    if not shares.size:
        raise WorkloadError(f"{place}: is empty")
    valid = (shares >= 0) & (shares <= 1)
    if not valid.all():
        k = int(valid.argmin())
        raise WorkloadError(f"{place}[{k}]: {shares[k]:g} is not a share from 0 to 1")


def write_workload(path: str | Path, workload: Workload) -> None:
    """Write a workload file, whole or not at all.

    Raises
    ------
    WorkloadError
        When the workload is not one that :func:`read_workload` accepts, or the file cannot be written.
    """
    try:
        _check_length(workload.step_s, workload.duration_s)
        vms = _Vms(
            names=workload.names,
            create_s=workload.create_s,
            delete_s=workload.delete_s,
            vcpu=workload.vcpu,
            memory_mb=workload.memory_mb,
            series=workload.series,
            offset=workload.offset,
        )
        vms.check(len(workload.cpu))
        with staged() as files:
            files.write_pieces(Path(path), _pieces(workload, vms))
    except OSError as error:
        raise WorkloadError(f"{printable(str(path))}: {error.strerror}") from None
    except WorkloadError as error:
        raise WorkloadError(f"{printable(str(path))}: {error}") from None


def _pieces(workload: Workload, vms: _Vms) -> Iterator[bytes]:
    """The text of a workload file; a series, and so many VMs, at a time."""
    yield _ENCODER.encode({"step_s": workload.step_s, "duration_s": workload.duration_s})[:-1]
    for k in range(len(workload.cpu)):
        texts = (
            _shares_text(pool, k, f"series[{k}].{field}")
            for field, pool in (("cpu", workload.cpu), ("mem", workload.mem))
        )
        yield b'%s\n{"cpu":%s,"mem":%s}' % (b"," if k else b',"series":[', *texts)
    for first in range(0, len(workload), _VMS_AT_ONCE):
        rows = slice(first, first + _VMS_AT_ONCE)
        texts = (
            _ENCODER.encode(_RawVm(name, create_s, None if delete_s == math.inf else delete_s, *rest))
            for name, create_s, delete_s, *rest in zip(
                vms.names[rows],
                vms.create_s[rows].tolist(),
                vms.delete_s[rows].tolist(),
                vms.vcpu[rows].tolist(),
                vms.memory_mb[rows].tolist(),
                vms.series[rows].tolist(),
                vms.offset[rows].tolist(),
                strict=True,
            )
        )
        yield (b",\n" if first else b'],"vms":[\n') + b",\n".join(texts)
    yield b"]}\n"


def _shares_text(pool: SeriesPool, k: int, place: str) -> bytes:
    shares = pool.shares[pool.starts[k] : pool.starts[k] + pool.lengths[k]]
    check_shares(shares, place)
    # Seven digits mostly identify a number of 32 bits, nine always do; a double would take 17.
    exact = shares.astype(np.float64)
    short = _rounded(exact, 7)
    return _ENCODER.encode(np.where(short.astype(np.float32) == shares, short, _rounded(exact, 9)).tolist())


def _rounded(numbers: FloatArray, digits: int) -> FloatArray:
    """Round to significant digits."""
    power = np.floor(np.log10(np.where(numbers > 0, numbers, 1.0)))
    scale = 10.0 ** (digits - 1 - power)
    return np.round(numbers * scale) / scale
