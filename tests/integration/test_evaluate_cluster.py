"""``misc/evaluate.py`` in worker processes and on a real Dask cluster, some of which are killed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, bare_environment
from tests.support.clusters import Cluster
from tests.support.evaluation import run_main, same_tables, table, write_traces
from tests.support.processes import process_group
from tests.support.servers import free_port, wait_for

MIXES = ("increasing", "decreasing", "bursty")
#: The trace of this name is a pipe in some tests: a worker waits in it until the test goes on.
HELD = "held"
#: Traces of which pictures are drawn.
DRAWN = ("bursty", "increasing")
VARIANTS = ("--strategy=conformal,rclike", "--risk=0.05,0.2")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_traces(tmp_path_factory.mktemp("traces"), MIXES)
    shutil.copy(folder / "bursty.json", folder / f"{HELD}.json")
    return folder


@pytest.fixture(scope="module")
def expected(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an evaluation in this process, without workers."""
    folder = tmp_path_factory.mktemp("expected")
    assert run_main(traces, "--output", folder, *VARIANTS).code == 0
    return folder


@pytest.fixture(scope="module")
def drawn(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with pictures, from worker processes."""
    folder = tmp_path_factory.mktemp("drawn")
    finished = run(*(traces / f"{name}.json" for name in DRAWN), "--output", folder, *VARIANTS, "--pictures")
    assert (finished.returncode, finished.stderr) == (0, "")
    return folder


class HeldTrace:
    """A folder of traces, one of which is a pipe: reading it blocks."""

    def __init__(self, traces: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(traces, folder)
        self._pipe = folder / f"{HELD}.json"
        self._content = self._pipe.read_bytes()
        self._pipe.unlink()
        os.mkfifo(self._pipe)
        self._end = os.open(self._pipe, os.O_RDWR)
        self._killed = {os.getpid()}

    def reader(self) -> int | None:
        """Process id of a worker that reads the pipe and was not killed."""
        for file in Path("/proc").glob("[0-9]*/fd/*"):
            pid = int(file.parts[2])
            with contextlib.suppress(OSError):
                if pid not in self._killed and file.readlink() == self._pipe:
                    return pid
        return None

    def kill_reader(self) -> None:
        pid = wait_for(self.reader, seconds=60)
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def release(self) -> None:
        """Let a reader have the whole trace."""
        wait_for(self.reader, seconds=60)
        os.write(self._end, self._content)
        self.close()

    def replace(self) -> None:
        """Make the pipe an ordinary trace."""
        self.close()
        self._pipe.unlink()
        self._pipe.write_bytes(self._content)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._end)


@pytest.fixture
def held(traces: Path, tmp_path: Path) -> Iterator[HeldTrace]:
    one = HeldTrace(traces, tmp_path / "traces")
    yield one
    one.close()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "misc" / "evaluate.py"), *map(str, arguments)]


def run(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=bare_environment(), check=False, **how
    )


def started(*arguments: str | Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The command line as the leader of a process group, which is killed in the end."""
    return process_group(command(*arguments))


def done(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "done").glob("*.json"))


def all_but_held_done(folder: Path) -> bool:
    return done(folder) == sorted(MIXES)


# --- worker processes -------------------------------------------------------------------------------


def test_workers_give_the_tables_of_a_single_process(drawn: Path, traces: Path, tmp_path: Path) -> None:
    named = [traces / f"{name}.json" for name in DRAWN]
    assert run_main(*named, "--output", tmp_path, *VARIANTS).code == 0
    assert same_tables(drawn, tmp_path)


def test_pictures_of_every_trace_and_of_the_front_are_drawn(drawn: Path) -> None:
    pictures = list((drawn / "traces").iterdir())
    names = [f"{name}-{resource}.png" for name in DRAWN for resource in ("cpu", "mem")]
    assert sorted(path.name for path in pictures) == sorted(names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (*pictures, drawn / "pareto.png"))


def test_killed_evaluation_loses_only_the_running_trace(held: HeldTrace, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (held.folder, "--output", out, *VARIANTS, "--jobs=1", "--no-pictures")
    with started(*arguments):
        wait_for(lambda: all_but_held_done(out) and held.reader(), seconds=60)
    assert not (out / "results.csv").exists()
    held.replace()
    finished = run_main(*arguments)
    assert (finished.code, finished.err) == (0, "evaluate.py: 3 of 4 traces are already done\n")
    assert same_tables(out, expected)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_finished_traces_and_leaves_no_process(
    held: HeldTrace, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    with started(held.folder, "--output", out, *VARIANTS, "--jobs=1", "--no-pictures") as process:
        wait_for(lambda: all_but_held_done(out) and held.reader(), seconds=60)
        # A terminal signals every process of the group, and so does a service manager.
        os.killpg(process.pid, sent)
        _, error = process.communicate(timeout=30)
        assert (process.returncode, error) == (130, "evaluate.py: interrupted; run the same command to continue\n")
        assert done(out) == sorted(MIXES)

        def no_process_left() -> bool:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(no_process_left)


def test_trace_that_ends_its_worker_is_reported_and_the_others_evaluated(
    held: HeldTrace, traces: Path, tmp_path: Path
) -> None:
    """As the kernel's out-of-memory killer does."""
    arguments = (*VARIANTS, "--no-pictures")
    with started(held.folder, "--output", tmp_path / "out", *arguments, "--jobs=2") as process:
        held.kill_reader()
        held.kill_reader()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    cause = "the process that evaluated it was killed; out of memory?"
    assert error == f"evaluate.py: {held.folder / HELD}.json: {cause}\n"
    others = [traces / f"{mix}.json" for mix in sorted(MIXES)]
    assert run_main(*others, "--output", tmp_path / "others", *arguments).code == 0
    assert same_tables(tmp_path / "out", tmp_path / "others")


def test_full_disk_is_one_line_and_leaves_no_partial_file(traces: Path, tmp_path: Path) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    arguments = (traces, "--output", tmp_path / "out", *VARIANTS, "--no-pictures")
    finished = run(*arguments, preexec_fn=limit_file_size)
    assert finished.returncode == 2
    assert finished.stderr.strip().endswith("File too large; finished traces are kept")
    assert finished.stderr.count("\n") == 1
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


# --- a Dask cluster ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """A scheduler without workers."""
    yield shared_cluster
    shared_cluster.stop_workers()


def test_cluster_that_loses_a_worker_gives_the_same_tables(
    cluster: Cluster, held: HeldTrace, expected: Path, tmp_path: Path
) -> None:
    cluster.start_workers(2)
    out = tmp_path / "out"
    with started(held.folder, "--output", out, *VARIANTS, "--no-pictures", f"--dask={cluster.address}") as process:
        held.kill_reader()
        held.release()
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert same_tables(out, expected)


def test_cluster_draws_the_same_pictures_and_reports_a_bad_trace(
    cluster: Cluster, traces: Path, drawn: Path, tmp_path: Path
) -> None:
    cluster.start_workers(1)
    bad, out = tmp_path / "bad.json", tmp_path / "out"
    bad.write_text("[1, 2]")
    finished = run(
        *(bad, traces / "bursty.json", "--output", out, *VARIANTS), "--pictures", f"--dask={cluster.address}"
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"evaluate.py: {bad}: ")
    assert finished.stderr.count("\n") == 1
    assert {row["trace"] for row in table(out / "results.csv")} == {"bursty"}
    for name in ("bursty-cpu.png", "bursty-mem.png"):
        assert (out / "traces" / name).read_bytes() == (drawn / "traces" / name).read_bytes()


def test_cluster_has_few_tasks_at_a_time(
    cluster: Cluster, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.parallel import dask_cluster

    monkeypatch.setattr(dask_cluster, "_LEAST_TASKS", 3)
    monkeypatch.setattr(dask_cluster, "_TASKS_PER_THREAD", 1)
    submitted: list[int] = []
    refill = dask_cluster._Window.refill

    def spy(window: Any) -> None:
        refill(window)
        submitted.append(len(window._task_of))

    monkeypatch.setattr(dask_cluster._Window, "refill", spy)
    cluster.start_workers(1)
    for i in range(8):
        shutil.copy(traces / "bursty.json", tmp_path / f"{i}.json")
    finished = run_main(tmp_path, "--output", tmp_path / "out", *VARIANTS, f"--dask={cluster.address}")
    assert finished.code == 0
    assert {row["trace"] for row in table(tmp_path / "out" / "results.csv")} == {str(i) for i in range(8)}
    assert max(submitted) == 3


def test_lost_scheduler_is_reported_and_finished_traces_are_kept(
    held: HeldTrace, expected: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    folder, out = tmp_path / "cluster", tmp_path / "out"
    folder.mkdir()
    cluster = Cluster(folder)
    arguments = (held.folder, "--output", out, *VARIANTS, "--no-pictures")
    try:
        cluster.start_workers(1)
        with started(*arguments, f"--dask={cluster.address}") as process:
            wait_for(lambda: all_but_held_done(out), seconds=60)
            cluster.scheduler.kill()
            _, error = process.communicate(timeout=60)
    finally:
        cluster.stop()
    cause = "lost the scheduler; finished traces are kept"
    assert (process.returncode, error) == (2, f"evaluate.py: --dask: {cluster.address}: {cause}\n")
    held.replace()
    finished = run_main(*arguments)
    assert (finished.code, finished.err) == (0, "evaluate.py: 3 of 4 traces are already done\n")
    assert same_tables(out, expected)


def test_worker_with_another_version_of_the_code_is_refused(cluster: Cluster, traces: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(ROOT / "model", older / "model", ignore=shutil.ignore_patterns("__pycache__"))
    with (older / "model" / "replay" / "scoring.py").open("a") as file:
        file.write("\n# as it was last week\n")
    # A worker that has served an older client has imported its modules.
    (older / "preloaded.py").write_text("import model.evaluation.tasks\n")
    cluster.start_workers(1, PYTHONPATH=str(older), DASK_DISTRIBUTED__WORKER__PRELOAD="preloaded")
    finished = run(traces, "--output", tmp_path / "out", f"--dask={cluster.address}")
    assert finished.returncode == 2
    assert "has imported another version of ScroogeVM; restart it" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("cause", ["no Dask scheduler answered within 3 s", "it has no workers"])
def test_cluster_without_workers_is_reported_in_time(
    cause: str, traces: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from model.parallel import dask_cluster

    monkeypatch.setattr(dask_cluster, "WAIT_S", 3.0)
    no_workers = cause == "it has no workers"
    address = request.getfixturevalue("cluster").address if no_workers else f"tcp://127.0.0.1:{free_port()}"
    finished = run_main(traces, f"--output={tmp_path}", f"--dask={address}")
    assert (finished.code, finished.err) == (2, f"evaluate.py: --dask: {address}: {cause}\n")


def test_address_without_a_port_is_one_line(traces: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    finished = run_main(traces, f"--output={tmp_path}", "--dask=nowhere")
    assert finished.code == 2
    assert "--dask: nowhere: missing port number" in finished.err.splitlines()[-1]
