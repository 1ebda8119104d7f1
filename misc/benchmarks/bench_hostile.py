#!/usr/bin/env python3
"""Measures what one hostile worker costs the others: their pace, and CPU, memory and store of the aggregator.

Each attack runs against an aggregator of its own: good workers beside a hostile one, whose page asks for ten scrapes
a second. The pace of a worker is the number of its successful scrapes, compared with the undisturbed aggregator.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries, run_interruptible
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    from prometheus_client.parser import text_string_to_metric_families

    from misc.benchmarks.processes import control, cpu_s, daemon, fake_workers, file_mb, free_port, rss_mb
    from misc.fakeworkers.attacks import ATTACKS

_VMS = 10
_DELAY_S = 1.0
_HOSTILE_DELAY_MS = 100
_HEADER = f"{'attack':20} {'worst':>7} {'mean':>7} {'CPU':>7} {'RSS MB':>7} {'most':>6} {'store MB':>9} {'hostile':>8}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured under an attack.

    Attributes
    ----------
    paces : sequence of float
        Of each good worker, successful scrapes per second.
    hostile_pace : float
        Of the hostile worker.
    cpu : float
        Cores.
    rss_mb, highest_rss_mb, store_mb : float
    """

    paces: Sequence[float]
    hostile_pace: float
    cpu: float
    rss_mb: float
    highest_rss_mb: float
    store_mb: float


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_hostile.py", description=__doc__)
    for flag, default, meaning in (
        ("--nodes", 200, f"good workers, of {_VMS} VMs each"),
        ("--seconds", 30, "length of each attack, after the first rounds"),
    ):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"{meaning} ({default})")
    parser.add_argument(
        "--attack", action="append", choices=[*ATTACKS, "hang"], help="only this one; may be repeated (all)"
    )
    parser.add_argument("--format", choices=("vmprobe", "labels"), default="vmprobe", help="of the hostile worker")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout whose vmaggreg.py is measured (this one)")
    args = parser.parse_args(argv)
    attacks = args.attack or [*ATTACKS, "hang"]
    return run_interruptible(lambda: _run(attacks, args.nodes, args.seconds, args.format, args.root), lambda: 130)


def _run(attacks: Sequence[str], nodes: int, seconds: int, hostile_format: str, root: Path) -> int:
    with fake_workers(nodes, _VMS, int(_DELAY_S * 1000)) as good:
        print(f"{nodes} good workers x {_VMS} VMs every {_DELAY_S:g} s, {seconds} s for each attack")
        print(_HEADER, flush=True)
        usual: Outcome | None = None
        for attack in ["none", *attacks]:
            with fake_workers(1, _VMS, _HOSTILE_DELAY_MS, f"--format={hostile_format}") as hostile:
                outcome = _measure(good, hostile, attack, seconds, root)
            usual = usual or outcome
            _print(attack, outcome, statistics.median(usual.paces))
    return 0


def _measure(good: list[Any], hostile: list[Any], attack: str, seconds: int, root: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        path, port = Path(folder) / "store.sqlite", free_port()
        settings = {
            "AGGREG_STUB_LIST": json.dumps([*good, *hostile]),
            "AGGREG_FETCH_DELAY": "0",
            "AGGREG_METRICS_PORT": str(port),
            "STORE_PATH": str(path),
        }
        with (Path(folder) / "log").open("wb") as log, daemon("vmaggreg.py", settings, root, stderr=log) as pid:
            # The first interval is 5 s, whatever a page says.
            time.sleep(5 + 3 * _DELAY_S)
            control(hostile, worker="all", fault=attack)
            before = _scrapes(port)
            start_s, start_cpu_s = time.monotonic(), cpu_s(pid)
            highest_mb = 0.0
            while time.monotonic() < start_s + seconds:
                time.sleep(0.2)
                highest_mb = max(highest_mb, rss_mb(pid))
            after, elapsed_s = _scrapes(port), time.monotonic() - start_s
            cpu = (cpu_s(pid) - start_cpu_s) / elapsed_s
            last_mb, store_mb = rss_mb(pid), file_mb(path)
    paces = {node: (after[node] - before[node]) / elapsed_s for node in after}
    hostile_pace = paces.pop(hostile[0][0] if isinstance(hostile[0], list) else hostile[0]["node"])
    return Outcome(list(paces.values()), hostile_pace, cpu, last_mb, highest_mb, store_mb)


def _scrapes(port: int) -> Counter[str]:
    """Successful scrapes so far of each worker."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    scrapes: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in {"scroogevm_scrapes_total", "scroogevm_scrape_failures_total"}:
                sign = 1 if sample.name == "scroogevm_scrapes_total" else -1
                scrapes[sample.labels["node"]] += sign * int(sample.value)
    return scrapes


def _print(attack: str, outcome: Outcome, usual: float) -> None:
    print(
        f"{attack:20} {min(outcome.paces) / usual:7.0%} {statistics.fmean(outcome.paces) / usual:7.1%} "
        f"{outcome.cpu:7.1%} {outcome.rss_mb:7.0f} {outcome.highest_rss_mb:6.0f} {outcome.store_mb:9.1f} "
        f"{outcome.hostile_pace:8.2f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
