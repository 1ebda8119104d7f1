"""Files in folders that others may write to: no symbolic link of another user is followed."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.common.atomic_files import make_folder_of, open_file, open_folder, resolve_database, write_atomically
from model.estimator.checkpoint_database import CheckpointDatabase, CheckpointRefused
from model.store.base import StoreUnavailable
from model.store.sqlite import SqliteStore

OTHER = 54321

Give = Callable[..., Path]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Gives a path to another user: really as root; else this process takes itself for somebody else."""

    def give_away(path: Path, mode: int | None = None) -> Path:
        if mode is not None:
            path.chmod(mode)
        if os.geteuid() == 0:
            os.lchown(path, OTHER, OTHER)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: OTHER)
        return path

    return give_away


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder that everyone may write to, as /tmp."""
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def link(at: Path, to: Path | str) -> Path:
    at.symlink_to(to)
    return at


def refuses(call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="Symbolic link of another user") as refused:
        call()
    assert refused.value.errno == errno.ELOOP


def test_own_link_is_followed(tmp_path: Path, public: Path) -> None:
    target = tmp_path / "target"
    write_atomically(link(public / "status", target), b"new")
    assert target.read_bytes() == b"new"
    assert (public / "status").is_symlink()


def test_link_of_another_user_is_not_written_through(tmp_path: Path, public: Path, give: Give) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    planted = give(link(public / "status", target))
    refuses(lambda: write_atomically(planted, b"new"))
    refuses(lambda: open_file(planted, os.O_RDWR | os.O_CREAT))
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in public.iterdir()] == ["status"]


def test_folder_that_is_a_link_of_another_user_is_not_entered(tmp_path: Path, public: Path, give: Give) -> None:
    (tmp_path / "elsewhere").mkdir()
    planted = give(link(public / "state", tmp_path / "elsewhere"))
    refuses(lambda: write_atomically(planted / "status", b"new"))
    refuses(lambda: make_folder_of(planted / "new" / "file"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a link of another user in an own folder")
@pytest.mark.parametrize(("mode", "followed"), [(0o755, True), (0o775, False), (0o757, False)])
def test_link_of_another_user_is_followed_where_only_we_can_have_placed_it(
    tmp_path: Path, give: Give, mode: int, followed: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    planted = give(link(folder / "status", tmp_path / "target"))
    folder.chmod(mode)
    if followed:
        write_atomically(planted, b"new")
        assert (tmp_path / "target").read_bytes() == b"new"
    else:
        refuses(lambda: write_atomically(planted, b"new"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a folder of another user")
def test_link_in_a_folder_of_another_user_is_not_followed(tmp_path: Path, give: Give) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    planted = give(link(folder / "status", tmp_path / "target"))
    give(folder, 0o755)
    refuses(lambda: write_atomically(planted, b"new"))


def test_chain_of_links_is_followed_and_a_loop_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link(tmp_path / "a", "b/../b")
    link(tmp_path / "b", tmp_path / "real")
    write_atomically(tmp_path / "a" / "file", b"x")
    assert (tmp_path / "real" / "file").read_bytes() == b"x"
    link(tmp_path / "c", "d")
    link(tmp_path / "d", "c")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_atomically(tmp_path / "c", b"x")


def test_missing_folder_is_an_error_unless_it_is_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(path, b"")
    assert missing.value.filename == str(path)
    make_folder_of(path)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_descriptors_are_closed(tmp_path: Path, public: Path, give: Give) -> None:
    planted = give(link(public / "status", tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        write_atomically(tmp_path / "file", b"x")
        for path in (planted, tmp_path / "none" / "file", tmp_path / "file" / "file"):
            with pytest.raises(OSError, match=r".+"):
                write_atomically(path, b"x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for links of another user")
def test_folder_that_is_exchanged_all_the_time_is_never_left(tmp_path: Path, public: Path) -> None:
    """Another user exchanges the folder for a link: a file is written into the folder, or refused."""
    real, aside, planted = public / "state", public / "aside", public / "planted"
    (tmp_path / "victim").mkdir()
    real.mkdir()
    os.lchown(link(planted, tmp_path / "victim"), OTHER, OTHER)
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            real.rename(aside)
            planted.rename(real)
            real.rename(planted)
            aside.rename(real)

    attacker = threading.Thread(target=exchange)
    attacker.start()
    written, end = 0, time.monotonic() + 1.0
    while time.monotonic() < end:
        try:
            write_atomically(real / "file", b"x")
            written += 1
        except OSError:
            continue
    stop.set()
    attacker.join()
    assert written > 0
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_database_is_not_opened_through_a_link_of_another_user(
    tmp_path: Path, public: Path, give: Give, suffix: str
) -> None:
    victim = tmp_path / "victim"
    sqlite3.connect(victim).close()
    give(link(public / f"store.sqlite{suffix}", victim))
    path = public / "store.sqlite"
    refuses(lambda: resolve_database(path))
    store = SqliteStore(path, 86400)
    with pytest.raises(StoreUnavailable, match="Symbolic link of another user"):
        store.nodes()
    with pytest.raises(CheckpointRefused, match="Symbolic link of another user"):
        CheckpointDatabase(path, {}).open()
    assert victim.read_bytes() == b""


def test_database_behind_an_own_link_is_used(tmp_path: Path, public: Path) -> None:
    link(public / "store.sqlite", tmp_path / "real.sqlite")
    store = SqliteStore(public / "store.sqlite", 86400)
    store.open()
    store.close()
    assert (tmp_path / "real.sqlite").stat().st_size > 0


def test_file_in_a_link_to_the_root_folder_is_found(tmp_path: Path) -> None:
    folder, name = open_folder(link(tmp_path / "root", "/") / "proc")
    os.close(folder)
    assert name == "proc"
