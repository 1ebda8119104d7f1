"""Encoding of samples in the embedded store: a layout that names the values, and a block of float64 that holds them.

All rows of one layout share it. A layout is JSON: ``[node fields, domain fields, domain names]``. A block holds the
fields of the node, then a table with a row per domain and a column per domain field; NaN where a domain lacks a field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..machine_table import MachineTable, TableLayout
from ..numerics import FloatArray
from ..samples import DomainHistory, Period, Samples, ScrapeSample
from .thinning import Part, thin

CONFIG_FIELDS = ("cpu", "mem")

#: Fields of the node and the whole layout as it is stored, by the layout of the domains.
_TEXTS: WeakKeyDictionary[TableLayout, tuple[Sequence[str], str]] = WeakKeyDictionary()

#: A row of the table: time, number of the layout, block.
Row = tuple[int, int, bytes]


class Layout(NamedTuple):
    """Names of the values of a block."""

    node_fields: Sequence[str]
    domain_fields: Sequence[str]
    domains: Sequence[str]

    def to_json(self) -> str:
        """The layout as it is stored."""
        return json.dumps(self, ensure_ascii=False, separators=(",", ":"))

    def domain_table(self, block: bytes) -> FloatArray:
        """The (domains, fields) table of a block."""
        return np.frombuffer(block)[len(self.node_fields) :].reshape(len(self.domains), len(self.domain_fields))


def parse_layout(text: str) -> Layout:
    """Read a stored layout."""
    return Layout(*json.loads(text))


def encode_block(sample: ScrapeSample) -> tuple[Layout, bytes]:
    """Layout and block of a sample."""
    table = sample.domains
    if isinstance(table, MachineTable) and table.layout.is_sorted and not np.isnan(table.array).all(axis=0).any():
        names = sorted(sample.fields)
        machines = [table.layout.machines[i] for i in table.layout.by_name.tolist()]
        node = np.array([sample.fields[name] for name in names], dtype=np.float64)
        block = node.tobytes() + table.array[table.layout.by_name].tobytes()
        return Layout(names, table.layout.columns, machines), block
    layout = Layout(sorted(sample.fields), sorted(set().union(*sample.domains.values())), sorted(sample.domains))
    values = [sample.fields[name] for name in layout.node_fields]
    for name in layout.domains:
        domain = sample.domains[name]
        values += [domain.get(field, math.nan) for field in layout.domain_fields]
    return layout, np.array(values, dtype=np.float64).tobytes()


def encode_layout(sample: ScrapeSample, layout: Layout) -> str:
    """The layout of a sample as it is stored; that of its domains is remembered as long as they share it."""
    table = sample.domains
    if not isinstance(table, MachineTable) or layout.domain_fields is not table.layout.columns:
        return layout.to_json()
    known = _TEXTS.get(table.layout)
    if known is None or known[0] != layout.node_fields:
        known = _TEXTS[table.layout] = (layout.node_fields, layout.to_json())
    return known[1]


def decode_sample(node: str, time_ms: int, layout: Layout, block: bytes) -> ScrapeSample:
    """The sample of a row."""
    values = np.frombuffer(block)[: len(layout.node_fields)].tolist()
    domains = {
        name: {field: value for field, value in zip(layout.domain_fields, row, strict=True) if not math.isnan(value)}
        for name, row in zip(layout.domains, layout.domain_table(block).tolist(), strict=True)
    }
    return ScrapeSample(node, time_ms, dict(zip(layout.node_fields, values, strict=True)), domains)


def thin_rows(node: str, rows: Sequence[Row], layouts: Mapping[int, Layout]) -> ScrapeSample:
    """The sample that remains of the rows of a step, at the time of the last one."""
    parts = []
    for start, end in _runs([layout for _, layout, _ in rows]):
        layout = layouts[rows[start][1]]
        nodes, tables = _split(layout, rows[start:end])
        parts.append(Part(layout.node_fields, nodes, layout.domains, layout.domain_fields, tables))
    return ScrapeSample(node, rows[-1][0], *thin(parts))


def config_keys(layouts: Collection[Layout]) -> set[tuple[str, str]]:
    """Domain and field of each configuration that some layout holds."""
    return {
        (name, field)
        for layout in layouts
        for field in CONFIG_FIELDS
        if field in layout.domain_fields
        for name in layout.domains
    }


def decode_configs(layout: Layout, block: bytes) -> Iterator[tuple[str, str, float]]:
    """Domain, field and value of each configuration of a row."""
    table = layout.domain_table(block)
    for field in CONFIG_FIELDS:
        if field in layout.domain_fields:
            values = table[:, layout.domain_fields.index(field)].tolist()
            for name, value in zip(layout.domains, values, strict=True):
                if not math.isnan(value):
                    yield name, field, value


def decode_period(
    rows: Sequence[Row], layouts: Mapping[int, Layout], fields: Collection[str], *, domains: bool
) -> Period:
    """Arrays of all rows; successive rows of one layout are decoded together."""
    runs = [(start, end, layouts[rows[start][1]]) for start, end in _runs([layout for _, layout, _ in rows])]
    times = np.array([time_ms for time_ms, _, _ in rows], dtype=np.int64)
    names = tuple(sorted({name for _, _, layout in runs for name in layout.domains})) if domains else ()
    places = {name: row for row, name in enumerate(names)}
    node, of_domains = _Table(fields, times.size), _Table(fields, len(names), times.size)
    present = np.zeros((len(names), times.size), dtype=bool)
    for start, end, layout in runs:
        nodes, tables = _split(layout, rows[start:end])
        node.fill((slice(start, end),), nodes, layout.node_fields)
        if domains:
            # A slice is filled faster than a list of places.
            own: Any = slice(None)
            if tuple(layout.domains) != names:
                own = np.array([places[name] for name in layout.domains], dtype=np.intp)
            present[own, start:end] = True
            of_domains.fill((own, slice(start, end)), tables.swapaxes(0, 1), layout.domain_fields)
    return Period(Samples(times, node.fields), DomainHistory(names, times, present, of_domains.fields))


def _split(layout: Layout, rows: Sequence[Row]) -> tuple[FloatArray, FloatArray]:
    """The (rows, fields) table of a node and the (rows, domains, fields) table of its domains."""
    size = len(layout.node_fields)
    shape = len(layout.domains), len(layout.domain_fields)
    blocks = np.frombuffer(b"".join(data for _, _, data in rows)).reshape(len(rows), size + shape[0] * shape[1])
    return blocks[:, :size], blocks[:, size:].reshape(len(rows), *shape)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal numbers."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[start]:
            yield start, end
            start = end


class _Table:
    """Fields of one or many machines, filled block by block; NaN where no block has a field."""

    def __init__(self, fields: Collection[str], *shape: int) -> None:
        self._shape = shape
        # Takes no memory.
        missing = np.broadcast_to(np.float64(np.nan), shape)
        self.fields: dict[str, FloatArray] = dict.fromkeys(fields, missing)
        self._filled: set[str] = set()

    def fill(self, part: tuple[Any, ...], block: FloatArray, names: Sequence[str]) -> None:
        """Put a block, whose last axis are the fields of these names, at a part of the shape."""
        for i, name in enumerate(names):
            if name not in self.fields:
                continue
            if name not in self._filled:
                self._filled.add(name)
                self.fields[name] = np.full(self._shape, np.nan)
            self.fields[name][part] = block[..., i]
