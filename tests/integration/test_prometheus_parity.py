"""The same pages through our aggregator and through a real Prometheus give the same published figures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from misc.fakeworkers.machines import Plan, build_workers
from misc.fakeworkers.pages import render_libvirt, render_node
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.rates import NodeRates
from model.oversubscriptioncomputation import STRATEGIES
from model.slices import RESOURCES
from model.store.prometheus import PrometheusStore
from model.store.sqlite import SqliteStore
from tests.support.prometheus import OpenMetrics, prometheus_server, settings_of
from tests.unit.estimator.support import SLICE_S, LiveRun, settings_for

NODES = ("w0", "w1")
SCRAPE_S = 2
#: In November 2025: the usage of simulated workers depends on the time.
FIRST = 29_400_000
NUMBERS = range(FIRST, FIRST + 30)
#: Slices that a figure depends on: two scopes of three.
WINDOW = 6
#: Seconds after the begin in which a page is missing: of the node, and of its libvirt exporter.
NODE_GAPS = ((400, 412), (900, 935))
LIBVIRT_GAPS = ((600, 640), (1100, 1112))


@dataclass
class Recorded:
    """The pages of some workers, as both sides have received them."""

    folder: Path
    libvirt_gaps: tuple[tuple[int, int], ...] = ()
    text: OpenMetrics = field(default_factory=OpenMetrics)

    def record(self, dialect: str) -> SqliteStore:
        store = SqliteStore(self.folder / "store.sqlite", 10 * 86400)
        start_s = NUMBERS[0] * SLICE_S - 30
        plan = Plan(workers=len(NODES), vms=12, format="labels", dialect=dialect, other_metrics=0, cores=24)
        for node, worker in zip(NODES, build_workers(plan), strict=True):
            reader, rates = LabelReader(), NodeRates(node)
            draw = random.Random(node)
            events = iter(
                [
                    (200, lambda at_ms, worker=worker: worker.restart_vm(3, at_ms)),
                    (500, lambda at_ms, worker=worker: worker.stop_vm(2, at_ms)),
                    (800, lambda at_ms, worker=worker: worker.start_vm(2, at_ms)),
                    (910, lambda at_ms, worker=worker: worker.reboot(at_ms)),
                    (1000, lambda at_ms, worker=worker: worker.stop_vm(5, at_ms)),
                    (1004, lambda at_ms, worker=worker: worker.stop_vm(6, at_ms)),
                    (1500, lambda at_ms, worker=worker: worker.start_vm(6, at_ms)),
                ]
            )
            event, before_ms = next(events, None), 0
            for at_s in range(0, len(NUMBERS) * SLICE_S + 30, SCRAPE_S):
                at_ms = int((start_s + at_s + 0.4) * 1000) + draw.randrange(200)
                if event is not None and at_s >= event[0]:
                    # At once after a scrape: the aggregator waits for the node to use less where VMs vanish.
                    event[1](before_ms + 1)
                    event = next(events, None)
                before_ms = at_ms
                if is_in(NODE_GAPS, at_s):
                    continue
                node_page = render_node(worker, at_ms)
                libvirt_page = None if is_in(self.libvirt_gaps, at_s) else render_libvirt(worker, at_ms)
                sample = rates.update(reader.read(node_page, at_ms, libvirt_page, at_ms)).sample
                if sample is not None:
                    store.write([store.encode(sample)])
                self.text.add_page(node_page, {"instance": f"{node}:9100", "job": "node"}, at_ms / 1000)
                if libvirt_page is not None:
                    labels = {"instance": f"{node}:9177", "job": "libvirt"}
                    self.text.add_page(libvirt_page, labels, at_ms / 1000 + 0.05)
        return store


def is_in(gaps: tuple[tuple[int, int], ...], at_s: int) -> bool:
    return any(start <= at_s < end for start, end in gaps)


@pytest.fixture(scope="module", params=["kumina", "inovex"])
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SqliteStore, PrometheusStore]]:
    """What the aggregator stored of the pages, and a Prometheus that scraped them."""
    folder = tmp_path_factory.mktemp(request.param)
    recorded = Recorded(folder)
    store = recorded.record(request.param)
    with prometheus_server(folder / "prometheus", recorded.text.text()) as url:
        end_s = NUMBERS[-1] * SLICE_S + SLICE_S
        yield store, PrometheusStore(settings_of(url), clock=lambda: end_s)
    store.close()


def test_samples_agree_where_the_libvirt_exporter_fails(tmp_path: Path) -> None:
    """The domains are unknown then, not gone; rates cover the gap, as those of the aggregator."""
    recorded = Recorded(tmp_path, LIBVIRT_GAPS)
    store = recorded.record("tinkoff")
    fields = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss", "oc_cpu", "oc_mem", "elapsed_time")
    start_ms, end_ms = NUMBERS[0] * SLICE_S * 1000, (NUMBERS[-1] + 1) * SLICE_S * 1000
    with prometheus_server(tmp_path / "prometheus", recorded.text.text()) as url:
        theirs = PrometheusStore(settings_of(url), clock=lambda: end_ms / 1000)
        for node in NODES:
            expected, given = store.read(node, start_ms, end_ms, fields), theirs.read(node, start_ms, end_ms, fields)
            np.testing.assert_array_equal(given.node.time_ms, expected.node.time_ms)
            for name in ("cpu", "mem", "mem_usage", "cpu_usage", "elapsed_time", "oc_cpu", "oc_mem"):
                close = np.isclose(given.node.fields[name], expected.node.fields[name], rtol=1e-4, equal_nan=True)
                # The aggregator compares the first rates of domains after a gap with a shorter rate of the node, and
                # waits for a node that does not use less at once when domains vanish.
                assert (~close).sum() <= 8, name
            assert np.isnan(given.node.fields["oc_cpu"]).sum() >= 10
            assert given.domains.keys() == expected.domains.keys()
            for name, domain in given.domains.items():
                places = np.searchsorted(domain.time_ms, expected.domains[name].time_ms)
                for field_name in ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss"):
                    ours = domain.fields[field_name][places]
                    close = np.isclose(ours, expected.domains[name].fields[field_name], rtol=1e-4, equal_nan=True)
                    assert (~close & ~np.isnan(ours)).sum() <= 2, (name, field_name)
                    # After domains have vanished the usage of the others is missing for a while: they are fully booked.
                    assert (~close).sum() <= 0.05 * close.size, (name, field_name)
    store.close()


def test_nodes_and_their_interval_are_found(stores: tuple[SqliteStore, PrometheusStore]) -> None:
    _, found = stores
    assert found.nodes() == list(NODES)


def test_published_figures_of_every_strategy_agree(stores: tuple[SqliteStore, PrometheusStore], tmp_path: Path) -> None:
    runs = [
        LiveRun(settings_for(tmp_path / str(i), nodes=NODES), store).play(NUMBERS) for i, store in enumerate(stores)
    ]
    compared = 0
    #: The last slice of which only one side has figures: windows and previous figures differ for a while.
    apart: dict[tuple[str, str], int] = {}
    for number, ours, theirs in zip(NUMBERS, *runs, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            for resource in RESOURCES:
                expected, given = one.of(resource), other.of(resource)
                place = f"slice {number - FIRST} of {one.node}: {resource.name}"
                if (expected.state == "ok") != (given.state == "ok"):
                    apart[one.node, resource.name] = number
                if expected.state != "ok" or given.state != "ok":
                    continue
                assert expected.last is not None, place
                assert given.last is not None, place
                capacity = expected.last.config
                assert given.last.config == capacity, place
                assert given.last.booked_now == expected.last.booked_now, place
                recent = number - apart.get((one.node, resource.name), -100) <= WINDOW
                for name, free in expected.others.items():
                    compared += not recent
                    if not recent:
                        assert given.others[name] == pytest.approx(free, abs=0.02 * capacity), f"{place} {name}"
    possible = len(NUMBERS) * len(NODES) * len(RESOURCES) * len(STRATEGIES)
    assert compared > 0.5 * possible, (compared, possible, apart)
