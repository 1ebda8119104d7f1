"""Host controllers on hosts that fail: no guest stays squeezed because of it."""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from model.ballooning.marks import Mark
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
        self.mark_fault: Exception | None = None
        self.read_fault: Exception | None = None
        self.requests: list[tuple[str, float]] = []
        self.marked: dict[str, Mark] = {}
        self.marks_read: list[str] = []
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
        guest = self.running[uuid]
        taken_mb = guest.balloon_mb - memory_mb
        self.running[uuid] = replace(
            guest,
            balloon_mb=memory_mb,
            available_mb=guest.available_mb - taken_mb,
            unused_mb=guest.unused_mb - taken_mb,
        )

    def marks(self, uuids: Sequence[str]) -> dict[str, Mark | None]:
        self.marks_read += uuids
        if self.read_fault is not None:
            raise self.read_fault
        return {uuid: self.marked.get(uuid) for uuid in uuids}

    def set_mark(self, uuid: str, mark: Mark | None) -> None:
        if self.mark_fault is not None:
            raise self.mark_fault
        if uuid not in self.running:
            raise GuestGone("no domain")
        if mark is None:
            self.marked.pop(uuid, None)
        else:
            self.marked[uuid] = mark

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


def test_end_does_not_wait_for_a_last_report(site: Site, now: ManualTime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(FakeHost):
        def guests(self) -> dict[str, Guest]:
            return dict(self.running)

    monkeypatch.setattr(time, "sleep", now.advance)
    site.journal.put(replace_session(SESSION, peak_mb=900.0))
    started_at = now.seconds
    host = Silent(SQUEEZED)
    site.controller("h1", host).end()
    assert (host.running["u1"].balloon_mb, site.journal.sessions()) == (4096.0, {})
    assert now.seconds - started_at < 1


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
    assert site.counts.restore_failures["h1"] > 0


def test_refused_restore_is_logged_once_and_repeated(site: Site, event_log: pytest.LogCaptureFixture) -> None:
    host = FakeHost(SQUEEZED)
    host.set_fault = GuestRefused("monitor is locked")
    controller = site.controller("h1", host)
    for _ in range(3):
        controller.step()
    assert host.requests == [("u1", 4096.0)] * 3
    assert site.counts.restore_failures == {"h1": 3}
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


def finish(site: Site, controller: HostController) -> None:
    """Two steps: the guest has its memory, and has reported since."""
    controller.step()
    controller.step()
    assert site.journal.sessions() == {}


def test_plan_waits_for_statistics_that_the_busy_host_omitted(site: Site) -> None:
    """libvirt omits them while another query of the guest runs: that is no guest without a balloon."""

    class Busy(FakeHost):
        omits = True

        def guests(self) -> dict[str, Guest]:
            answer = super().guests()
            return {uuid: Guest(uuid, "b", 4096.0, 4096.0) for uuid in answer} if self.omits else answer

    host = Busy(FULL)
    controller = squeezing(site, host)
    controller.step()
    assert controller.pause_s() < 1  # not settled
    host.omits = False
    for _ in range(2):
        controller.step()
    assert host.requests
    assert site.journal.sessions()["u2"].name == "b"


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


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
    finish(site, controller)


NO_MARKS = GuestRefused("metadata is not supported")


def test_no_guest_is_squeezed_while_neither_journal_nor_domain_can_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    host.mark_fault = NO_MARKS
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_atomically", full_disk)
        controller.step()
        controller._plan_at = 0.0
        controller.step()
    assert (host.requests, site.journal.sessions(), site.counts.sessions) == ([], {}, 0)
    effect = "sessions are recorded in the guests' domains alone, and no guest is squeezed that cannot be marked"
    assert [line for line in event_log.messages if "vm=" not in line] == [
        "h1 marks: cannot be written: metadata is not supported; sessions are in the journal alone",
        f"journal: cannot be used: No space left on device; {effect}",
    ]


def test_guest_that_cannot_be_marked_is_squeezed_with_the_journal_alone(site: Site) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    host.mark_fault = NO_MARKS
    controller.step()
    assert (host.requests, host.marked) == ([("u2", 3892.0)], {})
    assert not site.journal.sessions()["u2"].marked
    controller._restore_all("test")
    finish(site, controller)  # without a mark to remove


def test_guest_is_squeezed_with_its_mark_alone_while_the_journal_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, now: ManualTime
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_atomically", full_disk)
        for _ in range(3):
            now.advance(2)
            controller.step()
        assert host.requests == [("u2", 3892.0), ("u2", 3688.0)]
        assert host.marked["u2"].full_mb == 4096.0
        now.advance(200)
        for _ in range(3):
            controller.step()
    assert (host.running["u2"].balloon_mb, host.marked, site.journal.sessions()) == (4096.0, {}, {})


def test_running_session_ends_when_the_journal_cannot_be_written_and_the_guest_is_not_marked(
    site: Site, monkeypatch: pytest.MonkeyPatch, now: ManualTime
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    host.mark_fault = NO_MARKS
    controller.step()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_atomically", full_disk)
        for _ in range(4):
            now.advance(2)
            controller.step()
    assert host.requests == [("u2", 3892.0), ("u2", 4096.0)]
    assert site.journal.sessions() == {}


def test_no_session_starts_without_a_lock_of_the_journal(now: ManualTime, tmp_path: Path) -> None:
    (tmp_path / "j.lock").mkdir()
    host = FakeHost(FULL)
    with Journal(tmp_path / "j") as journal:
        site = Site(journal, now.clock())
        controller = site.controller("h1", host, lambda _now_s: USAGE)
        controller.step()
        controller.step()
        assert (host.requests, host.marked) == ([], {})
        (tmp_path / "j.lock").rmdir()
        journal.retry()
        controller._plan_at = 0.0
        controller.step()
        assert (host.requests, list(host.marked)) == ([("u2", 3892.0)], ["u2"])


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


# --- marks ------------------------------------------------------------------------------------------

#: A guest that a killed daemon has left squeezed; the journal does not know it.
LOST = replace(SQUEEZED, uuid="u3", name="c")


def own_mark(site: Site, full_mb: float = 4096.0) -> Mark:
    return Mark(full_mb, site.clock.wall() - 10, site.clock.wall() + 110, site.journal.owner)


@pytest.fixture
def lost(site: Site) -> FakeHost:
    site.journal.end("u1", 0.0, 1.0)
    return FakeHost(LOST)


def test_mark_is_written_before_the_squeeze_and_removed_after_the_restore_was_confirmed(site: Site) -> None:
    marked_at_request: list[bool] = []

    class Watched(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            marked_at_request.append(uuid in self.marked)
            super().set_memory(uuid, memory_mb)

    host = Watched(FULL)
    controller = squeezing(site, host)
    controller.step()
    now_s = site.clock.wall()
    assert host.marked == {"u2": Mark(4096.0, now_s, now_s + 120.0, site.journal.owner)}
    controller._restore_all("test")
    assert host.marked  # not confirmed yet
    finish(site, controller)
    assert (marked_at_request, host.marked) == ([True, True], {})


def test_marked_guest_without_a_session_is_restored_and_its_mark_removed(
    site: Site, lost: FakeHost, event_log: pytest.LogCaptureFixture
) -> None:
    lost.marked["u3"] = own_mark(site)
    controller = site.controller("h1", lost)
    controller.step()
    assert lost.requests == [("u3", 4096.0)]
    assert site.journal.sessions()["u3"].marked
    finish(site, controller)
    assert (lost.running["u3"].balloon_mb, lost.marked, site.counts.restores) == (4096.0, {}, 1)
    assert event_log.messages[0] == (
        "h1: an earlier run left it squeezed, it is restored: vm=c balloon_mb=2000 memory_mb=4096"
    )


@pytest.mark.parametrize(("recorded", "restored"), [(3000.0, 3000.0), (8192.0, 4096.0), (math.inf, 4096.0)])
def test_marked_guest_is_restored_to_the_recorded_size_but_not_above_its_maximum(
    site: Site, lost: FakeHost, recorded: float, restored: float
) -> None:
    lost.marked["u3"] = own_mark(site, recorded)
    controller = site.controller("h1", lost)
    controller.step()
    finish(site, controller)
    assert (lost.running["u3"].balloon_mb, lost.marked) == (restored, {})


def test_balloon_that_the_operator_set_is_left_alone_and_its_domain_is_read_once(site: Site, lost: FakeHost) -> None:
    controller = site.controller("h1", lost)
    for _ in range(3):
        controller.step()
    assert (lost.requests, lost.marks_read) == ([], ["u3"])
    lost.fault = HostUnavailable("no answer")
    controller.step()
    lost.fault = None
    controller.step()
    assert (lost.requests, lost.marks_read) == ([], ["u3", "u3"])


def test_mark_of_a_guest_that_shrinks_later_is_read_then(site: Site) -> None:
    site.journal.end("u1", 0.0, 1.0)
    host = FakeHost(FULL)
    controller = site.controller("h1", host)
    controller.step()
    host.running["u2"] = replace(host.running["u2"], balloon_mb=2000.0)
    host.marked["u2"] = own_mark(site)
    controller.step()
    assert host.requests == [("u2", 4096.0)]


def test_mark_that_outlived_its_session_is_removed_so_that_it_explains_no_later_balloon(site: Site) -> None:
    site.journal.end("u1", 0.0, 1.0)
    host = FakeHost(FULL)
    host.marked["u2"] = own_mark(site)
    controller = site.controller("h1", host)
    controller.step()
    assert host.marked == {}
    host.running["u2"] = replace(host.running["u2"], balloon_mb=2000.0)
    controller.step()
    assert host.requests == []


def test_session_of_another_daemon_is_respected_until_it_must_have_ended(
    site: Site, lost: FakeHost, now: ManualTime
) -> None:
    lost.marked["u3"] = replace(own_mark(site), owner="another")
    controller = site.controller("h1", lost)
    for _ in range(3):  # 110 s of its session and 30 s for its restore
        controller.step()
        now.advance(45)
    assert lost.requests == []
    now.advance(6)
    controller.step()
    assert lost.requests == [("u3", 4096.0)]


def test_further_session_of_another_daemon_is_respected_too(site: Site, lost: FakeHost, now: ManualTime) -> None:
    lost.marked["u3"] = replace(own_mark(site), owner="another")
    controller = site.controller("h1", lost)
    controller.step()
    now.advance(141)
    lost.marked["u3"] = replace(own_mark(site), owner="another")
    controller.step()
    now.advance(139)
    controller.step()
    assert lost.requests == []
    now.advance(2)
    controller.step()
    assert lost.requests == [("u3", 4096.0)]


def test_clock_of_another_master_that_is_ahead_does_not_keep_a_guest_squeezed(
    site: Site, lost: FakeHost, now: ManualTime
) -> None:
    later = site.clock.wall() + 1e6
    lost.marked["u3"] = Mark(4096.0, later, later + 120, "another")
    controller = site.controller("h1", lost)
    controller.step()
    now.advance(151)
    controller.step()
    assert lost.requests == [("u3", 4096.0)]


def test_mark_of_this_journal_is_respected_while_the_journal_is_not_locked(now: ManualTime, tmp_path: Path) -> None:
    """Another daemon may have locked it."""
    (tmp_path / "j.lock").mkdir()
    host = FakeHost(LOST)
    with Journal(tmp_path / "j") as journal:
        site = Site(journal, now.clock())
        host.marked["u3"] = own_mark(site)
        controller = site.controller("h1", host)
        controller.step()
        assert host.requests == []
        now.advance(141)
        controller.step()
        assert host.requests == [("u3", 4096.0)]


def test_guest_with_a_session_on_another_host_is_not_restored_by_its_mark(site: Site) -> None:
    """It moves: its session follows it."""
    host = FakeHost(SQUEEZED)
    host.marked["u1"] = own_mark(site)
    site.controller("h2", host).step()
    assert host.requests == []


def test_marks_that_cannot_be_read_delay_no_restore(site: Site) -> None:
    host = FakeHost(SQUEEZED, LOST)
    host.read_fault = HostUnavailable("no response within 5 s")
    host.marked["u3"] = own_mark(site)
    controller = site.controller("h1", host)
    controller.step()
    assert host.requests == [("u1", 4096.0)]
    assert (site.counts.up, site.counts.errors) == ({"h1": False}, {"h1": 1})
    host.read_fault = None
    controller.step()
    assert host.requests[1:] == [("u3", 4096.0)]


def test_guest_that_hangs_when_its_old_mark_is_removed_does_not_make_its_host_unavailable(
    site: Site, event_log: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(FULL)
    host.marked["u2"] = own_mark(site)
    host.mark_fault = HostUnavailable("no response within 5 s")
    controller = site.controller("h1", host)
    for _ in range(3):
        controller.step()
    assert site.counts.up == {"h1": True}
    assert event_log.messages.count("h1 b: its mark cannot be removed: no response within 5 s") == 1


def test_session_stays_open_until_its_mark_is_removed(site: Site, event_log: pytest.LogCaptureFixture) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    controller.step()
    controller._restore_all("test")
    host.mark_fault = GuestRefused("locked")
    for _ in range(4):
        controller.step()
    assert list(site.journal.sessions()) == ["u2"]
    host.mark_fault = None
    controller.step()
    assert (site.journal.sessions(), host.marked) == ({}, {})
    assert [line for line in event_log.messages if "mark" in line] == ["h1 b: its mark cannot be removed: locked"]


# --- killed processes -------------------------------------------------------------------------------


def test_session_in_which_a_process_was_killed_fails_and_the_guest_rests_longer(
    site: Site, now: ManualTime, event_log: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    controller.step()
    now.advance(2)
    host.running["u2"] = replace(host.running["u2"], unused_mb=host.running["u2"].unused_mb + 500)
    controller.step()
    assert host.requests[-1] == ("u2", 4096.0)
    finish(site, controller)
    assert (site.counts.gave_up, site.counts.killed, site.counts.restores) == (1, 1, 1)
    assert site.journal.grace()["u2"] == now.clock().wall() + 8 * 3600
    (line,) = [line for line in event_log.messages if "killed" in line and "give up" in line]
    assert line.endswith(": a process may have been killed: its usage fell from 1000 to 500 MB")


def test_process_that_was_killed_at_the_end_of_a_session_is_seen_in_the_next_report(
    site: Site, now: ManualTime, event_log: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(FULL)
    controller = squeezing(site, host)
    controller.step()
    now.advance(200)
    controller.step()  # the time limit
    controller.step()
    host.running["u2"] = replace(host.running["u2"], unused_mb=host.running["u2"].unused_mb + 500)
    controller.step()
    assert site.journal.sessions() == {}
    assert (site.counts.gave_up, site.counts.killed, site.counts.restores) == (1, 1, 1)
    assert site.journal.grace()["u2"] == now.clock().wall() + 8 * 3600
    assert "h1: session failed vm=b: a process may have been killed: its usage fell from 1000 to 500 MB" in (
        event_log.messages
    )


def test_internal_error_of_each_step_is_logged_once_with_its_traceback(
    site: Site, event_log: pytest.LogCaptureFixture
) -> None:
    class Faulty(FakeHost):
        def set_memory(self, uuid: str, memory_mb: float) -> None:
            raise ZeroDivisionError("bug")

    controller = site.controller("h1", Faulty(SQUEEZED))
    for _ in range(3):
        controller.step()
    lines = [line for line in event_log.messages if "Traceback" in line]
    assert [line.splitlines()[0] for line in lines] == [
        "h1 internal error: step failed",
        "h1 internal error: restore failed vm=a",
    ]


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
