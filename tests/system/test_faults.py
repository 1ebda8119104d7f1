"""Faults that pass: the daemons wait for what is missing, lose nothing that waits, and tell systemd what they do."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from model.store.influxdb import InfluxStore
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment
from tests.support.servers import fetch, free_port, influx_server, make_bucket, settings_of_bucket, wait_for

Environment = dict[str, str]


@pytest.fixture
def fakes() -> Iterator[FakeWorkers]:
    with in_thread(Plan(workers=3, vms=4, probe_delay_ms=200)) as running:
        yield running


@pytest.fixture
def env(fakes: FakeWorkers, tmp_path: Path) -> Environment:
    """Of an aggregator whose store is in a folder of its own."""
    return {
        **bare_environment(),
        "AGGREG_STUB_LIST": json.dumps(fakes.stubs()),
        "AGGREG_FETCH_DELAY": "0.2",
        "AGGREG_TIMEOUT_S": "2",
        "STORE_PATH": str(tmp_path / "state" / "store.sqlite"),
        "AGGREG_SPOOL_PATH": str(tmp_path / "spool"),
    }


class Daemon:
    """A running daemon, whose stderr is a file."""

    def __init__(self, program: str, env: Environment, log: Path, **options: Any) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen([sys.executable, str(ROOT / program)], env=env, stderr=stderr, **options)

    @property
    def stderr(self) -> str:
        return self._log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        self.process.wait(30)
        return self.stderr


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    daemons: list[Daemon] = []

    def start_daemon(env: Environment, program: str = "vmaggreg.py", **options: Any) -> Daemon:
        daemons.append(Daemon(program, env, tmp_path / f"stderr{len(daemons)}", **options))
        return daemons[-1]

    yield start_daemon
    for daemon in daemons:
        daemon.process.kill()
        daemon.process.wait(30)


def take_store_away(env: Environment) -> None:
    """A file stands where the folder of the store should be."""
    folder = Path(env["STORE_PATH"]).parent
    if folder.exists():
        folder.rename(folder.with_name("away"))
    folder.write_text("not mounted")


def give_store_back(env: Environment) -> None:
    folder = Path(env["STORE_PATH"]).parent
    folder.unlink()
    if folder.with_name("away").exists():
        folder.with_name("away").rename(folder)


def times_of(env: Environment, node: str) -> list[int]:
    path = Path(env["STORE_PATH"])
    if not path.exists():
        return []
    with contextlib.closing(SqliteStore(path, 86400)) as store:
        return store.read(node, 0, 10**14, ("cpu",)).node.time_ms.tolist()


def run_without_store(env: Environment, fakes: FakeWorkers, start: Start, seconds: float = 2.0) -> tuple[str, int]:
    """Scrape while the store is away and stop; the log, and the time at which the first scrape was over."""
    take_store_away(env)
    daemon = start(env)
    wait_for(lambda: "store: write failed, points are queued: " in daemon.stderr)
    first_ms = int(time.time() * 1000)
    time.sleep(seconds)
    log = daemon.end()
    assert daemon.process.returncode == 0, log
    return log, first_ms


def test_stop_without_the_store_loses_nothing(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    began_ms = int(time.time() * 1000)
    log, first_ms = run_without_store(env, fakes, start)
    assert "stopped before the store was available: points_spooled=" in log
    assert "points_lost" not in log
    stopped_ms = int(time.time() * 1000)
    spool = Path(env["AGGREG_SPOOL_PATH"])
    assert spool.stat().st_mode & 0o777 == 0o700

    give_store_back(env)
    daemon = start(env)
    wait_for(lambda: f"{spool}: the backlog is stored" in daemon.stderr)
    wait_for(lambda: max(times_of(env, fakes.url(0)), default=0) > stopped_ms)
    daemon.end()
    for worker in range(3):
        times = times_of(env, fakes.url(worker))
        assert began_ms <= min(times) <= first_ms
        # A sample each 200 ms, and a few of them late on a busy machine.
        spooled = [time_ms for time_ms in times if time_ms < stopped_ms]
        assert len(spooled) >= 5
    assert not spool.exists()


def test_kill_loses_nothing_of_the_spool(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    _, first_ms = run_without_store(env, fakes, start)
    size = sum(file.stat().st_size for file in Path(env["AGGREG_SPOOL_PATH"]).iterdir())
    daemon = start(env)
    wait_for(lambda: "the backlog of an earlier run is written" in daemon.stderr)
    daemon.end(signal.SIGKILL)
    assert sum(file.stat().st_size for file in Path(env["AGGREG_SPOOL_PATH"]).iterdir()) >= size
    give_store_back(env)
    daemon = start(env)
    wait_for(lambda: "the backlog is stored" in daemon.stderr)
    daemon.end()
    assert min(times_of(env, fakes.url(0))) <= first_ms


def test_damaged_spool_costs_its_tail_alone(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    _, first_ms = run_without_store(env, fakes, start)
    (file,) = Path(env["AGGREG_SPOOL_PATH"]).iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"garbage" * 100)
    give_store_back(env)
    port = free_port()
    daemon = start({**env, "AGGREG_METRICS_PORT": str(port)})
    wait_for(lambda: "is damaged: points_lost=" in daemon.stderr)

    def metrics() -> str | None:
        # The spool is read before the port is opened.
        with contextlib.suppress(OSError):
            return fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        return None

    page = wait_for(metrics)
    lost = int(daemon.stderr.partition("points_lost=")[2].split()[0])
    assert f"scroogevm_points_dropped {lost:.1f}" in page
    assert "scroogevm_points_spooled 0.0" in page
    daemon.end()
    assert min(times_of(env, fakes.url(0))) <= first_ms


def test_spool_is_sent_to_the_store_of_the_new_settings(
    env: Environment, fakes: FakeWorkers, start: Start, tmp_path: Path
) -> None:
    _, first_ms = run_without_store(env, fakes, start)
    (tmp_path / "influxdb").mkdir()
    with influx_server(tmp_path / "influxdb") as (url, token, org, _):
        make_bucket(url, token, org, "spooled")
        there = {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": token, "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "spooled"}
        daemon = start({**env, **there})
        wait_for(lambda: "the backlog is stored" in daemon.stderr)
        daemon.end()
        influx = InfluxStore(settings_of_bucket(url, token, org, "spooled"))
        with contextlib.closing(influx):
            period = influx.read(fakes.url(0), first_ms - 60_000, first_ms + 60_000, ("cpu",))
        assert period.node.time_ms[0] <= first_ms
        assert len(period.domains) == 4


def test_once_without_the_store_spools_and_fails(env: Environment, fakes: FakeWorkers) -> None:
    take_store_away(env)
    command = [sys.executable, str(ROOT / "vmaggreg.py"), "--once"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "points_spooled=15" in done.stderr
    give_store_back(env)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(times_of(env, fakes.url(0))) == 2


def test_locked_store_at_the_start_is_waited_for(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    path = Path(env["STORE_PATH"])
    path.parent.mkdir()
    with contextlib.closing(SqliteStore(path, 86400)) as store:
        store.open()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began_ms = int(time.time() * 1000)
        daemon = start(env)
        wait_for(lambda: "store: write failed, points are queued: " in daemon.stderr, 60)
        assert "database is locked" in daemon.stderr
        released_ms = int(time.time() * 1000)
        other.execute("ROLLBACK")
    wait_for(lambda: "store: recovered" in daemon.stderr, 60)
    daemon.end()
    assert daemon.process.returncode == 0
    assert began_ms <= min(times_of(env, fakes.url(0))) < released_ms


def test_full_disk_ends_no_aggregator_and_loses_nothing(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    """No file may grow beyond 64 kB until the limit is lifted: neither the store nor the spool can be written."""
    limit = 2**16

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    daemon = start(env, preexec_fn=set_limit)
    wait_for(lambda: "store: write failed, points are queued: " in daemon.stderr, 60)
    requests = fakes.requests
    wait_for(lambda: fakes.requests >= requests + 15)
    assert daemon.process.poll() is None
    assert daemon.stderr.count("store: write failed") == 1
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_for(lambda: "store: recovered" in daemon.stderr, 60)
    log = daemon.end()
    assert daemon.process.returncode == 0
    assert "points_lost" not in log
    times = times_of(env, fakes.url(0))
    assert max(after - before for before, after in itertools.pairwise(times)) < 3000


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a link of another user")
def test_link_of_another_user_in_a_public_folder_is_not_followed(
    env: Environment, fakes: FakeWorkers, start: Start, tmp_path: Path
) -> None:
    public, victim = tmp_path / "public", tmp_path / "victim"
    public.mkdir()
    public.chmod(0o1777)
    victim.write_bytes(b"")
    for name in ("store.sqlite", "spool"):
        (public / name).symlink_to(victim if name == "store.sqlite" else tmp_path)
        os.lchown(public / name, 54321, 54321)
    planted = {**env, "STORE_PATH": str(public / "store.sqlite"), "AGGREG_SPOOL_PATH": str(public / "spool")}
    daemon = start(planted)
    wait_for(lambda: "write failed, points are queued: " in daemon.stderr)
    assert "Symbolic link of another user" in daemon.stderr
    (public / "store.sqlite").unlink()
    wait_for(lambda: "store: recovered" in daemon.stderr, 60)
    daemon.end()
    assert victim.read_bytes() == b""


# --- systemd ----------------------------------------------------------------------------------------


class Systemd:
    """The receiving end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def next(self, *ignored: str) -> str:
        """The first line of the next message that is none of some."""
        while (message := self._socket.recv(4096).decode().split("\n")[0]) in ignored:
            pass
        return message

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("program", ["vmaggreg.py", "scroogevm.py", "vmballooning.py"])
def test_daemon_reports_start_life_reload_and_stop(
    program: str, env: Environment, start: Start, tmp_path: Path
) -> None:
    if program == "vmballooning.py" and importlib.util.find_spec("libvirt") is None:
        pytest.skip("libvirt-python could not be built here")
    systemd = Systemd(tmp_path / "notify")
    with contextlib.closing(systemd):
        settings = {
            **env,
            "STATE_ENDPOINT": str(tmp_path / "status.json"),
            "LIBVIRT_NODES": '{"http://w1": "test:///default"}',
            "NOTIFY_SOCKET": str(systemd.path),
            "WATCHDOG_USEC": "2000000",
        }
        daemon = start(settings, program)
        assert systemd.next() == "READY=1"
        assert [systemd.next(), systemd.next()] == ["WATCHDOG=1"] * 2
        daemon.process.send_signal(signal.SIGHUP)
        assert systemd.next("WATCHDOG=1") == "RELOADING=1"
        assert systemd.next("WATCHDOG=1") == "READY=1"
        daemon.process.send_signal(signal.SIGTERM)
        assert systemd.next("WATCHDOG=1") == "STOPPING=1"
        daemon.process.wait(30)
    assert daemon.process.returncode == 0, daemon.stderr


def test_daemon_that_hangs_sends_no_sign_of_life(env: Environment, start: Start, tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    with contextlib.closing(systemd):
        daemon = start({**env, "NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "2000000"})
        assert [systemd.next(), systemd.next()] == ["READY=1", "WATCHDOG=1"]
        daemon.process.send_signal(signal.SIGSTOP)
        systemd._socket.settimeout(3)
        with pytest.raises(TimeoutError):
            systemd.next("WATCHDOG=1")  # also those that were sent before the signal
        daemon.process.send_signal(signal.SIGCONT)
        assert systemd.next() == "WATCHDOG=1"


def test_aggregator_that_waits_for_the_store_says_so(env: Environment, start: Start, tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    take_store_away(env)
    with contextlib.closing(systemd):
        start({**env, "NOTIFY_SOCKET": str(systemd.path)})
        assert systemd.next() == "READY=1"
        assert systemd.next() == f"STATUS=running, waiting for the store: {env['STORE_PATH']}: Not a directory"
        give_store_back(env)
        assert systemd.next() == "STATUS=running"


@pytest.mark.parametrize(
    ("arguments", "away", "code"),
    [
        (["--export=trace.json", "--since=2026-01-01", "--url=http://w1"], True, 1),
        (["--export=trace.json", "--since=2026-01-01", "--url=http://w1"], False, 2),
        (["--check", "--url=http://w1"], True, 1),
        (["--once", "--url=http://w1"], True, 1),
        (["--once", "--url=http://w1"], False, 2),
    ],
)
def test_mode_that_runs_once_does_not_wait(
    arguments: list[str], away: bool, code: int, env: Environment, tmp_path: Path
) -> None:
    """The store is away, or is a file of another kind."""
    if away:
        take_store_away(env)
    else:
        Path(env["STORE_PATH"]).parent.mkdir()
        Path(env["STORE_PATH"]).write_text("not a database " * 70)
    command = [sys.executable, str(ROOT / "scroogevm.py"), *arguments]
    settings = {**env, "STATE_ENDPOINT": str(tmp_path / "status.json")}
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert (done.stderr + done.stdout).count(env["STORE_PATH"]) >= 1
    assert done.stderr.count("\n") <= 1
    assert not (tmp_path / "trace.json").exists()


def test_estimator_that_waits_says_for_what(env: Environment, start: Start, tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    (tmp_path / "file").write_text("")
    memory = tmp_path / "file" / "memory"
    with contextlib.closing(systemd):
        settings = {
            **env,
            "STATE_ENDPOINT": str(tmp_path / "status.json"),
            "SCHED_MEMORY_PATH": str(memory),
            "NOTIFY_SOCKET": str(systemd.path),
        }
        start(settings, "scroogevm.py")
        waiting = f"STATUS=waiting: {memory}: Not a directory"
        assert systemd.next() == waiting
        (tmp_path / "file").unlink()
        assert systemd.next(waiting) == "READY=1"
