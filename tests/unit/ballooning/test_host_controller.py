"""Keepers of hosts that misbehave: nobody stays squeezed for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.ballooning import host_controller as balloonist
from model.ballooning.guests import Guest
from model.ballooning.host_controller import BallooningCounts, HostController, Pace, find_guest
from model.ballooning.hypervisor import GuestGone, HostUnavailable
from model.ballooning.journal import Journal
from model.ballooning.plan import Session
from model.ballooning.rules import Rules

SESSION = Session("u1", "a", "h1", 4096.0, 2000.0, 4e9, 1200.0)
SQUEEZED = Guest("u1", "a", 4096.0, 2000.0, 2000.0, 1000.0, 1958.0, 5.0, 0.0, 0.0)


class FakeHost:
    def __init__(self, *guests: Guest) -> None:
        self.running = {guest.uuid: guest for guest in guests}
        self.fault: Exception | None = None
        self.set_fault: Exception | None = None
        self.asked: list[tuple[str, float]] = []

    def guests(self) -> dict[str, Guest]:
        if self.fault is not None:
            raise self.fault
        return dict(self.running)

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        self.asked.append((uuid, memory_mb))
        if self.set_fault is not None:
            raise self.set_fault
        if uuid not in self.running:
            raise GuestGone("no domain")
        self.running[uuid] = replace(self.running[uuid], balloon_mb=memory_mb)

    def close(self) -> None:
        pass


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "j")
    opened.put(SESSION)
    yield opened
    opened.close()


Build = Callable[..., HostController]


@pytest.fixture
def controllers() -> list[HostController]:
    return []


@pytest.fixture
def keep(journal: Journal, controllers: list[HostController]) -> Build:
    def build(name: str, host: FakeHost) -> HostController:
        pace = Pace(10.0, 0.02, 60.0)
        controller = HostController(
            name, host, journal, lambda _now_s: {}, Rules(), pace, BallooningCounts(),
            lambda uuid, since: find_guest(controllers, name, uuid, since),
        )  # fmt: skip
        controllers.append(controller)
        return controller

    return build


def test_what_an_earlier_daemon_left_squeezed_is_given_back_at_the_first_look(journal: Journal, keep: Build) -> None:
    host = FakeHost(SQUEEZED)
    controller = keep("h1", host)
    controller.tick()
    assert host.asked == [("u1", 4096.0)]
    controller.tick()
    assert journal.sessions() == {}
    assert math.isclose(journal.grace()["u1"], time.time() + 3600, abs_tol=5)


def test_a_guest_that_moved_is_not_forgotten_for_a_look_at_its_new_host_that_is_older(
    journal: Journal, keep: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloonist, "_MISSING_S", 0.0)
    source, target = FakeHost(), FakeHost()
    here, there = keep("h1", source), keep("h2", target)
    there.tick()  # idle: not looked at again for 10 s
    target.running["u1"] = SQUEEZED
    for _ in range(3):
        here.tick()
    assert list(journal.sessions("h1")) == ["u1"]
    there.tick()
    here.tick()
    assert list(journal.sessions("h2")) == ["u1"]
    there.tick()
    there.tick()
    assert target.asked == [("u1", 4096.0)]
    assert journal.sessions() == {}


def test_a_guest_that_was_shut_off_is_forgotten_once_all_hosts_were_looked_at_since(
    journal: Journal, keep: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloonist, "_MISSING_S", 0.0)
    here, there = keep("h1", FakeHost()), keep("h2", FakeHost())
    there.tick()
    here.tick()
    here.tick()
    assert journal.sessions()
    there.tick()
    here.tick()
    assert journal.sessions() == {}


def test_a_guest_that_is_missed_twice_is_waited_for_twice(
    journal: Journal, keep: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time it came back, and was restored at once: that was a look without a hold."""
    monkeypatch.setattr(balloonist, "_MISSING_S", 0.2)
    host = FakeHost()
    controller = keep("h1", host)
    controller.tick()
    host.running["u1"] = SQUEEZED
    controller.tick()
    host.running.clear()
    time.sleep(0.25)
    controller.tick()
    assert journal.sessions()  # missed for the first moment only
    time.sleep(0.25)
    controller.tick()
    assert journal.sessions() == {}


def test_a_host_that_does_not_answer_keeps_its_sessions(journal: Journal, keep: Build) -> None:
    host = FakeHost(SQUEEZED)
    host.fault = HostUnavailable("no answer")
    controller = keep("h1", host)
    controller.tick()
    assert (list(journal.sessions()), host.asked) == (["u1"], [])
    host.fault = None
    controller.tick()
    assert host.asked == [("u1", 4096.0)]


def test_a_fault_of_ours_while_giving_back_does_not_end_the_thread(journal: Journal, keep: Build) -> None:
    host = FakeHost(SQUEEZED)
    host.fault = host.set_fault = RuntimeError("can't start new thread")
    controller, stop = keep("h1", host), threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), daemon=True)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    host.fault = host.set_fault = None
    deadline = time.monotonic() + 10
    while journal.sessions() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert journal.sessions() == {}
    assert host.running["u1"].balloon_mb == 4096.0
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_the_end_gives_everything_back(journal: Journal, keep: Build) -> None:
    host = FakeHost(SQUEEZED)
    keep("h1", host).end()
    assert host.running["u1"].balloon_mb == 4096.0
    assert journal.sessions() == {}


def test_a_hung_guest_does_not_keep_others_squeezed(journal: Journal, keep: Build) -> None:
    class Hung(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            if uuid == "u1":
                raise HostUnavailable("no answer within 5 s")
            super().set_memory(uuid, memory_mb)

    journal.put(replace(SESSION, uuid="u2", name="b"))
    host = Hung(SQUEEZED, replace(SQUEEZED, uuid="u2", name="b"))
    controller = keep("h1", host)
    for _ in range(4):
        controller.tick()
    assert host.running["u2"].balloon_mb == 4096.0
    assert list(journal.sessions()) == ["u1"]
