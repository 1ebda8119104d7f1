"""A Dask cluster on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import bare_environment
from tests.support.servers import wait_for


class Cluster:
    """A scheduler and its workers, processes on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self._count = 0
        file = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--no-show", "--scheduler-file", str(file))
        self.address: str = wait_for(lambda: json.loads(file.read_text() or "{}").get("address"))

    def _start(self, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *arguments], stdout=log, stderr=log, cwd=self.folder, env={**bare_environment(), **env}
            )

    def start_workers(self, count: int, **env: str) -> None:
        for _ in range(count):
            self._count += 1
            name = f"worker-{self._count}"
            options = ["--no-nanny", "--nthreads", "1", "--name", name, "--local-directory", str(self.folder / name)]
            self.workers.append(self._start("dask_worker", self.address, *options, **env))
        log = self.folder / "dask_worker.log"
        wait_for(lambda: log.read_text().count("Registered to:") >= self._count, seconds=60)

    def stop_workers(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
        self.workers.clear()

    def stop(self) -> None:
        self.stop_workers()
        self.scheduler.kill()
        self.scheduler.wait()
