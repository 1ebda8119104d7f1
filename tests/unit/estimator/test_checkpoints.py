"""The checkpoint file: restarts, full disks, files that are damaged, replaced or of another configuration."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.estimator.checkpoint_database import CheckpointDatabase, CheckpointRefused
from model.estimator.checkpoint_format import CheckpointCorrupt, pack_slice, unpack_slice
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT
from tests.unit.estimator.support import (
    FIRST,
    NODES,
    STORED,
    LiveRun,
    checkpoints_for,
    settings_for,
)

Statuses = Sequence[Sequence[NodeStatus]]


def test_file_is_created_by_open_alone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "new")
    checkpoints = checkpoints_for(settings, ModelSettings(1, ("borg",)))
    assert not settings.checkpoint_path.parent.exists()
    with pytest.raises(sqlite3.Error):
        checkpoints.node(NODES[0])
    with checkpoints as opened:
        assert opened.node(NODES[0]) is None
        assert opened.position(NODES[0], 0).past == {}
        assert settings.checkpoint_path.exists()
    with pytest.raises(sqlite3.Error):
        checkpoints.node(NODES[0])


def test_estimator_continues_while_the_disk_is_full(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    """The state is held in RAM, and written when that is possible again."""
    settings = settings_for(tmp_path)
    live = LiveRun(settings, stored)
    published = live.play(STORED[:4])
    live.start()
    connection = live.checkpoints._database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    event_log.clear()
    published += [live.wake(number) for number in STORED[4:8]]
    connection.execute("PRAGMA max_page_count = 1000000")
    published.append(live.wake(STORED[8]))
    path = str(settings.checkpoint_path)
    assert [record.getMessage() for record in event_log.records if path in record.getMessage()] == [
        f"{path}: cannot be written, the state is held in RAM: database or disk is full",
        f"{path}: recovered",
    ]
    live.restart()
    published += live.play(STORED[9:12], restart=True)
    assert published == steady[:12]


def test_failed_write_is_retried_after_some_seconds(stored: SqliteStore, tmp_path: Path) -> None:
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), stored, ["percentile"])
    live.wake(STORED[0])
    connection = live.checkpoints._database.connection
    connection.execute("PRAGMA query_only = 1")
    live.wake(STORED[1])
    connection.execute("PRAGMA query_only = 0")

    def written() -> int:
        ((count,),) = connection.execute("SELECT count(*) FROM slice").fetchall()
        return int(count)

    live.wake(STORED[2], after_s=4.9)
    assert written() == 1
    live.wake(STORED[3], after_s=0.2)
    assert written() == 4
    live.stop()


def test_held_state_is_written_at_the_end(stored: SqliteStore, steady: Statuses, tmp_path: Path) -> None:
    live = LiveRun(settings_for(tmp_path), stored)
    live.wake(STORED[0])
    connection = live.checkpoints._database.connection
    connection.execute("PRAGMA query_only = 1")
    live.wake(STORED[1])
    connection.execute("PRAGMA query_only = 0")
    live.restart()
    assert live.wake(STORED[2]) == steady[2]
    live.stop()


def test_file_of_another_configuration_is_set_aside(
    stored: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path)
    LiveRun(settings, stored, ["percentile"]).play(STORED[:6])
    event_log.clear()
    live = LiveRun(settings, stored, ["doa"])
    assert [record.getMessage() for record in event_log.records] == [
        f"{settings.checkpoint_path}: written by another version or configuration, renamed to estimator.sqlite.aside; "
        "the models start from the stored samples"
    ]
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists()
    assert live.wake(FIRST + 5)[0].cpu.others.keys() == {"doa"}
    live.stop()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at" * 100, b""])
def test_file_that_is_no_database_is_set_aside(content: bytes, stored: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.checkpoint_path.write_bytes(content)
    live = LiveRun(settings, stored)
    assert "ok" in {status.state for status in live.wake(FIRST)}
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists() == bool(content)
    live.stop()


@pytest.mark.parametrize("start", [1, 3])
def test_file_with_damaged_pages_is_set_aside(start: int, stored: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, previous_scopes=1)
    LiveRun(settings, stored).play([STORED[7]])
    data = settings.checkpoint_path.read_bytes()
    settings.checkpoint_path.write_bytes(data[: start * 4096] + bytes(len(data) - start * 4096))
    live = LiveRun(settings, stored)
    assert settings.checkpoint_path.with_name("estimator.sqlite.aside").exists()
    assert "ok" in {status.state for status in live.wake(FIRST + 8)}
    live.stop()


def test_file_that_another_daemon_uses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "estimator.sqlite"
    first, second = (CheckpointDatabase(path, {}, busy_s=0.05) for _ in range(2))
    first.open()
    with pytest.raises(CheckpointRefused) as refusal:
        second.open()
    assert str(refusal.value) == f"{path}: another scroogevm.py uses it"
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("blocked", [False, True])
def test_folder_that_cannot_hold_the_file_is_refused(blocked: bool, tmp_path: Path) -> None:
    path = tmp_path / "file" / "estimator.sqlite"
    (tmp_path / "file").write_text("") if blocked else path.mkdir(parents=True)
    with pytest.raises(CheckpointRefused, match=r"Not a directory|unable to open database file"):
        CheckpointDatabase(path, {}).open()


def test_deleted_file_is_created_again(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path)
    live = LiveRun(settings, stored)
    published = [live.wake(number) for number in STORED[:5]]
    for path in settings.checkpoint_path.parent.glob("estimator.sqlite*"):
        path.unlink()
    published += [live.wake(number) for number in STORED[5:8]]
    line = f"{settings.checkpoint_path}: deleted by another program, created again"
    assert [record.getMessage() for record in event_log.records].count(line) == 1
    live.restart()
    published += live.play(STORED[8:12], restart=True)
    assert published == steady[:12]


def test_estimator_continues_while_the_file_cannot_be_created_again(
    stored: SqliteStore, steady: Statuses, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path)
    live = LiveRun(settings, stored)
    published = [live.wake(number) for number in STORED[:4]]
    # Another file has its name, and cannot be renamed because of a folder.
    settings.checkpoint_path.unlink()
    settings.checkpoint_path.write_bytes(b"not ours")
    aside = settings.checkpoint_path.with_name(f"{settings.checkpoint_path.name}.aside")
    (aside / "full").mkdir(parents=True)
    published += [live.wake(number) for number in STORED[4:6]]
    assert any("cannot be written, the state is held in RAM" in record.getMessage() for record in event_log.records)
    aside.joinpath("full").rmdir()
    aside.rmdir()
    published.append(live.wake(STORED[6]))
    assert event_log.records[-1].getMessage() == f"{settings.checkpoint_path}: recovered"
    live.restart()
    published += live.play(STORED[7:8], restart=True)
    assert published == steady[:8]


def test_no_more_slices_are_kept_than_a_window_needs(stored: SqliteStore, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    LiveRun(settings, stored).play(STORED[:18])
    with sqlite3.connect(settings.checkpoint_path) as file:
        rows = file.execute("SELECT name, position, count(*) FROM slice GROUP BY name, position").fetchall()
    file.close()
    assert [count for _, _, count in rows] == [settings.historical + 1] * 3 * len(NODES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_samples_of_vms_are_kept_only_for_strategies_that_use_earlier_ones(
    strategy: str, stored: SqliteStore, tmp_path: Path
) -> None:
    """They are by far the largest part of a slice."""
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), stored, [strategy])
    live.wake(STORED[0])
    live.wake(STORED[5])
    kept = [slice_ for position in range(3) for slice_ in live.checkpoints.position(NODES[0], position).past.values()]
    live.stop()
    assert len(kept) == 6
    samples = sum(usage.vm_usage.size for slice_ in kept for usage in (slice_.cpu, slice_.mem))
    assert (samples > 0) is (strategy in {"rclike", "maxpeak"})


def test_late_thread_saves_nothing_in_a_closed_file(stored: SqliteStore, tmp_path: Path) -> None:
    """A read that hangs may return after the end of a run, when the next run has the file open."""
    live = LiveRun(settings_for(tmp_path, nodes=NODES[:1]), stored, ["percentile"])
    live.wake(STORED[0])
    checkpoint, position = live.checkpoints.node(NODES[0]), live.checkpoints.position(NODES[0], 0)
    assert checkpoint is not None
    live.stop()
    live.checkpoints.save(NODES[0], checkpoint, 0, position, None)
    assert not live.checkpoints._held_nodes


def test_threads_that_decode_at_once_in_a_new_process_do_not_crash_it() -> None:
    """msgspec prepares the classes of a type when it is decoded for the first time, which is not safe in threads."""
    code = (
        "import sys, threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "from model.estimator.bookings import LastConfigs\n"
        "from model.estimator.checkpoint_format import NodeCheckpoint, decode, encode\n"
        "from model.status import NodeStatus\n"
        "data = encode(NodeCheckpoint(1, {}, LastConfigs(), NodeStatus('n', 'borg')))\n"
        "barrier, decoded = threading.Barrier(8), []\n"
        "def run():\n"
        "    barrier.wait()\n"
        "    decoded.append(decode(data, NodeCheckpoint))\n"
        "threads = [threading.Thread(target=run) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert len(decoded) == 8\n"
    )
    # Without the lock about one process in three crashes.
    for _ in range(10):
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_packed_slice_is_the_same_slice(stored: SqliteStore, tmp_path: Path) -> None:
    live = LiveRun(settings_for(tmp_path), stored, ["rclike"])
    live.wake(STORED[0])
    (finished,) = live.checkpoints.position(NODES[0], STORED[0] % 3).past.values()
    live.stop()
    again = unpack_slice(pack_slice(finished))
    assert (again.end_s, again.position, again.vms) == (finished.end_s, finished.position, finished.vms)
    assert again.cpu.vm_usage.tobytes() == finished.cpu.vm_usage.tobytes()
    assert again.mem.node.tolist() == finished.mem.node.tolist()
    with pytest.raises(CheckpointCorrupt):
        unpack_slice(pack_slice(finished)[:-1])
