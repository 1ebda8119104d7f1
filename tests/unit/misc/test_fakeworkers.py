"""The load generator: pages like those of real exporters, counters that only grow, faults that are what they say."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import re
import select
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from prometheus_client.parser import text_string_to_metric_families

from misc.fakeworkers import server as fakeworkers
from misc.fakeworkers.faults import ANSWERS, EVENTS
from misc.fakeworkers.machines import Plan, Shapes, build_worker
from misc.fakeworkers.server import FakeWorkers, in_thread
from tests.conftest import ROOT, SHARED

#: Some time of 2026, Unix ms.
NOW_MS = 1_795_357_894_930
SMALL = Plan(workers=3, vms=4, other_metrics=25, slow_s=0.3)
COUNTERS = re.compile(
    r"cpu_(cputime|usertime|systemtime|user|kernel|idle|iowait)$|sched_|stat_m..flt$|fault$|(seconds|fault)_total$|last_update$"
)
RENDERERS = {
    "metrics": fakeworkers.render_vmprobe,
    "node": fakeworkers.render_node,
    "libvirt": fakeworkers.render_libvirt,
}
PAGES = [
    (Plan(**{**settings, "workers": 1, "vms": 4, "other_metrics": 25}), endpoint)
    for settings in (
        {"format": "vmprobe"},
        {"format": "vmprobe-textfile"},
        *({"format": "labels", "dialect": dialect} for dialect in fakeworkers.DIALECTS),
    )
    for endpoint in Plan(**settings).endpoints
]
each_page = pytest.mark.parametrize(
    ("plan", "endpoint"), PAGES, ids=[f"{plan.format}-{plan.dialect}-{endpoint}" for plan, endpoint in PAGES]
)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(1)


def samples(page: bytes) -> dict[str, float]:
    """Name with labels -> value; fails when prometheus_client can't read the page."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            name = sample.name + (json.dumps(sample.labels) if sample.labels else "")
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


# Pages.


@each_page
def test_page_can_be_parsed_and_has_all_vms(plan: Plan, endpoint: str, shapes: Shapes) -> None:
    worker = build_worker(plan, shapes, 0)
    page = RENDERERS[endpoint](worker, NOW_MS)
    found = samples(page)
    assert page.endswith(b"\n")
    assert not page.startswith(b"\n")
    if endpoint != "node":
        for name in worker.names:
            assert any((name if endpoint == "libvirt" else name.replace("-", "")) in line for line in found)
    if plan.format == "vmprobe-textfile" or endpoint == "node":
        others = [name for name in found if re.match("node_(?!cpu_|memory_|boot_|time_)", name)]
        assert len(others) == plan.other_metrics


@each_page
def test_same_seed_and_time_give_the_same_page(plan: Plan, endpoint: str, shapes: Shapes) -> None:
    render = RENDERERS[endpoint]
    used, fresh = build_worker(plan, shapes, 0), build_worker(plan, Shapes(1), 0)
    render(used, NOW_MS - 60_000)
    render(used, NOW_MS + 60_000)
    page = render(used, NOW_MS)
    assert page == render(fresh, NOW_MS)
    assert page != render(fresh, NOW_MS + 5000)
    assert page != render(build_worker(Plan(workers=1, vms=4, seed=2, format=plan.format), Shapes(2), 0), NOW_MS)
    assert page != render(build_worker(plan, shapes, 1), NOW_MS)


@each_page
def test_counters_never_go_back(plan: Plan, endpoint: str, shapes: Shapes) -> None:
    worker = build_worker(plan, shapes, 0)
    # From a step of usage into the next, in odd pieces, and across the place where its course starts again.
    turn = NOW_MS + (fakeworkers._STEPS * 5000 - (NOW_MS - fakeworkers._ORIGIN_MS)) % (fakeworkers._STEPS * 5000)
    times = [NOW_MS + 313 * i for i in range(40)] + [NOW_MS + 3_000_000 * i for i in range(1, 60)]
    times += [turn - int(worker.offset_ms[0]) + 7_777 * i for i in range(-5, 5)]
    times = sorted(times)
    pages = [samples(RENDERERS[endpoint](worker, at)) for at in times]
    names = [name for name in pages[0] if COUNTERS.search(name.partition("{")[0])]
    assert len(names) >= 4
    for name in names:
        course = [page[name] for page in pages]
        assert course == sorted(course), name
    grown = [name for name in names if pages[-1][name] > pages[0][name]]
    assert any("cpu" in name for name in grown)


@pytest.mark.parametrize(
    ("capture", "played"),
    [("vmprobe_01_idle.prom", "vmprobe"), ("node_exporter_with_vmprobe.txt", "vmprobe-textfile")],
)
def test_every_metric_of_a_captured_page_is_played(capture: str, played: str, shapes: Shapes) -> None:
    path = SHARED / "captures" / capture
    if not path.exists():
        pytest.skip("no captures here")
    names = re.findall(r"^vmprobe_(global_\w+|domain_vm1_\w+) ", path.read_text(), flags=re.M)
    worker = build_worker(Plan(vms=1, format=played), shapes, 0)
    page = fakeworkers.render_vmprobe(worker, NOW_MS).decode()
    for name in names:
        ours = name.replace("vm1", worker.names[0].replace("-", ""))
        assert re.search(rf"^vmprobe_{ours} \d", page, flags=re.M), name


def test_cpu_time_grows_by_what_vms_can_use_and_the_host_by_a_little_more(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=20), shapes, 0)
    a, b = (samples(fakeworkers.render_vmprobe(worker, NOW_MS + s * 1000)) for s in (0, 60))
    total = 0.0
    for name, vcpus in zip(worker.names, worker.vcpus.tolist(), strict=True):
        start = f"vmprobe_domain_{name.replace('-', '')}_"
        cores = (b[f"{start}cpu_cputime"] - a[f"{start}cpu_cputime"]) / 60e9
        assert 0.001 * vcpus <= cores <= vcpus
        assert b[f"{start}cpu_alloc"] == vcpus
        total += cores
    node = sum(b[f"vmprobe_global_cpu_{kind}"] - a[f"vmprobe_global_cpu_{kind}"] for kind in ("user", "kernel")) / 60e9
    assert total < node < total + 1
    everything = ("user", "kernel", "idle", "iowait")
    rate = sum(b[f"vmprobe_global_cpu_{kind}"] - a[f"vmprobe_global_cpu_{kind}"] for kind in everything) / 60e9
    assert rate == pytest.approx(b["vmprobe_global_cpu_total"], rel=0.001)


def test_usage_wanders_around_a_level(shapes: Shapes) -> None:
    """One step is much like the next, and little like the one an hour later."""
    usage = shapes.time_ns[:, 1:] - shapes.time_ns[:, :-1]
    usage = usage - usage.mean(axis=1, keepdims=True)
    for shape in usage:
        assert 0.8 < (shape[1:] * shape[:-1]).mean() / shape.var() < 0.99
        assert abs((shape[720:] * shape[:-720]).mean() / shape.var()) < 0.2


def test_memory_is_sane_and_as_old_as_the_guests_statistics(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=10, stats_period_s=30), shapes, 0)
    pages = [samples(fakeworkers.render_vmprobe(worker, NOW_MS + 5000 * i)) for i in range(20)]
    for name in worker.names:
        start = f"vmprobe_domain_{name.replace('-', '')}_memory_"
        told = {}
        for i, page in enumerate(pages):
            assert 0 < page[f"{start}unused"] <= page[f"{start}available"] <= page[f"{start}alloc"]
            assert page[f"{start}rss"] >= page[f"{start}alloc"] * 0.05
            assert 0 <= NOW_MS + 5000 * i - page[f"{start}last_update"] * 1000 < 31_000
            assert told.setdefault(page[f"{start}last_update"], page[f"{start}unused"]) == page[f"{start}unused"]
        assert 3 <= len(told) <= 5
    assert pages[0]["vmprobe_global_memory_available"] < pages[0]["vmprobe_global_memory_total"]


def test_textfile_format_writes_numbers_as_go_does(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=2, format="vmprobe-textfile", other_metrics=0), shapes, 0)
    lines = fakeworkers.render_vmprobe(worker, NOW_MS).decode().splitlines()
    values = [line.split()[1] for line in lines if not line.startswith("#")]
    assert "1.8446744073709552e+19" in values
    assert "1.79535789493e+12" in values
    for value in values:
        assert re.fullmatch(r"\d{1,6}|\d(\.\d*[1-9])?e\+\d\d", value)
    assert lines[0::3] == [f"# HELP {line.split()[0]} Metric read from vmprobe.prom" for line in lines[2::3]]
    assert lines[1::3] == [f"# TYPE {line.split()[0]} untyped" for line in lines[2::3]]


@pytest.mark.parametrize(
    ("dialect", "there", "not_there"),
    [
        ("kumina", "libvirt_domain_state_code", "libvirt_domain_memory_stats_rss_bytes"),
        ("tinkoff", "libvirt_domain_memory_stats_actual_balloon_bytes", "libvirt_domain_state_code"),
        ("inovex", "libvirt_domain_memory_stats_current_balloon_bytes", "libvirt_domain_info_vstate"),
    ],
)
def test_dialects_differ_as_the_exporters_do(dialect: str, there: str, not_there: str, shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=3, format="labels", dialect=dialect), shapes, 0)
    page = fakeworkers.render_libvirt(worker, NOW_MS).decode()
    assert len(re.findall(rf"^{there}{{", page, flags=re.M)) == 3
    assert not_there not in page
    worker.leave(1, NOW_MS)
    found = samples(fakeworkers.render_libvirt(worker, NOW_MS + 5000))
    gone = {name: value for name, value in found.items() if worker.names[1] in name}
    if dialect == "tinkoff":
        assert gone[f'libvirt_domain_info_vstate{{"domain": "{worker.names[1]}"}}'] == 5
        assert gone[f'libvirt_domain_memory_stats_rss_bytes{{"domain": "{worker.names[1]}"}}'] == 0
    else:
        assert not gone


def test_a_time_before_the_workers_is_refused(shapes: Shapes) -> None:
    with pytest.raises(ValueError, match="not there yet"):
        fakeworkers.render_vmprobe(build_worker(SMALL, shapes, 0), fakeworkers._ORIGIN_MS)


def test_a_worker_without_vms_has_a_page(shapes: Shapes) -> None:
    found = samples(fakeworkers.render_vmprobe(build_worker(Plan(vms=0), shapes, 0), NOW_MS))
    assert "vmprobe_global_cpu_total" in found
    assert not any("domain" in name for name in found)


# Served.


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = NOW_MS / 1000

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def connected(fakes: FakeWorkers, timeout_s: float = 10) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(fakes.base_url.removeprefix("http://"), timeout=timeout_s)) as connection:
        yield connection


def get(fakes: FakeWorkers, path: str, timeout_s: float = 10) -> tuple[int, bytes]:
    with connected(fakes, timeout_s) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def fetch(fakes: FakeWorkers, worker: int = 0) -> bytes:
    status, body = get(fakes, f"/worker-{worker:05d}/metrics")
    assert status == 200
    return body


def control(fakes: FakeWorkers, **order: Any) -> tuple[int, Any]:
    with connected(fakes) as connection:
        connection.request("POST", "/control", body=json.dumps(order))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeWorkers, Clock]]:
    clock = Clock()
    with in_thread(SMALL, clock=clock) as fakes:
        yield fakes, clock


@pytest.fixture
def fakes(served: tuple[FakeWorkers, Clock]) -> Iterator[FakeWorkers]:
    """The workers, without a fault."""
    assert control(served[0], worker="all", fault="none")[0] == 200
    yield served[0]
    assert control(served[0], worker="all", fault="none")[0] == 200


@pytest.fixture
def clock(served: tuple[FakeWorkers, Clock]) -> Clock:
    return served[1]


def value(page: bytes, name: str) -> float:
    return samples(page)[f"vmprobe_{name}"]


def test_page_stands_until_the_probe_looks_again(fakes: FakeWorkers, clock: Clock) -> None:
    pages = []
    for _ in range(12):
        pages.append(fetch(fakes))
        clock.now_s += 1
    epochs = [int(value(page, "global_probe_epoch")) for page in pages]
    assert len(set(pages)) == len(set(epochs)) == 3
    assert {b - a for a, b in itertools.pairwise(epochs)} == {0, 5000}
    assert value(pages[0], "global_probe_delay") == 5000


@pytest.mark.parametrize("settings", [{"probe_delay_ms": 0}, {"format": "labels"}], ids=str)
def test_page_can_be_new_at_each_request(settings: dict[str, Any]) -> None:
    clock = Clock()
    with in_thread(Plan(workers=1, vms=1, **settings), clock=clock) as fakes:
        path = f"/worker-00000/{fakes.plan.endpoints[0]}"
        before = get(fakes, path)
        clock.now_s += 0.25
        assert get(fakes, path) != before


def test_what_does_not_exist_is_not_found(fakes: FakeWorkers) -> None:
    for path in ("/worker-00003/metrics", "/worker-00000/node", "/", "/worker-0/metrics"):
        assert get(fakes, path)[0] == 404


def test_stub_list_names_pages_that_answer() -> None:
    with in_thread(Plan(workers=2, vms=1, format="labels", dialect="inovex")) as fakes:
        for stub in fakes.stubs():
            assert stub["node"] == stub["node_exporter"]
            for kind in ("node_exporter", "libvirt_exporter"):
                assert get(fakes, stub[kind].removeprefix(fakes.base_url))[0] == 200
    with in_thread(Plan(workers=2, vms=1, prefix="p_q")) as fakes:
        for url, prefix in fakes.stubs():
            assert get(fakes, url.removeprefix(fakes.base_url))[1].count(f"{prefix}_global_cpu_total ".encode()) == 1


def test_every_fault_has_a_test_here() -> None:
    text = Path(__file__).read_text()
    for name in [*ANSWERS, *EVENTS]:
        assert f'fault="{name}"' in text, name


def test_slow_answers_late_and_only_the_worker_that_is_slow(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="slow", delay_s=0.5)
    begun = time.monotonic()
    fetch(fakes, 1)
    between = time.monotonic()
    assert fetch(fakes) == page
    assert between - begun < 0.4
    assert time.monotonic() - between >= 0.5
    control(fakes, worker=0, fault="slow")
    begun = time.monotonic()
    fetch(fakes)
    assert time.monotonic() - begun >= SMALL.slow_s


def test_hang_never_answers_and_lets_others_live(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="hang")
    with pytest.raises(TimeoutError):
        get(fakes, "/worker-00000/metrics", timeout_s=0.5)
    assert fetch(fakes, 1)


def test_500_is_an_error(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="500")
    assert get(fakes, "/worker-00000/metrics")[0] == 500


def test_empty_is_a_good_answer_without_a_body(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="empty")
    assert get(fakes, "/worker-00000/metrics") == (200, b"")


def test_partial_ends_after_a_line_and_cut_within_one(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="partial")
    partial = fetch(fakes)
    control(fakes, worker=0, fault="cut")
    cut = fetch(fakes)
    for piece in (partial, cut):
        assert 0 < len(piece) < len(page)
        assert page.startswith(piece)
    assert partial.endswith(b"\n")
    assert not cut.endswith(b"\n")
    assert page[len(cut) : len(cut) + 1] != b"\n"


def test_truncated_body_ends_before_its_length(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="truncated-body")
    with pytest.raises(http.client.IncompleteRead) as error:
        get(fakes, "/worker-00000/metrics")
    assert error.value.partial == page[: len(page) // 2]


def test_stale_keeps_its_epoch(fakes: FakeWorkers, clock: Clock) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="stale", seconds=60)
    clock.now_s += 30
    assert fetch(fakes) == page
    clock.now_s += 31
    assert value(fetch(fakes), "global_probe_epoch") >= value(page, "global_probe_epoch") + 60_000


def test_endless_goes_on(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="endless")
    with connected(fakes) as connection:
        connection.request("GET", "/worker-00000/metrics")
        response = connection.getresponse()
        for _ in range(5):
            assert response.read(len(page)) == page
    # Who leaves is not written to any longer.
    assert fetch(fakes, 1)


def test_redirect_leads_to_redirects(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="redirect")
    path, seen = "/worker-00000/metrics", set()
    for _ in range(40):
        with connected(fakes) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        assert response.status == 302
        path = response.headers["Location"]
        assert path not in seen
        seen.add(path)


def test_gzip_bomb_is_small_and_swells(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="gzip-bomb")
    with connected(fakes, 60) as connection:
        connection.request("GET", "/worker-00000/metrics")
        response = connection.getresponse()
        body = response.read()
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(body) < 1_000_000
    unpacker = zlib.decompressobj(31)
    swollen = 0
    while not unpacker.eof:
        piece = unpacker.decompress(unpacker.unconsumed_tail or body, 1 << 24)
        assert piece.count(0) == len(piece)
        swollen += len(piece)
    assert swollen == fakeworkers._BOMB_MB << 20


def test_long_line_is_ten_megabytes(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="long-line")
    lines = fetch(fakes).split(b"\n")
    assert len(lines.pop(1)) == 10_000_000
    assert b"\n".join(lines) == page


def test_html_is_a_good_answer_of_the_wrong_kind(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="html")
    with connected(fakes) as connection:
        connection.request("GET", "/worker-00000/metrics")
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers.get_content_type() == "text/html"
        assert response.read().startswith(b"<!DOCTYPE html>")


def test_garbage_is_no_text(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="garbage")
    body = fetch(fakes)
    assert len(body) == 65536
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    assert len(gzip.compress(body)) > 65000


def started(fakes: FakeWorkers, worker: int, vm: int) -> str:
    return f"domain_{fakes.workers[worker].names[vm].replace('-', '')}_cpu_cputime"


def test_reset_starts_all_counters_again(fakes: FakeWorkers, clock: Clock) -> None:
    before, other = fetch(fakes), fetch(fakes, 1)
    assert control(fakes, worker=0, fault="reset")[0] == 200
    assert fetch(fakes) == before
    clock.now_s += 10
    after = samples(fetch(fakes))
    for name, old in samples(before).items():
        if COUNTERS.search(name) and "last_update" not in name and old > 1_000_000:
            assert 0 <= after[name] < old / 100, name
    # Eight cores and ten seconds at the most can have been used of each sort.
    assert sum(after[f"vmprobe_global_cpu_{kind}"] for kind in ("user", "kernel", "idle", "iowait")) == pytest.approx(
        10e9 * after["vmprobe_global_cpu_total"], rel=0.01
    )
    assert value(fetch(fakes, 1), started(fakes, 1, 0)) > value(other, started(fakes, 1, 0))


def test_vm_restart_starts_one_vm_again(fakes: FakeWorkers, clock: Clock) -> None:
    clock.now_s += 3600
    before = samples(fetch(fakes, 2))
    assert control(fakes, worker=2, fault="vm-restart", vm=1)[0] == 200
    clock.now_s += 5
    after = samples(fetch(fakes, 2))
    assert 0 < after[f"vmprobe_{started(fakes, 2, 1)}"] <= 16 * 5e9
    for name in [started(fakes, 2, 0), "global_cpu_user", "global_cpu_idle"]:
        assert after[f"vmprobe_{name}"] >= before[f"vmprobe_{name}"] > 16 * 5e9


def test_vm_leaves_and_returns_with_new_counters_and_the_host_goes_on(fakes: FakeWorkers, clock: Clock) -> None:
    pages = [fetch(fakes, 1)]
    assert control(fakes, worker=1, fault="vm-leaves")[1]["away"] == {"1": [fakes.workers[1].names[0]]}
    assert control(fakes, worker=1, fault="vm-leaves", vm=3)[0] == 200
    for fault in (None, "vm-returns", "vm-returns"):
        clock.now_s += 5
        if fault is not None:
            assert control(fakes, worker=1, fault=fault)[0] == 200
            clock.now_s += 5
        pages.append(fetch(fakes, 1))
    there = [[f"vmprobe_{started(fakes, 1, vm)}" in samples(page) for vm in range(4)] for page in pages]
    assert there == [
        [True, True, True, True],
        [False, True, True, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert value(pages[2], started(fakes, 1, 0)) <= 16 * 10e9
    for kind in ("cpu_user", "cpu_kernel", "cpu_idle", "sched_runtime"):
        course = [value(page, f"global_{kind}") for page in pages]
        assert course == sorted(course)
    assert control(fakes, worker=1, fault="vm-returns")[0] == 400


def test_a_fault_ends_after_its_requests_or_its_seconds(fakes: FakeWorkers, clock: Clock) -> None:
    control(fakes, worker="all", fault="500", count=2)
    assert [get(fakes, "/worker-00000/metrics")[0] for _ in range(3)] == [500, 500, 200]
    assert get(fakes, "/worker-00001/metrics")[0] == 500
    control(fakes, worker=0, fault="500", seconds=20)
    state = json.loads(get(fakes, "/control")[1])
    assert state["faults"]["0"] == {"fault": "500", "seconds_left": 20, "count_left": None}
    assert state["faults"]["1"] == {"fault": "500", "seconds_left": None, "count_left": 1}
    assert (state["workers"], state["vms"], state["requests"] > 0) == (3, 4, True)
    clock.now_s += 21
    assert get(fakes, "/worker-00000/metrics")[0] == 200
    assert list(json.loads(get(fakes, "/control")[1])["faults"]) == ["1", "2"]


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"worker": 3, "fault": "slow"},
        {"worker": -1, "fault": "slow"},
        {"worker": True, "fault": "slow"},
        {"worker": "some", "fault": "slow"},
        {"worker": 0, "fault": "nonsense"},
        {"worker": 0, "fault": 500},
        {"worker": 0, "fault": "500", "seconds": -1},
        {"worker": 0, "fault": "500", "seconds": "1"},
        {"worker": 0, "fault": "500", "count": 1.5},
        {"worker": 0, "fault": "500", "vm": 1},
        {"worker": 0, "fault": "500", "minutes": 1},
        {"worker": 0, "fault": "reset", "count": 1},
        {"worker": 0, "fault": "vm-leaves", "vm": 4},
    ],
    ids=str,
)
def test_an_order_that_makes_no_sense_is_refused_and_changes_nothing(fakes: FakeWorkers, order: Any) -> None:
    status, answer = control(fakes, **order)
    assert status == 400
    assert answer["error"]
    assert json.loads(get(fakes, "/control")[1])["faults"] == {}


# The program.


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-X", "dev", "-W", "error", str(ROOT / "misc" / "fakeworkers"), "--port=0"]
    with subprocess.Popen(
        [*command, "--workers=2", "--vms=2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "nothing said in 30 s"
    return process.stdout.readline()


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_program_says_that_it_serves_and_stops_when_told_even_with_a_request_that_hangs(way: signal.Signals) -> None:
    with program("--print-stubs", "--fault=1:hang", "--fault=all:vm-leaves") as process:
        line = first_line(process)
        found = re.fullmatch(
            r"serving 2 workers with 2 VMs at http://(127\.0\.0\.1):(\d+)/worker-00000/metrics .*\n", line
        )
        assert found, line
        assert process.stdout is not None
        (url, prefix), _ = json.loads(process.stdout.readline())
        assert url in line
        assert prefix == "vmprobe"
        with socket.create_connection((found[1], int(found[2])), timeout=10) as hanging:
            hanging.sendall(b"GET /worker-00001/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            with closing(http.client.HTTPConnection(found[1], int(found[2]), timeout=10)) as connection:
                connection.request("GET", "/worker-00000/metrics")
                assert connection.getresponse().read().count(b"_cpu_alloc ") == 1
            process.send_signal(way)
            assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_program_stops_after_its_duration() -> None:
    with program("--duration=0.2") as process:
        assert first_line(process).startswith("serving")
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=70000"], "--port"),
        (["--workers=0"], "--workers"),
        (["--fault=0:nonsense"], "nonsense"),
        (["--fault=2:slow", "--workers=2"], "worker: 2"),
        (["--fault=slow"], "worker"),
        (["--format=xml"], "--format"),
        (["--host=192.0.2.1", "--port=0"], "192.0.2.1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fakeworkers.main([*arguments, "--duration=0"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
