"""The journal of ballooning: on disk before a guest is squeezed, never damaged, used by one daemon."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from model.ballooning import journal as module
from model.ballooning.journal import Journal, JournalBusy
from model.ballooning.sessions import Session
from tests.conftest import ROOT, strict_json

SESSION = Session("u1", "a", "qemu:///system", 4096.0, 3892.0, 1e9, 1200.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ballooning.json"


def reread(path: Path) -> Journal:
    return Journal(path, locked=False).open()


FIGURE = st.floats()
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    least=FIGURE, swapped=FIGURE, rss=FIGURE, to=FINITE, until=FINITE, name=st.text(max_size=9), why=st.text(max_size=9)
)
def test_written_session_is_read_back_and_unknown_figures_stay_unknown(
    tmp_path_factory: Any, least: float, swapped: float, rss: float, to: float, until: float, name: str, why: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    session = Session(
        "u", name, "h", 1.0, to, until, 2.0, 3.0, 4.0, least, 5.0, swapped, rss, restore_reason=why, gave_up=True
    )
    journal = Journal(path).open()
    journal.put(session)
    journal.close()
    read = reread(path).sessions()["u"]

    def finite_or(value: float, default: float) -> float:
        return value if math.isfinite(value) else default

    expected = replace(
        session,
        least_mb=finite_or(least, math.inf),
        swapped_kb=finite_or(swapped, math.nan),
        rss_mb=finite_or(rss, math.nan),
    )
    assert repr(read) == repr(expected)


def test_session_is_on_disk_when_put_returns(path: Path) -> None:
    journal = Journal(path).open()
    for to_mb in (3892.0, 3688.0):
        journal.put(replace(SESSION, to_mb=to_mb))
        assert strict_json(path.read_text())["sessions"]["u1"]["to_mb"] == to_mb
    journal.end("u1", 2e9, 1e9)
    assert strict_json(path.read_text()) == {"format": 1, "sessions": {}, "grace": {"u1": 2e9}}
    journal.close()


def test_file_and_folder_are_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses what is only in the page cache."""
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), real(handle))
    )
    journal = Journal(path).open()
    journal.put(SESSION)
    journal.close()
    assert synced[0].endswith(".tmp")
    assert synced[1] == str(path.parent)


def test_note_is_kept_in_ram_and_written_with_the_next_session(path: Path) -> None:
    journal = Journal(path).open()
    journal.put(SESSION)
    journal.note(replace(SESSION, least_mb=3900.0))
    journal.note(replace(SESSION, uuid="unknown"))
    assert journal.sessions() == {"u1": replace(SESSION, least_mb=3900.0)}
    assert reread(path).sessions() == {"u1": SESSION}
    journal.put(replace(SESSION, uuid="u2"))
    assert reread(path).sessions()["u1"].least_mb == 3900.0
    journal.close()


def test_sessions_are_selected_by_host(path: Path) -> None:
    journal = Journal(path).open()
    journal.put(SESSION)
    journal.put(replace(SESSION, uuid="u2", host="test:///default"))
    assert list(journal.sessions("test:///default")) == ["u2"]
    assert list(journal.sessions()) == ["u1", "u2"]
    journal.sessions().clear()
    assert len(journal.sessions()) == 2
    journal.close()


def test_expired_grace_period_is_removed(path: Path) -> None:
    journal = Journal(path).open()
    journal.end("u1", 100.0, 50.0)
    journal.end("u2", 200.0, 99.0)
    assert journal.grace() == {"u1": 100.0, "u2": 200.0}
    journal.end("u3", 300.0, 100.0)
    assert journal.grace() == reread(path).grace() == {"u2": 200.0, "u3": 300.0}
    journal.close()


def test_only_the_owner_may_read_the_files(path: Path) -> None:
    umask = os.umask(0)
    try:
        journal = Journal(path).open()
        journal.put(SESSION)
        journal.close()
    finally:
        os.umask(umask)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()} == {
        "ballooning.json": "0o600",
        "ballooning.json.lock": "0o600",
    }


# --- never damaged ----------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from model.ballooning.journal import Journal
from model.ballooning.sessions import Session
journal = Journal(Path(sys.argv[1])).open()
print("locked", flush=True)
i = 0
while True:
    i += 1
    for k in range(20):
        journal.put(Session(f"u{k}", "a" * 50, "h", 4096.0, float(i), 1e9, 1200.0))
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    return writer


def kill(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    assert writer.stdout is not None
    writer.stdout.close()


def test_killed_writer_leaves_a_readable_journal_and_no_lock(path: Path) -> None:
    written = 0
    for k in range(6):
        writer = start_writer(path)
        try:
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.02 + 0.013 * k)
            # A reader without the lock finds a complete journal meanwhile.
            written += len(reread(path).sessions())
            with pytest.raises(JournalBusy, match=r"in use by another vmballooning\.py$"):
                Journal(path).open()
        finally:
            kill(writer)
        with Journal(path) as successor:
            assert len(successor.sessions()) == len(json.loads(path.read_bytes())["sessions"]) > 0
    assert written > 0


def test_second_daemon_is_refused_in_one_line_until_the_first_one_closes(path: Path) -> None:
    first = Journal(path).open()
    with pytest.raises(JournalBusy) as refused:
        Journal(path).open()
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    first.close()
    first.close()
    Journal(path).open().close()


# --- unusable journals ------------------------------------------------------------------------------

CUT_OFF = b'{\n "format": 1,\n "sessions": {\n  "u1": {\n   "uuid": "u1",'


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"name": "package.json", "version": "1"}',
        b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest.mark.parametrize("locked", [True, False])
def test_file_that_is_no_journal_is_neither_changed_nor_an_error(path: Path, text: bytes, locked: bool) -> None:
    path.write_bytes(text)
    with Journal(path, locked=locked) as journal:
        assert (journal.owned, "\n" in journal.fault, str(path) in journal.fault) == (locked, False, True)
        with pytest.raises(OSError, match="not a journal"):
            journal.put(SESSION)
        assert journal.sessions() == {"u1": SESSION}
    assert path.read_bytes() == text


@pytest.mark.parametrize(
    "text",
    [
        b'{"format": 2, "sessions": {}, "grace": {}}',
        b'{"format": 1, "sessions": {"u": {"uuid": "u"}}, "grace": {}}',
        b'{"format": 1, "sessions": {}, "grace": {"u": "soon"}}',
        CUT_OFF,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_damaged_journal_is_set_aside_and_replaced(
    path: Path, text: bytes, event_log: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(text)
    assert reread(path).fault  # a dry run leaves it
    assert path.read_bytes() == text
    with Journal(path) as journal:
        assert (journal.fault, journal.sessions()) == ("", {})
        journal.put(SESSION)
    assert reread(path).sessions() == {"u1": SESSION}
    assert path.with_name("ballooning.json.aside").read_bytes() == text
    assert len(event_log.messages) == 1


def test_journal_that_could_not_be_read_is_read_later_and_keeps_what_happened_meanwhile(path: Path) -> None:
    with Journal(path) as earlier:
        earlier.put(replace(SESSION, uuid="u0"))
        earlier.put(SESSION)
    text = path.read_bytes()
    path.unlink()
    path.mkdir()
    with Journal(path) as journal:
        assert "Is a directory" in journal.fault
        journal.adopt(replace(SESSION, to_mb=1.0))
        journal.retry()
        assert journal.fault
        path.rmdir()
        path.write_bytes(text)
        journal.retry()
        assert (journal.fault, sorted(journal.sessions())) == ("", ["u0", "u1"])
        journal.put(journal.sessions()["u0"])
    assert reread(path).sessions()["u1"].to_mb == 1.0


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("existing", [True, False])
def test_journal_in_a_folder_that_cannot_be_written_is_locked_and_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, existing: bool
) -> None:
    path.write_text(json.dumps({"format": 1, "sessions": {}, "grace": {"u1": 9.0}}))
    if existing:
        Path(f"{path}.lock").touch()
    real = os.open

    def refuse(name: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(name))
        return real(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    with Journal(path) as journal:
        assert (journal.owned, journal.fault, journal.grace()) == (True, "", {"u1": 9.0})
        with pytest.raises(JournalBusy):
            Journal(path).open()
        with pytest.raises(OSError, match=os.strerror(code)):
            journal.put(SESSION)
    Journal(path).open().close()


def test_journal_that_cannot_be_locked_is_used_without_a_lock_until_it_can_be(path: Path) -> None:
    lock = Path(f"{path}.lock")
    lock.mkdir()
    with Journal(path) as journal:
        assert (journal.owned, journal.fault) == (False, f"{lock}: Is a directory")
        lock.rmdir()
        with Journal(path):
            journal.retry()
            assert (journal.owned, "in use" in journal.fault) == (False, True)
        journal.retry()
        assert (journal.owned, journal.fault) == (True, "")


def test_missing_file_and_empty_file_are_an_empty_journal(path: Path) -> None:
    assert reread(path).sessions() == {}
    path.touch()
    assert reread(path).sessions() == {}


def test_reading_without_a_lock_creates_no_files(path: Path) -> None:
    assert reread(path.parent / "none" / "j").grace() == {}
    assert list(path.parent.iterdir()) == []


# --- failed writes ----------------------------------------------------------------------------------


def test_session_that_cannot_be_written_raises_and_is_kept_in_ram(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path).open()
    journal.put(SESSION)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        journal.put(replace(SESSION, uuid="u2"))
    assert list(journal.sessions()) == ["u1", "u2"]
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No space"):
        journal.end("u2", 2e9, 1e9)
    assert (list(journal.sessions()), dict(journal.grace())) == (["u1"], {"u2": 2e9})
    journal.close()


def test_full_disk_leaves_the_old_journal_and_no_temporary_file(path: Path) -> None:
    """Simulated by a limit on file sizes, which applies to root too."""
    script = """
import resource, signal, sys
from msgspec.structs import replace
from pathlib import Path
from model.ballooning.journal import Journal
from model.ballooning.sessions import Session
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1])).open()
session = Session("u1", "a", "h", 4096.0, 3892.0, 1e9, 1200.0)
journal.put(session)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    journal.put(replace(session, uuid="u2"))
except OSError as error:
    print(error.errno, sorted(journal.sessions()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG} ['u1', 'u2']\n", "")
    assert list(reread(path).sessions()) == ["u1"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["ballooning.json", "ballooning.json.lock"]


def test_folder_that_cannot_be_created_is_a_fault_of_one_line() -> None:
    with Journal(Path("/proc/scroogevm/ballooning.json")) as journal:
        assert journal.fault.startswith("/proc/scroogevm/ballooning.json: ")
        assert not journal.owned


def test_constructor_does_no_io(path: Path) -> None:
    folder = path.parent / "missing"
    Journal(folder / "j").close()
    assert not folder.exists()


def test_closed_journal_is_not_written(path: Path) -> None:
    """A thread that outlives its run must not overwrite the journal of the next run."""
    late = Journal(path).open()
    late.put(SESSION)
    late.close()
    with Journal(path) as successor:
        successor.end("u1", 2e9, 1e9)
        with pytest.raises(OSError, match="the journal is closed"):
            late.put(SESSION)
        assert reread(path).sessions() == {}


def test_journal_of_the_first_release_is_read(path: Path) -> None:
    """The names of the fields are part of the format."""
    session = {
        **{"uuid": "u1", "name": "a", "host": "h", "from_mb": 4096, "to_mb": 3892, "until_s": 1e9, "goal_mb": 1200},
        **{"overhead_mb": 42, "asked_s": 1, "least_mb": 3900, "moved_s": 2, "swapped_kb": 3, "rss_mb": 4000},
        **{"counts_balloon": True, "giving_back": "enough", "gave_up": True},
    }
    path.write_text(json.dumps({"format": 1, "sessions": {"u1": session}, "grace": {}}))
    with Journal(path) as journal:
        assert journal.sessions()["u1"].restore_reason == "enough"
        journal.put(journal.sessions()["u1"])
    written = strict_json(path.read_text())["sessions"]["u1"]
    assert {name: written[name] for name in session} == session
