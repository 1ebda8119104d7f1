"""scroogevm.py as a daemon: a real process, on a store that is written to meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import __version__
from model.estimates import NodeEstimate
from model.feedback import FleetModel
from model.guards import turn_of
from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.dump import read_dumps
from model.replay.replay import Replay
from model.replay.results import load_results
from model.replay.trace import read_trace
from model.samples import ScrapeSample
from model.slices import RESOURCES
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
        # The figures of the strategies themselves; the guards have tests of their own.
        "SCHED_GUARDS": "0",
        # As of a replay.
        "SCHED_RISK": "0.05",
        "SCHED_RISK_MEM": "0.05",
        "STATE_ENDPOINT": str(tmp_path / "state" / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


def _tenth_ms() -> int:
    """The last tenth of a second, Unix milliseconds."""
    return int(time.time() * 10) * 100


@contextlib.contextmanager
def written(store: Store, nodes: list[str] | None = None) -> Iterator[set[str]]:
    """Write samples of all nodes ten times a second during the block; the nodes in the yielded set are left out.

    A thread that was late on a busy machine writes what it has missed, so that slices are complete; what a store refuses is
    lost.
    """
    draw = np.random.default_rng(5)
    stop, silent = threading.Event(), set[str]()

    def sample(node: str, time_ms: int, elapsed_ms: int) -> ScrapeSample:
        fields = {"cpu": 16.0, "mem": 32768.0, "elapsed_time": elapsed_ms}
        fields |= {"oc_cpu": 8.0 / 16.0, "oc_mem": 4096.0 / 32768.0}
        fields |= {"cpu_usage": draw.uniform(1, 9), "mem_usage": draw.uniform(9e3, 2e4)}
        vms = {
            f"vm-{i}": {"cpu": 2.0, "mem": 1024.0, "cpu_usage": draw.uniform(0, 2), "mem_usage": 700.0}
            for i in range(4)
        }
        return ScrapeSample(node, time_ms, fields, vms)

    def write() -> None:
        before_ms = _tenth_ms()
        while not stop.wait(0.1 - time.time() % 0.1):
            now_ms, samples = _tenth_ms(), []
            for time_ms in range(max(before_ms + 100, now_ms - 1000), now_ms + 1, 100):
                samples += [sample(node, time_ms, time_ms - before_ms) for node in nodes or NODES if node not in silent]
                before_ms = time_ms
            with contextlib.suppress(StoreUnavailable):
                store.write([store.encode(one) for one in samples])

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
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, **more}
    process = subprocess.Popen([*PROGRAM, *arguments], env=env, **options)
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


def wait_for_samples(store: SqliteStore) -> None:
    """Wait until the last whole slice is covered by samples of all nodes."""

    def stored() -> bool:
        end_ms = int(time.time() - 0.3) * 1000
        times = (store.read(node, end_ms - 1000, end_ms, ("cpu",), domains=False).node.time_ms for node in NODES)
        return all(time_ms.size >= 8 for time_ms in times)

    wait_for(stored)


def status(env: Environment) -> dict[str, Any]:
    return strict_json(Path(env["STATE_ENDPOINT"]).read_bytes())


def states(env: Environment) -> list[str]:
    return [node["state"] for node in status(env).values()]


def all_ok(env: Environment) -> Callable[[], bool]:
    """Both resources of all nodes: a slice that is covered in part may suffice for one of them."""
    return lambda: all(node[resource]["state"] == "ok" for node in status(env).values() for resource in ("cpu", "mem"))


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
    # None in the first slice; then it depends on what the writer drew.
    assert 0.0 <= node["cpu"].pop("realised_risk", 0.0) <= 1.0
    assert node["cpu"] == {
        "state": "ok",
        "config": 16.0,
        "booked": 8.0,
        "booked_now": 8.0,
        "tier0": 7.3,
        "tier1": 0.0,
        "tier2": 8.7,
        "unguarded": 8.7,
        "own": 0.0,
        "closed": False,
        "limits": {},
        "contention": {"level": "none", "waiting_vms": 0},
    }
    assert (node["free_cpu"], node["free_mem"]) == (8.7, 32768 - 3723)
    assert time.time() - node["slice_end"] < 60
    assert node["slice_end"] + 1 <= node["valid_until"] <= node["slice_end"] + 3


def test_silent_node_is_stale_and_recovers_and_the_others_stay_ok(env: Environment, store: SqliteStore) -> None:
    with written(store) as silent, contextlib.ExitStack() as started:
        wait_for_samples(store)
        daemon = started.enter_context(running(env))
        wait_for(all_ok(env))
        silent.add(NODES[1])
        wait_for(lambda: states(env) == ["ok", "stale", "ok"])
        assert status(env)[NODES[1]]["free_cpu"] == 0
        silent.clear()
        wait_for(all_ok(env))
        log = end(daemon)
    # The slice in which it became silent may hold some samples; each cause is logged once.
    problems = [line for line in log.splitlines() if f"samples of {NODES[1]}: " in line and "recovered" not in line]
    assert 1 <= len(problems) <= 2
    assert all("in the slice that ended at " in line and "published free is 0" in line for line in problems)
    assert log.count(f"samples of {NODES[1]}: recovered") == 1
    assert daemon.returncode == 0


# --- restarts ----------------------------------------------------------------------------------------


def test_killed_daemon_continues_without_losing_a_slice(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    """Killed at three arbitrary moments; at the end the strategies have the figures of a replay of the store.

    What a strategy learns from other nodes is not in the trace of one node: the next test compares it.
    """
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
        for dump in (dump for dump in live if not STRATEGIES[dump.strategy].uses_vm_moments):
            for resource in ("cpu", "mem"):
                np.testing.assert_array_equal(
                    dump.histories[resource].published, histories[dump.strategy, resource].published
                )


def test_killed_daemon_learns_of_its_fleet_what_it_would_have_learnt(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    """Killed at arbitrary moments; each figure is that of the nodes in step, each with the feedback of all of them."""
    env |= {"SCHED_SCOPE_S": "4", "SCHED_SCOPE_SLICE_S": "2"}
    options = ("-s", "clt", "-d", "1", "-o", str(tmp_path))
    with written(store):
        for moment in (4.3, 1.3, 2.1, 1.7, 5.2, 2.9):
            with running(env, *options) as daemon:
                time.sleep(moment)
                daemon.kill()
        with running(env, *options) as daemon:
            wait_for(all_ok(env))
            begun = min(node["slice_end"] for node in status(env).values())
            # However slow the machine: some slices more, so that there is enough to compare.
            wait_for(lambda: min(node["slice_end"] for node in status(env).values()) >= begun + 8, 60)
            log = end(daemon)
    assert "fleet" not in log
    dumps = [read_dumps(path)[0] for node in NODES for path in tmp_path.glob(f"dump-{node.replace('/', '')}_*.json")]
    epochs = [dump.epoch for dump in dumps]
    first, last = epochs[0][0], min(epoch[-1] for epoch in epochs)
    assert [epoch[0] for epoch in epochs] == [first] * len(NODES)
    assert last - first >= 12
    expected = fleet_in_step(env, first, last, tmp_path)
    for i, dump in enumerate(dumps):
        number = int(np.searchsorted(dump.epoch, last)) + 1
        assert np.array_equal(np.diff(dump.epoch), np.full(len(dump.epoch) - 1, 2.0)), "no slice was left out"
        for resource in RESOURCES:
            published = dump.histories[resource.name].published[:number]
            np.testing.assert_array_equal(
                published, [one[i].of(resource).by_strategy["clt"].published for one in expected]
            )
    assert np.unique(dumps[0].histories["cpu"].published).size > 5, "the figures change"


def fleet_in_step(env: Environment, first: float, last: float, folder: Path) -> list[list[NodeEstimate]]:
    """The estimates of all nodes for each slice of their traces, computed one slice after the other."""
    slices = []
    for node in NODES:
        out = folder / "trace.json"
        done = run(env, f"--export={out}", f"--since={first - 2}", f"--until={last}", f"--url={json.dumps([node])}")
        assert done.returncode == 0, done.stderr
        slices.append(list(read_trace(out).slices()))
    settings = ModelSettings(1, ("clt",), positions=2)
    models = [NodeModel(settings, {"cpu": mean_predictor, "mem": mean_predictor}, turn_of(node)) for node in NODES]
    fleet, estimates = FleetModel(settings.cpu.risk, settings.mem.risk), []
    for of_nodes in zip(*slices, strict=True):
        feedback = fleet.feedback()
        estimates.append([model.update(one, feedback) for model, one in zip(models, of_nodes, strict=True)])
        fleet.update([one.counts for one in estimates[-1]])
    return estimates


def test_guards_are_on_by_default_and_a_replay_with_guards_gives_what_was_published(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    """Killed in between; the daemon continues with what the guards remember."""
    del env["SCHED_GUARDS"]
    env["SCHED_NODES"] = json.dumps(NODES[:1])
    arguments = ("-s", "percentile,clt", "-d", "1", "-o", str(tmp_path / "live"))
    with written(store):
        wait_for_samples(store)
        with running(env, *arguments) as daemon:
            time.sleep(3.3)
            daemon.kill()
        with running(env, *arguments) as daemon:
            wait_for(all_ok(env))
            time.sleep(2.5)
            published = status(env)[NODES[0]]["cpu"]
            shown = json.loads(run(env, "--status", "--json").stdout)[0]["cpu"]
            end(daemon)
    assert shown["limits"]
    assert shown["limits"] == published["limits"] or shown["free"] != published["unguarded"]
    assert shown["free"] < shown["unguarded"]
    (path,) = (tmp_path / "live").glob("dump-*.json")
    live = strict_json(path.read_bytes())
    assert live["config"]["guards"] is True
    epoch, out = live["epoch"], tmp_path / "trace.json"
    done = run(env, f"--export={out}", f"--since={epoch[0] - 1}", f"--until={epoch[-1]}")
    assert done.returncode == 0, done.stderr
    done = run(env, f"--load={out}", "-s", "percentile,clt", "--guards", "-o", str(tmp_path / "replay"))
    assert done.returncode == 0, done.stderr
    for name, model in (("percentile", live["model"]), ("clt", live["others"]["clt"])):
        replayed = strict_json((tmp_path / "replay" / f"dump-{name}.json").read_bytes())
        assert replayed["epoch"] == epoch
        assert len(epoch) >= 5
        for key in ("published", "unguarded", "violated"):
            for resource in ("cpu", "mem"):
                assert replayed["model"][f"{key}_{resource}"] == model[f"{key}_{resource}"], (name, key, resource)


def test_change_of_guards_does_not_continue_from_the_state_before(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    with written(store):
        wait_for_samples(store)
        with running(env, "-s", "borg") as daemon:
            wait_for(lambda: all_ok(env)() and status(env)[NODES[0]]["free_cpu"] == 8.7)
            end(daemon)
        # The option is the setting: the state of the first of the two is continued by the second.
        for changes, options, fresh in (({"SCHED_GUARDS": "1"}, (), True), ({}, ("--guards",), False)):
            Path(env["STATE_ENDPOINT"]).unlink()
            with running(env | changes, "-s", "borg", *options) as daemon:
                wait_for(Path(env["STATE_ENDPOINT"]).exists)
                wait_for(all_ok(env))
                log = end(daemon)
            published = status(env)[NODES[0]]
            assert published["cpu"]["limits"]
            assert published["free_cpu"] < published["cpu"]["unguarded"] == 8.7
            assert ("the models start from the stored samples" in log) == fresh


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_daemon_with_exit_code_zero_and_no_log_line(
    sent: signal.Signals, env: Environment, store: SqliteStore
) -> None:
    with written(store), contextlib.ExitStack() as started:
        wait_for_samples(store)
        daemon = started.enter_context(running(env))
        wait_for(all_ok(env))
        (line,) = end(daemon, sent).splitlines()
    assert daemon.returncode == 0
    assert " started: " in line


def test_second_daemon_on_the_same_checkpoint_file_waits_for_the_end_of_the_first(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    log = tmp_path / "second.log"
    path = Path(env["STATE_ENDPOINT"]).with_name("estimator.sqlite")
    with written(store), running(env) as first:
        wait_for(all_ok(env))
        with log.open("w") as stderr, running(env, stderr=stderr) as second:
            wait_for(lambda: f"start: {path}: another scroogevm.py uses it; trying again" in log.read_text())
            wait_for(all_ok(env))
            first.send_signal(signal.SIGTERM)
            first.wait(30)
            wait_for(lambda: " started: " in log.read_text())
            wait_for(all_ok(env))
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 0
    assert log.read_text().count("another scroogevm.py uses it") == 1
    assert log.read_text().count("start: recovered") == 1


def test_second_daemon_that_waits_stops_at_once(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    log = tmp_path / "second.log"
    with written(store), running(env):
        wait_for(all_ok(env))
        with log.open("w") as stderr, running(env, stderr=stderr) as second:
            wait_for(lambda: "another scroogevm.py uses it" in log.read_text())
            began = time.monotonic()
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 0
            assert time.monotonic() - began < 5
        done = run(env, "--once")
        path = Path(env["STATE_ENDPOINT"]).with_name("estimator.sqlite")
        assert (done.returncode, done.stderr) == (1, f"scroogevm.py: {path}: another scroogevm.py uses it\n")


def test_temporary_files_of_a_killed_daemon_are_removed(env: Environment, store: SqliteStore) -> None:
    left = Path(env["STATE_ENDPOINT"]).parent / ".status.json.0123456789ab.tmp"
    left.parent.mkdir()
    left.write_text("{")
    run(env, "--once")
    assert not left.exists()


# --- InfluxDB ----------------------------------------------------------------------------------------


def test_influxdb_that_is_killed_or_frozen_costs_no_slice(env: Environment, tmp_path: Path) -> None:
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
            first_s = max(node["slice_end"] for node in status(env).values())
            wait_for(lambda: max(node["slice_end"] for node in status(env).values()) >= first_s + 4)
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
            # The end does not wait for a server that does not respond.
            start = time.monotonic()
            log = end(daemon)
            assert time.monotonic() - start < 20
            server._process.send_signal(signal.SIGCONT)
        store.close()
    assert daemon.returncode == 0
    assert 1 <= log.count("store: InfluxDB") <= 3
    (path, *_) = tmp_path.glob("dump-*.json")
    epoch = read_dumps(path)[0].epoch
    assert np.array_equal(np.diff(epoch), np.ones(len(epoch) - 1))
    assert len(epoch) > 5


# --- status and metrics -----------------------------------------------------------------------------


def test_metrics_pass_promtool_and_agree_with_the_file(env: Environment, store: SqliteStore) -> None:
    port = free_port()
    env |= {"SCHED_METRICS_PORT": str(port), "SCHED_SCOPE_SLICE_S": "2"}
    with written(store), running(env, "-s", "scroogevm,rclike,clt"):
        wait_for(all_ok(env))
        before = status(env)
        text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        if status(env) != before:
            before = status(env)
            text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
    metrics = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    for node, published in before.items():
        assert metrics[f'scroogevm_node_free_cpu_cores{{node="{node}"}}'] == published["free_cpu"]
        assert metrics[f'scroogevm_node_free_memory_bytes{{node="{node}"}}'] == published["free_mem"] * 2**20
        assert metrics[f'scroogevm_node_state{{node="{node}",state="ok"}}'] == 1
        assert f'scroogevm_node_strategy_free_cpu_cores{{node="{node}",strategy="rclike"}}' in text
    # The first slices have no full node: the level falls.
    assert -1.0 <= metrics['scroogevm_fleet_level{resource="cpu"}'] <= 0.0
    assert metrics['scroogevm_fleet_common{resource="memory"}'] >= 0.0
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_page_shows_the_figures_of_the_status_file(env: Environment, store: SqliteStore) -> None:
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
    # Target risk and violation rate are left out: "- (0%)".
    lines = [re.sub(r"\S+ \((\S+%|-)\)", "", line) for line in done.stdout.splitlines()]
    rows = [[word for word in line.split() if word != "-"] for line in lines if line.strip().startswith("http")]
    assert [row[0] for row in rows] == NODES
    assert rows[0][1:10] == ["ok", "8.7", "28.4", "1.04", "8.0", "16.0", "1.01", "4.0", "32.0"]
    assert rows[0][-1] == "borg"
    time.sleep(3)
    outdated = run(env, "--status").stdout
    assert outdated.count("outdated ") == len(NODES)
    assert "is it running?" in outdated


def test_watched_status_is_shown_until_interrupted(env: Environment, store: SqliteStore) -> None:
    with written(store), running(env, "-s", "borg"):
        wait_for(all_ok(env))
        ours, terminal = os.openpty()
        os.set_blocking(ours, False)
        shown = b""

        def shows_a_node() -> bool:
            nonlocal shown
            shown += os.read(ours, 65536)
            return NODES[0].encode() in shown

        with running({**env, "COLUMNS": "200", "TERM": "xterm"}, "--watch", stdout=terminal) as watcher:
            wait_for(shows_a_node)
            watcher.send_signal(signal.SIGINT)
            _, stderr = watcher.communicate(timeout=10)
        os.close(ours)
        os.close(terminal)
        assert (watcher.returncode, stderr) == (0, "")
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


def test_once_publishes_and_exits(env: Environment, store: SqliteStore) -> None:
    env["SCHED_SCOPE_INIT_FETCH_PREVIOUS"] = "50"
    with written(store):
        wait_for_samples(store)
    assert run(env, "--once").returncode == 0
    assert set(states(env)) <= {"ok", "stale"}


def test_dumps_of_a_daemon_can_be_read_like_those_of_a_replay(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    folder = tmp_path / "dumps"
    env["SCHED_NODES"] = json.dumps(NODES[:1])
    with written(store), contextlib.ExitStack() as started:
        wait_for_samples(store)
        daemon = started.enter_context(running(env, "-s", "scroogevm,percentile", "-d", "2", "-o", str(folder)))
        wait_for(lambda: list(folder.glob("dump-*.png")), 60)
        log = end(daemon)
    results = load_results(folder)
    assert results.strategies == ["percentile", "scroogevm"]  # the order of the registry
    assert results.node_name == NODES[0]
    (picture,) = folder.glob("dump-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert " scroogevm: 4 VMs, booked 8.0 cores 4096 MB, free " in log
    dump = strict_json(next(folder.glob("dump-*.json")).read_bytes())
    assert dump["config"]["strategy"] == "scroogevm"
    assert set(dump["vm"]) == {f"vm-{i}" for i in range(4)}


# --- mistakes: one line and exit code 2 ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"SCHED_NODES": ""}, ["SCHED_NODES: names no node"]),
        ({"SCHED_NODES": "[1]"}, ["SCHED_NODES: is not a list of URLs"]),
        ({"SCHED_NODES": '["http://a","http://u:p@a"]'}, ["SCHED_NODES: entry 2: node http://a is listed twice"]),
        ({"SCHED_SCOPE_S": "3601", "SCHED_SCOPE_SLICE_S": "1800"}, ["SCHED_SCOPE_S: 3601 is not a multiple"]),
        (
            {"SCHED_SCOPE_SLICE_S": "0", "STATE_MODE": "9", "STATE_OWNER": "nobody-at-all:"},
            ["SCHED_SCOPE_SLICE_S: ", "STATE_OWNER: ", "STATE_MODE: "],
        ),
        ({"SCHED_SCOPE_HISTORICAL": "1.5"}, ["SCHED_SCOPE_HISTORICAL: '1.5' is not a whole number from 0 to 10000"]),
        ({"STATE_OWNER": "4294967295:"}, ["STATE_OWNER: an ID is larger than 4294967294"]),
        ({"STATE_OWNER": ":99999999999999999999"}, ["STATE_OWNER: an ID is larger than 4294967294"]),
        (
            {"STATE_ENDPOINT": "same", "STORE_PATH": "same", "SCHED_MEMORY_PATH": "./same"},
            ["SCHED_MEMORY_PATH: is the file of STATE_ENDPOINT", "STORE_PATH: is the file of STATE_ENDPOINT"],
        ),
        (
            {"STATE_ENDPOINT": str(ROOT), "SCHED_MEMORY_PATH": str(ROOT / "model")},
            [
                f"STATE_ENDPOINT: {ROOT} is a folder, not a file",
                f"SCHED_MEMORY_PATH: {ROOT / 'model'} is a folder, not a file",
            ],
        ),
        ({"STORE_PATH": str(ROOT / "README.md")}, ["README.md: file is not a database"]),
        ({"SCHED_METRICS_PORT": "1", "METRICS_ADDRESS": "nowhere at all"}, ["SCHED_METRICS_PORT: cannot listen"]),
    ],
)
def test_all_wrong_settings_are_reported_together(
    changes: dict[str, str], messages: list[str], env: Environment
) -> None:
    done = run({**env, **changes})
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith("scroogevm.py: ")
        assert message in line


def test_metrics_port_in_use_delays_the_page_alone(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with written(store), log.open("w") as stderr, running({**env, "SCHED_METRICS_PORT": str(port)}, stderr=stderr):
            wait_for(all_ok(env))
            message = f"SCHED_METRICS_PORT: cannot listen on port {port}: Address already in use; trying again"
            assert log.read_text().count(message) == 1
            taken.close()
            wait_for(lambda: NODES[0].encode() in fetch(f"http://127.0.0.1:{port}/status.json")[1])


@pytest.mark.parametrize("setting", ["SCHED_MEMORY_PATH", "STATE_ENDPOINT", "STORE_PATH"])
def test_folder_that_cannot_be_written_yet_is_waited_for(
    setting: str, env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    blocked, log = tmp_path / "blocked", tmp_path / "daemon.log"
    blocked.write_text("not a folder yet")
    path = str(blocked / "file")
    late = {**env, "SCHED_MEMORY_PATH": str(tmp_path / "memory"), setting: path}
    with contextlib.ExitStack() as stack:
        if setting != "STORE_PATH":
            stack.enter_context(written(store))
        process = stack.enter_context(running(late, stderr=stack.enter_context(log.open("w"))))
        wait_for(lambda: path in log.read_text() or str(blocked) in log.read_text() or "status file" in log.read_text())
        assert process.poll() is None
        blocked.unlink()
        if setting == "STORE_PATH":
            late_store = stack.enter_context(contextlib.closing(SqliteStore(Path(path), 86400)))
            stack.enter_context(written(late_store))
        wait_for(all_ok(late))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_slices_of_few_scrapes_are_warned_about(env: Environment) -> None:
    done = run({**env, "AGGREG_FETCH_DELAY": "0.5"}, "--once")
    assert "holds fewer than four scrapes" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since=2000-01-01", "--until=2000-01-02"), "nothing is stored of"),
        (("--since=2999-01-01",), "no slice has ended between it and --until"),
        (("--since=0", "--until=10", "--url=[]"), "--url: is not a list of URLs"),
        (("--since=0", "--until=10", "--url={"), "--url: is neither an http(s) URL nor JSON"),
    ],
)
def test_export_of_nothing_leaves_nothing(
    arguments: tuple[str, ...], message: str, env: Environment, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = run(
        {**env, "SCHED_NODES": json.dumps(NODES[:1]), "SCHED_SCOPE_S": "3600", "SCHED_SCOPE_SLICE_S": "3600"},
        f"--export={out}",
        *arguments,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not out.exists()


def test_export_starts_with_the_first_stored_slice(env: Environment, tmp_path: Path) -> None:
    """Since 1970 there have been two billion slices of a second, of which only the last ones are read."""
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


def test_placement_receives_the_published_ratios(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    with placement_server(tmp_path) as server:
        shared = {"total": 16, "reserved": 2, "allocation_ratio": 4.0}
        provider = server.provider("host-1", VCPU=shared, MEMORY_MB={"total": 32768})
        # What is booked on the node counts up to what Placement has allocated.
        about = {"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"}
        vms = {"allocations": {provider: {"resources": {"VCPU": 8, "MEMORY_MB": 4096}}}, **about}
        server.call("PUT", f"/allocations/{uuid.uuid4()}", vms)
        env |= {
            "PLACEMENT_PROVIDERS": json.dumps({NODES[0]: "host-1", NODES[1]: "nobody"}),
            "PLACEMENT_ENDPOINT": server.url,
            "PLACEMENT_TOKEN": "admin",
            "PLACEMENT_ALLOW_BELOW_ONE": "1",
        }

        def ratio() -> float:
            return float(server.inventories(provider)["VCPU"]["allocation_ratio"])

        with written(store) as silent, contextlib.ExitStack() as started:
            wait_for_samples(store)
            daemon = started.enter_context(running(env, "-s", "borg"))
            wait_for(all_ok(env))
            # (8 booked + 8.7 free - 2 reserved, whole cores) / (16 - 2)
            wait_for(lambda: ratio() == 1.0)
            assert server.inventories(provider)["VCPU"]["reserved"] == 2

            # What was written is noted at the end of the round.
            def rows() -> dict[str, Any]:
                return {row["target"]: row for row in json.loads(run(env, "--check", "--json").stdout)}

            wait_for(lambda: "by ScroogeVM" in rows()[f"placement {NODES[0]}"]["message"])
            found = rows()[f"placement {NODES[0]}"]
            assert found["ok"]
            for part in (
                "host-1: VCPU 16 of 16 cores, reserved 2, ratio ",
                "used 8, booked 8; MEMORY_MB 32768 of 32768 MB",
            ):
                assert part in found["message"]
            assert rows()[f"placement {NODES[1]}"]["message"] == "no resource provider is named nobody"
            silent.add(NODES[0])
            # The published free of a silent node is 0.
            wait_for(lambda: abs(ratio() - 8 / 14) < 1e-3)
            log = end(daemon)
        assert daemon.returncode == 0
        assert log.count("no resource provider is named nobody") == 1


def test_check_reports_store_and_nodes(env: Environment, store: SqliteStore) -> None:
    with written(store, NODES[:2]):
        time.sleep(0.5)
    done = run(env, "--check")
    assert done.returncode == 1
    rows = [line.split(None, 2) for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows[:3]] == [(NODES[0], "ok"), (NODES[1], "ok"), (NODES[2], "FAILED")]
    assert rows[0][2].startswith("16 cores, 32 GB, 4 VMs, last sample ")
    assert rows[2][2].rstrip() == "no samples stored; does vmaggreg.py use the same URL?"


def test_check_without_a_store_leaves_no_file(env: Environment, tmp_path: Path) -> None:
    env |= {"AGGREG_QUEUE_MB": "5", "BALLOONING_SCOPE_S": "60"}  # settings of the other daemons are no mistakes
    done = run(env, "--check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "does not exist yet; vmaggreg.py creates it" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_url_of_a_single_node_needs_no_json(env: Environment, store: SqliteStore) -> None:
    with written(store):
        time.sleep(0.5)
    done = run(env, "--check", f"--url={NODES[0]}")
    assert done.returncode == 0
    rows = [line.split(None, 2) for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[NODES[0], "ok"], ["store", env["STORE_PATH"]]]


# --- reload --------------------------------------------------------------------------------------------


class Reloadable:
    """A daemon in a folder whose ``.env`` the test changes."""

    def __init__(self, env: Environment, folder: Path) -> None:
        self.folder = folder
        self.env = {key: value for key, value in env.items() if key != "SCHED_NODES"}
        self.log_file = folder / "daemon.log"

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        with self.log_file.open("wb") as log:
            process = subprocess.Popen([*PROGRAM, *arguments], env=self.env, cwd=self.folder, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)

    def write_settings(self, nodes: list[str], **more: str) -> None:
        lines = {"SCHED_NODES": json.dumps(nodes), **more}
        (self.folder / ".env").write_text("".join(f"{key}='{value}'\n" for key, value in lines.items()))

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log_file.read_text().splitlines() if text in line]


@pytest.fixture
def daemon(env: Environment, tmp_path: Path) -> Reloadable:
    return Reloadable(env, tmp_path)


def test_start_line_names_version_store_nodes_strategies_status_file_and_page(
    daemon: Reloadable, store: SqliteStore
) -> None:
    port = free_port()
    daemon.write_settings(NODES[:2], SCHED_METRICS_PORT=str(port))
    with written(store), daemon.running("-s", "borg,doa"):
        wait_for(lambda: daemon.lines(" started: "))
    (line,) = daemon.lines(" started: ")
    assert line.partition(" started: ")[2] == (
        f"version={__version__}, store {daemon.env['STORE_PATH']}, nodes=2, strategies=borg,doa, "
        f"status_file={daemon.env['STATE_ENDPOINT']}, page=http://127.0.0.1:{port}/"
    )


def test_sighup_takes_over_another_list_of_nodes_and_another_port(daemon: Reloadable, store: SqliteStore) -> None:
    first, second = free_port(), free_port()
    daemon.write_settings(NODES[:2], SCHED_METRICS_PORT=str(first))
    with written(store), daemon.running("-s", "borg") as process:
        wait_for(lambda: states(daemon.env) == ["ok", "ok"])
        assert b"nodes" in fetch(f"http://127.0.0.1:{first}/")[1]
        daemon.write_settings(NODES[1:], SCHED_METRICS_PORT=str(second))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: list(status(daemon.env)) == NODES[1:] and states(daemon.env) == ["ok", "ok"])
        assert NODES[2].encode() in fetch(f"http://127.0.0.1:{second}/metrics")[1]
        with pytest.raises(OSError, match="refused"):
            fetch(f"http://127.0.0.1:{first}/")
        # Once more with the same settings: all resources are free again.
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.lines(" started: ")) == 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [line.rpartition(" page=")[2] for line in daemon.lines(" started: ")] == [
        f"http://127.0.0.1:{port}/" for port in (first, second, second)
    ]
    assert len(daemon.lines("reload: settings read again")) == 2
    assert not daemon.lines("Traceback")


def test_sighup_takes_over_another_strategy(daemon: Reloadable, store: SqliteStore) -> None:
    daemon.write_settings(NODES, SCHED_STRATEGY="borg")
    with written(store), daemon.running() as process:
        wait_for(all_ok(daemon.env))
        daemon.write_settings(NODES, SCHED_STRATEGY="doa,percentile")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: {node["strategy"] for node in status(daemon.env).values()} == {"doa"})
        wait_for(all_ok(daemon.env))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(daemon.lines("written by another version or configuration")) == 1


def test_wrong_settings_at_a_reload_are_logged_and_the_previous_ones_kept(
    daemon: Reloadable, store: SqliteStore
) -> None:
    daemon.write_settings(NODES[:1])
    with written(store), daemon.running("-s", "borg") as process:
        wait_for(lambda: states(daemon.env) == ["ok"])
        daemon.write_settings(NODES[1:], SCHED_DUMP_SLICES="0", STATE_MODE="9")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.lines("continues with the previous"))
        assert len(daemon.lines("reload: SCHED_DUMP_SLICES: ")) == len(daemon.lines("reload: STATE_MODE: ")) == 1
        wait_for(lambda: len(daemon.lines(" started: ")) == 2)
        slice_end = status(daemon.env)[NODES[0]]["slice_end"]
        wait_for(lambda: status(daemon.env)[NODES[0]]["slice_end"] > slice_end and states(daemon.env) == ["ok"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_settings_that_cannot_be_opened_at_a_reload_are_logged_and_the_previous_ones_kept(
    daemon: Reloadable, store: SqliteStore, tmp_path: Path
) -> None:
    daemon.write_settings(NODES[:1])
    blocked = tmp_path / "not a folder"
    blocked.write_text("")
    with written(store), daemon.running("-s", "borg") as process:
        wait_for(lambda: states(daemon.env) == ["ok"])
        daemon.write_settings(NODES[:2], SCHED_MEMORY_PATH=str(blocked / "memory"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.lines(" started: ")) == 2)
        (line,) = daemon.lines(f"reload: {blocked}")
        assert line.endswith(": Not a directory") or line.endswith(": File exists")
        assert list(status(daemon.env)) == NODES[:1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
