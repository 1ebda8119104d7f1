#!/usr/bin/env python3
"""Measures the aggregator: CPU beside Prometheus and vmagent, memory of a node and over an hour, reading back.

Aggregator, Prometheus and vmagent scrape the same pages at the same time, first of VMs that stay, then of VMs that come
and go. Each figure is the median of successive periods. All processes run on the loopback and end with the benchmark.
Parts that need a missing program (prometheus, vmagent, influxd) are skipped with a message.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries, run_interruptible
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    from misc.benchmarks.influxdb_server import BUCKET, ORG, TOKEN, influxdb_server
    from misc.benchmarks.processes import (
        control,
        cpu_s,
        daemon,
        fake_workers,
        free_port,
        process,
        rss_mb,
    )
    from model.samples import ScrapeSample
    from model.store.base import Store
    from model.store.settings import InfluxSettings
    from model.store.sqlite import SqliteStore


_SAMPLES_PER_SCOPE = 360
_VMS = 40
_DELAY_S = 5
_FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss")
_SAMPLES_PER_HOUR = 720
#: Periods of which the median counts.
_PERIODS = 5
#: Memory grows until every node was scraped several times.
_WARM_UP_S = 4 * _DELAY_S


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_aggregator.py", description=__doc__)
    for flag, default, meaning in (
        ("--nodes", 200, f"worker nodes, of {_VMS} VMs each"),
        ("--seconds", 20, f"length of each of {_PERIODS} periods, after the first rounds"),
        ("--churn", 1, "VMs that come or go per node and minute in the second part"),
    ):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"{meaning} ({default})")
    parser.add_argument(
        "--format", choices=("vmprobe", "vmprobe-textfile", "labels"), default="vmprobe", help="of pages"
    )
    parser.add_argument("--quick", action="store_true", help="compare only, without memory and reading back")
    args = parser.parse_args(argv)
    return run_interruptible(
        lambda: _run(args.nodes, args.seconds, args.churn, args.format, quick=args.quick), lambda: 130
    )


def _run(nodes: int, seconds: int, churn: int, form: str, *, quick: bool) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory_mb = _compare(folder / "calm", nodes, seconds, 0, form)
        _compare(folder / "churn", nodes, seconds, churn, form)
        if not quick:
            _measure_node(folder, nodes, memory_mb, form)
            _watch_memory(folder)
            _read_back(folder)
    return 0


# --- scraping ---------------------------------------------------------------------------------------


def _compare(folder: Path, nodes: int, seconds: int, churn: int, form: str) -> float:
    """Measure all programs at once, and print the figures; the memory of the aggregator, MB."""
    folder.mkdir()
    with ExitStack() as stack:
        stubs = stack.enter_context(fake_workers(nodes, _VMS, _DELAY_S * 1000, f"--format={form}"))
        urls = _urls(stubs)
        pages = [urllib.request.urlopen(url, timeout=10).read() for url in urls[: len(urls) // nodes]]  # noqa: S310  # own server on the loopback
        samples = sum(not line.startswith(b"#") for page in pages for line in page.splitlines())
        kb = sum(map(len, pages)) / 1e3
        print(
            f"{nodes} nodes x {_VMS} VMs every {_DELAY_S} s ({form}): {samples} samples and {kb:.0f} kB each, ", end=""
        )
        print(f"{churn} VMs come or go per node and minute" if churn else "VMs stay", flush=True)
        pids = {"vmaggreg.py, into SQLite": stack.enter_context(_aggregator(folder / "store.sqlite", stubs, _DELAY_S))}
        for program, start in (("prometheus", _prometheus), ("vmagent", _vmagent)):
            if shutil.which(program) is None:
                print(f"    skipped: {program} is not on PATH")
            else:
                pids[program] = stack.enter_context(start(folder, urls))
        if churn:
            stack.enter_context(_churn(stubs, nodes, churn / 60.0))
        time.sleep(_WARM_UP_S)
        used_s: dict[str, list[float]] = {name: [] for name in pids}
        for _ in range(_PERIODS):
            before = {name: cpu_s(pid) for name, pid in pids.items()}
            time.sleep(seconds)
            for name, pid in pids.items():
                used_s[name].append(cpu_s(pid) - before[name])
        _print_cpu(used_s, samples * nodes * seconds / _DELAY_S, seconds, pids)
        return rss_mb(next(iter(pids.values())))


def _print_cpu(used_s: dict[str, list[float]], samples: float, seconds: int, pids: dict[str, int]) -> None:
    reference = used_s.get("prometheus")
    for name, times_s in used_s.items():
        sample_ns = sorted(time_s / samples * 1e9 for time_s in times_s)
        line = (
            f"{name:26} {statistics.median(times_s) / seconds:6.1%} of a core, {statistics.median(sample_ns):5.0f} ns "
            f"per sample ({sample_ns[0]:.0f} to {sample_ns[-1]:.0f}), {rss_mb(pids[name]):5.0f} MB"
        )
        if reference is not None:
            # The periods are those of all programs: another load of the machine affects each of them.
            ratios = [time_s / base_s for time_s, base_s in zip(times_s, reference, strict=True)]
            line += f", {statistics.median(ratios):.2f} x prometheus"
        print(line)
    print(flush=True)


@contextlib.contextmanager
def _churn(stubs: list[Any], nodes: int, per_node_s: float) -> Iterator[None]:
    """Let VMs leave and return, one at a time on a random node, as often as each node is due."""
    stopped = threading.Event()
    draw = random.Random(1)  # noqa: S311  # not for cryptography
    left: set[int] = set()

    def run() -> None:
        while not stopped.wait(1.0 / (nodes * per_node_s)):
            worker = draw.randrange(nodes)
            control(stubs, worker=worker, fault="vm-returns" if worker in left else "vm-leaves", vm=worker % _VMS)
            left.symmetric_difference_update({worker})

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _measure_node(folder: Path, nodes: int, memory_mb: float, form: str) -> None:
    """Print the memory of a node: the difference to an aggregator of fewer nodes, which also has what all share."""
    few = max(1, nodes // 10)
    with (
        fake_workers(few, _VMS, _DELAY_S * 1000, f"--format={form}") as stubs,
        _aggregator(folder / "few.sqlite", stubs, _DELAY_S) as pid,
    ):
        time.sleep(_WARM_UP_S + 2 * _DELAY_S)
        node_mb = (memory_mb - rss_mb(pid)) / max(1, nodes - few)
        print(
            f"memory of a node of {_VMS} VMs: {node_mb:.2f} MB, of the program with {few} nodes {rss_mb(pid):.0f} MB\n"
        )


def _watch_memory(folder: Path) -> None:
    """Print the memory during as many scrapes as in an hour, at fifty times the rate."""
    nodes, delay_s, parts = 10, 0.1, 6
    with fake_workers(nodes, _VMS, 0) as stubs, _aggregator(folder / "hour.sqlite", stubs, delay_s) as pid:
        memory_mb = []
        for part in range(1, parts + 1):
            readings = []
            for _ in range(_PERIODS):
                time.sleep(_SAMPLES_PER_HOUR * delay_s / parts / _PERIODS)
                readings.append(rss_mb(pid))
            memory_mb.append(statistics.median(readings))
            print(
                f"after {part * _SAMPLES_PER_HOUR // parts:4} scrapes of {nodes} nodes: {memory_mb[-1]:6.1f} MB",
                flush=True,
            )
    print(f"    growth from the first part to the last: {memory_mb[-1] - memory_mb[0]:+.1f} MB\n", flush=True)


def _urls(stubs: list[Any]) -> list[str]:
    """All pages of the simulated workers, those of the first one first."""
    return [
        url
        for stub in stubs
        for url in ([stub["node_exporter"], stub["libvirt_exporter"]] if isinstance(stub, dict) else [stub[0]])
    ]


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
def _prometheus(folder: Path, urls: list[str]) -> Iterator[int]:
    command = [
        *("prometheus", f"--config.file={_scrape_config(folder, urls)}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{free_port()}", "--log.level=error"),
    ]
    with process(command) as running:
        yield running.pid


@contextlib.contextmanager
def _vmagent(folder: Path, urls: list[str]) -> Iterator[int]:
    """Run vmagent with a server that accepts, and forgets, what it sends."""
    sink = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    thread = threading.Thread(target=sink.serve_forever)
    thread.start()
    command = [
        *("vmagent", f"-promscrape.config={_scrape_config(folder, urls)}", "-loggerLevel=ERROR"),
        *(f"-remoteWrite.url=http://127.0.0.1:{sink.server_port}/", f"-remoteWrite.tmpDataPath={folder / 'vmagent'}"),
        f"-httpListenAddr=127.0.0.1:{free_port()}",
    ]
    try:
        with process(command) as running:
            yield running.pid
    finally:
        sink.shutdown()
        thread.join()
        sink.server_close()


class _Sink(BaseHTTPRequestHandler):
    """Accepts what is posted."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the name of the base class
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _scrape_config(folder: Path, urls: list[str]) -> Path:
    """The configuration of Prometheus and vmagent."""
    targets = []
    for url in urls:
        host, path = url.removeprefix("http://").split("/", 1)
        targets.append({"targets": [host], "labels": {"__metrics_path__": f"/{path}", "instance": path}})
    jobs = [{"job_name": "workers", "scrape_interval": f"{_DELAY_S}s", "static_configs": targets}]
    # YAML is a superset of JSON.
    file = folder / "scrape.yml"
    file.write_text(json.dumps({"scrape_configs": jobs}))
    return file


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

    with influxdb_server(folder) as url:
        influx: Store = InfluxStore(InfluxSettings(url, TOKEN, ORG, BUCKET, 30.0))
        yield influx
        influx.close()


if __name__ == "__main__":
    sys.exit(main())
