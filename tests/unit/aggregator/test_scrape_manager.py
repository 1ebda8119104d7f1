"""The aggregator among simulated workers: a node that is slow, dead, wrong or hostile does not affect the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from misc.fakeworkers.attacks import zeros_compressed
from misc.fakeworkers.faults import ANSWERS
from misc.fakeworkers.lies import LIES
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from model.aggregator.limits import PageLimits
from model.aggregator.metrics import AggregatorMetrics
from model.aggregator.rates import NodeRates
from model.aggregator.scrape_loop import ScrapeLoop
from model.aggregator.scrape_manager import ScrapeManager
from model.aggregator.scraper import open_session
from model.aggregator.settings import AggregatorSettings
from model.common.lifecycle import Pace, jitter
from model.common.logs import ProblemLog
from model.common.targets import LabelStub, Stub, VmprobeStub, parse_stubs
from model.samples import ScrapeSample
from model.store.settings import StoreSettings

#: Reason of failure of each fault of a worker; None: the scrape succeeds.
REASONS: dict[str, str | None] = {
    "slow": "timeout",
    "hang": "timeout",
    "500": "status",
    "empty": "page",
    "partial": "page",
    "cut": "page",
    "truncated-body": "connection",
    "endless": "size",
    "redirect": "status",
    "gzip-bomb": "page",
    "long-line": "size",
    "html": "page",
    "garbage": "page",
    "stale": None,
}


#: Likewise for the attacks, which test_hostile_nodes.py tests.
ATTACK_REASONS: dict[str, str | None] = {
    "large": "limit",
    "escaped": None,
    "new-vms": "limit",
    "renamed-vms": None,
    "new-perf": None,
    "blanks": None,
    "continue": "limit",
    "headers": "limit",
    "tiny-chunks": "limit",
    "chunk-extensions": "limit",
    "drip": "limit",
}


class Clock:
    """The time of workers and aggregator, in Unix seconds."""

    def __init__(self) -> None:
        self.now_s = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now_s


def settings(
    stubs: tuple[Stub, ...], delay_s: float = 0.25, max_page_bytes: int = 2**20, timeout_s: float = 10.0
) -> AggregatorSettings:
    store = StoreSettings(None, Path("unused"), 1.0)
    return AggregatorSettings(stubs, delay_s, timeout_s, max_page_bytes, 2**20, PageLimits(), 0, "127.0.0.1", store)


class Aggregator:
    """Scrapes all nodes in rounds, on the clock of the test."""

    def __init__(self, settings: AggregatorSettings, clock: Clock) -> None:
        self.samples: defaultdict[str, list[ScrapeSample]] = defaultdict(list)
        #: Of the thread that processed the last page of any node.
        self.thread = ""
        self.registry = CollectorRegistry()
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._manager = manager = ScrapeManager(settings, self._put, AggregatorMetrics(self.registry), clock, clock)
        self._session = self._loop.run_until_complete(self._open(settings))
        self.loops: list[ScrapeLoop] = manager.loops(self._session)

    async def _open(self, settings: AggregatorSettings) -> Any:
        return open_session(settings.timeout_s, settings.max_page_bytes)

    def _put(self, sample: ScrapeSample) -> None:
        self.samples[sample.node].append(sample)
        self.thread = threading.current_thread().name

    def run(self, rounds: int = 1, step_s: float = 1.0) -> None:
        async def scrape() -> None:
            await asyncio.gather(*(loop.scrape() for loop in self.loops))

        for _ in range(rounds):
            self._clock.now_s += step_s
            self._loop.run_until_complete(scrape())

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._manager._pool.close()
        self._loop.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fakes(clock: Clock) -> Iterator[FakeWorkers]:
    with in_thread(Plan(workers=3, vms=4, probe_delay_ms=0), clock=clock) as running:
        yield running


@pytest.fixture
def aggregate(clock: Clock) -> Iterator[Callable[[AggregatorSettings], Aggregator]]:
    opened: list[Aggregator] = []

    def open_aggregator(settings: AggregatorSettings) -> Aggregator:
        opened.append(Aggregator(settings, clock))
        return opened[-1]

    yield open_aggregator
    for aggregator in opened:
        aggregator.close()


Aggregate = Callable[[AggregatorSettings], Aggregator]


def stubs_of(fakes: FakeWorkers) -> tuple[Stub, ...]:
    return parse_stubs(fakes.stubs())


def test_every_fault_of_the_workers_has_a_reason() -> None:
    assert set(ANSWERS) == set(REASONS) | set(ATTACK_REASONS) | set(LIES)


def test_failing_node_does_not_affect_others(
    clock: Clock, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    faults = list(REASONS)
    zeros_compressed()  # compressing takes longer than the timeout of a scrape
    with in_thread(Plan(workers=len(faults) + 2, vms=4, probe_delay_ms=0), clock=clock) as fakes:
        stubs = stubs_of(fakes)
        # A page has 9 kB; an endless one exceeds the limit before the timeout.
        aggregator = aggregate(settings(stubs, max_page_bytes=2**16, timeout_s=0.8))
        aggregator.run(2)
        assert [len(aggregator.samples[stub.node]) for stub in stubs] == [2] * len(stubs)
        assert event_log.records == []
        for worker, fault in enumerate(faults):
            fakes.inject(worker, fault, delay_s=30.0) if fault == "slow" else fakes.inject(worker, fault)
        aggregator.samples.clear()
        aggregator.run(3)
    for stub in stubs[len(faults) :]:
        assert len(aggregator.samples[stub.node]) == 3
    for stub, fault in zip(stubs, faults, strict=False):
        reason = REASONS[fault]
        records = [record for record in event_log.records if stub.node in record.getMessage()]
        up = aggregator.value("scroogevm_node_up", node=stub.node)
        failures = aggregator.value("scroogevm_scrape_failures_total", node=stub.node, reason=reason or "")
        if reason is None:
            assert up == 1, fault
            assert len(aggregator.samples[stub.node]) <= 1, fault  # an unchanged page gives no further sample
            assert records == [], fault
        elif fault == "partial":
            # A page that is truncated after the last metric of the probe is complete for us.
            assert failures >= 1, fault
            assert records, fault
        else:
            assert failures == 3, fault
            assert up == 0, fault
            assert len(records) == 1, fault  # a lasting problem is logged once


def test_page_is_processed_in_a_thread_of_its_own_unless_those_before_it_were_cheap(
    clock: Clock, aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"cost": 0.0, "used": 0.0}

    def thread_time() -> float:
        seconds["used"] += seconds["cost"]
        return seconds["used"]

    with in_thread(Plan(workers=1, vms=4, probe_delay_ms=0), clock=clock) as fakes:
        aggregator = aggregate(settings(stubs_of(fakes)))
        monkeypatch.setattr("model.aggregator.scrape_loop.time.thread_time", thread_time)
        threads = []
        # Of four ms, an expensive one, and of four ms again.
        for cost_s in [0.004] * 10 + [0.1] + [0.004] * 20:
            seconds["cost"] = cost_s
            aggregator.run()
            threads.append(aggregator.thread.startswith("page"))
        # The expensive one delays others once; those after it do not, although they are cheap.
        assert threads == [True] * 2 + [False] * 9 + [True] * 5 + [False] * 15


def test_large_page_is_processed_in_a_thread_of_its_own(clock: Clock, aggregate: Aggregate) -> None:
    with in_thread(Plan(workers=1, vms=150, probe_delay_ms=0), clock=clock) as fakes:
        aggregator = aggregate(settings(stubs_of(fakes)))
        for _ in range(12):
            aggregator.run()
            assert aggregator.thread.startswith("page")


def test_scrape_that_hangs_does_not_delay_others_or_the_stop(fakes: FakeWorkers) -> None:
    stubs = stubs_of(fakes)
    fakes.inject(0, "hang")
    scrapes: dict[str, int] = defaultdict(int)
    registry = CollectorRegistry()
    manager = ScrapeManager(settings(stubs, 0.1, timeout_s=60.0), lambda _: None, AggregatorMetrics(registry))

    async def run_until_scraped() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(manager.run(stop))
        deadline_s = time.monotonic() + 20
        while min(scrapes[stub.node] for stub in stubs[1:]) < 3 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
            for stub in stubs:
                scrapes[stub.node] = int(registry.get_sample_value("scroogevm_scrapes_total", {"node": stub.node}) or 0)
        stop.set()
        await task

    start_s = time.monotonic()
    asyncio.run(run_until_scraped())
    assert [scrapes[stub.node] >= 3 for stub in stubs] == [False, True, True]
    assert time.monotonic() - start_s < 20


def test_recovery_of_a_node_is_logged_and_its_samples_are_stored(
    fakes: FakeWorkers, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    node = fakes.url(0)
    fakes.inject(0, "500", count=3)
    aggregator = aggregate(settings(stubs_of(fakes)[:1]))
    aggregator.run(5)
    assert len(aggregator.samples[node]) == 2
    messages = [record.getMessage() for record in event_log.records]
    assert messages == [f"{node}: HTTP status 500", f"{node}: recovered"]


def test_changed_cause_of_a_failure_is_logged(
    fakes: FakeWorkers, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    node = fakes.url(0)
    aggregator = aggregate(settings(stubs_of(fakes)[:1]))
    for fault in ("500", "html"):
        fakes.inject(0, fault)
        aggregator.run(2)
    messages = [record.getMessage() for record in event_log.records]
    assert messages == [f"{node}: HTTP status 500", f"{node}: no metric of prefix 'vmprobe' on the page"]


def test_stale_page_is_logged_once_and_recovers(
    fakes: FakeWorkers, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    """node_exporter serves the file of a vmprobe that has stopped for ever."""
    returning, stopped = fakes.url(0), fakes.url(1)
    aggregator = aggregate(settings(stubs_of(fakes)[:2]))
    fakes.inject(0, "stale", seconds=18.5)
    fakes.inject(1, "stale")
    aggregator.run(16)
    assert event_log.records == []  # 15 s without a change
    aggregator.run(2)
    assert [aggregator.value("scroogevm_node_up", node=node) for node in (returning, stopped)] == [0, 0]
    aggregator.run(3)
    assert [aggregator.value("scroogevm_node_up", node=node) for node in (returning, stopped)] == [1, 0]
    assert aggregator.value("scroogevm_scrape_failures_total", node=stopped, reason="stale") == 5
    assert sorted(record.getMessage() for record in event_log.records) == [
        f"{returning}: recovered",
        f"{returning}: the page has not changed for 16 s: its probe has stopped",
        f"{stopped}: the page has not changed for 16 s: its probe has stopped",
    ]
    assert len(aggregator.samples[stopped]) == 1
    assert len(aggregator.samples[returning]) > 3


def test_restart_of_a_worker_or_vm_gives_no_wrong_rates(fakes: FakeWorkers, aggregate: Aggregate) -> None:
    aggregator = aggregate(settings(stubs_of(fakes)[:2]))
    aggregator.run(8)
    fakes.inject(0, "reset")
    fakes.inject(1, "vm-restart")
    aggregator.run(12)
    for samples in aggregator.samples.values():
        assert len(samples) == 20
        for sample in samples:
            assert 0 <= sample.fields.get("cpu_usage", 0) <= sample.fields["cpu"]
            for fields in sample.domains.values():
                assert 0 <= fields.get("cpu_usage", 0) <= fields["cpu"] * 1.5
    # The counters of the host restart: there is no rate then, nor at the first sample.
    missing = [sum("cpu_usage" not in sample.fields for sample in aggregator.samples[fakes.url(i)]) for i in range(2)]
    assert missing == [2, 1]


def test_number_of_vms_follows_a_vm_that_leaves_and_returns(fakes: FakeWorkers, aggregate: Aggregate) -> None:
    aggregator = aggregate(settings(stubs_of(fakes)[:1]))
    aggregator.run(2)
    fakes.inject(0, "vm-leaves", vm=1)
    aggregator.run(2)
    fakes.inject(0, "vm-returns", vm=1)
    aggregator.run(2)
    numbers = [sample.fields["vm_number"] for sample in aggregator.samples[fakes.url(0)]]
    assert numbers == [4, 4, 3, 3, 4, 4]


def test_delay_of_the_probe_is_the_interval_unless_one_is_configured(clock: Clock, aggregate: Aggregate) -> None:
    with in_thread(Plan(workers=1, vms=1, probe_delay_ms=300), clock=clock) as fakes:
        own, configured = aggregate(settings(stubs_of(fakes), 0.0)), aggregate(settings(stubs_of(fakes), 2.0))
        assert own.loops[0].current_interval_s == 5.0  # until the first scrape
        own.run()
        configured.run()
    assert own.loops[0].current_interval_s == 1.0  # a page chooses no less
    assert configured.loops[0].current_interval_s == 2.0


def test_loop_scrapes_at_its_interval_and_counts_missed_scrapes(
    fakes: FakeWorkers, aggregate: Aggregate, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fakes.url(0)
    aggregator = aggregate(settings(stubs_of(fakes)[:1], 2.0))
    (loop,) = aggregator.loops
    start_s, times = clock.now_s, []

    async def wait(pace: Pace) -> None:
        clock.now_s = max(clock.now_s, pace._next)
        times.append(clock.now_s - start_s)
        if len(times) == 3:
            clock.now_s += 5.0  # this scrape takes 5 s
        if len(times) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(Pace, "wait", wait)
    loop.groups = 2**20
    with pytest.raises(asyncio.CancelledError):
        aggregator._loop.run_until_complete(loop.run())
    first_s = 2.0 * jitter(node, 2**20)
    assert times == pytest.approx([first_s + offset for offset in (0, 2, 4, 10, 12, 14)], abs=1e-3)
    assert aggregator.value("scroogevm_scrapes_missed_total", node=node) == 2
    assert len(aggregator.samples[node]) == 5


def test_unchanged_page_is_stored_once(clock: Clock, aggregate: Aggregate) -> None:
    with in_thread(Plan(workers=1, vms=1, probe_delay_ms=1000), clock=clock) as fakes:
        aggregator = aggregate(settings(stubs_of(fakes)))
        aggregator.run(20, step_s=0.1)
    times = [sample.time_ms for sample in aggregator.samples[fakes.url(0)]]
    assert len(times) == len(set(times)) == 3
    assert aggregator.value("scroogevm_scrapes_total", node=fakes.url(0)) == 20


@pytest.mark.parametrize("dialect", ["kumina", "tinkoff", "inovex"])
def test_workers_with_label_exporters_give_the_same_fields(clock: Clock, aggregate: Aggregate, dialect: Any) -> None:
    with in_thread(Plan(workers=1, vms=3, format="labels", dialect=dialect), clock=clock) as fakes:
        (stub,) = stubs_of(fakes)
        assert isinstance(stub, LabelStub)
        aggregator = aggregate(settings((stub,)))
        aggregator.run(5)
    sample = aggregator.samples[stub.node][-1]
    assert sample.time_ms == clock.now_s * 1000
    assert sample.fields["vm_number"] == 3
    assert 0 < sample.fields["cpu_usage"] <= sample.fields["cpu"]
    for fields in sample.domains.values():
        assert 0 <= fields["cpu_usage"] <= fields["cpu"] * 1.2
        assert ("mem_usage" in fields) == (dialect != "kumina")


def test_node_is_stored_without_vms_when_its_libvirt_exporter_does_not_respond(
    clock: Clock, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    with in_thread(Plan(workers=1, vms=3, format="labels"), clock=clock) as fakes:
        (stub,) = stubs_of(fakes)
        assert isinstance(stub, LabelStub)
        aggregator = aggregate(settings((LabelStub(stub.node, stub.node_exporter, "http://127.0.0.1:9/metrics"),)))
        aggregator.run(3)
    assert len(aggregator.samples[stub.node]) == 3
    for sample in aggregator.samples[stub.node]:
        assert sample.domains == {}
        assert "vm_number" not in sample.fields
    assert "cpu_usage" in aggregator.samples[stub.node][-1].fields
    assert aggregator.value("scroogevm_node_up", node=stub.node) == 0
    assert aggregator.value("scroogevm_scrape_failures_total", node=stub.node, reason="vms") == 3
    cause = "the libvirt exporter does not report them: Connection refused"
    assert [record.getMessage() for record in event_log.records] == [f"{stub.node}: VMs: {cause}"]


def test_clock_of_a_node_is_compared_with_the_clock_of_this_host(
    clock: Clock, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    skews_s = {"ahead": 3600.0, "same": 0.0, "behind": -3600.0}
    with contextlib.ExitStack() as opened:
        urls = {}
        for name, skew_s in skews_s.items():
            fakes = opened.enter_context(
                in_thread(Plan(workers=1, vms=1, probe_delay_ms=0), clock=lambda s=skew_s: clock() + s)
            )
            urls[name] = fakes.url(0)
        aggregator = aggregate(settings(parse_stubs([[url, "vmprobe"] for url in urls.values()])))
        aggregator.run(3)
    now_ms = clock.now_s * 1000
    assert [[s.time_ms for s in aggregator.samples[urls[name]]] for name in ("ahead", "same")] == [
        [now_ms - 2000, now_ms - 1000, now_ms]
    ] * 2
    assert aggregator.samples[urls["behind"]] == []
    for name, url in urls.items():
        assert aggregator.value("scroogevm_node_clock_skew_seconds", node=url) == skews_s[name]
    assert aggregator.value("scroogevm_scrape_failures_total", node=urls["behind"], reason="clock") == 3
    assert aggregator.value("scroogevm_samples_unconfirmed_total", node=urls["ahead"], reason="clock") == 3
    assert sorted(record.getMessage() for record in event_log.records) == sorted(
        [
            f"{urls['ahead']}: clock: 3600 s ahead of this host, samples get the time of this host",
            f"{urls['behind']}: the page is 3600 s old, or the clock of the node is behind by that time",
        ]
    )


def test_password_in_a_url_is_used_and_never_shown(
    fakes: FakeWorkers, aggregate: Aggregate, event_log: pytest.LogCaptureFixture
) -> None:
    event_log.set_level(logging.DEBUG)
    url = fakes.url(0).replace("http://", "http://user:s3cr3t@")
    dead = "http://user:s3cr3t@127.0.0.1:9/metrics"
    stubs = parse_stubs([[url, "vmprobe"], [dead, "vmprobe"]])
    aggregator = aggregate(settings(stubs))
    aggregator.run(3)
    assert list(aggregator.samples) == [fakes.url(0)]
    shown = event_log.text + repr(stubs) + repr(settings(stubs)) + generate_latest(aggregator.registry).decode()
    assert "s3cr3t" not in shown


def test_defect_at_one_node_stops_no_other(
    fakes: FakeWorkers, aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    update = NodeRates.update

    def fail_at_first_node(self: NodeRates, scrape: Any) -> ScrapeSample | None:
        if self.node == fakes.url(0):
            raise ZeroDivisionError("a defect")
        return update(self, scrape)

    monkeypatch.setattr(NodeRates, "update", fail_at_first_node)
    aggregator = aggregate(settings(stubs_of(fakes)))
    aggregator.run(3)
    assert [len(aggregator.samples[fakes.url(i)]) for i in range(3)] == [0, 3, 3]
    assert aggregator.value("scroogevm_scrape_failures_total", node=fakes.url(0), reason="internal") == 3
    assert "a defect" in event_log.text


def test_nodes_scraped_once_are_counted(fakes: FakeWorkers, clock: Clock) -> None:
    fakes.inject(1, "500")
    samples: list[ScrapeSample] = []
    metrics = AggregatorMetrics(CollectorRegistry())
    manager = ScrapeManager(settings(stubs_of(fakes)), samples.append, metrics, wall_clock=clock)
    assert asyncio.run(manager.scrape_once()) == 2
    assert sorted(sample.node for sample in samples) == [fakes.url(0), fakes.url(2)]


def test_metrics_have_the_name_of_the_node(fakes: FakeWorkers, aggregate: Aggregate) -> None:
    aggregator = aggregate(settings((VmprobeStub(fakes.url(0), fakes.url(0), "vmprobe"),)))
    aggregator.run()
    text = generate_latest(aggregator.registry).decode()
    for name in ("scrapes_total", "scrape_duration_seconds_count", "node_up", "page_bad_lines"):
        assert f'scroogevm_{name}{{node="{fakes.url(0)}"}}' in text


# --- pace and problem log ---------------------------------------------------------------------------


def test_pace_does_not_drift_and_skips_times_that_have_passed() -> None:
    now = [100.0]
    pace = Pace(2.0, clock=lambda: now[0])
    assert pace._next == 102.0
    now[0] = 102.3  # 0.3 s of work do not move the next time
    assert pace.advance(5.0) == 0
    assert pace._next == 107.0
    now[0] = 123.0  # the machine was suspended: 112, 117 and 122 have passed
    assert pace.advance(5.0) == 3
    assert pace._next == 127.0


def test_pace_waits_for_the_next_time_and_not_for_one_that_has_passed() -> None:
    start_s = time.monotonic()
    asyncio.run(Pace(0.2).wait())
    assert time.monotonic() - start_s >= 0.2
    asyncio.run(asyncio.wait_for(Pace(-60.0).wait(), 5.0))


@pytest.mark.parametrize(("nodes", "groups", "largest"), [(1000, 63, 32), (17, 2, 17), (16, 1, 16), (1, 1, 1)])
def test_nodes_are_scraped_in_groups_that_are_spread_over_the_interval(nodes: int, groups: int, largest: int) -> None:
    urls = [f"http://worker{i}:9100/metrics" for i in range(nodes)]
    stubs: list[Stub] = [VmprobeStub(url, url, "vmprobe") for url in urls]
    manager = ScrapeManager(settings(stubs), lambda _: None, AggregatorMetrics(CollectorRegistry()))
    session: Any = None  # nothing is requested
    shares = Counter(jitter(loop.node, loop.groups) for loop in manager.loops(session))
    assert sorted(shares) == [k / groups for k in range(groups)]
    assert max(shares.values()) <= largest


def test_problem_and_recovery_are_logged_once(event_log: pytest.LogCaptureFixture) -> None:
    problems = ProblemLog(logging.getLogger("scroogevm.test"))
    problems.resolve("a")
    for _ in range(5):
        problems.report("a", "broken")
    for _ in range(5):
        problems.resolve("a")
    problems.report("a", "broken again")
    assert [record.getMessage() for record in event_log.records] == ["a: broken", "a: recovered", "a: broken again"]
