"""The history of many nodes in few queries, on real servers with known rates: no usage is lower than it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from model.samples import Period, Samples
from model.store.prometheus import PrometheusStore
from model.store.prometheus_history import steps_of
from tests.support.prometheus import SERVERS, OpenMetrics, Value, settings_of
from tests.support.prometheus_pages import GB, P0, add_domain, add_node, constant, growing, without

STEP_S = 15
HOURS = 4
END = P0 + HOURS * 3600
SLICE_S = 1800


def frozen(start: float, end: float, value: Value) -> Value:
    """An exporter that repeats what it had at the start."""
    return lambda t: value(P0 + start if P0 + start <= t < P0 + end else t)


def history() -> str:
    page = OpenMetrics(range(P0 - 7200, END + 1, STEP_S))
    for host in ("known", "down", "reset", "larger", "still"):
        page.add("libvirt_up", {"instance": f"{host}:9177"}, without(*GAPS.get(host, (0, 0)), constant(1)))
    add_node(page, "known:9100")
    add_node(page, "quiet:9100")
    add_node(page, "down:9100", missing=(5000, 5300))
    add_node(page, "reset:9100", reset_at=4000)
    add_node(page, "larger:9100", later_gb=32)
    for host in ("known", "quiet", "reset", "larger", "still"):
        add_domain(page, f"{host}:9177", "a")
    add_domain(page, "known:9177", "leaves", ends=7000)
    add_domain(page, "known:9177", "short", (-10_000, 9200), ends=9900)
    add_domain(page, "known:9177", "off", info_vstate=constant(5))
    add_domain(page, "known:9177", "silent", memory_stats_unused_bytes=constant(0))
    add_domain(page, "down:9177", "a", GAPS["down"])
    # Ten minutes of a cached page.
    for cpu in "0123":
        for mode, rate in (("user", 0.5), ("system", 0.125), ("idle", 0.375)):
            labels = {"instance": "still:9100", "cpu": cpu, "mode": mode}
            page.add("node_cpu_seconds_total", labels, frozen(9000, 9600, growing(rate)))
    page.add("node_memory_MemTotal_bytes", {"instance": "still:9100"}, constant(16 * GB))
    page.add("node_memory_MemAvailable_bytes", {"instance": "still:9100"}, constant(12 * GB))
    return page.text()


#: Seconds in which a libvirt exporter does not respond.
GAPS = {"down": (1800.0, 2700.0)}


@pytest.fixture(scope="module", params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param), history()) as address:
        yield address


@pytest.fixture
def periods(url: str) -> dict[str, Period]:
    with contextlib.closing(PrometheusStore(settings_of(url), clock=lambda: END)) as store:
        return dict(store.history(store.nodes(), P0 * 1000, END * 1000, SLICE_S))


def times_of(samples: Samples) -> list[int]:
    return [time_ms // 1000 - P0 for time_ms in samples.time_ms.tolist()]


def test_every_node_has_its_history(periods: dict[str, Period]) -> None:
    assert sorted(periods) == ["down", "known", "larger", "quiet", "reset", "still"]
    node = periods["known"].node
    assert times_of(node) == list(range(0, HOURS * 3600, 60))
    at = np.array(times_of(node))
    np.testing.assert_allclose(node.fields["cpu_usage"], np.where(at <= 3600, 1.5, 2.5), rtol=1e-6)
    np.testing.assert_allclose(node.fields["elapsed_time"], 60_000)
    np.testing.assert_allclose(node.fields["mem_usage"], 4096)


def test_domains_have_their_usage(periods: dict[str, Period]) -> None:
    domains = periods["known"].domains
    assert sorted(domains) == ["a", "leaves", "short", "silent"]
    np.testing.assert_allclose(domains["a"].fields["cpu_usage"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(domains["a"].fields["mem_usage"], 2048)
    assert np.isnan(domains["silent"].fields["mem_usage"]).all()
    assert {*domains["a"].fields["cpu"].tolist()} == {2.0}


def test_domain_that_comes_or_leaves_is_booked_while_it_is_there(periods: dict[str, Period]) -> None:
    domains, node = periods["known"].domains, periods["known"].node
    # A server shows the last sample of a series for five minutes.
    assert 7000 - 300 <= times_of(domains["leaves"])[-1] <= 7000 + 600
    short = times_of(domains["short"])
    assert short[0] <= 9300
    assert 9600 <= short[-1] <= 9900 + 600
    booked = dict(zip(times_of(node), (node.fields["oc_cpu"] * 4).tolist(), strict=True))
    assert booked[3600] == 6
    # Its size is between two points of the sizes: what is unknown is not taken for nothing.
    assert np.isnan(booked[9600])


def test_silence_of_an_exporter_is_not_idleness(periods: dict[str, Period]) -> None:
    period = periods["down"]
    at = np.array(times_of(period.node))
    assert not ((at > 5040) & (at < 5280)).any()
    np.testing.assert_allclose(period.node.fields["cpu_usage"], np.where(at <= 3600, 1.5, 2.5), rtol=0.01)
    gap = (at >= 2400) & (at <= 2700)
    assert np.isnan(period.node.fields["oc_cpu"][gap]).all()
    assert not np.isnan(period.node.fields["oc_cpu"][at > 3600]).any()


def test_counter_that_starts_again_gives_no_usage(periods: dict[str, Period]) -> None:
    node = periods["reset"].node
    at, usage = np.array(times_of(node)), node.fields["cpu_usage"]
    known = ~np.isnan(usage)
    np.testing.assert_allclose(usage[known], np.where((at > 3600) & (at <= 4000), 2.5, 1.5)[known], rtol=1e-6)
    # Only the long step in which it happened is missing.
    assert set(at[~known]) <= set(range(3600, 5401, 60))


def test_counters_that_stand_still_are_not_idleness(periods: dict[str, Period]) -> None:
    node = periods["still"].node
    usage = node.fields["cpu_usage"]
    assert np.nanmin(usage) == pytest.approx(2.5, rel=1e-6)
    assert np.isnan(usage[np.array(times_of(node)) == 9300]).all()
    assert np.count_nonzero(~np.isnan(usage)) > 150


def test_larger_memory_counts_after_an_hour(periods: dict[str, Period]) -> None:
    node = periods["larger"].node
    at = np.array(times_of(node))
    assert set(node.fields["mem"][at < 5400]) == {16384.0}
    assert node.fields["mem"][-1] == 32768


def test_history_in_small_queries_is_the_same(url: str, periods: dict[str, Period]) -> None:
    with contextlib.closing(PrometheusStore(settings_of(url, max_samples=2000), clock=lambda: END)) as store:
        for node, period in store.history(["known", "down"], P0 * 1000, END * 1000, SLICE_S):
            for name, values in periods[node].node.fields.items():
                np.testing.assert_allclose(period.node.fields[name], values)
            assert period.domains.keys() == periods[node].domains.keys()


@pytest.mark.parametrize(
    ("interval_s", "slice_s", "steps"),
    [
        (15, 1800, (60, 300, 1800)),
        (60, 3600, (60, 300, 1800)),
        (45, 3600, (45, 270, 1620)),
        (300, 3600, (300, 300, 1800)),
        (15, 60, (15, 15, 60)),
        (2, 600, (30, 90, 540)),
        (120, 60, (120, 120, 120)),
    ],
)
def test_steps_are_multiples_of_the_scrape_interval(interval_s: int, slice_s: int, steps: tuple[int, ...]) -> None:
    assert steps_of(interval_s, slice_s) == steps


def test_unknown_node_and_empty_period_have_no_samples(url: str) -> None:
    with contextlib.closing(PrometheusStore(settings_of(url), clock=lambda: END)) as store:
        assert dict(store.history(["nobody"], P0 * 1000, END * 1000, SLICE_S)) == {}
        assert dict(store.history(["known"], END * 1000, P0 * 1000, SLICE_S))["known"].node.time_ms.size == 0
