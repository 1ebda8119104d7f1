"""A stored period of a node as a trace, which a replay reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ..numerics import FloatArray
from ..samples import Samples
from ..slices import RESOURCES, Slice
from ..store.base import Store
from .bookings import LastConfigs, last_configs
from .settings import EstimatorSettings
from .slicing import FIELDS, build_slice, valid_samples
from .waiting import NODE_WAIT_FIELDS, WAIT_FIELDS

#: Exported at every sample.
_WHOLE = ("mem_rss", *WAIT_FIELDS, *NODE_WAIT_FIELDS)
_FIELDS = (*FIELDS, *_WHOLE)


class NothingStored(Exception):
    """The period holds no sample of the node."""


def export(
    store: Store,
    settings: EstimatorSettings,
    node: str,
    first: int,
    last: int,
    on_slice: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The trace of a node from slice ``first`` to slice ``last``, as pieces of JSON.

    It holds the samples and configurations that count for the estimator, so that a replay computes the same figures:
    samples of a slice that is not confirmed are missing. A slice without samples is ``{}``: the replay derives
    positions from the index of a slice.

    Raises
    ------
    NothingStored
    StoreUnavailable, StoreRefused
    """
    calendar, known = settings.calendar, LastConfigs()
    node_slices: list[bytes] = []
    vms: dict[str, dict[int, bytes]] = {}
    samples = 0
    for number in range(first, last + 1):
        period = store.read(node, *calendar.bounds_ms(number), _FIELDS)
        vm_samples = period.domains
        finished = build_slice(
            number, calendar, settings.rules, known, period.node, last_configs(vm_samples), vm_samples
        )
        for i, name in enumerate(finished.vms):
            columns = {
                resource.name: _known(finished.usage(resource).vm_config[i : i + 1]) for resource in RESOURCES
            } | {f"{resource.name}_usage": _known(finished.usage(resource).vm_usage[i]) for resource in RESOURCES}
            if finished.cpu.vm_demand is not None:
                columns["cpu_demand"] = _known(finished.cpu.vm_demand[i])
            vms.setdefault(name, {})[number] = _encode_slice(vm_samples.get(name), columns)
        node_slices.append(_encode_node(period.node, finished))
        samples += period.node.time_ms.size
        on_slice()
    if not samples:
        raise NothingStored
    config = calendar.trace_config(node, settings.historical)
    epoch = [calendar.end_s(number) for number in range(first, last + 1)]
    yield b'{"config":' + msgspec.json.encode(config) + b',"epoch":' + msgspec.json.encode(epoch)
    yield b',"node":{"raw_data":[' + b",".join(node_slices) + b']},"vm":{'
    for i, name in enumerate(sorted(vms)):
        slices = b",".join(vms[name].get(number, b"{}") for number in range(first, last + 1))
        yield (b"," if i else b"") + msgspec.json.encode(name) + b':{"raw_data":[' + slices + b"]}"
    yield b"}}\n"


def _encode_node(samples: Samples, finished: Slice) -> bytes:
    if not samples.time_ms.size:
        return b"{}"
    columns = {resource.name: _known(np.array([finished.usage(resource).config])) for resource in RESOURCES}
    columns |= {f"{resource.name}_usage": finished.usage(resource).node for resource in RESOURCES}
    if finished.cpu.node_demand is not None:
        columns["cpu_demand"] = finished.cpu.node_demand
    # Which VMs are alive may follow from the slices before, not from their times.
    return _encode_slice(samples, columns, {"vm": list(finished.vms), "alive": list(finished.alive)})


def _known(values: FloatArray) -> FloatArray:
    return values[~np.isnan(values)]


def _encode_slice(
    samples: Samples | None, columns: Mapping[str, FloatArray], more: Mapping[str, Any] | None = None
) -> bytes:
    """A slice of a node or a VM in full precision; a VM that is only known from the slice before has no times."""
    lists: dict[str, Any] = {name: values.tolist() for name, values in columns.items() if values.size}
    if samples is not None:
        lists["time"] = (samples.time_ms / 1000).tolist()
        for name in _WHOLE:
            values = samples.fields[name]
            if not np.isnan(values).all():
                lists[name] = valid_samples(values).tolist()
    return msgspec.json.encode({**lists, **(more or {})})
