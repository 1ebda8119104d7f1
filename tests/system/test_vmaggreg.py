"""vmaggreg.py as a process: what it is told, what it writes, and how it ends."""

from __future__ import annotations

import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from model.store.influxdb import InfluxStore
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment
from tests.support.servers import fetch, free_port, influx_server, make_bucket, settings_of_bucket, wait_for

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


def run(env: Environment, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "timeout": 60, **more}
    return subprocess.run([*PROGRAM, *arguments], env=env, check=False, **settings)


def start(env: Environment, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROGRAM, *arguments], env=env, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], sent: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    return stderr


def open_store(env: Environment) -> SqliteStore:
    return SqliteStore(Path(env["STORE_PATH"]), 86400)


def times_of(env: Environment, node: str) -> list[int]:
    store = open_store(env)
    times: list[int] = store.read(node, 0, 10**15, ("cpu",)).node.time_ms.tolist()
    store.close()
    return times


# --- what it does -----------------------------------------------------------------------------------


def test_once_writes_one_tick_of_every_node_and_leaves(env: Environment, fakes: FakeWorkers) -> None:
    done = run(env, "--once")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store = open_store(env)
    assert store.nodes() == [fakes.url(i) for i in range(3)]
    sample = store.last(fakes.url(0))
    assert sample is not None
    assert len(sample.domains) == 4
    store.close()


def test_once_says_by_its_exit_code_that_a_node_was_silent(env: Environment, fakes: FakeWorkers) -> None:
    fakes.inject(1, "500")
    done = run(env, "--once")
    assert done.returncode == 1
    assert "HTTP status 500" in done.stderr
    store = open_store(env)
    assert store.nodes() == [fakes.url(0), fakes.url(2)]
    store.close()


def test_check_shows_what_answered(env: Environment, fakes: FakeWorkers) -> None:
    fakes.inject(1, "html")
    done = run(env, "--check")
    assert done.returncode == 1
    lines = {line.split()[0] if not line.startswith(" store") else "store": line for line in done.stdout.splitlines()}
    assert "ok" in lines[fakes.url(0)]
    assert "4 VMs" in lines[fakes.url(0)]
    assert "FAILED" in lines[fakes.url(1)]
    assert "no metric of prefix 'vmprobe'" in lines[fakes.url(1)]
    assert "SQLite" in lines["store"]
    fakes.inject(1, "none")
    assert run(env, "--check").returncode == 0


def page_of(age_s: float) -> bytes:
    """A page of vmprobe on a host whose libvirt has no cgroups: it does not know of the CPU time of VMs."""
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
    ("age_s", "code", "words"),
    [
        (10.0, 0, "1 VMs, 1 of them without CPU time ("),
        (100.0, 1, "old: the probe has stopped, or the clocks differ"),
        (-100.0, 1, "ahead, or the clocks differ"),
    ],
)
def test_check_tells_of_pages_that_are_old_and_of_vms_without_cpu_time(
    env: Environment, age_s: float, code: int, words: str
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
        done = run(env, "--check")
        server.shutdown()
    assert done.returncode == code, done.stdout
    assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_flushes_and_ends_well(env: Environment, fakes: FakeWorkers, sent: signal.Signals) -> None:
    process = start(env)
    wait_for(lambda: Path(env["STORE_PATH"]).exists() and len(times_of(env, fakes.url(0))) >= 3)
    assert end(process, sent) == ""
    assert process.returncode == 0


def test_killed_aggregator_loses_at_most_the_tick_in_flight(env: Environment, fakes: FakeWorkers) -> None:
    process = start(env)
    wait_for(lambda: Path(env["STORE_PATH"]).exists() and len(times_of(env, fakes.url(0))) >= 8)
    before = times_of(env, fakes.url(0))
    end(process, signal.SIGKILL)
    after = times_of(env, fakes.url(0))
    assert after[: len(before)] == before
    # Every page of the probe since the first one is there.
    assert np.diff(after).max() <= 400
    again = start(env)
    wait_for(lambda: len(times_of(env, fakes.url(0))) > len(after) + 2)
    end(again)


def test_steady_pace_brings_every_page(env: Environment, fakes: FakeWorkers) -> None:
    env["AGGREG_FETCH_DELAY"] = "0"
    process = start(env)
    wait_for(lambda: Path(env["STORE_PATH"]).exists() and len(times_of(env, fakes.url(0))) >= 15, 40)
    end(process)
    gaps = np.diff(times_of(env, fakes.url(0))[1:])
    assert (gaps == 200).mean() > 0.8


def test_dotenv_in_the_working_directory_is_read(env: Environment, tmp_path: Path, fakes: FakeWorkers) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / ".env").write_text(f"AGGREG_STUB_LIST='{env.pop('AGGREG_STUB_LIST')}'\nSTORE_PATH=elsewhere.sqlite\n")
    assert run(env, "--once", cwd=here).returncode == 0
    # The environment is stronger than the file.
    assert times_of(env, fakes.url(0))
    assert not (here / "elsewhere.sqlite").exists()


def test_own_metrics_are_served_and_pass_the_linter(env: Environment, fakes: FakeWorkers) -> None:
    port = free_port()
    env["AGGREG_METRICS_PORT"] = str(port)
    process = start(env)
    url = f"http://127.0.0.1:{port}/metrics"
    wanted = f'node_up{{node="{fakes.url(0)}"}} 1'.encode()
    page = wait_for(lambda: (body := fetch(url)[1]) and wanted in body and body)
    end(process)
    values = dict(line.rsplit(" ", 1) for line in page.decode().splitlines() if not line.startswith("#"))
    assert values[f'scroogevm_node_up{{node="{fakes.url(0)}"}}'] == "1.0"
    assert values["scroogevm_points_dropped"] == "0.0"
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_port_that_is_taken_is_told(env: Environment) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env["AGGREG_METRICS_PORT"] = str(taken.getsockname()[1])
        done = run(env)
    assert done.returncode == 2
    assert done.stderr.startswith("vmaggreg.py: AGGREG_METRICS_PORT: ")
    assert done.stderr.count("\n") == 1


def test_influxdb_and_the_embedded_store_hold_the_same(env: Environment, fakes: FakeWorkers, tmp_path: Path) -> None:
    # A probe that looks once in an hour: both see the same page.
    with (
        influx_server(tmp_path / "influxd") as (url, token, org, _),
        in_thread(Plan(workers=2, vms=5, probe_delay_ms=3_600_000)) as slow,
    ):
        make_bucket(url, token, org, "same")
        env["AGGREG_STUB_LIST"] = json.dumps(slow.stubs())
        there = {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": token, "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "same"}
        assert run(env, "--once").returncode == 0
        assert run({**env, **there}, "--once").returncode == 0
        checked = run({**env, **there}, "--check")
        assert checked.returncode == 0, checked.stdout
        assert "InfluxDB" in checked.stdout
        assert token not in checked.stdout
        influx, sqlite = InfluxStore(settings_of_bucket(url, token, org, "same")), open_store(env)
        for i in range(2):
            assert influx.last(slow.url(i)) == sqlite.last(slow.url(i))
        assert influx.nodes() == sqlite.nodes()
        influx.close()
        sqlite.close()


def test_wrong_token_is_told_and_not_shown(env: Environment, tmp_path: Path) -> None:
    with influx_server(tmp_path) as (url, _, org, _):
        there = {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": "s3cr3t", "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "b"}
        done = run({**env, **there}, "--check")
        assert done.returncode == 1
        assert "unauthorized" in done.stdout
        assert "s3cr3t" not in done.stdout + done.stderr


# --- what it refuses --------------------------------------------------------------------------------

STUB = '["http://w1/metrics", "vmprobe"]'


def faults(env: Environment, **changes: str) -> list[str]:
    done = run({**env, **changes}, "--once")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return [line.removeprefix("vmaggreg.py: ") for line in done.stderr.splitlines()]


def test_every_fault_is_told_at_once_with_its_key(env: Environment) -> None:
    told = faults(
        env,
        AGGREG_STUB_LIST="[",
        AGGREG_FETCH_DELAY="soon",
        AGGREG_TIMEOUT_S="-1",
        AGGREG_METRICS_PORT="70000",
        AGGREG_QUEUE_MB="1.5",
        INFLUXDB_URL="influx:8086",
        STORE_RETENTION_S="5",
    )
    keys = [line.partition(":")[0] for line in told]
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
    ("text", "words"),
    [
        ("", "names no worker node"),
        ("[]", "names no worker node"),
        ("{}", "is not a list"),
        ('["http://w1"]', "entry 1: is neither"),
        (f'[{STUB}, ["w2:9100", "p"]]', "entry 2: is not an http(s) URL"),
        (f"[{STUB}, {STUB}]", "entry 2: node http://w1/metrics is there already"),
        ('[["http://w1/metrics"]]', "entry 1: is not"),
        ('[["http://w1/metrics", "a b"]]', "entry 1: 'a b' can't be the prefix"),
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
def test_stub_list_that_makes_no_sense_is_told_with_its_place(env: Environment, text: str, words: str) -> None:
    (told,) = faults(env, AGGREG_STUB_LIST=text)
    assert told.startswith("AGGREG_STUB_LIST: ")
    assert words in told


def test_secret_is_not_repeated_in_a_fault(env: Environment) -> None:
    told = faults(env, INFLUXDB_URL="http://x", INFLUXDB_ORG="o", INFLUXDB_BUCKET="b", INFLUXDB_TOKEN="s3cr\u00e9t")
    assert told
    assert "s3cr" not in "".join(told)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AGGREG_FETCH_DELAY", "1e-9"),
        ("AGGREG_FETCH_DELAY", "nan"),
        ("STORE_PATH", "a\nb"),
        ("INFLUXDB_BUCKET", "b\udcff"),
        ("AGGREG_STUB_LIST", '[["http://w1/metrics", "_"]]'),
        ("AGGREG_STUB_LIST", '[["http://w 1/metrics", "p"]]'),
    ],
)
def test_value_that_makes_no_sense_is_refused(env: Environment, key: str, value: str) -> None:
    there = {"INFLUXDB_URL": "http://127.0.0.1:9", "INFLUXDB_TOKEN": "t", "INFLUXDB_ORG": "o", "INFLUXDB_BUCKET": "b"}
    (told,) = faults({**env, **there}, **{key: value})
    assert told.startswith(f"{key}: ")


def test_dotenv_that_is_no_text_is_told(env: Environment, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / ".env").write_bytes(b"A=\xff\xfe\n")
    done = run(env, "--once", cwd=here)
    assert (done.returncode, done.stderr) == (2, "vmaggreg.py: .env: is not UTF-8\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("STORE_PATH=s.sqlite\nSTORE PATH\n", [".env, line 2: is no setting such as KEY='value'"]),
        ("A='x\nB C\n", [f".env, line {line}: is no setting such as KEY='value'" for line in (1, 2)]),
        (None, [".env: Is a directory"]),
    ],
)
def test_dotenv_that_cannot_be_understood_is_told(
    env: Environment, tmp_path: Path, text: str | None, told: list[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    if text is None:
        (here / ".env").mkdir()
    else:
        (here / ".env").write_text(text)
    done = run(env, "--once", cwd=here)
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"vmaggreg.py: {line}" for line in told])


def test_key_that_is_none_is_warned_about_and_the_one_that_is_meant_is_named(env: Environment, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / ".env").write_text("AGGREG_TIMEOUT=9\nSCHED_FROBNICATE=1\nSOMEBODY_ELSES=1\nOS_USER_ID=1\n")
    done = run(env, "--once", cwd=here)
    assert "AGGREG_TIMEOUT is no setting; is AGGREG_TIMEOUT_S meant?" in done.stderr
    assert "SCHED_FROBNICATE is no setting" in done.stderr
    assert "SOMEBODY_ELSES" not in done.stderr
    assert "OS_USER_ID" not in done.stderr


def test_missing_dotenv_is_told_to_who_has_no_settings(env: Environment, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    del env["AGGREG_STUB_LIST"]
    assert "names no worker node (there is no .env in this folder); e.g." in run(env, "--once", cwd=here).stderr
    (here / ".env").write_text("")
    assert "names no worker node; e.g." in run(env, "--once", cwd=here).stderr


def test_store_that_cannot_be_made_is_told_with_its_key(env: Environment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run({**env, "STORE_PATH": str(tmp_path / "file" / "store.sqlite")}, "--once")
    assert done.returncode == 2
    assert done.stderr.startswith("vmaggreg.py: STORE_PATH: ")
    assert done.stderr.count("\n") == 1


def test_password_of_the_store_is_not_shown(env: Environment) -> None:
    there = {
        "INFLUXDB_URL": "http://me:s3cr3t@127.0.0.1:9",
        "INFLUXDB_TOKEN": "t",
        "INFLUXDB_ORG": "o",
        "INFLUXDB_BUCKET": "b",
    }
    done = run({**env, **there}, "--check")
    assert "s3cr3t" not in done.stdout + done.stderr


def test_node_that_hangs_does_not_delay_the_end(env: Environment, fakes: FakeWorkers) -> None:
    env["AGGREG_TIMEOUT_S"] = "60"
    process = start(env)
    wait_for(lambda: Path(env["STORE_PATH"]).exists() and times_of(env, fakes.url(0)))
    fakes.inject("all", "hang")
    time.sleep(0.6)
    began = time.monotonic()
    end(process)
    assert process.returncode == 0
    assert time.monotonic() - began < 15


def test_store_that_can_not_be_opened_is_told(env: Environment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (told,) = faults(env, STORE_PATH=str(tmp_path / "file" / "store"))
    assert "file" in told


@pytest.mark.parametrize("arguments", [["--once", "--check"], ["--frobnicate"], ["-d", "x"], ["extra"]])
def test_wrong_command_line_is_one_line(env: Environment, arguments: list[str]) -> None:
    done = run(env, *arguments)
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


def test_store_away_at_the_start_is_waited_for(env: Environment, fakes: FakeWorkers, tmp_path: Path) -> None:
    """The server comes up after the aggregator: what was scraped meanwhile is there."""
    from tests.support.servers import ORG, TOKEN, Influxd

    if shutil.which("influxd") is None:
        pytest.skip("no influxd on PATH")
    server = Influxd(tmp_path)
    there = {"INFLUXDB_URL": server.url, "INFLUXDB_TOKEN": TOKEN, "INFLUXDB_ORG": ORG, "INFLUXDB_BUCKET": "unused"}
    began_ms = int(time.time() * 1000)
    process = start({**env, **there})
    time.sleep(2)
    try:
        server.start()
        server.set_up()
        store = InfluxStore(settings_of_bucket(server.url, TOKEN, ORG, "unused"))

        def read() -> Any:
            return store.read(fakes.url(0), began_ms, began_ms + 10**6, ("cpu",)).node.time_ms

        wait_for(lambda: read().size > 8, 60)
        stderr = end(process)
        assert process.returncode == 0
        assert read()[0] < began_ms + 2500
        assert stderr.count("can't be written") == 1
        assert stderr.count("written again") == 1
        store.close()
    finally:
        process.kill()
        process.wait()
        server.kill()
