"""Thinned samples in both stores: the same rule, no sample twice or lost, whatever happens meanwhile."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from model.estimator.bookings import LastConfigs, last_configs
from model.estimator.slicing import SLICE_FIELDS, Calendar, SliceRules
from model.samples import Period, ScrapeSample
from model.scan.tasks import slices_of
from model.store.base import Resolution, Store
from model.store.influxdb import InfluxStore
from model.store.settings import Thinning
from model.store.sqlite import SqliteStore
from model.store.sqlite_blocks import encode_block, thin_rows
from tests.conftest import ROOT, bare_environment
from tests.support.servers import make_bucket, settings_of_bucket, wait_for

NODE = "http://w1:9100/metrics"
STEP_MS = 300_000
HOUR_MS = 3_600_000
INTERVAL_MS = 30_000
#: The start of an hour five days ago, older than what either store keeps whole.
T0 = (int(time.time()) // 3600 - 120) * HOUR_MS
#: All that a sample may have.
FIELDS = (*SLICE_FIELDS, "freq", "vm_number")


def history(first: int, number: int, node: str = NODE) -> list[ScrapeSample]:
    """Samples of a node whose VMs come and go; some scrapes are missing, some samples lack a field."""
    result = []
    for k in range(first, first + number):
        draw = np.random.default_rng(k)
        if draw.random() < 0.1:
            continue
        vms = {
            name: {
                "cpu": 2.0 + i,
                "mem": 1024.0 * (1 + i),
                "cpu_usage": float(draw.uniform(0, 2)),
                "mem_usage": float(draw.uniform(0, 1024)),
                "cpu_wait": float(draw.uniform(0, 1)),
            }
            for i, name in enumerate(("always", "mostly", "seldom"))
            if i == 0 or draw.random() < 1 / i**2 - 0.2
        }
        fields = {
            "cpu": 64.0,
            "mem": 65536.0,
            "cpu_usage": float(draw.uniform(0, 64)),
            "mem_usage": float(draw.uniform(0, 65536)),
            "elapsed_time": float(INTERVAL_MS),
            "oc_cpu": sum(vm["cpu"] for vm in vms.values()) / 64,
            "oc_mem": sum(vm["mem"] for vm in vms.values()) / 65536,
            "freq": float(k),
            "psi_cpu": float(draw.uniform(0, 1)),
            "swap_in": float(draw.uniform(0, 9)),
            "oom_kills": float(draw.integers(0, 2)),
            "vm_number": float(len(vms)),
        }
        for name in ("cpu_usage", "mem_usage", "freq"):
            if draw.random() < 0.1:
                del fields[name]
        if "cpu_usage" not in fields:
            del fields["elapsed_time"]
        result.append(ScrapeSample(node, T0 + k * INTERVAL_MS + 4000, fields, vms))
    return result


def expected(samples: Sequence[ScrapeSample]) -> list[ScrapeSample]:
    """What remains of the steps by the pure rule."""
    steps: dict[int, list[ScrapeSample]] = {}
    for sample in samples:
        steps.setdefault(sample.time_ms // STEP_MS, []).append(sample)
    result = []
    for step in steps.values():
        encoded = [encode_block(sample) for sample in step]
        rows = [(sample.time_ms, i, block) for i, (sample, (_, block)) in enumerate(zip(step, encoded, strict=True))]
        result.append(thin_rows(NODE, rows, dict(enumerate(layout for layout, _ in encoded))))
    return result


def write(store: Store, samples: Sequence[ScrapeSample]) -> None:
    assert store.write([store.encode(sample) for sample in samples]) == 0


class Thinned(NamedTuple):
    """A store, and what thins its samples before a time and leaves no other of them."""

    store: Store
    thin: Callable[[int], None]


@pytest.fixture(params=["sqlite", "influx"])
def thinned(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Thinned]:
    if request.param == "sqlite":
        with closing(SqliteStore(tmp_path / "store.sqlite", 1e9, Thinning(3600, STEP_MS // 1000))) as store:
            yield Thinned(store, lambda before_ms: assert_done(store.expire(before_ms / 1000 + 3600).thinned))
        return
    url, token, org = request.getfixturevalue("influx")
    bucket = f"thinned{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    make_bucket(url, token, org, f"{bucket}-coarse")
    settings = replace(settings_of_bucket(url, token, org, bucket), coarse_bucket=f"{bucket}-coarse")

    def thin(before_ms: int) -> None:
        for _ in range(3):
            call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})
        period = {"start": "2020-01-01T00:00:00Z", "stop": utc(before_ms)}
        call(url, token, f"/api/v2/delete?org={org}&bucket={bucket}", period)
        influx._begins.clear()  # it is a minute later

    with closing(InfluxStore(settings)) as influx:
        yield Thinned(influx, thin)


def assert_done(number: int) -> None:
    assert number > 0


def task(bucket: str) -> str:
    """The task of misc/influxdb.sh."""
    settings = f"BUCKET={bucket} COARSE_BUCKET={bucket}-coarse STEP_S={STEP_MS // 1000} RETENTION_S=2592000"
    command = f"source <(sed '/^main /d' '{ROOT}/misc/influxdb.sh'); {settings}; thinning_task"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def call(url: str, token: str, path: str, body: Any) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Token {token}"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert b"error" not in response.read()[:200]


def utc(time_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms / 1000))


def in_store_time(store: Store, sample: ScrapeSample) -> ScrapeSample:
    """InfluxDB has the last millisecond of a step."""
    if isinstance(store, SqliteStore):
        return sample
    return replace(sample, time_ms=(sample.time_ms // STEP_MS + 1) * STEP_MS - 1)


def thinned_until(store: Store, cut_ms: int) -> int:
    """The step in which the samples begin that are not thinned is read from the coarse bucket as a whole."""
    return cut_ms if isinstance(store, SqliteStore) else cut_ms + STEP_MS


def assert_same(period: Period, samples: Sequence[ScrapeSample]) -> None:
    assert period.node.time_ms.tolist() == [sample.time_ms for sample in samples]
    for name in FIELDS:
        wanted = [sample.fields.get(name, np.nan) for sample in samples]
        np.testing.assert_allclose(period.node.fields[name], wanted, rtol=1e-12, err_msg=name)
    assert sorted(period.domains) == sorted({vm for sample in samples for vm in sample.domains})
    for vm, found in period.domains.items():
        there = [sample for sample in samples if vm in sample.domains]
        assert found.time_ms.tolist() == [sample.time_ms for sample in there]
        for name in FIELDS:
            wanted = [sample.domains[vm].get(name, np.nan) for sample in there]
            np.testing.assert_allclose(found.fields[name], wanted, rtol=1e-12, err_msg=f"{vm} {name}")


# --- both stores ------------------------------------------------------------------------------------


def test_what_remains_of_a_step_follows_the_rule(thinned: Thinned) -> None:
    samples = history(0, 240)
    write(thinned.store, samples)
    thinned.thin(T0 + 2 * HOUR_MS)
    wanted = [in_store_time(thinned.store, sample) for sample in expected(samples)]
    assert len(wanted) == 24
    assert_same(thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS), wanted)
    assert thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS, domains=False).domains == {}


def test_later_samples_follow_without_one_missing_or_twice(thinned: Thinned) -> None:
    samples = history(0, 240)
    write(thinned.store, samples)
    cut_ms = T0 + HOUR_MS + 2 * STEP_MS
    thinned.thin(cut_ms)
    until_ms = thinned_until(thinned.store, cut_ms)
    before, after = ([s for s in samples if (s.time_ms < until_ms) == early] for early in (True, False))
    wanted = [*(in_store_time(thinned.store, one) for one in expected(before)), *after]
    assert_same(thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS), wanted)
    numbers = thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, ("cpu", "samples")).node.fields["samples"]
    assert np.nan_to_num(numbers, nan=1.0).sum() == len(samples)


def test_other_operations_agree_with_what_is_read(thinned: Thinned) -> None:
    samples, other = history(0, 120), history(0, 20, "http://gone/")
    write(thinned.store, [*samples, *other])
    thinned.thin(T0 + HOUR_MS // 2)
    store = thinned.store
    until_ms = thinned_until(store, T0 + HOUR_MS // 2)
    first = in_store_time(store, expected(samples)[0])
    assert store.begins_ms(NODE, 0, T0 + HOUR_MS) == first.time_ms
    assert store.begins_ms(NODE, first.time_ms + 1, T0 + HOUR_MS) == in_store_time(store, expected(samples)[1]).time_ms
    assert store.nodes() == ["http://gone/", NODE]
    assert store.last(NODE) == samples[-1]
    last = store.last("http://gone/")
    assert last is not None
    assert last.fields["samples"] == sum(one.time_ms // STEP_MS == other[-1].time_ms // STEP_MS for one in other)
    for start_ms, end_ms in ((T0, T0 + HOUR_MS), (T0, T0 + STEP_MS), (T0 + HOUR_MS // 2, T0 + HOUR_MS)):
        period = store.read(NODE, start_ms, end_ms, FIELDS)
        assert store.last_configs(NODE, start_ms, end_ms) == last_configs(period.domains)
    assert store.resolution(NODE, T0, T0 + HOUR_MS) == Resolution(until_ms, STEP_MS)
    assert store.resolution(NODE, until_ms, T0 + HOUR_MS) is None
    assert store.resolution("http://unknown/", T0, T0 + HOUR_MS) is None


def test_slices_of_a_thinned_period_are_measured_and_not_lower(thinned: Thinned) -> None:
    samples: list[ScrapeSample] = []
    for one in history(0, 240):
        if not {"cpu_usage", "mem_usage"} <= one.fields.keys():
            continue
        vms = {"always": one.domains["always"]}
        elapsed = float(one.time_ms - samples[-1].time_ms if samples else 4000)
        fields = {**one.fields, "oc_cpu": 2 / 64, "oc_mem": 1024 / 65536, "elapsed_time": elapsed}
        samples.append(replace(one, fields=fields, domains=vms))
    write(thinned.store, samples)
    calendar, rules = Calendar(3600, 24), SliceRules()
    numbers = [T0 // HOUR_MS, T0 // HOUR_MS + 1]
    whole = thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, SLICE_FIELDS)
    thinned.thin(T0 + 2 * HOUR_MS)
    coarse = thinned.store.read(NODE, T0, T0 + 2 * HOUR_MS, SLICE_FIELDS)

    class Plan(NamedTuple):
        calendar: Calendar
        rules: SliceRules

    pairs = zip(
        *(slices_of(one, numbers, Plan(calendar, rules), LastConfigs()) for one in (whole, coarse)),  # type: ignore[arg-type]
        strict=True,
    )
    for before, after in pairs:
        assert after.cpu.measured, after.cpu.missing
        assert before.cpu.measured
        assert before.mem.measured or not after.mem.measured
        assert after.cpu.node.max() == before.cpu.node.max()
        assert (np.percentile(after.cpu.node, [50, 90, 99]) >= np.percentile(before.cpu.node, [50, 90, 99])).all()
        assert (after.cpu.booked, after.vms) == (before.cpu.booked, before.vms)


# --- InfluxDB ---------------------------------------------------------------------------------------


def test_run_that_is_repeated_changes_nothing(influx: tuple[str, str, str]) -> None:
    url, token, org = influx
    bucket = f"repeated{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    make_bucket(url, token, org, f"{bucket}-coarse")
    with (
        closing(InfluxStore(settings_of_bucket(url, token, org, bucket))) as store,
        closing(InfluxStore(settings_of_bucket(url, token, org, f"{bucket}-coarse"))) as coarse,
    ):
        # Nothing for longer than a run takes: it goes on behind.
        samples = [*history(0, 60), *history(1200, 60)]
        write(store, samples)
        sizes = []
        for _ in range(4):
            call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})
            sizes.append(coarse.read(NODE, 0, T0 + 10**9, ("cpu",)).node.time_ms.size)
        assert sizes == [6, 12, 12, 12]
        # Samples that came late are in what a later run writes, once.
        write(store, history(1260, 30))
        for _ in range(2):
            call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})
        numbers = coarse.read(NODE, 0, T0 + 10**9, ("samples",)).node.fields["samples"]
        assert numbers.sum() == len(samples) + len(history(1260, 30))


def test_what_a_run_did_not_finish_is_made_up_for_by_the_next_one(influx: tuple[str, str, str]) -> None:
    url, token, org = influx
    bucket = f"broken{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    make_bucket(url, token, org, f"{bucket}-coarse")
    with (
        closing(InfluxStore(settings_of_bucket(url, token, org, bucket))) as store,
        closing(InfluxStore(settings_of_bucket(url, token, org, f"{bucket}-coarse"))) as coarse,
    ):
        write(store, history(0, 200))
        call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})
        written = {"start": utc(T0), "stop": utc(T0 + 2 * HOUR_MS), "predicate": '_measurement="domain"'}
        call(url, token, f"/api/v2/delete?org={org}&bucket={bucket}-coarse", written)
        assert coarse.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS).domains == {}
        call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})
        wanted = [in_store_time(coarse, sample) for sample in expected(history(0, 200))]
        assert_same(coarse.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS), wanted)


def test_bucket_without_samples_is_thinned_without_a_fault(influx: tuple[str, str, str]) -> None:
    url, token, org = influx
    bucket = f"empty{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    make_bucket(url, token, org, f"{bucket}-coarse")
    call(url, token, f"/api/v2/query?org={org}", {"query": task(bucket), "type": "flux"})


def test_samples_are_read_while_the_coarse_bucket_is_empty(influx: tuple[str, str, str]) -> None:
    url, token, org = influx
    bucket = f"unfilled{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    make_bucket(url, token, org, f"{bucket}-coarse")
    settings = replace(settings_of_bucket(url, token, org, bucket), coarse_bucket=f"{bucket}-coarse")
    with closing(InfluxStore(settings)) as store:
        assert store.read(NODE, 0, T0 + HOUR_MS, FIELDS).node.time_ms.size == 0
        samples = history(0, 30)
        write(store, samples)
        assert_same(store.read(NODE, 0, T0 + HOUR_MS, FIELDS), samples)
        assert store.resolution(NODE, 0, T0 + HOUR_MS) is None


# --- the embedded store -----------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "store.sqlite", 1e9, Thinning(3600, STEP_MS // 1000))) as store:
        yield store


def now_s(end_ms: int) -> float:
    """When samples before a time are thinned."""
    return end_ms / 1000 + 3600


def rows(store: SqliteStore, table: str) -> int:
    with closing(sqlite3.connect(store.path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_steps_that_are_not_over_are_left_alone(embedded: SqliteStore) -> None:
    write(embedded, history(0, 40))
    early = sum(one.time_ms < T0 + 2 * STEP_MS for one in history(0, 40))
    assert embedded.expire(now_s(T0 + 3 * STEP_MS - 1)).thinned == early
    assert rows(embedded, "coarse") == 2


def test_thinning_again_changes_nothing(embedded: SqliteStore) -> None:
    write(embedded, history(0, 240))
    embedded.expire(now_s(T0 + HOUR_MS))
    before = embedded.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS)
    assert embedded.expire(now_s(T0 + HOUR_MS)).thinned == 0
    np.testing.assert_equal(embedded.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS).node.fields, before.node.fields)


def test_sample_that_is_written_again_after_its_step_was_thinned_is_not_counted_twice(embedded: SqliteStore) -> None:
    samples = history(0, 40)
    write(embedded, samples)
    embedded.expire(now_s(T0 + 4 * STEP_MS))
    before = embedded.read(NODE, T0, T0 + HOUR_MS, FIELDS)
    write(embedded, samples)
    np.testing.assert_equal(embedded.read(NODE, T0, T0 + HOUR_MS, FIELDS).node.fields, before.node.fields)


def test_sample_that_comes_late_to_a_step_without_others_is_kept(embedded: SqliteStore) -> None:
    write(embedded, [*history(0, 10), *history(30, 10)])
    embedded.expire(now_s(T0 + HOUR_MS))
    late = history(10, 20)
    write(embedded, late)
    embedded.expire(now_s(T0 + HOUR_MS))
    wanted = [*history(0, 10), *late, *history(30, 10)]
    assert_same(embedded.read(NODE, T0, T0 + HOUR_MS, FIELDS), expected(wanted))


def test_thinned_samples_expire_with_their_layouts(embedded: SqliteStore) -> None:
    write(embedded, history(0, 240))
    embedded.expire(now_s(T0 + 2 * HOUR_MS))
    assert rows(embedded, "coarse") == 24
    assert embedded.expire(T0 / 1000 + 1e9 + 3600).deleted == 12
    assert embedded.expire(T0 / 1000 + 1e9 + 5 * 86400).deleted == 12
    assert [rows(embedded, table) for table in ("tick", "coarse", "layout", "word", "node")] == [0] * 5


def test_without_a_step_all_samples_are_kept(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "s", 1e9)) as store:
        write(store, history(0, 40))
        assert store.expire(now_s(T0 + HOUR_MS)).thinned == 0
        assert_same(store.read(NODE, T0, T0 + HOUR_MS, FIELDS), history(0, 40))


def test_step_with_more_samples_than_a_transaction_takes_is_thinned_as_one(embedded: SqliteStore) -> None:
    many = [ScrapeSample(NODE, T0 + 100 * k, {"cpu": 4.0, "cpu_usage": k % 7}, {}) for k in range(3000)]
    write(embedded, many)
    assert embedded.expire(now_s(T0 + HOUR_MS)).thinned == 3000
    period = embedded.read(NODE, T0, T0 + HOUR_MS, FIELDS)
    assert period.node.fields["samples"].tolist() == [3000.0]


def test_thinning_ends_when_it_is_told_to(embedded: SqliteStore) -> None:
    write(embedded, history(0, 2400))
    stopped = threading.Event()
    stopped.set()
    assert embedded.expire(now_s(T0 + 20 * HOUR_MS), stopped).thinned == 0


def test_change_by_another_process_meanwhile_is_not_lost(
    embedded: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample that arrives between reading and replacing is in what remains."""
    from model.store import sqlite

    write(embedded, history(0, 5))
    late = [ScrapeSample(NODE, T0 + 200_000, {"cpu_usage": 999.0}, {})]

    class Late(sqlite.Steps):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if late:
                with closing(SqliteStore(embedded.path, 1e9)) as other:
                    write(other, [late.pop()])

    monkeypatch.setattr(sqlite, "Steps", Late)
    embedded.expire(now_s(T0 + HOUR_MS))
    period = embedded.read(NODE, T0, T0 + HOUR_MS, FIELDS)
    assert period.node.fields["cpu_usage"].tolist() == [999.0]
    assert period.node.fields["samples"].tolist() == [len(history(0, 5)) + 1]


def test_killed_while_thinning_nothing_is_lost_or_counted_twice(embedded: SqliteStore) -> None:
    samples = history(0, 4800)
    write(embedded, samples)
    code = (
        "import sys, threading\nfrom pathlib import Path\nfrom model.store.settings import Thinning\n"
        "from model.store.sqlite import SqliteStore\n"
        f"store = SqliteStore(Path(sys.argv[1]), 1e9, Thinning(3600, {STEP_MS // 1000}))\nstore.open()\n"
        f"print('begins', flush=True)\nstore.expire({now_s(T0 + 40 * HOUR_MS)}, threading.Event())\n"
    )
    wanted = expected(samples)
    for delay_s in (0.0, 0.01, 0.02, 0.05):
        done = rows(embedded, "coarse")
        process = subprocess.Popen([sys.executable, "-c", code, embedded.path], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        wait_for(lambda before=done: rows(embedded, "coarse") > before)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        numbers = embedded.read(NODE, T0, T0 + 40 * HOUR_MS, ("samples",)).node.fields["samples"]
        assert np.nan_to_num(numbers, nan=1.0).sum() == len(samples)
    assert rows(embedded, "tick"), "none was killed before it had finished"
    embedded.expire(now_s(T0 + 40 * HOUR_MS))
    assert_same(embedded.read(NODE, T0, T0 + 40 * HOUR_MS, FIELDS), wanted)
    with closing(sqlite3.connect(embedded.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_writer_is_not_held_up_by_a_store_that_is_thinned_for_the_first_time(embedded: SqliteStore) -> None:
    """No transaction takes more than a part of the samples, so others write between them."""
    write(embedded, history(0, 9600))
    stopped = threading.Event()
    thread = threading.Thread(target=embedded.expire, args=(now_s(T0 + 80 * HOUR_MS), stopped))
    written, left = 0, []
    thread.start()
    while thread.is_alive():
        write(embedded, [ScrapeSample("http://live/", T0 + 10**10 + written, {"cpu": 1.0}, {})])
        written += 1
        left.append(rows(embedded, "tick") - written)
    thread.join()
    assert len({number for number in left if number > 0}) > 3
    assert rows(embedded, "tick") == written


def test_store_of_the_version_before_is_thinned(tmp_path: Path) -> None:
    from tests.unit.store.test_sqlite_layouts import old_file

    old_file(tmp_path / "store.sqlite", *history(0, 240))
    with closing(SqliteStore(tmp_path / "store.sqlite", 1e9, Thinning(3600, STEP_MS // 1000))) as store:
        store.expire(now_s(T0 + 2 * HOUR_MS))
        assert_same(store.read(NODE, T0, T0 + 2 * HOUR_MS, FIELDS), expected(history(0, 240)))


# --- the programs -----------------------------------------------------------------------------------


def test_aggregator_thins_and_export_says_so(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store.sqlite", 1e9)) as store:
        write(store, history(0, 240))
        env = {
            **bare_environment(),
            "STORE_PATH": str(store.path),
            "STORE_FULL_S": "3600",
            "STORE_COARSE_STEP_S": "600",
            "AGGREG_STUB_LIST": '[["http://127.0.0.1:9/metrics", "vmprobe"]]',
            "AGGREG_FETCH_DELAY": "60",
            "STATE_ENDPOINT": str(tmp_path / "status.json"),
        }
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, ROOT / "vmaggreg.py"], env=env, stderr=log)
        try:
            wait_for(lambda: rows(store, "coarse") and not rows(store, "tick"), 60)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert rows(store, "coarse") == 12
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, ROOT / "scroogevm.py", f"--export={out}", "--since=0", f"--url={NODE}"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(T0 / 1000 + 7200))
    assert f"of the samples before {when} one per 600 s is kept" in done.stderr
    assert json.loads(out.read_text())["node"]["raw_data"][0]["time"]
    done = subprocess.run(
        [sys.executable, ROOT / "vmaggreg.py", "--check-config"],
        env={**env, "STORE_FULL_S": "3599", "STORE_COARSE_STEP_S": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "STORE_FULL_S: '3599' is not" in done.stderr
    assert "STORE_COARSE_STEP_S: '-1' is not" in done.stderr


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"STORE_COARSE_STEP_S": "0"}, "STORE_COARSE_STEP_S: INFLUXDB_COARSE_BUCKET requires one that is not 0"),
        ({"INFLUXDB_COARSE_BUCKET": "b"}, "INFLUXDB_COARSE_BUCKET: is INFLUXDB_BUCKET"),
    ],
)
def test_settings_of_the_coarse_bucket_that_contradict_are_a_fault(
    settings: dict[str, str], fault: str, tmp_path: Path
) -> None:
    env = {
        **bare_environment(),
        "INFLUXDB_URL": "http://127.0.0.1:9",
        "INFLUXDB_TOKEN": "t",
        "INFLUXDB_ORG": "o",
        "INFLUXDB_BUCKET": "b",
        "INFLUXDB_COARSE_BUCKET": "c",
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "AGGREG_STUB_LIST": '[["http://127.0.0.1:9/metrics", "vmprobe"]]',
        **settings,
    }
    done = subprocess.run(
        [sys.executable, ROOT / "vmaggreg.py", "--check-config"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert fault in done.stderr
