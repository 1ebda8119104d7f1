#!/usr/bin/env python3
"""Measures the history of a node in the stores: its size, whole and thinned, and the time to thin and to read it.

The samples are computed from the pages of a simulated worker, an hour of them; their values repeat every hour. The size
of the embedded store is that of its file without unused pages, that of InfluxDB is that of the data
files of its bucket, without the 32 MB of its index.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, number, whole_number

with require_libraries("live"):
    from misc.benchmarks.processes import free_port, influxd_command, process
    from misc.fakeworkers.machines import Plan, build_workers
    from misc.fakeworkers.pages import render_vmprobe
    from model.aggregator.rates import NodeRates
    from model.aggregator.vmprobe import VmprobeReader
    from model.estimator.slicing import SLICE_FIELDS
    from model.samples import ScrapeSample
    from model.store.settings import InfluxSettings, Thinning
    from model.store.sqlite import SqliteStore

_NODE = "http://worker:9100/metrics"
_DAY_S = 86400
_STEP_S = 300
#: Start of the history: whole days before it begins, so that no part of a step is left over.
_START_MS = 20_700 * _DAY_S * 1000
_MB = 2**20
_TOKEN = "t" * 20
#: Length of the history in InfluxDB; its sizes are per day.
_INFLUX_HOURS = 6


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_history.py", description=__doc__)
    parser.add_argument("--vms", type=whole_number(1), default=30, metavar="N", help="VMs of the node (30)")
    parser.add_argument("--days", type=whole_number(1), default=14, metavar="N", help="length of the history (14)")
    parser.add_argument(
        "--delay", type=number(0.5, 300), default=15.0, metavar="S", help="seconds between two scrapes (15)"
    )
    parser.add_argument("--store", choices=("sqlite", "influxdb", "both"), default="both")
    args = parser.parse_args(argv)
    samples = list(_hour(args.vms, int(args.delay * 1000)))
    print(f"a node of {args.vms} VMs, a sample every {args.delay:g} s, {args.days} days")
    with tempfile.TemporaryDirectory() as folder:
        if args.store != "influxdb":
            _measure_sqlite(Path(folder), samples, args.days)
        if args.store != "sqlite":
            _measure_influxdb(Path(folder), samples)
    return 0


def _hour(vms: int, delay_ms: int) -> Iterator[ScrapeSample]:
    """The samples of the first hour."""
    (worker,) = build_workers(Plan(workers=1, vms=vms))
    reader, rates = VmprobeReader(worker.plan.prefix), NodeRates(_NODE)
    for time_ms in range(_START_MS - delay_ms, _START_MS + 3_600_000, delay_ms):
        sample = rates.update(reader.read(render_vmprobe(worker, time_ms))).sample
        if sample is not None and sample.time_ms >= _START_MS:
            yield sample


def _measure_sqlite(folder: Path, samples: list[ScrapeSample], days: int) -> None:
    thinning = Thinning(3600, _STEP_S)
    with closing(SqliteStore(folder / "store.sqlite", 1e12, thinning)) as store:
        encoded = [store.encode(sample) for sample in samples]
        for hour in range(24 * days):
            shifted = []
            for one in encoded:
                node, time_ms, layout, block = one.payload
                shifted.append(type(one)((node, time_ms + hour * 3_600_000, layout, block), one.size, one.points))
            store.write(shifted)
        end_ms = _START_MS + days * _DAY_S * 1000
        whole_mb, whole_s = _used_mb(store.path), _read_s(store, end_ms)
        begin_s = time.perf_counter()
        expired = store.expire(end_ms / 1000 + thinning.full_s)
        took_s = time.perf_counter() - begin_s
        thinned_mb, thinned_s = _used_mb(store.path), _read_s(store, end_ms)
    print(f"    SQLite: {whole_mb / days:.2f} MB per node and day, thinned {thinned_mb / days:.3f} MB")
    print(f"    thinning: {took_s / days:.2f} s per node and day, {expired.thinned / took_s:.0f} samples/s")
    print(f"    reading all {days} days by the hour: {whole_s:.2f} s, thinned {thinned_s:.3f} s", flush=True)


def _used_mb(path: Path) -> float:
    """Size of a SQLite file without the pages that it will use again, MB."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, unused, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return float((pages - unused) * size / _MB)


def _read_s(store: SqliteStore, end_ms: int) -> float:
    """Time to read the history in slices of an hour, s."""
    begin_s = time.perf_counter()
    for start_ms in range(_START_MS, end_ms, 3_600_000):
        store.read(_NODE, start_ms, start_ms + 3_600_000, SLICE_FIELDS)
    return time.perf_counter() - begin_s


def _measure_influxdb(folder: Path, samples: list[ScrapeSample]) -> None:
    """Some hours of samples in one bucket, and what the task of misc/influxdb.sh leaves of them in another one."""
    if shutil.which("influxd") is None:
        print("    skipped: influxd is not on PATH")
        return
    from model.store.influxdb import InfluxStore

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        # What is written goes to its final files at once: the log of the server is no history.
        flags = ("cache-snapshot-write-cold-duration", "compact-full-write-cold-duration")
        command = [*influxd_command(folder, port), *(f"--storage-{name}=2s" for name in flags)]
        stack.enter_context(process(command, stdout=subprocess.DEVNULL))
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).read()  # noqa: S310
                break
            time.sleep(0.1)
        setup = {"username": "u", "password": "p" * 12, "org": "o", "bucket": "raw", "token": _TOKEN}
        org_id = _call(url, "/api/v2/setup", setup)["org"]["id"]
        _call(url, "/api/v2/buckets", {"orgID": org_id, "name": "coarse", "retentionRules": []})
        buckets = {one["name"]: one["id"] for one in json.loads(_call(url, "/api/v2/buckets", None))["buckets"]}
        store = stack.enter_context(closing(InfluxStore(InfluxSettings(url, _TOKEN, "o", "raw", 600.0))))
        for hour in range(_INFLUX_HOURS):
            shifted = [replace(one, time_ms=one.time_ms + hour * 3_600_000) for one in samples]
            store.write([store.encode(one) for one in shifted])
        begin_s = time.perf_counter()
        # A run takes two hours, see the script.
        for _ in range(_INFLUX_HOURS // 2):
            _call(url, "/api/v2/query?org=o", {"query": _task(), "type": "flux"})
        took_s = time.perf_counter() - begin_s
        time.sleep(30)
        sizes = {
            name: sum(one.stat().st_size for one in (folder / "engine" / "data" / bucket).rglob("*.tsm"))
            / _MB
            * (24 / _INFLUX_HOURS)
            for name, bucket in buckets.items()
        }
    print(f"    InfluxDB: {sizes['raw']:.2f} MB per node and day, thinned {sizes['coarse']:.3f} MB")
    print(f"    thinning: {took_s * 24 / _INFLUX_HOURS:.1f} s per node and day", flush=True)


def _task() -> str:
    """The task of the script, as Flux."""
    settings = f"BUCKET=raw COARSE_BUCKET=coarse STEP_S={_STEP_S} RETENTION_S=2592000"
    command = f"source <(sed '/^main /d' '{ROOT}/misc/influxdb.sh'); {settings}; thinning_task"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout  # noqa: S607


def _call(url: str, path: str, body: Any) -> Any:
    """The response to a request, decoded where it is that of the set-up."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Token {_TOKEN}"}
    request = urllib.request.Request(url + path, data, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=600) as response:  # noqa: S310
        text = response.read()
    return json.loads(text) if path.endswith("/setup") else text


if __name__ == "__main__":
    sys.exit(main())
