"""Runs the history of a node through the node model, and notes what a scan shows of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..contention import Level, present_text
from ..estimates import NodeEstimate, ResourceEstimate
from ..guards import turn_of
from ..nodemodel import ModelSettings, NodeModel
from ..slices import RESOURCES, Resource, Slice, Usage
from ..stability import StabilityDetector
from .finding import POINTS, NodeFinding, ResourceFinding, TopVm

#: VMs that are named as those that drive the peak.
_TOP = 5


class NodeScan:
    """The scan of one node.

    Parameters
    ----------
    node : str
    settings : ModelSettings
        The finding is that of the first strategy.
    detectors : mapping of resource name to StabilityDetector
        None where no strategy asks whether slices are stable.
    """

    def __init__(self, node: str, settings: ModelSettings, detectors: Mapping[str, StabilityDetector | None]) -> None:
        self._node = node
        self._strategy = settings.strategies[0]
        self._model = NodeModel(settings, detectors, turn_of(node))
        self._first_s = self._last_s = math.nan
        self._vms = 0
        self._resources = {resource.name: _ResourceScan(resource, self._strategy) for resource in RESOURCES}

    def update(self, finished: Slice) -> None:
        """Take the next slice."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            estimate = self._model.update(finished)
            self._note(finished, estimate)

    def _note(self, finished: Slice, estimate: NodeEstimate) -> None:
        if math.isnan(self._first_s):
            self._first_s = finished.end_s
        self._last_s = finished.end_s
        self._vms = len(finished.alive)
        for resource in RESOURCES:
            self._resources[resource.name].note(finished, estimate.of(resource))

    def finding(self) -> NodeFinding:
        """What was found after the slices so far."""
        cpu, mem = (self._resources[resource.name].finding() for resource in RESOURCES)
        error = "" if cpu is not None or mem is not None else "no confirmed samples"
        return NodeFinding(self._node, self._strategy, self._first_s, self._last_s, self._vms, cpu, mem, error)


class _ResourceScan:
    def __init__(self, resource: Resource, strategy: str) -> None:
        self._resource = resource
        self._strategy = strategy
        self._slices = self._compared = self._violated = self._waited = 0
        self._used = 0.0
        self._peak, self._peak_s = -math.inf, math.nan
        self._top: tuple[TopVm, ...] = ()
        self._last: tuple[Usage, ResourceEstimate, float] | None = None
        self._reason = ""
        self._series: list[tuple[float, float, float, float]] = []

    def note(self, finished: Slice, estimate: ResourceEstimate) -> None:
        usage = finished.usage(self._resource)
        if not usage.measured:
            self._reason = usage.missing or "no samples"
            return
        self._reason = ""
        one = estimate.by_strategy[self._strategy]
        peak = usage.peak
        self._slices += 1
        self._used += usage.mean
        self._compared += not math.isnan(one.violated)
        self._violated += one.violated == 1.0
        self._waited += estimate.contention.level is Level.HIGH
        if peak > self._peak:
            self._peak, self._peak_s = peak, finished.end_s
            self._top = top_vms(finished.vms, usage)
        self._last = usage, estimate, peak
        capacity = one.capacity(usage.booked_now, usage.config)
        self._series.append((finished.end_s, peak, usage.booked_now, capacity))

    def finding(self) -> ResourceFinding | None:
        if self._last is None:
            return None
        usage, estimate, peak = self._last
        one, fresh = estimate.by_strategy[self._strategy], not self._reason
        free = one.published if fresh else 0.0
        return ResourceFinding(
            config=usage.config,
            booked=usage.booked_now,
            capacity=one.capacity(usage.booked_now, usage.config) - (one.published - free),
            free=free,
            used_mean=self._used / self._slices,
            peak=self._peak,
            peak_s=self._peak_s,
            slices=self._slices,
            compared=self._compared,
            violated=self._violated,
            waited=self._waited,
            unguarded=one.unguarded,
            limits=dict(one.limits),
            closed=one.closed,
            contention=present_text(estimate.contention, peak / usage.config) if fresh else "",
            others={name: other.published if fresh else 0.0 for name, other in estimate.by_strategy.items()},
            ratio_now=usage.booked_now / usage.config,
            top=self._top,
            series=thinned(self._series),
            reason=self._reason,
        )


def top_vms(names: Sequence[str], usage: Usage) -> tuple[TopVm, ...]:
    """The VMs that used most in a slice, by the mean of their samples."""
    used = usage.vm_sums.mean
    order = np.argsort(-used, kind="stable")[:_TOP]
    return tuple(TopVm(names[i], float(used[i]), float(usage.vm_config[i])) for i in order if used[i] > 0)


def thinned(series: Sequence[tuple[float, float, float, float]]) -> tuple[tuple[float, ...], ...]:
    """Times, peaks, booked and capacity of at most :data:`~.finding.POINTS` points.

    Of several slices: the last time, the largest peak, the largest booked and the least capacity.
    """
    if not series:
        return (), (), (), ()
    starts = range(0, len(series), max(1, math.ceil(len(series) / POINTS)))
    times, peaks, booked, capacity = np.array(series).T
    return (
        tuple(times[[*(start - 1 for start in starts[1:]), len(series) - 1]].tolist()),
        *(tuple(largest.tolist()) for largest in (np.maximum.reduceat(of, starts) for of in (peaks, booked))),
        tuple(np.minimum.reduceat(capacity, starts).tolist()),
    )
