"""Slices of a node with single VMs, and the figures of VMs, for the tests of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from model.slices import CPU, Resource, Slice, Usage, Waits, usage_of
from model.vmmoments import VmFigures, size_classes


def vm_usage(
    node: Sequence[float],
    vms: Sequence[tuple[float, Sequence[float]]] = (),
    config: float = 10.0,
    alive: Sequence[bool] | None = None,
) -> Usage:
    """One resource of a slice: samples of the node, and allocation and samples of each VM."""
    return usage_of(
        config,
        np.array(node, dtype=float),
        [size for size, _ in vms],
        [np.array(samples, dtype=float) for _, samples in vms],
        None if alive is None else np.array(alive, dtype=bool),
    )


def slice_of(k: int, usage: Usage, names: Sequence[str] | None = None, positions: int = 1) -> Slice:
    """The k-th slice, with the same figures for CPU and memory; VMs are a, b, c ... by default."""
    vms = tuple("abcdefghijklmnopqrstuvwxyz"[: usage.vm_config.size]) if names is None else tuple(names)
    return Slice(1800.0 * (k + 1), k % positions, vms, usage, usage)


def with_waits(
    finished: Slice,
    waits: Sequence[Sequence[float]],
    shares: Sequence[Sequence[float]] | None = None,
    of_node: Mapping[str, Sequence[float]] | None = None,
) -> Slice:
    """A slice whose VMs waited, cores, at the samples of their usage; the shares follow from that by default.

    A NaN is a sample without figures: it counts as no wait in the demand.
    """
    usage = finished.cpu
    amounts = np.array(waits, dtype=float).reshape(usage.vm_usage.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        usual = np.where(amounts > 0, amounts / (amounts + usage.vm_usage), np.where(np.isnan(amounts), np.nan, 0.0))
    share = usual if shares is None else np.array(shares, dtype=float).reshape(amounts.shape)
    cpu = replace(
        usage,
        node_demand=usage.node + np.nansum(amounts, axis=0) if usage.node.size == amounts.shape[1] else None,
        vm_demand=usage.vm_usage + np.nan_to_num(amounts),
    )
    node = {name: np.array(values, dtype=float) for name, values in (of_node or {}).items()}
    return replace(finished, cpu=cpu, waits=Waits(share, amounts, node))


def without_waits(finished: Slice) -> Slice:
    """The slice as it is where nothing measures waits."""
    return replace(finished, cpu=replace(finished.cpu, node_demand=None, vm_demand=None), waits=None)


def figures(
    config: Sequence[float],
    *,
    resource: Resource = CPU,
    ages: Sequence[float] = (),
    used: Sequence[float] = (),
    means: Sequence[float] = (),
    variances: Sequence[float] = (),
    alive: Sequence[bool] = (),
) -> VmFigures:
    """VMs of these sizes; by default alive, 1000 slices old and without usage."""
    sizes = np.array(config, dtype=float)
    mean = np.array(means or [0.0] * sizes.size)
    return VmFigures(
        alive=np.array(alive or [True] * sizes.size, dtype=bool),
        config=sizes,
        ages=np.array(ages or [1000.0] * sizes.size),
        used=np.array(used or mean, dtype=float),
        means=mean,
        squares=mean**2 + np.array(variances or [0.0] * sizes.size),
        expected=mean,
        classes=size_classes(resource, sizes),
    )


def odd_slices(seed: int, count: int = 60, positions: int = 3) -> Iterator[Slice]:
    """VMs arrive, leave or are deleted, lack samples or a size; the node is full, has no data or no VMs."""
    draw = np.random.default_rng(seed)
    for k in range(count):
        names = tuple(f"vm{i}" for i in range(6) if draw.random() < 0.8) if draw.random() < 0.9 else ()
        alive = draw.random(len(names)) < 0.9 if draw.random() < 0.5 else None
        full = draw.random() < 0.05
        parts = []
        for scale in (16.0, 65536.0):
            rows = draw.exponential(scale / 16, (len(names), 5 if draw.random() < 0.9 else 0))
            rows[draw.random(len(names)) < 0.2] = np.nan
            sizes = np.where(draw.random(len(names)) < 0.1, np.nan, scale / draw.choice([4, 8, 16], len(names)))
            sizes[draw.random(len(names)) < 0.1] = 0.0
            node = draw.uniform(0.0, scale / 2, 0 if draw.random() < 0.1 else 5)
            config = math.nan if draw.random() < 0.05 else scale
            parts.append(Usage(config, np.full(5, scale) if full else node, sizes, rows, vm_alive=alive))
        yield Slice(1800.0 * (k + 1), k % positions, names, *parts)
