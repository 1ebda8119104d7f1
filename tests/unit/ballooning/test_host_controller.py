"""Host controllers on hosts that fail: no guest stays squeezed because of it."""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_session

from model.ballooning import journal as journal_module
from model.ballooning.actions import ActionExecutor
from model.ballooning.clock import Clock
from model.ballooning.counts import BallooningCounts
from model.ballooning.driver import run_controllers
from model.ballooning.guest_locator import GuestLocator
from model.ballooning.guests import Guest, GuestUsage
from model.ballooning.host import GuestGone, GuestRefused, HostUnavailable
from model.ballooning.host_controller import HostController, Intervals
from model.ballooning.journal import Journal
from model.ballooning.plan_output import PlanPrinter
from model.ballooning.rules import Rules
from model.ballooning.sessions import Action, Session
from model.common.logs import ProblemLog

SESSION = Session("u1", "a", "h1", 4096.0, 2000.0, 4e9, 1200.0)
SQUEEZED = Guest("u1", "a", 4096.0, 2000.0, 2000.0, 1000.0, 1958.0, 5.0, 0.0, 0.0)
#: Resident is 4096 MB, used are 1000: a candidate for a session.
FULL = Guest("u2", "b", 4096.0, 4096.0, 4096.0, 3096.0, 4054.0, 5.0, 0.0, 0.0)
USAGE = {"b": GuestUsage(1000.0, 4096.0, 1.0)}


class FakeHost:
    def __init__(self, *guests: Guest) -> None:
        self.running = {guest.uuid: guest for guest in guests}
        self.fault: Exception | None = None
        self.set_fault: Exception | None = None
        self.requests: list[tuple[str, float]] = []
        self.closed = False

    def guests(self) -> dict[str, Guest]:
        if self.fault is not None:
            raise self.fault
        # Each query finds newer statistics.
        self.running = {uuid: replace(guest, reported_s=guest.reported_s + 1) for uuid, guest in self.running.items()}
        return dict(self.running)

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        self.requests.append((uuid, memory_mb))
        if self.set_fault is not None:
            raise self.set_fault
        if uuid not in self.running:
            raise GuestGone("no domain")
        self.running[uuid] = replace(self.running[uuid], balloon_mb=memory_mb)

    def close(self) -> None:
        self.closed = True


@dataclass
class ManualTime:
    """A clock that tests advance."""

    seconds: float = 1000.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    def clock(self) -> Clock:
        return Clock(lambda: 1e9 + self.seconds, lambda: self.seconds)


class Site:
    """Controllers of several hosts with one journal."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal = journal
        self.clock = clock
        self.locator = GuestLocator(["h1", "h2"])
        self.counts = BallooningCounts()
        self.problems = ProblemLog(logging.getLogger("scroogevm.ballooning"))

    def controller(
        self,
        name: str,
        host: FakeHost,
        usage: Callable[[float], Mapping[str, GuestUsage] | None] = lambda _now_s: {},
        output: Any = None,
        **options: bool,
    ) -> HostController:
        executor: Any = ActionExecutor(
            name, host, self.journal, self.locator, 3600.0, self.counts, self.problems, self.clock
        )
        if output is not None:
            executor, options = PlanPrinter(name, output), {"dry_run": True, **options}
        return HostController(
            *(name, host, self.journal, usage, executor, self.locator, Rules(), Intervals(10.0, 0.02, 60.0)),
            *(self.counts, self.problems, self.clock),
            **options,
        )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as journal:
        journal.put(SESSION)
        yield journal


@pytest.fixture
def now() -> ManualTime:
    return ManualTime()


@pytest.fixture
def site(journal: Journal, now: ManualTime) -> Site:
    return Site(journal, now.clock())


# --- restore ----------------------------------------------------------------------------------------


def test_guest_squeezed_by_an_earlier_run_is_restored_at_the_first_step(site: Site, now: ManualTime) -> None:
    host = FakeHost(SQUEEZED)
    controller = site.controller("h1", host)
    controller.step()
    assert host.requests == [("u1", 4096.0)]
    controller.step()
    assert site.journal.sessions() == {}
    assert site.journal.grace() == {"u1": 1e9 + now.seconds + 3600}


def test_unavailable_host_keeps_its_sessions(site: Site) -> None:
    host = FakeHost(SQUEEZED)
    host.fault = HostUnavailable("no answer")
    controller = site.controller("h1", host)
    controller.step()
    assert (list(site.journal.sessions()), host.requests) == (["u1"], [])
    assert (site.counts.up, site.counts.errors) == ({"h1": False}, {"h1": 1})
    host.fault = None
    controller.step()
    assert host.requests == [("u1", 4096.0)]


def test_internal_error_while_restoring_does_not_end_the_thread(journal: Journal) -> None:
    site = Site(journal, Clock())
    host = FakeHost(SQUEEZED)
    host.fault = host.set_fault = RuntimeError("can't start new thread")
    controller, stop = site.controller("h1", host), threading.Event()
    thread = threading.Thread(target=run_controllers, args=([controller], stop), kwargs={"once": False}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while site.counts.errors["h1"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert site.counts.errors["h1"] >= 3
    host.fault = host.set_fault = None
    while journal.sessions() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert journal.sessions() == {}
    assert host.running["u1"].balloon_mb == 4096.0
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_end_restores_all_guests_and_releases_the_host(site: Site) -> None:
    host = FakeHost(SQUEEZED)
    site.controller("h1", host).end()
    assert host.running["u1"].balloon_mb == 4096.0
    assert site.journal.sessions() == {}
    assert host.closed


def test_hung_guest_does_not_keep_other_guests_squeezed(site: Site) -> None:
    class HungGuest(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            if uuid == "u1":
                raise HostUnavailable("no response within 5 s")
            super().set_memory(uuid, memory_mb)

    site.journal.put(replace_session(SESSION, uuid="u2", name="b"))
    host = HungGuest(SQUEEZED, replace(SQUEEZED, uuid="u2", name="b"))
    controller = site.controller("h1", host)
    for _ in range(4):
        controller.step()
    assert host.running["u2"].balloon_mb == 4096.0
    assert list(site.journal.sessions()) == ["u1"]


def test_refused_restore_is_logged_once_and_repeated(site: Site, event_log: pytest.LogCaptureFixture) -> None:
    host = FakeHost(SQUEEZED)
    host.set_fault = GuestRefused("monitor is locked")
    controller = site.controller("h1", host)
    for _ in range(3):
        controller.step()
    assert host.requests == [("u1", 4096.0)] * 3
    host.set_fault = None
    controller.step()
    assert [line for line in event_log.messages if line.startswith("h1 a: ")] == [
        "h1 a: cannot be restored: monitor is locked",
        "h1 a: recovered",
    ]
    assert (site.counts.restores, site.counts.gave_up) == (1, 1)


# --- squeeze ----------------------------------------------------------------------------------------


def squeezing(site: Site, host: FakeHost) -> HostController:
    """A controller whose next step starts a session of u2."""
    site.journal.end("u1", 0.0, 1.0)
    controller = site.controller("h1", host, lambda _now_s: USAGE)
    controller.step()  # statistics must change once
    return controller


def test_squeeze_is_in_the_journal_before_the_host_is_asked(site: Site) -> None:
    recorded: list[float] = []

    class Watched(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            with Journal(site.journal.path, locked=False) as on_disk:
                recorded.append(on_disk.sessions()[uuid].to_mb)
            super().set_memory(uuid, memory_mb)

    host = Watched(FULL)
    squeezing(site, host).step()
    # A twentieth of 4096 is 204.8.
    assert host.requests == [("u2", 3892.0)]
    assert recorded == [3892.0]
    assert site.counts.sessions == 1


def test_refused_squeeze_is_followed_by_a_restore(site: Site, event_log: pytest.LogCaptureFixture) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    host.set_fault = GuestRefused("monitor is locked")
    controller.step()
    assert host.requests == [("u2", 3892.0), ("u2", 4096.0)]
    assert site.journal.sessions()["u2"].gave_up
    assert "h1: give up vm=b from_mb=4096 to_mb=4096: it cannot be squeezed: monitor is locked" in event_log.messages
    host.set_fault = None
    controller.step()
    assert site.journal.sessions() == {}


def test_no_guest_is_squeezed_while_the_journal_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_atomically", full)
        controller.step()
    assert (host.requests, site.journal.sessions(), site.counts.sessions) == ([], {}, 0)
    assert "journal: cannot be written: No space left on device; no guest is squeezed" in event_log.messages


def test_running_session_ends_when_the_journal_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, now: ManualTime
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    controller.step()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_atomically", full)
        for _ in range(3):
            now.advance(2)
            controller.step()
    assert host.requests == [("u2", 3892.0), ("u2", 4096.0)]
    assert site.journal.sessions() == {}


def test_unavailable_host_is_not_squeezed_further_in_the_same_step(site: Site) -> None:
    class Hung(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            super().set_memory(uuid, memory_mb)
            raise HostUnavailable("no response within 5 s")

    host = Hung(FULL, replace(FULL, uuid="u3", name="c"))
    executor = ActionExecutor("h1", host, site.journal, site.locator, 1.0, site.counts, site.problems, site.clock)
    actions = [
        Action("squeeze", "b", "u2", 4096.0, 3000.0, "why", replace_session(SESSION, uuid="u2")),
        Action("squeeze", "c", "u3", 4096.0, 3000.0, "why", replace_session(SESSION, uuid="u3")),
        Action("restore", "a", "u1", 2000.0, 4096.0, "why", SESSION),
    ]
    with pytest.raises(HostUnavailable):
        executor.apply(actions, {})
    assert [uuid for uuid, _ in host.requests] == ["u2", "u1"]


# --- missing guests ---------------------------------------------------------------------------------


def test_moved_guest_keeps_its_session_until_its_new_host_is_observed_again(site: Site, now: ManualTime) -> None:
    source, target = FakeHost(), FakeHost()
    here, there = site.controller("h1", source), site.controller("h2", target)
    there.step()  # idle: not observed again for 10 s
    target.running["u1"] = SQUEEZED
    for _ in range(3):
        now.advance(6)
        here.step()
    assert list(site.journal.sessions("h1")) == ["u1"]
    there.step()
    here.step()
    assert list(site.journal.sessions("h2")) == ["u1"]
    there.step()
    there.step()
    assert target.requests == [("u1", 4096.0)]
    assert site.journal.sessions() == {}


def test_session_of_a_guest_that_was_shut_off_is_closed_once_all_hosts_were_observed(
    site: Site, now: ManualTime
) -> None:
    here, there = site.controller("h1", FakeHost()), site.controller("h2", FakeHost())
    there.step()
    for _ in range(2):
        now.advance(6)
        here.step()
    assert site.journal.sessions()
    there.step()
    here.step()
    assert site.journal.sessions() == {}


def test_guest_that_is_missing_twice_gets_the_full_waiting_time_twice(site: Site, now: ManualTime) -> None:
    host = FakeHost()
    site.controller("h2", FakeHost())
    site.locator = GuestLocator(["h1"])
    controller = site.controller("h1", host)
    controller.step()
    # It returns and is restored at once: that step contains no hold.
    host.running["u1"] = SQUEEZED
    controller.step()
    host.running.clear()
    now.advance(6)
    controller.step()
    assert site.journal.sessions()  # missing since now only
    now.advance(6)
    controller.step()
    assert site.journal.sessions() == {}


# --- driver -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [False, True])
def test_signal_handler_that_sets_the_event_never_meets_its_lock_in_the_same_thread(once: bool, tmp_path: Path) -> None:
    """The lock of an event is not reentrant: the handler would wait forever for the thread that it interrupts."""
    waiting_threads: set[str] = set()

    class RecordingEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting_threads.add(threading.current_thread().name)
            return super().wait(timeout)

    stop = RecordingEvent()
    with Journal(tmp_path / "empty") as journal:
        controller = Site(journal, Clock()).controller(
            "h1", FakeHost(), lambda _now_s: None if not once else {}, once=once
        )
        threading.Timer(0.3, stop.set).start()
        assert run_controllers([controller], stop, once=once)
    assert waiting_threads <= {"host h1"}


# --- one plan ---------------------------------------------------------------------------------------


class Lines:
    def __init__(self) -> None:
        self.written: list[tuple[str, list[str]]] = []

    def write(self, host: str, actions: Any) -> None:
        self.written.append((host, [action.kind for action in actions]))


def test_dry_run_prints_one_plan_and_changes_nothing(site: Site) -> None:
    before = site.journal.path.read_bytes()
    host, output = FakeHost(SQUEEZED, FULL), Lines()
    controller = site.controller("h1", host, lambda _now_s: USAGE, output, once=True)
    assert run_controllers([controller], threading.Event(), once=True)
    assert output.written == [("h1", ["hold", "squeeze"])]
    assert host.requests == []
    assert site.journal.path.read_bytes() == before


def test_dry_run_changes_nothing_after_an_internal_error(site: Site) -> None:
    host = FakeHost(SQUEEZED)
    host.fault = RuntimeError("bug")
    controller = site.controller("h1", host, output=Lines(), once=True)
    controller.step()
    controller.end()
    assert host.requests == []


def test_single_plan_ends_when_the_store_stays_unreadable(
    site: Site, now: ManualTime, event_log: pytest.LogCaptureFixture
) -> None:
    controller = site.controller("h1", FakeHost(), lambda _now_s: None, once=True)
    controller.step()
    assert not controller.is_done()
    now.advance(61)  # 30 s for statistics and 30 s for the store
    controller.step()
    assert controller.is_done()
    assert site.counts.up == {"h1": False}
    assert event_log.messages[-1] == "h1: no plan: the store could not be read"


def test_guest_is_planned_after_its_statistics_had_time_to_change(site: Site, now: ManualTime) -> None:
    class Frozen(FakeHost):
        def guests(self) -> dict[str, Guest]:
            return dict(self.running)

    output = Lines()
    controller = site.controller("h1", Frozen(FULL), lambda _now_s: USAGE, output)
    controller.step()
    assert output.written == []
    now.advance(31)
    controller.step()
    assert output.written == [("h1", ["hold", "skip"])]
    assert math.isclose(controller.pause_s(), 0.02)
