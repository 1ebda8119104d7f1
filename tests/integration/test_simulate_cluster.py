"""``misc/simulate.py`` in worker processes and on a real Dask cluster, some of which are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.simulation.draw import DrawSettings, SampledVm, draw_workload
from model.simulation.workload_file import write_workload
from tests.conftest import ROOT, bare_environment
from tests.support.clusters import Cluster
from tests.support.processes import process_group
from tests.support.servers import wait_for
from tests.support.simulation import run_simulate

#: Runs of a tenth of a second, but for those of rclike, which take seconds.
SHORT = ("--strategy=borg", "--ratio=1,3", "--nodes=3", "--node-cores=16")
LONG = ("--strategy=borg,rclike", "--ratio=1", "--nodes=30", "--node-cores=16")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of arrivals; its arrays are so large that workers share them."""
    rng = np.random.default_rng(3)
    vms = [
        SampledVm(float(size), 2048.0, rng.random(2880).astype(np.float32), rng.random(2880).astype(np.float32))
        for size in rng.choice([1, 2, 4], 120)
    ]
    path = tmp_path_factory.mktemp("workload") / "week.json"
    write_workload(path, draw_workload(vms, 300.0, DrawSettings(nodes=20, days=5), 1))
    return path


@pytest.fixture(scope="module")
def expected(workload: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of the short runs, computed in this process."""
    folder = tmp_path_factory.mktemp("expected")
    assert run_simulate(workload, *SHORT, "--output", folder).code == 0
    return (folder / "simulation.csv").read_bytes()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "misc" / "simulate.py"), *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=180, env=bare_environment(), check=False
    )


def started(*arguments: str | Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The command line as the leader of a process group, which is killed in the end."""
    return process_group(command(*arguments))


def finished_runs(folder: Path) -> int:
    return len(list((folder / "done").glob("*.json")))


def busiest_worker(leader: int) -> int | None:
    """The process of a group, without its leader, that has used the most CPU time; None when there is none."""
    used = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and int(status.parent.name) != leader:
                used[int(status.parent.name)] = int(fields[11]) / os.sysconf("SC_CLK_TCK")
    return max(used, key=lambda pid: used[pid], default=None)


# --- worker processes -----------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_table_of_a_single_process(
    workload: Path, expected: bytes, tmp_path: Path
) -> None:
    # More workers than tasks are not started.
    for jobs in (1, 2, 999):
        finished = run(workload, *SHORT, f"--jobs={jobs}", "--output", tmp_path / str(jobs))
        assert (finished.returncode, finished.stderr) == (0, "")
        assert (tmp_path / str(jobs) / "simulation.csv").read_bytes() == expected


def test_killed_worker_costs_no_run_that_succeeds_when_it_is_repeated(workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(workload, *LONG, "--jobs=2", "--output", out) as process:
        # A worker that has finished a run is in the next one.
        wait_for(lambda: finished_runs(out), seconds=120, every=0.01)
        worker = busiest_worker(process.pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        assert not (out / "simulation.csv").exists()
        _, error = process.communicate(timeout=180)
    assert (process.returncode, error) == (0, "")
    assert (out / "simulation.csv").read_text().count("\n") > 5


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_finished_runs_and_leaves_no_process(
    workload: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    with started(workload, *LONG, "--jobs=1", "--output", out) as process:
        wait_for(lambda: finished_runs(out), seconds=120)
        os.killpg(process.pid, sent)
        _, error = process.communicate(timeout=30)
        assert (process.returncode, error) == (130, "simulate.py: interrupted; run the same command to continue\n")

        def no_process_left() -> bool:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(no_process_left)
    assert [path.name for path in out.iterdir()] == ["done"]
    kept = {path: path.stat().st_mtime_ns for path in (out / "done").iterdir()}
    finished = run(workload, *LONG, "--output", out)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# --- a Dask cluster -------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    (tmp_path / "cluster").mkdir()
    one = Cluster(tmp_path / "cluster")
    yield one
    one.stop()


def test_cluster_gives_the_table_of_a_single_process_even_when_it_loses_a_worker(
    cluster: Cluster, workload: Path, expected: bytes, tmp_path: Path
) -> None:
    cluster.start_workers(2)
    out = tmp_path / "out"
    with started(workload, *SHORT, f"--dask={cluster.address}", "--output", out) as process:
        wait_for(lambda: finished_runs(out), seconds=120, every=0.02)
        cluster.workers[0].kill()
        _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert (out / "simulation.csv").read_bytes() == expected


def test_lost_scheduler_is_one_line_and_finished_runs_are_kept(
    cluster: Cluster, workload: Path, tmp_path: Path
) -> None:
    cluster.start_workers(1)
    out = tmp_path / "out"
    with started(workload, *LONG, f"--dask={cluster.address}", "--output", out) as process:
        wait_for(lambda: finished_runs(out), seconds=120)
        cluster.scheduler.kill()
        _, error = process.communicate(timeout=60)
    cause = "lost the scheduler; finished runs are kept"
    assert (process.returncode, error) == (2, f"simulate.py: --dask: {cluster.address}: {cause}\n")
    assert not (out / "simulation.csv").exists()


def test_address_without_a_scheduler_is_one_line(workload: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    begun = time.monotonic()
    finished = run_simulate(workload, *SHORT, "--dask=nowhere", "--output", tmp_path)
    assert finished.code == 2
    assert finished.err.count("\n") == 1
    assert "--dask: nowhere: missing port number" in finished.err
    assert time.monotonic() - begun < 60
