"""Two masters that share the nodes of a fleet, as real programs: one is killed, and the other takes its nodes over."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.estimator.shards import Shard
from model.samples import ScrapeSample
from model.store.base import StoreUnavailable
from model.store.sqlite import SqliteStore
from tests.conftest import bare_environment
from tests.support.prometheus_fleet import PROGRAM, Daemon, compared
from tests.support.servers import wait_for

SLICE_S, STEP_MS, SCOPE = 2, 250, 48
NODES = tuple(f"http://w{i}:9100/metrics" for i in range(1, 7))
#: The nodes of the master that is killed, and those of the other.
KILLED, OTHER = (Shard(i, 2).select(NODES) for i in (1, 2))
#: A node of the former that is full for some seconds before the start: it is closed for half a scope.
FULL = KILLED[0]
CORES = 32.0
#: The caution of the fleet differs in the last digits while masters catch up at different times.
MARGINS = {"cpu of clt": 0.002 * CORES, "memory of clt": 0.002 * 65536 * 2**20}


def sample(node: str, time_ms: int, full_s: tuple[float, float]) -> ScrapeSample:
    """A node whose usage depends on its name and the time alone."""
    seed, seconds = zlib.crc32(node.encode()), time_ms / 1000
    usage = 9 + 3 * math.sin(seconds / 7 + seed) + 2 * math.sin(seconds / 1.3 + 2 * seed)
    if node == FULL and full_s[0] <= seconds < full_s[1]:
        usage = CORES
    vms = {
        f"vm-{i}": {"cpu": 4.0, "mem": 4096.0, "cpu_usage": usage / 6, "mem_usage": 2000.0, "mem_rss": 3000.0}
        for i in range(5)
    }
    fields = {"cpu": CORES, "mem": 65536.0, "cpu_usage": usage, "mem_usage": 20000.0, "elapsed_time": float(STEP_MS)}
    sums = {"oc_cpu": 20.0 / CORES, "oc_mem": 5 * 4096.0 / 65536.0}
    return ScrapeSample(node, time_ms, fields | sums, vms)


@contextlib.contextmanager
def written(stores: Sequence[SqliteStore], since_s: float) -> Iterator[None]:
    """The samples of all nodes since a time, and those that come during the block; in each of the stores."""
    stop, full_s, next_ms = threading.Event(), (time.time() - 12, time.time() - 6), int(since_s * 1000)

    def write() -> None:
        nonlocal next_ms
        times_ms = range(next_ms, int(time.time() * 1000), STEP_MS)
        samples = [sample(node, time_ms, full_s) for time_ms in times_ms for node in NODES]
        for store in stores:
            with contextlib.suppress(StoreUnavailable):
                store.write([store.encode(one) for one in samples])
        next_ms += STEP_MS * len(times_ms)

    def write_on() -> None:
        while not stop.wait(0.1):
            write()

    write()
    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def master(folder: Path, store: str, name: str, shard: str) -> Daemon:
    daemon = Daemon(folder / name, "")
    daemon.env = {
        **bare_environment(),
        "SCHED_METRICS_PORT": str(daemon.port),
        "SCHED_NODES": json.dumps(NODES),
        "SCHED_SHARD": shard,
        "SCHED_MASTER": name,
        "SCHED_SCOPE_S": str(SLICE_S * SCOPE),
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        "SCHED_SCOPE_HISTORICAL": "1",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "2",
        "SCHED_SETTLE_S": "0.5",
        "SCHED_CONTENTION_CHECK_S": "0",
        "STATE_ENDPOINT": str(folder / name / "status.json"),
        "STORE_PATH": str(folder / store),
    }
    return daemon


def is_fresh(one: Daemon, since_s: float) -> bool:
    """Whether all of its nodes have figures of a slice that began after a time."""
    nodes = one.nodes()
    return (
        bool(nodes)
        and one.states() == {"ok"}
        and all(node["slice_end"] - SLICE_S >= since_s for node in nodes.values())
    )


def shown(*masters: Daemon) -> tuple[int, dict[str, str]]:
    """Exit code of ``--status`` of the files of these masters, and the states of the nodes."""
    files = [one.env["STATE_ENDPOINT"] for one in masters]
    done = subprocess.run(
        [*PROGRAM, "--json", "--status", *files], env=bare_environment(), capture_output=True, timeout=60, check=False
    )
    return done.returncode, dict(sorted((node["node"], node["state"]) for node in json.loads(done.stdout)))


def shared_counts(path: Path) -> dict[str, int]:
    """The last slice of which each master has written its counts to the store, Unix ms."""
    with contextlib.closing(SqliteStore(path, 86400)) as store:
        rows = store.read_fleet(0, 4 * 10**12)
    return {name: max(row.time_ms for row in rows if row.master == name) for name in {row.master for row in rows}}


def test_killed_master_is_outdated_and_its_nodes_are_taken_over_with_no_higher_figure(tmp_path: Path) -> None:
    """The figures are compared with those of a master of all nodes, on a store of its own with the same samples."""
    store = tmp_path / "shared.sqlite"
    with contextlib.ExitStack() as started:
        stores = [
            started.enter_context(contextlib.closing(SqliteStore(path, 86400)))
            for path in (store, tmp_path / "whole.sqlite")
        ]
        started.enter_context(written(stores, time.time() - 3.2 * SLICE_S * SCOPE))
        whole = started.enter_context(master(tmp_path, "whole.sqlite", "whole", "1/1"))
        first = started.enter_context(master(tmp_path, "shared.sqlite", "m1", "1/2"))
        second = started.enter_context(master(tmp_path, "shared.sqlite", "m2", "2/2"))
        began_s = time.time()
        wait_for(lambda: all(is_fresh(one, began_s) for one in (whole, first, second)), 90)
        assert sorted(first.nodes()) == sorted(KILLED)
        assert sorted(second.nodes()) == sorted(OTHER)
        assert shown(first, second) == (0, dict.fromkeys(sorted(NODES), "ok"))

        first.process.send_signal(signal.SIGKILL)
        first.process.wait(30)
        killed_s = time.time()
        states = {**dict.fromkeys(KILLED, "outdated"), **dict.fromkeys(OTHER, "ok")}
        wait_for(lambda: shown(first, second) == (1, dict(sorted(states.items()))), 60)
        # What the fleet has learnt goes on without the counts of the dead master, which nothing waits for.
        wait_for(lambda: shared_counts(store)["m2"] > (killed_s + 2 * SLICE_S) * 1000, 60)
        assert shared_counts(store)["m1"] <= killed_s * 1000
        wait_for(lambda: is_fresh(second, killed_s) and is_fresh(whole, killed_s), 60)
        assert compared(whole, first, began_s, MARGINS) == set(KILLED)
        assert compared(whole, second, began_s, MARGINS) == set(OTHER)

        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0
        third = started.enter_context(master(tmp_path, "shared.sqlite", "m2", "1/1"))
        restarted_s = time.time()
        wait_for(lambda: sorted(third.nodes()) == sorted(NODES) and is_fresh(third, restarted_s + 3 * SLICE_S), 60)
        # The file of the dead master is still there: the later slice counts.
        assert shown(first, third) == (0, dict.fromkeys(sorted(NODES), "ok"))
        full = third.nodes()[FULL]["cpu"]
        assert (
            (third.nodes()[FULL]["free_cpu"], full["closed"]) == (0, whole.nodes()[FULL]["cpu"]["closed"]) == (0, True)
        )
        wait_for(lambda: is_fresh(whole, restarted_s + 4 * SLICE_S), 60)
        assert compared(whole, third, restarted_s, MARGINS) == set(NODES)
        # Nothing of the past of the taken-over nodes was published while they caught up.
        assert min(end_s for node, end_s, _ in third.figures.highest if node in KILLED) >= restarted_s - 2 * SLICE_S
        assert any(value > 0 for (node, _, kind), value in third.figures.highest.items() if node in KILLED[1:])
        assert "Traceback" not in third.log() + second.log()


def test_file_of_a_killed_master_lets_another_one_continue(tmp_path: Path) -> None:
    with contextlib.ExitStack() as started:
        store = started.enter_context(contextlib.closing(SqliteStore(tmp_path / "shared.sqlite", 86400)))
        started.enter_context(written([store], time.time() - 3.2 * SLICE_S * SCOPE))
        first = started.enter_context(master(tmp_path, "shared.sqlite", "m1", "1/2"))
        began_s = time.time()
        wait_for(lambda: is_fresh(first, began_s), 90)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(30)
        computed = first.figures.computed
        (tmp_path / "m3").mkdir()
        for path in (tmp_path / "m1").glob("estimator.sqlite*"):
            shutil.copy(path, tmp_path / "m3")
        last_s = min(node["slice_end"] for node in first.nodes().values())
        third = started.enter_context(master(tmp_path, "shared.sqlite", "m3", "1/2"))
        restarted_s = time.time()
        wait_for(lambda: is_fresh(third, restarted_s), 60)
        assert sorted(third.nodes()) == sorted(KILLED)
        # Those since the kill alone, of four nodes.
        assert third.figures.computed <= len(KILLED) * ((time.time() - last_s) / SLICE_S + 1) < computed / 2
        assert third.nodes()[FULL]["cpu"]["closed"]
