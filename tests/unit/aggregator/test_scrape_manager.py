"""The aggregator among simulated workers: one that is slow, dead, lying or malicious harms itself alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from misc.fakeworkers.faults import ANSWERS, zeros_compressed
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers, in_thread
from model.aggregator import scrape_manager as aggregator
from model.aggregator.metrics import AggregatorMetrics
from model.aggregator.scrape_manager import ScrapeManager
from model.aggregator.settings import AggregatorSettings
from model.common.lifecycle import Pace, jitter
from model.common.logs import ProblemLog
from model.common.targets import LabelStub, Stub, VmprobeStub, parse_stubs
from model.samples import ScrapeSample
from model.store.settings import StoreSettings

TIMEOUT_S = 0.6
#: What a node does for as long as the test lasts, and why its scrapes fail; None: they do not.
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


def settings(stubs: tuple[Stub, ...], delay_s: float = 0.25, max_page_bytes: int = 2**20) -> AggregatorSettings:
    store = StoreSettings(None, Path("unused"), 1.0)
    return AggregatorSettings(stubs, delay_s, TIMEOUT_S, max_page_bytes, 2**20, 0, "127.0.0.1", store)


class Run:
    """An aggregator that ran for a while, and what came of it."""

    def __init__(self, chosen: AggregatorSettings, seconds: float) -> None:
        self.scraped: defaultdict[str, list[ScrapeSample]] = defaultdict(list)
        self.arrivals: defaultdict[str, list[float]] = defaultdict(list)
        self.registry = CollectorRegistry()
        scraping = ScrapeManager(chosen, self._put, AggregatorMetrics(self.registry))

        async def for_a_while() -> None:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, stop.set)
            await scraping.run(stop)

        asyncio.run(for_a_while())

    def _put(self, sample: ScrapeSample) -> None:
        self.scraped[sample.node].append(sample)
        self.arrivals[sample.node].append(time.monotonic())

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def fakes() -> Iterator[FakeWorkers]:
    with in_thread(Plan(workers=3, vms=4, probe_delay_ms=0)) as running:
        yield running


def stubs_of(fakes: FakeWorkers) -> tuple[Stub, ...]:
    return parse_stubs(fakes.stubs())


def test_list_of_faults_is_whole() -> None:
    assert set(ANSWERS) <= set(REASONS)


def test_no_node_harms_another(event_log: pytest.LogCaptureFixture) -> None:
    names = list(REASONS)
    zeros_compressed()  # a busy machine is at it for longer than a scrape may take
    with in_thread(Plan(workers=len(names) + 2, vms=4, probe_delay_ms=0)) as fakes:
        stubs = stubs_of(fakes)
        run_before = Run(settings(stubs), 1.5)
        assert len(run_before.scraped) == len(stubs)
        for worker, fault in enumerate(names):
            fakes.inject(worker, fault, delay_s=3.0) if fault == "slow" else fakes.inject(worker, fault)
        with event_log.at_level(logging.INFO, "scroogevm"):
            # A page has 9 kB; one without end is over this long before its time is.
            run = Run(settings(stubs, max_page_bytes=2**16), 3.0)
    for stub in stubs[len(names) :]:
        gaps = [b - a for a, b in zip(run.arrivals[stub.node], run.arrivals[stub.node][1:], strict=False)]
        assert len(run.scraped[stub.node]) >= 8
        assert max(gaps) < 1.0
    for stub, fault in zip(stubs, names, strict=False):
        reason = REASONS[fault]
        failures = run.value("scroogevm_scrape_failures_total", node=stub.node, reason=reason or "")
        if reason is None:
            assert run.value("scroogevm_node_up", node=stub.node) == 1, fault
            assert len(run.scraped[stub.node]) <= 1, fault  # the same page over and over is one tick
        else:
            assert failures >= 1, fault
            # A page that is cut behind the last figure of ours is whole to us.
            assert run.value("scroogevm_node_up", node=stub.node) == 0 or fault == "partial", fault
            # What is wrong for a while is told once.
            told = sum(stub.node in record.message for record in event_log.records)
            assert told == 1 or (fault == "partial" and told > 1), fault


def test_node_that_recovers_is_told_and_stored_again(fakes: FakeWorkers, event_log: pytest.LogCaptureFixture) -> None:
    stubs = stubs_of(fakes)[:1]
    fakes.inject(0, "500", seconds=0.7)
    with event_log.at_level(logging.INFO, "scroogevm"):
        run = Run(settings(stubs, 0.1), 2.0)
    assert run.scraped[stubs[0].node]
    assert [record.message.partition(": ")[2] for record in event_log.records] == ["HTTP status 500", "recovered"]


def test_page_whose_probe_has_stopped_is_told_once(
    fakes: FakeWorkers, event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """node_exporter shows the file of a vmprobe that has ended for ever."""
    monkeypatch.setattr(aggregator, "_STILL_S", 0.5)
    monkeypatch.setattr(aggregator, "_STILL_DELAYS", 0)
    stubs = stubs_of(fakes)[:2]
    fakes.inject(0, "stale", seconds=1.5)
    fakes.inject(1, "stale")
    with event_log.at_level(logging.INFO, "scroogevm"):
        run = Run(settings(stubs, 0.1), 2.5)
    back, gone = (stub.node for stub in stubs)
    assert [run.value("scroogevm_node_up", node=node) for node in (back, gone)] == [1, 0]
    assert run.value("scroogevm_scrape_failures_total", node=gone, reason="stale") >= 5
    said = {node: [record.message for record in event_log.records if node in record.message] for node in (back, gone)}
    assert [len(said[back]), len(said[gone])] == [2, 1]
    assert "its probe has stopped" in said[gone][0]
    assert "recovered" in said[back][1]
    assert len(run.scraped[gone]) == 1
    assert len(run.scraped[back]) > 3


def test_reboot_of_a_worker_gives_no_false_rates(fakes: FakeWorkers) -> None:
    import threading

    threading.Timer(0.8, lambda: fakes.inject(0, "reset")).start()
    threading.Timer(0.8, lambda: fakes.inject(1, "vm-restart")).start()
    run = Run(settings(stubs_of(fakes), 0.1), 2.0)
    for node in (fakes.url(0), fakes.url(1)):
        usages = [sample.fields.get("cpu_usage") for sample in run.scraped[node]]
        assert all(usage is None or 0 <= usage <= 512 for usage in usages)
        for sample in run.scraped[node]:
            for fields in sample.domains.values():
                assert 0 <= fields.get("cpu_usage", 0) <= fields["cpu"] * 1.5
    # The host's counters started anew: at the first sample, and at that moment, there is no rate.
    assert sum("cpu_usage" not in sample.fields for sample in run.scraped[fakes.url(0)]) == 2
    assert sum("cpu_usage" not in sample.fields for sample in run.scraped[fakes.url(1)]) == 1


def test_vm_that_leaves_and_returns(fakes: FakeWorkers) -> None:
    import threading

    threading.Timer(0.6, lambda: fakes.inject(0, "vm-leaves", vm=1)).start()
    threading.Timer(1.2, lambda: fakes.inject(0, "vm-returns", vm=1)).start()
    run = Run(settings(stubs_of(fakes)[:1], 0.1), 2.0)
    counts = [int(sample.fields["vm_number"]) for sample in run.scraped[fakes.url(0)] if "vm_number" in sample.fields]
    assert {counts[0], counts[-1]} == {4}
    assert 3 in counts


def test_delay_of_each_probe_is_taken_when_none_is_set() -> None:
    with in_thread(Plan(workers=1, vms=1, probe_delay_ms=300)) as fakes:
        run = Run(settings(stubs_of(fakes), delay_s=0.0), 6.5)
        # The first scrape comes within the first delay, 5 s; from then on it is the probe's.
        assert len(run.scraped[fakes.url(0)]) >= 4 or jitter(fakes.url(0)) > 0.8


def test_unchanged_page_is_stored_once() -> None:
    with in_thread(Plan(workers=1, vms=1, probe_delay_ms=1000)) as fakes:
        run = Run(settings(stubs_of(fakes), 0.1), 2.0)
    times = [sample.time_ms for sample in run.scraped[fakes.url(0)]]
    assert len(times) == len(set(times)) <= 4
    assert run.value("scroogevm_scrapes_total", node=fakes.url(0)) >= 15


@pytest.mark.parametrize("dialect", ["kumina", "tinkoff", "inovex"])
def test_workers_with_label_exporters_are_stored_alike(dialect: Any) -> None:
    with in_thread(Plan(workers=1, vms=3, format="labels", dialect=dialect)) as fakes:
        (stub,) = stubs_of(fakes)
        assert isinstance(stub, LabelStub)
        run = Run(settings((stub,), 0.3), 1.5)
    sample = run.scraped[stub.node][-1]
    assert sample.fields["vm_number"] == 3
    assert 0 < sample.fields["cpu_usage"] <= sample.fields["cpu"]
    for fields in sample.domains.values():
        assert 0 <= fields["cpu_usage"] <= fields["cpu"] * 1.2
        assert ("mem_usage" in fields) == (dialect != "kumina")


def test_node_whose_libvirt_exporter_is_silent_is_stored_without_vms() -> None:
    with in_thread(Plan(workers=1, vms=3, format="labels")) as fakes:
        (stub,) = stubs_of(fakes)
        assert isinstance(stub, LabelStub)
        dead = LabelStub(stub.node, stub.node_exporter, "http://127.0.0.1:9/metrics")
        run = Run(settings((dead,), 0.3), 1.0)
    assert run.scraped[stub.node]
    for sample in run.scraped[stub.node]:
        assert sample.domains == {}
        assert "vm_number" not in sample.fields


def test_password_in_a_url_is_used_and_never_shown(fakes: FakeWorkers, event_log: pytest.LogCaptureFixture) -> None:
    url = fakes.url(0).replace("http://", "http://user:s3cr3t@")
    dead = "http://user:s3cr3t@127.0.0.1:9/metrics"
    stubs = parse_stubs([[url, "vmprobe"], [dead, "vmprobe"]])
    with event_log.at_level(logging.DEBUG):
        run = Run(settings(stubs, 0.2), 0.8)
    assert list(run.scraped) == [fakes.url(0)]
    shown = event_log.text + repr(stubs) + repr(settings(stubs)) + generate_latest(run.registry).decode()
    assert "s3cr3t" not in shown


def test_fault_of_ours_in_one_node_stops_no_other(
    fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch, event_log: pytest.LogCaptureFixture
) -> None:
    from model.aggregator.rates import NodeRates

    real = NodeRates.update

    def update(self: NodeRates, scrape: Any) -> ScrapeSample | None:
        if self.node.endswith("00000/metrics"):
            raise ZeroDivisionError("a fault of ours")
        return real(self, scrape)

    monkeypatch.setattr(NodeRates, "update", update)
    run = Run(settings(stubs_of(fakes), 0.2), 1.0)
    assert fakes.url(0) not in run.scraped
    assert len(run.scraped[fakes.url(1)]) >= 3
    assert run.value("scroogevm_scrape_failures_total", node=fakes.url(0), reason="internal") >= 3


# --- pace -------------------------------------------------------------------------------------------


def test_pace_does_not_drift_and_leaves_out_what_is_past() -> None:
    now = [100.0]
    pace = Pace(2.0, clock=lambda: now[0])
    assert pace._next == 102.0
    now[0] = 102.3  # 0.3 s of work: the next moment is as it was planned
    assert pace.advance(5.0) == 0
    assert pace._next == 107.0
    now[0] = 123.0  # the machine slept: 112, 117 and 122 are past
    assert pace.advance(5.0) == 3
    assert pace._next == 127.0


def test_pace_ends_when_it_is_told_to() -> None:
    async def waits() -> bool:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        return await Pace(60.0).wait(stop)

    start = time.monotonic()
    assert asyncio.run(waits()) is False
    assert time.monotonic() - start < 5


def test_a_thousand_nodes_are_spread_over_the_period() -> None:
    shares = sorted(jitter(f"http://worker{i}:9100/metrics") for i in range(1000))
    assert jitter("x") == jitter("x")
    assert max(b - a for a, b in itertools.pairwise(shares)) < 0.02
    assert 80 < sum(share < 0.1 for share in shares) < 120


def test_changes_are_told_once(event_log: pytest.LogCaptureFixture) -> None:
    changes = ProblemLog(logging.getLogger("scroogevm.test"))
    with event_log.at_level(logging.INFO, "scroogevm"):
        changes.resolve("a")
        for _ in range(5):
            changes.report("a", "broken")
        for _ in range(5):
            changes.resolve("a")
        changes.report("a", "broken again")
    assert [record.message for record in event_log.records] == ["a: broken", "a: recovered", "a: broken again"]


def test_metrics_of_a_node_name_it_and_nothing_else(fakes: FakeWorkers) -> None:
    run = Run(settings((VmprobeStub(fakes.url(0), fakes.url(0), "vmprobe"),), 0.2), 0.6)
    text = generate_latest(run.registry).decode()
    for name in ("scrapes_total", "scrape_duration_seconds_count", "node_up", "page_bad_lines"):
        assert f'scroogevm_{name}{{node="{fakes.url(0)}"}}' in text
