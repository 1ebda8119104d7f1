"""All programs together: real processes, sockets and stores; published figures despite faults."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import in_thread
from model.replay.dump import read_dumps
from model.store.base import Store, StoreUnavailable
from model.store.influxdb import InfluxStore
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.integration.test_real_exporters import NODE_EXPORTER, exporter, put
from tests.support.guests import Guest, Host, missing
from tests.support.servers import fetch, influx_server, make_bucket, settings_of_bucket, wait_for

SLICE_S, POSITIONS, HISTORICAL = 2, 2, 1
SETTLE_S = 0.5
#: The first one is published; its forecast depends on its window only, those of the others on all earlier slices.
STRATEGIES = ("percentile", "scroogevm", "rclike")

#: How often the test waits for new figures of all nodes; each time at least one slice is published.
WAITS = 5

#: Published figures of each node that must equal those of the replay.
COMPARED = 3

Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return {
        **bare_environment(),
        "AGGREG_FETCH_DELAY": "0.2",
        "SCHED_SCOPE_S": str(SLICE_S * POSITIONS),
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        "SCHED_SCOPE_HISTORICAL": str(HISTORICAL),
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "0",
        "SCHED_SETTLE_S": str(SETTLE_S),
        # As a replay: without guards, which have tests of their own.
        "SCHED_GUARDS": "0",
        "SCHED_RISK": "0.05",
        "SCHED_RISK_MEM": "0.05",
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


class Daemon:
    """A daemon that can be killed and started again; all its runs log to one file."""

    def __init__(self, env: Environment, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, str(ROOT / name), *arguments]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        self._process.kill()
        self._process.wait(30)

    def end(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)


class Watch:
    """Polls status file and store, and keeps the published figures and the samples with their times.

    Attributes
    ----------
    published : dict
        By node and end of the slice: (state, free_cpu, free_mem).
    samples : dict
        By node: time of each sample, ms, and when it was first read from the store, Unix seconds.
    changed : list of str
        Figures of a slice that were published twice with different values.
    """

    def __init__(self, path: Path, nodes: list[str], open_store: Callable[[], Store]) -> None:
        self.published: dict[tuple[str, int], tuple[str, float, float]] = {}
        self.samples: dict[str, dict[int, float]] = {node: {} for node in nodes}
        self.changed: list[str] = []
        self._path, self._open_store = path, open_store
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._poll_status), threading.Thread(target=self._poll_store)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _poll_status(self) -> None:
        while not self._stop.wait(0.05):
            with contextlib.suppress(FileNotFoundError):
                for node, status in strict_json(self._path.read_bytes()).items():
                    if status["state"] == "ok":
                        key, figures = (node, status["slice_end"]), ("ok", status["free_cpu"], status["free_mem"])
                        if self.published.setdefault(key, figures) != figures:
                            self.changed.append(f"{key}: {self.published[key]}, then {figures}")

    def _poll_store(self) -> None:
        store, since_ms = self._open_store(), int(time.time() - 10) * 1000
        while not self._stop.wait(0.15):
            for node, seen in self.samples.items():
                with contextlib.suppress(StoreUnavailable):
                    until_ms = int(time.time() * 1000) + 10_000
                    times = store.read(node, since_ms, until_ms, ("cpu",), domains=False).node.time_ms
                    now_s = time.time()
                    for time_ms in times.tolist():
                        seen.setdefault(time_ms, now_s)
        store.close()

    def comparable(self, node: str) -> list[int]:
        """Ends of the published slices whose samples were all in the store in time."""
        return [end_s for name, end_s in list(self.published) if name == node and self.complete(node, end_s)]

    def complete(self, node: str, end_s: float) -> bool:
        """Whether all samples of the window were in the store when their slices were read."""
        first_ms = (end_s - SLICE_S * POSITIONS * (HISTORICAL + 1)) * 1000
        return all(
            seen_s <= _end_of_slice_s(time_ms) + SETTLE_S
            for time_ms, seen_s in list(self.samples[node].items())
            if first_ms <= time_ms < end_s * 1000
        )


def _end_of_slice_s(time_ms: int) -> int:
    return (time_ms // (SLICE_S * 1000) + 1) * SLICE_S


class Sqlite:
    """The embedded store; its fault is a lock of another process."""

    def __init__(self, env: Environment) -> None:
        self._path = Path(env["STORE_PATH"])

    def open(self) -> Store:
        return SqliteStore(self._path, 86400)

    def fail(self) -> None:
        locking = sqlite3.connect(self._path, isolation_level=None)
        locking.execute("BEGIN IMMEDIATE")
        time.sleep(2)
        locking.execute("ROLLBACK")
        locking.close()


class Influx:
    """A real InfluxDB; its fault is a kill, and a start some time later."""

    def __init__(self, env: Environment, opened: contextlib.ExitStack, folder: Path) -> None:
        url, token, org, server = opened.enter_context(influx_server(folder))
        if server is None:
            pytest.skip("a configured server is not killed")
        make_bucket(url, token, org, "whole")
        env |= {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": token, "INFLUXDB_ORG": org, "INFLUXDB_BUCKET": "whole"}
        env["INFLUXDB_TIMEOUT_S"] = "2"
        self._server, self._settings = server, settings_of_bucket(url, token, org, "whole", 2.0)

    def open(self) -> Store:
        return InfluxStore(self._settings)

    def fail(self) -> None:
        self._server.kill()
        time.sleep(3)
        self._server.start()


def run(env: Environment, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scroogevm.py", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def states(env: Environment) -> list[str]:
    return [node["state"] for node in strict_json(Path(env["STATE_ENDPOINT"]).read_bytes()).values()]


def sample_times(store: Store, node: str) -> list[int]:
    now_ms = int(time.time() * 1000)
    times: list[int] = store.read(
        node, now_ms - 600_000, now_ms + 10_000, ("cpu",), domains=False
    ).node.time_ms.tolist()
    return times


def wait_until_ok(env: Environment, *expected: int) -> None:
    """Wait until nodes have had figures of a slice that ends after the call: on a busy machine not all at once."""
    called_s, seen = time.time(), set[int]()

    def all_ok() -> bool:
        for i, node in enumerate(strict_json(Path(env["STATE_ENDPOINT"]).read_bytes()).values()):
            if node["cpu"]["state"] == node["mem"]["state"] == "ok" and node["slice_end"] >= called_s:
                seen.add(i)
        return seen >= set(expected)

    wait_for(all_ok, 90)


@pytest.mark.parametrize("kind", ["sqlite", "influxdb"])
def test_figures_equal_those_of_a_replay_despite_killed_daemons_and_a_failing_store(
    kind: str, env: Environment, tmp_path: Path
) -> None:
    """Each daemon is killed, the store fails, a worker and a VM leave; then the stored samples are replayed."""
    with contextlib.ExitStack() as opened:
        backend = Sqlite(env) if kind == "sqlite" else Influx(env, opened, tmp_path / "influxd")
        fakes = opened.enter_context(in_thread(Plan(workers=3, vms=5, probe_delay_ms=200, stats_period_s=1)))
        nodes = [fakes.url(i) for i in range(3)]
        env["AGGREG_STUB_LIST"] = json.dumps(fakes.stubs())

        def inject(worker: int, fault: str) -> None:
            assert fetch(f"{fakes.base_url}/control", {"worker": worker, "fault": fault})[0] == 200

        aggregator = opened.enter_context(Daemon(env, tmp_path, "vmaggreg.py"))
        wait_for(lambda: kind == "influxdb" or Path(env["STORE_PATH"]).exists())
        watch = opened.enter_context(Watch(Path(env["STATE_ENDPOINT"]), nodes, backend.open))
        estimator = opened.enter_context(
            Daemon(env, tmp_path, "scroogevm.py", "-s", ",".join(STRATEGIES), "-d", "1", "-o", str(tmp_path))
        )
        wait_until_ok(env, 0, 1, 2)

        aggregator.kill()
        aggregator.start()
        inject(0, "vm-leaves")
        wait_until_ok(env, 0, 1, 2)

        estimator.kill()
        time.sleep(SLICE_S + 0.5)
        estimator.start()
        wait_until_ok(env, 0, 1, 2)

        backend.fail()
        wait_until_ok(env, 0, 1, 2)

        inject(1, "500")
        wait_for(lambda: states(env)[1] == "stale", 60)
        wait_until_ok(env, 0, 2)
        inject(1, "none")
        inject(0, "vm-returns")
        estimator.kill()
        estimator.start()
        wait_until_ok(env, 0, 1, 2)
        # On a busy machine samples reach the store late; the daemons run until enough figures are comparable.
        wait_for(lambda: all(len(watch.comparable(node)) >= COMPARED for node in nodes), 120)
        assert estimator.end() == 0, estimator.log.read_text()
        assert aggregator.end() == 0, aggregator.log.read_text()
        store = backend.open()
        stored = {node: sample_times(store, node) for node in nodes}
        store.close()

        for node in nodes:
            lost = watch.samples[node].keys() - set(stored[node])
            assert not lost, "a stored sample was lost"
            compare(env, tmp_path, node, watch)
        assert watch.changed == [], "published figures of a slice have changed"
        # A failing worker does not affect others; samples were queued while the store failed.
        assert longest_gap_s(stored[nodes[1]]) > 1.5
        assert max(longest_gap_s(stored[nodes[0]]), longest_gap_s(stored[nodes[2]])) < 10


def longest_gap_s(times_ms: list[int]) -> float:
    return float(np.diff(times_ms).max()) / 1000


def compare(env: Environment, folder: Path, node: str, watch: Watch) -> None:
    """Compare the published figures and the dump of the daemon with a replay of the stored samples."""
    (path,) = folder.glob(f"dump-{node.replace('/', '')}_*.json")
    live = {dump.strategy: dump for dump in read_dumps(path)}
    assert tuple(live) == STRATEGIES
    epoch = live[STRATEGIES[0]].epoch
    assert np.array_equal(np.diff(epoch), np.full(len(epoch) - 1, SLICE_S)), "a slice is missing"
    trace, results = folder / "trace.json", folder / f"results-{abs(hash(node))}"
    period = (f"--since={epoch[0] - SLICE_S:.0f}", f"--until={epoch[-1]:.0f}", f"--url={json.dumps([node])}")
    run(env, f"--export={trace}", *period)
    run(env, f"--load={trace}", f"--strategy={','.join(STRATEGIES)}", f"--output={results}")
    whole = [watch.complete(node, end_s) for end_s in epoch]
    replayed = {name: read_dumps(results / f"dump-{name}.json")[0] for name in STRATEGIES}
    for name in STRATEGIES:
        assert np.array_equal(replayed[name].epoch, epoch)
        # Strategies that depend on all slices are comparable up to the first late sample.
        until = len(epoch) if all(whole) else whole.index(False)
        comparable = np.array(whole) if name == STRATEGIES[0] else np.arange(len(epoch)) < until
        for resource in ("cpu", "mem"):
            published, expected = (dumps[name].histories[resource].published for dumps in (live, replayed))
            np.testing.assert_array_equal(
                published[comparable], expected[comparable], f"{name} {resource} {node} {whole}"
            )
    published = {end_s: figures for (name, end_s), figures in watch.published.items() if name == node}
    assert len(published) >= WAITS
    resources = [replayed[STRATEGIES[0]].histories[resource].published for resource in ("cpu", "mem")]
    for end_s, (_, *figures) in published.items():
        k = bisect.bisect_left(epoch, end_s)
        assert epoch[k] == end_s, "a published slice is not in the dump"
        if whole[k]:
            assert figures == [series[k] for series in resources], f"{node} at {end_s}"


# --- with a real guest --------------------------------------------------------------------------------

FULL_MB = 512
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def idle_guest() -> Iterator[Guest]:
    """A guest that has used 300 MB and uses 70 MB now; the rest is still resident on the host."""
    if reason := missing():
        pytest.skip(f"no real guests here: {reason}")
    with Host() as host:
        guest = host.boot("idle", FULL_MB)
        guest.run("fill 300")
        guest.run("unfill")
        wait_for(lambda: guest.stats().get("unused", 0) > 400 * 1024)
        yield guest


def page_of(guest: Guest) -> bytes:
    """The page of vmprobe for this machine and its guest."""
    with guest.host.connection() as connection:
        domain = connection.lookupByName(guest.name)
        memory_stats, (_, _, _, vcpus, cpu_ns) = domain.memoryStats(), domain.info()
        del domain
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    user, nice, system, idle, iowait, *_ = (
        int(jiffies) * 10**9 // TICKS_PER_S for jiffies in Path("/proc/stat").read_text().split()[1:11]
    )
    metrics = {
        "global_probe_epoch": int(time.time() * 1000),
        "global_probe_delay": 1000,
        "global_cpu_total": os.cpu_count(),
        "global_cpu_user": user + nice,
        "global_cpu_kernel": system,
        "global_cpu_idle": idle,
        "global_cpu_iowait": iowait,
        "global_memory_total": int(memory["MemTotal"].split()[0]),
        "global_memory_available": int(memory["MemAvailable"].split()[0]),
        f"domain_{guest.name}_cpu_alloc": vcpus,
        f"domain_{guest.name}_cpu_cputime": cpu_ns,
        f"domain_{guest.name}_memory_alloc": memory_stats["actual"],
        **{
            f"domain_{guest.name}_memory_{name}": memory_stats[name]
            for name in ("available", "unused", "usable", "rss")
        },
        f"domain_{guest.name}_memory_last_update": memory_stats["last_update"],
        f"domain_{guest.name}_memory_majorfault": memory_stats["major_fault"],
        f"domain_{guest.name}_memory_minorfault": memory_stats["minor_fault"],
    }
    return "".join(f"vmprobe_{name} {value}\n" for name, value in metrics.items()).encode()


@contextlib.contextmanager
def probed(guest: Guest, folder: Path) -> Iterator[None]:
    """Write a file for the textfile collector of node_exporter each second as long as the block runs."""
    import libvirt

    stop = threading.Event()

    def write() -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(libvirt.libvirtError, OSError):
                put(folder, page_of(guest))

    put(folder, page_of(guest))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_memory_of_a_real_guest_is_measured_published_and_reclaimed(
    env: Environment, idle_guest: Guest, tmp_path: Path
) -> None:
    """From the guest over node_exporter, aggregator and store to its balloon."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    with contextlib.ExitStack() as opened:
        opened.enter_context(probed(idle_guest, folder))
        url = opened.enter_context(exporter(NODE_EXPORTER, f"--collector.textfile.directory={folder}"))
        env |= {
            "AGGREG_STUB_LIST": json.dumps([[url, "vmprobe"]]),
            "AGGREG_FETCH_DELAY": "0.5",
            "LIBVIRT_NODES": json.dumps({url: idle_guest.host.uri}),
            "SCHED_SCOPE_SLICE_S": "4",
            "SCHED_SCOPE_S": "4",
            "BALLOONING_SCOPE_S": "30",
            "BALLOONING_SCOPE_SLEEP_S": "2",
            "BALLOONING_CHECK_S": "0.4",
            "BALLOONING_MIN_CONFIG_MB": "100",
            "BALLOONING_THRESHOLD_GAIN_MB": "200",
            "BALLOONING_STATS_AGE_S": "15",
        }
        aggregator = opened.enter_context(Daemon(env, tmp_path, "vmaggreg.py"))
        estimator = opened.enter_context(Daemon(env, tmp_path, "scroogevm.py"))
        status = Path(env["STATE_ENDPOINT"])

        def published() -> dict[str, float] | None:
            node = strict_json(status.read_bytes())[url]
            return node if [node[part]["state"] for part in ("cpu", "mem")] == ["ok", "ok"] else None

        wait_for(published, 60)
        before_mb = idle_guest.rss_mb()
        assert before_mb > 400
        done = subprocess.run(
            [sys.executable, ROOT / "vmballooning.py", "--once", "-d", "1"],
            env=env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert before_mb - idle_guest.rss_mb() > 150, done.stderr
        assert idle_guest.balloon_mb() == FULL_MB
        assert idle_guest.run("fill 300; du -m /tmp/fill | cut -f1") == "300", "the guest has all of its memory again"
        node = wait_for(published)
        assert (node["cpu"]["config"], node["cpu"]["booked"]) == (os.cpu_count(), 1)
        assert node["mem"]["booked"] <= FULL_MB
        assert 0 <= node["free_cpu"] <= node["cpu"]["config"]
        assert 0 < node["free_mem"] < node["mem"]["config"]
        # The stored resident memory shows the same.
        store = SqliteStore(Path(env["STORE_PATH"]), 86400)
        now_ms = int(time.time() * 1000)
        rss_mb = store.read(url, now_ms - 120_000, now_ms, ("mem_rss",)).domains[idle_guest.name].fields["mem_rss"]
        store.close()
        assert rss_mb.max() > 400
        assert rss_mb.max() - rss_mb.min() > 150
        assert (estimator.end(), aggregator.end()) == (0, 0)
