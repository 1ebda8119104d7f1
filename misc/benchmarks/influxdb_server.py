"""A new InfluxDB server on the loopback, for a benchmark."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from misc.benchmarks.processes import free_port, influxd_command, process

#: Its token, organisation and bucket.
TOKEN, ORG, BUCKET = "t" * 20, "o", "b"


@contextlib.contextmanager
def influxdb_server(folder: Path) -> Iterator[str]:
    """Run a server that has all of its files in a folder; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(influxd_command(folder, port), stdout=subprocess.DEVNULL):
        wait_for_server(url)
        set_up(url)
        yield url


def set_up(url: str) -> None:
    """Create organisation, bucket and token of a new server."""
    setup = {"username": "u", "password": "p" * 12, "org": ORG, "bucket": BUCKET, "token": TOKEN}
    request = urllib.request.Request(f"{url}/api/v2/setup", json.dumps(setup).encode())  # noqa: S310
    urllib.request.urlopen(request, timeout=30).read()  # noqa: S310


def wait_for_server(url: str) -> None:
    """Wait until a server responds, for a minute at most."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5).read()  # noqa: S310
            return
        time.sleep(0.1)
