"""vmballooning.py on real guests: memory returns to the host, and no guest stays squeezed."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from model.ballooning.hypervisor import Hypervisor
from model.samples import ScrapeSample
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment
from tests.support.guests import Guest, Host, Sshd, children, frozen, mute
from tests.support.prometheus import prometheus_server
from tests.support.prometheus_fleet import guest_memory
from tests.support.servers import fetch, free_port, wait_for

PROGRAM = [sys.executable, str(ROOT / "vmballooning.py")]
NODE, OTHER = "http://w1:9100/metrics", "http://w2:9100/metrics"
FULL_MB = 512

Environment = dict[str, str]


@pytest.fixture(scope="module")
def guests(host: Host) -> dict[str, Guest]:
    """Guests that boot in parallel; the name of one has a hyphen, which vmprobe removes."""
    booting = {
        "vm-a": host.boot("vm-a", FULL_MB, ready=False),
        "careful": host.boot("careful", FULL_MB, autodeflate=True, ready=False),
        "driverless": host.boot("driverless", 160, driver=False, ready=False),
    }
    for guest in booting.values():
        guest.wait()
    return booting


@pytest.fixture
def hoarder(guests: dict[str, Guest]) -> Iterator[Guest]:
    """A guest that used 300 MB once and uses 70 now; all of it is still resident on the host."""
    yield hoarding(guests["vm-a"])
    guests["vm-a"].run("rm -f /tmp/*; killall dd 2>/dev/null; echo 0 >/proc/sys/vm/overcommit_memory")


def hoarding(guest: Guest) -> Guest:
    guest.set_memory(FULL_MB)
    wait_for(lambda: guest.balloon_mb() == FULL_MB)
    guest.run("fill 300")
    guest.run("unfill")
    wait_for(lambda: guest.stats()["unused"] > 400 * 1024)
    assert guest.rss_mb() > 400
    return guest


@pytest.fixture
def env(host: Host, tmp_path: Path) -> Environment:
    return {
        **bare_environment(),
        "LIBVIRT_NODES": json.dumps({NODE: host.uri}),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "BALLOONING_SCOPE_S": "30",
        "BALLOONING_SCOPE_SLEEP_S": "2",
        "BALLOONING_CHECK_S": "0.4",
        "BALLOONING_MIN_CONFIG_MB": "100",
        "BALLOONING_THRESHOLD_GAIN_MB": "200",
        "BALLOONING_STATS_AGE_S": "15",
        "BALLOONING_STUCK_S": "30",
        "BALLOONING_EXCLUDE": '["careful"]',
    }


#: Small steps, so that a session lasts long enough for a fault during it.
SLOWLY = {"BALLOONING_STEP_MB": "24", "BALLOONING_STEP_PCT": "0"}
#: A few steps, for a daemon that is killed during the session.
STEPWISE = {**SLOWLY, "BALLOONING_STEP_MB": "60"}


@pytest.fixture
def stored(env: Environment, guests: dict[str, Guest]) -> Iterator[None]:
    """Stores samples of the guests twice a second, as an aggregator does."""
    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.5):
            domains = {}
            for name, guest in guests.items():
                with contextlib.suppress(libvirt.libvirtError, OSError):
                    stats = guest.stats()
                    domains[name.replace("-", "")] = {
                        "mem": stats["actual"] / 1024,
                        "mem_usage": (stats["actual"] - stats.get("unused", stats["actual"] - 40960)) / 1024,
                        "mem_rss": stats["rss"] / 1024,
                    }
            if domains:
                store.write([store.encode(ScrapeSample(NODE, int(time.time() * 1000), {"cpu": 2.0}, domains))])

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: store.last(NODE))
    yield
    stop.set()
    writer.join()
    store.close()


def run(env: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)


DISKS = {
    "read-only": 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"',
    "full": 'mount -t tmpfs -o size=64k none "$1" && { dd if=/dev/zero of="$1/fill" bs=4k 2>&- || true; }',
}


@contextlib.contextmanager
def running(
    env: Environment, *arguments: str, folder: Path | None = None, disk: str = "read-only"
) -> Iterator[subprocess.Popen[str]]:
    """A running daemon; for it, a folder may be on a file system that cannot be written."""
    script = f'{DISKS[disk]} && shift && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder)] if folder else []
    process = subprocess.Popen([*inside, *PROGRAM, "-d", "1", *arguments], env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        _, stderr = process.communicate(timeout=30)
        # Shown when the test fails.
        print(stderr)


def end(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    return stderr


def journal(env: Environment) -> dict[str, Any]:
    path = Path(env["STATE_ENDPOINT"]).parent / "ballooning.json"
    return json.loads(path.read_text()) if path.exists() else {"sessions": {}, "grace": {}}


def squeezed(guest: Guest, to_mb: float = FULL_MB - 100) -> Callable[[], bool]:
    return lambda: guest.balloon_mb() < to_mb


def whole(guest: Guest) -> Callable[[], bool]:
    return lambda: guest.balloon_mb() == FULL_MB


# --- reclaiming memory --------------------------------------------------------------------------------


class Minimum:
    """The smallest free memory and balloon size of a guest during a session, as it reports them."""

    def __init__(self, guest: Guest) -> None:
        self.unused_mb = 1e9
        self.balloon_mb = 1e9
        self._guest = guest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._query)

    def _query(self) -> None:
        while not self._stop.wait(0.1):
            stats = self._guest.stats()
            self.unused_mb = min(self.unused_mb, stats["unused"] / 1024)
            self.balloon_mb = min(self.balloon_mb, stats["actual"] / 1024)

    def __enter__(self) -> Minimum:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def reclaim(env: Environment, hoarder: Guest) -> None:
    before_mb = hoarder.rss_mb()
    with Minimum(hoarder) as minimum:
        done = run(env, "--once", "-d", "1")
    assert done.returncode == 0, done.stderr
    assert before_mb - hoarder.rss_mb() > 200, done.stderr
    assert hoarder.balloon_mb() == FULL_MB
    # It uses some 70 MB; the headroom is 64 MB.
    assert 120 <= minimum.balloon_mb < 200, done.stderr
    assert minimum.unused_mb > 40
    assert "squeeze vm=vm-a from_mb=512 to_mb=384: " in done.stderr
    assert " resident, " in done.stderr
    assert "session closed vm=vm-a memory_mb=512 reclaimed_mb=" in done.stderr
    assert not journal(env)["sessions"]
    assert len(journal(env)["grace"]) == 1


def test_memory_that_is_no_longer_used_returns_to_the_host_once_per_grace_period(
    env: Environment, hoarder: Guest, stored: None
) -> None:
    reclaim(env, hoarder)
    hoarding(hoarder)
    # The grace period outlives the process.
    assert "vm-a  skip  in its grace period for another " in run(env, "--dry-run", "--once").stdout
    assert run(env, "--once").returncode == 0
    assert hoarder.rss_mb() > 400


def test_usage_may_be_that_of_a_prometheus_server(env: Environment, host: Host, hoarder: Guest, tmp_path: Path) -> None:
    with prometheus_server(tmp_path / "prometheus", guest_memory(FULL_MB, 70, 450, "vm-a")) as url:
        env |= {"PROMETHEUS_URL": url, "LIBVIRT_NODES": json.dumps({"w1": host.uri})}
        reclaim(env, hoarder)


def test_memory_returns_to_a_host_that_is_reached_by_ssh(
    env: Environment, sshd: Sshd, hoarder: Guest, stored: None
) -> None:
    env["LIBVIRT_NODES"] = json.dumps({NODE: sshd.uri()})
    reclaim(env, hoarder)


def test_dry_run_prints_an_action_for_each_guest_and_changes_nothing(
    env: Environment, host: Host, hoarder: Guest, stored: None
) -> None:
    silent = host.boot("silent", 160, stats_period_s=None)
    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    store.write(
        [store.encode(ScrapeSample(NODE, int(time.time() * 1000), {}, {"silent": {"mem_usage": 9.0, "mem_rss": 99.0}}))]
    )
    store.close()
    before_mb = hoarder.rss_mb()
    done = run({**env, "BALLOONING_STATS_AGE_S": "4"}, "--dry-run", "--once")
    silent.destroy()
    assert done.returncode == 0
    plan = {line.split("  ")[1]: line.split("  ", 2)[2] for line in done.stdout.splitlines()}
    assert plan["vm-a"].startswith("squeeze  512 -> 384 MB  ")
    assert plan["careful"] == "skip  excluded by name"
    assert plan["driverless"] == (
        "skip  no balloon statistics: the guest has no balloon driver or no statistics period"
    )
    assert plan["silent"] == "skip  its balloon statistics do not change"
    assert hoarder.balloon_mb() == FULL_MB
    assert hoarder.rss_mb() > before_mb - 20
    assert not (Path(env["STATE_ENDPOINT"]).parent / "ballooning.json").exists()


# --- no guest stays squeezed ---------------------------------------------------------------------------


def test_statistics_that_a_busy_host_omits_are_not_those_of_a_guest_without_balloon(
    host: Host, guests: dict[str, Guest]
) -> None:
    """libvirt answers without the statistics of a guest while another query of it runs, here that of an exporter."""
    stop, hypervisor = threading.Event(), Hypervisor(host.uri, 10)

    def query() -> None:
        with host.connection() as connection:
            domain = connection.lookupByName("vm-a")
            while not stop.is_set():
                domain.memoryStats()
            del domain

    def answers() -> dict[str, Any]:
        return {guest.name: guest for guest in hypervisor.guests().values()}

    def silent_answer() -> Any:
        guest = answers()["vm-a"]
        return guest if math.isnan(guest.reported_s) else None

    with contextlib.closing(hypervisor):
        quiet = answers()
        assert (quiet["vm-a"].omitted, quiet["vm-a"].reports) == (False, True)
        assert (quiet["driverless"].omitted, quiet["driverless"].reports) == (False, False)
        queries = [threading.Thread(target=query) for _ in range(2)]
        for thread in queries:
            thread.start()
        try:
            assert wait_for(silent_answer).omitted
        finally:
            stop.set()
            for thread in queries:
                thread.join()


def test_guest_of_a_killed_daemon_is_restored_at_the_next_start(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        daemon.kill()
        daemon.wait()
    (session,) = journal(env)["sessions"].values()
    assert (session["name"], session["from_mb"]) == ("vm-a", FULL_MB)
    assert session["to_mb"] < FULL_MB - 80
    assert hoarder.balloon_mb() < FULL_MB
    # The journal alone is enough: the node is no longer in the settings.
    with running({**env, "LIBVIRT_NODES": json.dumps({OTHER: "test:///default"})}) as daemon:
        wait_for(whole(hoarder))
        wait_for(lambda: not journal(env)["sessions"])
        end(daemon)
    assert daemon.returncode == 0


def mark_of(guest: Guest) -> str | None:
    with guest.host.connection() as connection:
        domain = connection.lookupByName(guest.name)
        try:
            return str(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "urn:scroogevm:ballooning:1"))
        except libvirt.libvirtError as error:
            assert error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA
            return None
        finally:
            del domain


@pytest.fixture
def left_squeezed(env: Environment, hoarder: Guest, stored: None, tmp_path: Path) -> Path:
    """The journal of a daemon that was killed during a session, in a folder of its own."""
    path = tmp_path / "journal" / "ballooning.json"
    env["BALLOONING_JOURNAL_PATH"] = str(path)
    with running({**env, **STEPWISE}) as daemon:
        wait_for(squeezed(hoarder), 90)
        daemon.kill()
        daemon.wait()
    mark = mark_of(hoarder)
    assert mark is not None
    assert f'full_kib="{FULL_MB * 1024}"' in mark
    return path


@pytest.mark.parametrize("fault", ["deleted", "emptied", "cut off", "overwritten", "read-only", "read-only, emptied"])
def test_guest_of_a_killed_daemon_is_restored_whatever_became_of_the_journal(
    env: Environment, hoarder: Guest, left_squeezed: Path, fault: str
) -> None:
    if fault == "deleted":
        left_squeezed.unlink()
    if "emptied" in fault:
        left_squeezed.write_bytes(b"")
    if fault == "cut off":
        left_squeezed.write_bytes(left_squeezed.read_bytes()[:100])
    if fault == "overwritten":
        left_squeezed.write_bytes(b"\0" * 300)
    assert hoarder.balloon_mb() < FULL_MB
    start = time.monotonic()
    with running(env, folder=left_squeezed.parent if "read-only" in fault else None) as daemon:
        wait_for(whole(hoarder), 30)
        print(f"restored after {time.monotonic() - start:.1f} s")
        wait_for(lambda: mark_of(hoarder) is None, 30)
        log = end(daemon)
    assert daemon.returncode == 0, log
    assert hoarder.balloon_mb() == FULL_MB
    # The session closes when the balloon is within 4 MB of its target, which it has reached by now.
    assert len(re.findall(r"session closed vm=vm-a memory_mb=(508|509|51[0-2]) ", log)) == 1
    assert log.count("journal: cannot be used") == (fault == "overwritten" or "read-only" in fault)


def test_balloon_that_the_operator_set_is_left_alone(env: Environment, hoarder: Guest, stored: None) -> None:
    hoarder.set_memory(300)
    wait_for(lambda: hoarder.balloon_mb() == 300)
    done = run(env, "--once", "-d", "1")
    assert done.returncode == 0, done.stderr
    assert "skip vm=vm-a: its balloon is at 300 of 512 MB, and it has no session" in done.stderr
    assert hoarder.balloon_mb() == 300


@pytest.mark.parametrize("disk", DISKS)
def test_guest_is_squeezed_and_restored_while_the_journal_cannot_be_written(
    env: Environment, hoarder: Guest, stored: None, tmp_path: Path, disk: str
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    env["BALLOONING_JOURNAL_PATH"] = str(folder / "ballooning.json")
    with running({**env, **STEPWISE}, folder=folder, disk=disk) as daemon:
        wait_for(squeezed(hoarder), 90)
        daemon.kill()
        daemon.wait()
    assert hoarder.balloon_mb() < FULL_MB
    with running(env, folder=folder, disk=disk) as daemon:
        wait_for(whole(hoarder), 30)
        wait_for(lambda: mark_of(hoarder) is None, 30)
        log = end(daemon)
    assert list(folder.iterdir()) == []
    assert "an earlier run left it squeezed, it is restored: vm=vm-a" in log


def test_session_of_another_daemon_is_not_ended(env: Environment, hoarder: Guest, stored: None, tmp_path: Path) -> None:
    """Two daemons with separate journals on one host."""
    (tmp_path / "other").mkdir()
    other = {**env, "BALLOONING_JOURNAL_PATH": str(tmp_path / "other" / "ballooning.json")}
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        before_mb = hoarder.balloon_mb()
        done = run(other, "--once", "-d", "1")
        assert "and it has no session" in done.stderr
        assert hoarder.balloon_mb() <= before_mb
        assert mark_of(hoarder) is not None
        log = end(daemon)
    assert "gave up" not in log
    assert hoarder.balloon_mb() == FULL_MB


@pytest.mark.parametrize(
    ("held_mb", "needed_mb", "below_mb", "victim_mb"),
    # The second process kills itself, or the first one, which is larger at that moment.
    [(0, 300, 300, 180), (150, 150, 330, 150)],
    ids=["new process", "old process"],
)
def test_session_in_which_the_guest_killed_a_process_has_failed(
    env: Environment, hoarder: Guest, stored: None, held_mb: int, needed_mb: int, below_mb: int, victim_mb: int
) -> None:
    """A process needs what the whole guest has, and comes and goes between two observations."""
    port = free_port()
    hoarder.run("echo 1 >/proc/sys/vm/overcommit_memory; dmesg -c >/dev/null")
    if held_mb:
        hoarder.run(f"hold {held_mb}")
    settings = {**SLOWLY, "BALLOONING_STEP_MB": "48", "BALLOONING_METRICS_PORT": str(port)}
    with running({**env, **settings}) as daemon:
        wait_for(squeezed(hoarder, below_mb), 90)
        with frozen([daemon.pid]):
            hoarder.run(f"dd if=/dev/zero of=/dev/null bs={needed_mb}M count=1 2>/dev/null || true", 60)
            killed = hoarder.run("dmesg -c | grep 'Out of memory'")
            reported = hoarder.stats()["last_update"]
            wait_for(lambda: hoarder.stats()["last_update"] > reported + 1)
        wait_for(lambda: journal(env)["grace"], 30)
        page = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        until_s = max(journal(env)["grace"].values())
        assert whole(hoarder)()
        log = end(daemon)
    (resident_kb,) = re.findall(r"anon-rss:(\d+)kB", killed)
    assert int(resident_kb) / 1024 == pytest.approx(victim_mb, abs=40)
    assert "scroogevm_balloon_probable_kills_total 1.0" in page
    assert "scroogevm_balloon_give_ups_total 1.0" in page
    assert re.search(r"give up vm=vm-a .*: a process may have been killed: ", log)
    assert until_s - time.time() > 7.9 * 3600


def test_daemon_locks_its_journal_and_restores_guests_on_sigterm(
    env: Environment, hoarder: Guest, stored: None
) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        second = run(env, "--once")
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "in use by another vmballooning.py" in second.stderr
        assert hoarder.balloon_mb() < FULL_MB - 100
        end(daemon)
    assert daemon.returncode == 0
    assert hoarder.balloon_mb() == FULL_MB
    assert not journal(env)["sessions"]


def test_sighup_restores_guests_and_restarts(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        daemon.send_signal(signal.SIGHUP)
        wait_for(whole(hoarder))
        wait_for(lambda: not journal(env)["sessions"])
        # A dry run needs no lock of the journal.
        assert run(env, "--dry-run", "--once").returncode == 0
        log = end(daemon)
    assert daemon.returncode == 0
    assert log.count(": started version=") == 2
    # The second run starts no session: the grace period is in the journal.
    assert log.count("session closed vm=vm-a ") == 1


def test_guest_that_needs_its_memory_during_a_session_is_restored(
    env: Environment, hoarder: Guest, stored: None
) -> None:
    with running({**env, **SLOWLY, "BALLOONING_STEP_MB": "48"}) as daemon:
        wait_for(squeezed(hoarder, 300), 60)
        # 20 MB per second, up to more than it has when squeezed.
        hoarder.run(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do dd if=/dev/zero of=/tmp/f$i bs=1M count=20 2>/dev/null; sleep 1; done",
            60,
        )
        assert whole(hoarder)()
        assert hoarder.run("du -m /tmp | cut -f1").strip() == "300"
        log = end(daemon)
    assert re.search("(restore|give up) vm=vm-a ", log)
    assert "Out of memory" not in hoarder.run("dmesg")


def test_guest_that_needs_all_memory_at_once_survives(env: Environment, guests: dict[str, Guest], stored: None) -> None:
    """The balloon of a guest with autodeflate deflates by itself; the session detects that and ends."""
    careful = hoarding(guests["careful"])
    # A high threshold: the session starts only when the guest's earlier usage has left the window.
    settings = {"BALLOONING_STEP_MB": "48", "BALLOONING_THRESHOLD_GAIN_MB": "300", "BALLOONING_EXCLUDE": '["vm-a"]'}
    with running({**env, **SLOWLY, **settings}) as daemon:
        wait_for(squeezed(careful, 300), 60)
        careful.run("fill 350", 60)
        wait_for(whole(careful))
        assert careful.run("du -m /tmp/fill | cut -f1").strip() == "350"
        log = end(daemon)
    assert re.search("(restore|give up) vm=careful ", log)
    careful.run("unfill")


def test_guest_is_restored_when_libvirtd_dies_during_a_session_and_restarts(
    env: Environment, host: Host, hoarder: Guest, stored: None
) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        host.kill()
        time.sleep(2)
        host.start()
        wait_for(lambda: not journal(env)["sessions"], 60)
        assert hoarder.balloon_mb() == FULL_MB
        log = end(daemon)
    assert daemon.returncode == 0
    assert log.count(f"{host.uri}: recovered") == 1


def test_guest_is_restored_when_its_ssh_connection_freezes(
    env: Environment, sshd: Sshd, hoarder: Guest, stored: None
) -> None:
    env["LIBVIRT_NODES"] = json.dumps({NODE: sshd.uri()})
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        with frozen(children(daemon.pid, "ssh")):
            # The daemon opens another connection.
            wait_for(lambda: not journal(env)["sessions"], 60)
            assert hoarder.balloon_mb() == FULL_MB
        log = end(daemon)
    assert daemon.returncode == 0
    assert "recovered" in log


def test_silent_host_does_not_delay_other_hosts(
    env: Environment, host: Host, sshd: Sshd, hoarder: Guest, stored: None
) -> None:
    with mute() as port:
        env["LIBVIRT_NODES"] = json.dumps({OTHER: sshd.uri(port=port), NODE: host.uri})
        with running(env) as daemon:
            start = time.monotonic()
            wait_for(squeezed(hoarder, 200), 20)
            wait_for(whole(hoarder), 20)
            assert time.monotonic() - start < 25
            start = time.monotonic()
            log = end(daemon)
            assert time.monotonic() - start < 25
    assert daemon.returncode == 0
    assert log.count(f"127.0.0.1:{port}") == 1, log


def test_session_of_a_guest_that_was_destroyed_is_closed(env: Environment, host: Host, stored: None) -> None:
    guest = host.boot("shortlived", 256, ready=False)
    path = Path(env["STATE_ENDPOINT"]).parent / "ballooning.json"
    with host.connection() as connection:
        domain = connection.lookupByName("shortlived")
        uuid = domain.UUIDString()
        del domain
    session = {
        "uuid": uuid,
        "name": "shortlived",
        "host": host.uri,
        "from_mb": 256,
        "to_mb": 128,
        "until_s": time.time() + 60,
        "goal_mb": 128,
    }
    path.write_text(json.dumps({"format": 1, "grace": {}, "sessions": {uuid: session}}))
    guest.destroy()
    with running({**env, "BALLOONING_EXCLUDE": '["*"]'}) as daemon:
        wait_for(lambda: not journal(env)["sessions"], 30)
        end(daemon)
    assert daemon.returncode == 0


# --- operation -----------------------------------------------------------------------------------------


def test_metrics_count_sessions_and_pass_promtool(env: Environment, host: Host, hoarder: Guest, stored: None) -> None:
    port = free_port()
    with running({**env, "BALLOONING_METRICS_PORT": str(port)}) as daemon:

        def figures() -> dict[str, float]:
            text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
            return {
                line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
            }

        wait_for(lambda: figures()["scroogevm_balloon_squeezed_vms"] == 1)
        wait_for(lambda: figures()["scroogevm_balloon_reclaimed_bytes_total"] > 200 * 2**20)
        metrics = figures()
        text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        end(daemon)
    assert metrics["scroogevm_balloon_sessions_total"] == 1
    assert metrics["scroogevm_balloon_restores_total"] == 1
    assert metrics["scroogevm_balloon_give_ups_total"] == 0
    assert metrics[f'scroogevm_balloon_host_up{{host="{host.uri}"}}'] == 1
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
