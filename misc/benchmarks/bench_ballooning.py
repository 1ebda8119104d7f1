#!/usr/bin/env python3
"""Measures the computations of ballooning: the first read of an hour of samples of every VM from a SQLite store, later
incremental reads, and the plan of all hosts, compared with the percentiles of the same samples alone.

No hypervisor is queried; nothing is asserted.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    import numpy as np

    from model.ballooning.guests import Guest, ObservedGuest
    from model.ballooning.plan import Situation, plan
    from model.ballooning.rules import Rules
    from model.ballooning.sessions import Action
    from model.ballooning.usage_cache import UsageCache
    from model.samples import ScrapeSample
    from model.store.sqlite import SqliteStore


_SCOPE_S = 3600
_DELAY_S = 5
_SLEEP_S = 60


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = Parser(prog="bench_ballooning.py", description=__doc__)
    for flag, default, meaning in (("--hosts", 20, "hosts"), ("--vms", 25, "VMs of each")):
        parser.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=f"{meaning} ({default})")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        store = SqliteStore(Path(name) / "store.sqlite", 86400)
        _measure(store, [f"http://w{i}/" for i in range(args.hosts)], args.vms)
        store.close()
    return 0


def _measure(store: SqliteStore, nodes: list[str], vms: int) -> None:
    start_s = float(int(time.time())) - _SCOPE_S
    end_s = start_s + _SCOPE_S
    _fill(store, nodes, vms, start_s, end_s)
    samples = _SCOPE_S // _DELAY_S
    print(f"{len(nodes)} hosts x {vms} VMs x {samples} samples, one every {_DELAY_S} s")

    first_ms = _median(lambda: UsageCache(store, _SCOPE_S).refresh(nodes, end_s), 3)
    print(f"first read of the window:     {first_ms:8.1f} ms")
    cache = UsageCache(store, _SCOPE_S)
    cache.refresh(nodes, end_s)
    times_ms = []
    for k in range(5):
        # Samples that arrive between two plans.
        now_s = end_s + k * _SLEEP_S
        _fill(store, nodes, vms, now_s, now_s + _SLEEP_S)
        times_ms.append(_time_ms(lambda now_s=now_s: cache.refresh(nodes, now_s + _SLEEP_S)))  # type: ignore[misc]
    print(f"incremental read of {_SLEEP_S} s:    {statistics.median(times_ms):8.1f} ms")

    now_s = end_s + 5 * _SLEEP_S
    rules = Rules()
    hosts = {node: _guests(vms, now_s) for node in nodes}

    def all_plans() -> list[list[Action]]:
        return [plan(Situation(node, now_s, hosts[node], cache.usage(node, now_s) or {}), rules) for node in nodes]

    kinds = [action.kind for actions in all_plans() for action in actions]
    plan_ms = _median(all_plans)
    periods = [store.read(node, int((now_s - _SCOPE_S) * 1000), int(now_s * 1000), ("mem_usage",)) for node in nodes]
    arrays = [one.fields["mem_usage"] for period in periods for one in period.domains.values()]
    floor_ms = _median(lambda: [np.percentile(array, 90.0) for array in arrays])
    print(f"plan of all {len(kinds)} VMs:         {plan_ms:8.1f} ms, {kinds.count('squeeze')} sessions start")
    print(f"    percentiles alone:        {floor_ms:8.1f} ms, ratio {plan_ms / floor_ms:.2f}")


def _fill(store: SqliteStore, nodes: list[str], vms: int, start_s: float, end_s: float) -> None:
    generator = random.Random(start_s)  # noqa: S311  # not for cryptography

    def vm() -> dict[str, float]:
        usage = generator.uniform(500, 1500)
        return {"cpu": 2.0, "mem": 4096.0, "cpu_usage": generator.random(), "mem_usage": usage, "mem_rss": 3500.0}

    for second in range(int(start_s), int(end_s), _DELAY_S):
        scrapes = [
            ScrapeSample(node, second * 1000, {"cpu": 64.0}, {f"vm{i:03d}": vm() for i in range(vms)}) for node in nodes
        ]
        store.write([store.encode(scrape) for scrape in scrapes])


def _guests(vms: int, now_s: float) -> dict[str, ObservedGuest]:
    figures = {"rss_mb": 3500.0, "unused_mb": 2500.0, "available_mb": 4054.0, "reported_s": now_s, "swapped_kb": 0.0}
    guests = [Guest(f"uuid-{i}", f"vm-{i:03d}", 4096.0, 4096.0, **figures) for i in range(vms)]
    return {guest.uuid: ObservedGuest(guest, now_s, now_s, 5.0) for guest in guests}


def _time_ms(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return (time.perf_counter() - start) * 1000


def _median(job: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a job, ms; the first round is a warm-up and is dropped."""
    return statistics.median([_time_ms(job) for _ in range(rounds + 1)][1:])


if __name__ == "__main__":
    sys.exit(main())
