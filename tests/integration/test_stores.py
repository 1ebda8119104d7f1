"""The operations of a store, tested with the embedded store and with a real InfluxDB."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model.samples import LastConfig, ScrapeSample
from model.store.base import FleetRow, Store, StoreRefused, StoreUnavailable
from model.store.factory import check_store
from model.store.settings import StoreSettings
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT

NODE = "http://w1:9100/metrics"
#: An hour ago, on a whole second, within any retention; processes that the tests start use the same time.
T0 = int(os.environ.setdefault("SCROOGEVM_TEST_T0", str((int(time.time()) - 3600) * 1000)))
FIELDS = ("cpu", "cpu_usage", "mem_usage")

_numbers = itertools.count()


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def sample(k: int, node: str = NODE, vms: tuple[str, ...] = ("a", "b"), **more: float) -> ScrapeSample:
    return ScrapeSample(
        node,
        T0 + 5000 * k,
        {"cpu": 64.0, "cpu_usage": k / 7, "mem_usage": 1e5 + k, "vm_number": float(len(vms)), **more},
        {name: {"cpu": 4.0, "cpu_usage": k / 3 + i, "mem_usage": 1000.0 * i} for i, name in enumerate(vms)},
    )


def write(store: Store, *samples: ScrapeSample) -> int:
    return store.write([store.encode(sample) for sample in samples])


def test_written_samples_are_read_as_arrays(store: Store) -> None:
    assert write(store, *(sample(k) for k in range(10))) == 0
    period = store.read(NODE, T0, T0 + 50_000, FIELDS)
    assert period.node.time_ms.tolist() == [T0 + 5000 * k for k in range(10)]
    np.testing.assert_array_equal(period.node.fields["cpu_usage"], [k / 7 for k in range(10)])
    assert list(period.domains) == ["a", "b"]
    np.testing.assert_array_equal(period.domains["b"].fields["cpu_usage"], [k / 3 + 1 for k in range(10)])
    assert set(period.domains["b"].fields) == set(FIELDS)


def test_period_includes_its_start_and_excludes_its_end(store: Store) -> None:
    write(store, *(sample(k) for k in range(10)))
    assert store.read(NODE, T0 + 10_000, T0 + 20_000, FIELDS).node.time_ms.tolist() == [T0 + 10_000, T0 + 15_000]


def test_only_requested_fields_are_read(store: Store) -> None:
    write(store, sample(0))
    period = store.read(NODE, T0, T0 + 1, ("mem_usage",))
    assert list(period.node.fields) == ["mem_usage"]
    assert list(period.domains["a"].fields) == ["mem_usage"]


def test_samples_of_nodes_are_separate(store: Store) -> None:
    write(store, sample(0), sample(1, "http://w2/metrics", ("c",)))
    assert store.nodes() == [NODE, "http://w2/metrics"]
    assert list(store.read("http://w2/metrics", T0, T0 + 10_000, FIELDS).domains) == ["c"]
    assert store.read(NODE, T0, T0 + 10_000, FIELDS).node.time_ms.tolist() == [T0]


def test_domains_are_those_of_the_period(store: Store) -> None:
    write(store, sample(0, vms=("a",)), sample(1, vms=("b", "c")))
    assert list(store.read(NODE, T0, T0 + 5000, ("cpu",)).domains) == ["a"]
    assert list(store.read(NODE, T0, T0 + 50_000, ("cpu",)).domains) == ["a", "b", "c"]
    assert list(store.read("http://unknown/", T0, T0 + 50_000, ("cpu",)).domains) == []


def test_domain_has_samples_only_while_it_was_present(store: Store) -> None:
    write(store, sample(0, vms=("a",)), sample(1, vms=("a", "b")), sample(2, vms=("b",)))
    period = store.read(NODE, T0, T0 + 50_000, FIELDS)
    assert period.domains["a"].time_ms.tolist() == [T0, T0 + 5000]
    assert period.domains["b"].time_ms.tolist() == [T0 + 5000, T0 + 10_000]


def test_last_configuration_of_each_domain_is_found_anywhere_in_the_period(store: Store) -> None:
    early = ScrapeSample(
        NODE, T0, {"cpu": 64.0}, {"left": {"cpu": 2.0, "mem": 512.0}, "stays": {"cpu": 1.0, "mem": 100.0}}
    )
    later = [
        ScrapeSample(NODE, T0 + 1000 * k, {"cpu": 64.0}, {"stays": {"cpu": 4.0, "cpu_usage": 1.0}})
        for k in range(1, 30)
    ]
    write(store, early, *later, ScrapeSample(NODE, T0 + 60_000, {"cpu": 64.0}, {"after": {"cpu": 1.0, "mem": 1.0}}))
    write(store, ScrapeSample("http://w2/metrics", T0, {"cpu": 1.0}, {"other": {"cpu": 1.0}}))
    assert store.last_configs(NODE, T0, T0 + 60_000) == {
        "left": LastConfig({"cpu": 2.0, "mem": 512.0}, T0),
        "stays": LastConfig({"cpu": 4.0, "mem": 100.0}, T0 + 29_000),
    }
    assert store.last_configs(NODE, T0 + 1000, T0 + 20_000) == {"stays": LastConfig({"cpu": 4.0}, T0 + 19_000)}
    assert store.last_configs(NODE, T0 + 5, T0 + 5) == {}
    assert store.last_configs("http://unknown", T0, T0 + 60_000) == {}


def test_node_can_be_read_without_its_domains(store: Store) -> None:
    write(store, sample(0), sample(1))
    period = store.read(NODE, T0, T0 + 10_000, FIELDS, domains=False)
    np.testing.assert_array_equal(period.node.fields["cpu_usage"], [0, 1 / 7])
    assert not period.domains


def test_missing_field_is_nan(store: Store) -> None:
    first = ScrapeSample(NODE, T0, {"cpu": 64.0}, {"a": {"cpu": 4.0}, "b": {"cpu": 4.0, "cpu_usage": 1.0}})
    write(store, first, sample(1))
    period = store.read(NODE, T0, T0 + 50_000, (*FIELDS, "unknown_field"))
    np.testing.assert_array_equal(period.node.fields["cpu_usage"], [math.nan, 1 / 7])
    np.testing.assert_array_equal(period.domains["a"].fields["cpu_usage"], [math.nan, 1 / 3])
    assert np.isnan(period.domains["b"].fields["unknown_field"]).all()


def test_period_without_samples_is_empty(store: Store) -> None:
    for node, start, end in ((NODE, T0, T0 + 1), ("http://unknown/", T0, T0 + 1), (NODE, T0, T0)):
        period = store.read(node, start, end, FIELDS)
        assert period.node.time_ms.size == 0
        assert period.node.fields["cpu"].size == 0
        assert period.domains == {}
    assert store.nodes() == []
    assert store.last(NODE) is None


def test_period_begins_with_its_first_sample(store: Store) -> None:
    assert store.begins_ms(NODE, 0, T0 + 10_000) is None
    write(store, sample(3), sample(1), sample(2))
    assert store.begins_ms(NODE, 0, T0 + 10**9) == sample(1).time_ms
    assert store.begins_ms(NODE, sample(2).time_ms, T0 + 10**9) == sample(2).time_ms
    assert store.begins_ms(NODE, sample(2).time_ms + 1, sample(3).time_ms) is None
    assert store.begins_ms("http://unknown/", 0, T0 + 10**9) is None


def test_last_is_the_newest_sample(store: Store) -> None:
    write(store, sample(3), sample(1), sample(2))
    assert store.last(NODE) == sample(3)


def test_number_of_vms_can_be_read(store: Store) -> None:
    write(store, sample(0), sample(1, vms=("a",)))
    assert store.read(NODE, T0, T0 + 50_000, ("vm_number", "cpu")).node.fields["vm_number"].tolist() == [2.0, 1.0]


def test_sample_that_is_written_twice_is_stored_once(store: Store) -> None:
    write(store, sample(0), sample(1))
    write(store, sample(1), sample(2))
    assert store.read(NODE, T0, T0 + 50_000, FIELDS).node.time_ms.size == 3


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a,b",
        "a=b",
        'a"b',
        "a'b",
        "ü",
        "a\\b",
        "\U0001f600",
        '") or true or ("',
        "'; DROP TABLE tick; --",
        "#",
        "a\tb",
    ],
)
def test_special_characters_in_a_name_have_no_effect(store: Store, name: str) -> None:
    write(store, sample(0, vms=(name,)), sample(0, f"http://{name}/", ("x",)))
    assert list(store.read(NODE, T0, T0 + 1, FIELDS).domains) == [name]
    assert list(store.read(f"http://{name}/", T0, T0 + 1, FIELDS).domains) == ["x"]
    assert sorted(store.nodes()) == sorted([NODE, f"http://{name}/"])
    assert store.last(NODE) == sample(0, vms=(name,))


def test_name_that_injects_a_query_selects_no_node(store: Store) -> None:
    write(store, sample(0))
    for name in ('x" or true or r.url=="', "' OR 1=1 --", "${url}", NODE + "\\"):
        assert store.read(name, T0, T0 + 1, FIELDS).node.time_ms.size == 0
        assert store.last(name) is None


def test_values_keep_full_precision(store: Store) -> None:
    values = {"cpu": 0.1 + 0.2, "cpu_usage": 1.7976931348623157e300, "mem_usage": 5e-300}
    write(store, ScrapeSample(NODE, T0, values, {}))
    period = store.read(NODE, T0, T0 + 1, FIELDS)
    assert {name: float(column[0]) for name, column in period.node.fields.items()} == values


def test_values_that_are_not_finite_are_missing(store: Store) -> None:
    write(store, ScrapeSample(NODE, T0, {"cpu": 1.0, "cpu_usage": math.inf, "mem_usage": math.nan}, {}), sample(1))
    first = store.read(NODE, T0, T0 + 1, FIELDS).node.fields
    assert first["cpu"][0] == 1.0
    assert np.isnan(first["mem_usage"][0])


def test_large_batch_is_stored_completely(store: Store) -> None:
    names = tuple(f"vm{i:03d}" for i in range(200))
    assert write(store, *(sample(k, vms=names) for k in range(120))) == 0
    period = store.read(NODE, T0, T0 + 10**6, ("cpu_usage",))
    assert len(period.domains) == 200
    np.testing.assert_array_equal(period.domains["vm199"].fields["cpu_usage"], [k / 3 + 199 for k in range(120)])


def test_check_names_the_server_and_writes_nothing(store: Store) -> None:
    assert store.check().split()[0] in {"SQLite", "InfluxDB"}
    assert store.nodes() == []


# --- counts of fleets -------------------------------------------------------------------------------


def test_counts_of_masters_are_read_by_time_and_name(store: Store) -> None:
    assert store.read_fleet(T0, T0 + 10_000) == []
    rows = [
        FleetRow("m2", T0, {"cpu_nodes": 3.0, "cpu_full": 0.1 + 0.2}),
        FleetRow("m1", T0 + 5000, {"cpu_nodes": 2.0}),
        FleetRow("m1", T0, {"cpu_nodes": 1.0, "mem_used": 1e12}),
        FleetRow("m1", T0 + 10_000, {"cpu_nodes": 9.0}),
    ]
    for row in rows:
        store.write_fleet(row)
    assert store.read_fleet(T0, T0 + 10_000) == [rows[2], rows[0], rows[1]]
    assert store.read_fleet(T0, T0) == []
    assert store.nodes() == [], "a master is no node"
    assert store.last(NODE) is None


def test_counts_that_are_written_again_replace_the_former_ones(store: Store) -> None:
    for nodes in (1.0, 2.0):
        store.write_fleet(FleetRow("m", T0, {"cpu_nodes": nodes, "cpu_full": 1.0}))
    assert store.read_fleet(T0, T0 + 1) == [FleetRow("m", T0, {"cpu_nodes": 2.0, "cpu_full": 1.0})]


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b", 'a"b', "ü", "'; DROP TABLE fleet; --", '") or true or ("'])
def test_special_characters_in_the_name_of_a_master_have_no_effect(store: Store, name: str) -> None:
    rows = [FleetRow(master, T0, {"cpu_nodes": float(len(master))}) for master in sorted(["m", name])]
    for row in rows:
        store.write_fleet(row)
    assert store.read_fleet(T0, T0 + 1) == rows


def test_counts_older_than_the_retention_are_deleted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s", 3600)
    for k in range(3):
        store.write_fleet(FleetRow("m", T0 + k * 1000, {"cpu_nodes": 1.0}))
    store.expire((T0 + 2000) / 1000 + 3600)
    assert [row.time_ms for row in store.read_fleet(0, T0 + 10**9)] == [T0 + 2000]


def test_row_of_a_fleet_that_cannot_be_decoded_is_omitted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s", 86400)
    for k in range(4):
        store.write_fleet(FleetRow(f"m{k}", T0, {"cpu_nodes": 1.0}))
    with contextlib.closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as file:
        for k, counts in enumerate(("{", "[1]", '{"cpu_nodes": "many"}')):
            file.execute("UPDATE fleet SET counts = ? WHERE master = ?", (counts, f"m{k}"))
    assert [row.master for row in store.read_fleet(T0, T0 + 1)] == ["m3"]
    store.close()


# --- the embedded store -----------------------------------------------------------------------------


def _hammer(path: Path, worker: int, count: int) -> None:
    store = SqliteStore(path, 86400)
    for k in range(count):
        store.write([store.encode(sample(k, f"http://w{worker}/"))])
    store.close()


def test_several_processes_write_and_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    reader = SqliteStore(path, 86400)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(path, i, 100)) for i in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        for node in reader.nodes():
            times = reader.read(node, T0, T0 + 10**6, ("cpu",)).node.time_ms
            assert times.tolist() == [T0 + 5000 * k for k in range(times.size)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [reader.read(f"http://w{i}/", T0, T0 + 10**6, ("cpu",)).node.time_ms.size for i in range(3)] == [100] * 3


def test_killed_writer_leaves_complete_samples(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.integration.test_stores import *\n"
        "store = SqliteStore(Path(sys.argv[1]), 86400)\nk = 0\n"
        "while True:\n    store.write([store.encode(sample(k))])\n    print(k, flush=True)\n    k += 1\n"
    )
    for attempt in range(3):
        path = tmp_path / f"s{attempt}"
        process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                break
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait(30)
        process.stdout.close()
        acknowledged = int(rest[-1]) if rest else 20
        store = SqliteStore(path, 86400)
        times = store.read(NODE, T0, T0 + 10**9, ("cpu",)).node.time_ms
        assert times.size in {acknowledged + 1, acknowledged + 2}
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        store.close()


def test_samples_older_than_the_retention_are_deleted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s", 3600)
    write(store, *(sample(k) for k in range(5000)))
    # At this time, half of the samples are older than an hour.
    assert store.expire((T0 + 2500 * 5000) / 1000 + 3600).deleted == 2500
    assert store.read(NODE, 0, T0 + 10**9, ("cpu",)).node.time_ms[0] == T0 + 2500 * 5000


@pytest.mark.parametrize("content", [b"not a database " * 70, b"SQLite format 3\x00" + b"x" * 4096])
def test_file_that_is_not_a_store_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(StoreRefused, match=str(tmp_path)):
        SqliteStore(tmp_path / "s", 86400).open()
    assert (tmp_path / "s").read_bytes() == content


def test_folder_in_place_of_the_file_is_a_fault_that_may_pass(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SqliteStore(tmp_path, 86400).open()


def test_constructor_creates_nothing_and_open_creates_folder_and_file(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "folder" / "s", 86400)
    assert list(tmp_path.iterdir()) == []
    store.open()
    assert (tmp_path / "folder" / "s").is_file()
    store.close()


@pytest.mark.parametrize(
    ("path", "usable", "message"),
    [
        ("s", True, "the store does not exist yet; folder {0} is writable"),
        ("new/folder/s", True, "the store does not exist yet; folder {0} is writable"),
        ("file/s", False, "the store does not exist yet; {0}/file is not a folder"),
    ],
)
def test_check_of_a_missing_store_creates_nothing(tmp_path: Path, path: str, usable: bool, message: str) -> None:
    (tmp_path / "file").touch()
    checked = check_store(StoreSettings(None, tmp_path / path, 86400))
    assert checked == (usable, message.format(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_check_of_a_missing_store_reports_a_folder_that_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any folder
    message = f"the store does not exist yet; folder {tmp_path} is not writable"
    assert check_store(StoreSettings(None, tmp_path / "s", 86400)) == (False, message)


def test_check_of_an_existing_store_leaves_no_other_file(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s", 86400)
    write(store, sample(0))
    store.close()
    usable, message = check_store(StoreSettings(None, tmp_path / "s", 86400))
    assert usable
    assert message.endswith("1 samples of 1 nodes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_check_of_a_file_that_is_not_a_store_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not a database " * 70)
    with pytest.raises(StoreRefused, match="STORE_PATH: "):
        check_store(StoreSettings(None, tmp_path / "s", 86400))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a small file system")
def test_full_disk_is_reported_and_writing_continues_when_there_is_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = SqliteStore(disk / "s", 86400)
        k = 0

        def fill() -> None:
            nonlocal k
            for k in range(10_000):
                write(store, sample(k, vms=tuple(f"vm{i}" for i in range(50))))

        with pytest.raises(StoreUnavailable, match="full"):
            fill()
        assert store.read(NODE, T0, T0 + 10**9, ("cpu",)).node.time_ms.size == k
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        write(store, sample(k))
        assert store.last(NODE) == sample(k)
        store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_is_deleted_or_replaced_is_created_again(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path, 86400)
    write(store, sample(0))
    for part in tmp_path.glob("s*"):
        part.unlink()
    if replaced:
        path.mkdir()
        with pytest.raises(StoreUnavailable):
            write(store, sample(1))
        path.rmdir()
    write(store, sample(1), sample(2))
    assert store.read(NODE, T0, T0 + 10**6, ("cpu",)).node.time_ms.tolist() == [T0 + 5000, T0 + 10_000]
    again = SqliteStore(path, 86400)
    assert again.last(NODE) == sample(2)


def test_second_sample_of_a_time_does_not_replace_the_first(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s", 86400)
    write(store, sample(0))
    write(store, ScrapeSample(NODE, T0, {"cpu": 64.0}, {}))  # without rates, as a restarted daemon writes it
    assert store.last(NODE) == sample(0)


def test_numbers_assigned_in_a_failed_transaction_are_not_used(tmp_path: Path) -> None:
    """A write that fails in the middle also removes its new nodes and layouts."""
    store = SqliteStore(tmp_path / "s", 86400)
    good, bad = store.encode(sample(0)), store.encode(sample(1))
    node, time_ms, layout, _ = bad.payload
    broken = type(bad)((node, time_ms, layout, object()), bad.size, bad.points)
    batch = [good, broken]
    with pytest.raises(StoreUnavailable):
        store.write(batch)
    assert store.nodes() == []
    write(store, sample(2))
    assert store.last(NODE) == sample(2)


def test_replaced_files_are_closed(tmp_path: Path) -> None:
    """A daemon that retries would run out of file descriptors."""
    path = tmp_path / "store.sqlite"
    store = SqliteStore(path, 86400)
    store.open()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for content in (b"junk " * 1000, b""):
        for _ in range(5):
            for end in ("", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            path.write_bytes(content)
            with contextlib.suppress(StoreUnavailable):
                store.read(NODE, 0, 1, FIELDS)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    store.close()
