"""vmaggreg.py: options and settings, samples in the store, reload and stop."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from model import __version__
from model.commands.vmaggreg import main
from model.store.influxdb import InfluxStore
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment
from tests.support.servers import (
    ORG,
    TOKEN,
    Influxd,
    fetch,
    free_port,
    influx_server,
    make_bucket,
    settings_of_bucket,
    wait_for,
)

PROGRAM = [sys.executable, str(ROOT / "vmaggreg.py")]


@pytest.fixture
def fakes() -> Iterator[FakeWorkers]:
    with in_thread(Plan(workers=3, vms=4, probe_delay_ms=200)) as running:
        yield running


Environment = dict[str, str]


@pytest.fixture
def env(fakes: FakeWorkers, tmp_path: Path) -> Environment:
    return {
        **bare_environment(),
        "AGGREG_STUB_LIST": json.dumps(fakes.stubs()),
        "AGGREG_FETCH_DELAY": "0.2",
        "AGGREG_TIMEOUT_S": "2",
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


def run(env: Environment, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([*PROGRAM, *arguments], env=env, check=False, **options)


Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Runs the command line in this process, which saves the start of an interpreter."""
    root, logger = logging.getLogger(), logging.getLogger("scroogevm")
    handlers, level, logger_level = root.handlers[:], root.level, logger.level

    def run_here(env: Environment, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for key in bare_environment().keys() | env.keys():
                patch.delenv(key, raising=False)
            for key, value in env.items():
                patch.setenv(key, value)
            if cwd is not None:
                patch.chdir(cwd)
            capsys.readouterr()
            try:
                code = main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    yield run_here
    root.handlers[:] = handlers
    root.setLevel(level)
    logger.setLevel(logger_level)


class Daemon:
    """A running vmaggreg.py, whose stderr is a file."""

    def __init__(self, env: Environment, log: Path, cwd: Path | None = None) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(PROGRAM, env=env, stderr=stderr, cwd=cwd)

    @property
    def stderr(self) -> str:
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        self.send(number)
        self.process.wait(30)
        return self.stderr


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    daemons: list[Daemon] = []

    def start_daemon(env: Environment, cwd: Path | None = None) -> Daemon:
        daemons.append(Daemon(env, tmp_path / f"stderr{len(daemons)}", cwd))
        return daemons[-1]

    yield start_daemon
    for daemon in daemons:
        daemon.process.kill()
        daemon.process.wait(30)


Start = Callable[..., Daemon]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working directory."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


def open_store(env: Environment) -> SqliteStore:
    return SqliteStore(Path(env["STORE_PATH"]), 86400)


def times_of(env: Environment, node: str) -> list[int]:
    store = open_store(env)
    times: list[int] = store.read(node, 0, 10**15, ("cpu",)).node.time_ms.tolist()
    store.close()
    return times


def number_of_samples(env: Environment, node: str) -> int:
    """Number of stored samples of a node; does not create the store."""
    return len(times_of(env, node)) if Path(env["STORE_PATH"]).exists() else 0


# --- scraping ---------------------------------------------------------------------------------------


def test_once_writes_a_sample_of_each_node_and_exits(env: Environment, fakes: FakeWorkers) -> None:
    done = run(env, "--once")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store = open_store(env)
    assert store.nodes() == [fakes.url(i) for i in range(3)]
    sample = store.last(fakes.url(0))
    assert sample is not None
    assert len(sample.domains) == 4
    store.close()


def test_once_exits_with_1_when_a_node_does_not_respond(env: Environment, fakes: FakeWorkers, call: Call) -> None:
    fakes.inject(1, "500")
    done = call(env, "--once")
    assert done.returncode == 1
    assert "HTTP status 500" in done.stderr
    store = open_store(env)
    assert store.nodes() == [fakes.url(0), fakes.url(2)]
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_writes_the_queue_and_stops(
    env: Environment, fakes: FakeWorkers, start: Start, number: signal.Signals
) -> None:
    daemon = start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 3)
    stderr = daemon.stop(number)
    assert daemon.process.returncode == 0
    assert len(stderr.splitlines()) == 1  # the start


def test_start_is_logged_with_version_store_nodes_and_metrics(env: Environment, start: Start) -> None:
    port = free_port()
    for changes, metrics in (({}, "none"), ({"AGGREG_METRICS_PORT": str(port)}, f"http://127.0.0.1:{port}/metrics")):
        daemon = start({**env, **changes})
        wait_for(lambda: daemon.stderr.endswith("\n"))  # noqa: B023  # called in this iteration
        (line,) = daemon.stop().splitlines()
        expected = f"started: version={__version__} store={env['STORE_PATH']} nodes=3 metrics={metrics}"
        assert line.endswith(f"INFO scroogevm.aggregator: {expected}")


def test_killed_aggregator_loses_at_most_the_sample_in_progress(
    env: Environment, fakes: FakeWorkers, start: Start
) -> None:
    daemon = start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 8)
    before = times_of(env, fakes.url(0))
    daemon.stop(signal.SIGKILL)
    after = times_of(env, fakes.url(0))
    assert after[: len(before)] == before
    # The interval is 200 ms: no more than one page in succession is missing.
    assert np.diff(after).max() <= 400
    start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) > len(after) + 2)


def test_delay_of_the_probe_as_interval_scrapes_each_page(env: Environment, start: Start) -> None:
    env["AGGREG_FETCH_DELAY"] = "0"
    with in_thread(Plan(workers=1, vms=4, probe_delay_ms=1000)) as fakes:
        daemon = start({**env, "AGGREG_STUB_LIST": json.dumps(fakes.stubs())})
        wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 12, 60)
        daemon.stop()
    gaps = np.diff(times_of(env, fakes.url(0))[1:])
    assert (gaps == 1000).mean() > 0.8


def test_page_that_asks_for_more_than_a_scrape_per_second_gets_one(
    env: Environment, fakes: FakeWorkers, start: Start
) -> None:
    """A probe every 200 ms."""
    env["AGGREG_FETCH_DELAY"] = "0"
    daemon = start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 6, 60)
    daemon.stop()
    times = times_of(env, fakes.url(0))
    assert (times[-1] - times[0]) / (len(times) - 1) >= 900


def test_node_that_hangs_does_not_delay_the_stop(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    env["AGGREG_TIMEOUT_S"] = "60"
    daemon = start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)))
    fakes.inject("all", "hang")
    requests = fakes.requests
    wait_for(lambda: fakes.requests >= requests + 3)
    start_s = time.monotonic()
    daemon.stop()
    assert daemon.process.returncode == 0
    assert time.monotonic() - start_s < 15


def test_metrics_are_served_and_valid(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    port = free_port()
    env["AGGREG_METRICS_PORT"] = str(port)
    daemon = start(env)
    url = f"http://127.0.0.1:{port}/metrics"
    line = f'node_up{{node="{fakes.url(0)}"}} 1'.encode()
    page = wait_for(lambda: (body := fetch(url)[1]) and line in body and body)
    daemon.stop()
    values = dict(line.rsplit(" ", 1) for line in page.decode().splitlines() if not line.startswith("#"))
    assert values[f'scroogevm_node_up{{node="{fakes.url(0)}"}}'] == "1.0"
    assert values["scroogevm_points_dropped"] == "0.0"
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_port_in_use_delays_the_metrics_alone(env: Environment, fakes: FakeWorkers, start: Start) -> None:
    """It is that of a previous instance, which is still ending."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = start({**env, "AGGREG_METRICS_PORT": str(port)})
        wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2)
        message = f"AGGREG_METRICS_PORT: cannot listen on port {port}"
        assert daemon.stderr.count(f"{message}: Address already in use; trying again") == 1
        assert "metrics=none" in daemon.stderr
    wait_for(lambda: b"scroogevm_points_written" in fetch(f"http://127.0.0.1:{port}/metrics")[1])
    assert f"{message}: recovered" in daemon.stop()
    assert daemon.process.returncode == 0


def test_address_that_is_none_is_one_line_and_exit_code_2(env: Environment) -> None:
    done = run({**env, "AGGREG_METRICS_PORT": "1", "METRICS_ADDRESS": "256.256.256.256"})
    assert done.returncode == 2
    assert done.stderr.startswith("vmaggreg.py: AGGREG_METRICS_PORT: ")
    assert done.stderr.count("\n") == 1


# --- reload -----------------------------------------------------------------------------------------


def write_dotenv(folder: Path, **values: object) -> None:
    (folder / ".env").write_text("".join(f"{key}='{value}'\n" for key, value in values.items()))


def reload_daemon(daemon: Daemon, message: str) -> str:
    """Send SIGHUP and wait for a message and the start of the next run; stderr from the signal on."""
    before = daemon.stderr
    daemon.send(signal.SIGHUP)

    def is_reloaded() -> bool:
        stderr = daemon.stderr.removeprefix(before)
        return message in stderr and " running: " in stderr

    wait_for(is_reloaded)
    return daemon.stderr.removeprefix(before)


def test_reload_scrapes_the_nodes_of_the_new_settings(
    env: Environment, fakes: FakeWorkers, folder: Path, start: Start
) -> None:
    stubs = json.loads(env.pop("AGGREG_STUB_LIST"))
    write_dotenv(folder, AGGREG_STUB_LIST=json.dumps(stubs[:1]))
    daemon = start(env, folder)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2)
    port = free_port()
    write_dotenv(folder, AGGREG_STUB_LIST=json.dumps(stubs[1:]), AGGREG_METRICS_PORT=port)
    stderr = reload_daemon(daemon, "reload: settings read again")
    assert f"running: version={__version__} store={env['STORE_PATH']} nodes=2 metrics=http://127.0.0.1:{port}" in stderr
    wait_for(lambda: number_of_samples(env, fakes.url(2)) >= 2)
    scrapes = number_of_samples(env, fakes.url(0))
    wait_for(lambda: number_of_samples(env, fakes.url(1)) >= 4)
    assert number_of_samples(env, fakes.url(0)) == scrapes
    page = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
    assert fakes.url(1) in page
    assert fakes.url(0) not in page
    # The metrics server is closed and opened again.
    reload_daemon(daemon, "reload: settings read again")
    wait_for(lambda: fakes.url(1).encode() in fetch(f"http://127.0.0.1:{port}/metrics")[1])
    daemon.stop()
    assert daemon.process.returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AGGREG_STUB_LIST": "["}, "reload: AGGREG_STUB_LIST: is not JSON"),
        ({"STORE_PATH": str(ROOT / "README.md")}, "reload: STORE_PATH: "),
    ],
)
def test_reload_of_invalid_settings_keeps_the_previous_ones(
    env: Environment, fakes: FakeWorkers, folder: Path, start: Start, changes: dict[str, str], message: str
) -> None:
    valid = {"AGGREG_STUB_LIST": env.pop("AGGREG_STUB_LIST"), "STORE_PATH": env["STORE_PATH"]}
    write_dotenv(folder, **valid)
    daemon = start({key: value for key, value in env.items() if key not in valid}, folder)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2)
    write_dotenv(folder, **{**valid, **changes})
    stderr = reload_daemon(daemon, message)
    assert "reload: the daemon continues with the previous settings" in stderr
    scrapes = number_of_samples(env, fakes.url(0))
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= scrapes + 3)
    daemon.stop()
    assert daemon.process.returncode == 0


def test_reload_changes_the_store(env: Environment, fakes: FakeWorkers, folder: Path, start: Start) -> None:
    before, after = env, {**env, "STORE_PATH": str(folder / "new" / "store.sqlite")}
    write_dotenv(folder, STORE_PATH=before["STORE_PATH"])
    daemon = start({key: value for key, value in env.items() if key != "STORE_PATH"}, folder)
    wait_for(lambda: number_of_samples(before, fakes.url(0)) >= 2)
    write_dotenv(folder, STORE_PATH=after["STORE_PATH"])
    reload_daemon(daemon, "reload: settings read again")
    wait_for(lambda: number_of_samples(after, fakes.url(0)) >= 2)
    daemon.stop()
    assert daemon.process.returncode == 0
    # The page that was read last may be read once more.
    assert max(times_of(before, fakes.url(0))) <= min(times_of(after, fakes.url(0)))


def test_reload_with_a_port_in_use_continues_without_metrics(
    env: Environment, fakes: FakeWorkers, folder: Path, start: Start
) -> None:
    write_dotenv(folder)
    daemon = start(env, folder)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        write_dotenv(folder, AGGREG_METRICS_PORT=taken.getsockname()[1])
        stderr = reload_daemon(daemon, "AGGREG_METRICS_PORT: cannot listen on port ")
    assert "metrics=none" in stderr
    scrapes = number_of_samples(env, fakes.url(0))
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= scrapes + 3)
    daemon.stop()
    assert daemon.process.returncode == 0


def test_reload_keeps_samples_that_wait_for_the_store(
    env: Environment, fakes: FakeWorkers, start: Start, tmp_path: Path
) -> None:
    """The store is away before and during the reload: its samples are written once it is available."""
    path = Path(env["STORE_PATH"])
    daemon = start(env)
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2)
    for part in tmp_path.glob("store.sqlite*"):
        part.unlink()
    path.write_bytes(b"not a database\n" * 1000)
    wait_for(lambda: "write failed, points are queued" in daemon.stderr)
    requests = fakes.requests
    wait_for(lambda: fakes.requests >= requests + 6)
    reload_ms = int(time.time() * 1000)
    reload_daemon(daemon, "reload: settings read again")
    path.unlink()
    wait_for(lambda: number_of_samples(env, fakes.url(0)) >= 2, 60)
    daemon.stop()
    assert daemon.process.returncode == 0
    assert "points_lost" not in daemon.stderr
    assert min(times_of(env, fakes.url(0))) < reload_ms


# --- checks -----------------------------------------------------------------------------------------


def test_check_shows_the_result_of_each_target(env: Environment, fakes: FakeWorkers, call: Call) -> None:
    fakes.inject(1, "html")
    done = call(env, "--check")
    assert done.returncode == 1
    lines = {line.split()[0] if not line.startswith(" store") else "store": line for line in done.stdout.splitlines()}
    assert "ok" in lines[fakes.url(0)]
    assert "4 VMs" in lines[fakes.url(0)]
    assert "FAILED" in lines[fakes.url(1)]
    assert "no metric of prefix 'vmprobe'" in lines[fakes.url(1)]
    assert "the store does not exist yet" in lines["store"]
    fakes.inject(1, "none")
    assert call(env, "--once").returncode == 0
    done = call(env, "--check")
    assert done.returncode == 0
    assert "SQLite" in done.stdout


def test_check_prints_json(env: Environment, fakes: FakeWorkers) -> None:
    fakes.inject(1, "500")
    done = run(env, "--check", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    rows = json.loads(done.stdout)
    assert [list(row) for row in rows] == [["target", "ok", "message"]] * 4
    assert [(row["target"], row["ok"]) for row in rows] == [
        (fakes.url(0), True),
        (fakes.url(1), False),
        (fakes.url(2), True),
        (f"store {env['STORE_PATH']}", True),
    ]
    assert rows[1]["message"] == "HTTP status 500"


@pytest.mark.parametrize(
    ("path", "usable", "message"),
    [
        ("new/store.sqlite", True, "the store does not exist yet; folder {0} is writable"),
        ("file/store.sqlite", False, "the store does not exist yet; {0}/file is not a folder"),
    ],
)
def test_check_creates_no_store(env: Environment, folder: Path, path: str, usable: bool, message: str) -> None:
    (folder / "file").touch()
    done = run({**env, "STORE_PATH": str(folder / path)}, "--check", "--json", cwd=folder)
    row = json.loads(done.stdout)[-1]
    assert (row["ok"], row["message"]) == (usable, message.format(folder))
    assert done.returncode == (0 if usable else 1)
    assert [entry.name for entry in folder.iterdir()] == ["file"]


def test_check_of_a_file_that_is_not_a_store_names_the_setting(env: Environment, call: Call) -> None:
    Path(env["STORE_PATH"]).write_bytes(b"not a database " * 70)
    done = call(env, "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vmaggreg.py: STORE_PATH: ")
    assert done.stderr.count("\n") == 1


def test_check_config_uses_neither_network_nor_store(env: Environment, fakes: FakeWorkers, folder: Path) -> None:
    done = run({**env, "STORE_PATH": str(folder / "store.sqlite")}, "--check-config", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "settings ok\n", "")
    assert fakes.requests == 0
    assert list(folder.iterdir()) == []


def test_check_config_reports_all_invalid_settings(env: Environment, folder: Path) -> None:
    env |= {"AGGREG_STUB_LIST": "[", "AGGREG_TIMEOUT_S": "-1", "STORE_PATH": str(folder / "store.sqlite")}
    done = run(env, "--check-config", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    keys = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert sorted(keys) == ["AGGREG_STUB_LIST", "AGGREG_TIMEOUT_S"]
    assert list(folder.iterdir()) == []


def page_of(age_s: float) -> bytes:
    """A page of vmprobe on a host whose libvirt does not use cgroups: it lacks the CPU time of VMs."""
    node = {
        "probe_delay": 5000,
        "cpu_total": 2,
        "cpu_user": 1,
        "cpu_kernel": 1,
        "memory_total": 4,
        "memory_available": 2,
    }
    lines = [f"vmprobe_global_{name} {value}" for name, value in node.items()]
    lines.append(f"vmprobe_global_probe_epoch {int((time.time() - age_s) * 1000)}")
    lines += ["vmprobe_domain_a_cpu_alloc 1", "vmprobe_domain_a_memory_alloc 3", "vmprobe_domain_a_memory_unused 1"]
    return "\n".join([*lines, ""]).encode()


@pytest.mark.parametrize(
    ("age_s", "code", "message"),
    [
        (10.0, 0, "1 VMs, 1 of them without CPU time ("),
        (100.0, 1, "old: the probe has stopped, or the clocks differ"),
        (-100.0, 1, "ahead, or the clocks differ"),
    ],
)
def test_check_reports_old_pages_and_vms_without_cpu_time(
    env: Environment, call: Call, age_s: float, code: int, message: str
) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page_of(age_s))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env["AGGREG_STUB_LIST"] = json.dumps([[f"http://127.0.0.1:{server.server_port}/metrics", "vmprobe"]])
        done = call(env, "--check")
        server.shutdown()
    assert done.returncode == code, done.stdout
    assert message in " ".join(done.stdout.split())


def test_environment_overrides_dotenv_of_the_working_directory(
    env: Environment, folder: Path, fakes: FakeWorkers, call: Call
) -> None:
    (folder / ".env").write_text(f"AGGREG_STUB_LIST='{env.pop('AGGREG_STUB_LIST')}'\nSTORE_PATH=elsewhere.sqlite\n")
    assert call(env, "--once", cwd=folder).returncode == 0
    assert times_of(env, fakes.url(0))
    assert not (folder / "elsewhere.sqlite").exists()


def test_influxdb_and_the_embedded_store_store_the_same_samples(env: Environment, tmp_path: Path, call: Call) -> None:
    # A probe that measures once in an hour: both runs scrape the same page.
    with (
        influx_server(tmp_path / "influxd") as (url, token, org, _),
        in_thread(Plan(workers=2, vms=5, probe_delay_ms=3_600_000)) as slow,
    ):
        make_bucket(url, token, org, "same")
        env["AGGREG_STUB_LIST"] = json.dumps(slow.stubs())
        there = {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": token, "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "same"}
        assert call(env, "--once").returncode == 0
        assert call({**env, **there}, "--once").returncode == 0
        checked = call({**env, **there}, "--check")
        assert checked.returncode == 0, checked.stdout
        assert "InfluxDB" in checked.stdout
        assert token not in checked.stdout
        influx, sqlite = InfluxStore(settings_of_bucket(url, token, org, "same")), open_store(env)
        for i in range(2):
            assert influx.last(slow.url(i)) == sqlite.last(slow.url(i))
        assert influx.nodes() == sqlite.nodes()
        influx.close()
        sqlite.close()


def test_wrong_token_is_reported_and_not_shown(env: Environment, tmp_path: Path, call: Call) -> None:
    with influx_server(tmp_path) as (url, _, org, _):
        there = {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": "s3cr3t", "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "b"}
        done = call({**env, **there}, "--check")
        assert done.returncode == 1
        assert "unauthorized" in done.stdout
        assert "s3cr3t" not in done.stdout + done.stderr


# --- invalid settings -------------------------------------------------------------------------------

STUB = '["http://w1/metrics", "vmprobe"]'


def faults(call: Call, env: Environment, **changes: str) -> list[str]:
    done = call({**env, **changes}, "--once")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return [line.removeprefix("vmaggreg.py: ") for line in done.stderr.splitlines()]


def test_all_invalid_settings_are_reported_at_once_with_their_keys(env: Environment, call: Call) -> None:
    lines = faults(
        call,
        env,
        AGGREG_STUB_LIST="[",
        AGGREG_FETCH_DELAY="soon",
        AGGREG_TIMEOUT_S="-1",
        AGGREG_METRICS_PORT="70000",
        AGGREG_QUEUE_MB="1.5",
        INFLUXDB_URL="influx:8086",
        STORE_RETENTION_S="5",
    )
    keys = [line.partition(":")[0] for line in lines]
    assert sorted(keys) == [
        "AGGREG_FETCH_DELAY",
        "AGGREG_METRICS_PORT",
        "AGGREG_QUEUE_MB",
        "AGGREG_STUB_LIST",
        "AGGREG_TIMEOUT_S",
        "INFLUXDB_BUCKET",
        "INFLUXDB_ORG",
        "INFLUXDB_TOKEN",
        "INFLUXDB_URL",
        "STORE_RETENTION_S",
    ]
    assert not Path(env["STORE_PATH"]).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no worker node"),
        ("[]", "names no worker node"),
        ("{}", "is not a list"),
        ('["http://w1"]', "entry 1: is neither"),
        (f'[{STUB}, ["w2:9100", "p"]]', "entry 2: is not an http(s) URL"),
        (f"[{STUB}, {STUB}]", "entry 2: node http://w1/metrics is listed twice"),
        ('[["http://w1/metrics"]]', "entry 1: is not"),
        ('[["http://w1/metrics", "a b"]]', "entry 1: 'a b' cannot be the prefix"),
        ('[["http://w1/metrics", 1]]', "entry 1: is not"),
        ('[{"node": "x"}]', "entry 1: is neither"),
        (
            '[{"node": "x", "node_exporter": "ftp://x", "libvirt_exporter": "http://x"}]',
            "entry 1: node_exporter is not",
        ),
        ("[" * 100_000, "is not JSON"),
        ('[["http://w1:99999/metrics", "p"]]', "entry 1: is not an http(s) URL"),
    ],
)
def test_invalid_stub_list_is_reported_with_its_entry(env: Environment, call: Call, text: str, message: str) -> None:
    (line,) = faults(call, env, AGGREG_STUB_LIST=text)
    assert line.startswith("AGGREG_STUB_LIST: ")
    assert message in line


def test_message_of_an_invalid_secret_does_not_contain_it(env: Environment, call: Call) -> None:
    influx = {"INFLUXDB_URL": "http://x", "INFLUXDB_ORG": "o", "INFLUXDB_BUCKET": "b"}
    lines = faults(call, env, **influx, INFLUXDB_TOKEN="s3cr\u00e9t")
    assert lines
    assert "s3cr" not in "".join(lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AGGREG_FETCH_DELAY", "1e-9"),
        ("AGGREG_FETCH_DELAY", "nan"),
        ("AGGREG_MAX_VMS", "0"),
        ("AGGREG_MAX_SERIES", "1e9"),
        ("STORE_PATH", "a\nb"),
        ("INFLUXDB_BUCKET", "b\udcff"),
        ("AGGREG_STUB_LIST", '[["http://w1/metrics", "_"]]'),
        ("AGGREG_STUB_LIST", '[["http://w 1/metrics", "p"]]'),
    ],
)
def test_invalid_value_is_refused(env: Environment, call: Call, key: str, value: str) -> None:
    there = {"INFLUXDB_URL": "http://127.0.0.1:9", "INFLUXDB_TOKEN": "t", "INFLUXDB_ORG": "o", "INFLUXDB_BUCKET": "b"}
    (line,) = faults(call, {**env, **there}, **{key: value})
    assert line.startswith(f"{key}: ")


def test_dotenv_that_is_not_text_is_refused(env: Environment, folder: Path, call: Call) -> None:
    (folder / ".env").write_bytes(b"A=\xff\xfe\n")
    done = call(env, "--once", cwd=folder)
    assert (done.returncode, done.stderr) == (2, "vmaggreg.py: .env: is not UTF-8\n")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("STORE_PATH=s.sqlite\nSTORE PATH\n", [".env, line 2: is not a setting such as KEY='value'"]),
        ("A='x\nB C\n", [f".env, line {line}: is not a setting such as KEY='value'" for line in (1, 2)]),
        (None, [".env: Is a directory"]),
    ],
)
def test_dotenv_that_cannot_be_parsed_is_refused(
    env: Environment, folder: Path, call: Call, text: str | None, messages: list[str]
) -> None:
    if text is None:
        (folder / ".env").mkdir()
    else:
        (folder / ".env").write_text(text)
    done = call(env, "--once", cwd=folder)
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"vmaggreg.py: {line}" for line in messages])


def test_unknown_key_is_warned_about_with_a_suggestion(env: Environment, folder: Path, call: Call) -> None:
    (folder / ".env").write_text("AGGREG_TIMEOUT=9\nSCHED_FROBNICATE=1\nOTHER_PROGRAM=1\nOS_USER_ID=1\n")
    done = call(env, "--once", cwd=folder)
    assert "AGGREG_TIMEOUT is not a setting; did you mean AGGREG_TIMEOUT_S?" in done.stderr
    assert "SCHED_FROBNICATE is not a setting" in done.stderr
    assert "OTHER_PROGRAM" not in done.stderr
    assert "OS_USER_ID" not in done.stderr


def test_missing_dotenv_is_mentioned_when_settings_are_missing(env: Environment, folder: Path, call: Call) -> None:
    del env["AGGREG_STUB_LIST"]
    assert "names no worker node (there is no .env in this folder); e.g." in call(env, "--once", cwd=folder).stderr
    (folder / ".env").write_text("")
    assert "names no worker node; e.g." in call(env, "--once", cwd=folder).stderr


def test_file_that_is_not_a_store_is_reported_with_its_key(env: Environment, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "file"
    path.write_text("not a database " * 70)
    done = call({**env, "STORE_PATH": str(path)})
    assert done.returncode == 2
    assert done.stderr == f"vmaggreg.py: STORE_PATH: {path}: file is not a database\n"


def test_folder_of_the_store_that_appears_later_is_waited_for(
    env: Environment, fakes: FakeWorkers, tmp_path: Path, start: Start
) -> None:
    (tmp_path / "file").write_text("not a folder")
    late = {**env, "STORE_PATH": str(tmp_path / "file" / "store.sqlite")}
    began_ms = int(time.time() * 1000)
    daemon = start(late)
    wait_for(lambda: "store: write failed, points are queued: " in daemon.stderr)
    appeared_ms = int(time.time() * 1000)
    (tmp_path / "file").unlink()
    wait_for(lambda: number_of_samples(late, fakes.url(0)) >= 2)
    assert daemon.stop().count("store: recovered") == 1
    assert daemon.process.returncode == 0
    # Nothing was lost meanwhile.
    assert began_ms <= min(times_of(late, fakes.url(0))) < appeared_ms


def test_password_of_the_store_is_not_shown(env: Environment, call: Call) -> None:
    there = {
        "INFLUXDB_URL": "http://me:s3cr3t@127.0.0.1:9",
        "INFLUXDB_TOKEN": "t",
        "INFLUXDB_ORG": "o",
        "INFLUXDB_BUCKET": "b",
    }
    done = call({**env, **there}, "--check")
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--once", "--check"],
        ["--once", "--json"],
        ["--json"],
        ["--check", "--check-config"],
        ["--frobnicate"],
        ["-d", "x"],
        ["extra"],
    ],
)
def test_invalid_command_line_is_one_line(env: Environment, call: Call, arguments: list[str]) -> None:
    done = call(env, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['vmaggreg.py', '-h']\n"
        "try:\n    runpy.run_path('vmaggreg.py', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'aiohttp', 'rich', 'influxdb_client', 'dotenv'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_samples_are_queued_until_the_store_starts(
    env: Environment, fakes: FakeWorkers, tmp_path: Path, start: Start
) -> None:
    if shutil.which("influxd") is None:
        pytest.skip("influxd is not on PATH")
    server = Influxd(tmp_path)
    there = {"INFLUXDB_URL": server.url, "INFLUXDB_TOKEN": TOKEN, "INFLUXDB_ORG": ORG, "INFLUXDB_BUCKET": "unused"}
    began_ms = int(time.time() * 1000)
    daemon = start({**env, **there})
    wait_for(lambda: "write failed" in daemon.stderr)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        server.set_up()
        store = stack.enter_context(
            contextlib.closing(InfluxStore(settings_of_bucket(server.url, TOKEN, ORG, "unused")))
        )

        def read() -> Any:
            return store.read(fakes.url(0), began_ms, began_ms + 10**6, ("cpu",)).node.time_ms

        started_ms = int(time.time() * 1000)
        wait_for(lambda: read().size > 8, 60)
        stderr = daemon.stop()
        assert daemon.process.returncode == 0
        assert read()[0] < started_ms
        # The server is away first, and not set up for a moment after its start: two causes, each logged once.
        causes = re.findall(r"write failed, points are queued: (.*)", stderr)
        assert 1 <= len(causes) == len(set(causes)) <= 2
        assert stderr.count("store: recovered") == 1
