"""vmballooning.py on real guests: memory that really comes back, and guests that are never left short of it."""

from __future__ import annotations

import contextlib
import json
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

from model.samples import ScrapeSample
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment
from tests.support.guests import Guest, Host, Sshd, children, frozen, mute
from tests.support.servers import fetch, free_port, wait_for

PROGRAM = [sys.executable, str(ROOT / "vmballooning.py")]
NODE, OTHER = "http://w1:9100/metrics", "http://w2:9100/metrics"
FULL_MB = 512

Environment = dict[str, str]


@pytest.fixture(scope="module")
def guests(host: Host) -> dict[str, Guest]:
    """Booted side by side; one has a name with a hyphen, which vmprobe would take out."""
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
    """A guest that has used 300 MB once and uses 70 now; what it had is still resident on the host."""
    yield hoarding(guests["vm-a"])
    guests["vm-a"].run("rm -f /tmp/*")


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


#: Steps so small that a session lasts long enough for something to happen in it.
SLOWLY = {"BALLOONING_STEP_MB": "24", "BALLOONING_STEP_PCT": "0"}


@pytest.fixture
def stored(env: Environment, guests: dict[str, Guest]) -> Iterator[None]:
    """What an aggregator would store of the guests, twice a second."""
    store = SqliteStore(Path(env["STORE_PATH"]), 86400)
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.5):
            domains = {}
            for name, guest in guests.items():
                with contextlib.suppress(libvirt.libvirtError, OSError):
                    said = guest.stats()
                    domains[name.replace("-", "")] = {
                        "mem": said["actual"] / 1024,
                        "mem_usage": (said["actual"] - said.get("unused", said["actual"] - 40960)) / 1024,
                        "mem_rss": said["rss"] / 1024,
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


@contextlib.contextmanager
def running(env: Environment, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*PROGRAM, "-d", "1", *arguments], env=env, stderr=subprocess.PIPE, text=True)
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


# --- what it is for -----------------------------------------------------------------------------------


class Lowest:
    """The least that a guest had free in a session, as it told itself."""

    def __init__(self, guest: Guest) -> None:
        self.unused_mb = 1e9
        self.balloon_mb = 1e9
        self._guest = guest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            said = self._guest.stats()
            self.unused_mb = min(self.unused_mb, said["unused"] / 1024)
            self.balloon_mb = min(self.balloon_mb, said["actual"] / 1024)

    def __enter__(self) -> Lowest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_memory_that_was_used_once_comes_back_to_the_host(
    way: str, env: Environment, hoarder: Guest, stored: None, request: pytest.FixtureRequest
) -> None:
    if way == "ssh":
        env["LIBVIRT_NODES"] = json.dumps({NODE: request.getfixturevalue("sshd").uri()})
    before_mb = hoarder.rss_mb()
    with Lowest(hoarder) as lowest:
        done = run(env, "--once", "-d", "1")
    assert done.returncode == 0, done.stderr
    assert before_mb - hoarder.rss_mb() > 200, done.stderr
    assert hoarder.balloon_mb() == FULL_MB
    # It uses some 70 MB; 64 on top are its headroom.
    assert 120 <= lowest.balloon_mb < 200, done.stderr
    assert lowest.unused_mb > 40
    assert "squeeze vm-a from 512 to 384 MB" in done.stderr
    assert " resident, " in done.stderr
    assert "vm-a has its 512 MB back" in done.stderr
    assert not journal(env)["sessions"]
    assert len(journal(env)["grace"]) == 1


def test_grace_period_outlives_the_daemon(env: Environment, hoarder: Guest, stored: None) -> None:
    assert run(env, "--once").returncode == 0
    hoarding(hoarder)
    assert "vm-a  skip  in its grace period for another " in run(env, "--dry-run", "--once").stdout
    assert run(env, "--once").returncode == 0
    assert hoarder.rss_mb() > 400


def test_dry_run_says_what_it_would_do_with_each_guest_and_does_nothing(
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
    assert plan["driverless"].startswith("skip  it tells nothing of its memory")
    assert plan["silent"] == "skip  its statistics are not seen to change"
    assert hoarder.balloon_mb() == FULL_MB
    assert hoarder.rss_mb() > before_mb - 20
    assert not (Path(env["STATE_ENDPOINT"]).parent / "ballooning.json").exists()


# --- nobody is left squeezed ---------------------------------------------------------------------------


def test_killed_daemon_gives_back_at_its_next_start(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        daemon.kill()
        daemon.wait()
    (session,) = journal(env)["sessions"].values()
    assert (session["name"], session["from_mb"]) == ("vm-a", FULL_MB)
    assert session["to_mb"] < FULL_MB - 80
    assert hoarder.balloon_mb() < FULL_MB
    # Nothing is stored any more, and the node has left the settings: what is in the journal is given back.
    with running({**env, "LIBVIRT_NODES": json.dumps({OTHER: "test:///default"})}) as daemon:
        wait_for(whole(hoarder))
        wait_for(lambda: not journal(env)["sessions"])
        end(daemon)
    assert daemon.returncode == 0


def test_terminated_daemon_gives_back_before_it_leaves(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        end(daemon)
    assert daemon.returncode == 0
    assert hoarder.balloon_mb() == FULL_MB
    assert not journal(env)["sessions"]


def test_guest_that_needs_its_memory_in_a_session_gets_it(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY, "BALLOONING_STEP_MB": "48"}) as daemon:
        wait_for(squeezed(hoarder, 300), 60)
        # 20 MB a second, up to what it could not hold when squeezed.
        hoarder.run(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do dd if=/dev/zero of=/tmp/f$i bs=1M count=20 2>/dev/null; sleep 1; done",
            60,
        )
        assert whole(hoarder)()
        assert hoarder.run("du -m /tmp | cut -f1").strip() == "300"
        plan_lines = end(daemon)
    assert "give back to vm-a" in plan_lines
    assert "Out of memory" not in hoarder.run("dmesg")


def test_guest_that_needs_it_all_at_once_does_not_die(env: Environment, guests: dict[str, Guest], stored: None) -> None:
    """With autodeflate a guest helps itself; the session then sees that, and ends."""
    careful = hoarding(guests["careful"])
    # With so much to gain, what the guest held until now is forgotten, and it is asked for all but what it needs.
    settings = {"BALLOONING_STEP_MB": "48", "BALLOONING_THRESHOLD_GAIN_MB": "300", "BALLOONING_EXCLUDE": '["vm-a"]'}
    with running({**env, **SLOWLY, **settings}) as daemon:
        wait_for(squeezed(careful, 300), 60)
        careful.run("fill 350", 60)
        wait_for(whole(careful))
        assert careful.run("du -m /tmp/fill | cut -f1").strip() == "350"
        plan_lines = end(daemon)
    assert "give back to careful" in plan_lines
    careful.run("unfill")


def test_libvirtd_that_dies_in_a_session_and_comes_back_finds_the_guest_restored(
    env: Environment, host: Host, hoarder: Guest, stored: None
) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        host.kill()
        time.sleep(2)
        host.start()
        wait_for(lambda: not journal(env)["sessions"], 60)
        assert hoarder.balloon_mb() == FULL_MB
        plan_lines = end(daemon)
    assert daemon.returncode == 0
    assert plan_lines.count(f"{host.uri}: recovered") == 1


def test_guest_whose_host_freezes_the_ssh_session_gets_its_memory_back(
    env: Environment, sshd: Sshd, hoarder: Guest, stored: None
) -> None:
    env["LIBVIRT_NODES"] = json.dumps({NODE: sshd.uri()})
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        with frozen(children(daemon.pid, "ssh")):
            # It does not wait for the one that is frozen, but comes by another.
            wait_for(lambda: not journal(env)["sessions"], 60)
            assert hoarder.balloon_mb() == FULL_MB
        plan_lines = end(daemon)
    assert daemon.returncode == 0
    assert "recovered" in plan_lines


def test_host_that_says_nothing_does_not_delay_the_others(
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
            plan_lines = end(daemon)
            assert time.monotonic() - start < 25
    assert daemon.returncode == 0
    assert plan_lines.count(f"127.0.0.1:{port}") == 1, plan_lines


def test_guest_that_is_destroyed_in_a_session_is_forgotten(env: Environment, host: Host, stored: None) -> None:
    guest = host.boot("shortlived", 256)
    guest.run("fill 120")
    guest.run("unfill")
    uuid = ""
    path = Path(env["STATE_ENDPOINT"]).parent / "ballooning.json"
    path.write_text(json.dumps({"format": 1, "grace": {}, "sessions": {}}))
    with host.connection() as connection:
        domain = connection.lookupByName("shortlived")
        uuid = domain.UUIDString()
        del domain
    left = {
        "uuid": uuid,
        "name": "shortlived",
        "host": host.uri,
        "from_mb": 256,
        "to_mb": 128,
        "until_s": time.time() + 60,
        "goal_mb": 128,
    }
    path.write_text(json.dumps({"format": 1, "grace": {}, "sessions": {uuid: left}}))
    guest.destroy()
    with running({**env, "BALLOONING_EXCLUDE": '["*"]'}) as daemon:
        wait_for(lambda: not journal(env)["sessions"], 30)
        end(daemon)
    assert daemon.returncode == 0


# --- how it is run -------------------------------------------------------------------------------------


def test_second_daemon_on_one_journal_is_refused(env: Environment, hoarder: Guest, stored: None) -> None:
    with running({**env, **SLOWLY}) as daemon:
        wait_for(squeezed(hoarder), 90)
        second = run(env, "--once")
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert "another vmballooning.py is at work with it" in second.stderr
        assert run(env, "--dry-run", "--once").returncode == 0
        end(daemon)


def test_metrics_tell_of_sessions_and_pass_promtool(env: Environment, host: Host, hoarder: Guest, stored: None) -> None:
    port = free_port()
    with running({**env, "BALLOONING_METRICS_PORT": str(port)}) as daemon:

        def figures() -> dict[str, float]:
            text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
            return {
                line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
            }

        wait_for(lambda: figures()["scroogevm_balloon_squeezed_vms"] == 1)
        wait_for(lambda: figures()["scroogevm_balloon_reclaimed_bytes_total"] > 200 * 2**20)
        found = figures()
        text = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
        end(daemon)
    assert found["scroogevm_balloon_sessions_total"] == 1
    assert found["scroogevm_balloon_restores_total"] == 1
    assert found["scroogevm_balloon_give_ups_total"] == 0
    assert found[f'scroogevm_balloon_host_up{{host="{host.uri}"}}'] == 1
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"LIBVIRT_NODES": ""}, ["LIBVIRT_NODES: names no node"]),
        ({"LIBVIRT_NODES": "[]"}, ["LIBVIRT_NODES: is not an object"]),
        ({"LIBVIRT_NODES": '{"a": "x"}'}, ["LIBVIRT_NODES: a: is not given a libvirt URI"]),
        ({"LIBVIRT_NODES": '{"a": "t:///d", "b": "t:///d"}'}, ["LIBVIRT_NODES: b: has the URI of another node"]),
        (
            {"BALLOONING_HEADROOM_MB": "1", "BALLOONING_SESSION_S": "no"},
            ["BALLOONING_HEADROOM_MB: '1'", "BALLOONING_SESSION_S: 'no'"],
        ),
        ({"BALLOONING_EXCLUDE": '"db"'}, ["BALLOONING_EXCLUDE: is not a list of patterns"]),
        ({"BALLOONING_JOURNAL_PATH": "/proc/no/journal"}, ["/proc/no"]),
    ],
)
def test_settings_that_cannot_be_used_are_told_together(
    changes: dict[str, str], plan_lines: list[str], tmp_path: Path
) -> None:
    env = {"LIBVIRT_NODES": json.dumps({NODE: "test:///default"}), "STATE_ENDPOINT": str(tmp_path / "s.json")}
    done = run({**bare_environment(), **env, **changes})
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, len(plan_lines))
    assert all(line.startswith(f"vmballooning.py: {words}") for line, words in zip(lines, plan_lines, strict=True)), (
        lines
    )


def test_nonsense_in_the_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    env = {"LIBVIRT_NODES": json.dumps({NODE: "test:///default"}), "STATE_ENDPOINT": str(tmp_path / "s.json")}
    path = tmp_path / "ballooning.json"
    path.write_text('{"format": 1, "sess')
    done = run({**bare_environment(), **env})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not a journal" in done.stderr
    assert path.read_text() == '{"format": 1, "sess'


def test_guest_of_which_nothing_is_stored_is_left_alone(tmp_path: Path) -> None:
    """libvirt's test driver has one; such a guest must not keep its host from being planned."""
    env = {
        "LIBVIRT_NODES": json.dumps({NODE: "test:///default"}),
        "STATE_ENDPOINT": str(tmp_path / "s.json"),
        "BALLOONING_STATS_AGE_S": "2",
    }
    done = run({**bare_environment(), **env}, "--dry-run", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "test:///default  test  skip  no mem_usage is stored of it\n"


def test_minutes_of_old_files_are_understood() -> None:
    from model.ballooning.settings import ballooning_settings
    from model.common.environment import Environment as Settings

    old = {"LIBVIRT_NODES": json.dumps({NODE: "test:///default"}), "BALLOONING_SCOPE_MN": "15"}
    assert ballooning_settings(Settings(old)).rules.scope_s == 900
    assert ballooning_settings(Settings({**old, "BALLOONING_SCOPE_S": "60"})).rules.scope_s == 60
