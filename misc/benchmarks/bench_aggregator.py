#!/usr/bin/env python3
"""Measures the aggregator: CPU compared with a Prometheus server, memory over an hour of scrapes, reading back.

All processes run on the loopback and end with the benchmark. Parts that need a missing program (prometheus, influxd)
are skipped with a message.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    from misc.benchmarks.processes import cpu_s, daemon, fake_workers, free_port, influxd_command, process, rss_mb
    from model.samples import ScrapeSample
    from model.store.base import Store
    from model.store.settings import InfluxSettings
    from model.store.sqlite import SqliteStore


_SAMPLES_PER_SCOPE = 360
_VMS = 40
_DELAY_S = 5
_FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss")
_SAMPLES_PER_HOUR = 720


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_aggregator.py", description=__doc__)
    for flag, default, meaning in (
        ("--nodes", 200, "worker nodes, of 40 VMs each"),
        ("--seconds", 60, "length of each measurement, after the first rounds"),
    ):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"{meaning} ({default})")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _compare_with_prometheus(folder, args.nodes, args.seconds)
        _watch_memory(folder)
        _read_back(folder)
    return 0


# --- scraping ---------------------------------------------------------------------------------------


def _compare_with_prometheus(folder: Path, nodes: int, seconds: int) -> None:
    with fake_workers(nodes, _VMS, _DELAY_S * 1000) as stubs:
        page = urllib.request.urlopen(stubs[0][0], timeout=10).read()  # noqa: S310  # own server on the loopback
        samples = sum(1 for line in page.splitlines() if not line.startswith(b"#"))
        print(f"{nodes} nodes x {_VMS} VMs every {_DELAY_S} s: pages of {samples} samples, {len(page) / 1e3:.0f} kB")
        per_round = nodes * samples
        with _aggregator(folder / "store.sqlite", stubs, _DELAY_S) as pid:
            aggregator_ns = _measure_cpu("vmaggreg.py, into SQLite", pid, seconds, per_round)
        store = SqliteStore(folder / "store.sqlite", 86400)
        print(f"    {store.check()}")
        store.close()
        if shutil.which("prometheus") is None:
            print("    skipped: prometheus is not on PATH")
            return
        with _prometheus(folder / "prometheus", stubs) as pid:
            prometheus_ns = _measure_cpu("prometheus", pid, seconds, per_round)
        print(f"    ratio, CPU per scraped sample: {aggregator_ns / prometheus_ns:.2f}\n", flush=True)


def _measure_cpu(name: str, pid: int, seconds: int, samples_per_round: int) -> float:
    """Measure, print and return the CPU time per sample, ns, after the first rounds."""
    time.sleep(3 * _DELAY_S)
    start = cpu_s(pid)
    time.sleep(seconds)
    used_s = cpu_s(pid) - start
    samples = samples_per_round * seconds / _DELAY_S
    sample_ns = used_s / samples * 1e9
    memory_mb = rss_mb(pid)
    print(
        f"{name:28} {used_s / seconds:6.1%} of a core, {sample_ns:6.0f} ns per sample, {memory_mb:5.0f} MB", flush=True
    )
    return sample_ns


def _watch_memory(folder: Path) -> None:
    """Print the memory during as many scrapes as in an hour, at fifty times the rate."""
    nodes, delay_s = 10, 0.1
    with fake_workers(nodes, _VMS, 0) as stubs, _aggregator(folder / "hour.sqlite", stubs, delay_s) as pid:
        memory_mb = []
        for part in range(1, 7):
            time.sleep(_SAMPLES_PER_HOUR * delay_s / 6)
            memory_mb.append(rss_mb(pid))
            print(
                f"after {part * _SAMPLES_PER_HOUR // 6:4} scrapes of {nodes} nodes: {memory_mb[-1]:6.1f} MB", flush=True
            )
    print(f"    growth from the first part to the last: {memory_mb[-1] - memory_mb[0]:+.1f} MB\n", flush=True)


@contextlib.contextmanager
def _aggregator(path: Path, stubs: list[Any], delay_s: float) -> Iterator[int]:
    settings = {
        "AGGREG_STUB_LIST": json.dumps(stubs),
        "AGGREG_FETCH_DELAY": str(delay_s),
        "STORE_PATH": str(path),
    }
    with daemon("vmaggreg.py", settings) as pid:
        yield pid


@contextlib.contextmanager
def _prometheus(folder: Path, stubs: list[list[str]]) -> Iterator[int]:
    folder.mkdir()
    targets = []
    for url, _ in stubs:
        host, path = url.removeprefix("http://").split("/", 1)
        targets.append({"targets": [host], "labels": {"__metrics_path__": f"/{path}", "instance": path}})
    jobs = [{"job_name": "workers", "scrape_interval": f"{_DELAY_S}s", "static_configs": targets}]
    # YAML is a superset of JSON.
    (folder / "config.yml").write_text(json.dumps({"scrape_configs": jobs}))
    command = [
        *("prometheus", f"--config.file={folder / 'config.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{free_port()}", "--log.level=error"),
    ]
    with process(command) as running:
        yield running.pid


# --- reading back -----------------------------------------------------------------------------------


def _read_back(folder: Path) -> None:
    """Measure how fast the last scope of one of ten nodes is read: 360 samples of 40 VMs."""
    end_ms = int(time.time()) * 1000
    start_ms = end_ms - _SAMPLES_PER_SCOPE * _DELAY_S * 1000
    store = SqliteStore(folder / "read.sqlite", 86400)
    for k in range(_SAMPLES_PER_SCOPE):
        store.write([store.encode(_sample(f"http://w{i}/", start_ms + k * _DELAY_S * 1000)) for i in range(10)])
    read_ms = _median(lambda: store.read("http://w7/", start_ms, end_ms, _FIELDS))
    print(f"last scope of a node ({_SAMPLES_PER_SCOPE} samples x {_VMS} VMs x {len(_FIELDS)} fields):")
    print(f"    SQLite {read_ms:.1f} ms")
    store.close()
    if shutil.which("influxd") is None:
        print("    skipped: influxd is not on PATH")
        return
    with _influx(folder) as influx:
        for k in range(_SAMPLES_PER_SCOPE):
            influx.write([influx.encode(_sample("http://w7/", start_ms + k * _DELAY_S * 1000))])
        read_ms = _median(lambda: influx.read("http://w7/", start_ms, end_ms, _FIELDS))
        raw_ms = _median(lambda: _total_bytes(influx.transfer("http://w7/", start_ms, end_ms, _FIELDS)))
        print(f"    InfluxDB {read_ms:.1f} ms; transfer of the response {raw_ms:.1f} ms, ratio {read_ms / raw_ms:.2f}")


def _total_bytes(tables: Iterator[bytes]) -> int:
    return sum(len(table) for table in tables)


def _sample(node: str, time_ms: int) -> ScrapeSample:
    draw = random.Random(time_ms)  # noqa: S311  # values to fill a store

    def machine(size: float) -> dict[str, float]:
        usage = {"cpu_usage": draw.random() * size, "mem_usage": draw.random() * 4096, "mem_rss": draw.random() * 4096}
        return {"cpu": size, "mem": size * 4096, **usage, **{f"f{i}": draw.random() for i in range(20)}}

    return ScrapeSample(node, time_ms, machine(64.0), {f"vm{i:03d}": machine(4.0) for i in range(_VMS)})


def _median(job: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a job, ms, after three rounds to warm up."""
    times_ms = []
    for i in range(rounds + 3):
        start = time.perf_counter()
        job()
        if i >= 3:
            times_ms.append((time.perf_counter() - start) * 1000)
    return statistics.median(times_ms)


@contextlib.contextmanager
def _influx(folder: Path) -> Iterator[Any]:
    from model.store.influxdb import InfluxStore

    url = f"http://127.0.0.1:{(port := free_port())}"
    command = influxd_command(folder, port)
    with process(command, stdout=subprocess.DEVNULL):
        setup = {"username": "u", "password": "p" * 12, "org": "o", "bucket": "b", "token": "t" * 20}
        request = urllib.request.Request(f"{url}/api/v2/setup", json.dumps(setup).encode())  # noqa: S310
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5).read()  # noqa: S310
                break
            time.sleep(0.1)
        influx: Store = InfluxStore(InfluxSettings(url, "t" * 20, "o", "b", 30.0))
        yield influx
        influx.close()


if __name__ == "__main__":
    sys.exit(main())
