"""An estimator on a real store, driven slice by slice with a clock that the tests set."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.estimator.checkpoints import CheckpointFile
from model.estimator.node_worker import OnSlice
from model.estimator.scheduler import build_scheduler
from model.estimator.settings import EstimatorSettings
from model.estimator.slicing import Calendar
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.publishers.base import Publisher
from model.publishers.settings import StatusFileSettings
from model.samples import ScrapeSample
from model.stability import mean_predictor
from model.status import NodeStatus
from model.store.base import Store, StoreUnavailable
from model.store.settings import StoreSettings

NODES = ("http://w1:9100/metrics", "http://w2:9100/metrics")
SLICE_S = 60
DETECTORS = {"cpu": mean_predictor, "mem": mean_predictor}
#: The start of a scope two hours ago, within any retention.
FIRST = math.floor(time.time() / 180) * 3 - 120
#: The slices of the store that the tests share.
STORED = range(FIRST, FIRST + 30)


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def at_end_of(self, number: int, late_s: float = 1.5) -> None:
        self.now_s = (number + 1) * SLICE_S + late_s


def scrapes(node: str, numbers: Sequence[int], seed: int = 1, per_slice: int = 8) -> Iterator[ScrapeSample]:
    """A node of 32 cores whose VMs come and go; some slices have no samples, some samples lack a field."""
    draw = np.random.default_rng(seed)
    for number in numbers:
        silent = draw.random() < 0.1
        names = [f"vm-{i}" for i in range(6) if draw.random() < 0.9]
        level, elapsed_ms = draw.uniform(2, 20), 0.0
        for i in range(per_slice):
            time_ms = int((number * SLICE_S + (i + 0.25) * SLICE_S / per_slice) * 1000)
            fields = {
                "cpu": 32.0,
                "mem": 65536.0,
                "cpu_usage": level * draw.uniform(0.5, 1.5),
                "mem_usage": draw.uniform(2e4, 4e4),
            }
            elapsed_ms += SLICE_S * 1000 / per_slice
            if draw.random() < 0.1:
                del fields["cpu_usage"]
            else:
                # A rate covers the time since the one before it.
                fields["elapsed_time"], elapsed_ms = elapsed_ms, 0.0
            domains = {
                name: {
                    "cpu": float(1 + j),
                    "mem": 1024.0 * (1 + j),
                    "cpu_usage": draw.uniform(0, 1 + j),
                    "mem_usage": draw.uniform(100, 1024),
                    "mem_rss": 900.0,
                }
                for j, name in enumerate(names)
                if i or j
            }
            for domain in domains.values():
                if draw.random() < 0.05:
                    del domain["cpu_usage"]
            for name in ("cpu", "mem"):
                fields[f"oc_{name}"] = sum(domain[name] for domain in domains.values()) / fields[name]
            if not silent:
                yield ScrapeSample(node, time_ms, fields, domains)


def write_slice(
    store: Store,
    number: int,
    fields: Mapping[str, float],
    vms: Mapping[str, Mapping[str, float]],
    *,
    node: str = NODES[0],
    at: Sequence[int] = range(8),
) -> None:
    """Write a slice of one node whose samples are equal, at some of its eighths.

    The sums of the allocations are added unless they are given, also as NaN.
    """
    step_s = SLICE_S / 8
    sums = {
        f"oc_{name}": sum(vm.get(name, math.nan) for vm in vms.values()) / fields[name]
        for name in ("cpu", "mem")
        if name in fields
    }
    every = {"elapsed_time": step_s * 1000} | sums | fields
    known = {name: value for name, value in every.items() if not math.isnan(value)}
    samples = [ScrapeSample(node, int((number * SLICE_S + (i + 1) * step_s) * 1000) - 1, known, vms) for i in at]
    store.write([store.encode(sample) for sample in samples])


def fill(store: Store, nodes: Sequence[str], numbers: Sequence[int], **more: Any) -> None:
    """Write the slices of some nodes."""
    samples = [sample for i, node in enumerate(nodes) for sample in scrapes(node, numbers, seed=i + 1, **more)]
    store.write([store.encode(sample) for sample in samples])


def waiting(samples: Iterable[ScrapeSample], seed: int = 1) -> Iterator[ScrapeSample]:
    """The same samples with how long was waited: of some VMs, in some slices much; some figures are lacking or absurd."""
    draw = np.random.default_rng(seed)
    most: dict[int, float] = {}
    for sample in samples:
        number = sample.time_ms // (SLICE_S * 1000)
        if number not in most:
            # None of them at first, so that something is published.
            most[number] = draw.choice([0.0, 0.06, 1.0], p=[0.5, 0.4, 0.1]) if len(most) > 12 else 0.0
        fields = {**sample.fields, "psi_cpu": draw.uniform(0, 0.22), "psi_memory": draw.uniform(0, 0.012)}
        fields |= {"swap_in": draw.choice([0.0, 40.0], p=[0.95, 0.05]), "cpu_wait": draw.uniform(0, 3)}
        fields["oom_kills"] = float(draw.random() < 0.005)
        domains = {name: dict(domain) for name, domain in sample.domains.items()}
        for name, domain in domains.items():
            used = domain.get("cpu_usage", 0.0)
            if name == "vm-5" or draw.random() < 0.05:
                continue
            wait = most[number] * draw.uniform(0.5, 1.0) * (used if most[number] < 1 else 1.0)
            domain |= {"cpu_wait": wait, "cpu_wait_share": wait / (wait + used) if wait else 0.0}
            if draw.random() < 0.02:
                domain |= {"cpu_wait": draw.choice([-1.0, math.inf, 1e300])}
            if draw.random() < 0.02:
                domain |= {"cpu_wait_share": draw.choice([-1.0, 1.5, math.inf])}
        known = {name: value for name, value in fields.items() if draw.random() > 0.02}
        yield ScrapeSample(sample.node, sample.time_ms, known, domains)


def settings_for(folder: Path, **more: Any) -> EstimatorSettings:
    """Settings with scopes of three slices, and all files in a folder."""
    return EstimatorSettings(
        **{
            "nodes": NODES,
            "calendar": Calendar(SLICE_S, 3),
            "historical": 1,
            "previous_scopes": 0,
            "settle_s": 1.0,
            "status": StatusFileSettings(folder / "status.json", 0o640, -1, -1),
            "checkpoint_path": folder / "estimator.sqlite",
            "dump_slices": 100,
            "metrics_port": 0,
            "metrics_address": "127.0.0.1",
            "store": StoreSettings(None, folder / "store.sqlite", 86400),
            **more,
        }
    )


def checkpoints_for(settings: EstimatorSettings, model: ModelSettings, clock: Any = time.monotonic) -> CheckpointFile:
    """The checkpoint file of an estimator, not open yet."""
    configuration = {"strategies": model.strategies}
    return CheckpointFile(
        settings.checkpoint_path, configuration, model.historical + 1, settings.dump_slices, clock=clock
    )


class LiveRun:
    """An estimator that computes when the test calls it; it can be restarted after any slice.

    ``monotonic`` is a clock that moves on by a minute with each call of :meth:`wake`, so that everything that failed
    before is due for another attempt.
    """

    def __init__(
        self,
        settings: EstimatorSettings,
        store: Store,
        strategies: Sequence[str] = tuple(STRATEGIES),
        *,
        recorded: bool = False,
        guarded: bool = False,
        on_slice: OnSlice = lambda *_: None,
        **publishers: Publisher,
    ) -> None:
        self.settings = settings
        self.store = store
        self.model = ModelSettings(settings.historical, tuple(strategies), guarded=guarded)
        self.publishers = publishers
        self.recorded = recorded
        self.on_slice = on_slice
        self.clock = Clock()
        self.monotonic = Clock()
        self.start()

    def start(self) -> None:
        self.checkpoints = checkpoints_for(self.settings, self.model, self.monotonic).open()
        self.scheduler = build_scheduler(
            *(self.settings, self.model, DETECTORS, self.store, self.checkpoints, self.publishers),
            recorded=self.recorded,
            on_slice=self._call_on_slice,
            clock=self.clock,
            monotonic=self.monotonic,
        )

    def _call_on_slice(self, *slice_: Any) -> None:
        self.on_slice(*slice_)  # which a test may replace

    def stop(self) -> None:
        assert self.scheduler.close()
        self.checkpoints.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def wake(self, number: int, late_s: float = 1.5, after_s: float = 15.0) -> list[NodeStatus]:
        """Compute what is due shortly after the end of a slice; the statuses that are published."""
        self.clock.at_end_of(number, late_s)
        self.monotonic.now_s += after_s
        self.unread = asyncio.run(self.scheduler.once())
        return self.scheduler.statuses()

    def play(self, numbers: Sequence[int], restart: bool = False) -> list[list[NodeStatus]]:
        """The statuses after each slice."""
        published = []
        for number in numbers:
            published.append(self.wake(number))
            if restart:
                self.restart()
        self.stop()
        return published


class UnavailableStore:
    """A store that is unavailable for some nodes, or for all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.unavailable: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, node: str, *arguments: Any, **more: Any) -> Any:
        if node in self.unavailable or "all" in self.unavailable:
            raise StoreUnavailable("no connection")
        return self._store.read(node, *arguments, **more)


class FakePublisher:
    """Keeps the ends of the slices that were published; fails on request."""

    def __init__(self) -> None:
        self.failing = False
        self.published: list[list[float]] = []

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        if self.failing:
            raise OSError(28, "No space left on device")
        self.published.append([status.slice_end_s for status in statuses])
