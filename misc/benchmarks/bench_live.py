#!/usr/bin/env python3
"""Measures the end of a slice: all nodes are read from the embedded store, estimated, saved and published.

The windows of all nodes are full, as after days. Runs on one core; the time to only read the same rows is shown too.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    import numpy as np
    from prometheus_client import CollectorRegistry, generate_latest

    from model.estimator.checkpoints import CheckpointFile
    from model.estimator.scheduler import Scheduler, build_scheduler
    from model.estimator.settings import EstimatorSettings
    from model.estimator.slicing import Calendar
    from model.nodemodel import ModelSettings
    from model.oversubscriptioncomputation import STRATEGIES
    from model.publishers.prometheus import EstimatorMetrics
    from model.publishers.settings import StatusFileSettings
    from model.publishers.status_file import StatusFile
    from model.samples import LastConfig, Period, Samples, ScrapeSample
    from model.stability import mean_predictor
    from model.store.base import Encoded
    from model.store.settings import StoreSettings
    from model.store.sqlite import SqliteStore


_SLICE_S = 1800
_PERIOD_S = 5
_HISTORICAL = 3
_LAST = 900_000  # number of the measured slice, in 2021
_CONFIG, _VM_CONFIG = (64.0, 262144.0), (4.0, 8192.0)
_OF_NODE = ("elapsed_time", "oc_cpu", "oc_mem")
_FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss", *_OF_NODE, *(f"other_{i:02}" for i in range(17)))
_STRATEGIES = {"scroogevm": ("scroogevm",), "all": tuple(STRATEGIES), "clt": ("clt",), "clt with guards": ("clt",)}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_live.py", description=__doc__)
    parser.add_argument("--nodes", type=whole_number(4), default=1000, metavar="N", help="at most (1000)")
    parser.add_argument("--vms", type=whole_number(1), default=40, metavar="N", help="of each node (40)")
    parser.add_argument("--child", nargs=4, metavar=("WHAT", "FOLDER", "NODES", "STRATEGIES"), help="internal")
    args = parser.parse_args(argv)
    if args.child:
        what, folder, nodes, strategies = args.child
        return _CHILDREN[what](Path(folder), int(nodes), strategies, args.vms)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = args.nodes * _SLICE_S // _PERIOD_S
        free = shutil.disk_usage(folder).free
        needed = rows * (args.vms + 1) * len(_FIELDS) * 8
        if free < 2 * needed:
            print(f"{folder} has {free / 1e9:.0f} GB free, {2 * needed / 1e9:.0f} are needed", file=sys.stderr)
            return 2
        start = time.monotonic()
        _fill_store(folder, args.nodes, args.vms)
        size = (folder / "store.sqlite").stat().st_size
        elapsed_s = time.monotonic() - start
        print(f"{args.nodes} nodes x {args.vms} VMs, slices of {_SLICE_S // 60} min, a scrape every {_PERIOD_S} s")
        print(
            f"one slice: {rows} samples of {len(_FIELDS)} fields, {size / 1e9:.1f} GB, written in {elapsed_s:.0f} s\n"
        )
        for strategies in _STRATEGIES:
            _compare(folder, args.nodes, args.vms, strategies)
    return 0


def _compare(folder: Path, most: int, vms: int, strategies: str) -> None:
    guards = ", with guards" if "guards" in strategies else ""
    print(f"strategies: {', '.join(_STRATEGIES[strategies])}{guards}")
    walls = []
    for nodes in (most // 4, most // 2, most):
        for path in folder.glob("estimator.sqlite*"):
            path.unlink()
        _run("fill", folder, nodes, strategies, vms)
        wall, cpu, memory = _run("measure", folder, nodes, strategies, vms)
        walls.append(wall)
        print(f"  {nodes:5} nodes: slice end {wall:6.2f} s wall, {cpu:6.2f} s CPU, {memory:4.0f} MB", flush=True)
    floor, cpu, _ = _run("floor", folder, most, strategies, vms)
    print(
        f"  the same rows read with sqlite3 alone: {floor:.2f} s wall, {cpu:.2f} s CPU; ratio {walls[-1] / floor:.1f}"
    )
    growth = (walls[2] - walls[1]) / (walls[1] - walls[0])
    print(
        f"  twice the nodes: the second doubling added {growth:.2f} times the time of the first (linear: 2)\n",
        flush=True,
    )


def _run(what: str, folder: Path, nodes: int, strategies: str, vms: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MB of a child process on one core."""
    command = [sys.executable, __file__, "--vms", str(vms), "--child", what, str(folder), str(nodes), strategies]
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # this process has one thread
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    wall, cpu, memory = map(float, done.stdout.split())
    return wall, cpu, memory


def _node(i: int) -> str:
    return f"http://worker-{i:05}:9100/metrics"


def _node_fields(vms: int) -> dict[str, float]:
    """What the estimator needs of a node to confirm its samples: the time that a rate covers, and all allocations."""
    ratios = (vms * one / config for one, config in zip(_VM_CONFIG, _CONFIG, strict=True))
    return dict(zip(_OF_NODE, (_PERIOD_S * 1000.0, *ratios), strict=True))


def _values(draw: np.random.Generator, samples: int, vms: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(samples, fields of node and VMs): random values, since only their number matters."""
    values = draw.uniform(0, 4, (samples, (vms + 1) * len(_FIELDS)))
    table = values.reshape(samples, vms + 1, len(_FIELDS))
    for i, name in enumerate(("cpu", "mem")):
        table[:, :, _FIELDS.index(name)] = [_CONFIG[i], *[_VM_CONFIG[i]] * vms]
    for name, value in _node_fields(vms).items():
        table[:, :, _FIELDS.index(name)] = value
    return values


def _fill_store(folder: Path, nodes: int, vms: int) -> None:
    """Write a slice of random values for each node, in the encoding of the store."""
    store = SqliteStore(folder / "store.sqlite", 86400)
    draw = np.random.default_rng(1)
    # The store sorts fields by name.
    example = ScrapeSample(
        "", 0, dict.fromkeys(_FIELDS, 0.0), {f"vm-{i:03}": dict.fromkeys(_FIELDS, 0.0) for i in range(vms)}
    )
    layout = store.encode(example).payload[2]
    order = np.argsort(_FIELDS)
    start_ms, _ = Calendar(_SLICE_S, 48).bounds_ms(_LAST)
    for i in range(nodes):
        samples = _SLICE_S // _PERIOD_S
        table = _values(draw, samples, vms).reshape(samples, vms + 1, -1)[:, :, order].reshape(samples, -1)
        store.write(
            [
                Encoded((_node(i), start_ms + k * _PERIOD_S * 1000, layout, table[k].tobytes()), 0, vms + 1)
                for k in range(samples)
            ]
        )
    store.close()


class _Generated:
    """Stands in for the store while the windows are filled; the measurement reads the real store."""

    def __init__(self, vms: int) -> None:
        self._vms = vms
        self._draw = np.random.default_rng(2)

    def _samples(self, start_ms: int, config: tuple[float, float], more: Mapping[str, float]) -> Samples:
        times = np.arange(start_ms, start_ms + _SLICE_S * 1000, _PERIOD_S * 1000)
        fields = {name: self._draw.uniform(0, 4, times.size) for name in ("cpu_usage", "mem_usage")}
        constant = {"cpu": config[0], "mem": config[1], **more}
        return Samples(times, fields | {name: np.full(times.size, value) for name, value in constant.items()})

    def read(self, _node: str, start_ms: int, _end_ms: int, _fields: object, *, domains: bool = True) -> Period:
        names = [f"vm-{i:03}" for i in range(self._vms if domains else 0)]
        return Period(
            self._samples(start_ms, _CONFIG, _node_fields(self._vms)),
            {name: self._samples(start_ms, _VM_CONFIG, {}) for name in names},
        )

    def last_configs(self, _node: str, _start_ms: int, end_ms: int) -> dict[str, LastConfig]:
        last = LastConfig(dict(zip(("cpu", "mem"), _VM_CONFIG, strict=True)), end_ms - _PERIOD_S * 1000)
        return {f"vm-{i:03}": last for i in range(self._vms)}


def settings_of(folder: Path, nodes: tuple[str, ...], calendar: Calendar, historical: int) -> EstimatorSettings:
    """Settings of an estimator that has all of its files in a folder."""
    return EstimatorSettings(
        nodes=nodes,
        calendar=calendar,
        historical=historical,
        previous_scopes=historical,
        settle_s=10.0,
        status=StatusFileSettings(folder / "status.json", 0o644, -1, -1),
        checkpoint_path=folder / "estimator.sqlite",
        dump_slices=1,
        metrics_port=0,
        metrics_address="127.0.0.1",
        store=StoreSettings(None, folder / "store.sqlite", 86400),
    )


def _estimator(
    folder: Path, nodes: int, strategies: str, store: object, clock: Iterator[float]
) -> tuple[Scheduler, CheckpointFile, CollectorRegistry]:
    settings = settings_of(folder, tuple(_node(i) for i in range(nodes)), Calendar(_SLICE_S, 1), _HISTORICAL)
    model = ModelSettings(_HISTORICAL, _STRATEGIES[strategies], guarded="guards" in strategies)
    checkpoints = CheckpointFile(settings.checkpoint_path, {}, _HISTORICAL + 1, 1).open()
    registry = CollectorRegistry()
    detectors = {"cpu": mean_predictor, "mem": mean_predictor}
    publishers = {"status file": StatusFile(settings.status, 3600)}
    estimator = build_scheduler(
        *(settings, model, detectors, store, checkpoints, publishers),  # type: ignore[arg-type]
        clock=lambda: next(clock),
    )
    publishers["metrics"] = EstimatorMetrics(registry, estimator.counts)  # type: ignore[assignment]
    return estimator, checkpoints, registry


def _at(number: int) -> Iterator[float]:
    while True:
        yield (number + 1) * _SLICE_S + 20.0


def _fill_windows(folder: Path, nodes: int, strategies: str, vms: int) -> int:
    estimator, checkpoints, _ = _estimator(folder, nodes, strategies, _Generated(vms), _at(_LAST - 1))
    return timed(estimator, checkpoints, None)


def _measure(folder: Path, nodes: int, strategies: str, _vms: int) -> int:
    store = SqliteStore(folder / "store.sqlite", 1e12)
    estimator, checkpoints, registry = _estimator(folder, nodes, strategies, store, _at(_LAST))
    return timed(estimator, checkpoints, registry)


def timed(estimator: Scheduler, checkpoints: CheckpointFile, registry: CollectorRegistry | None) -> int:
    """Print what a slice end takes; the exit code is 1 when a node has no figures."""
    start, cpu = time.monotonic(), time.process_time()
    missing = asyncio.run(estimator.once())
    if registry is not None:
        # The end of a slice includes a scrape of the metrics.
        generate_latest(registry)
    _print_usage(start, cpu)
    checkpoints.close()
    states = {status.state for status in estimator.statuses()}
    return 1 if missing or states != {"ok"} else 0


def _floor(folder: Path, nodes: int, _strategies: str, _vms: int) -> int:
    import sqlite3

    start, cpu = time.monotonic(), time.process_time()
    connection = sqlite3.connect(folder / "store.sqlite")
    start_ms, end_ms = Calendar(_SLICE_S, 48).bounds_ms(_LAST)
    for i in range(nodes):
        connection.execute(
            "SELECT time_ms, layout, data FROM tick WHERE node = (SELECT id FROM node WHERE name = ?) "
            "AND time_ms >= ? AND time_ms < ? ORDER BY time_ms",
            (_node(i), start_ms, end_ms),
        ).fetchall()
    _print_usage(start, cpu)
    return 0


def _print_usage(start: float, cpu: float) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.monotonic() - start, time.process_time() - cpu, memory)


_CHILDREN = {"fill": _fill_windows, "measure": _measure, "floor": _floor}

if __name__ == "__main__":
    sys.exit(main())
