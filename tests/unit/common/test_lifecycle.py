"""The life cycle of a daemon as a process: stop, stop at once, reload."""

from __future__ import annotations

import signal
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
from model.common.errors import SettingsError, UsageError
from model.common.lifecycle import run_daemon
from model.common.logs import set_up_logging

def load():
    text = Path(sys.argv[1]).read_text()
    if text == "wrong":
        raise SettingsError(["KEY: is wrong"])
    return text

def serve(settings, request):
    if settings == "unusable":
        raise UsageError("PORT: is taken")
    print("run", settings, flush=True)
    while not request.event.wait(0.05):
        pass
    print("end", settings, flush=True)
    if settings == "hang":
        request.event.clear()
        request.event.wait()
    return 7

set_up_logging(False)
sys.exit(run_daemon(load, serve))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings"
    path.write_text("first")
    return path


@pytest.fixture
def daemon(settings: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", DAEMON, str(settings)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
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
    assert "ERROR scroogevm: reload: PORT: is taken" in err


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
        "from model.common.signals import handle_signals\n"
        "request = handle_signals()\n"
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
