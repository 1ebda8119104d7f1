"""The spool: files that survive the process, damage and a full disk."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.aggregator.sample_codec import SampleCorrupt, count_points, pack_sample, unpack_sample
from model.aggregator.spool import Spool
from model.samples import ScrapeSample
from tests.conftest import ROOT

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FIELDS = st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=5)
SAMPLES = st.builds(ScrapeSample, NAMES, st.integers(0, 2**62), FIELDS, st.dictionaries(NAMES, FIELDS, max_size=5))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", 10**6)
    yield made
    made.close()


def drained(spool: Spool) -> list[bytes]:
    """All samples, which are removed."""
    samples = []
    while (file := spool.oldest()) is not None:
        samples += file.samples
        spool.remove(file.name)
    return samples


def files(spool: Spool) -> list[Path]:
    return sorted(spool.path.glob("*.spool"))


@settings(deadline=None)
@given(SAMPLES)
def test_sample_is_the_same_after_packing(sample: ScrapeSample) -> None:
    assert unpack_sample(pack_sample(sample)) == sample


def test_missing_value_stays_missing() -> None:
    sample = ScrapeSample("n", 1, {"cpu": 1.0}, {"a": {"cpu": 1.0, "mem": math.nan}, "b": {"x": 2.0}})
    assert unpack_sample(pack_sample(sample)).domains == {"a": {"cpu": 1.0}, "b": {"x": 2.0}}


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"\x96\xa7\x00\x00\x00\x00\x00\x00\x80")  # a text that is no UTF-8
def test_bytes_that_are_no_sample_are_refused(data: bytes) -> None:
    with pytest.raises(SampleCorrupt):
        unpack_sample(data)
    assert count_points(data) == 0


def test_sample_with_a_block_of_another_size_is_refused() -> None:
    data = pack_sample(ScrapeSample("n", 1, {}, {"a": {"cpu": 1.0}}))
    with pytest.raises(SampleCorrupt, match="size"):
        unpack_sample(data.replace(b"\xc4\x08", b"\xc4\x04")[:-4])


def test_samples_come_back_in_order_after_a_restart(spool: Spool) -> None:
    assert not spool.open_if_present()
    for k in range(3):
        spool.append([b"%d" % k, b"%d again" % k], 10)
    assert spool.counts().points == 30
    assert spool.counts().bytes == sum(file.stat().st_size for file in files(spool))
    spool.close()
    again = Spool(spool.path, 10**6)
    assert again.open_if_present()
    assert again.counts().points == 30
    again.append([b"new"], 1)
    assert drained(again) == [b"0", b"0 again", b"1", b"1 again", b"2", b"2 again", b"new"]
    assert again.counts() == (0, 0)
    again.close()
    assert not spool.path.exists()


def test_folder_and_files_are_private(spool: Spool) -> None:
    spool.append([b"x"], 1)
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in files(spool)] == [0o600]
    spool.path.chmod(0o777)
    spool.close()
    again = Spool(spool.path, 10**6)
    again.open_if_present()
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o700
    again.close()


def test_beyond_its_size_the_oldest_files_are_deleted_and_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 3500)
    dropped = [spool.append([bytes([65 + k]) * 1000], k + 1) for k in range(6)]
    assert dropped == [0, 0, 0, 1, 2, 3]
    assert [sample[:1] for sample in drained(spool)] == [b"D", b"E", b"F"]
    # One file is kept however large it is.
    assert spool.append([b"x" * 10000], 1) == 0
    assert len(drained(spool)) == 1
    spool.close()


@pytest.mark.parametrize("cut", [1, 4, 12, 1000, 2002, 10**6])
def test_truncated_file_loses_its_tail_alone(spool: Spool, cut: int) -> None:
    for k in range(3):
        spool.append([b"%d" % k * 1000, b"end"], 2)
    second = files(spool)[1]
    size = max(0, second.stat().st_size - cut)
    os.truncate(second, size)
    spool.close()
    again = Spool(spool.path, 10**6)
    again.open_if_present()
    samples = drained(again)
    assert samples[:2] == [b"0" * 1000, b"end"]
    assert samples[-2:] == [b"2" * 1000, b"end"]
    assert samples[2:-2] == ([b"1" * 1000] if cut <= 11 else [])
    again.close()


@settings(deadline=None)
@given(at=st.integers(0, 400), garbage=st.binary(min_size=1, max_size=50))
def test_garbage_in_a_file_gives_no_wrong_sample(
    tmp_path_factory: pytest.TempPathFactory, at: int, garbage: bytes
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool") / "spool", 10**6)
    written = [b"%d" % k * 50 for k in range(6)]
    spool.append(written, 6)
    (file,) = files(spool)
    data = file.read_bytes()
    file.write_bytes(data[:at] + garbage + data[at + len(garbage) :])
    found = drained(spool)
    assert found == written[: len(found)]
    spool.close()


def test_other_files_of_the_folder_are_left_alone(spool: Spool) -> None:
    spool.append([b"x"], 1)
    (spool.path / "notes.txt").write_text("mine")
    (spool.path / ".000000000002-1.spool.tmp").write_bytes(b"half")  # of a process that was killed
    spool.close()
    again = Spool(spool.path, 10**6)
    again.open_if_present()
    assert drained(again) == [b"x"]
    again.close()
    assert [entry.name for entry in spool.path.iterdir()] == ["notes.txt"]


def test_file_that_cannot_be_read_is_passed_over(spool: Spool) -> None:
    spool.append([b"0"], 1)
    spool.append([b"1"], 1)
    first, _ = files(spool)
    first.unlink()
    first.symlink_to("/etc/passwd")
    assert drained(spool) == [b"1"]
    assert first.is_symlink()


def test_spool_of_another_process_is_refused_until_it_ends(spool: Spool) -> None:
    spool.append([b"x"], 1)
    other = Spool(spool.path, 10**6)
    for call in (other.open_if_present, lambda: other.append([b"y"], 1)):
        with pytest.raises(OSError, match=r"In use by another vmaggreg\.py"):
            call()
    spool.close()
    assert other.open_if_present()
    assert drained(other) == [b"x"]
    other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a folder of another user")
def test_folder_of_another_user_is_refused(spool: Spool) -> None:
    spool.path.mkdir()
    os.chown(spool.path, 54321, 54321)
    with pytest.raises(PermissionError, match="belongs to another user"):
        spool.append([b"x"], 1)


def test_full_disk_leaves_what_was_spooled(tmp_path: Path) -> None:
    """A file of more than 8 kB cannot be written: the others stay, and nothing half-written is left."""
    code = """
import signal, resource, sys
from pathlib import Path
from model.aggregator.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
spool = Spool(Path(sys.argv[1]), 10**6)
spool.append([b"x" * 100], 1)
try:
    spool.append([b"y" * 10000], 1)
except OSError as error:
    print(error.strerror)
print(spool.counts().points, [len(sample) for sample in spool.oldest().samples])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "spool")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n1 [100]\n"
    assert len(list((tmp_path / "spool").iterdir())) == 1
