"""The life cycle of a daemon as a process: stop, stop at once, reload."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Prints the settings of each run; settings are what stands in a file, "wrong" is a fault.
DAEMON = """
import sys
from pathlib import Path
from model.common.errors import PassingFault, SettingsError, UsageError
from model.common.lifecycle import run_daemon
from model.common.logs import set_up_logging

def load():
    text = Path(sys.argv[1]).read_text()
    if text == "wrong":
        raise SettingsError(["KEY: is wrong"])
    return text

def serve(settings, request):
    if settings == "unusable" or settings == "unusable after all" and request.has_run:
        raise UsageError("FILE: is not a database")
    if settings.startswith("away"):
        raise PassingFault("FILE: is locked")
    if settings == "broken":
        raise FileNotFoundError(2, "No such file or directory", "folder")
    request.report_ready()
    print("run", settings, flush=True)
    while not request.event.wait(0.05):
        pass
    print("end", settings, flush=True)
    if settings == "hang":
        request.event.clear()
        request.event.wait()
    return 7

set_up_logging(False)
sys.exit(run_daemon(load, serve, retries="once" not in sys.argv))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings"
    path.write_text("first")
    return path


def start(settings: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DAEMON, str(settings), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def daemon(settings: Path) -> Iterator[subprocess.Popen[str]]:
    with start(settings) as process:
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_the_process_with_its_code(daemon: subprocess.Popen[str], number: int) -> None:
    assert line(daemon) == "run first"
    daemon.send_signal(number)
    out, err = daemon.communicate(timeout=10)
    assert (daemon.returncode, out, err) == (7, "end first\n", "")


def test_second_signal_ends_a_run_that_hangs(settings: Path, daemon: subprocess.Popen[str]) -> None:
    assert line(daemon) == "run first"
    settings.write_text("hang")
    daemon.send_signal(signal.SIGHUP)
    assert [line(daemon), line(daemon)] == ["end first", "run hang"]
    daemon.send_signal(signal.SIGTERM)
    assert line(daemon) == "end hang"
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(10)
    assert daemon.returncode == -signal.SIGTERM


def test_reload_ends_the_run_and_starts_one_with_the_new_settings(
    settings: Path, daemon: subprocess.Popen[str]
) -> None:
    assert line(daemon) == "run first"
    for text in ("second", "third"):
        settings.write_text(text)
        daemon.send_signal(signal.SIGHUP)
        assert line(daemon).startswith("end ")
        assert line(daemon) == f"run {text}"
    daemon.send_signal(signal.SIGTERM)
    _, err = daemon.communicate(timeout=10)
    assert daemon.returncode == 7
    assert err.count("reload: settings read again") == 2


def test_reload_with_wrong_settings_continues_with_the_previous_ones(
    settings: Path, daemon: subprocess.Popen[str]
) -> None:
    assert line(daemon) == "run first"
    settings.write_text("wrong")
    daemon.send_signal(signal.SIGHUP)
    assert [line(daemon), line(daemon)] == ["end first", "run first"]
    daemon.send_signal(signal.SIGTERM)
    _, err = daemon.communicate(timeout=10)
    assert daemon.returncode == 7
    assert "ERROR scroogevm: reload: KEY: is wrong" in err


def test_reload_with_settings_that_cannot_be_used_returns_to_the_previous_ones(
    settings: Path, daemon: subprocess.Popen[str]
) -> None:
    assert line(daemon) == "run first"
    settings.write_text("unusable")
    daemon.send_signal(signal.SIGHUP)
    assert [line(daemon), line(daemon)] == ["end first", "run first"]
    settings.write_text("second")
    daemon.send_signal(signal.SIGHUP)
    assert [line(daemon), line(daemon)] == ["end first", "run second"]
    daemon.send_signal(signal.SIGTERM)
    _, err = daemon.communicate(timeout=10)
    assert daemon.returncode == 7
    assert "ERROR scroogevm: reload: FILE: is not a database" in err


def waiting(daemon: subprocess.Popen[str]) -> str:
    """The next line of the log."""
    assert daemon.stderr is not None
    return daemon.stderr.readline().strip()


@pytest.mark.parametrize(
    ("fault", "message"), [("away", "FILE: is locked"), ("broken", "folder: No such file or directory")]
)
def test_fault_that_may_pass_is_logged_once_and_tried_again(tmp_path: Path, fault: str, message: str) -> None:
    (tmp_path / "settings").write_text(fault)
    with start(tmp_path / "settings") as daemon:
        assert waiting(daemon).endswith(f"ERROR scroogevm: start: {message}; trying again until it is possible")
        time.sleep(1.2)  # further attempts, which log nothing
        (tmp_path / "settings").write_text("first")
        daemon.send_signal(signal.SIGHUP)
        assert line(daemon) == "run first"
        daemon.send_signal(signal.SIGTERM)
        _, err = daemon.communicate(timeout=10)
    assert daemon.returncode == 7
    assert [one.partition(" scroogevm: ")[2] for one in err.splitlines()] == [
        "reload: settings read again",
        "start: recovered",
    ]


def test_settings_are_not_read_again_while_a_fault_lasts(tmp_path: Path) -> None:
    """An operator who edits them at that moment cannot end the daemon."""
    (tmp_path / "settings").write_text("away")
    with start(tmp_path / "settings") as daemon:
        waiting(daemon)
        (tmp_path / "settings").write_text("wrong")
        time.sleep(1.2)
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGHUP)
        assert waiting(daemon).endswith("reload: KEY: is wrong")
        daemon.kill()


def test_signal_ends_the_wait_at_once(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("away")
    with start(tmp_path / "settings") as daemon:
        waiting(daemon)
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=10)
    assert daemon.returncode == 0
    assert time.monotonic() - began < 3


def test_mode_that_runs_once_does_not_try_again(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("away")
    with start(tmp_path / "settings", "once") as daemon:
        _, err = daemon.communicate(timeout=10)
    assert daemon.returncode == 1
    assert err.endswith("PassingFault: FILE: is locked\n")


def test_fault_of_new_settings_continues_with_the_previous_ones(settings: Path, daemon: subprocess.Popen[str]) -> None:
    assert line(daemon) == "run first"
    settings.write_text("away")
    daemon.send_signal(signal.SIGHUP)
    assert [line(daemon), line(daemon)] == ["end first", "run first"]


def test_settings_that_were_usable_do_not_end_a_daemon_that_has_run(tmp_path: Path) -> None:
    """The file that they name was damaged meanwhile: it may be restored."""
    settings = tmp_path / "settings"
    settings.write_text("unusable after all")
    with start(settings) as daemon:
        assert line(daemon) == "run unusable after all"
        daemon.send_signal(signal.SIGHUP)
        assert line(daemon) == "end unusable after all"
        assert "settings read again" in waiting(daemon)
        assert waiting(daemon).endswith("reload: FILE: is not a database")
        assert "continues with the previous" in waiting(daemon)
        assert "start: FILE: is not a database; trying again" in waiting(daemon)
        settings.write_text("second")
        daemon.send_signal(signal.SIGHUP)
        assert line(daemon) == "run second"
        daemon.kill()


def test_service_manager_follows_start_fault_reload_and_stop(tmp_path: Path) -> None:
    settings, address = tmp_path / "settings", tmp_path / "notify"
    settings.write_text("away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(address))
        service.settimeout(10)

        def received() -> list[str]:
            return service.recv(4096).decode().split("\n")

        with start(settings, NOTIFY_SOCKET=str(address)) as daemon:
            status, extension = received()
            assert status == "STATUS=waiting: FILE: is locked"
            assert extension.startswith("EXTEND_TIMEOUT_USEC=")
            assert int(extension.partition("=")[2]) > 10**7
            settings.write_text("first")
            daemon.send_signal(signal.SIGHUP)
            messages = [received()]
            while messages[-1][0] != "READY=1":  # more attempts may have been reported before the signal
                messages.append(received())
            assert "RELOADING=1" in [message[0] for message in messages]
            daemon.send_signal(signal.SIGHUP)
            assert [received()[0], received()[0]] == ["RELOADING=1", "READY=1"]
            daemon.send_signal(signal.SIGTERM)
            assert received()[0] == "STOPPING=1"
            daemon.communicate(timeout=10)


def test_event_loop_that_hangs_sends_no_sign_of_life(tmp_path: Path) -> None:
    code = """
import asyncio, time
from model.common.lifecycle import DaemonControl
from model.common.service_manager import ServiceManager

async def run():
    async with DaemonControl(ServiceManager()).watched():
        await asyncio.sleep(2.2)
        print("hangs", flush=True)
        time.sleep(60)

asyncio.run(run())
"""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(address))
        service.settimeout(3)
        environment = {**os.environ, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "2000000"}
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert line(process) == "hangs"
            service.setblocking(False)
            beats = 0
            with contextlib.suppress(BlockingIOError):
                while service.recv(4096) == b"WATCHDOG=1":
                    beats += 1
            assert beats >= 2
            service.settimeout(3)
            with pytest.raises(TimeoutError):
                service.recv(4096)
            process.kill()


def test_many_reloads_and_a_stop_among_them_end_it(daemon: subprocess.Popen[str]) -> None:
    assert line(daemon) == "run first"
    for _ in range(20):
        daemon.send_signal(signal.SIGHUP)
        time.sleep(0.003)
    daemon.send_signal(signal.SIGTERM)
    daemon.communicate(timeout=10)
    assert daemon.returncode in {7, -signal.SIGTERM}


def test_signal_during_a_wait_for_its_own_event_does_not_hang() -> None:
    """A handler that sets an event deadlocks with a wait for it: thousands of both, by chance at any moment."""
    code = (
        "import os, signal, threading, time\n"
        "from model.common.signals import StopRequest, handle_signals\n"
        "request = handle_signals(StopRequest())\n"
        "def storm():\n"
        "    while True:\n"
        "        os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.0002)\n"
        "threading.Thread(target=storm, daemon=True).start()\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end:\n"
        "    request.event.wait(0.0001)\n"
        "    request.clear()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, check=True)


def test_wrong_settings_at_the_start_end_it(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("wrong")
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(tmp_path / "settings")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SettingsError: KEY: is wrong" in done.stderr
