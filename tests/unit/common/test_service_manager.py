"""sd_notify: what a real datagram socket receives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.common.service_manager import ServiceManager


class Receiver:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(0.2)

    def messages(self) -> list[list[str]]:
        received = []
        while True:
            try:
                received.append(self.socket.recv(4096).decode().split("\n"))
            except TimeoutError:
                return received


@pytest.fixture(params=["path", "abstract"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@scroogevm-test-{os.getpid()}"
    made = Receiver(address)
    yield made
    made.socket.close()


def test_states_are_reported_with_their_lines(receiver: Receiver) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": receiver.address})
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.report_ready("running")
    service.report_reload()
    service.report_status("waiting: a\nb", extend_s=1.5)
    service.report_stop()
    ready, reloading, waiting, stopping = receiver.messages()
    assert ready == ["READY=1", "STATUS=running"]
    assert (reloading[0], reloading[2]) == ("RELOADING=1", "STATUS=reloading")
    key, _, value = reloading[1].partition("=")
    assert key == "MONOTONIC_USEC"
    assert before_us <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    # A line break in a status would start another variable.
    assert waiting == ["STATUS=waiting: a b", "EXTEND_TIMEOUT_USEC=1500000"]
    assert stopping[0] == "STOPPING=1"


def test_beats_are_sent_four_times_in_a_period(receiver: Receiver) -> None:
    now = [100.0]
    service = ServiceManager({"NOTIFY_SOCKET": receiver.address, "WATCHDOG_USEC": "8000000"}, lambda: now[0])
    for _ in range(80):
        service.beat()
        now[0] += 0.1
    assert receiver.messages() == [["WATCHDOG=1"]] * 4


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_no_beat_without_a_watchdog_for_this_process(receiver: Receiver, watchdog: dict[str, str]) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": receiver.address, **watchdog})
    service.beat()
    service.report_ready("running")
    assert receiver.messages() == [["READY=1", "STATUS=running"]]


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/nonexistent/notify", "/" + "x" * 200])
def test_missing_or_unusable_socket_is_ignored(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    service.report_ready("running")
    service.beat()


def test_service_manager_that_does_not_read_delays_a_report_by_a_second_at_most(tmp_path: Path) -> None:
    receiver = Receiver(str(tmp_path / "notify"))
    service = ServiceManager({"NOTIFY_SOCKET": receiver.address})
    start = time.monotonic()
    while time.monotonic() - start < 1.0:
        service.report_status("x" * 2000)  # until the buffer is full
    assert time.monotonic() - start < 4
    receiver.socket.close()
