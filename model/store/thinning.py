"""The rule by which old samples are thinned: of the samples of a step of time, one remains.

It is made for percentiles and maxima: none of them is lower than that of all samples, so that no free figure is higher.

- Usage and waits are the largest of the step. Machines that were there at any time of it remain.
- Of a node, ``cpu`` and ``mem`` are the smallest.
- ``elapsed_time`` and ``oom_kills`` are sums; ``elapsed_min`` and ``elapsed_max`` of a node are the
  shortest and the longest ``elapsed_time``.
- Other fields have their last value: of ``oc_cpu`` and ``oc_mem`` the largest would count VMs that have left as alive.
- ``cpu_samples`` and ``mem_samples`` are the numbers of samples in which the usage is known, ``samples`` that of all
  samples of a node: a step that was not scraped all the time covers no more than it did before.

The sample has the time of the last one. ``misc/influxdb.sh`` has the same rule in Flux, with the last millisecond of
the step as its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..numerics import FloatArray

LARGEST_FIELDS = frozenset({"cpu_usage", "mem_usage", "cpu_wait", "cpu_wait_share", "psi_cpu", "psi_memory", "swap_in"})
SUMMED_FIELDS = frozenset({"elapsed_time", "oom_kills"})
#: Of nodes only.
SMALLEST_FIELDS = frozenset({"cpu", "mem"})

#: Fields whose known samples are counted, and where.
COUNTED_FIELDS = {"cpu_usage": "cpu_samples", "mem_usage": "mem_samples"}
SAMPLES = "samples"

_Fields = dict[str, float]
_Reduce = Callable[[FloatArray], Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Successive samples of a node with the same fields and domains.

    Attributes
    ----------
    node_fields : sequence of str
    node : (n, f) float64
        NaN where a value is missing.
    domains : sequence of str
    domain_fields : sequence of str
    table : (n, d, g) float64
    """

    node_fields: Sequence[str]
    node: FloatArray
    domains: Sequence[str]
    domain_fields: Sequence[str]
    table: FloatArray


def thin(parts: Sequence[Part]) -> tuple[_Fields, dict[str, _Fields]]:
    """The one sample that remains of a step.

    Parameters
    ----------
    parts : sequence of Part
        All samples of the step in time order; at least one.

    Returns
    -------
    tuple of the fields of the node, and the fields of each domain by name
    """
    node: _Fields = {}
    domains: dict[str, _Fields] = {}
    for part in parts:
        _merge(node, _reduce(part.node[:, None, :], part.node_fields, _NODE_RULES)[0], _NODE_RULES)
        if "elapsed_time" in part.node_fields:
            elapsed = part.node[:, [list(part.node_fields).index("elapsed_time")]]
            bounds: list[_Fields] = [{}]
            for name, rule in _ELAPSED_RULES.items():
                _add(bounds, name, rule(elapsed))
            _merge(node, bounds[0], _ELAPSED_RULES)
        node[SAMPLES] = node.get(SAMPLES, 0.0) + len(part.node)
        for name, fields in zip(part.domains, _reduce(part.table, part.domain_fields, _DOMAIN_RULES), strict=True):
            _merge(domains.setdefault(name, {}), fields, _DOMAIN_RULES)
    return node, domains


def _reduce(table: FloatArray, fields: Sequence[str], rules: Mapping[str, _Reduce]) -> list[_Fields]:
    """The fields of each machine of a (samples, machines, fields) table."""
    results: list[_Fields] = [{} for _ in range(table.shape[1])]
    for i, name in enumerate(fields):
        values = table[:, :, i]
        _add(results, name, rules.get(name, _last)(values))
        if name in COUNTED_FIELDS:
            _add(results, COUNTED_FIELDS[name], (values >= 0).sum(axis=0))
    return results


def _add(results: Sequence[_Fields], name: str, values: Any) -> None:
    for fields, value in zip(results, values.tolist(), strict=True):
        if value == value:  # noqa: PLR0124  # not NaN
            fields[name] = float(value)


def _merge(before: _Fields, after: Mapping[str, float], rules: Mapping[str, _Reduce]) -> None:
    """Add the fields of later samples to those of earlier ones; both are reduced."""
    for name, value in after.items():
        rule = _sum if name in COUNTED_FIELDS.values() else rules.get(name, _last)
        before[name] = float(rule(np.array([[before[name]], [value]]))[0]) if name in before else value


def _largest(values: FloatArray) -> Any:
    return np.fmax.reduce(values, axis=0)


def _smallest(values: FloatArray) -> Any:
    # Every node has cores and memory, and every rate covers some time: another value is an error.
    return np.fmin.reduce(np.where(values > 0, values, np.nan), axis=0)


def _sum(values: FloatArray) -> Any:
    return np.where(np.isnan(values).all(axis=0), np.nan, np.nansum(values, axis=0))


def _last(values: FloatArray) -> Any:
    """The last known value of each column."""
    if not np.isnan(values[-1]).any():
        return values[-1]
    known = ~np.isnan(values)
    at = len(values) - 1 - known[::-1].argmax(axis=0)
    return values[at, np.arange(values.shape[1])]


#: The fields that are made of ``elapsed_time``.
_ELAPSED_RULES: Mapping[str, _Reduce] = {"elapsed_min": _smallest, "elapsed_max": _largest}
_DOMAIN_RULES: Mapping[str, _Reduce] = {
    **dict.fromkeys(LARGEST_FIELDS, _largest),
    **dict.fromkeys(SUMMED_FIELDS, _sum),
}
_NODE_RULES: Mapping[str, _Reduce] = {
    **_DOMAIN_RULES,
    **dict.fromkeys(SMALLEST_FIELDS, _smallest),
}
