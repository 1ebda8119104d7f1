"""Hosts through libvirt: its own test driver, and real ones that fall silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt-python could not be built here")

from model.ballooning.hypervisor import GuestGone, GuestRefused, HostUnavailable, Hypervisor, uri_with_timeouts
from tests.support.guests import Host, Sshd, children, frozen, mute
from tests.support.servers import wait_for

TIMEOUT_S = 2.0


@pytest.fixture
def driver() -> Iterator[Hypervisor]:
    """libvirt's test driver: a host in this process, with one guest."""
    host = Hypervisor("test:///default", TIMEOUT_S)
    yield host
    host.close()


@pytest.fixture(scope="module")
def host(host: Host) -> Host:
    host.boot("a", 256)
    return host


# --- the test driver -----------------------------------------------------------------------------------


def test_guests_are_told_in_megabytes(driver: Hypervisor) -> None:
    (guest,) = driver.guests().values()
    assert (guest.name, guest.memory_mb, guest.balloon_mb) == ("test", 8192, 2048)
    assert (guest.unused_mb, guest.available_mb, guest.rss_mb) == (1024, 2048, 1024)
    assert guest.reports


def test_memory_is_set(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    driver.set_memory(uuid, 1500.0)
    assert driver.guests()[uuid].balloon_mb == 1500


def test_errors_have_names(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    with pytest.raises(GuestGone):
        driver.set_memory("00000000-0000-0000-0000-000000000001", 512)
    with pytest.raises(GuestRefused):
        driver.set_memory(uuid, 10**6)
    # What is wrong with a guest does not cost the connection.
    assert driver.guests()


@pytest.mark.parametrize(
    "uri", ["nonsense:///", "qemu:///system?socket=/nowhere/at/all", "qemu+ssh://nobody@127.0.0.1:1/system"]
)
def test_host_that_cannot_be_reached_is_unavailable(uri: str) -> None:
    host = Hypervisor(uri, TIMEOUT_S)
    with pytest.raises(HostUnavailable) as caught:
        host.guests()
    assert "\n" not in str(caught.value)


def test_ssh_that_gives_up_is_put_into_a_uri() -> None:
    assert uri_with_timeouts("test:///default") == "test:///default"
    assert uri_with_timeouts("qemu+ssh://h/system?command=/own") == "qemu+ssh://h/system?command=/own"
    patient = uri_with_timeouts("qemu+ssh://root@h:2222/system?keyfile=/a%20b")
    assert patient.startswith("qemu+ssh://root@h:2222/system?keyfile=/a%20b&command=")
    assert patient.endswith("&no_tty=1")
    wrapper = Path(patient.partition("command=")[2].partition("&")[0])
    assert wrapper.stat().st_mode & 0o111


# --- real hosts ------------------------------------------------------------------------------------------


def seconds_of_failure(host: Hypervisor) -> float:
    start = time.monotonic()
    with pytest.raises(HostUnavailable):
        host.guests()
    return time.monotonic() - start


def test_real_guest_tells_all_that_the_plan_needs(host: Host) -> None:
    (guest,) = Hypervisor(host.uri, 5).guests().values()
    assert guest.reports
    assert guest.memory_mb == 256
    assert 60 < guest.rss_mb < 400
    assert guest.unused_mb < guest.available_mb < 256
    assert guest.swapped_kb == 0


def test_frozen_host_costs_its_time_limit_and_is_there_again_afterwards(host: Host) -> None:
    seen = Hypervisor(host.uri, TIMEOUT_S)
    assert seen.guests()
    host.freeze()
    try:
        for _ in range(6):
            # However many calls hang, the next one does not take longer.
            assert seconds_of_failure(seen) < TIMEOUT_S + 2
    finally:
        host.thaw()
    assert wait_for(lambda: calm(seen))


def test_host_that_is_frozen_while_it_is_connected_to_is_there_again_afterwards(host: Host) -> None:
    host.freeze()
    seen = Hypervisor(host.uri, TIMEOUT_S)
    try:
        assert seconds_of_failure(seen) < TIMEOUT_S + 2
        assert seconds_of_failure(seen) < TIMEOUT_S + 2
    finally:
        host.thaw()
    assert wait_for(lambda: calm(seen))


def calm(host: Hypervisor) -> bool:
    try:
        return bool(host.guests())
    except HostUnavailable:
        return False


def test_killed_libvirtd_is_noticed_and_connected_to_again(host: Host) -> None:
    seen = Hypervisor(host.uri, TIMEOUT_S)
    assert seen.guests()
    host.kill()
    assert seconds_of_failure(seen) < TIMEOUT_S + 2
    host.start()
    assert wait_for(lambda: calm(seen))


def test_frozen_guest_does_not_hide_the_others(host: Host) -> None:
    import os
    import signal

    other = host.boot("b", 160)
    seen = Hypervisor(host.uri, TIMEOUT_S)
    assert len(seen.guests()) == 2
    os.kill(other.qemu_pid, signal.SIGSTOP)
    try:
        found = wait_for(lambda: calm(seen) and seen.guests())
        assert any(guest.name == "a" and guest.reports for guest in found.values())
    finally:
        os.kill(other.qemu_pid, signal.SIGCONT)
        other.destroy()


def test_mute_port_and_frozen_ssh_cost_their_time_limit(host: Host, sshd: Sshd) -> None:
    import os

    with mute() as port:
        assert seconds_of_failure(Hypervisor(sshd.uri(port=port), TIMEOUT_S)) < TIMEOUT_S + 2
    seen = Hypervisor(sshd.uri(), 5)
    assert seen.guests()
    with frozen(children(os.getpid(), "ssh")):
        assert seconds_of_failure(seen) < 7
    assert wait_for(lambda: calm(seen))


def test_hosts_do_not_wait_for_each_other(host: Host) -> None:
    with mute() as port:
        dead = Hypervisor(f"qemu+tcp://127.0.0.1:{port}/system", 10.0)
        threading.Thread(target=lambda: calm(dead), daemon=True).start()
        time.sleep(0.2)
        start = time.monotonic()
        assert Hypervisor(host.uri, 5).guests()
        assert time.monotonic() - start < 5
