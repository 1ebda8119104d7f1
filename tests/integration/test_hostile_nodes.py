"""Hostile nodes: what they send is bounded, they are scraped less often, and their names fill no memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import in_thread
from model.aggregator.connection import BoundedHandler, open_connector
from model.aggregator.exposition import LimitError, PageError
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.limits import PageLimits, VmLimit
from model.aggregator.throttle import CPU_SHARE, Throttle
from model.aggregator.vmprobe import VmprobeReader
from model.aggregator.vmprobe_names import MOST_PERF_METRICS, UsedMetrics, split_name
from model.aggregator.worker_pool import WorkerPool
from tests.unit.aggregator.test_scrape_manager import ATTACK_REASONS, Aggregator, Clock, settings, stubs_of

NODE = "".join(
    f"v_global_{name} {value}\n"
    for name, value in [
        ("probe_epoch", "1795357894930"),
        *(("cpu_total", 8), ("cpu_user", 5), ("cpu_kernel", 5), ("memory_total", 9), ("memory_available", 5)),
    ]
)


def page(*vms: str, more: str = "", epoch: int = 0) -> bytes:
    lines = [f"v_domain_{vm}_{metric} 1\n" for vm in vms for metric in ("cpu_alloc", "cpu_cputime", "memory_alloc")]
    return (NODE.replace("894930", f"{894930 + epoch}") + "".join(lines) + more).encode()


@pytest.fixture
def aggregate() -> Iterator[Callable[..., Aggregator]]:
    opened: list[Aggregator] = []

    def open_aggregator(*arguments: Any, **options: Any) -> Aggregator:
        opened.append(Aggregator(settings(*arguments, **options), clock))
        return opened[-1]

    clock = Clock()
    open_aggregator.clock = clock  # type: ignore[attr-defined]
    yield open_aggregator
    for aggregator in opened:
        aggregator.close()


@pytest.mark.parametrize("format_", ["vmprobe", "labels"])
@pytest.mark.parametrize("attack", ATTACK_REASONS)
def test_attack_is_refused_and_affects_no_other_node(attack: str, format_: str, aggregate: Any) -> None:
    plan = Plan(workers=2, vms=4, probe_delay_ms=0, format=format_)
    with in_thread(plan, clock=aggregate.clock) as fakes:
        hostile, good = stubs_of(fakes)
        aggregator = aggregate((hostile, good), max_page_bytes=8 * 2**20, timeout_s=60.0)
        aggregator.run(2)
        fakes.inject(0, attack)
        aggregator.run(3)
    assert len(aggregator.samples[good.node]) == 5
    failures = {
        reason: aggregator.value("scroogevm_scrape_failures_total", node=hostile.node, reason=reason)
        for reason in ("limit", "page", "size", "timeout", "connection", "internal")
    }
    expected = ATTACK_REASONS[attack]
    if expected is not None:
        assert failures == {**dict.fromkeys(failures, 0.0), expected: 3.0}
    else:
        assert failures["internal"] == failures["limit"] == 0
        assert aggregator.value("scroogevm_scrape_cpu_seconds_total", node=hostile.node) > 0
    backoff_s = aggregator.value("scroogevm_scrape_interval_seconds", node=hostile.node)
    assert backoff_s >= 8.0 if expected == "limit" else backoff_s > 0
    assert aggregator.value("scroogevm_scrape_interval_seconds", node=good.node) == 0.25


@pytest.mark.parametrize("fault", ["500", "hang", "html", "empty", "truncated-body", "redirect"])
def test_failure_that_costs_nothing_does_not_slow_the_node_down(fault: str, aggregate: Any) -> None:
    with in_thread(Plan(workers=1, vms=2, probe_delay_ms=0), clock=aggregate.clock) as fakes:
        aggregator = aggregate(stubs_of(fakes), timeout_s=0.2)
        aggregator.run()
        fakes.inject(0, fault)
        aggregator.run(5)
    assert aggregator.value("scroogevm_node_up", node=fakes.url(0)) == 0
    assert aggregator.value("scroogevm_scrape_interval_seconds", node=fakes.url(0)) == 0.25


def test_refused_connection_does_not_slow_the_node_down(aggregate: Any) -> None:
    from model.common.targets import parse_stubs

    aggregator = aggregate(parse_stubs([["http://127.0.0.1:9/metrics", "v"]]))
    aggregator.run(5)
    assert aggregator.value("scroogevm_scrape_interval_seconds", node="http://127.0.0.1:9/metrics") == 0.25


def test_expensive_node_is_scraped_less_often_with_one_log_line(
    aggregate: Any, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    cpu_s = itertools.count()
    with in_thread(Plan(workers=1, vms=2, probe_delay_ms=0), clock=aggregate.clock) as fakes:
        node = fakes.url(0)
        aggregator = aggregate(stubs_of(fakes), 1.0)
        monkeypatch.setattr("model.aggregator.scrape_loop.time", SimpleNamespace(thread_time=lambda: next(cpu_s)))
        aggregator.run(4)
        assert aggregator.value("scroogevm_scrape_interval_seconds", node=node) > 60
        assert aggregator.value("scroogevm_scrape_cpu_seconds_total", node=node) >= 4
        monkeypatch.undo()
        aggregator.run(2, step_s=200.0)
    assert aggregator.value("scroogevm_scrape_interval_seconds", node=node) == 1.0
    messages = [record.getMessage() for record in event_log.records]
    assert [message.startswith(f"{node}: cost of its pages: ") for message in messages] == [True, True]
    assert messages[1].endswith("recovered")


def test_skipped_scrapes_of_an_expensive_node_are_counted(aggregate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from model.common.lifecycle import Pace

    clock = aggregate.clock
    with in_thread(Plan(workers=1, vms=2, probe_delay_ms=0), clock=clock) as fakes:
        fakes.inject(0, "continue")
        aggregator = aggregate(stubs_of(fakes), 1.0)
        start_s, times = clock.now_s, []

        async def wait(pace: Pace) -> None:
            clock.now_s = max(clock.now_s, pace._next)
            times.append(clock.now_s - start_s)
            if len(times) == 9:
                raise asyncio.CancelledError

        monkeypatch.setattr(Pace, "wait", wait)
        with pytest.raises(asyncio.CancelledError):
            aggregator._loop.run_until_complete(aggregator.loops[0].run())
    pauses = [round(b - a) for a, b in itertools.pairwise(times)]
    assert pauses == [4, 8, 16, 32, 60, 60, 60, 60]
    assert aggregator.value("scroogevm_scrapes_throttled_total", node=fakes.url(0)) == sum(pauses) - len(pauses)
    assert aggregator.value("scroogevm_scrapes_missed_total", node=fakes.url(0)) == 0


def test_throttle_keeps_the_cpu_time_of_a_node_within_its_share() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    total_s = 0.0
    for _ in range(200):
        total_s += 0.3
        now[0] += max(1.0, throttle.charge(0.3, flooded=False))
    assert total_s / now[0] == pytest.approx(CPU_SHARE, rel=0.02)
    assert throttle.charge(1e6, flooded=False) == 300.0


def test_single_expensive_scrape_is_within_the_burst() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for k in range(100):
        assert throttle.charge(0.3 if k % 10 == 0 else 0.003, flooded=False) == 0
        now[0] += 5.0


# --- limits of pages --------------------------------------------------------------------------------


def test_page_with_too_many_vms_or_series_is_refused_with_number_and_limit() -> None:
    reader = VmprobeReader("v", PageLimits(vms=2, series=100))
    assert set(reader.read(page("a", "b")).domains or ()) == {"a", "b"}
    with pytest.raises(LimitError, match=r"3 VMs on the page, more than AGGREG_MAX_VMS=2"):
        reader.read(page("a", "b", "c"))
    with pytest.raises(LimitError, match=r"112 series on the page, more than AGGREG_MAX_SERIES=100"):
        reader.read(page("a", "b", more="v_x 1\n" * 100))
    # Series of others do not count.
    assert reader.read(page("a", "b", more="other 1\n" * 1000, epoch=5)).domains
    labels = LabelReader(PageLimits(vms=2, series=100))
    node = b'node_memory_MemTotal_bytes 1\nnode_cpu_seconds_total{cpu="0",mode="user"} 1\n'
    vm = 'libvirt_domain_info_virtual_cpus{{domain="{}"}} 1\n'
    assert labels.read(node, 0.0, "".join(map(vm.format, "ab")).encode()).domains
    with pytest.raises(LimitError, match="3 VMs"):
        labels.read(node, 0.0, "".join(map(vm.format, "abc")).encode())
    with pytest.raises(LimitError, match="101 series"):
        labels.read(node, 0.0, vm.format("a").encode() * 101)
    with pytest.raises(LimitError, match="102 series"):
        labels.read(node * 51, 0.0)


def test_ever_new_vms_are_refused_until_older_ones_are_an_hour_away() -> None:
    now = [0.0]
    limit = VmLimit(10, lambda: now[0])
    for k in range(4):
        limit.check({f"{k}.{i}" for i in range(5)})
    with pytest.raises(LimitError, match=r"25 VMs within an hour, more than 2 times AGGREG_MAX_VMS=10"):
        limit.check({f"new{i}" for i in range(5)})
    limit.check({"0.1", "3.2"})
    now[0] = 1801.0
    with pytest.raises(LimitError):
        limit.check({f"new{i}" for i in range(5)})
    now[0] = 3602.0
    limit.check({f"new{i}" for i in range(5)})


def test_new_perf_counters_of_a_probe_are_used_up_to_a_limit() -> None:
    metrics = UsedMetrics()
    seen: set[str] = set()
    for k in range(50):
        names = [f"domain_a_perf_n{k}x{i}".encode() for i in range(10)] + [b"domain_a_cpu_alloc"]
        for place in metrics.select({name: split_name(name.decode()) for name in names}).values():
            if place is not None:
                seen.add(place[1])
    assert len(seen) == MOST_PERF_METRICS + 1
    assert "perf_n0x0" in seen
    assert "cpu_alloc" in seen
    for name in ("perf_", "perf_" + "x" * 65, "perf_A", "cpu_unknown"):
        assert UsedMetrics().select({b"n": ("a", name)}) == {b"n": None}


def sizes(reader: VmprobeReader) -> dict[str, int]:
    """Entries of all containers that a reader keeps."""
    found: dict[str, int] = {}
    waiting: list[tuple[str, Any]] = [("", reader)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, (dict, set, frozenset, list, tuple)):
            found[path] = len(value)
        elif type(value).__module__.startswith("model.aggregator"):
            names = getattr(value, "__dict__", None) or getattr(type(value), "__slots__", ())
            waiting += [(f"{path}.{name}", getattr(value, name)) for name in names]
    return found


@pytest.mark.parametrize(
    "build",
    [
        lambda k: page(*(f"vm{k}x{i}" for i in range(5)), epoch=k),
        lambda k: page("a", more="".join(f"v_domain_a_perf_n{k}x{i} 1\n" for i in range(20)), epoch=k),
        lambda k: page("a", more="".join(f"v_domain_a_perf_{'ab'[k % 2]}{i} 1\n" for i in range(20)), epoch=k),
        lambda k: page("a", more="".join(f"v_domain_a_cpu_n{k}x{i} 1\n" for i in range(20)), epoch=k),
        lambda k: page("a", more=f'v_global_x{{n="{k}"}} 1\nv_y{k} 2\n', epoch=k),
    ],
    ids=["VMs", "perf counters", "alternating counters", "unknown metrics", "unused names"],
)
def test_reader_keeps_no_names_of_older_pages(build: Callable[[int], bytes]) -> None:
    reader = VmprobeReader("v", PageLimits(vms=40))

    def read(start: int, end: int) -> dict[str, int]:
        for k in range(start, end):
            try:
                reader.read(build(k))
            except PageError:
                continue
        return sizes(reader)

    early, late = read(0, 100), read(100, 1000)
    assert sum(late.values()) <= 1.2 * sum(early.values()) + 10
    assert sum(late.values()) < 1000
    assert any("_names" in path for path in late)


def test_label_reader_reads_escaped_labels_by_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.aggregator import exposition

    monkeypatch.setattr(exposition, "parse_line", lambda line: pytest.fail(f"parsed one by one: {line!r}"))
    node = b'node_memory_MemTotal_bytes 1\nnode_cpu_seconds_total{cpu="0",mode="user"} 1\n'
    names = {r"a\"b": 'a"b', r"c\\d": "c\\d", r"e\nf": "e\nf", r"g\\nh": "g\\nh", r"i\j": r"i\j", "é,}{": "é,}{"}
    lines = "".join(f'libvirt_domain_info_virtual_cpus{{domain="{name}",x="y"}} 2\n' for name in names)
    assert set(LabelReader().read(node, 0.0, lines.encode()).domains or ()) == set(names.values())


@pytest.mark.parametrize(
    "line",
    [
        'libvirt_domain_info_virtual_cpus{{domain="{}"}} 1\n'.format('\\"' * 2_000_000),
        "libvirt_domain_info_virtual_cpus{{{}}} 1\n".format('a="\\\\",' * 500_000),
        'libvirt_domain_info_virtual_cpus{domain="' + "\\" * 3_999_999,
        'libvirt_domain_info_virtual_cpus{domain="a"}  1\n' * 40_000,
        'libvirt_domain_info_virtual_cpus{{domain="{}"}}  1\n'.format('\\"' * 900) * 2000,
        'libvirt_domain_vcpu_delay_seconds_total{{domain="{}",vcpu="0"}}  1\n'.format('\\"' * 900) * 2000,
        'libvirt_domain_vcpu_delay_seconds_total{domain="a",vcpu="0"}  1\n' * 40_000,
        'kubevirt_vmi_vcpu_seconds_total{namespace="a",name="b",id="0"}  1\n' * 40_000,
    ],
    ids=[
        *("escapes", "labels", "backslashes", "unusual lines", "unusual escapes"),
        *("unusual escapes of vCPUs", "unusual lines of vCPUs", "unusual lines of KubeVirt"),
    ],
)
def test_hostile_label_page_is_parsed_in_limited_time(line: str) -> None:
    import time

    node = b'node_memory_MemTotal_bytes 1\nnode_cpu_seconds_total{cpu="0",mode="user"} 1\n'
    good = b'libvirt_domain_info_virtual_cpus{domain="good"} 2\n'
    start_s = time.thread_time()
    scrape = LabelReader().read(node, 0.0, good + line.encode() + b"\n")
    assert "good" in (scrape.domains or {})
    assert time.thread_time() - start_s < 2.0  # measured: at most 0.5


# --- threads and connections ------------------------------------------------------------------------


def test_pool_returns_results_and_errors_of_jobs() -> None:
    import asyncio
    import threading

    before = set(threading.enumerate())
    pool = WorkerPool(2)

    async def run() -> None:
        assert await pool.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 / 0)
        assert await asyncio.gather(*(pool.run(lambda k=k: k) for k in range(50))) == list(range(50))  # type: ignore[misc]

    asyncio.run(run())
    pool.close()
    assert set(threading.enumerate()) <= before


def test_cancelled_job_does_not_run() -> None:
    import asyncio
    import threading

    pool, released, ran = WorkerPool(1), threading.Event(), []

    async def run() -> None:
        first = asyncio.create_task(pool.run(lambda: released.wait(30)))
        second = asyncio.create_task(pool.run(lambda: ran.append(1)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        released.set()
        assert await first

    asyncio.run(run())
    pool.close()
    assert ran == []


def test_connector_uses_bounded_connections() -> None:
    """aiohttp has no public way to choose them: this test fails when its internals change."""
    import asyncio

    async def build() -> None:
        connector = open_connector(2**20)
        try:
            handler = connector._factory()
            assert isinstance(handler, BoundedHandler)
            for name in ("set_response_params", "feed_data", "data_received", "set_exception", "_payload", "_parser"):
                assert hasattr(super(BoundedHandler, handler), name) or name in vars(handler), name
        finally:
            await connector.close()

    asyncio.run(build())
