#!/usr/bin/env python3
"""Measures rounds of updates of many resource providers of a real OpenStack Placement.

Placement runs on SQLite with one thread. The floor sends the same number of requests to it on one connection, without
login, checks and decisions.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    import requests

    from model.publishers.placement.ratio import NodeCapacity, ResourceCapacity
    from model.publishers.placement.reconciler import PlacementReconciler
    from model.publishers.settings import ALL_NODES, AUTO, PlacementSettings, Token

with require_libraries("tests"):
    from tests.support.servers import PlacementServer, placement_server

_CPU, _MEM = 64, 262144


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_placement.py", description=__doc__)
    parser.add_argument("--nodes", type=whole_number(1), default=1000, metavar="N", help="providers (1000)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench_placement.") as folder, placement_server(Path(folder)) as server:
        _measure(server, args.nodes, Path(folder))
    return 0


def _measure(server: PlacementServer, number: int, folder: Path) -> None:
    hosts = [f"compute{i}.example.org" for i in range(number)]
    providers = _create(server, hosts)
    clock = _Clock()
    reconciler = PlacementReconciler(_settings(server.url, folder), clock)
    one_falls = [*_capacities(hosts[:1], 0.0, 180.0), *_capacities(hosts[1:], 20.0, 180.0)]

    def poll() -> None:
        clock.ahead_s += 1000.0
        reconciler.poll()

    rows: list[tuple[str, Callable[[], object]]] = [
        ("first round, all written", lambda: reconciler.publish(_capacities(hosts, 12.0, 60.0))),
        ("slice end, all written", lambda: reconciler.publish(_capacities(hosts, 20.0, 120.0))),
        ("slice end, none changed", lambda: reconciler.publish(_capacities(hosts, 20.0, 180.0))),
        ("one node falls to 0", lambda: reconciler.publish(one_falls)),
        ("poll of all", poll),
    ]
    floor_s = _floor(server.url, providers)
    print(f"{number} providers; a request takes {1000 * floor_s:.1f} ms (floor)")
    for name, work in rows:
        with mock.patch.object(
            requests.Session, "request", autospec=True, side_effect=requests.Session.request
        ) as sent:
            wall_s, cpu_s = _time(work)
        each = sent.call_count / number
        of_floor = wall_s / (floor_s * sent.call_count)
        print(f"{name:26}{each:6.2f} requests each{wall_s:8.1f} s{cpu_s:8.2f} s CPU   x {of_floor:.2f}")


class _Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


def _time(work: Callable[[], object]) -> tuple[float, float]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _create(server: PlacementServer, hosts: list[str]) -> list[str]:
    inventory = {"min_unit": 1, "step_size": 1, "allocation_ratio": 1.0}
    classes = {
        "VCPU": {**inventory, "total": _CPU, "max_unit": _CPU, "reserved": 0},
        "MEMORY_MB": {**inventory, "total": _MEM, "max_unit": _MEM, "reserved": 4096},
        "DISK_GB": {**inventory, "total": 4000, "max_unit": 4000, "reserved": 0},
    }
    return [server.provider(host, **classes) for host in hosts]


def _settings(url: str, folder: Path) -> PlacementSettings:
    return PlacementSettings(
        providers={ALL_NODES: AUTO},
        login=Token(url, "admin"),
        ca_file="",
        timeout_s=30.0,
        round_timeout_s=3600.0,
        least_ratio=1.0,
        most_ratio=16.0,
        state_path=folder / "written.json",
    )


def _capacities(hosts: list[str], free: float, figures_s: float) -> list[NodeCapacity]:
    cpu = ResourceCapacity(_CPU + free, 0.0, _CPU, 1.0, figures_s)
    mem = ResourceCapacity(_MEM + free, 0.0, _MEM, 8192.0, figures_s)
    return [NodeCapacity(f"http://{host}:9100/metrics", cpu, mem) for host in hosts]


def _floor(url: str, providers: list[str]) -> float:
    """Seconds of one request of the cheapest kind that is needed."""
    with requests.Session() as session:
        session.headers.update({"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.26"})
        some = providers[:200]
        begin = time.perf_counter()
        for provider in some:
            session.get(f"{url}/resource_providers/{provider}/usages", timeout=60).json()
        return (time.perf_counter() - begin) / len(some)


if __name__ == "__main__":
    sys.exit(main())
