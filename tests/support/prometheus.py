"""Real servers with the query API of Prometheus: with a history, or with targets that they scrape."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from model.store.prometheus_queries import quoted
from model.store.prometheus_server import Access
from model.store.settings import PrometheusSettings
from tests.support.servers import fetch, free_port, wait_for

#: Value at a time, Unix seconds; None where a scrape is missing.
Value = Callable[[float], float | None]


class OpenMetrics:
    """Text for ``promtool tsdb create-blocks-from openmetrics``, family by family.

    Parameters
    ----------
    times : sequence of float
        When the targets are scraped, Unix seconds.
    """

    def __init__(self, times: Sequence[float] = ()) -> None:
        self._times = times
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, labels: Mapping[str, str], value: Value, late_s: float = 0.0) -> None:
        """Add a series, scraped ``late_s`` after each time."""
        inside = ",".join(f"{key}={quoted(text)}" for key, text in labels.items())
        lines = self._families.setdefault(name, [])
        for time_s in self._times:
            sample = value(time_s + late_s)
            if sample is not None:
                lines.append(f"{name}{{{inside}}} {sample!r} {time_s + late_s}")

    def add_page(self, page: bytes, labels: Mapping[str, str], time_s: float) -> None:
        """Add all samples of a page, as a server does that scrapes it."""
        inside = ",".join(f"{key}={quoted(text)}" for key, text in labels.items())
        for line in page.decode().splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name, _, own = series.partition("{")
                both = f"{own[:-1]},{inside}" if own else inside
                self._families.setdefault(name, []).append(f"{name}{{{both}}} {value} {time_s:.3f}")

    def text(self) -> str:
        return "\n".join([*(line for family in self._families.values() for line in family), "# EOF\n"])


def require(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages prometheus and victoria-metrics)")


@contextlib.contextmanager
def running(command: Sequence[str | Path], url: str, folder: Path) -> Iterator[str]:
    """A server until it responds, and until the end of the block; the URL."""
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
    try:

        def is_ready() -> bool:
            assert server.poll() is None, log.read_text()[-2000:]
            return fetch(f"{url}/api/v1/query?query=vector(1)")[0] == 200

        wait_for(is_ready, 60, 0.1)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


@contextlib.contextmanager
def prometheus_server(
    folder: Path, text: str | None = None, scrape_configs: Sequence[object] = (), options: Sequence[str] = ()
) -> Iterator[str]:
    """URL of a Prometheus with a history, or that scrapes."""
    require("prometheus", "promtool")
    folder.mkdir(exist_ok=True)
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": list(scrape_configs)}))
    if text is not None:
        (folder / "history.om").write_text(text)
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "history.om", folder / "data"],
            check=True,
            capture_output=True,
            timeout=300,
        )
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *("--storage.tsdb.retention.time=100y", f"--web.listen-address=127.0.0.1:{port}", *options),
    ]
    with running(command, f"http://127.0.0.1:{port}", folder) as url:
        yield url


@contextlib.contextmanager
def victoria_metrics_server(folder: Path, text: str) -> Iterator[str]:
    """URL of a VictoriaMetrics with a history."""
    require("victoria-metrics")
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [
        *("victoria-metrics", f"-storageDataPath={folder / 'data'}", f"-httpListenAddr=127.0.0.1:{port}"),
        *("-retentionPeriod=100y", "-search.latencyOffset=1ms"),
    ]
    with running(command, f"http://127.0.0.1:{port}", folder) as url:
        # Its own import takes milliseconds.
        lines = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                series, value, time_s = line.rsplit(" ", 2)
                lines.append(f"{series} {value} {round(float(time_s) * 1000)}")
        body = "\n".join([*lines, ""]).encode()
        request = urllib.request.Request(f"{url}/api/v1/import/prometheus", data=body)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 204
        fetch(f"{url}/internal/force_flush")
        yield url


SERVERS = {"prometheus": prometheus_server, "victoria-metrics": victoria_metrics_server}


def settings_of(url: str, *, timeout_s: float = 30.0, queries_at_once: int = 4, **more: object) -> PrometheusSettings:
    return PrometheusSettings(Access(url, timeout_s=timeout_s, queries_at_once=queries_at_once), **more)  # type: ignore[arg-type]
