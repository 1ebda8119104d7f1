"""A stored period of a node as a trace, which a replay reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from ..samples import Samples
from ..store.base import Store
from .settings import EstimatorSettings
from .slicing import CONFIG_FIELDS, FIELDS, LastConfigs, build_slice, last_configs, valid_node_config, valid_samples

_DOMAIN_FIELDS = (*FIELDS, "mem_rss")


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

    A slice without samples is ``{}``: the replay derives positions from the index of a slice.

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
        period = store.read(node, *calendar.bounds_ms(number), _DOMAIN_FIELDS)
        # The live code decides which VMs are present, so that a replay sees the same ones.
        finished = build_slice(number, calendar, known, period.node, last_configs(period.domains))
        for name in finished.vms:
            vms.setdefault(name, {})[number] = _encode_slice(period.domains[name], _DOMAIN_FIELDS)
        more = {"vm": list(finished.vms)} if period.node.time_ms.size else {}
        node_slices.append(_encode_slice(_with_valid_config(period.node), FIELDS, more))
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


def _with_valid_config(node: Samples) -> Samples:
    """Samples without the configurations that the trace reader refuses and the live estimator ignores."""
    configs = {name: valid_node_config(node.fields[name]) for name in CONFIG_FIELDS}
    return Samples(node.time_ms, {**node.fields, **configs})


def _encode_slice(samples: Samples, fields: tuple[str, ...], more: dict[str, Any] | None = None) -> bytes:
    """A slice of a node or a VM in full precision, with null for a missing sample."""
    if not samples.time_ms.size:
        return b"{}"
    columns = {
        name: valid_samples(samples.fields[name]).tolist()
        for name in fields
        if not np.isnan(samples.fields[name]).all()
    }
    return msgspec.json.encode({"time": (samples.time_ms / 1000).tolist(), **columns, **(more or {})})
