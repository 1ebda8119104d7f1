#!/usr/bin/env python3
"""Measures what ballooning reckons: reading an hour of samples of every VM from a SQLite store, what is new of them
later, and the plan of all hosts; beside the bare percentiles of the same samples.

No hypervisor is asked; nothing is asserted.
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
    from model.ballooning.plan import Action, Situation, plan
    from model.ballooning.rules import Rules
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
    print(f"first read of the scope:      {first_ms:8.1f} ms")
    metrics = UsageCache(store, _SCOPE_S)
    metrics.refresh(nodes, end_s)
    took = []
    for k in range(5):
        # What comes between two plans.
        now_s = end_s + k * _SLEEP_S
        _fill(store, nodes, vms, now_s, now_s + _SLEEP_S)
        took.append(_took_ms(lambda now_s=now_s: metrics.refresh(nodes, now_s + _SLEEP_S)))  # type: ignore[misc]
    print(f"read of what is new in {_SLEEP_S} s: {statistics.median(took):8.1f} ms")

    now_s = end_s + 5 * _SLEEP_S
    rules = Rules()
    hosts = {node: _guests(vms, now_s) for node in nodes}

    def all_plans() -> list[list[Action]]:
        return [plan(Situation(node, now_s, hosts[node], metrics.of(node, now_s) or {}), rules) for node in nodes]

    kinds = [action.kind for actions in all_plans() for action in actions]
    plan_ms = _median(all_plans)
    read = [store.read(node, int((now_s - _SCOPE_S) * 1000), int(now_s * 1000), ("mem_usage",)) for node in nodes]
    arrays = [one.fields["mem_usage"] for period in read for one in period.domains.values()]
    floor_ms = _median(lambda: [np.percentile(array, 90.0) for array in arrays])
    print(f"plan of all {len(kinds)} VMs:         {plan_ms:8.1f} ms, {kinds.count('squeeze')} sessions begin")
    print(f"    their percentiles alone:  {floor_ms:8.1f} ms, ratio {plan_ms / floor_ms:.2f}")


def _fill(store: SqliteStore, nodes: list[str], vms: int, start_s: float, end_s: float) -> None:
    dice = random.Random(start_s)  # noqa: S311  # figures to fill a store with

    def vm() -> dict[str, float]:
        usage = dice.uniform(500, 1500)
        return {"cpu": 2.0, "mem": 4096.0, "cpu_usage": dice.random(), "mem_usage": usage, "mem_rss": 3500.0}

    for second in range(int(start_s), int(end_s), _DELAY_S):
        ticks = [
            ScrapeSample(node, second * 1000, {"cpu": 64.0}, {f"vm{i:03d}": vm() for i in range(vms)}) for node in nodes
        ]
        store.write([store.encode(tick) for tick in ticks])


def _guests(vms: int, now_s: float) -> dict[str, ObservedGuest]:
    plan_lines = {"rss_mb": 3500.0, "unused_mb": 2500.0, "available_mb": 4054.0, "reported_s": now_s, "swapped_kb": 0.0}
    guests = [Guest(f"uuid-{i}", f"vm-{i:03d}", 4096.0, 4096.0, **plan_lines) for i in range(vms)]
    return {guest.uuid: ObservedGuest(guest, now_s, now_s, 5.0) for guest in guests}


def _took_ms(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return (time.perf_counter() - start) * 1000


def _median(job: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a job, ms; the first round warms up and does not count."""
    return statistics.median([_took_ms(job) for _ in range(rounds + 1)][1:])


if __name__ == "__main__":
    sys.exit(main())
