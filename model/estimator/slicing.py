"""Stored samples to slices.

A trace of the same samples gives the same slices: what a store knows is cleaned here as a trace's reader
would refuse it, and what one slice did not tell of a configuration is taken from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..numerics import FloatArray
from ..samples import Samples
from ..slices import CPU, LARGEST, RESOURCES, Resource, Slice, usage_of

#: What is asked of a store, of the node and of its domains.
FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage")
CONFIG_FIELDS = ("cpu", "mem")

_NOTHING: FloatArray = np.empty(0)


@dataclass(frozen=True, slots=True)
class Calendar:
    """How time is divided: slice number k goes from k times its length to before the next, Unix seconds.

    Attributes
    ----------
    slice_s : float
    positions : int
        S: slices of a scope.
    """

    slice_s: float
    positions: int

    def last_ended(self, now_s: float) -> int:
        """The number of the slice that ended last."""
        return math.floor(now_s / self.slice_s) - 1

    def end_s(self, number: int) -> float:
        """When a slice ends."""
        return (number + 1) * self.slice_s

    def bounds_ms(self, number: int) -> tuple[int, int]:
        """The first millisecond of a slice, and the first of the next."""
        return math.ceil(number * self.slice_s * 1000), math.ceil((number + 1) * self.slice_s * 1000)

    def position(self, number: int) -> int:
        """Which slice of its scope it is."""
        return number % self.positions

    def scope_start(self, number: int) -> int:
        """The first slice of the scope in which a slice is."""
        return number - self.position(number)

    def trace_config(self, node_name: str, historical: int) -> dict[str, Any]:
        """What stands in the ``config`` of a trace of a node, whose window is ``historical`` scopes beside the last."""
        return {
            "node_name": node_name,
            "node_scope": self.slice_s * self.positions,
            "slice_scope": self.slice_s,
            "historical_occurences": historical,
        }


@dataclass(slots=True)
class LastConfigs:
    """The configurations that were told last: cores or vCPUs, and MB; NaN where they never were.

    Attributes
    ----------
    node : tuple of two floats
    vms : dict of name to tuple of two floats
        Of the VMs of the slice before: one that comes back may be another one.
    """

    node: tuple[float, float] = (math.nan, math.nan)
    vms: dict[str, tuple[float, float]] = field(default_factory=dict)


def last_configs(domains: Mapping[str, Samples]) -> dict[str, dict[str, float]]:
    """The last value of ``cpu`` and ``mem`` of each domain."""
    return {
        name: {field: _last_told(samples.fields[field]) for field in CONFIG_FIELDS} for name, samples in domains.items()
    }


def build_slice(
    number: int,
    calendar: Calendar,
    known: LastConfigs,
    node: Samples,
    vms: Mapping[str, Mapping[str, float]],
    vm_samples: Mapping[str, Samples] | None = None,
) -> Slice:
    """The slice that ended.

    Parameters
    ----------
    number : int
    calendar : Calendar
    known : LastConfigs
        Is brought up to date.
    node : Samples
        With :data:`FIELDS`.
    vms : mapping of name to the last ``cpu`` and ``mem``
        A VM that told neither was not there.
    vm_samples : mapping of name to Samples, optional
        With the usage of the VMs, where that is wanted.
    """
    known.node = _merged(known.node, [_last_told(configured(node.fields[field])) for field in CONFIG_FIELDS])
    told = {
        name: [_sane(values.get(field, math.nan)) for field in CONFIG_FIELDS] for name, values in sorted(vms.items())
    }
    known.vms = {
        name: _merged(known.vms.get(name, (math.nan, math.nan)), values)
        for name, values in told.items()
        if not all(math.isnan(value) for value in values)
    }
    names = tuple(known.vms)
    usages = [
        usage_of(
            known.node[i],
            clean(node.fields[f"{resource.name}_usage"]),
            [known.vms[name][i] for name in names],
            [_vm_usage(vm_samples, name, resource) for name in names],
        )
        for i, resource in enumerate(RESOURCES)
    ]
    return Slice(calendar.end_s(number), calendar.position(number), names, *usages)


def clean(values: FloatArray) -> FloatArray:
    """Samples, NaN where one can't be of a machine."""
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def _vm_usage(vm_samples: Mapping[str, Samples] | None, name: str, resource: Resource) -> FloatArray:
    if vm_samples is None or name not in vm_samples:
        return _NOTHING
    return clean(vm_samples[name].fields[f"{resource.name}_usage"])


def configured(values: FloatArray) -> FloatArray:
    """What a node says it has, NaN where that can't be: a node without cores or memory is none."""
    return np.where((values > 0) & (values <= LARGEST), values, np.nan)


def _last_told(values: FloatArray) -> float:
    told = values[~np.isnan(values)]
    return float(told[-1]) if told.size else math.nan


def _sane(value: float) -> float:
    return value if 0 <= value <= LARGEST else math.nan


def _merged(before: tuple[float, float], told: Sequence[float]) -> tuple[float, float]:
    cpu, mem = (old if math.isnan(new) else new for old, new in zip(before, told, strict=True))
    return cpu, mem


assert RESOURCES[0] is CPU  # noqa: S101  # CONFIG_FIELDS and LastConfigs are in this order
