"""The command line of vmballooning.py, on libvirt's test driver: checks, output, reload and stop."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt", reason="libvirt-python could not be built here")

from model import __version__
from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.guests import mute
from tests.support.servers import fetch, free_port, wait_for

PROGRAM = [sys.executable, str(ROOT / "vmballooning.py")]
NODE, OTHER = "http://w1:9100/metrics", "http://w2:9100/metrics"
#: libvirt's test driver: a host in the process, with one guest named test.
HOST = "test:///default"
#: A socket that does not exist.
NO_HOST = "qemu:///system?socket=/nowhere/at/all"

Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return {
        **bare_environment(),
        "LIBVIRT_NODES": json.dumps({NODE: HOST}),
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
        "BALLOONING_STATS_AGE_S": "2",
        "BALLOONING_SCOPE_SLEEP_S": "0.2",
    }


def run(env: Environment, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: PLW1510  # check is among the settings
        [*PROGRAM, *arguments],
        **{"env": env, "capture_output": True, "text": True, "timeout": 60, "check": False, **settings},
    )


class Daemon:
    """A running vmballooning.py whose stderr is in a file."""

    def __init__(self, env: Environment, folder: Path, *arguments: str) -> None:
        self._path = folder / "stderr"
        with self._path.open("w") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments], env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=log
            )

    def log(self) -> str:
        return self._path.read_text()

    def starts(self) -> list[str]:
        return re.findall(r"INFO scroogevm\.ballooning: started (.*)", self.log())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def running(env: Environment, folder: Path, *arguments: str) -> Iterator[Daemon]:
    daemon = Daemon(env, folder, *arguments)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait(30)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- checks -----------------------------------------------------------------------------------------


def test_check_config_validates_the_settings_and_touches_neither_network_nor_files(
    env: Environment, tmp_path: Path
) -> None:
    with mute() as port:
        hosts = json.dumps({NODE: f"qemu+tcp://127.0.0.1:{port}/system"})
        done = run({**env, "LIBVIRT_NODES": hosts, "BALLOONING_JOURNAL_PATH": "/proc/no/journal"}, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "settings ok\n", "")
    assert files(tmp_path) == []


def test_check_config_reports_all_faults_on_stderr(env: Environment, tmp_path: Path) -> None:
    done = run({**env, "BALLOONING_HEADROOM_MB": "1", "BALLOONING_SESSION_S": "no"}, "--check-config")
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 2)
    assert lines[0].startswith("vmballooning.py: BALLOONING_HEADROOM_MB: ")
    assert lines[1].startswith("vmballooning.py: BALLOONING_SESSION_S: ")
    assert files(tmp_path) == []


def test_check_queries_store_and_hosts_and_creates_no_file(env: Environment, tmp_path: Path) -> None:
    done = run(env, "--check")
    assert done.returncode == 0
    assert re.search(r"store \S+/store\.sqlite +ok +the store does not exist yet; ", done.stdout)
    assert re.search(rf"host {HOST} +ok +guests running: 1, with balloon statistics: 1", done.stdout)
    assert files(tmp_path) == []


def test_check_succeeds_when_store_and_hosts_answer(env: Environment, tmp_path: Path) -> None:
    from model.store.sqlite import SqliteStore

    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    store.open()
    store.close()
    done = run(env, "--check", "--json")
    assert done.returncode == 0, done.stdout
    rows = strict_json(done.stdout)
    assert [(row["target"], row["ok"]) for row in rows] == [
        (f"store {env['STORE_PATH']}", True),
        (f"host {HOST}", True),
    ]
    assert all(row["message"] for row in rows)
    assert files(tmp_path) == ["store.sqlite"]


def test_check_of_a_host_that_fails_exits_1(env: Environment) -> None:
    done = run({**env, "LIBVIRT_NODES": json.dumps({NODE: HOST, OTHER: NO_HOST})}, "--check", "--json")
    assert done.returncode == 1
    rows = {row["target"]: row for row in strict_json(done.stdout)}
    assert rows[f"host {HOST}"]["ok"]
    assert not rows[f"host {NO_HOST}"]["ok"]
    assert "/nowhere/at/all" in rows[f"host {NO_HOST}"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "--json needs --check or --dry-run"),
        (["--check", "--check-config"], "--check-config and --check exclude each other"),
        (["--check", "--once"], "--check excludes --dry-run and --once"),
    ],
)
def test_conflicting_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.commands.vmballooning import main

    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert (refused.value.code, capsys.readouterr().err) == (2, f"vmballooning.py: {message}\n")


# --- dry run ----------------------------------------------------------------------------------------


def test_guest_without_stored_figures_is_skipped_and_does_not_prevent_the_plan(env: Environment) -> None:
    done = run(env, "--dry-run", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{HOST}  test  skip  the store has no mem_usage for it\n"


def test_dry_run_prints_the_plan_as_json_lines(env: Environment) -> None:
    done = run(env, "--dry-run", "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [strict_json(line) for line in done.stdout.splitlines()] == [
        {
            **{"host": HOST, "vm": "test", "action": "skip", "from_mb": None, "to_mb": None},
            "reason": "the store has no mem_usage for it",
        }
    ]


def test_full_disk_below_stdout_ends_a_dry_run_with_one_line(env: Environment) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(env, "--dry-run", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 2
    assert done.stderr.endswith("stdout cannot be written: No space left on device\n")


# --- daemon -----------------------------------------------------------------------------------------


def test_journal_that_was_cut_off_is_set_aside_in_one_line(env: Environment, tmp_path: Path) -> None:
    path = tmp_path / "ballooning.json"
    path.write_text('{"format": 1, "sess')
    with running(env, tmp_path) as daemon:
        wait_for(daemon.starts)
        assert daemon.end() == 0
    lines = daemon.log().splitlines()
    assert (len(lines), lines[0].count("not a journal")) == (2, 1), lines
    assert (tmp_path / "ballooning.json.aside").read_text() == '{"format": 1, "sess'


def test_journal_that_can_never_be_used_is_one_line_and_keeps_no_daemon_from_starting(
    env: Environment, tmp_path: Path
) -> None:
    with running({**env, "BALLOONING_JOURNAL_PATH": "/proc/no/journal"}, tmp_path) as daemon:
        wait_for(daemon.starts)
        time.sleep(1)  # several attempts
        assert daemon.end() == 0
    assert daemon.log().count("journal: cannot be used: /proc/no/journal: ") == 1


def test_daemon_waits_for_the_end_of_an_earlier_instance(env: Environment, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with running(env, tmp_path) as first, running({**env}, tmp_path / "second") as second:
        wait_for(lambda: bool(first.starts()) != bool(second.starts()))
        ending, waiting = (first, second) if first.starts() else (second, first)
        wait_for(lambda: "in use by another vmballooning.py; trying again until it is possible" in waiting.log())
        once = run(env, "--once")
        assert (once.returncode, once.stderr.count("\n")) == (1, 1)
        time.sleep(1.2)  # several attempts
        assert ending.end() == 0
        wait_for(waiting.starts)
        assert waiting.end() == 0
    assert [line.count("in use by another") for line in waiting.log().splitlines()][:3] == [1, 0, 0]
    assert "start: recovered" in waiting.log()


def test_daemon_that_waits_for_its_journal_can_be_stopped(env: Environment, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with running(env, tmp_path) as first:
        wait_for(first.starts)
        with running(env, tmp_path / "second") as second:
            wait_for(lambda: "trying again until it is possible" in second.log())
            assert second.end() == 0


@pytest.mark.parametrize("arguments", [[], ["--once"]])
def test_store_that_cannot_be_opened_is_one_line_and_keeps_no_daemon_from_starting(
    env: Environment, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "store.sqlite").write_text("not a database" * 100)
    if arguments:
        done = run(env, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        return
    with running(env, tmp_path) as daemon:
        wait_for(daemon.starts)
        time.sleep(1)  # several attempts
        (tmp_path / "store.sqlite").unlink()
        wait_for(lambda: "store: recovered" in daemon.log())
        assert daemon.end() == 0
    assert daemon.log().count("ERROR") == 1, daemon.log()


def test_metrics_port_of_an_earlier_instance_is_taken_over_when_it_is_free(env: Environment, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running({**env, "BALLOONING_METRICS_PORT": str(port)}, tmp_path) as daemon:
            wait_for(daemon.starts)
            wait_for(lambda: "cannot listen on port" in daemon.log())
            taken.close()
            wait_for(lambda: fetch(f"http://127.0.0.1:{port}/metrics")[0] == 200)
            assert daemon.end() == 0
    assert daemon.log().count("cannot listen on port") == 2  # and its end


def test_start_line_names_version_store_hosts_journal_and_metrics(env: Environment, tmp_path: Path) -> None:
    port = free_port()
    with running({**env, "BALLOONING_METRICS_PORT": str(port)}, tmp_path) as daemon:
        wait_for(daemon.starts)
        assert daemon.starts() == [
            f"version={__version__} store={env['STORE_PATH']} hosts=1 journal={tmp_path / 'ballooning.json'} "
            f"metrics=http://127.0.0.1:{port}/metrics"
        ]
        assert daemon.end() == 0


def test_sighup_restarts_with_the_new_settings(env: Environment, tmp_path: Path) -> None:
    """Wrong settings are logged, and the previous ones stay in use."""
    del env["LIBVIRT_NODES"]
    dotenv = tmp_path / ".env"
    port = free_port()
    one_host = f"LIBVIRT_NODES='{json.dumps({NODE: HOST})}'\nBALLOONING_METRICS_PORT={port}\n"
    dotenv.write_text(one_host)
    with running(env, tmp_path) as daemon:
        wait_for(lambda: len(daemon.starts()) == 1)
        dotenv.write_text("LIBVIRT_NODES='[]'\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.starts()) == 2)
        assert "ERROR scroogevm: reload: LIBVIRT_NODES: is not an object" in daemon.log()
        dotenv.write_text(one_host.replace(json.dumps({NODE: HOST}), json.dumps({NODE: HOST, OTHER: NO_HOST})))
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.starts()) == 3)
        assert [re.search(r"hosts=(\d)", line)[1] for line in daemon.starts()] == ["1", "1", "2"]  # type: ignore[index]
        metrics = f"http://127.0.0.1:{port}/metrics"
        wait_for(lambda: f'scroogevm_balloon_host_up{{host="{HOST}"}} 1.0' in fetch(metrics)[1].decode())
        assert daemon.end() == 0


# --- stop -------------------------------------------------------------------------------------------


def seconds_to_exit(env: Environment, delay_s: float, sent: signal.Signals) -> tuple[int, float]:
    process = subprocess.Popen([*PROGRAM, "--dry-run"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(delay_s)
        process.send_signal(sent)
        start = time.monotonic()
        return process.wait(30), time.monotonic() - start
    finally:
        process.kill()
        process.wait()


def test_signal_at_any_moment_of_the_first_two_seconds_ends_the_process_within_seconds(env: Environment) -> None:
    """While Python starts, while libraries are imported, before and after the handlers are installed."""
    moments = [(k * 0.125, (signal.SIGTERM, signal.SIGINT)[k % 2]) for k in range(17)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda moment: seconds_to_exit(env, *moment), moments))
    assert max(seconds for _, seconds in results) < 10
    # 1 is Python itself, interrupted before it runs the program.
    assert {code for code, _ in results} <= {0, 1, -signal.SIGTERM, -signal.SIGINT}


def test_hung_host_does_not_keep_the_process_alive(env: Environment, tmp_path: Path) -> None:
    with mute() as port:
        hosts = {
            "LIBVIRT_NODES": json.dumps({NODE: f"qemu+tcp://127.0.0.1:{port}/system"}),
            "BALLOONING_TIMEOUT_S": "1",
        }
        with running({**env, **hosts}, tmp_path) as daemon:
            # Logged after the first call has hung for the time limit.
            wait_for(lambda: "no response within 1 s" in daemon.log())
            start = time.monotonic()
            assert daemon.end() == 0
            assert time.monotonic() - start < 10
