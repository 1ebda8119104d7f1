"""scroogevm.py as a daemon: a real process, on a store that somebody writes to meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.dump import read_dumps
from model.replay.replay import Replay
from model.replay.results import load_results
from model.replay.trace import read_trace
from model.samples import ScrapeSample
from model.stability import mean_predictor
from model.store.base import Store, StoreUnavailable
from model.store.influxdb import InfluxStore
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.servers import (
    fetch,
    free_port,
    influx_server,
    make_bucket,
    placement_server,
    settings_of_bucket,
    wait_for,
)

PROGRAM = [sys.executable, str(ROOT / "scroogevm.py")]
NODES = ["http://w1:9100/metrics", "http://w2:9100/metrics", "http://w3:9100/metrics"]

Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return {
        **bare_environment(),
        "SCHED_NODES": json.dumps(NODES),
        "SCHED_SCOPE_S": "2",
        "SCHED_SCOPE_SLICE_S": "1",
        "SCHED_SCOPE_HISTORICAL": "1",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "0",
        "SCHED_SETTLE_S": "0.2",
        "STATE_ENDPOINT": str(tmp_path / "state" / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


@contextlib.contextmanager
def written(store: Store, nodes: list[str] | None = None) -> Iterator[set[str]]:
    """Ticks of all nodes, ten a second, as long as the block lasts; nodes in the set that it gives are left out."""
    draw = np.random.default_rng(5)
    stop, silent = threading.Event(), set[str]()

    def write() -> None:
        while not stop.wait(0.1):
            now_ms = int(time.time() * 1000)
            scraped = [
                ScrapeSample(
                    node,
                    now_ms,
                    {"cpu": 16.0, "mem": 32768.0, "cpu_usage": draw.uniform(1, 9), "mem_usage": draw.uniform(9e3, 2e4)},
                    {
                        f"vm-{i}": {"cpu": 2.0, "mem": 1024.0, "cpu_usage": draw.uniform(0, 2), "mem_usage": 700.0}
                        for i in range(4)
                    },
                )
                for node in nodes or NODES
                if node not in silent
            ]
            with contextlib.suppress(StoreUnavailable):
                store.write([store.encode(sample) for sample in scraped])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield silent
    finally:
        stop.set()
        writer.join()


@pytest.fixture
def store(env: Environment) -> Iterator[SqliteStore]:
    made = SqliteStore(Path(env["STORE_PATH"]), 86400)
    yield made
    made.close()


def run(env: Environment, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "timeout": 60, **more}
    return subprocess.run([*PROGRAM, *arguments], env=env, check=False, **settings)


@contextlib.contextmanager
def running(env: Environment, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*PROGRAM, *arguments], env=env, stderr=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def end(process: subprocess.Popen[str], sent: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    return stderr


def begun(store: SqliteStore) -> None:
    """Wait until the last whole slice holds samples of all nodes."""

    def there() -> bool:
        end_ms = int(time.time() - 0.3) * 1000
        return all(store.read(node, end_ms - 1000, end_ms, ("cpu",), domains=False).node.time_ms.size for node in NODES)

    wait_for(there)


def status(env: Environment) -> dict[str, Any]:
    return strict_json(Path(env["STATE_ENDPOINT"]).read_bytes())


def states(env: Environment) -> list[str]:
    return [node["state"] for node in status(env).values()]


def all_ok(env: Environment) -> Callable[[], bool]:
    return lambda: states(env) == ["ok"] * len(NODES)


# --- the status file ---------------------------------------------------------------------------------


def test_reader_in_a_tight_loop_always_finds_a_whole_file(env: Environment, store: SqliteStore) -> None:
    path = Path(env["STATE_ENDPOINT"])
    env["STATE_MODE"] = "0600"
    with written(store), running(env):
        wait_for(path.exists)
        seen, reads = set(), 0
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            nodes = strict_json(path.read_bytes())
            assert list(nodes) == NODES
            reads += 1
            seen.add(nodes[NODES[0]]["slice_end"])
            assert path.stat().st_mode & 0o777 == 0o600
    assert len(seen) >= 3
    assert reads > 100


def test_published_figures_are_those_of_the_last_slice(env: Environment, store: SqliteStore) -> None:
    with written(store), running(env, "-s", "borg"):
        wait_for(all_ok(env))
        node = status(env)[NODES[1]]
    assert node["strategy"] == "borg"
    assert node["cpu"] == {"state": "ok", "config": 16.0, "booked": 8.0, "tier0": 7.3, "tier1": 0.0, "tier2": 8.7}
    assert (node["free_cpu"], node["free_mem"]) == (8.7, 32768 - 3723)
    assert time.time() - node["slice_end"] < 60
    assert node["slice_end"] + 1 <= node["valid_until"] <= node["slice_end"] + 3


def test_node_that_falls_silent_is_stale_alone_and_comes_back(env: Environment, store: SqliteStore) -> None:
    with written(store) as silent, contextlib.ExitStack() as started:
        begun(store)
        daemon = started.enter_context(running(env))
        wait_for(all_ok(env))
        silent.add(NODES[1])
        wait_for(lambda: states(env) == ["ok", "stale", "ok"])
        assert status(env)[NODES[1]]["free_cpu"] == 0
        silent.clear()
        wait_for(all_ok(env))
        told = end(daemon)
    assert told.count(f"samples of {NODES[1]}: none in the slice") == 1
    assert told.count(f"samples of {NODES[1]}: recovered") == 1
    assert daemon.returncode == 0


# --- restarts ----------------------------------------------------------------------------------------


def test_killed_daemon_goes_on_as_if_it_had_not_been(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    """Killed three times at any moment; at the end every strategy says what a replay of the store says."""
    with written(store):
        for moment in (2.3, 1.7, 2.9):
            with running(env, "-s", "all", "-d", "1", "-o", str(tmp_path)) as daemon:
                time.sleep(moment)
                daemon.kill()
        with running(env, "-s", "all", "-d", "1", "-o", str(tmp_path)) as daemon:
            wait_for(all_ok(env))
            time.sleep(1.0)
            end(daemon)
            assert daemon.returncode == 0
    for node in NODES:
        (path,) = tmp_path.glob(f"dump-{node.replace('/', '')}_*.json")
        live = read_dumps(path)
        assert [dump.strategy for dump in live] == list(STRATEGIES)
        epoch = live[0].epoch
        assert np.array_equal(np.diff(epoch), np.ones(len(epoch) - 1)), "no slice was left out"
        out = tmp_path / "trace.json"
        done = run(
            env, f"--export={out}", f"--since={epoch[0] - 1}", f"--until={epoch[-1]}", f"--url={json.dumps([node])}"
        )
        assert done.returncode == 0, done.stderr
        model = ModelSettings(1, tuple(STRATEGIES))
        replay = Replay(read_trace(out), model, {"cpu": mean_predictor, "mem": mean_predictor}).run()
        histories = replay.recorder.histories(2)
        for dump in live:
            for resource in ("cpu", "mem"):
                np.testing.assert_array_equal(
                    dump.histories[resource].published, histories[dump.strategy, resource].published
                )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_zero_and_without_a_word(
    sent: signal.Signals, env: Environment, store: SqliteStore
) -> None:
    with written(store), contextlib.ExitStack() as started:
        begun(store)
        daemon = started.enter_context(running(env))
        wait_for(all_ok(env))
        assert end(daemon, sent) == ""
    assert daemon.returncode == 0


def test_second_daemon_on_the_same_memory_is_refused(env: Environment, store: SqliteStore) -> None:
    with written(store), running(env):
        wait_for(all_ok(env))
        second = run(env)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert "another scroogevm.py is at work with it" in second.stderr
        wait_for(all_ok(env))


def test_leftovers_of_a_killed_writer_are_removed(env: Environment, store: SqliteStore) -> None:
    left = Path(env["STATE_ENDPOINT"]).parent / ".status.json.0123456789ab.tmp"
    left.parent.mkdir()
    left.write_text("{")
    run(env, "--once")
    assert not left.exists()


# --- InfluxDB ----------------------------------------------------------------------------------------


def test_influxdb_that_is_killed_frozen_and_back_costs_no_slice(env: Environment, tmp_path: Path) -> None:
    with influx_server(tmp_path / "influxd") as (url, token, org, server):
        if server is None or server._process is None:
            pytest.skip("only a server of our own may be killed")
        make_bucket(url, token, org, "live")
        env |= {
            "INFLUXDB_URL": url,
            "INFLUXDB_TOKEN": token,
            "INFLUXDB_ORG": org,
            "INFLUXDB_BUCKET": "live",
            "INFLUXDB_TIMEOUT_S": "2",
        }
        store = InfluxStore(settings_of_bucket(url, token, org, "live", 2.0))
        with written(store), running(env, "-s", "percentile", "-d", "1", "-o", str(tmp_path)) as daemon:
            wait_for(all_ok(env))
            server.kill()
            wait_for(lambda: states(env) == ["stale"] * 3)
            server.start()
            wait_for(all_ok(env))
            server._process.send_signal(signal.SIGSTOP)
            wait_for(lambda: states(env) == ["stale"] * 3)
            assert all(node["free_cpu"] == 0 for node in status(env).values())
            server._process.send_signal(signal.SIGCONT)
            wait_for(all_ok(env))
            server._process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            # Nobody waits for a server that is mute.
            start = time.monotonic()
            told = end(daemon)
            assert time.monotonic() - start < 20
            server._process.send_signal(signal.SIGCONT)
        store.close()
    assert daemon.returncode == 0
    assert 1 <= told.count("store: InfluxDB") <= 3
    (path, *_) = tmp_path.glob("dump-*.json")
    epoch = read_dumps(path)[0].epoch
    assert np.array_equal(np.diff(epoch), np.ones(len(epoch) - 1))
    assert len(epoch) > 5


# --- what a person asks ------------------------------------------------------------------------------


def test_metrics_pass_promtool_and_agree_with_the_file(env: Environment, store: SqliteStore) -> None:
    port = free_port()
    env |= {"SCHED_METRICS_PORT": str(port), "SCHED_SCOPE_SLICE_S": "2"}
    with written(store), running(env, "-s", "scroogevm,rclike"):
        wait_for(all_ok(env))
        before = status(env)
        text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        if status(env) != before:
            before = status(env)
            text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    for node, said in before.items():
        assert found[f'scroogevm_node_free_cpu_cores{{node="{node}"}}'] == said["free_cpu"]
        assert found[f'scroogevm_node_free_memory_bytes{{node="{node}"}}'] == said["free_mem"] * 2**20
        assert found[f'scroogevm_node_state{{node="{node}",state="ok"}}'] == 1
        assert f'scroogevm_node_strategy_free_cpu_cores{{node="{node}",strategy="rclike"}}' in text
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_page_shows_what_the_file_says(env: Environment, store: SqliteStore) -> None:
    port = free_port()
    env |= {"SCHED_METRICS_PORT": str(port), "SCHED_SCOPE_SLICE_S": "2", "SCHED_SCOPE_S": "4"}
    with written(store), running(env, "-s", "borg,doa"):
        wait_for(all_ok(env))
        wait_for(lambda: json.loads(fetch(f"http://127.0.0.1:{port}/status.json")[1]) == status(env))
        page = fetch(f"http://127.0.0.1:{port}/")[1].decode()
        wait_for(lambda: "M188 32" in fetch(f"http://127.0.0.1:{port}/")[1].decode())
    for node in NODES:
        assert f'<th scope="row" class="node">{node}</th><td class="left state ok">ok</td>' in page
    assert page.count("<td>8.7</td>") == 2 * len(NODES)  # the second one beside the other strategies
    assert "CPU: <b>26.1</b> cores free" in page


def test_status_is_shown_as_a_table(env: Environment, store: SqliteStore) -> None:
    with written(store), running(env, "-s", "borg"):
        wait_for(all_ok(env))
        done = run(env, "--status")
    assert done.returncode == 0
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("http")]
    assert [row[0] for row in rows] == NODES
    assert rows[0][1:10] == ["ok", "8.7", "28.4", "1.04", "8.0", "16.0", "1.01", "4.0", "32.0"]
    assert rows[0][-1] == "borg"
    time.sleep(3)
    outdated = run(env, "--status").stdout
    assert outdated.count("outdated ") == len(NODES)
    assert "is it running?" in outdated


def test_watched_status_goes_on_until_it_is_interrupted(env: Environment, store: SqliteStore) -> None:
    with written(store), running(env, "-s", "borg"):
        wait_for(all_ok(env))
        with running(env, "--watch", stdout=subprocess.PIPE) as watcher:
            assert watcher.stdout
            # Into a pipe the table is printed before the end.
            assert any(NODES[0] in line for line in watcher.stdout)
            watcher.send_signal(signal.SIGINT)
            _, stderr = watcher.communicate(timeout=10)
    assert (watcher.returncode, stderr) == (0, "")


def test_missing_status_is_one_line(env: Environment) -> None:
    done = run(env, "--status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "status.json: No such file or directory" in done.stderr


def test_once_publishes_and_leaves(env: Environment, store: SqliteStore) -> None:
    with written(store):
        time.sleep(2.5)
    assert run(env, "--once").returncode == 0
    assert set(states(env)) <= {"ok", "stale"}


def test_dumps_of_a_daemon_can_be_read_like_those_of_a_replay(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    folder = tmp_path / "dumps"
    env["SCHED_NODES"] = json.dumps(NODES[:1])
    with written(store), running(env, "-s", "scroogevm,percentile", "-d", "2", "-o", str(folder)) as daemon:
        wait_for(lambda: states(env) == ["ok"])
        time.sleep(2)
        told = end(daemon)
    results = load_results(folder)
    assert results.strategies == ["scroogevm", "percentile"]
    assert results.node_name == NODES[0]
    (picture,) = folder.glob("dump-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert " scroogevm: 4 VMs, booked 8.0 cores 4096 MB, free " in told
    dump = strict_json(next(folder.glob("dump-*.json")).read_bytes())
    assert dump["config"]["strategy"] == "scroogevm"
    assert set(dump["vm"]) == {f"vm-{i}" for i in range(4)}


# --- what is told in one line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"SCHED_NODES": ""}, ["SCHED_NODES: names no node"]),
        ({"SCHED_NODES": "[1]"}, ["SCHED_NODES: is not a list of URLs"]),
        ({"SCHED_NODES": '["http://a","http://u:p@a"]'}, ["SCHED_NODES: entry 2: node http://a is there already"]),
        ({"SCHED_SCOPE_S": "3601", "SCHED_SCOPE_SLICE_S": "1800"}, ["SCHED_SCOPE_S: 3601 is not a multiple"]),
        (
            {"SCHED_SCOPE_SLICE_S": "0", "STATE_MODE": "9", "STATE_OWNER": "nobody-at-all:"},
            ["SCHED_SCOPE_SLICE_S", "STATE_MODE", "STATE_OWNER"],
        ),
        ({"SCHED_SCOPE_HISTORICAL": "1.5"}, ["SCHED_SCOPE_HISTORICAL: 1.5 is not a whole number"]),
        ({"STATE_OWNER": "4294967295:"}, ["STATE_OWNER: a number is larger than 4294967294"]),
        ({"STATE_OWNER": ":99999999999999999999"}, ["STATE_OWNER: a number is larger than 4294967294"]),
        (
            {"STATE_ENDPOINT": "same", "STORE_PATH": "same", "SCHED_MEMORY_PATH": "./same"},
            ["SCHED_MEMORY_PATH: is the file of STATE_ENDPOINT", "STORE_PATH: is the file of STATE_ENDPOINT"],
        ),
        ({"STORE_PATH": "/proc/no/store"}, ["/proc/no/store"]),
        ({"SCHED_MEMORY_PATH": "/proc/no/memory"}, ["/proc/no"]),
    ],
)
def test_settings_that_cannot_be_used_are_told_together(
    changes: dict[str, str], told: list[str], env: Environment
) -> None:
    done = run({**env, **changes})
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith("scroogevm.py: ") and words in line for line, words in zip(lines, told, strict=True)), (
        lines
    )


def test_taken_metrics_port_is_told(env: Environment) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        done = run({**env, "SCHED_METRICS_PORT": port})
        server.kill()
    assert done.returncode == 2
    assert done.stderr == f"scroogevm.py: SCHED_METRICS_PORT: cannot listen on port {port}: Address already in use\n"


def test_short_slices_are_warned_about(env: Environment) -> None:
    done = run({**env, "AGGREG_FETCH_DELAY": "0.5"}, "--once")
    assert "holds fewer than four scrapes" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since=2000-01-01", "--until=2000-01-02"), "nothing is stored of"),
        (("--since=2999-01-01",), "no slice has ended between it and --until"),
        (("--since=0", "--until=10", "--url=[]"), "--url: is not a list of URLs"),
        (("--since=0", "--until=10", "--url={"), "--url: is not JSON"),
    ],
)
def test_export_of_nothing_leaves_nothing(
    arguments: tuple[str, ...], words: str, env: Environment, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = run(
        {**env, "SCHED_NODES": json.dumps(NODES[:1]), "SCHED_SCOPE_S": "3600", "SCHED_SCOPE_SLICE_S": "3600"},
        f"--export={out}",
        *arguments,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
    assert not out.exists()


def test_export_begins_with_what_is_stored_however_early_it_may(env: Environment, tmp_path: Path) -> None:
    """From 1970 on there are two billion slices of a second: none but the last is looked at."""
    first_ms = int(time.time() - 20) * 1000
    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    for k in range(5):
        figures = {"cpu": 8.0, "mem": 1024.0, "cpu_usage": 1.0, "mem_usage": 100.0}
        store.write([store.encode(ScrapeSample(NODES[0], first_ms + 1000 * k, figures, {}))])
    store.close()
    out = tmp_path / "out.json"
    done = run({**env, "SCHED_NODES": json.dumps(NODES[:1])}, f"--export={out}", "--since=0")
    assert (done.returncode, done.stderr) == (0, "")
    epoch = strict_json(out.read_bytes())["epoch"]
    assert epoch[0] * 1000 == first_ms + 1000
    assert 5 <= len(epoch) <= 40


def test_export_needs_one_node(env: Environment, tmp_path: Path) -> None:
    done = run(env, f"--export={tmp_path / 'out.json'}", "--since=0", "--until=10")
    assert (done.returncode, "3 nodes, but a trace is of one" in done.stderr) == (2, True)


# --- OpenStack Placement ------------------------------------------------------------------------------


def test_placement_gets_the_ratios_that_are_published(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    with placement_server(tmp_path) as server:
        provider = server.provider("host-1", VCPU={"total": 16, "reserved": 2}, MEMORY_MB={"total": 32768})
        env |= {
            "PLACEMENT_PROVIDERS": json.dumps({NODES[0]: "host-1", NODES[1]: "nobody"}),
            "PLACEMENT_ENDPOINT": server.url,
            "PLACEMENT_TOKEN": "admin",
        }

        def ratio() -> float:
            return float(server.inventories(provider)["VCPU"]["allocation_ratio"])

        with written(store) as silent, contextlib.ExitStack() as started:
            begun(store)
            daemon = started.enter_context(running(env, "-s", "borg"))
            wait_for(all_ok(env))
            # (8 booked + 8.7 free, whole cores) / (16 - 2)
            wait_for(lambda: abs(ratio() - 16 / 14) < 1e-3)
            assert server.inventories(provider)["VCPU"]["reserved"] == 2
            assert "ok" in run(env, "--check").stdout
            silent.add(NODES[0])
            # Nothing is free on a node that is silent, and no ratio falls below 1.
            wait_for(lambda: ratio() == 1.0)
            told = end(daemon)
        assert daemon.returncode == 0
        assert told.count("no resource provider is named nobody") == 1


def test_check_tells_of_store_and_nodes(env: Environment, store: SqliteStore) -> None:
    with written(store, NODES[:2]):
        time.sleep(0.5)
    done = run(env, "--check")
    assert done.returncode == 1
    rows = [line.split(None, 2) for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows[:3]] == [(NODES[0], "ok"), (NODES[1], "ok"), (NODES[2], "FAILED")]
    assert rows[0][2].startswith("16 cores, 32 GB, 4 VMs, last sample ")
    assert "is this the URL that vmaggreg.py has?" in rows[2][2]
