"""Hosts through libvirt: its test driver, and real hosts that hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt-python could not be built here")

from model.ballooning import hypervisor as hypervisor_module
from model.ballooning.host import GuestGone, GuestRefused, HostUnavailable
from model.ballooning.hypervisor import Hypervisor
from model.ballooning.libvirt_connection import uri_with_timeouts
from model.ballooning.marks import Mark
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


def test_guest_sizes_are_in_megabytes(driver: Hypervisor) -> None:
    (guest,) = driver.guests().values()
    assert (guest.name, guest.memory_mb, guest.balloon_mb) == ("test", 8192, 2048)
    assert (guest.unused_mb, guest.available_mb, guest.rss_mb) == (1024, 2048, 1024)
    assert guest.reports


def test_memory_is_set(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    driver.set_memory(uuid, 1500.0)
    assert driver.guests()[uuid].balloon_mb == 1500


def check_marks(host: Hypervisor, uuid: str) -> None:
    unknown = "00000000-0000-0000-0000-000000000001"
    mark = Mark(512.0, 10.0, 130.0, "ab12")
    assert host.marks([uuid, unknown]) == {uuid: None, unknown: None}
    host.set_mark(uuid, None)
    host.set_mark(uuid, mark)
    assert host.marks([uuid]) == {uuid: mark}
    host.set_mark(uuid, replace(mark, full_mb=256.0))
    assert host.marks([uuid]) == {uuid: replace(mark, full_mb=256.0)}
    host.set_mark(uuid, None)
    assert host.marks([uuid]) == {uuid: None}
    with pytest.raises(GuestGone):
        host.set_mark(unknown, mark)


def test_mark_is_written_read_replaced_and_removed(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    check_marks(driver, uuid)


def test_marks_that_do_not_fit_into_the_time_limit_are_left_for_the_next_call(
    driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_connection: object, _uuid: str) -> None:
        time.sleep(0.3)

    monkeypatch.setattr(hypervisor_module, "_read_mark", slow)
    # Half of the time limit is 1 s.
    assert 3 <= len(driver.marks([str(number) for number in range(20)])) <= 5


def test_errors_of_a_guest_are_distinct_and_keep_the_connection(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    with pytest.raises(GuestGone):
        driver.set_memory("00000000-0000-0000-0000-000000000001", 512)
    with pytest.raises(GuestRefused):
        driver.set_memory(uuid, 10**6)
    assert driver.guests()


def test_call_that_is_refused_because_others_hang_does_not_block_its_guest(driver: Hypervisor) -> None:
    (uuid,) = driver.guests()
    host, returned = Hypervisor("test:///default", 0.3), threading.Event()
    for _ in range(4):
        with pytest.raises(HostUnavailable, match=r"no response within 0\.3 s"):
            host._call(returned.wait, lambda: None)
    start = time.monotonic()
    with pytest.raises(HostUnavailable, match=r"no response within 0\.3 s"):
        host.set_memory(uuid, 1500.0)
    assert time.monotonic() - start < 0.3  # refused, not tried
    returned.set()

    def succeeds() -> bool:
        try:
            host.set_memory(uuid, 1500.0)
        except HostUnavailable:
            return False
        return True

    assert wait_for(succeeds)


def test_second_call_to_a_guest_is_refused_while_the_first_hangs(
    driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = driver.guests()
    host, returned = Hypervisor("test:///default", 0.3), threading.Event()
    monkeypatch.setattr(host, "_set_memory", lambda *_: returned.wait())
    with pytest.raises(HostUnavailable):
        host.set_memory(uuid, 1500.0)
    with pytest.raises(GuestRefused, match="an earlier call to it has not returned"):
        host.set_memory(uuid, 1500.0)
    returned.set()


def test_constructor_starts_no_thread_and_opens_no_connection() -> None:
    before = threading.active_count()
    Hypervisor("qemu+ssh://nobody@127.0.0.1:1/system", TIMEOUT_S).close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "uri", ["nonsense:///", "qemu:///system?socket=/nowhere/at/all", "qemu+ssh://nobody@127.0.0.1:1/system"]
)
def test_unreachable_host_is_unavailable(uri: str) -> None:
    host = Hypervisor(uri, TIMEOUT_S)
    with pytest.raises(HostUnavailable) as caught:
        host.guests()
    assert "\n" not in str(caught.value)


def test_ssh_with_time_limits_is_added_to_a_uri() -> None:
    assert uri_with_timeouts("test:///default") == "test:///default"
    assert uri_with_timeouts("qemu+ssh://h/system?command=/own") == "qemu+ssh://h/system?command=/own"
    limited = uri_with_timeouts("qemu+ssh://root@h:2222/system?keyfile=/a%20b")
    assert limited.startswith("qemu+ssh://root@h:2222/system?keyfile=/a%20b&command=")
    assert limited.endswith("&no_tty=1")
    wrapper = Path(limited.partition("command=")[2].partition("&")[0])
    assert wrapper.stat().st_mode & 0o111


# --- real hosts ------------------------------------------------------------------------------------------


def seconds_of_failure(host: Hypervisor) -> float:
    start = time.monotonic()
    with pytest.raises(HostUnavailable):
        host.guests()
    return time.monotonic() - start


def test_real_guest_reports_all_figures_of_the_plan(host: Host) -> None:
    (guest,) = Hypervisor(host.uri, 5).guests().values()
    assert guest.reports
    assert guest.memory_mb == 256
    assert 60 < guest.rss_mb < 400
    assert guest.unused_mb < guest.available_mb < 256
    assert guest.swapped_kb == 0
    assert 0 < guest.cached_mb < 64
    assert guest.touched_pages > 0


def test_mark_of_a_real_guest_outlives_libvirtd_and_leaves_its_configuration(host: Host) -> None:
    hypervisor = Hypervisor(host.uri, 5)
    (uuid,) = hypervisor.guests()
    check_marks(hypervisor, uuid)
    mark = Mark(256.0, 10.0, 130.0, "ab12")
    hypervisor.set_mark(uuid, mark)
    hypervisor.close()
    host.kill()
    host.start()
    assert wait_for(lambda: is_available(hypervisor))
    assert hypervisor.marks([uuid]) == {uuid: mark}
    hypervisor.set_mark(uuid, None)
    hypervisor.close()


def test_call_to_a_frozen_host_takes_the_time_limit_and_succeeds_after_thaw(host: Host) -> None:
    hypervisor = Hypervisor(host.uri, TIMEOUT_S)
    assert hypervisor.guests()
    host.freeze()
    try:
        for _ in range(6):
            # Hung calls do not make the next one slower.
            assert seconds_of_failure(hypervisor) < TIMEOUT_S + 2
    finally:
        host.thaw()
    assert wait_for(lambda: is_available(hypervisor))
    # Else the garbage collector closes the connection during the next test, in the thread that it interrupts.
    hypervisor.close()


def test_host_that_freezes_while_connecting_is_available_after_thaw(host: Host) -> None:
    host.freeze()
    hypervisor = Hypervisor(host.uri, TIMEOUT_S)
    try:
        assert seconds_of_failure(hypervisor) < TIMEOUT_S + 2
        assert seconds_of_failure(hypervisor) < TIMEOUT_S + 2
    finally:
        host.thaw()
    assert wait_for(lambda: is_available(hypervisor))


def is_available(host: Hypervisor) -> bool:
    try:
        return bool(host.guests())
    except HostUnavailable:
        return False


def test_connection_is_reopened_after_libvirtd_was_killed(host: Host) -> None:
    hypervisor = Hypervisor(host.uri, TIMEOUT_S)
    assert hypervisor.guests()
    host.kill()
    assert seconds_of_failure(hypervisor) < TIMEOUT_S + 2
    host.start()
    assert wait_for(lambda: is_available(hypervisor))


def test_frozen_guest_does_not_hide_other_guests(host: Host) -> None:
    import os
    import signal

    other = host.boot("b", 160, ready=False)
    hypervisor = Hypervisor(host.uri, TIMEOUT_S)
    uuids = list(hypervisor.guests())
    assert len(uuids) == 2
    os.kill(other.qemu_pid, signal.SIGSTOP)
    try:
        guests = wait_for(lambda: is_available(hypervisor) and hypervisor.guests())
        assert any(guest.name == "a" and guest.reports for guest in guests.values())
        assert set(hypervisor.marks(uuids).values()) == {None}
    finally:
        os.kill(other.qemu_pid, signal.SIGCONT)
        other.destroy()


def test_mute_port_and_frozen_ssh_take_the_time_limit(host: Host, sshd: Sshd) -> None:
    import os

    with mute() as port:
        assert seconds_of_failure(Hypervisor(sshd.uri(port=port), TIMEOUT_S)) < TIMEOUT_S + 2
    hypervisor = Hypervisor(sshd.uri(), 5)
    assert hypervisor.guests()
    with frozen(children(os.getpid(), "ssh")):
        assert seconds_of_failure(hypervisor) < 7
    assert wait_for(lambda: is_available(hypervisor))


def test_hung_host_does_not_delay_another_host(host: Host) -> None:
    with mute() as port:
        dead = Hypervisor(f"qemu+tcp://127.0.0.1:{port}/system", 10.0)
        threading.Thread(target=lambda: is_available(dead), daemon=True).start()
        time.sleep(0.2)
        start = time.monotonic()
        assert Hypervisor(host.uri, 5).guests()
        assert time.monotonic() - start < 5
