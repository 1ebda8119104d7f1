"""Processes of the benchmarks: simulated workers, daemons, and what the system says of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import misc.fakeworkers.server  # noqa: F401  # a missing library is noticed before a process starts

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def process(command: list[Any], **options: Any) -> Iterator[Any]:
    """Run a process as long as the block; SIGTERM ends it."""
    running = subprocess.Popen([str(argument) for argument in command], **options)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        if running.stdout is not None:
            running.stdout.close()


@contextlib.contextmanager
def fake_workers(workers: int, vms: int, probe_delay_ms: int, *options: str) -> Iterator[list[Any]]:
    """Serve simulated workers; the entries of AGGREG_STUB_LIST."""
    command = [sys.executable, ROOT / "misc" / "fakeworkers", "--port=0", "--print-stubs"]
    plan = [f"--workers={workers}", f"--vms={vms}", f"--probe-delay-ms={probe_delay_ms}", *options]
    with process([*command, *plan], stdout=subprocess.PIPE, text=True) as running:
        lines = iter(running.stdout)
        next(lines)
        yield json.loads(next(lines))


def control(stubs: list[Any], **order: Any) -> None:
    """Send an order to the simulated workers."""
    url = stubs[0][0] if isinstance(stubs[0], list) else stubs[0]["node"]
    base = url.split("/worker-")[0]
    request = urllib.request.Request(f"{base}/control", json.dumps(order).encode())  # noqa: S310  # own server
    urllib.request.urlopen(request, timeout=30).read()  # noqa: S310


@contextlib.contextmanager
def daemon(program: str, settings: Mapping[str, str], root: Path = ROOT, **options: Any) -> Iterator[int]:
    """Run one of the programs with settings in the environment; its process id."""
    env = {**os.environ, "INFLUXDB_URL": "", **settings}
    with process([sys.executable, root / program], env=env, **options) as running:
        yield running.pid


def influxd_command(folder: Path, port: int) -> list[Any]:
    """Command line of an InfluxDB server on the loopback, with all of its files in a folder."""
    paths = {"bolt": "bolt", "engine": "engine", "sqlite": "influx.sqlite"}
    return [
        *("influxd", "run", "--reporting-disabled", "--log-level=error", f"--http-bind-address=127.0.0.1:{port}"),
        *(f"--{name}-path={folder / file}" for name, file in paths.items()),
    ]


def cpu_s(pid: int) -> float:
    """CPU time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def file_mb(path: Path) -> float:
    """Size of a file, MB; 0 if it does not exist."""
    return path.stat().st_size / 2**20 if path.exists() else 0.0


def free_port() -> int:
    """A port of the loopback that is free at the moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def open_files(pid: int) -> int:
    """Number of file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """Number of threads of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
