#!/usr/bin/env python3
"""Measures the aggregator after an outage of its store: how fast the backlog is written, and the pace of the scrapes.

The nodes are simulated and scraped at a pace that an aggregator keeps easily. The store is taken away: InfluxDB is
killed and started again, a SQLite file is locked by another process. A tick is a moment at which a node is due; ticks
that were not asked were skipped because the scrapes before were late.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, number, whole_number

with require_libraries("live"):
    from misc.benchmarks.influxdb_server import BUCKET, ORG, TOKEN, set_up, wait_for_server
    from misc.benchmarks.processes import cpu_s, fake_workers, free_port, influxd_command, process, rss_mb


class Counters(NamedTuple):
    """What the aggregator has counted so far."""

    scrapes: float
    missed: float
    waiting: float
    written: float


class Store(NamedTuple):
    """A store that can be taken away."""

    name: str
    settings: dict[str, str]
    take_away: Callable[[], object]
    give_back: Callable[[], object]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_backlog.py", description=__doc__)
    for flag, default, meaning in (
        ("--nodes", 200, "worker nodes"),
        ("--vms", 40, "VMs of each"),
        ("--outage", 60, "seconds without the store"),
    ):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"{meaning} ({default})")
    parser.add_argument("--delay", type=number(0.1, 60), default=2.0, metavar="S", help="seconds between scrapes (2)")
    parser.add_argument("--program", type=Path, default=ROOT / "vmaggreg.py", help="another version of vmaggreg.py")
    parser.add_argument("--store", choices=("sqlite", "influxdb", "both"), default="both")
    args = parser.parse_args(argv)
    for name, made in (("sqlite", _sqlite), ("influxdb", _influxdb)):
        if args.store not in {name, "both"}:
            continue
        if name == "influxdb" and shutil.which("influxd") is None:
            print("skipped: influxd is not on PATH")
            continue
        with tempfile.TemporaryDirectory() as folder, made(Path(folder)) as store:
            _measure(args, Path(folder), store)
    return 0


def _measure(args: Any, folder: Path, store: Store) -> None:
    port = free_port()
    with fake_workers(args.nodes, args.vms, int(args.delay * 1000)) as stubs:
        settings = {
            "AGGREG_STUB_LIST": json.dumps(stubs),
            "AGGREG_FETCH_DELAY": str(args.delay),
            "AGGREG_METRICS_PORT": str(port),
            "STORE_PATH": str(folder / "store.sqlite"),
            **store.settings,
        }
        command = [sys.executable, args.program]
        with process(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL) as aggregator:
            time.sleep(10)
            print(f"{store.name}: {args.nodes} nodes x {args.vms} VMs every {args.delay:g} s, outage {args.outage} s")
            _phase("before", aggregator.pid, port, lambda: time.sleep(15), args)
            store.take_away()
            _phase("outage", aggregator.pid, port, lambda: time.sleep(args.outage), args)
            store.give_back()
            _phase("backlog", aggregator.pid, port, lambda: _wait_for_backlog(port), args)
            _phase("after", aggregator.pid, port, lambda: time.sleep(15), args)


def _phase(name: str, pid: int, port: int, wait: Callable[[], object], args: Any) -> None:
    """Print what happened while a phase lasted."""
    begin_s, begin_cpu_s, begin = time.monotonic(), cpu_s(pid), _counters(port)
    wait()
    took_s, used_s, end = time.monotonic() - begin_s, cpu_s(pid) - begin_cpu_s, _counters(port)
    due = args.nodes * took_s / args.delay
    print(
        f"    {name:8} {took_s:6.1f} s, {used_s / took_s:4.0%} of a core, {rss_mb(pid):5.0f} MB, "
        f"ticks asked {(end.scrapes - begin.scrapes) / due:6.1%}, skipped {(end.missed - begin.missed) / due:6.1%}, "
        f"points written {end.written - begin.written:9.0f}, waiting {end.waiting:9.0f}",
        flush=True,
    )


def _wait_for_backlog(port: int) -> None:
    """Wait until no more points wait than one round of scrapes brings."""
    while (counters := _counters(port)).waiting > 0.02 * counters.written:
        time.sleep(0.5)


def _counters(port: int) -> Counters:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    totals: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            totals[name] = totals.get(name, 0.0) + float(value)
    waiting = totals["scroogevm_points_queued"] + totals.get("scroogevm_points_spooled", 0.0)
    return Counters(
        totals["scroogevm_scrapes_total"],
        totals.get("scroogevm_scrapes_missed_total", 0.0),
        waiting,
        totals["scroogevm_points_written"],
    )


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[Store]:
    lock: list[sqlite3.Connection] = []

    def take_away() -> None:
        lock.append(sqlite3.connect(folder / "store.sqlite", isolation_level=None, timeout=30))
        lock[0].execute("BEGIN IMMEDIATE")

    yield Store("SQLite", {"INFLUXDB_URL": ""}, take_away, lambda: lock.pop().close())


@contextlib.contextmanager
def _influxdb(folder: Path) -> Iterator[Store]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = influxd_command(folder, port)
    with contextlib.ExitStack() as stack:
        running: list[contextlib.ExitStack] = []

        def start() -> None:
            running.append(stack.enter_context(contextlib.ExitStack()))
            running[-1].enter_context(process(command, stdout=subprocess.DEVNULL))
            wait_for_server(url)

        start()
        set_up(url)
        settings = {
            "INFLUXDB_URL": url,
            "INFLUXDB_TOKEN": TOKEN,
            "INFLUXDB_ORG": ORG,
            "INFLUXDB_BUCKET": BUCKET,
        }
        yield Store("InfluxDB", settings, lambda: running.pop().close(), start)


if __name__ == "__main__":
    sys.exit(main())
