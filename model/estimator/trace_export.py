"""A stored period of a node as a trace: what ran live can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from ..numerics import FloatArray
from ..samples import Samples
from ..store.base import Store
from .settings import EstimatorSettings
from .slicing import CONFIG_FIELDS, FIELDS, LastConfigs, build_slice, clean, configured, last_configs

_DOMAIN_FIELDS = (*FIELDS, "mem_rss")


class NothingStored(Exception):
    """There is not one sample in the period."""


def export(
    store: Store,
    settings: EstimatorSettings,
    node: str,
    first: int,
    last: int,
    on_slice: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The trace of a node from slice ``first`` to slice ``last``, as pieces of JSON.

    It begins with the first slice of which something is stored. From there on every slice is there, ``{}`` where there
    is nothing: positions are counted.

    Raises
    ------
    NothingStored
    StoreUnavailable
    """
    calendar, known = settings.calendar, LastConfigs()
    node_slices: list[bytes] = []
    vms: dict[str, dict[int, bytes]] = {}
    samples = 0
    for number in range(first, last + 1):
        period = store.read(node, *calendar.bounds_ms(number), _DOMAIN_FIELDS)
        # Who was there is decided by the code that decides it live.
        found = build_slice(number, calendar, known, period.node, last_configs(period.domains))
        for name in found.vms:
            vms.setdefault(name, {})[number] = _lists(period.domains[name], _DOMAIN_FIELDS)
        more = {"vm": list(found.vms)} if period.node.time_ms.size else {}
        node_slices.append(_lists(_with_configuration(period.node), FIELDS, more))
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


def _with_configuration(node: Samples) -> Samples:
    """A node without cores or memory is none: a trace refuses what the live estimator ignores."""
    return Samples(node.time_ms, {**node.fields, **{name: configured(node.fields[name]) for name in CONFIG_FIELDS}})


def _lists(samples: Samples, fields: tuple[str, ...], more: dict[str, Any] | None = None) -> bytes:
    """A slice of a node or a VM; full precision, null where a sample is missing."""
    if not samples.time_ms.size:
        return b"{}"
    columns = {name: _numbers(samples.fields[name]) for name in fields if not np.isnan(samples.fields[name]).all()}
    return msgspec.json.encode({"time": (samples.time_ms / 1000).tolist(), **columns, **(more or {})})


def _numbers(values: FloatArray) -> list[float]:
    return clean(values).tolist()
