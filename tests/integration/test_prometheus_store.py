"""The store on a real Prometheus and a real VictoriaMetrics, and the programs on it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc.fakeworkers.machines import Plan, Worker, build_workers
from misc.fakeworkers.pages import render_libvirt, render_node
from model.ballooning.usage_cache import UsageCache
from model.samples import Samples
from model.store.base import Encoded, FleetRow, StoreRefused, StoreUnavailable
from model.store.prometheus import PrometheusStore
from model.store.prometheus_queries import parse_matchers
from model.store.settings import NodePair
from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.prometheus import OpenMetrics, prometheus_server, settings_of, victoria_metrics_server

SCRAPE_S = 15
END_S = int(time.time()) // SCRAPE_S * SCRAPE_S
START_S = END_S - 2400
FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss", "elapsed_time", "oc_cpu", "oc_mem")
LONG = "x" * 10_000
HOSTILE = ['odd"name\\{1}', "line\nbreak", ".*|a", "ünï", LONG]
#: The libvirt exporter of w1 does not respond, and w1 itself, in these seconds from the start.
DOWN = {"libvirt": (600, 780), "node": (1200, 1320)}


def history(end_s: int = END_S) -> str:
    start_s = end_s - END_S + START_S
    text = OpenMetrics([start_s + t for t in range(0, end_s - start_s + 1, SCRAPE_S)])
    plan = Plan(workers=3, vms=4, format="labels", dialect="tinkoff", other_metrics=0, cores=16)
    workers = build_workers(plan)
    for t in range(0, end_s - start_s + 1, SCRAPE_S):
        for name, worker in zip(("w1", "w2"), workers, strict=False):
            add_pages(text, name, worker, start_s + t, DOWN if name == "w1" else {}, t)
        # Two nodes that are left out: without a libvirt exporter, and with two.
        text.add_page(b"node_memory_MemTotal_bytes 1e9\n", {"instance": "lone:9100"}, start_s + t)
        for port in (9100, 9101):
            text.add_page(b"node_memory_MemTotal_bytes 1e9\n", {"instance": f"twice:{port}"}, start_s + t)
        text.add_page(b"libvirt_up 1\n", {"instance": "twice:9177"}, start_s + t)
        # The same host on another site.
        add_pages(text, "w2", workers[2], start_s + t, {}, t, site="b") if t % 30 == 0 else None
    for name in HOSTILE:
        labels = {"instance": "w2:9177", "domain": name}
        text.add("libvirt_domain_info_virtual_cpus", labels, lambda _: 1)
        text.add("libvirt_domain_info_maximum_memory_bytes", labels, lambda _: 2**30)
        text.add("libvirt_domain_info_cpu_time_seconds_total", labels, lambda at_s: 0.25 * (at_s - start_s))
    return text.text()


def add_pages(
    text: OpenMetrics, name: str, worker: Worker, at_s: int, down: dict[str, tuple[int, int]], t: int, site: str = ""
) -> None:
    at_ms = at_s * 1000
    for kind, port, render in (("node", 9100, render_node), ("libvirt", 9177, render_libvirt)):
        start, end = down.get(kind, (0, 0))
        if not start <= t < end:
            labels = {"instance": f"{name}{site}:{port}", "job": kind, **({"site": site} if site else {})}
            text.add_page(render(worker, at_ms), labels, at_s)


@pytest.fixture(scope="module")
def text() -> str:
    return history()


@pytest.fixture(scope="module", params=[prometheus_server, victoria_metrics_server])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: str) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("server"), text) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[PrometheusStore]:
    store = PrometheusStore(settings_of(url, match=parse_matchers('site=""')), clock=lambda: END_S)
    yield store
    store.close()


def test_hosts_with_both_exporters_are_the_nodes(store: PrometheusStore, caplog: pytest.LogCaptureFixture) -> None:
    assert store.nodes() == ["w1", "w2"]
    assert store.nodes() == ["w1", "w2"]
    assert [record.getMessage() for record in caplog.records] == [
        "nodes on Prometheus without a libvirt exporter are left out: 1: lone",
        "nodes on Prometheus with several exporters of one kind are left out, see PROMETHEUS_NODES: 1: twice",
    ]
    assert "2 nodes, 2 hosts left out" in store.check()


def test_nodes_are_named_by_a_map_or_by_a_label(url: str) -> None:
    pairs = {"mine": NodePair("w1:9100", "w1:9177"), "lost": NodePair("w9:9100", "w9:9177")}
    store = PrometheusStore(settings_of(url, nodes=pairs), clock=lambda: END_S)
    assert store.nodes() == ["lost", "mine"]
    assert store.read("mine", START_S * 1000, END_S * 1000, FIELDS).node.time_ms.size > 100
    assert store.read("lost", START_S * 1000, END_S * 1000, FIELDS).node.time_ms.size == 0
    assert store.last("lost") is None
    labelled = PrometheusStore(settings_of(url, node_label="site"))
    assert labelled.nodes() == ["b"]
    assert labelled.last("b") is not None


def test_period_includes_its_start_and_excludes_its_end(store: PrometheusStore) -> None:
    start_ms, end_ms = (START_S + 300) * 1000, (START_S + 360) * 1000
    times = [start_ms + 15_000 * i for i in range(4)]
    assert store.read("w2", start_ms, end_ms, FIELDS).node.time_ms.tolist() == times
    assert store.read("w2", start_ms - 1, end_ms + 1, FIELDS).node.time_ms.tolist() == [*times, end_ms]
    assert store.read("w2", start_ms + 1, end_ms - 1, FIELDS).node.time_ms.tolist() == times[1:]
    assert store.read("w2", end_ms, start_ms, FIELDS).node.time_ms.size == 0
    assert store.read("nobody", start_ms, end_ms, FIELDS).node.time_ms.size == 0


def test_only_requested_fields_are_read(store: PrometheusStore) -> None:
    period = store.read("w2", START_S * 1000, END_S * 1000, ("mem_usage",))
    assert {*period.node.fields} == {"mem_usage"} == {*period.domains["instance-00000004"].fields}
    assert not store.read("w2", START_S * 1000, END_S * 1000, ("cpu",), domains=False).domains


def test_any_name_of_a_domain_is_kept(store: PrometheusStore) -> None:
    period = store.read("w2", (START_S + 300) * 1000, END_S * 1000, FIELDS)
    for name in HOSTILE:
        np.testing.assert_allclose(period.domains[name].fields["cpu_usage"], 0.25, rtol=1e-6)
    assert set(store.last_configs("w2", START_S * 1000, END_S * 1000)) == set(period.domains) >= set(HOSTILE)


def test_silence_of_an_exporter_is_neither_idleness_nor_departure(store: PrometheusStore) -> None:
    start_ms = (START_S + 300) * 1000
    fields = store.read("w1", start_ms, END_S * 1000, FIELDS).node
    at = (fields.time_ms / 1000 - START_S).astype(int)
    unknown = np.isnan(fields.fields["oc_cpu"])
    # Here scrapes and points coincide: the last one before is a late one for a point.
    np.testing.assert_array_equal(unknown, (at > DOWN["libvirt"][0]) & (at < DOWN["libvirt"][1]))
    assert not ((at >= DOWN["node"][0]) & (at < DOWN["node"][1])).any()
    # The first rate after the gap covers it.
    assert fields.fields["elapsed_time"][at == DOWN["node"][1]].tolist() == [135_000.0]
    assert not np.isnan(fields.fields["cpu_usage"]).any()


def test_begin_and_newest_sample_are_found(store: PrometheusStore) -> None:
    assert store.begins_ms("w1", (START_S - 40 * 86400) * 1000, END_S * 1000) == START_S * 1000
    assert store.begins_ms("w1", (START_S + 100) * 1000, END_S * 1000) == (START_S + 105) * 1000
    assert store.begins_ms("w1", (START_S - 900) * 1000, START_S * 1000) is None
    last = store.last("w1")
    assert last is not None
    assert last.time_ms == END_S * 1000
    assert (last.fields["cpu"], len(last.domains)) == (16.0, 4)


def test_history_has_the_usage_of_single_reads(store: PrometheusStore) -> None:
    start_ms, end_ms = (START_S + 900) * 1000 // 300_000 * 300_000, END_S * 1000
    found = dict(store.history(["w2", "w1"], start_ms, end_ms, 1800))
    assert sorted(found) == ["w1", "w2"]
    for node, period in found.items():
        expected = store.read(node, start_ms, end_ms, FIELDS)
        assert np.median(np.diff(period.node.time_ms)) == 60_000
        assert period.domains.keys() == expected.domains.keys()
        assert mean_usage(period.node) == pytest.approx(mean_usage(expected.node), rel=0.02)
        for name, samples in period.domains.items():
            for field in ("cpu", "mem"):
                assert np.nanmax(samples.fields[field]) == np.nanmax(expected.domains[name].fields[field])


def mean_usage(samples: Samples) -> float:
    known = ~np.isnan(samples.fields["cpu_usage"])
    return float(np.average(samples.fields["cpu_usage"][known], weights=samples.fields["elapsed_time"][known]))


def test_server_that_refuses_large_queries_gives_the_same(tmp_path: Path, text: str) -> None:
    with prometheus_server(tmp_path / "p", text, options=["--query.max-samples=3000"]) as url:
        whole = PrometheusStore(settings_of(url, match=parse_matchers('site=""'), max_samples=20_000))
        halved = PrometheusStore(settings_of(url, match=parse_matchers('site=""')))
        for node in ("w1", "w2"):
            periods = [of.read(node, START_S * 1000, END_S * 1000, FIELDS) for of in (whole, halved)]
            for name in FIELDS:
                np.testing.assert_allclose(periods[0].node.fields[name], periods[1].node.fields[name], rtol=1e-6)
            assert not np.isnan(periods[0].node.fields["oc_cpu"]).all()


def test_store_is_read_only_and_has_no_counts_of_masters(store: PrometheusStore) -> None:
    with pytest.raises(StoreRefused, match="read only"):
        store.write([Encoded("", 0, 0)])
    with pytest.raises(StoreRefused, match="read only"):
        store.write_fleet(FleetRow("m", 0, {}))
    assert store.read_fleet(0, END_S * 1000) == []


def test_ballooning_reads_the_memory_of_guests(store: PrometheusStore) -> None:
    cache = UsageCache(store, 1200)
    cache.refresh(["w2"], END_S + 1)
    usage = cache.usage("w2", END_S + 1)
    assert usage is not None
    assert usage["instance-00000004"].usage_mb > 0
    assert usage["instance-00000004"].rss_mb > 0
    assert math.isnan(usage["ünï"].usage_mb)


def test_server_that_ends_is_an_outage_and_the_nodes_stay(tmp_path: Path, text: str) -> None:
    now = [0.0]
    with prometheus_server(tmp_path / "p", text) as url:
        store = PrometheusStore(settings_of(url, match=parse_matchers('site=""')), monotonic=lambda: now[0])
        assert store.nodes() == ["w1", "w2"]
    now[0] = 1000.0
    assert store.nodes() == ["w1", "w2"]
    with pytest.raises(StoreUnavailable, match="Connection refused"):
        store.read("w1", START_S * 1000, END_S * 1000, FIELDS)
    with pytest.raises(StoreUnavailable, match="Connection refused"):
        PrometheusStore(settings_of(url)).nodes()


def program(name: str, folder: Path, url: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {
        **bare_environment(),
        "PROMETHEUS_URL": url,
        "PROMETHEUS_MATCH": 'site=""',
        "STATE_ENDPOINT": str(folder / "status.json"),
        "SCHED_SCOPE_S": "600",
        "SCHED_SCOPE_SLICE_S": "300",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "2",
        "LIBVIRT_NODES": '{"w2": "test:///default"}',
        **env,
    }
    command = [sys.executable, str(ROOT / name), *arguments]
    return subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("env", "nodes"),
    [
        ({}, ["w1", "w2"]),
        ({"SCHED_NODES": '["w2"]'}, ["w2"]),
        ({"PROMETHEUS_NODES": '{"mine": {"node": "w1:9100", "libvirt": "w1:9177"}}'}, ["mine"]),
        ({"PROMETHEUS_NODE_LABEL": "site", "PROMETHEUS_MATCH": 'site="b"'}, ["b"]),
        ({"PROMETHEUS_STEP_S": "30", "PROMETHEUS_TIMEOUT_S": "20", "PROMETHEUS_MAX_SAMPLES": "9000"}, ["w1", "w2"]),
        ({"PROMETHEUS_QUERIES_AT_ONCE": "1", "PROMETHEUS_HEADERS": '{"X-Scope-OrgID": "a"}'}, ["w1", "w2"]),
        ({"PROMETHEUS_TOKEN": "t"}, ["w1", "w2"]),
        ({"PROMETHEUS_USER": "u", "PROMETHEUS_PASSWORD": "p"}, ["w1", "w2"]),
    ],
)
def test_every_setting_is_accepted_by_the_check(
    url: str, tmp_path: Path, env: dict[str, str], nodes: list[str]
) -> None:
    checked = program("scroogevm.py", tmp_path, url, "--check", "--json", **env)
    rows = json.loads(checked.stdout)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [row["target"] for row in rows[:-1]] == nodes
    assert "16 cores" in checked.stdout


def test_check_names_what_is_missing(url: str, tmp_path: Path) -> None:
    checked = program("scroogevm.py", tmp_path, url, "--check", SCHED_NODES='["w3"]')
    assert checked.returncode == 1
    assert "not found on the server; it has w1, w2" in checked.stdout
    assert "not a file" in program("scroogevm.py", tmp_path, url, "--check", PROMETHEUS_CA="/nowhere").stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", [prometheus_server, victoria_metrics_server])
def test_estimator_publishes_the_nodes_that_it_finds(server: Any, tmp_path: Path) -> None:
    with server(tmp_path / "server", history(int(time.time()) // SCRAPE_S * SCRAPE_S)) as url:
        run = program("scroogevm.py", tmp_path, url, "--once", "--strategy=percentile", SCHED_GUARDS="0")
    assert run.returncode == 0, run.stderr
    published = strict_json((tmp_path / "status.json").read_bytes())
    assert sorted(published) == ["w1", "w2"]
    assert 0 < published["w2"]["free_cpu"] < 16
    assert published["w2"]["cpu"]["booked"] > 0
