"""Reads the VMs that CloudFactory's generator exports (``--export=vms.json``) as arrivals with CPU usage."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from misc.tracesources.grid import ConversionError
from misc.tracesources.tables import ArrivalRows
from model.common.json_text import not_json, validation_message
from model.simulation.arrivals import ArrivalList
from model.simulation.workload import Shares
from model.slices import LARGEST


class _Vm(msgspec.Struct):
    """A VM: memory in GB, times in slices, a percentage of its vCPUs for each slice in which it runs."""

    cpu: float
    mem: float
    name: str | None = None
    slice_postponed: int = 0
    slice_lifetime: int = 0
    usage: list[float] = []


_VMS = msgspec.json.Decoder(list[_Vm])


def read_cloudfactory(path: Path, slice_s: float = 3600.0) -> ArrivalList:
    """Read the VMs; one of lifetime 0 stays.

    Parameters
    ----------
    path : Path
    slice_s : float
        Seconds of a slice: the first number of ``--temporality``, which the file does not contain.

    Raises
    ------
    ConversionError
    """
    rows = ArrivalRows(path)
    for k, vm in enumerate(_decode(path)):
        place = f"{path}: [{k}]"
        for field in ("cpu", "mem", "slice_postponed", "slice_lifetime"):
            value = getattr(vm, field)
            if not 0 <= value <= LARGEST:
                raise ConversionError(f"{place}.{field}: {value:g} is not from 0 to {LARGEST:g}")
        create_s = vm.slice_postponed * slice_s
        delete_s = create_s + vm.slice_lifetime * slice_s if vm.slice_lifetime else math.inf
        name = vm.name if vm.name is not None else f"vm{k}"
        rows.add(place, name, (create_s, delete_s), (vm.cpu, vm.mem * 1024.0), _usage(vm, place))
    return rows.arrivals(usage_step_s=slice_s)


def _decode(path: Path) -> list[_Vm]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from None
    if not data.strip():
        raise ConversionError(f"{path}: the file is empty")
    try:
        return _VMS.decode(data)
    except msgspec.ValidationError as error:
        raise ConversionError(f"{path}: {validation_message(error)}") from None
    except msgspec.DecodeError as error:
        raise ConversionError(f"{path}: {not_json(error, data)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConversionError(f"{path}: not a list of VMs") from None


def _usage(vm: _Vm, place: str) -> Shares | None:
    if not vm.usage:
        return None
    percent = np.array(vm.usage)
    valid = (percent >= 0) & (percent <= 100)
    if not valid.all():
        k = int(valid.argmin())
        raise ConversionError(f"{place}.usage[{k}]: {percent[k]:g} is not from 0 to 100 %")
    return (percent / 100.0).astype(np.float32)
