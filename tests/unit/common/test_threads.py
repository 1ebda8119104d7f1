"""Threads that may hang do not delay what waits for them, nor the end of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from model.common.threads import DaemonThreads, LatestValue, call_with_timeout, map_until, run_periodically
from tests.conftest import ROOT


def test_call_returns_its_result_and_raises_its_error() -> None:
    assert call_with_timeout(lambda: 5, 10) == 5
    with pytest.raises(KeyError, match="gone"):
        call_with_timeout(lambda: {}["gone"], 10)


def test_timeout_of_the_call_itself_is_not_taken_for_ours() -> None:
    def job() -> None:
        raise TimeoutError("the server's own")

    with pytest.raises(TimeoutError, match="the server's own"):
        call_with_timeout(job, 10)


def test_call_that_hangs_is_left_alone() -> None:
    hanging = threading.Event()
    with pytest.raises(TimeoutError, match="no result within 0"):
        call_with_timeout(lambda: hanging.wait(30), 0.05)
    hanging.set()


def test_all_keys_are_mapped_a_few_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(key: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return key * key

    found = dict(map_until(range(50), work, 4, lambda: 10.0))
    assert found == {key: key * key for key in range(50)}
    assert 1 <= most <= 4


def test_key_that_hangs_costs_the_others_nothing() -> None:
    hanging = threading.Event()
    end = time.monotonic() + 0.5

    def work(key: int) -> int:
        if key == 1:
            hanging.wait(30)
        return key

    found = dict(map_until(range(6), work, 3, lambda: max(0.0, end - time.monotonic())))
    hanging.set()
    assert sorted(found) == [0, 2, 3, 4, 5]


def test_nothing_is_started_when_no_time_is_left() -> None:
    started = []
    assert list(map_until([1, 2], started.append, 2, lambda: 0.0)) == []
    assert started == []


def test_periodic_job_survives_its_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    stop, calls = threading.Event(), []

    def job() -> None:
        calls.append(1)
        if len(calls) == 3:
            stop.set()
        raise ValueError("for once")

    run_periodically(job, 0.001, stop)
    assert len(calls) == 3
    # Once, with its traceback.
    assert caplog.text.count("ValueError: for once") == 1


def test_latest_value_replaces_those_that_wait() -> None:
    seen: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def work(value: int) -> None:
        seen.append(value)
        busy.set()
        go_on.wait(10)

    latest = LatestValue(work, "test")
    latest.put(1)
    busy.wait(10)
    for value in (2, 3, 4):
        latest.put(value)
    go_on.set()
    latest.close(10)
    assert seen == [1, 4]


def test_latest_value_that_was_never_put_starts_no_thread() -> None:
    before = threading.active_count()
    latest = LatestValue(print, "test")
    latest.close(10)
    assert threading.active_count() == before


def test_thread_of_the_latest_value_has_work_between_two_values() -> None:
    done: list[str] = []
    idle = threading.Event()

    def look() -> None:
        done.append("idle")
        idle.set()

    latest = LatestValue(done.append, "test", idle=look, pause_s=lambda: 0.01)
    for value in ("first", "second"):
        idle.clear()
        latest.put(value)
        assert idle.wait(30)
    latest.close(30)
    assert [one for one in done if one != "idle"] == ["first", "second"]
    assert "idle" in done[1 : done.index("second")]


def test_pool_says_whether_its_threads_ended() -> None:
    done, hanging = threading.Event(), threading.Event()
    pool = DaemonThreads(2, "test")
    pool.run(done.set)
    assert done.wait(10)
    assert pool.close(10)
    stuck = DaemonThreads(1, "test")
    stuck.run(hanging.wait, 30)
    assert not stuck.close(0.05)
    hanging.set()


def test_process_ends_although_threads_hang() -> None:
    code = (
        "import time\n"
        "from model.common.threads import DaemonThreads, LatestValue, start_thread\n"
        "pool = DaemonThreads(2); pool.run(time.sleep, 60)\n"
        "LatestValue(lambda _: time.sleep(60), 'x').put(1)\n"
        "start_thread('y', time.sleep, 60)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, check=True)
