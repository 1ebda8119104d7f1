"""Simulated workers over HTTP: pages, stub list, every fault and every event."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from misc.fakeworkers import attacks
from misc.fakeworkers.faults import ANSWERS, EVENTS
from misc.fakeworkers.lies import LIES
from misc.fakeworkers.loads import LOADS
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from tests.support.worker_pages import COUNTERS, NOW_MS, SMALL, samples


class Clock:
    """A clock that the test advances."""

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
    """The workers, without faults."""
    assert control(served[0], worker="all", fault="none")[0] == 200
    yield served[0]
    assert control(served[0], worker="all", fault="none")[0] == 200


@pytest.fixture
def clock(served: tuple[FakeWorkers, Clock]) -> Clock:
    return served[1]


def value(page: bytes, name: str) -> float:
    return samples(page)[f"vmprobe_{name}"]


def test_page_is_constant_until_the_next_probe(fakes: FakeWorkers, clock: Clock) -> None:
    pages = []
    for _ in range(12):
        pages.append(fetch(fakes))
        clock.now_s += 1
    epochs = [int(value(page, "global_probe_epoch")) for page in pages]
    assert len(set(pages)) == len(set(epochs)) == 3
    assert {b - a for a, b in itertools.pairwise(epochs)} == {0, 5000}
    assert value(pages[0], "global_probe_delay") == 5000


@pytest.mark.parametrize("settings", [{"probe_delay_ms": 0}, {"format": "labels"}], ids=str)
def test_page_can_be_current_at_each_request(settings: dict[str, Any]) -> None:
    clock = Clock()
    with in_thread(Plan(workers=1, vms=1, **settings), clock=clock) as fakes:
        path = f"/worker-00000/{fakes.plan.endpoints[0]}"
        before = get(fakes, path)
        clock.now_s += 0.25
        assert get(fakes, path) != before


def test_unknown_path_is_not_found(fakes: FakeWorkers) -> None:
    for path in ("/worker-00003/metrics", "/worker-00000/node", "/", "/worker-0/metrics"):
        assert get(fakes, path)[0] == 404


def test_stub_list_names_pages_that_exist() -> None:
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
    for name in [*(ANSWERS.keys() - LIES.keys()), *LOADS, *EVENTS]:
        assert f'fault="{name}"' in text or f'"fault": "{name}"' in text, name


@pytest.mark.parametrize("name", LIES)
def test_lie_is_served_until_it_ends(name: str) -> None:
    """What each lie changes is tested with the chain that it must not mislead."""
    with in_thread(Plan(workers=1, vms=2, format="labels", other_metrics=0)) as fakes:
        control(fakes, worker=0, fault=name)
        start_s = time.monotonic()
        answers = [[get(fakes, f"/worker-00000/{end}")[0] for end in fakes.plan.endpoints] for _ in range(2)]
        control(fakes, worker=0, fault="none")
        assert answers == [[200, 500 if name == "libvirt-500" else 200]] * 2
        assert (time.monotonic() - start_s > 4) == name.startswith("uneven")
        assert all(get(fakes, f"/worker-00000/{end}")[0] == 200 for end in fakes.plan.endpoints)


def test_slow_delays_the_page_of_one_worker(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="slow", delay_s=0.5)
    start = time.monotonic()
    fetch(fakes, 1)
    between = time.monotonic()
    assert fetch(fakes) == page
    assert between - start < 0.4
    assert time.monotonic() - between >= 0.5
    control(fakes, worker=0, fault="slow")
    start = time.monotonic()
    fetch(fakes)
    assert time.monotonic() - start >= SMALL.slow_s


def test_hang_does_not_respond_and_affects_one_worker(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="hang")
    with pytest.raises(TimeoutError):
        get(fakes, "/worker-00000/metrics", timeout_s=0.5)
    assert fetch(fakes, 1)


def test_500_is_an_http_error(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="500")
    assert get(fakes, "/worker-00000/metrics")[0] == 500


def test_empty_is_a_response_without_a_body(fakes: FakeWorkers) -> None:
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


def test_truncated_body_is_shorter_than_its_content_length(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="truncated-body")
    with pytest.raises(http.client.IncompleteRead) as error:
        get(fakes, "/worker-00000/metrics")
    assert error.value.partial == page[: len(page) // 2]


def test_stale_page_keeps_its_epoch(fakes: FakeWorkers, clock: Clock) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="stale", seconds=60)
    clock.now_s += 30
    assert fetch(fakes) == page
    clock.now_s += 31
    assert value(fetch(fakes), "global_probe_epoch") >= value(page, "global_probe_epoch") + 60_000


def test_endless_repeats_the_page(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="endless")
    with connected(fakes) as connection:
        connection.request("GET", "/worker-00000/metrics")
        response = connection.getresponse()
        for _ in range(5):
            assert response.read(len(page)) == page
    # The server goes on after the client has closed the connection.
    assert fetch(fakes, 1)


def test_redirect_leads_to_another_redirect(fakes: FakeWorkers) -> None:
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


def test_gzip_bomb_is_small_and_expands(fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attacks._BOMB_MB == 256
    # A smaller one is compressed in less time.
    monkeypatch.setattr(attacks, "_BOMB_MB", 8)
    attacks.zeros_compressed.cache_clear()
    try:
        control(fakes, worker=0, fault="gzip-bomb")
        with connected(fakes, 60) as connection:
            connection.request("GET", "/worker-00000/metrics")
            response = connection.getresponse()
            body = response.read()
    finally:
        attacks.zeros_compressed.cache_clear()
    assert response.headers["Content-Encoding"] == "gzip"
    expanded = zlib.decompress(body, 31)
    assert expanded == bytes(8 << 20)
    assert len(body) < len(expanded) / 1000


def test_long_line_is_ten_megabytes(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    control(fakes, worker=0, fault="long-line")
    lines = fetch(fakes).split(b"\n")
    assert len(lines.pop(1)) == 10_000_000
    assert b"\n".join(lines) == page


def test_html_is_a_response_of_the_wrong_type(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="html")
    with connected(fakes) as connection:
        connection.request("GET", "/worker-00000/metrics")
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers.get_content_type() == "text/html"
        assert response.read().startswith(b"<!DOCTYPE html>")


def test_garbage_is_not_text(fakes: FakeWorkers) -> None:
    control(fakes, worker=0, fault="garbage")
    body = fetch(fakes)
    assert len(body) == 65536
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    assert len(gzip.compress(body)) > 65000


def test_large_escaped_and_blanks_lengthen_the_page(fakes: FakeWorkers) -> None:
    page = fetch(fakes)
    pages = {}
    for order in ({"fault": "large"}, {"fault": "escaped"}, {"fault": "blanks"}):
        control(fakes, worker=0, **order)
        pages[order["fault"]] = fetch(fakes)
    for hostile in pages.values():
        assert hostile.startswith(page)
        assert 7_000_000 < len(hostile) < 8 * 2**20
    assert pages["large"].count(b"_cpu_alloc 1\n") > 100_000
    assert pages["escaped"].count(b'\\"') > 3_000_000
    assert pages["escaped"].count(b"\n") == page.count(b"\n") + 4900
    assert pages["blanks"].count(b"\n \n") > 1_000_000


def test_names_of_new_vms_renamed_vms_and_new_perf_are_on_no_page_before(fakes: FakeWorkers) -> None:
    regular = set(samples(fetch(fakes)))
    for order in ({"fault": "renamed-vms"}, {"fault": "new-perf"}):
        control(fakes, worker=0, **order)
        first, second = (set(samples(fetch(fakes))) for _ in range(2))
        assert first - regular
        assert second - regular
        assert not (first - regular) & (second - regular)
    assert len(second) == len(regular) + 40 * (SMALL.vms + 1)
    control(fakes, worker=0, fault="new-vms")
    first_page, second_page = fetch(fakes), fetch(fakes)
    assert len(first_page) == len(second_page) > 7_000_000
    assert first_page[-100:] != second_page[-100:]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ({"fault": "continue"}, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"),
        ({"fault": "headers"}, b"HTTP/1.1 200 OK\r\nX-Filler: xxx"),
        ({"fault": "tiny-chunks"}, b"\r\n\r\n1\r\n\n\r\n1\r\n\n\r\n"),
        ({"fault": "chunk-extensions"}, b"\r\n\r\n1;x=yyy"),
        ({"fault": "drip"}, b"\r\n\r\n\n\n\n"),
    ],
    ids=str,
)
def test_flood_has_no_end_and_affects_one_worker(fakes: FakeWorkers, order: Any, expected: bytes) -> None:
    control(fakes, worker=0, **order)
    host, port = fakes.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /worker-00000/metrics HTTP/1.1\r\nHost: w\r\n\r\n")
        received = bytearray()
        while expected not in received or len(received) < 2000:
            received += connection.recv(1000)
    assert fetch(fakes, 1)


def cpu_time(fakes: FakeWorkers, worker: int, vm: int) -> str:
    return f"domain_{fakes.workers[worker].names[vm].replace('-', '')}_cpu_cputime"


def test_reset_restarts_all_counters(fakes: FakeWorkers, clock: Clock) -> None:
    before, other = fetch(fakes), fetch(fakes, 1)
    assert control(fakes, worker=0, fault="reset")[0] == 200
    assert fetch(fakes) == before
    clock.now_s += 10
    after = samples(fetch(fakes))
    for name, old in samples(before).items():
        if COUNTERS.search(name) and "last_update" not in name and old > 1_000_000:
            assert 0 <= after[name] < old / 100, name
    # The CPUs have run for ten seconds.
    assert sum(after[f"vmprobe_global_cpu_{kind}"] for kind in ("user", "kernel", "idle", "iowait")) == pytest.approx(
        10e9 * after["vmprobe_global_cpu_total"], rel=0.01
    )
    assert value(fetch(fakes, 1), cpu_time(fakes, 1, 0)) > value(other, cpu_time(fakes, 1, 0))


def test_vm_restart_restarts_the_counters_of_one_vm(fakes: FakeWorkers, clock: Clock) -> None:
    clock.now_s += 3600
    before = samples(fetch(fakes, 2))
    assert control(fakes, worker=2, fault="vm-restart", vm=1)[0] == 200
    clock.now_s += 5
    after = samples(fetch(fakes, 2))
    assert 0 < after[f"vmprobe_{cpu_time(fakes, 2, 1)}"] <= 16 * 5e9
    for name in [cpu_time(fakes, 2, 0), "global_cpu_user", "global_cpu_idle"]:
        assert after[f"vmprobe_{name}"] >= before[f"vmprobe_{name}"] > 16 * 5e9


def test_vm_leaves_and_returns_with_new_counters_while_those_of_the_host_grow(fakes: FakeWorkers, clock: Clock) -> None:
    pages = [fetch(fakes, 1)]
    assert control(fakes, worker=1, fault="vm-leaves")[1]["away"] == {"1": [fakes.workers[1].names[0]]}
    assert control(fakes, worker=1, fault="vm-leaves", vm=3)[0] == 200
    for fault in (None, "vm-returns", "vm-returns"):
        clock.now_s += 5
        if fault is not None:
            assert control(fakes, worker=1, fault=fault)[0] == 200
            clock.now_s += 5
        pages.append(fetch(fakes, 1))
    present = [[f"vmprobe_{cpu_time(fakes, 1, vm)}" in samples(page) for vm in range(4)] for page in pages]
    assert present == [
        [True, True, True, True],
        [False, True, True, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert value(pages[2], cpu_time(fakes, 1, 0)) <= 16 * 10e9
    for kind in ("cpu_user", "cpu_kernel", "cpu_idle", "sched_runtime"):
        values = [value(page, f"global_{kind}") for page in pages]
        assert values == sorted(values)
    assert control(fakes, worker=1, fault="vm-returns")[0] == 400


def waits_of(fakes: FakeWorkers, worker: int) -> list[float]:
    """Seconds that each vCPU of a worker has waited."""
    page = get(fakes, f"/worker-{worker:05d}/libvirt")[1]
    return [seconds for name, seconds in samples(page).items() if name.startswith("libvirt_domain_vcpu_delay")]


def node_value(fakes: FakeWorkers, worker: int, name: str) -> float:
    return samples(get(fakes, f"/worker-{worker:05d}/node")[1])[name]


def test_load_changes_the_pages_of_one_worker_until_it_ends() -> None:
    clock = Clock()
    plan = Plan(workers=2, vms=4, cores=2, format="labels", dialect="tinkoff", other_metrics=0)

    def grown(worker: int) -> list[float]:
        before = waits_of(fakes, worker)
        clock.now_s += 10
        return [b - a for a, b in zip(before, waits_of(fakes, worker), strict=True)]

    with in_thread(plan, clock=clock) as fakes:
        vcpus = fakes.workers[0].vcpus.tolist()
        assert max(grown(0)) < 0.2
        status, state = control(fakes, **{"worker": 0, "fault": "contention", "seconds": 20})
        assert status == 200
        assert state["faults"]["0"] == {"fault": "contention", "seconds_left": 20.0, "count_left": None}
        # 2 cores for all vCPUs but for the part of the host.
        assert grown(0) == pytest.approx([10 * (1 - 1.48 / sum(vcpus))] * sum(vcpus))
        assert max(grown(1)) < 0.2
        clock.now_s += 10
        assert control(fakes, worker=1, fault="none")[1]["faults"] == {}
        assert max(grown(0)) < 0.2
        assert control(fakes, **{"worker": "all", "fault": "quota", "vm": 1})[0] == 200
        waits = grown(0)
        assert waits[vcpus[0] : vcpus[0] + vcpus[1]] == [5.0] * vcpus[1]
        assert max(waits[: vcpus[0]]) < 0.2
        assert control(fakes, **{"worker": 0, "fault": "memory-pressure"})[0] == 200
        stalled, swapped = ("node_pressure_memory_stalled_seconds_total", "node_vmstat_pswpin")
        before = [node_value(fakes, 0, name) for name in (stalled, swapped)]
        assert max(grown(0)) < 0.2
        after = [node_value(fakes, 0, name) for name in (stalled, swapped)]
        assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([2.0, 20_000])
        assert node_value(fakes, 0, stalled) > node_value(fakes, 1, stalled)
        control(fakes, worker="all", fault="none")
        assert max(grown(1)) < 0.2


def test_load_that_one_worker_cannot_have_changes_none() -> None:
    with in_thread(Plan(workers=2, vms=2, format="labels")) as fakes:
        fakes.workers[0].stop_vm(1, fakes.workers[0].epoch_ms(int(time.time() * 1000)))
        for order, message in (
            ({"worker": "all", "fault": "contention"}, "give the node less with --cores"),
            ({"worker": "all", "fault": "quota", "vm": 1}, "worker 0 has no VM number 1 for quota"),
            ({"worker": "all", "fault": "quota", "count": 1}, "takes no count"),
            ({"worker": "all", "fault": "contention", "vm": 1}, "affects the whole worker"),
        ):
            status, answer = control(fakes, **order)
            assert status == 400
            assert message in answer["error"]
        assert fakes.state()["faults"] == {}
        assert all(worker.loads.current(2**50) is None for worker in fakes.workers)


def test_fault_ends_after_its_requests_or_seconds(fakes: FakeWorkers, clock: Clock) -> None:
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
def test_invalid_order_is_rejected_and_changes_nothing(fakes: FakeWorkers, order: Any) -> None:
    status, response = control(fakes, **order)
    assert status == 400
    assert response["error"]
    assert json.loads(get(fakes, "/control")[1])["faults"] == {}
