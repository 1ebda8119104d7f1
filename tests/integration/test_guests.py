"""Real guests as other tests use them, and the effect of ballooning on them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guests import Guest, Host, Sshd, build_guest, children, frozen, missing, mute, send
from tests.support.servers import wait_for

EMULATION_MB = 130  # upper limit of QEMU's own memory


@pytest.fixture(scope="module", autouse=True)
def _needs_guests() -> None:
    if reason := missing():
        pytest.skip(f"no real guests here: {reason}")


@pytest.fixture(scope="module")
def guests(host: Host) -> dict[str, Guest]:
    """Guests of all kinds, booted in parallel."""
    booting = {
        "plain": host.boot("plain", 512, ready=False),
        "swapping": host.boot("swapping", 256, swap_mb=256, ready=False),
        "driverless": host.boot("driverless", 160, driver=False, ready=False),
        "bare": host.boot("bare", 160, balloon=False, ready=False),
    }
    for guest in booting.values():
        guest.wait()
    return booting


@pytest.fixture
def plain(guests: dict[str, Guest]) -> Iterator[Guest]:
    """The guest of 512 MB; afterwards it is emptied and restored."""
    yield guests["plain"]
    guests["plain"].run("unfill")
    guests["plain"].set_memory(512)
    wait_for(lambda: guests["plain"].balloon_mb() == 512)


def used_mb(guest: Guest) -> float:
    """Used memory as the guest reports it after now."""
    called = time.time()
    stats = wait_for(lambda: (s := guest.stats())["last_update"] > called and s)
    return (stats["available"] - stats["unused"]) / 1024


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
    """A libvirt connection without references after close."""
    import libvirt

    connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        left = connection.close()
    assert left == 0


def squeeze_and_restore(connection: Any, guest: Guest) -> None:
    domain = connection.lookupByName(guest.name)
    guest.run("fill 300")
    guest.run("unfill")
    used = used_mb(guest)
    assert used < 100
    full = guest.rss_mb()
    assert full > 300 + used

    domain.setMemoryFlags(200 * 1024, 1)  # VIR_DOMAIN_AFFECT_LIVE
    wait_for(lambda: domain.memoryStats()["actual"] == 200 * 1024)
    squeezed = guest.rss_mb()
    assert squeezed < 200 + EMULATION_MB
    assert squeezed < full - 200
    assert domain.memoryStats()["rss"] / 1024 == pytest.approx(squeezed, abs=8)

    domain.setMemoryFlags(512 * 1024, 1)
    wait_for(lambda: domain.memoryStats()["actual"] == 512 * 1024)
    assert guest.rss_mb() == pytest.approx(squeezed, abs=8)  # restored memory is not resident yet
    guest.run("fill 300")
    assert guest.rss_mb() > 300


def test_used_memory_stays_resident_until_the_guest_is_squeezed(host: Host, plain: Guest) -> None:
    with connected(host.uri) as connection:
        squeeze_and_restore(connection, plain)


def test_squeeze_over_ssh_does_not_change_known_hosts(sshd: Sshd, plain: Guest) -> None:
    known_hosts = Path("~/.ssh/known_hosts").expanduser()
    before = known_hosts.read_bytes() if known_hosts.exists() else None
    with connected(sshd.uri()) as connection:
        squeeze_and_restore(connection, plain)
    assert (known_hosts.read_bytes() if known_hosts.exists() else None) == before


def test_shell_returns_output_failure_and_timeout(plain: Guest) -> None:
    assert plain.run("echo one; echo two >&2") == "one\ntwo"
    assert plain.run("free -m").splitlines()[1].split()[0] == "Mem:"
    with pytest.raises(AssertionError, match="ended with 3"):
        plain.run("(exit 3)")
    with pytest.raises(TimeoutError):
        plain.run("sleep 1; echo late", 0.3)
    assert plain.run("echo after") == "after"


def test_guest_uses_anonymous_memory_and_cpu(plain: Guest) -> None:
    before = used_mb(plain)
    plain.run("hold 100")
    assert used_mb(plain) == pytest.approx(before + 100, abs=10)
    plain.run("unhold")
    assert used_mb(plain) < before + 10
    with plain.host.connection() as connection:
        spent_ns = connection.lookupByName("plain").info()[4]

        def burned_ns() -> int:
            plain.run("burn 1 90")
            return int(connection.lookupByName("plain").info()[4]) - spent_ns

        # On a busy host a guest gets a part of a second only.
        wait_for(lambda: burned_ns() > 3e8, 60)


def test_guest_squeezed_below_its_usage_swaps(guests: dict[str, Guest]) -> None:
    guest = guests["swapping"]
    assert guest.stats()["swap_out"] == 0
    guest.run("churn 120")
    guest.set_memory(160)
    wait_for(lambda: guest.stats()["swap_out"] > 0 and guest.stats()["major_fault"] > 100)
    guest.run("unchurn")
    guest.set_memory(256)
    wait_for(lambda: guest.balloon_mb() == 256)


def test_guests_without_balloon_lack_statistics(guests: dict[str, Guest]) -> None:
    import libvirt

    driverless, bare = guests["driverless"].stats(), guests["bare"].stats()
    assert driverless.keys() == {"actual", "last_update", "rss"}
    assert driverless["last_update"] == 0
    assert bare.keys() == {"rss"}
    guests["driverless"].set_memory(120)
    assert guests["driverless"].balloon_mb() == 160
    with pytest.raises(libvirt.libvirtError) as refused:
        guests["bare"].set_memory(120)
    assert refused.value.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID


def test_guests_keep_running_without_libvirtd(host: Host, guests: dict[str, Guest]) -> None:
    import libvirt

    pid = guests["plain"].qemu_pid
    host.kill()
    with pytest.raises(libvirt.libvirtError):
        guests["plain"].stats()
    assert guests["plain"].run("echo here") == "here"
    host.start()
    wait_for(lambda: guests["plain"].balloon_mb() == 512)
    assert guests["plain"].qemu_pid == pid


def assert_hangs(query: Callable[[], Any], until: Callable[[], Any]) -> None:
    """The query does not return before ``until`` is called, and returns afterwards."""
    thread = threading.Thread(target=query)
    thread.start()
    thread.join(0.5)
    hung = thread.is_alive()
    until()
    thread.join(10)
    assert hung
    assert not thread.is_alive()


def test_frozen_libvirtd_hangs_until_it_thaws(host: Host, plain: Guest) -> None:
    host.freeze()
    assert_hangs(plain.stats, host.thaw)


def test_frozen_sessions_hang_until_they_thaw(sshd: Sshd) -> None:
    with connected(sshd.uri()) as connection:
        sshd.freeze_sessions()
        with connected(sshd.uri()) as new:
            assert new.isAlive()
        assert_hangs(connection.listAllDomains, sshd.thaw_sessions)


def test_frozen_client_hangs_until_it_thaws(sshd: Sshd) -> None:
    others = children(os.getpid(), "ssh")
    with connected(sshd.uri()) as connection, contextlib.ExitStack() as stack:
        clients = [pid for pid in children(os.getpid(), "ssh") if pid not in others]
        assert len(clients) == 1
        stack.enter_context(frozen(clients))
        assert_hangs(connection.listAllDomains, stack.close)


def test_mute_port_hangs_until_its_ssh_is_ended(sshd: Sshd) -> None:
    import libvirt

    raised: list[libvirt.libvirtError] = []

    def connect(port: int) -> None:
        try:
            libvirt.open(sshd.uri(port=port))
        except libvirt.libvirtError as error:
            raised.append(error)

    with mute() as port:
        thread = threading.Thread(target=connect, args=(port,))
        thread.start()
        thread.join(0.7)
        assert thread.is_alive()
        send(children(os.getpid(), "ssh"), signal.SIGTERM)
        thread.join(10)
    assert raised[0].get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR


def test_hosts_are_isolated(host: Host, guests: dict[str, Guest]) -> None:
    with Host() as other:
        guest = other.boot("plain", 160, 128, ready=False)
        with other.connection() as foreign, host.connection() as own:
            assert len(foreign.listAllDomains()) == 1
            assert len(own.listAllDomains()) == len(guests)
            assert foreign.getCapabilities() != own.getCapabilities()  # another UUID
        pid = guest.qemu_pid
        assert pid != guests["plain"].qemu_pid
        other.define("off", 128)
        with other.connection() as foreign:
            assert not foreign.lookupByName("off").isActive()
        guest.wait()
        assert wait_for(lambda: guest.balloon_mb() == 128)
        guest.destroy()
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        guest.destroy()
    assert not Path(f"/proc/{pid}").exists()
    assert not other.folder.exists()


def test_killed_test_run_leaves_no_process() -> None:
    program = (
        "import time\nfrom tests.support.guests import Host\nhost = Host()\nhost.start()\nguest = host.boot('g', 128, ready=False)\n"
        "print(guest.qemu_pid, host.libvirtd_pid, host.folder, flush=True)\ntime.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run.stdout:
        *pids, folder = run.stdout.readline().split()
    run.kill()
    run.wait(10)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    subprocess.run(["rm", "-r", folder], check=True)


def test_image_is_built_once() -> None:
    image = build_guest()
    built = image.initrd.stat().st_mtime_ns
    assert build_guest().initrd.stat().st_mtime_ns == built
