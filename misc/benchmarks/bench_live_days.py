#!/usr/bin/env python3
"""Measures the end of a slice after days: 48 slices in a scope, and VMs that come and go.

The estimator reads from the embedded store, and from InfluxDB where influxd is on PATH, with all strategies and guards.
Each slice end starts from the same memory file. Prints medians, and how large the memory file is for each node.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    import numpy as np

    from misc.benchmarks.bench_live import settings_of, timed
    from misc.benchmarks.influxdb_server import BUCKET, ORG, TOKEN, influxdb_server
    from model.estimator.checkpoints import CheckpointFile
    from model.estimator.scheduler import Scheduler, build_scheduler
    from model.estimator.slicing import Calendar
    from model.nodemodel import ModelSettings
    from model.oversubscriptioncomputation import STRATEGIES
    from model.publishers.status_file import StatusFile
    from model.samples import Period, Samples, ScrapeSample
    from model.stability import mean_predictor
    from model.store.base import Store
    from model.store.influxdb import InfluxStore
    from model.store.settings import InfluxSettings
    from model.store.sqlite import SqliteStore

_SLICE_S, _POSITIONS, _HISTORICAL = 1800, 48, 3
_CALENDAR = Calendar(_SLICE_S, _POSITIONS)
_LAST = 900_000  # number of the measured slice, in 2021
_CONFIG, _VM_CONFIG = (64.0, 262144.0), (4.0, 8192.0)
#: A VM lives for so many slices; another one takes its place in the middle of a slice.
_LIFE = 40
#: Samples of the slices that are not at the position of the measured one, unless the memory file is measured.
_FEW = 12
_RUNS = 5


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_live_days.py", description=__doc__)
    add = parser.add_argument
    add("--nodes", type=whole_number(1), default=200, metavar="N", help="nodes (200)")
    add("--vms", type=whole_number(1), default=40, metavar="N", help="of each node (40)")
    add("--interval", type=whole_number(1), default=15, metavar="S", help="seconds between scrapes (15)")
    add("--child", nargs=3, metavar=("WHAT", "FOLDER", "STORE"), help="internal")
    args = parser.parse_args(argv)
    fleet = _Fleet(args.nodes, args.vms, args.interval)
    if args.child:
        what, folder, store = args.child
        return (
            _fill(Path(folder), fleet, whole=what == "fill-all") if "fill" in what else _measure(folder, fleet, store)
        )
    options = ["--nodes", args.nodes, "--vms", args.vms, "--interval", args.interval]
    print(f"{fleet.nodes} nodes x {fleet.vms} VMs, {_POSITIONS} slices in a scope, a scrape every {fleet.interval_s} s")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_live_days.")))
        few = folder / "few"
        few.mkdir()
        _child(few, "fill-all", "none", ["--nodes", 5, *options[2:]])
        print(f"memory file: {_size(few) / 5e6:.2f} MB per node", flush=True)
        _child(folder, "fill", "none", options)
        for name, url in (("SQLite", "none"), ("InfluxDB", stack.enter_context(_influxdb(folder)))):
            if url is None:
                print("InfluxDB: skipped, influxd is not on PATH")
                continue
            fleet.write(_store(folder, url))
            runs = [_child(folder, "measure", url, options) for _ in range(_RUNS)]
            wall, cpu, memory = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{name}: slice end {wall:6.2f} s wall, {cpu:6.2f} s CPU, {memory:4.0f} MB", flush=True)
    return 0


@contextlib.contextmanager
def _influxdb(folder: Path) -> Iterator[str | None]:
    if shutil.which("influxd") is None:
        yield None
        return
    with influxdb_server(folder) as url:
        yield url


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("estimator.sqlite*"))


def _child(folder: Path, what: str, store: str, options: list[Any]) -> tuple[float, ...]:
    """What a child process prints: wall seconds, CPU seconds and MB."""
    copy = folder / "copy"
    if what == "measure":
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in folder.glob("estimator.sqlite*"):
            shutil.copy(path, copy)
    command = [sys.executable, __file__, *options, "--child", what, folder, store]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


class _Fleet:
    """Nodes with random usage; it stands in for the store while the windows are filled."""

    def __init__(self, nodes: int, vms: int, interval_s: int) -> None:
        self.nodes = nodes
        self.vms = vms
        self.interval_s = interval_s
        self.whole = False
        self._draw = np.random.default_rng(1)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"http://worker-{i:05}:9100/metrics" for i in range(self.nodes))

    def read(self, _node: str, start_ms: int, _end_ms: int, _fields: object, *, domains: bool = True) -> Period:
        """One slice; its VMs are read by all strategies together, so always."""
        number = start_ms // (_SLICE_S * 1000)
        whole = self.whole or number % _POSITIONS == _LAST % _POSITIONS
        size = _SLICE_S // self.interval_s if whole else _FEW
        times = start_ms + np.arange(size, dtype=np.int64) * (_SLICE_S * 1000 // size)
        ratios = (self.vms * one / of for one, of in zip(_VM_CONFIG, _CONFIG, strict=True))
        more = dict(zip(("elapsed_time", "oc_cpu", "oc_mem"), (_SLICE_S * 1000.0 / size, *ratios), strict=True))
        lives = {}
        for i in range(self.vms if domains else 0):
            life, age = divmod(number + 7 * i, _LIFE)
            if age == 0:
                lives[f"vm-{i:03}-{life - 1}"] = times[: size // 2]
            lives[f"vm-{i:03}-{life}"] = times[size // 2 :] if age == 0 else times
        vms = {name: self._samples(of, _VM_CONFIG, {}) for name, of in sorted(lives.items())}
        return Period(self._samples(times, _CONFIG, more), vms)

    def _samples(self, times: Any, config: tuple[float, float], more: Mapping[str, float]) -> Samples:
        fields = {name: self._draw.uniform(0, 4, times.size) for name in ("cpu_usage", "mem_usage")}
        constant = {"cpu": config[0], "mem": config[1], **more}
        return Samples(times, fields | {name: np.full(times.size, value) for name, value in constant.items()})

    def write(self, store: Store) -> None:
        """Write the measured slice of all nodes into a store."""
        start_ms, end_ms = _CALENDAR.bounds_ms(_LAST)
        for node in self.names:
            period = self.read(node, start_ms, end_ms, ())
            rows: list[dict[str, dict[str, float]]] = [{} for _ in range(period.node.time_ms.size)]
            for name, samples in period.domains.items():
                columns = {field: values.tolist() for field, values in samples.fields.items()}
                first = int(np.searchsorted(period.node.time_ms, samples.time_ms[0]))
                for k in range(samples.time_ms.size):
                    rows[first + k][name] = {field: values[k] for field, values in columns.items()}
            fields = {field: values.tolist() for field, values in period.node.fields.items()}
            times = period.node.time_ms.tolist()
            encoded = [
                store.encode(ScrapeSample(node, times[k], {field: of[k] for field, of in fields.items()}, row))
                for k, row in enumerate(rows)
            ]
            store.write(encoded)
        store.close()


def _store(folder: Path, url: str) -> SqliteStore | InfluxStore:
    if url == "none":
        return SqliteStore(folder / "store.sqlite", 1e12)
    return InfluxStore(_influx_settings(url))


def _influx_settings(url: str) -> InfluxSettings:
    return InfluxSettings(url, TOKEN, ORG, BUCKET, 30.0)


def _estimator(
    folder: Path, fleet: _Fleet, store: object, number: int, url: str = "none"
) -> tuple[Scheduler, CheckpointFile]:
    settings = settings_of(folder, fleet.names, _CALENDAR, _HISTORICAL)
    if url != "none":
        # The number of threads depends on it.
        settings = replace(settings, store=replace(settings.store, influx=_influx_settings(url)))
    model = ModelSettings(_HISTORICAL, tuple(STRATEGIES), positions=_POSITIONS, guarded=True)
    checkpoints = CheckpointFile(settings.checkpoint_path, {}, _HISTORICAL + 1, 1).open()
    publishers = {"status file": StatusFile(settings.status, 3600)}
    estimator = build_scheduler(
        *(settings, model, {"cpu": mean_predictor, "mem": mean_predictor}, store, checkpoints, publishers),  # type: ignore[arg-type]
        clock=lambda: (number + 1) * _SLICE_S + 20.0,
    )
    return estimator, checkpoints


def _fill(folder: Path, fleet: _Fleet, *, whole: bool) -> int:
    fleet.whole = whole
    return timed(*_estimator(folder, fleet, fleet, _LAST - 1), None)


def _measure(folder: str, fleet: _Fleet, url: str) -> int:
    return timed(*_estimator(Path(folder, "copy"), fleet, _store(Path(folder), url), _LAST, url), None)


if __name__ == "__main__":
    sys.exit(main())
