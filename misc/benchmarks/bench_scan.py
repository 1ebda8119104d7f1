#!/usr/bin/env python3
"""Measures a scan of a whole fleet from a real Prometheus: time, CPU and memory of both.

The history is made by promtool, and kept in --data, so that a second run starts at once. The server compacts it before,
as one does that has run for two weeks. The floor is the time in which
the same server gives one figure, the CPU time of all VMs, to a client that only receives it. Needs prometheus and
promtool.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser, whole_number

with require_libraries("live"):
    from misc.benchmarks.processes import cpu_s, free_port, process
    from misc.benchmarks.prometheus_history import BLOCK_S, FleetHistory

_END, _COMPACTED = "end", "compacted"
#: A server looks once a minute whether there is something to compact.
_IDLE_S, _IDLE_CPU_S = 90, 1.0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = Parser(prog="bench_scan.py", description=__doc__)
    add = parser.add_argument
    add("--nodes", type=whole_number(1), default=200, metavar="N", help="nodes (200)")
    add("--vms", type=whole_number(1), default=30, metavar="N", help="VMs of each (30)")
    add("--days", type=whole_number(1), default=14, metavar="N", help="length of the history (14)")
    add("--interval", type=whole_number(1), default=60, metavar="S", help="seconds between scrapes (60)")
    add("--data", type=Path, metavar="FOLDER", help="where the history is kept (default: nowhere)")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = args.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_scan.")))
        folder.mkdir(parents=True, exist_ok=True)
        history = FleetHistory(args.nodes, args.vms, args.interval, _blocks(folder, args.days))
        _make(history, folder)
        _compact(folder)
        url, server = stack.enter_context(_prometheus(folder))
        _floor(url, history)
        return _scan(url, server, args.days)


def _blocks(folder: Path, days: int) -> range:
    """The blocks until two hours from now, or until the end of those that are in the folder."""
    file = folder / _END
    if not file.exists():
        file.write_text(str(int(time.time()) // BLOCK_S + 2))
    end = int(file.read_text())
    return range(end - days * 86400 // BLOCK_S, end)


def _make(history: FleetHistory, folder: Path) -> None:
    begun = time.monotonic()
    with ProcessPoolExecutor() as pool:
        parts = os.cpu_count() or 1
        made = sum(pool.map(_make_part, [(history, folder, part, parts) for part in range(parts)]))
    print(
        f"{history.nodes} nodes x {history.vms} VMs, {history.samples / 1e6:,.0f} million samples, every "
        f"{history.interval_s} s: {made} of {len(history.blocks)} blocks made in {time.monotonic() - begun:.0f} s",
        flush=True,
    )


def _make_part(job: tuple[FleetHistory, Path, int, int]) -> int:
    history, folder, part, parts = job
    return sum(1 for _ in history.make(folder, part, parts))


def _compact(folder: Path) -> None:
    """Wait until a server has merged the blocks of two hours to longer ones."""
    if (folder / _COMPACTED).exists():
        return
    begun = time.monotonic()
    with _prometheus(folder) as (_, pid):
        used_s = -_IDLE_CPU_S
        while (now_s := cpu_s(pid)) - used_s >= _IDLE_CPU_S:
            used_s = now_s
            time.sleep(_IDLE_S)
    (folder / _COMPACTED).touch()
    print(f"{len(list(folder.glob('*/meta.json')))} blocks after {time.monotonic() - begun:.0f} s", flush=True)


@contextlib.contextmanager
def _prometheus(folder: Path) -> Iterator[tuple[str, int]]:
    """URL and process of a server, once it has loaded its blocks."""
    config, port = folder / "prometheus.yml", free_port()
    config.write_text('{"scrape_configs": []}')
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}"),
        *("--storage.tsdb.retention.time=15d", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "log").open("w") as log, process(command, stdout=log, stderr=log) as running:
        url = f"http://127.0.0.1:{port}"
        while not _is_ready(url):
            time.sleep(0.2)
        yield url, running.pid


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as response:  # noqa: S310  # own server
            return bool(response.status == 200)
    except OSError:
        return False


def _floor(url: str, history: FleetHistory) -> None:
    """Receive the CPU time of all VMs in steps of five minutes, a day and a tenth of the nodes at a time."""
    begun, size = time.monotonic(), 0
    for block in range(history.blocks.start, history.blocks.stop, 12):
        for first in range(0, history.nodes, 10):
            nodes = "|".join(f"node{i:04}:9177" for i in range(first, min(first + 10, history.nodes)))
            form = {
                "query": f'libvirt_domain_info_cpu_time_seconds_total{{instance=~"{nodes}"}}',
                **{"start": str(block * BLOCK_S), "end": str((block + 12) * BLOCK_S - 1), "step": "300"},
            }
            body = urllib.parse.urlencode(form).encode()
            with urllib.request.urlopen(f"{url}/api/v1/query_range", body, timeout=300) as response:  # noqa: S310
                size += len(response.read())
    print(f"floor: CPU time of all VMs {time.monotonic() - begun:7.1f} s, {size / 1e6:,.0f} MB", flush=True)


def _scan(url: str, server: int, days: int) -> int:
    begun, server_s = time.monotonic(), cpu_s(server)
    command = [sys.executable, ROOT / "scroogevm.py", "--scan", f"--prometheus={url}", f"--days={days}", "--json"]
    env = {**os.environ, "INFLUXDB_URL": "", "SCHED_NODES": ""}
    most_mb = server_mb = 0.0
    with tempfile.TemporaryFile() as output, process(command, env=env, stdout=output) as running:
        while running.poll() is None:
            most_mb = max(most_mb, sum(_own_mb(pid) for pid in _tree(running.pid)))
            server_mb = max(server_mb, _own_mb(server))
            time.sleep(0.5)
        output.seek(0)
        answer = json.loads(output.read() or b"{}")
    wall_s, used = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    nodes = answer.get("nodes", [])
    print(f"scan: {wall_s:.1f} s, exit code {running.returncode}, {sum(not one['error'] for one in nodes)} nodes")
    print(f"    {answer.get('sentence', 'no answer')}; {answer.get('totals', {}).get('compared', 0)} slices compared")
    print(f"    ours    {used.ru_utime + used.ru_stime:7.1f} s CPU (with the making), {most_mb:7.0f} MB at most")
    print(f"    server  {cpu_s(server) - server_s:7.1f} s CPU, {server_mb:7.0f} MB at most")
    return int(running.returncode)


def _tree(pid: int) -> list[int]:
    """A process and those that it started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _own_mb(pid: int) -> float:
    """Memory of a process that is not mapped from a file, MB; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    raise SystemExit(main())
