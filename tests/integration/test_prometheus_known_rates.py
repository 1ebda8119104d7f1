"""The store over real servers whose history has known rates, resets, gaps and exporters that fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.samples import Period
from model.store.base import FleetRow, StoreRefused, StoreUnavailable
from model.store.prometheus import PrometheusStore
from model.store.prometheus_queries import parse_matchers
from model.store.settings import NodePair
from tests.support.prometheus import SERVERS, OpenMetrics, prometheus_server, settings_of
from tests.support.prometheus_pages import GB, P0, add_domain, add_node, after, constant, without
from tests.support.servers import free_port

#: Two hours from P0 on and ten minutes before, scraped every 15 s.
STEP_S = 15
END = P0 + 7200
ODD_HOST, ODD_VM = 'w"{}|.*\\', 'odd"name\\{1}|.*'
FIELDS = ("cpu", "mem", "cpu_usage", "mem_usage", "mem_rss", "elapsed_time", "oc_cpu", "oc_mem", "cpu_wait")


def history() -> str:
    page = OpenMetrics(range(P0 - 600, END + 1, STEP_S))
    add_node(page, "w1:9100", missing=(5000, 5300), reset_at=4000)
    page.add("libvirt_up", {"instance": "w1:9177"}, without(1800, 2700, constant(1)))
    down = (1800, 2700)
    add_domain(page, "w1:9177", "a", down)
    add_domain(page, "w1:9177", ODD_VM, down, rate=0.25)
    add_domain(page, "w1:9177", "off", down, info_vstate=constant(5))
    # The node would miss a domain that uses more.
    small = {"memory_stats_rss_bytes": constant(0.1 * GB)}
    add_domain(page, "w1:9177", "gone", down, rate=0.05, ends=3600, **small)
    add_domain(page, "w1:9177", "shrinks", down, info_virtual_cpus=after(3600, constant(8), constant(2)))
    add_node(page, "w2:9100", later_gb=2**12)
    page.add("libvirt_up", {"instance": "w2:9177"}, after(3600, constant(1), constant(0)))
    add_domain(page, "w2:9177", "b")
    add_node(page, "alone:9100")
    add_node(page, "twice:9100")
    add_node(page, "twice:9101")
    page.add("libvirt_up", {"instance": "twice:9177"}, constant(1))
    add_node(page, f"{ODD_HOST}:9100", later_gb=32)
    page.add("libvirt_up", {"instance": f"{ODD_HOST}:9177"}, constant(1))
    add_domain(page, f"{ODD_HOST}:9177", "c")
    return page.text()


@pytest.fixture(scope="module", params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param), history()) as address:
        yield address


@pytest.fixture
def store(url: str) -> Iterator[PrometheusStore]:
    with contextlib.closing(PrometheusStore(settings_of(url), clock=lambda: END)) as opened:
        yield opened


def read(store: PrometheusStore, node: str, start: int, end: int) -> Period:
    return store.read(node, (P0 + start) * 1000, (P0 + end) * 1000, FIELDS)


def test_nodes_are_the_hosts_with_one_exporter_of_each_kind(
    store: PrometheusStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.nodes() == sorted(["w1", "w2", ODD_HOST])
    assert "without a libvirt exporter are left out: 1: alone" in caplog.text
    assert "several exporters of one kind are left out, see PROMETHEUS_NODES: 1: twice" in caplog.text


def test_node_has_the_known_figures(store: PrometheusStore) -> None:
    node = read(store, "w1", 0, 1800).node
    assert node.time_ms.tolist() == [(P0 + STEP_S * k) * 1000 for k in range(120)]
    expected = {"cpu": 4, "mem": 16384, "cpu_usage": 1.5, "mem_usage": 4096, "elapsed_time": 15000}
    for name, value in expected.items():
        assert node.fields[name] == pytest.approx(np.full(120, value), rel=1e-6), name
    # a, the odd one and gone have two vCPUs and 3 GB each, one has eight; the one that is off counts nothing.
    assert node.fields["oc_cpu"] == pytest.approx(np.full(120, 14 / 4))
    assert node.fields["oc_mem"] == pytest.approx(np.full(120, 12 / 16))


@pytest.mark.parametrize(("start", "larger_from"), [(0, 5400), (3000, 6495), (4000, 7200), (5550, 0)])
def test_larger_memory_of_a_node_counts_after_an_hour(store: PrometheusStore, start: int, larger_from: int) -> None:
    node = read(store, ODD_HOST, start, 7200).node
    at = node.time_ms / 1000 - P0
    larger = node.fields["mem"] == 32768
    # What was before the period counts for all of the hour.
    assert set(at[~larger]) >= set(at[(at < 5400)])
    assert set(at[larger]) == set(at[at >= larger_from])
    np.testing.assert_array_equal(node.fields["mem"][~larger], 16384)
    np.testing.assert_allclose(node.fields["mem_usage"], 4096)


def test_memory_that_no_node_has_is_missing(store: PrometheusStore) -> None:
    node = read(store, "w2", 0, 7200).node
    np.testing.assert_array_equal(np.isnan(node.fields["mem"]), node.time_ms / 1000 - P0 >= 1800)


def test_domains_have_the_known_figures(store: PrometheusStore) -> None:
    domains = read(store, "w1", 0, 1800).domains
    assert sorted(domains) == sorted(["a", "gone", ODD_VM, "shrinks"])
    expected = {"cpu": 2, "mem": 3072, "cpu_usage": 0.5, "mem_usage": 2048, "mem_rss": 2048}
    for name, value in expected.items():
        assert domains["a"].fields[name] == pytest.approx(np.full(120, value), rel=1e-6), name
    assert domains[ODD_VM].fields["cpu_usage"] == pytest.approx(np.full(120, 0.25), rel=1e-6)
    assert np.isnan(domains["a"].fields["cpu_wait"]).all()


def test_neighbouring_periods_make_up_the_whole(store: PrometheusStore) -> None:
    whole = read(store, "w1", 600, 1200)
    parts = [read(store, "w1", 600, 907), read(store, "w1", 907, 1200)]
    assert np.concatenate([part.node.time_ms for part in parts]).tolist() == whole.node.time_ms.tolist()
    together = np.concatenate([part.domains["a"].fields["cpu_usage"] for part in parts])
    np.testing.assert_allclose(together, whole.domains["a"].fields["cpu_usage"])


def test_counter_that_starts_again_gives_no_rate(store: PrometheusStore) -> None:
    usage = read(store, "w1", 3900, 4200).node.fields["cpu_usage"]
    (missing,) = np.nonzero(np.isnan(usage))
    assert missing.tolist() == [7]  # 4005 s is the first scrape after the reset at 4000 s
    assert np.nanmin(usage) == pytest.approx(1.5, rel=1e-6)


def test_rate_over_a_gap_covers_the_gap(store: PrometheusStore) -> None:
    node = read(store, "w1", 4900, 5400).node
    times = [time_ms // 1000 - P0 for time_ms in node.time_ms.tolist()]
    # The last scrape before it, at 4995 s, is still shown one step later.
    assert not [time_s for time_s in times if 5010 < time_s < 5310]
    at = times.index(5310)
    assert node.fields["elapsed_time"][at] == 315_000
    assert node.fields["elapsed_time"][at + 1] == 15_000


def test_exporter_that_is_down_is_not_a_node_without_domains(store: PrometheusStore) -> None:
    period = read(store, "w1", 1800, 2700)
    assert np.isnan(period.node.fields["oc_cpu"][2:]).all()
    assert not np.isnan(period.node.fields["cpu_usage"]).any()
    assert period.domains["a"].time_ms.size <= 2
    again = read(store, "w1", 2700, 2800).domains["a"].fields["cpu_usage"]
    assert np.isnan(again[0])
    assert again[1:] == pytest.approx(np.full(again.size - 1, 0.5), rel=1e-6)


def test_exporter_that_does_not_reach_libvirt_knows_no_domains(store: PrometheusStore) -> None:
    period = read(store, "w2", 3600, 5400)
    assert np.isnan(period.node.fields["oc_cpu"]).all()
    assert not period.domains
    assert not np.isnan(read(store, "w2", 0, 3600).node.fields["oc_cpu"]).any()


def test_domain_that_has_ended_is_absent(store: PrometheusStore) -> None:
    """The history has no markers of ended series: a server shows the last sample for five minutes."""
    period = read(store, "w1", 3585, 4500)
    assert period.domains["gone"].time_ms.tolist() == [(P0 + 3585) * 1000]
    assert period.node.fields["oc_cpu"][-1] == pytest.approx(6 / 4)


def test_smaller_domain_is_believed_after_a_minute(store: PrometheusStore) -> None:
    vcpus = read(store, "w1", 3600, 4500).domains["shrinks"].fields["cpu"]
    assert vcpus[:4].tolist() == [8.0] * 4
    assert vcpus[5:].tolist() == [2.0] * (vcpus.size - 5)


def test_names_are_never_pasted_into_a_query(store: PrometheusStore) -> None:
    period = read(store, ODD_HOST, 0, 1800)
    assert list(period.domains) == ["c"]
    assert period.node.fields["cpu_usage"] == pytest.approx(np.full(120, 1.5), rel=1e-6)
    assert not read(store, 'w1"} or up{a="', 0, 1800).node.time_ms.size


def test_begin_last_sample_and_configurations_are_found(store: PrometheusStore) -> None:
    assert store.begins_ms("w1", (P0 - 86400) * 1000, END * 1000) == (P0 - 600) * 1000
    assert store.begins_ms("w1", (P0 + 600) * 1000, END * 1000) == (P0 + 600) * 1000
    assert store.begins_ms("w1", (P0 - 86400) * 1000, (P0 - 3600) * 1000) is None
    assert store.begins_ms("unknown", 0, END * 1000) is None
    last = store.last("w1")
    assert last is not None
    assert last.time_ms == END * 1000
    assert last.fields["cpu_usage"] == pytest.approx(1.5, rel=1e-6)
    assert sorted(last.domains) == sorted(["a", ODD_VM, "shrinks"])
    assert store.last("unknown") is None
    configs = store.last_configs("w1", P0 * 1000, (P0 + 3600) * 1000)
    assert configs["shrinks"].fields == {"cpu": 8.0, "mem": 3072.0}
    assert configs["gone"].time_ms == (P0 + 3585) * 1000


def test_last_sample_of_a_node_that_is_down_is_found(url: str) -> None:
    with contextlib.closing(PrometheusStore(settings_of(url), clock=lambda: END + 3000)) as store:
        last = store.last("w2")
        assert last is not None
        assert END - 60 <= last.time_ms / 1000 <= END + STEP_S


def test_server_is_only_read(store: PrometheusStore) -> None:
    last = store.last("w1")
    assert last is not None
    for write in (lambda: store.encode(last), lambda: store.write([]), lambda: store.write_fleet(FleetRow("m", 1, {}))):
        with pytest.raises(StoreRefused, match="read only"):
            write()
    assert store.read_fleet(0, END * 1000) == []
    assert "3 nodes, 2 hosts left out, read only" in store.check()


def test_nodes_that_are_named_are_not_looked_for(url: str) -> None:
    settings = settings_of(url, nodes={"first": NodePair("twice:9101", "w1:9177")})
    with contextlib.closing(PrometheusStore(settings, clock=lambda: END)) as store:
        assert store.nodes() == ["first"]
        assert "a" in read(store, "first", 0, 1800).domains


def test_matchers_restrict_the_series(url: str) -> None:
    settings = settings_of(url, match=parse_matchers('instance=~"w2:.*"'))
    with contextlib.closing(PrometheusStore(settings, clock=lambda: END)) as store:
        assert store.nodes() == ["w2"]


def test_small_queries_give_the_same_samples(url: str, store: PrometheusStore) -> None:
    with contextlib.closing(PrometheusStore(settings_of(url, max_samples=1000), clock=lambda: END)) as small:
        for node in ("w1", "w2"):
            same(read(small, node, 0, 1800), read(store, node, 0, 1800))


def same(one: Period, other: Period) -> None:
    assert list(one.domains) == list(other.domains)
    for left, right in ((one.node, other.node), *((one.domains[name], other.domains[name]) for name in one.domains)):
        np.testing.assert_array_equal(left.time_ms, right.time_ms)
        for field, values in left.fields.items():
            np.testing.assert_allclose(values, right.fields[field])


def test_queries_that_the_server_refuses_for_their_size_are_divided(tmp_path: Path) -> None:
    with prometheus_server(tmp_path / "small", history(), options=["--query.max-samples=6000"]) as address:
        with contextlib.closing(PrometheusStore(settings_of(address), clock=lambda: END)) as store:
            node = read(store, "w1", 0, 1800).node
        assert node.fields["cpu_usage"] == pytest.approx(np.full(120, 1.5), rel=1e-6)


def test_server_that_is_down_is_an_outage() -> None:
    with contextlib.closing(PrometheusStore(settings_of(f"http://127.0.0.1:{free_port()}"))) as store:
        for call in (store.nodes, store.check, lambda: store.last("w1"), lambda: read(store, "w1", 0, 60)):
            with pytest.raises(StoreUnavailable, match="Connection refused"):
                call()
