#!/usr/bin/env python3
"""Measures the aggregator: against a Prometheus server that scrapes the same pages, over an hour of ticks, and how
fast a node's last scope is read back.

Everything runs on loopback and ends by itself. Parts whose program is not there (prometheus, influxd) are left out,
and that is said. Nothing is asserted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
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
    from model.samples import ScrapeSample
    from model.store.base import Store
    from model.store.settings import InfluxSettings
    from model.store.sqlite import SqliteStore


_TICKS_OF_A_SCOPE = 360
_VMS = 40
_DELAY_S = 5
_FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss")
_HOUR_OF_TICKS = 720


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_aggregator.py", description=__doc__)
    for flag, default, meaning in (
        ("--nodes", 200, "worker nodes, of 40 VMs each"),
        ("--seconds", 60, "how long each scraper is measured, after as long a start as its first rounds take"),
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
    with _workers(nodes, _DELAY_S * 1000) as stubs:
        page = urllib.request.urlopen(stubs[0][0], timeout=10).read()  # noqa: S310  # our own, on loopback
        samples = sum(1 for line in page.splitlines() if not line.startswith(b"#"))
        print(f"{nodes} nodes x {_VMS} VMs every {_DELAY_S} s: pages of {samples} samples, {len(page) / 1e3:.0f} kB")
        per_round = nodes * samples
        with _aggregator(folder / "store.sqlite", stubs, _DELAY_S) as pid:
            ours = _tell_cpu("vmaggreg.py, into SQLite", pid, seconds, per_round)
        store = SqliteStore(folder / "store.sqlite", 86400)
        print(f"    {store.check()}")
        store.close()
        if shutil.which("prometheus") is None:
            print("    no prometheus on PATH to compare with")
            return
        with _prometheus(folder / "prometheus", stubs) as pid:
            theirs = _tell_cpu("prometheus", pid, seconds, per_round)
        print(f"    ratio, CPU per scraped sample: {ours / theirs:.2f}\n", flush=True)


def _tell_cpu(name: str, pid: int, seconds: int, samples_per_round: int) -> float:
    """Print and answer the CPU time per sample, ns, once the first rounds are over."""
    time.sleep(3 * _DELAY_S)
    start = _cpu_s(pid)
    time.sleep(seconds)
    used = _cpu_s(pid) - start
    samples = samples_per_round * seconds / _DELAY_S
    print(
        f"{name:28} {used / seconds:6.1%} of a core, {used / samples * 1e9:6.0f} ns per sample, {_rss_mb(pid):5.0f} MB",
        flush=True,
    )
    return used / samples * 1e9


def _watch_memory(folder: Path) -> None:
    """As many ticks as an hour has, at fifty times the pace."""
    nodes, delay_s = 10, 0.1
    with _workers(nodes, 0) as stubs, _aggregator(folder / "hour.sqlite", stubs, delay_s) as pid:
        held = []
        for part in range(1, 7):
            time.sleep(_HOUR_OF_TICKS * delay_s / 6)
            held.append(_rss_mb(pid))
            print(f"after {part * _HOUR_OF_TICKS // 6:4} ticks of {nodes} nodes: {held[-1]:6.1f} MB", flush=True)
    print(f"    growth from the first part to the last: {held[-1] - held[0]:+.1f} MB\n", flush=True)


@contextlib.contextmanager
def _workers(nodes: int, probe_delay_ms: int) -> Iterator[list[list[str]]]:
    command = [sys.executable, ROOT / "misc" / "fakeworkers", "--port=0", "--print-stubs", "--duration=3600"]
    options = [f"--workers={nodes}", f"--vms={_VMS}", f"--probe-delay-ms={probe_delay_ms}"]
    with _process([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        next(lines)
        yield json.loads(next(lines))


@contextlib.contextmanager
def _aggregator(path: Path, stubs: list[list[str]], delay_s: float) -> Iterator[int]:
    settings = {
        "AGGREG_STUB_LIST": json.dumps(stubs),
        "AGGREG_FETCH_DELAY": str(delay_s),
        "STORE_PATH": str(path),
        "INFLUXDB_URL": "",
    }
    with _process([sys.executable, ROOT / "vmaggreg.py"], env={**os.environ, **settings}) as process:
        yield process.pid


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
        *(f"--web.listen-address=127.0.0.1:{_free_port()}", "--log.level=error"),
    ]
    with _process(command) as process:
        yield process.pid


@contextlib.contextmanager
def _process(command: list[Any], **how: Any) -> Iterator[Any]:
    process = subprocess.Popen([str(word) for word in command], **how)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- reading back -----------------------------------------------------------------------------------


def _read_back(folder: Path) -> None:
    """One node among ten, 360 ticks of 40 VMs."""
    end_ms = int(time.time()) * 1000
    start_ms = end_ms - _TICKS_OF_A_SCOPE * _DELAY_S * 1000
    store = SqliteStore(folder / "read.sqlite", 86400)
    for k in range(_TICKS_OF_A_SCOPE):
        store.write([store.encode(_tick(f"http://w{i}/", start_ms + k * _DELAY_S * 1000)) for i in range(10)])
    took = _median(lambda: store.read("http://w7/", start_ms, end_ms, _FIELDS))
    print(f"a node's last scope ({_TICKS_OF_A_SCOPE} ticks x {_VMS} VMs x {len(_FIELDS)} fields): SQLite {took:.1f} ms")
    store.close()
    if shutil.which("influxd") is None:
        print("    no influxd on PATH to read from")
        return
    with _influx(folder) as influx:
        for k in range(_TICKS_OF_A_SCOPE):
            influx.write([influx.encode(_tick("http://w7/", start_ms + k * _DELAY_S * 1000))])
        took = _median(lambda: influx.read("http://w7/", start_ms, end_ms, _FIELDS))
        raw = _median(lambda: _all_of(influx.transfer("http://w7/", start_ms, end_ms, _FIELDS)))
        print(f"    InfluxDB {took:.1f} ms; the bytes of the same query alone {raw:.1f} ms, ratio {took / raw:.2f}")


def _all_of(tables: Iterator[bytes]) -> int:
    return sum(len(table) for table in tables)


def _tick(node: str, time_ms: int) -> ScrapeSample:
    dice = random.Random(time_ms)  # noqa: S311  # figures to fill a store with

    def machine(size: float) -> dict[str, float]:
        usage = {"cpu_usage": dice.random() * size, "mem_usage": dice.random() * 4096, "mem_rss": dice.random() * 4096}
        return {"cpu": size, "mem": size * 4096, **usage, **{f"f{i}": dice.random() for i in range(20)}}

    return ScrapeSample(node, time_ms, machine(64.0), {f"vm{i:03d}": machine(4.0) for i in range(_VMS)})


def _median(job: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a job, ms; the first rounds warm up and do not count."""
    took = []
    for i in range(rounds + 3):
        start = time.perf_counter()
        job()
        if i >= 3:
            took.append((time.perf_counter() - start) * 1000)
    return statistics.median(took)


@contextlib.contextmanager
def _influx(folder: Path) -> Iterator[Any]:
    from model.store.influxdb import InfluxStore

    url = f"http://127.0.0.1:{(port := _free_port())}"
    command = [
        *("influxd", "run", "--reporting-disabled", "--log-level", "error"),
        *("--http-bind-address", f"127.0.0.1:{port}"),
        *(
            "--bolt-path",
            folder / "bolt",
            "--engine-path",
            folder / "engine",
            "--sqlite-path",
            folder / "influx.sqlite",
        ),
    ]
    with _process(command, stdout=subprocess.DEVNULL):
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
